"""An event as the ledger holds it: what happened, with its place, its times and its author."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from eventsourcing.domain import Aggregate

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from domain.values import Actor, Source

# An event of a code or of a creator.
Event = Aggregate.Event


class RecordedEvent(NamedTuple):
    """One event with its place in the ledger. `event` has its sealed fields empty: views never see them.

    A tuple, for a million of them are made to fill a view, and a frozen dataclass sets each field by a call.

    Attributes:
        position: the place in the ledger, dense from 1 in commit order.
        type, type_version: the wire name, and the version of its format that was stored.
        stream_id, stream_version: the aggregate, and the event's dense number in it, from 1.
        creator_stream: the stream of the creator whom the event concerns.
        recorded_at: when the ledger learned it; never decreases with position.
        effective_at: when it was true in the world.
        command_id, correlation_id, causation_id: what it was recorded by, belongs to and follows from.

    """

    position: int
    event_id: UUID
    type: str
    type_version: int
    stream_id: UUID
    stream_version: int
    creator_stream: UUID
    recorded_at: datetime
    effective_at: datetime
    actor: Actor
    source: Source
    command_id: UUID
    correlation_id: str | None
    causation_id: UUID | None
    event: Event
