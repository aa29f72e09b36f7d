"""How far the signed log of a ledger goes, remembered for a moment: it says of each event whether it is sealed."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from infra.postgres.pool import Database, LedgerConnection

# Sealing takes about half a second, so nothing is told much later than it could be.
KEEP_S: Final = 0.25
MAX_LEDGERS: Final = 1_000

_NEWEST: Final = """
    SELECT t.checkpoint_size, coalesce((
        SELECT max(w.size) FROM witnessed_checkpoints w
        WHERE w.ledger_id = t.ledger_id AND w.generation = t.generation
    ), 0)
    FROM log_trees t
    WHERE t.ledger_id = %s AND t.checkpoint IS NOT NULL
    AND t.generation = (SELECT max(h.generation) FROM histories h WHERE h.ledger_id = t.ledger_id)
"""


class SealedSize(NamedTuple):
    """How many events the newest checkpoint covers, and how many the newest one that witnesses have cosigned."""

    size: int
    witnessed_size: int

    def status(self, position: int) -> dict[str, object]:
        """Return what is known of the event at a position, by its position alone."""
        if position > self.size:
            return {"state": "pending", "size": None}
        if position > self.witnessed_size:
            return {"state": "sealed", "size": self.size}
        return {"state": "witnessed", "size": self.witnessed_size}


class SealedSizes:
    """The sizes of the signed logs of all ledgers; those who ask within a moment share one look-up."""

    def __init__(self, database: Database) -> None:
        """Take the sessions to read with."""
        self._database = database
        self._known: dict[int, tuple[float, asyncio.Task[SealedSize]]] = {}

    async def of(self, ledger_id: int) -> SealedSize:
        """Return the size of a ledger's signed log.

        Raises:
            Unavailable: the database is away.

        """
        known = self._known.get(ledger_id)
        if known is None or (known[1].done() and time.monotonic() - known[0] >= KEEP_S):
            if len(self._known) >= MAX_LEDGERS:
                self._known.clear()
            task = asyncio.create_task(self._looked_up(ledger_id), name="size of a signed log")
            known = self._known[ledger_id] = (time.monotonic(), task)
        return await asyncio.shield(known[1])

    async def _looked_up(self, ledger_id: int) -> SealedSize:
        async def query(connection: LedgerConnection) -> SealedSize:
            row = await (await connection.execute(_NEWEST, (ledger_id,))).fetchone()
            return SealedSize(0, 0) if row is None else SealedSize(*row)

        return await self._database.read(ledger_id, query)
