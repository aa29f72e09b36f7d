"""Events to rows and back. The library's mapper does topics and upcasting; here is what a row holds beyond it.

A row has two bodies. `body` is the event's decision facts as plain JSON, in clear; `sealed` is whatever field holds a
`Sealed`, encrypted. The type of a field's value decides, so a new event cannot forget to seal.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, cast

import orjson
from eventsourcing.persistence import Mapper, StoredEvent, Transcoder
from eventsourcing.utils import get_topic

from domain.code import Code
from domain.creator import Creator
from domain.values import Sealed

if TYPE_CHECKING:
    from uuid import UUID

    from domain.recorded import Event

# These stand in columns of their own: the effective time, and the aggregate's class, which the event's type implies.
IN_COLUMNS: Final = frozenset({"timestamp", "originator_topic"})
_AGGREGATES: Final[dict[type[Any], str]] = {Code.Generated: Code.TOPIC, Creator.Enabled: Creator.TOPIC}


class BodyTranscoder(Transcoder):
    """The clear body: JSON with sorted keys, times as RFC 3339 in UTC, without what is absent or sealed."""

    def encode(self, obj: Any) -> bytes:
        """Encode an event's clear fields, always to the same bytes for the same fields."""
        clear = {
            name: value
            for name, value in obj.items()
            if value is not None and name not in IN_COLUMNS and type(value) is not Sealed
        }
        return orjson.dumps(clear, option=orjson.OPT_SORT_KEYS | orjson.OPT_UTC_Z)

    def decode(self, data: bytes) -> Any:
        """Decode a clear body; by the naming rule of events, what ends in `_at` is a time."""
        fields = orjson.loads(data)
        for name, value in fields.items():
            if name.endswith("_at"):
                fields[name] = datetime.fromisoformat(value)
        return fields


_MAPPER: Final[Mapper[UUID]] = Mapper(transcoder=BodyTranscoder())


def clear_body(event: Event) -> bytes:
    """Return an event's clear body."""
    return _MAPPER.to_stored_event(event).state


def sealed_fields(event: Event) -> dict[str, str]:
    """Return the fields of an event that must only be stored encrypted."""
    return {name: str(value) for name, value in vars(event).items() if type(value) is Sealed}


def wire_type(event: Event) -> tuple[str, int]:
    """Return an event's published name, and the version of its format."""
    return get_topic(type(event)), getattr(type(event), "class_version", 1)


def to_event(type_: str, stream_id: UUID, version: int, effective_at: datetime, body: bytes) -> Event:
    """Build an event from its row, upcast to the present format; its sealed fields are empty."""
    event = cast("Event", _MAPPER.to_domain_event(StoredEvent(stream_id, version, type_, body)))
    fields = vars(event)
    fields["timestamp"] = effective_at
    aggregate = _AGGREGATES.get(type(event))
    if aggregate is not None:
        fields["originator_topic"] = aggregate
    return event
