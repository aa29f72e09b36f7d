"""The expiry clock: records that codes expired, and before that, that their ends approach.

No command waits for the clock, because commands compare the time with the window themselves. The clock makes the log
complete, also for what fell due while no worker ran. A view lists what is due; what is recorded is then decided from
the log. So everything is recorded once, even if the view lags or two clocks run. Only one clock leads at a time,
because several would do the same work.

A hundred thousand codes may fall due in one second. The clock takes small batches, from each ledger in turn: a batch
holds its ledger's lock for milliseconds, and commands are recorded in between.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import psycopg

from infra.ending import cancelled
from infra.errors import Unavailable
from infra.jobs.expiry_batch import ExpiryRecorder
from infra.jobs.expiry_figures import Figures, Report
from infra.postgres.pool import LedgerConnection, session
from projections import expiring
from projections.engine import checkpoints
from projections.engine.advisory_locks import AdvisoryLock
from projections.expiring import Due

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from psycopg import AsyncCursor

    from infra.jobs.expiry_batch import Result
    from infra.runtime import Runtime

T = TypeVar("T")

# Codes in a batch, and codes in progress: one batch is decided while another is committed.
BATCH: Final = 128
IN_FLIGHT: Final = 2 * BATCH
# Ledgers in which something is due are listed again after this time, however much is left to record.
LOOK_EVERY_S: Final = 1.0
# The longest and the shortest pause when nothing is due. A new code may end sooner than any known one.
REST_S: Final = 1.0
REST_LEAST_S: Final = 0.01
# How often a clock that does not lead tries to.
LEAD_EVERY_S: Final = 1.0
# The pause after a ledger or the database could not be written to.
AWAY_S: Final = 1.0
# The pause after the expiry of a code could not be recorded. It doubles with each failure, up to the longest.
FAILED_S: Final = 1.0
FAILED_LONGEST_S: Final = 600.0
# The most codes that wait for a retry.
MAX_WAITING: Final = 10_000

_LEAD: Final = "SELECT pg_try_advisory_lock(%s)"
# A view that is being created or rebuilt lacks its table or its newest column for a while.
_NOT_YET: Final = (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn)

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Pass:
    """Progress through a ledger's due codes.

    Attributes:
        passed: the last code that was taken.
        position: the last position that was read or written; a view that has read it no longer lists these codes.

    """

    passed: Due
    position: int = 0


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A code of which nothing could be recorded yet.

    Attributes:
        due_at: when it fell due.
        again_at: when it is tried again, by the monotonic clock.
        failures: how often a fault of its own was the cause.

    """

    due_at: datetime
    again_at: float
    failures: int


