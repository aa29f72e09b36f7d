"""Serialization of events to rows and back, around the library's mapper, which does topics and upcasting.

A row has two bodies: `body` holds the event's fields as plain JSON, and `sealed` holds, encrypted, the fields whose
values are `Sealed`. The type of the value decides, so a new event cannot forget to seal a field.
"""

from __future__ import annotations

import dataclasses
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, cast

import orjson
from eventsourcing.domain import Aggregate
from eventsourcing.persistence import Mapper, StoredEvent, Transcoder
from eventsourcing.utils import TopicError, get_topic, resolve_topic

from domain.advertiser import Advertiser
from domain.code import Code
from domain.creator import Creator
from domain.log import Log
from domain.sheet_import import SheetImport
from domain.values import Sealed
from domain.video import Video
from infra.errors import Unreadable

if TYPE_CHECKING:
    from uuid import UUID

    from domain.recorded import Event

# Not in the body: the effective time has a column, and the event's type implies the aggregate's class.
IN_COLUMNS: Final = frozenset({"timestamp", "originator_topic"})
_AGGREGATES: Final[dict[type[Any], str]] = {
    Code.Generated: Code.TOPIC,
    Creator.Enabled: Creator.TOPIC,
    Creator.Disabled: Creator.TOPIC,
    Advertiser.Named: Advertiser.TOPIC,
    Video.Bound: Video.TOPIC,
    SheetImport.Started: SheetImport.TOPIC,
    Log.Restarted: Log.TOPIC,
    Log.KeyAdded: Log.TOPIC,
    Log.KeyRetired: Log.TOPIC,
    Log.KeyCompromised: Log.TOPIC,
    Log.HeadsSealed: Log.TOPIC,
}


# The stream and the version have columns too, from which the library takes them.
_BESIDE: Final = IN_COLUMNS | {"originator_id", "originator_version"}
# What is to be sealed is text of another type, which is passed on to `_plain` and not written.
_FORMAT: Final = orjson.OPT_SORT_KEYS | orjson.OPT_UTC_Z | orjson.OPT_PASSTHROUGH_SUBCLASS


class BodyTranscoder(Transcoder):
    """Transcodes clear bodies: JSON with sorted keys, times as RFC 3339 in UTC, without absent and sealed fields."""

    def encode(self, obj: Any) -> bytes:
        """Encode an event's clear fields; the same fields always give the same bytes."""
        kept = {name: value for name, value in obj.items() if value is not None and name not in _BESIDE}
        return orjson.dumps({name: value for name, value in kept.items() if type(value) is not Sealed}, _plain, _FORMAT)

    def decode(self, data: bytes) -> Any:
        """Decode a clear body; fields whose names end in `_at` are times, by the naming rule of events."""
        fields = orjson.loads(data)
        for name, value in fields.items():
            if name.endswith("_at"):
                fields[name] = datetime.fromisoformat(value)
        return fields


_TRANSCODER: Final = BodyTranscoder()
_MAPPER: Final[Mapper[UUID]] = Mapper(transcoder=_TRANSCODER)


def stored_form(event: Event) -> tuple[str, int, bytes, dict[str, str]]:
    """Return what is stored of an event: type, version of its format, clear body, fields that must be encrypted.

    The body is the one that the library's mapper would make, but without its copies. Only a field that may be left out
    can be absent or sealed, because a sealed one is absent when the event is read again.

    Raises:
        TypeError: another field is to be sealed.

    """
    type_, version, optional = _stored(type(event))
    clear = vars(event).copy()
    del clear["timestamp"], clear["originator_id"], clear["originator_version"]
    clear.pop("originator_topic", None)  # only a first event has it
    if version > 1:
        clear["class_version"] = version
    secret: dict[str, str] = {}
    for name in optional:
        value = clear.pop(name, None)
        if value is None:
            continue
        if type(value) is Sealed:
            secret[name] = str(value)
        else:
            clear[name] = value
    return type_, version, orjson.dumps(clear, _plain, _FORMAT), secret


def _plain(value: Any) -> str:
    """Return text of a type of its own as mere text, unless it is to be sealed."""
    if isinstance(value, str) and not isinstance(value, Sealed):
        return str(value)
    raise TypeError


def clear_body(event: Event) -> bytes:
    """Return only an event's clear body."""
    return stored_form(event)[2]


def event_type(event: Event) -> tuple[str, int]:
    """Return an event's type, which is its published name, and the version of its format."""
    type_, version, _ = _stored(type(event))
    return type_, version


