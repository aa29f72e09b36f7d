"""Reads of the log of one ledger: streams, pages, single events and sealed fields.

Single reads that wait at the same time share one query.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID

from domain.recorded import RecordedEvent
from domain.values import CLOCK, Actor
from infra.errors import Unavailable
from infra.eventstore.serialization import to_event
from infra.ids import time_of
from infra.postgres.batch_loader import BatchLoader
from projections.engine.array_columns import Byteas, Ints, Uuids

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from infra.postgres.pool import Database, LedgerConnection

# The longest wait for a database whose clock is behind this machine's.
CLOCKS_APART_S: Final = 1.0

COLUMNS: Final = """
    e.position, e.event_id, e.type, e.type_version, e.stream_id, e.version, e.creator_stream, e.recorded_at,
    e.effective_at, e.actor_key, e.actor_role, e.actor_subject, e.source, e.command_id, e.correlation_id,
    e.causation_id, e.creator_id, e.video_id, e.body
"""

# The lateral join makes the planner scan an index for each stream, whatever it believes about their lengths.
_STREAMS: Final = (
    "SELECT"
    + COLUMNS
    + """
    FROM unnest(%b) AS x (stream_id)
    CROSS JOIN LATERAL (
        SELECT * FROM events e WHERE e.ledger_id = %b AND e.stream_id = x.stream_id ORDER BY e.version
    ) e
"""
)

# A stream up to so many events after a position. The newest events are looked at first, so this is quick where it ends
# near the end of the stream, and elsewhere takes a small part of what reading the events takes.
_STREAM_PART: Final = (
    "SELECT"
    + COLUMNS
    + """
    FROM events e
    WHERE e.ledger_id = %b AND e.stream_id = %b AND e.version <= %b + coalesce((
        SELECT x.version FROM events x
        WHERE x.ledger_id = %b AND x.stream_id = %b AND x.position <= %b
        ORDER BY x.version DESC
        LIMIT 1
    ), 0)
    ORDER BY e.version
"""
)

_STREAM_UPTO: Final = (
    "SELECT"
    + COLUMNS
    + """
    FROM events e
    WHERE e.ledger_id = %b AND e.stream_id = %b AND e.position <= %b
    ORDER BY e.version
"""
)

# How the events of a stream are spread over so many equal spans of the time from its first to its last.
_SPREAD: Final = """
    SELECT e.type, count(*), min(e.effective_at), max(e.effective_at), min(e.position),
           count(*) FILTER (WHERE e.recorded_at - e.effective_at > %b)
    FROM events e, (
        SELECT min(x.effective_at) AS begins, date_part('epoch', max(x.effective_at) - min(x.effective_at)) AS seconds
        FROM events x
        WHERE x.ledger_id = %b AND x.stream_id = %b
    ) r
    WHERE e.ledger_id = %b AND e.stream_id = %b
    GROUP BY e.type, CASE WHEN r.seconds = 0 THEN 0 ELSE least(
        %b - 1, floor(date_part('epoch', e.effective_at - r.begins) / r.seconds * %b)
    ) END
    ORDER BY 3, 5
"""

_CLAIMED: Final = (
    "SELECT c.claim,"
    + COLUMNS
    + """
    FROM unnest(%b) AS x (claim)
    CROSS JOIN LATERAL (
        SELECT * FROM claims c WHERE c.ledger_id = %b AND c.claim = x.claim LIMIT 1
    ) c
    CROSS JOIN LATERAL (
        SELECT * FROM events e WHERE e.ledger_id = c.ledger_id AND e.stream_id = c.stream_id ORDER BY e.version
    ) e
"""
)

_PAGE: Final = (
    "SELECT"
    + COLUMNS
    + """
    FROM events e
    WHERE e.ledger_id = %b AND e.position > %b AND e.position < %b
    ORDER BY e.position
    LIMIT %b
