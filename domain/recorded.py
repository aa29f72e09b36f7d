"""An event as the ledger holds it, and how a stream of them becomes an aggregate again, now or as it was then."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

from domain.code import Code
from domain.creator import Creator

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from domain.values import Actor, Source

Event = Code.Event | Creator.Event


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


def replay_code(stream: Sequence[RecordedEvent]) -> Code:
    """Build a code from its whole stream, or from the head of it."""
    code = None
    for recorded in stream:
        code = recorded.event.mutate(code)
    return cast("Code", code)


def replay_creator(stream: Sequence[RecordedEvent]) -> Creator:
    """Build a creator from its whole stream, or from the head of it."""
    creator = None
    for recorded in stream:
        creator = recorded.event.mutate(creator)
    return cast("Creator", creator)


def effective_as_of(stream: Sequence[RecordedEvent], at: datetime) -> list[RecordedEvent]:
    """Keep what was true at a moment: the beginning of a code, and all that had taken effect.

    A code recorded late began in the world before the ledger heard of it, so its first event always stays and its
    window decides. Everything else counts from its effective time.
    """
    return [r for r in stream if r.effective_at <= at or isinstance(r.event, Code.Generated)]


def fold_code(kept: Sequence[RecordedEvent]) -> Code:
    """Build a code from a stream with events left out: versions then have gaps, which replay refuses."""
    code = cast("Code", kept[0].event.mutate(None))
    for recorded in kept[1:]:
        recorded.event.apply(code)
        code.version = recorded.stream_version
        code.modified_on = recorded.event.timestamp
    return code
