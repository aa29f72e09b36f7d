"""Fill a view anew beside itself, while the old rows are read on, then switch to the new ones in one transaction."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from projections.engine import checkpoints
from projections.engine.projector import PAGE_EVENTS_MAX, Connect, EventLog, PoisonEvent, Projector
from projections.engine.view import SHADOW_SUFFIX, View

# How long the switch waits for readers of the old tables: those that come meanwhile wait behind it. Then it lets
# them pass, and tries again.
SWITCH_WAIT_MS: Final = 500
SWITCH_PAUSE_S: Final = 0.5
SWITCH_ATTEMPTS_MAX: Final = 120


class RebuildInProgress(Exception):
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
    log: EventLog,
    connect: Connect,
    on_progress: Callable[[RebuildProgress], None] | None = None,
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
        on_progress: called after each page, and as each phase begins.
        resume: go on with what a killed rebuild left.
        page_events: events folded at a time.

    Raises:
        Busy: somebody is rebuilding it already.
        Poisoned: the view cannot take in an event; the old rows stay as they are.
        psycopg.OperationalError: the database is away, or the old tables were in use for a minute on end.

    """
    run = _Run(view.name, on_progress or (lambda _: None))
    async with await connect() as connection:
        shadow_projector = Projector(view, connection, shadow=True)
        await shadow_projector.prepare()
        if not await checkpoints.try_to_lead(connection.cursor(), shadow_projector.name):
            raise RebuildInProgress(f"View {view.name} is already being rebuilt by another process.")
        await _start_or_resume(shadow_projector, resume=resume)
        log.forget()
        try:
            run.read(shadow_projector, 0)
            await shadow_projector.apply_all(log, page_events, lambda events: run.read(shadow_projector, events))
            run.enter("indexing")
            async with connection.transaction():
                cur = connection.cursor()
                for table in view.tables:
                    await table.create_indexes(cur, SHADOW_SUFFIX)
            for table in view.tables:
                await table.analyze(connection.cursor(), SHADOW_SUFFIX)
            run.enter("switching")
            await _swap_in_when_free(shadow_projector, log, page_events, run)
        except PoisonEvent as poisoned:
            await checkpoints.record_failure(connection.cursor(), shadow_projector.name, poisoned.at, poisoned.reason)
            raise
    return run.enter("done")


class _Run:
    """One run of a rebuild, as it tells how far it is."""

    def __init__(self, view: str, on_progress: Callable[[RebuildProgress], None]) -> None:
        self._view = view
        self._on_progress = on_progress
        self._begun = time.monotonic()
        self._phase = "filling"
        self._events = self._position = 0

    def read(self, shadow_projector: Projector, events: int) -> None:
        self._events += events
        self._position = sum(shadow_projector.positions.values())
        self._tell()

    def enter(self, phase: str) -> RebuildProgress:
        self._phase = phase
        return self._tell()

    def _tell(self) -> RebuildProgress:
        seconds = time.monotonic() - self._begun
        told = RebuildProgress(self._view, self._phase, self._events, seconds, self._position)
        self._on_progress(told)
        return told


async def _start_or_resume(shadow_projector: Projector, *, resume: bool) -> None:
    connection, view = shadow_projector.connection, shadow_projector.view
    async with connection.transaction():
        cur = connection.cursor()
        left = await checkpoints.load_state(cur, shadow_projector.name)
        if left is not None and not (resume and left.version == view.version):
            for table in view.tables:
                await table.drop(cur, SHADOW_SUFFIX)
            await checkpoints.delete(cur, [shadow_projector.name])
    await shadow_projector.create(indexes=False)
    await shadow_projector.find()


async def _swap_in_when_free(shadow_projector: Projector, log: EventLog, page_events: int, run: _Run) -> None:
    for attempt in range(SWITCH_ATTEMPTS_MAX):
        await shadow_projector.apply_all(log, page_events, lambda events: run.read(shadow_projector, events))
        try:
            await _swap_in(shadow_projector, log, page_events, run)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            if attempt == SWITCH_ATTEMPTS_MAX - 1:
                raise
            await asyncio.sleep(SWITCH_PAUSE_S)
            await shadow_projector.find()
        else:
            return


async def _swap_in(shadow_projector: Projector, log: EventLog, page_events: int, run: _Run) -> None:
    connection, view = shadow_projector.connection, shadow_projector.view
    async with connection.transaction():
        cur = connection.cursor(binary=True)
        await cur.execute(f"SET LOCAL lock_timeout = {SWITCH_WAIT_MS}")
        state = await checkpoints.load_state(cur, view.name)
        if state is not None:
            # From here on the old rows stand still. What they are ahead by is a moment's worth of events.
            old = await checkpoints.load_positions(cur, view.name, state.version, lock=True)
            while any(shadow_projector.positions.get(ledger_id, 0) < position for ledger_id, position in old.items()):
                page = await shadow_projector.read(log, shadow_projector.positions, page_events)
                await shadow_projector.write(cur, page, await view.fold(cur, page.events, SHADOW_SUFFIX))
                shadow_projector.positions = checkpoints.positions_after(shadow_projector.positions, page)
                run.read(shadow_projector, page.length)
        for table in view.tables:
            await table.swap_in(cur, SHADOW_SUFFIX)
        await checkpoints.swap_in(cur, view.name, shadow_projector.name)
