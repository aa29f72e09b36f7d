"""A code as it stands in the log now, without reading again what this process has read of it before.

The log is asked for the last event of the code's stream alone. If that is the last event of the code in the cache, the
code has not changed since: an event has an id of its own, and those before it in a stream never change. So an answer is
never older than the last commit, whichever process made it, and most cost neither decoding nor a replay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from domain.code import Code
from infra.eventstore.repository import loaded
from infra.postgres.batch_loader import BatchLoader
from projections.engine.array_columns import UuidNumbers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from infra.eventstore.aggregate_reader import AggregateReader
    from infra.eventstore.repository import Loaded
    from infra.postgres.pool import Database, LedgerConnection

_LAST_EVENTS: Final = """
    SELECT x.number, uuid_send(e.event_id)
    FROM unnest(%b) WITH ORDINALITY AS x (stream_id, number)
    CROSS JOIN LATERAL (
        SELECT e.event_id
        FROM events e
        WHERE e.ledger_id = %b
        AND e.stream_id = x.stream_id
        ORDER BY e.version DESC
        LIMIT 1
    ) e
"""


class CurrentCodes:
    """The codes of all ledgers of a database."""

    def __init__(self, database: Database, aggregates: AggregateReader) -> None:
        """Take the sessions to read with, and what reads aggregates and has their cache."""
        self._database = database
        self._aggregates = aggregates
        # By the numbers of ids: a UUID's own hash and comparison are computed in Python.
        self._last_event = BatchLoader(self._last_events)

    async def find(self, ledger_id: int, code_id: UUID) -> Loaded | None:
        """Return a code and its place in the log; None if there is no such code. Nobody may change what is returned.

        Raises:
            Unreadable: an event of it cannot be read.

        """
        cache = self._aggregates.cache
        known = cache.aggregate(ledger_id, code_id)
        if known is not None and await self._last_event(ledger_id, code_id.int) == known.event_ids[-1].int:
            return known if isinstance(known.aggregate, Code) else None
        session = cache.writer_session
        stream = await self._aggregates.code_stream(ledger_id, code_id)
        if not stream:
            return None
        found = loaded(stream)
        if cache.writer_session == session:  # else it may be of a database that was replaced meanwhile
            cache.keep(ledger_id, found)
        return found

    async def _last_events(self, ledger_id: int, stream_ids: Sequence[int]) -> dict[int, int]:
        async def query(connection: LedgerConnection) -> list[Any]:
            await connection.reused.execute(_LAST_EVENTS, (UuidNumbers(stream_ids), ledger_id), prepare=True)
            return await connection.reused.fetchall()

        rows = await self._database.read(ledger_id, query)
        return {stream_ids[number - 1]: int.from_bytes(event_id) for number, event_id in rows}
