"""Events as the ledger stores them, with their position, times and author."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from eventsourcing.domain import Aggregate

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from domain.values import Actor, Source

# An event of a code, of a creator or of an advertiser account.
Event = Aggregate.Event


class RecordedEvent(NamedTuple):
    """One event with its position in the ledger. The sealed fields of `event` are empty, so views never see them.

    It is a tuple because filling a view creates a million of them, and a frozen dataclass sets each field by a
    call.

    Attributes:
        position: the position in the ledger, from 1 without gaps, in commit order.
        type, type_version: the published name, and the version of the format that was stored.
        stream_id, stream_version: the aggregate, and the event's number in its stream, from 1 without gaps.
        creator_stream: the stream of the creator whom the event concerns; an advertiser account's own for its events.
        recorded_at: when the ledger recorded it; never decreases with the position.
        effective_at: when it happened in the world.
        command_id, correlation_id, causation_id: the command that recorded it, the business process, the cause.
        creator_id: the creator whom the event concerns; None where it concerns none.
        video_id: the video of the code that it is an event of; None where it is of no code.

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
    creator_id: str | None
    video_id: str | None
    event: Event
