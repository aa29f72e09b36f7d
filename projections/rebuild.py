"""Fill a view anew beside itself, while the old rows are read on, then switch to the new ones in one transaction."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from projections import progress
from projections.folding import PAGE_EVENTS_MAX, Connect, Folding, Log
from projections.view import NEXT, View

# How long the switch waits for readers of the old tables: those that come meanwhile wait behind it. Then it lets
# them pass, and tries again.
SWITCH_WAIT_MS: Final = 500
SWITCH_PAUSE_S: Final = 0.5
SWITCH_ATTEMPTS_MAX: Final = 120


class Busy(Exception):
    """Somebody is rebuilding this view already."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a rebuild is: events taken in by this run, and the seconds that took."""

    view: str
    events: int
    seconds: float


async def rebuild(
    view: View[Any],
    log: Log,
    connect: Connect,
    progressed: Callable[[Progress], None] | None = None,
    *,
    resume: bool = True,
    page_events: int = PAGE_EVENTS_MAX,
) -> Progress:
    """Fill a view anew from the log, then switch.

    A rebuild that was killed goes on where it stood, unless the view's version has changed since or `resume` is
    false. The old rows are read and kept up to date meanwhile; the new ones are never behind them at the switch.

    Args:
        view: the view.
        log: where its events come from.
        connect: opens a session of the worker's, in autocommit.
        progressed: called after each page.
        resume: go on with what a killed rebuild left.
        page_events: events folded at a time.

    Raises:
        Busy: somebody is rebuilding it already.
        Poisoned: the view cannot take in an event; the old rows stay as they are.
        psycopg.OperationalError: the database is away, or the old tables were in use for a minute on end.

    """
    begun = time.monotonic()
    events = 0

    def folded(count: int) -> None:
        nonlocal events
        events += count
        if progressed is not None:
            progressed(Progress(view.name, events, time.monotonic() - begun))

    async with await connect() as connection:
        building = Folding(view, connection, beside=True)
        await building.prepare()
        if not await progress.lead(connection.cursor(), building.name):
            raise Busy(f"View {view.name} is being rebuilt by another process.")
        await _begin(building, resume=resume)
        await building.take_in_all(log, page_events, folded)
        async with connection.transaction():
            cur = connection.cursor()
            for table in view.tables:
                await table.create_indexes(cur, NEXT)
        for table in view.tables:
            await table.analyze(connection.cursor(), NEXT)
        await _switch(building, log, page_events, folded)
    return Progress(view.name, events, time.monotonic() - begun)


async def _begin(building: Folding, *, resume: bool) -> None:
    connection, view = building.connection, building.view
    async with connection.transaction():
        cur = connection.cursor()
        left = await progress.status(cur, building.name)
        if left is not None and not (resume and left.version == view.version):
            for table in view.tables:
                await table.drop(cur, NEXT)
            await progress.forget(cur, [building.name])
    await building.create(indexes=False)
    await building.find()


async def _switch(building: Folding, log: Log, page_events: int, folded: Callable[[int], None]) -> None:
    for attempt in range(SWITCH_ATTEMPTS_MAX):
        await building.take_in_all(log, page_events, folded)
        try:
            await _take_place(building, log, page_events, folded)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            if attempt == SWITCH_ATTEMPTS_MAX - 1:
                raise
            await asyncio.sleep(SWITCH_PAUSE_S)
            await building.find()
        else:
            return


async def _take_place(building: Folding, log: Log, page_events: int, folded: Callable[[int], None]) -> None:
    connection, view = building.connection, building.view
    async with connection.transaction():
        cur = connection.cursor(binary=True)
        await cur.execute(f"SET LOCAL lock_timeout = {SWITCH_WAIT_MS}")
        standing = await progress.status(cur, view.name)
        if standing is not None:
            # From here on the old rows stand still. What they are ahead by is a moment's worth of events.
            old = await progress.positions(cur, view.name, standing.version, lock=True)
            while any(building.positions.get(ledger_id, 0) < position for ledger_id, position in old.items()):
                page = await log.after(building.positions, page_events)
                await building.write(cur, page)
                building.positions = progress.after(building.positions, page)
                folded(len(page))
        for table in view.tables:
            await table.take_place(cur, NEXT)
        await progress.take_place(cur, view.name, building.name)