class ExpiryClock:
    """Records what is due, in all ledgers, for as long as it runs."""

    def __init__(self, opened: Runtime) -> None:
        """Take the runtime of a worker, whose role sees all ledgers."""
        self._handler = opened.handler
        self._database = opened.database
        self._recorder = ExpiryRecorder(opened)
        self._passes: dict[int, _Pass] = {}
        self._waiting: dict[tuple[int, UUID], _Waiting] = {}
        # When each ledger in which something is due last had its turn.
        self._turns: dict[int, float] = {}
        # Ledgers in which nothing can be recorded now, with the time of the next attempt; and those already logged.
        self._paused: dict[int, float] = {}
        self._paused_logged: set[int] = set()
        self._next_due: datetime | None = None
        self._failures = 0
        self._report = Report(opened.database)
        self._away = False

    async def run(self) -> None:
        """Lead, and record what is due, until cancelled. While the database is away, it retries."""
        settings = session(self._database.conninfo, self._database.role)
        settings["application_name"] = "sparkledger expiry clock"
        while True:
            try:
                async with await LedgerConnection.connect(**settings) as lease:
                    await self._lead(lease)
            except (Unavailable, psycopg.OperationalError, *_NOT_YET) as error:
                if not self._away:
                    log.warning("The expiry clock is delayed: %s", str(error).strip())
                self._away = True
                await asyncio.sleep(AWAY_S)

    async def _lead(self, lease: LedgerConnection) -> None:
        """Lead for as long as the session of the lease lasts."""
        while not await _leads(lease):  # noqa: ASYNC110 - PostgreSQL sends no message when a lock becomes free
            await asyncio.sleep(LEAD_EVERY_S)
        # Another clock may have led meanwhile, and left something unrecorded.
        self._passes.clear()
        while True:
            recorded = await self.record_due()
            self._away = False
            await self._report.write(self.figures)
            if not recorded:
                await asyncio.sleep(self._rest_s())
            await lease.execute("SELECT 1")

    async def record_due(self) -> int:
        """Record what is due, for at most a second; return the number of codes of which something was recorded."""
        await self._forget_passes()
        due = await self._look()
        before = self._recorder.recorded
        running: dict[asyncio.Task[None], int] = {}
        try:
            async for ledger_id, codes in self._batches(due):
                while running and sum(running.values()) + len(codes) > IN_FLIGHT:
                    done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        del running[task]
                        task.result()
                running[asyncio.create_task(self._record(ledger_id, codes))] = len(codes)
            await asyncio.gather(*running)
        finally:
            await cancelled(running)
        return self._recorder.recorded - before

    async def _look(self) -> deque[int]:
        """Find out when something is due next, and return the ledgers in which something is due now.

        The ledger whose turn was longest ago comes first. Among ledgers that had no turn, it is the one in which
        something has been due for longest.
        """
        passed = {ledger_id: passing.passed for ledger_id, passing in self._passes.items()}
        first = await self._read(lambda cursor: expiring.first_due(cursor, passed))
        waiting = (waiting.due_at for waiting in self._waiting.values())
        self._next_due = min([*first.values(), *waiting], default=None)
        now, monotonic = self._handler.now(), time.monotonic()
        self._paused = {ledger_id: until for ledger_id, until in self._paused.items() if until > monotonic}
        due = [ledger_id for ledger_id, due_at in first.items() if due_at <= now]
        self._turns = {ledger_id: self._turns[ledger_id] for ledger_id in due if ledger_id in self._turns}
        return deque(sorted(due, key=lambda ledger_id: self._turns.get(ledger_id, 0.0)))

    async def _batches(self, due: deque[int]) -> AsyncIterator[tuple[int, Sequence[Due]]]:
        """Yield a batch of each ledger in turn, for at most a second; retries come first."""
        until = time.monotonic() + LOOK_EVERY_S
        for ledger_id, codes in self._to_try_again().items():
            yield ledger_id, codes
        while due:
            ledger_id = due.popleft()
            if ledger_id in self._paused:
                continue
            self._turns[ledger_id] = time.monotonic()
            batch = await self._next_batch(ledger_id)
            if len(batch) == BATCH:
                due.append(ledger_id)
            codes = [code for code in batch if (ledger_id, code.code_id) not in self._waiting]
            if codes:
                yield ledger_id, codes
            if time.monotonic() >= until:
                return

    async def _next_batch(self, ledger_id: int) -> Sequence[Due]:
        """Return the next due codes of a ledger, and count them as passed."""
        passing = self._passes.get(ledger_id) or _Pass(expiring.BEGINNING)
        now = self._handler.now()
        batch = await self._read(lambda cursor: expiring.due(cursor, ledger_id, now, BATCH, after=passing.passed))
        if batch:
            passing.passed = batch[-1]
            self._passes[ledger_id] = passing
        return batch

    def _to_try_again(self) -> dict[int, list[Due]]:
        """Return codes whose retry is due, by ledger, at most a batch each."""
        now = time.monotonic()
        again: dict[int, list[Due]] = {}
        for (ledger_id, code_id), waiting in self._waiting.items():
            if waiting.again_at <= now and ledger_id not in self._paused:
                codes = again.setdefault(ledger_id, [])
                if len(codes) < BATCH:
                    codes.append(Due(waiting.due_at, code_id))
        return again

    async def _record(self, ledger_id: int, codes: Sequence[Due]) -> None:
        """Record what is due of these codes, and plan retries of what could not be recorded."""
        results: Mapping[UUID, Result]
        try:
            results = await self._recorder.record(ledger_id, [code.code_id for code in codes])
        except Exception as error:  # noqa: BLE001 - a fault of one ledger must not stop the others
            results = {}
            self._pause(ledger_id, error)
        passing = self._passes.get(ledger_id)
        for code in codes:
            result = results.get(code.code_id)
            if isinstance(result, int):
                if passing is not None:
                    passing.position = max(passing.position, result)
                self._done(ledger_id, code)
            elif result is None:
                self._wait(ledger_id, code)
            elif isinstance(result, Unavailable):
                self._pause(ledger_id, result)
                self._wait(ledger_id, code)
            else:
                self._wait(ledger_id, code, result)

    def _done(self, ledger_id: int, code: Due) -> None:
        self._paused_logged.discard(ledger_id)
        waited = self._waiting.pop((ledger_id, code.code_id), None)
        if waited is not None and waited.failures:
            log.info("The expiry of code %s in ledger %s is recorded after all", code.code_id, ledger_id)

    def _pause(self, ledger_id: int, error: Exception) -> None:
        """Skip a ledger for a moment, and log that once."""
        self._paused[ledger_id] = time.monotonic() + AWAY_S
        if ledger_id not in self._paused_logged:
            self._paused_logged.add(ledger_id)
            defect = None if isinstance(error, Unavailable) else error
            log.warning(
                "Ledger %s cannot be written now; other ledgers continue: %s", ledger_id, error, exc_info=defect
            )

    def _wait(self, ledger_id: int, code: Due, defect: Exception | None = None) -> None:
        """Plan the retry of a code: after a moment, or after a fault of its own, after twice as long each time."""
        key = (ledger_id, code.code_id)
        before = self._waiting.get(key)
        failures = before.failures if before is not None else 0
        if defect is not None:
            failures += 1
            self._failures += 1
        if before is None and len(self._waiting) >= MAX_WAITING:
            return  # The view still lists it, so it is taken again once everything else was passed.
        if defect is not None and failures == 1:
            log.error(
                "The expiry of code %s in ledger %s cannot be recorded; other codes continue",
                *reversed(key),
                exc_info=defect,
            )
        pause_s = min(FAILED_S * 2.0 ** min(max(failures, 1) - 1, 20), FAILED_LONGEST_S)
        self._waiting[key] = _Waiting(code.due_at, time.monotonic() + pause_s, failures)

    async def _forget_passes(self) -> None:
        """Start from the beginning in ledgers where the view has read all that was recorded."""
        if not self._passes:
            return
        reached = await self._read(lambda cursor: checkpoints.load_positions(cursor, expiring.NAME, expiring.VERSION))
        for ledger_id, passing in list(self._passes.items()):
            if reached.get(ledger_id, 0) >= passing.position:
                del self._passes[ledger_id]

    @property
    def figures(self) -> Figures:
        """What this clock has recorded since it began, what failed, and what is due next."""
        return Figures(
            expiries=self._recorder.expiries,
            reminders=self._recorder.reminders,
            failures=self._failures,
            failing=sum(waiting.failures > 0 for waiting in self._waiting.values()),
            next_due_at=self._next_due,
        )

    def _rest_s(self) -> float:
        """Return the seconds until something may be due, within the limits of a pause."""
        if self._next_due is None:
            return REST_S
        ahead = (self._next_due - self._handler.now()).total_seconds()
        return min(REST_S, max(REST_LEAST_S, ahead)) if ahead > 0 else REST_S

    async def _read(self, query: Callable[[AsyncCursor[Any]], Awaitable[T]]) -> T:
        async def run(connection: LedgerConnection) -> T:
            return await query(connection.cursor(binary=True))

        return await self._database.read(None, run)


async def _leads(lease: LedgerConnection) -> bool:
    cursor = await lease.execute(_LEAD, (AdvisoryLock.EXPIRY_CLOCK,))
    row = await cursor.fetchone()
    return bool(row and row[0])