"""
)
_PAGE_DESCENDING: Final = _PAGE.replace("ORDER BY e.position", "ORDER BY e.position DESC")

_AT_POSITIONS: Final = (
    "SELECT"
    + COLUMNS
    + """
    FROM events e
    WHERE e.ledger_id = %b AND e.position = ANY (%b)
    ORDER BY e.position
"""
)

# An event by its id: in a stream, and near the time that the id begins with, which is just before it was recorded. No
# index has the ids: it would be written with every event, and read when somebody asks what caused one.
_BY_ID_IN_STREAM: Final = """
    SELECT e.position, e.type, e.creator_stream FROM events e
    WHERE e.ledger_id = %b AND e.stream_id = %b AND e.event_id = %b
"""
_BY_ID_SINCE: Final = """
    SELECT e.position, e.type, e.creator_stream
    FROM (
        SELECT position_at(%b, %b) AS position
    ) since
    CROSS JOIN LATERAL (
        SELECT * FROM events e
        WHERE e.ledger_id = %b AND e.position > since.position AND e.position <= since.position + %b
        OFFSET 0
    ) e
    WHERE e.event_id = %b
"""
# An event is recorded so soon after its id was made, and no more than so many others in between.
MADE_BEFORE: Final = timedelta(seconds=5)
RECORDED_BETWEEN: Final = 20_000

# Each sealed part with the key that opens it, both as of one snapshot. An erasure takes effect when it is recorded, not
# when it is carried out: from then on no key is handed out, even if it still exists.
_SEALED: Final = """
    SELECT e.position, e.key_id, e.sealed, k.wrapped, k.erased_at IS NOT NULL OR EXISTS (
        SELECT 1 FROM events x
        WHERE x.ledger_id = e.ledger_id AND x.stream_id = e.creator_stream AND x.type = 'CreatorErased'
    )
    FROM events e
    LEFT JOIN creator_keys k ON k.ledger_id = e.ledger_id AND k.key_id = e.key_id
    WHERE e.ledger_id = %b AND e.position = ANY (%b) AND e.sealed IS NOT NULL
"""

# Once, if there is any: a subquery that depends on no row runs when the first row needs it.
_RECORDED: Final = """
    SELECT e.stream_id, e.version, e.event_id, (SELECT confirm_commits())
    FROM unnest(%b, %b, %b) AS x (stream_id, version, event_id)
    CROSS JOIN LATERAL (
        SELECT * FROM events e WHERE e.ledger_id = %b AND e.stream_id = x.stream_id AND e.version = x.version
    ) e
    WHERE e.event_id = x.event_id
