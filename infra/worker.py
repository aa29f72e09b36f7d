"""What runs beside the API: the views, the expiry clock, the purge of idempotency keys that have outlived their use."""

from __future__ import annotations

import asyncio
import logging
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import psycopg

from infra.database import session
from infra.errors import Unavailable
from infra.expiry import ExpiryClock
from infra.feed import Feed
from infra.migrate import require_migrated
from infra.runtime import WORKER, runtime, spare_the_collector
from infra.wake import Listener
from projections import VIEWS
from projections.runner import Progress, Runner, create_missing
from projections.runner import rebuild as rebuild_view

if TYPE_CHECKING:
    from collections.abc import Callable

    from infra.database import Database
    from infra.vault import MasterKey

PARTS: Final = ("views", "expiry")
# An idempotency key is good for at least a day; one more covers a client's own retry schedule.
KEEP_IDEMPOTENCY_HOURS: Final = 48
PURGE_EVERY_S: Final = 600.0
PURGE_ROWS: Final = 10_000
PURGE_PAUSE_S: Final = 0.5
KEEP_REFUSAL_COUNTS_DAYS: Final = 400
# A rebuild says how far it is once in so many events.
SAY_EVERY_EVENTS: Final = 50_000

log = logging.getLogger(__name__)


async def run(
    conninfo: str, master_key: MasterKey, parts: frozenset[str], *, started: Callable[[], None] = lambda: None
) -> None:
    """Run until SIGINT or SIGTERM.

    Args:
        conninfo: the database, as a login that is or may become the worker's role.
        master_key: the key that the database's keys are wrapped with.
        parts: which of `PARTS` to run.
        started: called once everything runs.

    Raises:
        MigrationError: the database lacks a migration.

    """
    require_migrated(conninfo)
    spare_the_collector()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with runtime(conninfo, WORKER, master_key) as opened:
        clock = ExpiryClock(opened.ledgers, opened.database)
        wakes = [asyncio.Event() for _ in VIEWS] if "views" in parts else []
        feed = Feed(opened.database)
        runners = [
            Runner(view, feed, lambda: connect(conninfo), wake) for view, wake in zip(VIEWS, wakes, strict=False)
        ]

        def heard() -> None:
            for wake in (*wakes, clock.woken):
                wake.set()

        listener = Listener(conninfo, WORKER, heard)
        listener.start()
        tasks = [loop.create_task(runner.run()) for runner in runners]
        tasks.append(loop.create_task(_purge(opened.database)))
        if "expiry" in parts:
            tasks.append(loop.create_task(clock.run()))
        started()
        stopping = loop.create_task(stop.wait())
        # None of them ends by itself: one that does is a defect, and the process with it, to be begun again.
        await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
        await listener.stop()


async def connect(conninfo: str) -> psycopg.AsyncConnection[Any]:
    """Open a session of the worker's own; building an index on a long log takes as long as it takes."""
    return await psycopg.AsyncConnection.connect(**session(conninfo, WORKER, statement_timeout_ms=0))


async def create_views(conninfo: str) -> None:
    """Create the views' tables, so that a read finds them before any worker ran."""
    await create_missing(lambda: connect(conninfo), VIEWS)


async def rebuild(conninfo: str, master_key: MasterKey, name: str, say: Callable[[str], None]) -> None:
    """Fill a view anew beside itself, then switch, saying how far it is.

    Raises:
        LookupError: there is no such view.

    """
    view = next((view for view in VIEWS if view.name == name), None)
    if view is None:
        message = f"There is no view {name}; the views are {', '.join(view.name for view in VIEWS)}."
        raise LookupError(message)
    said = 0

    def progressed(progress: Progress) -> None:
        nonlocal said
        if progress.events - said >= SAY_EVERY_EVENTS:
            said = progress.events
            say(_rate(progress))

    async with runtime(conninfo, WORKER, master_key) as opened:
        done = await rebuild_view(view, Feed(opened.database), lambda: connect(conninfo), progressed)
    say(f"{_rate(done)}; switched")


def _rate(progress: Progress) -> str:
    rate = progress.events / progress.seconds if progress.seconds else 0
    return f"{progress.view}: {progress.events} events in {progress.seconds:.1f} s ({rate:,.0f} a second)"


async def _purge(database: Database) -> None:
    """Forget idempotency keys that have outlived their use, a bounded number at a time."""
    while True:
        purged = 0
        with suppress(Unavailable):
            async with database.connection() as connection:
                cursor = await connection.execute(
                    "DELETE FROM commands WHERE (ledger_id, key) IN ("
                    " SELECT ledger_id, key FROM commands"
                    " WHERE recorded_at < now() - make_interval(hours => %s) LIMIT %s)",
                    (KEEP_IDEMPOTENCY_HOURS, PURGE_ROWS),
                )
                purged = cursor.rowcount
                await connection.execute(
                    "DELETE FROM refused_attempts WHERE hour < now() - make_interval(days => %s)",
                    (KEEP_REFUSAL_COUNTS_DAYS,),
                )
        # As long as there is more, a short pause is all: what a busy day leaves behind must not outgrow the purge.
        await asyncio.sleep(PURGE_PAUSE_S if purged == PURGE_ROWS else PURGE_EVERY_S)
