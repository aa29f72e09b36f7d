"""Events as the ledger would hold them, for tests of how they leave it."""

from __future__ import annotations

from uuid import UUID

from domain.code import Code
from domain.creator import Creator
from domain.recorded import Event, RecordedEvent
from domain.values import Actor
from infra.eventstore.serialization import event_type
from tests.given import NOW

HISTORY = UUID(int=9)


def as_recorded(event: Event, position: int = 42) -> RecordedEvent:
    """Return an event with a place, a moment and an actor."""
    name, version = event_type(event)
    of_code = isinstance(event, Code.Event)
    return RecordedEvent(
        position=position,
        event_id=UUID(int=position),
        type=name,
        type_version=version,
        stream_id=event.originator_id,
        stream_version=event.originator_version,
        creator_stream=UUID(int=7) if of_code else event.originator_id,
        recorded_at=NOW,
        effective_at=NOW,
        actor=Actor(str(UUID(int=1)), "operator"),
        source="operator",
        command_id=UUID(int=2),
        correlation_id="order-66",
        causation_id=UUID(int=3),
        creator_id="ana.creates" if of_code or isinstance(event, Creator.Event) else None,
        video_id="7312345678901234567" if of_code else None,
        event=event,
    )
