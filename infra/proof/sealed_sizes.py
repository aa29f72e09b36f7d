"""How far the signed log of a ledger goes, remembered for a moment: it says of each event whether it is sealed."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import datetime

    from infra.postgres.pool import Database, LedgerConnection

# Sealing takes about half a second, so nothing is told much later than it could be.
KEEP_S: Final = 0.25
MAX_LEDGERS: Final = 1_000

# What witnesses have signed counts, also of one that is not asked any more: the checkpoint has its signature.
# OFFSET 0 makes the size a column, which an index is used for (infra/postgres/roles.py says why).
_NEWEST: Final = """
    SELECT z.size, t.checkpoint_at, t.stopped IS NOT NULL,
        (
            SELECT n.recorded_at FROM events n
            WHERE n.ledger_id = l.ledger_id AND n.position > z.size
            ORDER BY n.position
            LIMIT 1
        ),
        t.origin, w.size, w.note, s.witnesses, s.sizes
    FROM ledgers l
    LEFT JOIN log_trees t ON t.ledger_id = l.ledger_id
        AND t.generation = (SELECT max(h.generation) FROM histories h WHERE h.ledger_id = l.ledger_id)
    CROSS JOIN LATERAL (SELECT coalesce(t.checkpoint_size, 0) AS size OFFSET 0) z
    LEFT JOIN LATERAL (
        SELECT w.size, w.note FROM witnessed_checkpoints w
        WHERE w.ledger_id = t.ledger_id AND w.generation = t.generation
        ORDER BY w.size DESC
        LIMIT 1
    ) w ON true
    CROSS JOIN LATERAL (
        SELECT array_agg(s.witness) AS witnesses, array_agg(s.size) AS sizes FROM log_witnesses s
        WHERE s.ledger_id = t.ledger_id AND s.generation = t.generation AND s.cosigned_at IS NOT NULL
    ) s
    WHERE l.ledger_id = %s
"""
_SIGNER: Final = re.compile("^— ([^ ]+) ", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class SealedSize:
    """How far the signed log of a ledger goes.

    Attributes:
        size: how many events the newest checkpoint covers.
        witnessed_size: how many the newest one covers that witnesses have cosigned.
        witnesses: by name, how many events the newest checkpoint covers that a witness has cosigned.
        sealed_at: when the newest checkpoint was signed; None before the first.
        pending_since: when the oldest event was recorded that no checkpoint covers; None if all are covered.
        stopped: whether the sealer has stopped, and waits for an operator.

    """

    size: int
    witnessed_size: int
    witnesses: tuple[tuple[str, int], ...] = ()
    sealed_at: datetime | None = None
    pending_since: datetime | None = None
    stopped: bool = False

    def status(self, position: int) -> dict[str, object]:
        """Return what is known of the event at a position, by its position alone."""
        if position > self.size:
            return {"state": "pending", "size": None, "witnesses": []}
        if position > self.witnessed_size:
            return {"state": "sealed", "size": self.size, "witnesses": []}
        names = [name for name, size in self.witnesses if size >= position]
        return {"state": "witnessed", "size": self.witnessed_size, "witnesses": names}

    def content(self) -> dict[str, object]:
        """Return what is known of the log as a whole, and how late it is."""
        return {
            "size": self.size,
            "witnessed_size": self.witnessed_size,
            "sealed_at": self.sealed_at,
            "pending_since": self.pending_since,
            "stopped": self.stopped,
        }


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
            if row is None:
                return SealedSize(0, 0)
            size, sealed_at, stopped, pending_since, origin, witnessed_size, note, names, sizes = row
            known = dict(zip(names or (), sizes or (), strict=True))
            for name in () if note is None else _SIGNER.findall(note):
                if name != origin:
                    known[name] = max(witnessed_size, known.get(name, 0))
            witnesses = tuple(sorted(known.items()))
            return SealedSize(size, witnessed_size or 0, witnesses, sealed_at, pending_since, stopped)

        return await self._database.read(ledger_id, query)
