"""The rebuild of a view in shadow tables, which replace the view's own in one transaction.

Meanwhile the old rows are read and kept up to date. An interrupted rebuild resumes. Several processes may fill the
shadow tables at the same time, each a part of them, up to where the log ended at the start.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import psycopg

from projections.engine import checkpoints, parts
from projections.engine.fill import FILL_EVENTS_MAX, fill
from projections.engine.projector import (
    PAGE_EVENTS_MAX,
    Connect,
    EventLog,
    PoisonEvent,
    Projector,
    prepare,
)
from projections.engine.view import SHADOW_SUFFIX, View

if TYPE_CHECKING:
    from psycopg import AsyncConnection

# How long the swap waits for readers of the old tables. New readers wait behind it, so it then lets them pass and tries
# again after a pause.
SWAP_WAIT_MS: Final = 500
SWAP_PAUSE_S: Final = 0.5
SWAP_ATTEMPTS_MAX: Final = 120


class RebuildInProgress(Exception):
    """The view is being rebuilt already."""


class PartFailed(Exception):
    """A process that fills a part of a view has failed."""


class PartProcesses(Protocol):
    """Processes that fill parts of shadow tables.

    Attributes:
        count: how many there are.

    """

    count: int

    async def heads(self) -> Mapping[int, int]:
        """Return the last position of each ledger that has events."""

    async def fill(self, view: str, count: int, upto: Mapping[int, int], on_page: Callable[[int], None]) -> None:
        """Fill the parts of a view, so many, up to these positions.

        `on_page` is called after each page of a part with the number of positions that it covers.

        Raises:
            PoisonEvent: the view cannot apply an event.
            PartFailed: a process failed.

        """


@dataclass(frozen=True, slots=True)
class RebuildProgress:
    """The progress of a rebuild.

    Attributes:
        view: the view's name.
        phase: "filling" the shadow tables, "indexing" them, "switching" to them, or "done".
        events: number of events that this run has applied, in `seconds`.
        position: number of events applied in all, including runs that were interrupted: the sum over all ledgers.

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
    fill_events: int = FILL_EVENTS_MAX,
    processes: PartProcesses | None = None,
    loads: AsyncConnection[Any] | None = None,
) -> RebuildProgress:
    """Rebuild a view from the log in shadow tables, then swap them in.

    An interrupted rebuild resumes, unless the view's version has changed since or `resume` is false. At the swap, the
    new rows are never behind the old ones.

    Args:
        view: the view.
        log: where its events come from.
        connect: opens a worker's session in autocommit.
        on_progress: called after each page, and as each phase begins.
        resume: whether to resume an interrupted rebuild.
        page_events: events in a page.
        fill_events: events whose rows are written in one transaction while the shadow tables are filled.
        processes: fill parts of the shadow tables, if there are several. A rebuild that was interrupted while they did
            resumes with as many parts as before, or without `processes` begins again.
        loads: a prepared session in autocommit, from which `fill` loads rows, and which several rebuilds may share;
            None opens one.

    Raises:
        RebuildInProgress: the view is being rebuilt already.
        PoisonEvent: the view cannot apply an event; the old rows stay as they are.
        PartFailed: a process that fills a part failed; the old rows stay as they are.
        psycopg.OperationalError: the database cannot be reached, or the old tables were in use for a minute on end.

    """
    progress = _ProgressReporter(view.name, on_progress or (lambda _: None))
    async with AsyncExitStack() as stack:
        connection = await stack.enter_async_context(await connect())
        # Only what is read from here on is sure to be of the server that this session has found.
        log.forget()
        projector = Projector(view, connection, shadow=True)
        await projector.prepare()
        if not await checkpoints.try_to_lead(connection.cursor(), projector.name):
            raise RebuildInProgress(f"View {view.name} is already being rebuilt by another process.")
        await _start_or_resume(projector, resume=resume, in_parts=processes is not None)
        try:
            progress.add(projector, 0)
            if processes is not None:
                await _fill_parts(projector, processes, progress)
            if loads is None:
                loads = await stack.enter_async_context(await connect())
                await prepare(loads)
            await fill(
                projector,
                log,
                loads,
                page_events,
                lambda events: progress.add(projector, events),
                fill_events=fill_events,
            )
            progress.enter("indexing")
            async with connection.transaction():
                cur = connection.cursor()
                for table in view.tables:
                    await table.create_indexes(cur, SHADOW_SUFFIX)
            for table in view.tables:
                await table.analyze(connection.cursor(), SHADOW_SUFFIX)
            progress.enter("switching")
            await _swap_in_when_free(projector, log, page_events, progress)
        except PoisonEvent as poison:
            await checkpoints.record_failure(connection.cursor(), projector.name, poison.at, poison.reason)
            raise
    return progress.enter("done")


