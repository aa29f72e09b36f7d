"""Reads of the log of all ledgers, as views need them: pages past given positions, in one query."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from infra.eventstore import serialization
from infra.eventstore.reader import COLUMNS, to_recorded
from projections.engine.array_columns import Bigints, Ints
from projections.engine.page import EventPage
from projections.engine.projector import UnreadableEvent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from domain.recorded import RecordedEvent
    from infra.postgres.pool import Database, LedgerConnection

# Every ledger with new events gets a part of the page, so that a long backlog of one does not hold up the others. Parts
# are equal, except that a ledger with fewer new events leaves the rest to the others: the largest equal part is found
# by serving ledgers in the order of how few new events they have.
#
# Positions are dense, so the head of a ledger shows how many new events it has. If more ledgers have new events than a
# page has room for, the next page continues after the last ledger that was served.
_AFTER: Final = (
    """
    WITH behind AS MATERIALIZED (
        SELECT l.ledger_id, coalesce(known.position, 0) AS position, h.position - coalesce(known.position, 0) AS events
        FROM ledgers l
        LEFT JOIN unnest(%(ledgers)b, %(positions)b) AS known (ledger_id, position) ON known.ledger_id = l.ledger_id
        CROSS JOIN LATERAL (
            SELECT e.position FROM events e WHERE e.ledger_id = l.ledger_id ORDER BY e.position DESC LIMIT 1
        ) h
        WHERE h.position > coalesce(known.position, 0)
        ORDER BY l.ledger_id <= %(served)b, l.ledger_id
        LIMIT %(limit)b
    ), part AS MATERIALIZED (
        SELECT max((%(limit)b - taken) / takers) AS events
        FROM (
            SELECT
                coalesce(sum(events) OVER (
                    ORDER BY events, ledger_id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
                ), 0)::bigint AS taken,
                count(*) OVER (ORDER BY events DESC, ledger_id DESC) AS takers
            FROM behind
        ) x
    )
    SELECT"""
    + COLUMNS
    + """, e.ledger_id
    FROM behind b
    CROSS JOIN LATERAL (
        SELECT * FROM events e
        WHERE e.ledger_id = b.ledger_id AND e.position > b.position
        ORDER BY e.position
        LIMIT least(b.events, (SELECT events FROM part))
    ) e
    ORDER BY e.ledger_id, e.position
"""
)

_HEADS: Final = """
    SELECT l.ledger_id, h.position
    FROM ledgers l
    CROSS JOIN LATERAL (
        SELECT e.position FROM events e WHERE e.ledger_id = l.ledger_id ORDER BY e.position DESC LIMIT 1
    ) h
"""


class AllLedgersReader:
    """Reads pages of the log across ledgers, with the worker's rights."""

    def __init__(self, database: Database) -> None:
        """Take sessions that see every ledger."""
        self._database = database
        self._served = 0

    async def after(self, positions: Mapping[int, int], limit: int) -> EventPage:
        """Return events past the given positions, at most `limit`, with a part for every ledger that has any.

        Raises:
            UnreadableEvent: the first event cannot be read. An unreadable event further on ends the page before it.
            PositionGap: the log lacks an event.

        """
        parameters = {
            "ledgers": Ints(list(positions)),
            "positions": Bigints(list(positions.values())),
            "served": self._served,
            "limit": limit,
        }

        async def query(connection: LedgerConnection) -> list[Any]:
            cursor = connection.cursor(binary=True)
            await cursor.execute(_AFTER, parameters, prepare=True)
            return await cursor.fetchall()

        rows = await self._database.read(None, query)
        events: list[tuple[int, RecordedEvent]] = []
        for row in rows:
            recorded = to_recorded(row)
            if isinstance(recorded.event, serialization.UnreadableEvent):
                # The events before it are returned first; the next page then begins with it, and raises.
                if events:
                    break
                raise UnreadableEvent(row[-1], row[0], recorded.event.reason)
            events.append((row[-1], recorded))
        page = EventPage.of(events)
        if page.spans:
            self._served = max((ledger_id for ledger_id in page.spans if ledger_id <= self._served), default=row[-1])
        return page

    def forget(self) -> None:
        """Do nothing: this reader keeps no pages."""

    async def heads(self) -> dict[int, int]:
        """Return the last position of each ledger that has events."""

        async def query(connection: LedgerConnection) -> list[Any]:
            cursor = connection.cursor(binary=True)
            await cursor.execute(_HEADS, prepare=True)
            return await cursor.fetchall()

        return dict(await self._database.read(None, query))
