"""The clock: records that codes expired, and before that, that their ends approach.

Commands compare the moment with the window themselves, so nothing waits for this; it makes the log complete, also for
what fell due while nobody ran. A view says what is due; what is then recorded is decided from the log, so that a view
that lags and two clocks at once record everything once. One clock leads at a time, to spare the others the work.

A hundred thousand codes may fall due in one second. They are taken in small batches, from each ledger in turn: a
batch holds its ledger's lock for milliseconds, and commands get theirs in between.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import psycopg

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

# Codes read and recorded together, and how many of those at a time: one batch is decided while another is committed.
BATCH: Final = 128
IN_FLIGHT: Final = 2 * BATCH
# However much is due, what falls due in another ledger meanwhile is noticed after this time.
LOOK_EVERY_S: Final = 1.0
# With nothing due, how long until it looks again: a code may be recorded whose end is nearer than any known.
REST_S: Final = 1.0
REST_LEAST_S: Final = 0.01
# One that does not lead tries to as often.
LEAD_EVERY_S: Final = 1.0
# A ledger or a database that cannot be written to now is left alone for so long.
AWAY_S: Final = 1.0
# A code that cannot be recorded is tried again after this time, then after twice as long, up to the longest.
FAILED_S: Final = 1.0
FAILED_LONGEST_S: Final = 600.0
# Codes that wait to be tried again.
MAX_WAITING: Final = 10_000

_LEAD: Final = "SELECT pg_try_advisory_lock(%s)"
# A view that is being created or filled anew lacks its table or its newest column for a while.
_NOT_YET: Final = (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn)

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Pass:
    """How far a ledger's due codes were gone through, and the position from which on the view knows of it all."""

    passed: Due
    position: int = 0


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A code of which nothing could be recorded, until it is tried again; `failures` are those that were its own."""

    due_at: datetime
    again_at: float
    failures: int


class ExpiryClock:
    """Records what is due, again and again."""

    def __init__(self, opened: Runtime) -> None:
        """Take the parts of a worker: ledgers to record in, and sessions that see every ledger's view."""
        self._handler = opened.handler
        self._database = opened.database
        self._recorder = ExpiryRecorder(opened)
        self._passes: dict[int, _Pass] = {}
        self._waiting: dict[tuple[int, UUID], _Waiting] = {}
        # When each ledger in which something is due had its last turn.
        self._turns: dict[int, float] = {}
        # Ledgers in which nothing can be recorded now, until they are tried again; and those of which that was said.
        self._resting: dict[int, float] = {}
        self._resting_said: set[int] = set()
        self._next_due: datetime | None = None
        self._failures = 0
        self._report = Report(opened.database)
        self._away = False

    async def run(self) -> None:
        """Lead, and record what is due, until cancelled; a database that is away is waited for."""
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
        """Lead for as long as the session lasts that holds the lease."""
        while not await _leads(lease):  # noqa: ASYNC110 - a lock that becomes free tells nobody
            await asyncio.sleep(LEAD_EVERY_S)
        # Whoever led meanwhile may have left something behind.
        self._passes.clear()
        while True:
            recorded = await self.record_due()
            self._away = False
            await self._report.write(self.figures)
            if not recorded:
                await asyncio.sleep(self._rest_s())
            await lease.execute("SELECT 1")

    async def record_due(self) -> int:
        """Record what is due, for a second at most; return of how many codes there was something to record.

        Raises:
            Unavailable: the database is away.

        """
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
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        return self._recorder.recorded - before

    async def _look(self) -> deque[int]:
        """Find out when something is due next; return the ledgers in which it is due now, in the order of their turns.

        Whose turn was the longest ago comes first, and of those that had none the one in which it is due the longest.
        """
        passed = {ledger_id: passing.passed for ledger_id, passing in self._passes.items()}
        first = await self._read(lambda cursor: expiring.first_due(cursor, passed))
        waiting = (waiting.due_at for waiting in self._waiting.values())
        self._next_due = min([*first.values(), *waiting], default=None)
        now, monotonic = self._handler.now(), time.monotonic()
        self._resting = {ledger_id: until for ledger_id, until in self._resting.items() if until > monotonic}
        due = [ledger_id for ledger_id, due_at in first.items() if due_at <= now]
        self._turns = {ledger_id: self._turns[ledger_id] for ledger_id in due if ledger_id in self._turns}
        return deque(sorted(due, key=lambda ledger_id: self._turns.get(ledger_id, 0.0)))

    async def _batches(self, due: deque[int]) -> AsyncIterator[tuple[int, Sequence[Due]]]:
        """Yield a batch of each ledger in turn, for a second at most; first of all what is to be tried again."""
        until = time.monotonic() + LOOK_EVERY_S
        for ledger_id, codes in self._to_try_again().items():
            yield ledger_id, codes
        while due:
            ledger_id = due.popleft()
            if ledger_id in self._resting:
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
        """Return what is due in a ledger beyond what was passed, and pass it."""
        passing = self._passes.get(ledger_id) or _Pass(expiring.BEGINNING)
        now = self._handler.now()
        batch = await self._read(lambda cursor: expiring.due(cursor, ledger_id, now, BATCH, after=passing.passed))
        if batch:
            passing.passed = batch[-1]
            self._passes[ledger_id] = passing
        return batch

    def _to_try_again(self) -> dict[int, list[Due]]:
        """Return by ledger a batch at most of what could not be recorded and has waited long enough."""
        now = time.monotonic()
        again: dict[int, list[Due]] = {}
        for (ledger_id, code_id), waiting in self._waiting.items():
            if waiting.again_at <= now and ledger_id not in self._resting:
                codes = again.setdefault(ledger_id, [])
                if len(codes) < BATCH:
                    codes.append(Due(waiting.due_at, code_id))
        return again

    async def _record(self, ledger_id: int, codes: Sequence[Due]) -> None:
        """Record what is due of these codes; what could not be recorded is tried again later."""
        results: Mapping[UUID, Result]
        try:
            results = await self._recorder.record(ledger_id, [code.code_id for code in codes])
        except Exception as error:  # noqa: BLE001 - what is wrong with one ledger must not keep the others
            results = {}
            self._rest(ledger_id, error)
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
                self._rest(ledger_id, result)
                self._wait(ledger_id, code)
            else:
                self._wait(ledger_id, code, result)

    def _done(self, ledger_id: int, code: Due) -> None:
        self._resting_said.discard(ledger_id)
        waited = self._waiting.pop((ledger_id, code.code_id), None)
        if waited is not None and waited.failures:
            log.info("The expiry of code %s in ledger %s is recorded after all", code.code_id, ledger_id)

    def _rest(self, ledger_id: int, error: Exception) -> None:
        """Leave a ledger alone for a moment, and say so once."""
        self._resting[ledger_id] = time.monotonic() + AWAY_S
        if ledger_id not in self._resting_said:
            self._resting_said.add(ledger_id)
            defect = None if isinstance(error, Unavailable) else error
            log.warning(
                "Ledger %s cannot be written now; other ledgers continue: %s", ledger_id, error, exc_info=defect
            )

    def _wait(self, ledger_id: int, code: Due, defect: Exception | None = None) -> None:
        """Leave a code for later: for a moment, or where it has a defect, for twice as long each time."""
        key = (ledger_id, code.code_id)
        before = self._waiting.get(key)
        failures = before.failures if before is not None else 0
        if defect is not None:
            failures += 1
            self._failures += 1
        if before is None and len(self._waiting) >= MAX_WAITING:
            return  # The view still says that it is due: it is met again once everything else was passed.
        if defect is not None and failures == 1:
            log.error(
                "The expiry of code %s in ledger %s cannot be recorded; other codes continue",
                *reversed(key),
                exc_info=defect,
            )
        pause_s = min(FAILED_S * 2.0 ** min(max(failures, 1) - 1, 20), FAILED_LONGEST_S)
        self._waiting[key] = _Waiting(code.due_at, time.monotonic() + pause_s, failures)

    async def _forget_passes(self) -> None:
        """Begin anew in ledgers where the view knows by now of all that was recorded."""
        if not self._passes:
            return
        reached = await self._read(lambda cursor: checkpoints.load_positions(cursor, expiring.NAME, expiring.VERSION))
        for ledger_id, passing in list(self._passes.items()):
            if reached.get(ledger_id, 0) >= passing.position:
                del self._passes[ledger_id]

    @property
    def figures(self) -> Figures:
        """What this clock has done since it began, and what it has before it."""
        return Figures(
            expiries=self._recorder.expiries,
            reminders=self._recorder.reminders,
            failures=self._failures,
            failing=sum(waiting.failures > 0 for waiting in self._waiting.values()),
            next_due_at=self._next_due,
        )

    def _rest_s(self) -> float:
        """Return how long nothing will be due, as far as is known."""
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
