"""What the expiry clock has done and has before it, in figures: written by the worker, read by the API's metrics.

They are of all ledgers together, and go on counting whichever worker leads and however often it begins again. What a
worker that was killed had counted in its last second is lost; what it recorded is not.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import datetime

    from infra.postgres.pool import Database

WRITE_EVERY_S: Final = 1.0

_WRITE: Final = """
    UPDATE expiry_clock
    SET expiries = expiries + %s, reminders = reminders + %s, failures = failures + %s,
        failing = %s, next_due_at = %s
"""
_READ: Final = "SELECT expiries, reminders, failures, failing, next_due_at FROM expiry_clock"


@dataclass(frozen=True, slots=True)
class Figures:
    """What is known of the clock.

    Attributes:
        expiries, reminders: events recorded.
        failures: attempts that came to nothing because of a defect or a stream that cannot be read.
        failing: codes that wait for another attempt after such a failure.
        next_due_at: when the first thing is due that is not recorded yet, past or ahead; None where no code is open.

    """

    expiries: int = 0
    reminders: int = 0
    failures: int = 0
    failing: int = 0
    next_due_at: datetime | None = None

    def late_s(self, now: datetime) -> float:
        """Return how many seconds ago the longest due became due, 0 where nothing is: also while no worker runs."""
        return 0.0 if self.next_due_at is None else max(0.0, (now - self.next_due_at).total_seconds())


class Report:
    """Writes the figures of one worker, now and then."""

    def __init__(self, database: Database) -> None:
        """Take the sessions to write with."""
        self._database = database
        self._written = Figures()
        self._written_at = 0.0

    async def write(self, figures: Figures) -> None:
        """Add what came since the last time, once a second at most; figures that stay as they are cost nothing.

        Raises:
            Unavailable: the database is away.

        """
        if figures == self._written or time.monotonic() < self._written_at + WRITE_EVERY_S:
            return
        before = self._written
        changed = (
            figures.expiries - before.expiries,
            figures.reminders - before.reminders,
            figures.failures - before.failures,
            figures.failing,
            figures.next_due_at,
        )
        async with self._database.connection() as connection:
            await connection.execute(_WRITE, changed)
        self._written, self._written_at = figures, time.monotonic()


async def read_figures(database: Database) -> Figures:
    """Read the figures.

    Raises:
        Unavailable: the database is away.

    """
    async with database.connection() as connection:
        row = await (await connection.execute(_READ)).fetchone()
    return Figures(*row) if row else Figures()