class _ProgressReporter:
    """The progress of one run of a rebuild, reported as it changes."""

    def __init__(self, view: str, on_progress: Callable[[RebuildProgress], None]) -> None:
        self._view = view
        self._on_progress = on_progress
        self._started_at = time.monotonic()
        self._phase = "filling"
        self._events = self._position = 0

    def add(self, projector: Projector, events: int) -> None:
        self._events += events
        self._position = sum(projector.positions.values())
        self._report()

    def resume(self, events: int) -> None:
        self._position += events
        self._report()

    def move(self, events: int) -> None:
        self._events += events
        self._position += events
        self._report()

    def enter(self, phase: str) -> RebuildProgress:
        self._phase = phase
        return self._report()

    def _report(self) -> RebuildProgress:
        seconds = time.monotonic() - self._started_at
        progress = RebuildProgress(self._view, self._phase, self._events, seconds, self._position)
        self._on_progress(progress)
        return progress


async def _start_or_resume(projector: Projector, *, resume: bool, in_parts: bool) -> None:
    connection, view = projector.connection, projector.view
    async with connection.transaction():
        cur = connection.cursor()
        interrupted = await checkpoints.load_state(cur, projector.name)
        resumes = resume and interrupted is not None and interrupted.version == view.version
        if resumes and not in_parts:
            resumes = not await parts.load(cur, view.name, view.version)
        if interrupted is not None and not resumes:
            for table in view.tables:
                await table.drop(cur, SHADOW_SUFFIX)
            await checkpoints.delete(cur, [projector.name])
            await parts.drop(cur, view.name)
    await projector.create(indexes=False)
    await projector.find()


async def _fill_parts(projector: Projector, processes: PartProcesses, progress: _ProgressReporter) -> None:
    """Have processes fill the parts that have begun, or new ones, up to where the log ends now."""
    connection, view = projector.connection, projector.view
    upto = await processes.heads()
    async with connection.transaction():
        cur = connection.cursor()
        begun = await parts.load(cur, view.name, view.version)
        count = len(begun) or processes.count
        if count == 1 or not upto:
            return
        if not begun:
            await parts.begin(cur, view.name, view.version, count, upto)
            begun = await parts.load(cur, view.name, view.version)
    # Ledgers that are newer than the parts are read after them.
    (known, *_) = begun.values()
    # By all parts together, in earlier runs and in this one, since they began.
    passed = sum(sum(positions.values()) for positions in begun.values())
    passed -= count * sum(projector.positions.get(ledger_id, 0) for ledger_id in known)
    progress.resume(passed // count)

    def on_page(positions: int) -> None:
        nonlocal passed
        before, passed = passed, passed + positions
        progress.move(passed // count - before // count)

    await processes.fill(view.name, count, {ledger_id: upto[ledger_id] for ledger_id in known}, on_page)
    async with connection.transaction():
        await parts.join(connection.cursor(), view.name, view.version)
    await projector.find()
    if projector.stopped:
        projector.stopped = not await checkpoints.record_recovery(connection.cursor(), projector.name, "building")


async def _swap_in_when_free(
    projector: Projector, log: EventLog, page_events: int, progress: _ProgressReporter
) -> None:
    for attempt in range(SWAP_ATTEMPTS_MAX):
        await projector.apply_all(log, page_events, lambda events: progress.add(projector, events))
        try:
            await _swap_in(projector, log, page_events, progress)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            if attempt == SWAP_ATTEMPTS_MAX - 1:
                raise
            await asyncio.sleep(SWAP_PAUSE_S)
            await projector.find()
        else:
            return


async def _swap_in(projector: Projector, log: EventLog, page_events: int, progress: _ProgressReporter) -> None:
    connection, view = projector.connection, projector.view
    async with connection.transaction():
        cur = connection.cursor(binary=True)
        await cur.execute(f"SET LOCAL lock_timeout = {SWAP_WAIT_MS}")
        state = await checkpoints.load_state(cur, view.name)
        if state is not None:
            # From here on the old rows do not change. They are ahead by a moment's worth of events at most.
            old = await checkpoints.load_positions(cur, view.name, state.version, lock=True)
            while any(projector.positions.get(ledger_id, 0) < position for ledger_id, position in old.items()):
                page = await projector.read(log, projector.positions, page_events)
                changes = await view.fold(cur, page.events, SHADOW_SUFFIX)
                await projector.write(cur, page, view.statements(changes, SHADOW_SUFFIX))
                projector.positions = checkpoints.positions_after(projector.positions, page)
                progress.add(projector, page.length)
        for table in view.tables:
            await table.swap_in(cur, SHADOW_SUFFIX)
        await checkpoints.swap_in(cur, view.name, projector.name)
