"""The clock: records `Expired` for each code whose window is over, once, effective at the window's end.

Commands compare the moment with the window themselves, so nothing waits for this; it makes the log complete, also for
what fell due while nobody ran. Finding what is due is a view's question; recording it is a command like any other, so
two clocks at once record an expiry once.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from domain import commands
from domain.values import CLOCK
from infra.errors import Unavailable
from infra.ledger import Request
from projections import expiring

if TYPE_CHECKING:
    from uuid import UUID

    from domain.code import Code
    from domain.commands import Decision, Ledger, When
    from infra.database import Database, LedgerConnection
    from infra.ledger import Ledgers

# How many expiries are recorded at a time: enough to fill a commit, few enough to leave room for callers.
PAGE: Final = 200
POLL_S: Final = 1.0

log = logging.getLogger(__name__)


class ExpiryClock:
    """Records what is due, again and again."""

    def __init__(self, ledgers: Ledgers, database: Database) -> None:
        """Take the ledgers to record in, and sessions that see every ledger's view."""
        self._ledgers = ledgers
        self._database = database
        self.woken = asyncio.Event()
        # What could not be recorded, until the next start.
        self._skipped: set[tuple[int, UUID]] = set()

    async def run(self) -> None:
        """Record what is due until cancelled; a database that is away is waited for."""
        while True:
            self.woken.clear()
            try:
                recorded = await self.record_due()
            except Unavailable as unavailable:
                log.warning("The expiry clock waits: %s", unavailable)
                recorded = 0
            if recorded == 0:
                # Nothing is due, or the view has not heard of what was just recorded: an event or a second will tell.
                try:
                    await asyncio.wait_for(self.woken.wait(), POLL_S)
                except TimeoutError:
                    continue

    async def record_due(self) -> int:
        """Record one page of due expiries; return how many were recorded now.

        Raises:
            Unavailable: the database is away.

        """

        async def query(connection: LedgerConnection) -> list[expiring.Due]:
            return await expiring.due(connection.cursor(), self._ledgers.now(), PAGE + len(self._skipped))

        due = await self._database.read(None, query)
        known = [code for code in due if (code.ledger_id, code.code_id) not in self._skipped]
        return sum(await asyncio.gather(*(self._expire(code.ledger_id, code.code_id) for code in known)))

    async def _expire(self, ledger_id: int, code_id: UUID) -> int:
        async def decide(ledger: Ledger, when: When) -> Decision[Code]:
            return await commands.expire(ledger, code_id, when=when)

        try:
            done = await self._ledgers.execute(Request(ledger_id, CLOCK), decide)
        except Unavailable:
            raise
        except Exception:
            # One code that cannot be read or decided must not keep the others from expiring.
            log.exception("The expiry of code %s of ledger %s was not recorded; others go on", code_id, ledger_id)
            self._skipped.add((ledger_id, code_id))
            return 0
        return done.appended
