"""How an aggregate records an event that it has decided: as the library does it, without what the library looks up.

With every event the library looks up whether its topic is registered and which arguments an identifier could be made
of, and sets each field through a frozen dataclass. The events of a command always have an id, a version and a time. The
classes, the topics, upcasting and replay remain the library's.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

_new: Final = object.__new__
_set: Final = object.__setattr__


class _Format(NamedTuple):
    """The fields of an event's class, and the values of those that may be left out."""

    names: frozenset[str]
    defaults: dict[str, Any]


class Recording:
    """Comes before the library's `Aggregate` among the bases of an aggregate's class."""

    if TYPE_CHECKING:
        TOPIC: str
        _id: UUID
        _version: int
        _modified_on: datetime
        _pending_events: list[Any]

    @classmethod
    def _create(cls, event_class: type[Any], *, id: UUID | None = None, **kwargs: Any) -> Self:
        """Begin an aggregate with its first event; `kwargs` are its fields, with `timestamp`.

        Raises:
            TypeError: the fields are not those of the event.

        """
        kwargs["originator_topic"] = cls.TOPIC
        event = _event(event_class, id, 1, kwargs)
        aggregate: Any = _new(cls)
        aggregate.__base_init__(id, 1, event.timestamp)
        event.apply(aggregate)
        aggregate.pending_events.append(event)
        return aggregate  # type: ignore[no-any-return]

    def trigger_event(self, event_class: type[Any], **kwargs: Any) -> None:
        """Apply an event, and add it to those that are pending; `kwargs` are its fields, with `timestamp`.

        Raises:
            TypeError: the fields are not those of the event.

        """
        version = self._version + 1
        event = _event(event_class, self._id, version, kwargs)
        event.apply(self)
        self._version = version
        self._modified_on = event.timestamp
        self._pending_events.append(event)

    def collect_events(self) -> list[Any]:
        """Return the pending events, which are pending no longer."""
        collected, self._pending_events = self._pending_events, []
        return collected


def _event(event_class: type[Any], stream_id: UUID | None, version: int, fields: dict[str, Any]) -> Any:
    names, defaults = _format(event_class)  # type: ignore[arg-type] # a class can be hashed
    whole = {**defaults, **fields, "originator_id": stream_id, "originator_version": version}
    if whole.keys() != names or stream_id is None:
        message = f"{event_class.__qualname__} has other fields: {', '.join(sorted(names ^ whole.keys())) or 'id'}"
        raise TypeError(message)
    event = _new(event_class)
    _set(event, "__dict__", whole)
    return event


@cache
def _format(event_class: type[Any]) -> _Format:
    fields = dataclasses.fields(event_class)
    defaults = {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}
    return _Format(frozenset(field.name for field in fields), defaults)
