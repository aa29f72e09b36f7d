"""Figures of the expiry clock: written by the worker, read by the API's metrics.

They cover all ledgers together. Counters continue when another worker leads or a worker restarts. A worker that is
killed loses what it counted in its last second, but nothing that it recorded.
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
    """The figures of the clock.

    Attributes:
        expiries, reminders: codes of which one was recorded.
        failures: attempts that failed because of a fault of a code or of its stream.
        failing: codes that wait for a retry after such a failure.
        next_due_at: when the first unrecorded expiry or reminder is due, past or future; None where no code is open.

    """

    expiries: int = 0
    reminders: int = 0
    failures: int = 0
    failing: int = 0
    next_due_at: datetime | None = None

    def late_s(self, now: datetime) -> float:
        """Return for how many seconds something has been due, also while no worker runs; 0 where nothing is due."""
        return 0.0 if self.next_due_at is None else max(0.0, (now - self.next_due_at).total_seconds())


class Report:
    """Writes the figures of one worker to the database."""

    def __init__(self, database: Database) -> None:
        """Take the sessions to write with."""
        self._database = database
        self._written = Figures()
        self._written_at = 0.0

    async def write(self, figures: Figures) -> None:
        """Add what changed since the last write, at most once a second; unchanged figures need no query."""
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
    """Read the figures of all workers."""
    async with database.connection() as connection:
        row = await (await connection.execute(_READ)).fetchone()
    return Figures(*row) if row else Figures()