class _Stored(NamedTuple):
    """How events of a class are stored.

    Attributes:
        type: their published name.
        version: the version of their format.
        optional: the fields that may be left out.

    """

    type: str
    version: int
    optional: tuple[str, ...]


@cache
def _stored(kind: type[Event]) -> _Stored:
    optional = [field.name for field in dataclasses.fields(kind) if field.default is None]
    return _Stored(get_topic(kind), getattr(kind, "class_version", 1), tuple(optional))


class UnreadableEvent(Aggregate.Event):
    """An event of the log that this version of the program cannot read, and of which it knows only the metadata.

    Attributes:
        reason: why it cannot be read.

    """

    reason: str

    def mutate(self, _: Any) -> NoReturn:
        """Refuse: an aggregate without this event would be another one."""
        raise self.error

    def apply(self, _: Any) -> NoReturn:
        """Refuse, for the same reason."""
        raise self.error

    @property
    def error(self) -> Unreadable:
        """What is raised where the event is needed."""
        return Unreadable(
            f"Event {self.originator_version} of stream {self.originator_id} cannot be read: {self.reason} Start a "
            "version of the program that can read it."
        )


def to_event(
    type_: str, type_version: int, stream_id: UUID, version: int, effective_at: datetime, body: bytes
) -> Event:
    """Build an event from its row, upcast to the current format; its sealed fields are absent.

    What cannot be read is never taken for something else: an `UnreadableEvent` stands for it.
    """
    try:
        return _readable_event(type_, type_version, stream_id, version, effective_at, body)
    except _Unreadable as unreadable:
        reason = str(unreadable)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with a body, it cannot be read
        reason = f"Its body is malformed ({type(error).__name__})."
    event = object.__new__(UnreadableEvent)
    fields = {"originator_id": stream_id, "originator_version": version, "timestamp": effective_at, "reason": reason}
    object.__setattr__(event, "__dict__", fields)
    return event


def _readable_event(
    type_: str, type_version: int, stream_id: UUID, version: int, effective_at: datetime, body: bytes
) -> Event:
    kind, current, required, times, aggregate = _format(type_)
    if not 1 <= type_version <= current:
        raise _Unreadable(f"Version {type_version} of {type_} is not known here. The newest known is {current}.")
    if current == 1:
        # As the library's mapper does where there is nothing to upcast, but without looking for it.
        fields = orjson.loads(body)
        for name in times:
            if (text := fields.get(name)) is not None:
                fields[name] = datetime.fromisoformat(text)
        fields["originator_id"] = stream_id
        fields["originator_version"] = version
        event = object.__new__(kind)
        object.__setattr__(event, "__dict__", fields)
    else:
        fields = _TRANSCODER.decode(body)
        if fields.get("class_version", 1) != type_version:
            raise _Unreadable("Its body has another version than its row.")
        event = cast("Event", _MAPPER.to_domain_event(StoredEvent(stream_id, version, type_, body)))
        fields = vars(event)
    if not required <= fields.keys():
        raise _Unreadable(f"Its body lacks {', '.join(sorted(required - fields.keys()))}.")
    fields["timestamp"] = effective_at
    if aggregate is not None:
        fields["originator_topic"] = aggregate
    return event


class _Unreadable(Exception):
    """Why an event cannot be read."""


class _Format(NamedTuple):
    """How the events of a type are read.

    Attributes:
        kind: their class.
        version: the newest version of their format.
        required: the fields that a body must have.
        times: the fields that are times, by the naming rule of events.
        aggregate: the class of the aggregate that they begin, if they do.

    """

    kind: type[Event]
    version: int
    required: frozenset[str]
    times: tuple[str, ...]
    aggregate: str | None


@cache
def _format(type_: str) -> _Format:
    """Return how the events of a type are read.

    Raises:
        _Unreadable: there is no such type.

    """
    try:
        # A published name has no colon. One with a colon would be imported.
        kind = None if ":" in type_ else resolve_topic(type_)
    except TopicError:
        kind = None
    if kind is None:
        raise _Unreadable(f"The type {type_} is not known here.")
    fields = [field for field in dataclasses.fields(kind) if field.name not in _BESIDE]
    return _Format(
        kind,
        _stored(kind).version,
        frozenset(field.name for field in fields if field.default is dataclasses.MISSING),
        tuple(field.name for field in fields if field.name.endswith("_at")),
        _AGGREGATES.get(kind),
    )
