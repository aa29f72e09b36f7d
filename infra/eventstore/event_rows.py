"""Bulk reads of the log as plain rows, from which answers are made without building events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from projections.engine.array_columns import Bigints

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from infra.postgres.pool import Database, LedgerConnection

# A row, in the order of `_COLUMNS`. To build an object of it would take as long as reading it.
Row = tuple[
    int,  # position
    UUID,  # event_id
    str,  # type
    int,  # type_version
    UUID,  # stream_id
    int,  # stream_version
    "datetime",  # recorded_at
    "datetime",  # effective_at
    UUID | None,  # the actor's key; None for the clock
    str,  # its role
    str | None,  # the subject it acted for
    str,  # source
    str | None,  # correlation_id
    UUID | None,  # causation_id
    str | None,  # creator_id
    str | None,  # video_id
    bytes,  # the clear body
]
_COLUMNS: Final = """
    e.position, e.event_id, e.type, e.type_version, e.stream_id, e.version, e.recorded_at, e.effective_at,
    e.actor_key, e.actor_role, e.actor_subject, e.source, e.correlation_id, e.causation_id, e.creator_id, e.video_id,
    e.body
"""
POSITION: Final = 0
EVENT_ID: Final = 1
STREAM_ID: Final = 4
ACTOR_KEY: Final = 8
CAUSATION_ID: Final = 13
CREATOR_ID: Final = 14

_BETWEEN: Final = (
    "SELECT"
    + _COLUMNS
    + """
    FROM events e
    WHERE e.ledger_id = %b AND e.position > %b AND e.position < %b
    ORDER BY e.position
    LIMIT %b
"""
)
_BETWEEN_DESCENDING: Final = _BETWEEN.replace("ORDER BY e.position", "ORDER BY e.position DESC")

# The lateral join makes the planner look up each position in an index, however many there are.
_AT: Final = (
    "SELECT"
    + _COLUMNS
    + """
    FROM unnest(%b) WITH ORDINALITY AS x (position, i)
    CROSS JOIN LATERAL (SELECT * FROM events e WHERE e.ledger_id = %b AND e.position = x.position OFFSET 0) e
    ORDER BY x.i
"""
)


class EventRows:
    """Reads the log as rows. No connection and no snapshot is held between two reads."""

    def __init__(self, database: Database) -> None:
        """Take the sessions to read with."""
        self._database = database

    async def between(
        self, ledger_id: int, after: int, before: int, *, limit: int, descending: bool = False
    ) -> Sequence[Row]:
        """Read rows with after < position < before, at most `limit`, oldest first unless descending."""
        query = _BETWEEN_DESCENDING if descending else _BETWEEN
        return await self._rows(ledger_id, query, (ledger_id, after, before, limit))

    async def at(self, ledger_id: int, positions: Sequence[int]) -> Sequence[Row]:
        """Read the rows at given positions, in the given order."""
        return await self._rows(ledger_id, _AT, (Bigints(positions), ledger_id)) if positions else []

    async def _rows(self, ledger_id: int, query: str, parameters: Sequence[Any]) -> Sequence[Row]:
        async def run(connection: LedgerConnection) -> Sequence[Row]:
            cursor = connection.cursor(binary=True)
            await cursor.execute(query, parameters, prepare=True)
            return await cursor.fetchall()

        return await self._database.read(ledger_id, run)
