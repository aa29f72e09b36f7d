"""Serialization of events to rows and back, around the library's mapper, which does topics and upcasting.

A row has two bodies: `body` holds the event's fields as plain JSON, and `sealed` holds, encrypted, the fields whose
values are `Sealed`. The type of the value decides, so a new event cannot forget to seal a field.
"""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Final, cast

import orjson
from eventsourcing.persistence import Mapper, StoredEvent, Transcoder
from eventsourcing.utils import get_topic, resolve_topic

from domain.advertiser import Advertiser
from domain.code import Code
from domain.creator import Creator
from domain.values import Sealed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from domain.recorded import Event

# Not in the body: the effective time has a column, and the event's type implies the aggregate's class.
IN_COLUMNS: Final = frozenset({"timestamp", "originator_topic"})
_AGGREGATES: Final[dict[type[Any], str]] = {
    Code.Generated: Code.TOPIC,
    Creator.Enabled: Creator.TOPIC,
    Creator.Disabled: Creator.TOPIC,
    Advertiser.Named: Advertiser.TOPIC,
}


# The stream and the version have columns too, from which the library takes them.
_BESIDE: Final = IN_COLUMNS | {"originator_id", "originator_version"}
_FORMAT: Final = orjson.OPT_SORT_KEYS | orjson.OPT_UTC_Z


class BodyTranscoder(Transcoder):
    """Transcodes clear bodies: JSON with sorted keys, times as RFC 3339 in UTC, without absent and sealed fields."""

    def encode(self, obj: Any) -> bytes:
        """Encode an event's clear fields; the same fields always give the same bytes."""
        return split_sealed_fields(obj)[0]

    def decode(self, data: bytes) -> Any:
        """Decode a clear body; fields whose names end in `_at` are times, by the naming rule of events."""
        fields = orjson.loads(data)
        for name, value in fields.items():
            if name.endswith("_at"):
                fields[name] = datetime.fromisoformat(value)
        return fields


_TRANSCODER: Final = BodyTranscoder()
_MAPPER: Final[Mapper[UUID]] = Mapper(transcoder=_TRANSCODER)


def split_sealed(event: Event) -> tuple[bytes, dict[str, str]]:
    """Return an event's clear body, and the fields that may only be stored encrypted.

    The body is the one that the library's mapper would make, but without its copies.
    """
    _, version = event_type(event)
    return split_sealed_fields(vars(event) if version == 1 else vars(event) | {"class_version": version})


def split_sealed_fields(fields: Mapping[str, Any]) -> tuple[bytes, dict[str, str]]:
    """Split an event's fields as `split_sealed` splits an event."""
    clear: dict[str, Any] = {}
    secret: dict[str, str] = {}
    for name, value in fields.items():
        if type(value) is Sealed:
            secret[name] = str(value)
        elif value is not None and name not in _BESIDE:
            clear[name] = value
    return orjson.dumps(clear, option=_FORMAT), secret


def clear_body(event: Event) -> bytes:
    """Return an event's clear body alone."""
    return split_sealed(event)[0]


def event_type(event: Event) -> tuple[str, int]:
    """Return an event's type, which is its published name, and the version of its format."""
    return _event_type(type(event))


@cache
def _event_type(kind: type[Event]) -> tuple[str, int]:
    return get_topic(kind), getattr(kind, "class_version", 1)


def to_event(type_: str, stream_id: UUID, version: int, effective_at: datetime, body: bytes) -> Event:
    """Build an event from its row, upcast to the current format; its sealed fields are absent."""
    kind = resolve_topic(type_)
    if _event_type(kind)[1] == 1:
        # As the library's mapper does where there is nothing to upcast, but without looking for it.
        fields = _TRANSCODER.decode(body)
        fields["originator_id"] = stream_id
        fields["originator_version"] = version
        event = cast("Event", object.__new__(kind))
        object.__setattr__(event, "__dict__", fields)
    else:
        event = cast("Event", _MAPPER.to_domain_event(StoredEvent(stream_id, version, type_, body)))
        fields = vars(event)
    fields["timestamp"] = effective_at
    aggregate = _AGGREGATES.get(kind)
    if aggregate is not None:
        fields["originator_topic"] = aggregate
    return event
