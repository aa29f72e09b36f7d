"""The log of all ledgers as views read it: pages past given positions, in one query."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from infra.arrays import Ints, Longs
from infra.event_store import COLUMNS, to_recorded
from projections.runner import Unreadable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from domain.recorded import Recorded
    from infra.database import Database, LedgerConnection

_AFTER: Final = (
    "SELECT l.ledger_id,"
    + COLUMNS
    + """
    FROM ledgers l
    LEFT JOIN unnest(%b, %b) AS known (ledger_id, position) ON known.ledger_id = l.ledger_id
    CROSS JOIN LATERAL (
        SELECT * FROM events e
        WHERE e.ledger_id = l.ledger_id AND e.position > coalesce(known.position, 0)
        ORDER BY e.position
        LIMIT %b
    ) e
    ORDER BY l.ledger_id, e.position
    LIMIT %b
"""
)


class Feed:
    """Reads pages across ledgers, with the worker's rights."""

    def __init__(self, database: Database) -> None:
        """Take sessions that see every ledger."""
        self._database = database

    async def after(self, positions: Mapping[int, int], limit: int) -> Sequence[tuple[int, Recorded]]:
        """Return events past the given positions, by ledger and then by position, at most `limit`.

        Raises:
            Unreadable: the first of them cannot be read; one further on ends the page before it.
            Unavailable: the database is away.

        """
        known = (Ints(list(positions)), Longs(list(positions.values())))

        async def query(connection: LedgerConnection) -> list[Any]:
            cursor = connection.cursor(binary=True)
            await cursor.execute(_AFTER, (*known, limit, limit), prepare=True)
            return await cursor.fetchall()

        page: list[tuple[int, Recorded]] = []
        for row in await self._database.read(None, query):
            try:
                page.append((row[0], to_recorded(row[1:])))
            except Exception as error:
                # Whatever is wrong with it: what came before it is served first, then the event stops its reader.
                if page:
                    break
                raise Unreadable(row[0], row[1], f"{type(error).__name__}: {error}") from error
        return page