"""

# Larger than any position: the upper bound of a page without one.
_END: Final = 2**62


class EventAt(NamedTuple):
    """An event at its place in a stream."""

    stream_id: UUID
    version: int
    event_id: UUID


class Place(NamedTuple):
    """Where an event is, its type, and the stream of the creator whom it concerns."""

    position: int
    type: str
    creator_stream: UUID


@dataclass(frozen=True, slots=True)
class Spread:
    """The events of one type in one span of time: how many, from when to when, the first, and how many came late."""

    type: str
    count: int
    begins: datetime
    ends: datetime
    position: int
    late: int


@dataclass(frozen=True, slots=True)
class StoredSeal:
    """A sealed part as it is stored, with its wrapped key; `erased` if nobody may use the key any more."""

    key_id: UUID
    sealed: bytes
    wrapped: bytes | None
    erased: bool


class EventReader:
    """Reads the log. What is committed is visible at once.

    Attributes:
        stream: reads one stream.
        claimed: reads the stream that holds a claim.
        event: reads the event at a position.
        command: reads the request hash, and the first and last position, of the command with an idempotency key. What
            it finds, a failover can no longer lose.
        recorded: tells whether a stream has an event at a version, and a failover can no longer lose it.

    """

    def __init__(self, database: Database) -> None:
        """Take the sessions to read with."""
        self._database = database
        self.stream = BatchLoader(self.streams)
        self.claimed = BatchLoader(self._claimed)
        self.event = BatchLoader(self._at)
        self.command = BatchLoader(self._commands)
        self.recorded = BatchLoader(self._recorded)

    async def streams(self, ledger_id: int, stream_ids: Sequence[UUID]) -> dict[UUID, list[RecordedEvent]]:
        """Read whole streams, by stream. A stream that does not exist is absent."""
        rows = await self._rows(ledger_id, _STREAMS, (Uuids(stream_ids), ledger_id))
        found: dict[UUID, list[RecordedEvent]] = {}
        for row in rows:
            found.setdefault(row[4], []).append(to_recorded(row))
        return found

    async def stream_part(self, ledger_id: int, stream_id: UUID, *, after: int, count: int) -> list[RecordedEvent]:
        """Read a stream from its first event on, up to `count` events after a position."""
        parameters = (ledger_id, stream_id, count, ledger_id, stream_id, after)
        return [to_recorded(row) for row in await self._rows(ledger_id, _STREAM_PART, parameters)]

    async def stream_upto(self, ledger_id: int, stream_id: UUID, position: int) -> list[RecordedEvent]:
        """Read a stream as it was at a position."""
        return [to_recorded(row) for row in await self._rows(ledger_id, _STREAM_UPTO, (ledger_id, stream_id, position))]

    async def spread(self, ledger_id: int, stream_id: UUID, spans: int, *, late_after: timedelta) -> list[Spread]:
        """Count the events of a stream by type, in so many equal spans of time, the earliest first."""
        of = (ledger_id, stream_id)
        rows = await self._rows(ledger_id, _SPREAD, (late_after, *of, *of, spans, spans))
        return [Spread(*row) for row in rows]

    async def _claimed(self, ledger_id: int, claims: Sequence[bytes]) -> dict[bytes, list[RecordedEvent]]:
        rows = await self._rows(ledger_id, _CLAIMED, (Byteas(claims), ledger_id))
        found: dict[bytes, list[RecordedEvent]] = {}
        for row in rows:
            found.setdefault(row[0], []).append(to_recorded(row[1:]))
        return found

    async def page(
        self,
        ledger_id: int,
        *,
        after: int | None = None,
        before: int | None = None,
        descending: bool = False,
        limit: int = 100,
    ) -> list[RecordedEvent]:
        """Read events with after < position < before, at most `limit`, oldest first unless descending."""
        query = _PAGE_DESCENDING if descending else _PAGE
        bounds = (0 if after is None else after, _END if before is None else before)
        rows = await self._rows(ledger_id, query, (ledger_id, *bounds, limit))
        return [to_recorded(row) for row in rows]

    async def at_positions(self, ledger_id: int, positions: Sequence[int]) -> list[RecordedEvent]:
        """Read the events at given positions, in ascending order."""
        rows = await self._rows(ledger_id, _AT_POSITIONS, (ledger_id, list(positions)))
        return [to_recorded(row) for row in rows]

    async def _at(self, ledger_id: int, positions: Sequence[int]) -> dict[int, RecordedEvent]:
        return {recorded.position: recorded for recorded in await self.at_positions(ledger_id, positions)}

    async def by_id(self, ledger_id: int, event_id: UUID, stream_id: UUID) -> Place | None:
        """Find an event by its id: in a stream, or by the time that the id begins with; None if it is not found."""
        rows = await self._rows(ledger_id, _BY_ID_IN_STREAM, (ledger_id, stream_id, event_id))
        made_at = time_of(event_id)
        if not rows and made_at is not None:
            since = (ledger_id, made_at - MADE_BEFORE, ledger_id, RECORDED_BETWEEN, event_id)
            rows = await self._rows(ledger_id, _BY_ID_SINCE, since)
        return Place(*rows[0]) if rows else None

    async def position_at(self, ledger_id: int, moment: datetime) -> int:
        """Return the last position recorded at or before a moment; 0 before the first.

        If the database's clock is behind and has not passed the moment yet, this waits for it: until then an event may
        still be recorded at the moment, and the answer would change.

        Raises:
            Unavailable: the clocks are too far apart.

        """
        while True:
            query = "SELECT position_at(%b, %b), clock_timestamp()"
            ((position, now),) = await self._rows(ledger_id, query, (ledger_id, moment))
            if now > moment:
                return int(position)
            ahead_s = (moment - now).total_seconds()
            if ahead_s > CLOCKS_APART_S:
                raise Unavailable("The database's clock has not reached this moment. Try again later.")
            await asyncio.sleep(ahead_s)

    async def head(self, ledger_id: int) -> int:
        """Return the last position of a ledger; 0 if it is empty."""
        query = "SELECT coalesce(max(position), 0) FROM events WHERE ledger_id = %b"
        return int((await self._rows(ledger_id, query, (ledger_id,)))[0][0])

    async def codes_of_creator(self, ledger_id: int, creator_stream: UUID, upto: int) -> list[UUID]:
        """Return the streams of a creator's codes generated at or before a position."""
        query = """
            SELECT stream_id FROM events
            WHERE ledger_id = %b AND creator_stream = %b AND type = 'CodeGenerated' AND position <= %b
        """
        return [row[0] for row in await self._rows(ledger_id, query, (ledger_id, creator_stream, upto))]

    async def sealed(self, ledger_id: int, positions: Sequence[int]) -> dict[int, StoredSeal]:
        """Return the sealed parts of events, with their wrapped keys, by position; events without one are absent."""
        rows = await self._rows(ledger_id, _SEALED, (ledger_id, list(positions)))
        return {row[0]: StoredSeal(*row[1:]) for row in rows}

    async def _commands(self, ledger_id: int, keys: Sequence[bytes]) -> dict[bytes, tuple[bytes, int, int]]:
        query = """
            SELECT key, request_hash, first_position, last_position, (SELECT confirm_commits()) FROM commands
            WHERE ledger_id = %b AND key = ANY (%b)
        """
        rows = await self._found(ledger_id, query, (ledger_id, Byteas(keys)))
        return {row[0]: (row[1], row[2], row[3]) for row in rows}

    async def _recorded(self, ledger_id: int, events: Sequence[EventAt]) -> dict[EventAt, bool]:
        streams, versions, ids = zip(*events, strict=True)
        rows = await self._found(ledger_id, _RECORDED, (Uuids(streams), Ints(versions), Uuids(ids), ledger_id))
        return {EventAt(*row[:3]): row[3] for row in rows}

    async def _rows(self, ledger_id: int, query: str, parameters: Sequence[Any]) -> list[Any]:
        return await self._database.read(ledger_id, partial(_fetched, query, parameters))

    async def _found(self, ledger_id: int, query: str, parameters: Sequence[Any]) -> list[Any]:
        """Return the rows of a query that confirms what it finds."""
        return await self._database.look_up(ledger_id, partial(_fetched, query, parameters))


async def _fetched(query: str, parameters: Sequence[Any], connection: LedgerConnection) -> list[Any]:
    await connection.reused.execute(query, parameters, prepare=True)
    return await connection.reused.fetchall()


def to_recorded(row: Sequence[Any]) -> RecordedEvent:
    """Build an event from a row of `COLUMNS`."""
    # By position, because keywords would double the time. The order is that of the columns and of `RecordedEvent`.
    return RecordedEvent(  # type: ignore[call-arg] # the length of a slice is not part of its type
        *row[:9],
        CLOCK if row[9] is None else _actor(row[9].int, row[10], row[11]),
        *row[12:18],
        to_event(row[2], row[3], row[4], row[5], row[8], row[18]),
    )


@lru_cache(maxsize=10_000)
def _actor(key: int, role: Any, subject: str | None) -> Actor:
    """Return the actor with an API key, cached by the number of its UUID, which is faster to compare."""
    return Actor(str(UUID(int=key)), role, subject)
