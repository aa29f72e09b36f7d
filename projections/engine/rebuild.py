"""Fill a view anew beside itself, while the old rows are read on, then switch to the new ones in one transaction."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from projections.engine import checkpoints
from projections.engine.projector import PAGE_EVENTS_MAX, Connect, Log, PoisonEvent, Projector
from projections.engine.view import NEXT, View

# How long the switch waits for readers of the old tables: those that come meanwhile wait behind it. Then it lets
# them pass, and tries again.
SWITCH_WAIT_MS: Final = 500
SWITCH_PAUSE_S: Final = 0.5
SWITCH_ATTEMPTS_MAX: Final = 120


class Busy(Exception):
    """Somebody is rebuilding this view already."""


@dataclass(frozen=True, slots=True)
class RebuildProgress:
    """How far a rebuild is.

    Attributes:
        view: the view's name.
        phase: what it does: "filling" the tables, "indexing" them, "switching" to them; "done".
        events: taken in by this run, in `seconds`.
        position: taken in in all, by those before it too that were killed: the sum of the positions in all ledgers.

    """

    view: str
    phase: str
    events: int
    seconds: float
    position: int


async def rebuild(
    view: View[Any],
    log: Log,
    connect: Connect,
    progressed: Callable[[RebuildProgress], None] | None = None,
    *,
    resume: bool = True,
    page_events: int = PAGE_EVENTS_MAX,
) -> RebuildProgress:
    """Fill a view anew from the log, then switch.

    A rebuild that was killed goes on where it stood, unless the view's version has changed since or `resume` is
    false. The old rows are read and kept up to date meanwhile; the new ones are never behind them at the switch.

    Args:
        view: the view.
        log: where its events come from.
        connect: opens a session of the worker's, in autocommit.
        progressed: called after each page, and as each phase begins.
        resume: go on with what a killed rebuild left.
        page_events: events folded at a time.

    Raises:
        Busy: somebody is rebuilding it already.
        Poisoned: the view cannot take in an event; the old rows stay as they are.
        psycopg.OperationalError: the database is away, or the old tables were in use for a minute on end.

    """
    run = _Run(view.name, progressed or (lambda _: None))
    async with await connect() as connection:
        building = Projector(view, connection, beside=True)
        await building.prepare()
        if not await checkpoints.lead(connection.cursor(), building.name):
            raise Busy(f"View {view.name} is being rebuilt by another process.")
        await _begin(building, resume=resume)
        log.forget()
        try:
            run.read(building, 0)
            await building.apply_all(log, page_events, lambda events: run.read(building, events))
            run.enter("indexing")
            async with connection.transaction():
                cur = connection.cursor()
                for table in view.tables:
                    await table.create_indexes(cur, NEXT)
            for table in view.tables:
                await table.analyze(connection.cursor(), NEXT)
            run.enter("switching")
            await _switch(building, log, page_events, run)
        except PoisonEvent as poisoned:
            await checkpoints.stop(connection.cursor(), building.name, poisoned.at, poisoned.reason)
            raise
    return run.enter("done")


class _Run:
    """One run of a rebuild, as it tells how far it is."""

    def __init__(self, view: str, progressed: Callable[[RebuildProgress], None]) -> None:
        self._view = view
        self._progressed = progressed
        self._begun = time.monotonic()
        self._phase = "filling"
        self._events = self._position = 0

    def read(self, building: Projector, events: int) -> None:
        self._events += events
        self._position = sum(building.positions.values())
        self._tell()

    def enter(self, phase: str) -> RebuildProgress:
        self._phase = phase
        return self._tell()

    def _tell(self) -> RebuildProgress:
        seconds = time.monotonic() - self._begun
        told = RebuildProgress(self._view, self._phase, self._events, seconds, self._position)
        self._progressed(told)
        return told


async def _begin(building: Projector, *, resume: bool) -> None:
    connection, view = building.connection, building.view
    async with connection.transaction():
        cur = connection.cursor()
        left = await checkpoints.status(cur, building.name)
        if left is not None and not (resume and left.version == view.version):
            for table in view.tables:
                await table.drop(cur, NEXT)
            await checkpoints.forget(cur, [building.name])
    await building.create(indexes=False)
    await building.find()


async def _switch(building: Projector, log: Log, page_events: int, run: _Run) -> None:
    for attempt in range(SWITCH_ATTEMPTS_MAX):
        await building.apply_all(log, page_events, lambda events: run.read(building, events))
        try:
            await _take_place(building, log, page_events, run)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            if attempt == SWITCH_ATTEMPTS_MAX - 1:
                raise
            await asyncio.sleep(SWITCH_PAUSE_S)
            await building.find()
        else:
            return


async def _take_place(building: Projector, log: Log, page_events: int, run: _Run) -> None:
    connection, view = building.connection, building.view
    async with connection.transaction():
        cur = connection.cursor(binary=True)
        await cur.execute(f"SET LOCAL lock_timeout = {SWITCH_WAIT_MS}")
        standing = await checkpoints.status(cur, view.name)
        if standing is not None:
            # From here on the old rows stand still. What they are ahead by is a moment's worth of events.
            old = await checkpoints.positions(cur, view.name, standing.version, lock=True)
            while any(building.positions.get(ledger_id, 0) < position for ledger_id, position in old.items()):
                page = await building.read(log, building.positions, page_events)
                await building.write(cur, page, await view.fold(cur, page.events, NEXT))
                building.positions = checkpoints.after(building.positions, page)
                run.read(building, page.length)
        for table in view.tables:
            await table.take_place(cur, NEXT)
        await checkpoints.take_place(cur, view.name, building.name)
