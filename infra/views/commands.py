"""What an operator does to views: see how they are, fill them anew, skip what stopped one."""

from __future__ import annotations

import asyncio
import getpass
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import psycopg

from infra.eventstore.all_ledgers_reader import AllLedgersReader
from infra.postgres.pool import Database, session
from infra.processes.runtime import WORKER, spare_the_collector
from infra.views.status import ViewStatus, status_in_all_ledgers
from projections import VIEWS
from projections.engine import skipped_events
from projections.engine.rebuild import RebuildProgress
from projections.engine.rebuild import rebuild as rebuild_view
from projections.engine.shared_reader import SharedLog
from projections.engine.view import view_states

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from psycopg import AsyncCursor

    from projections.engine.view import View, ViewState

# Views that are filled anew together are read for once: the quick ones wait for the slow, unless one stands still.
SHARED_READ_PATIENCE_S: Final = 5.0
# Objects more than there were before the collector looks at the young: a page's are gone by themselves.
GC_YOUNG_OBJECTS: Final = 200_000
SKIPS_SHOWN_MAX: Final = 1_000


async def connect(conninfo: str) -> psycopg.AsyncConnection[Any]:
    """Open a session of the worker's own; building an index on a long log takes as long as it takes."""
    return await psycopg.AsyncConnection.connect(**session(conninfo, WORKER, statement_timeout_ms=0))


def view_named(name: str) -> View[Any]:
    """Return a view by its name.

    Raises:
        LookupError: there is none of that name.

    """
    view = next((view for view in VIEWS if view.name == name), None)
    if view is None:
        message = f"There is no view {name}. The views are {', '.join(view.name for view in VIEWS)}."
        raise LookupError(message)
    return view


async def rebuild(conninfo: str, names: Sequence[str], shown: Callable[[RebuildProgress, int], None]) -> None:
    """Fill views anew beside themselves from one reading of the log, and switch to each as soon as it is full.

    One that cannot be filled keeps its old rows, and none of the others waits for it.

    Args:
        conninfo: the database, as a login that is or may become the worker's role.
        names: of the views.
        shown: told after each page how far a view is, and how many events there were in all when this began.

    Raises:
        LookupError: there is no view of one of these names.
        Exception: the first of the views that could not be filled, once all others are done.

    """
    views = [view_named(name) for name in names]
    spare_the_collector(GC_YOUNG_OBJECTS)
    database = Database(conninfo, WORKER)
    await database.open()
    try:
        all_ledgers = AllLedgersReader(database)
        total = sum((await all_ledgers.heads()).values())
        shared = SharedLog(all_ledgers, patience_s=SHARED_READ_PATIENCE_S)

        async def one(view: View[Any]) -> None:
            reader = shared.reader()
            try:
                await rebuild_view(view, reader, lambda: connect(conninfo), lambda progress: shown(progress, total))
            finally:
                reader.close()

        outcomes = await asyncio.gather(*(one(view) for view in views), return_exceptions=True)
    finally:
        await database.close()
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome


@dataclass(frozen=True, slots=True)
class Overview:
    """How all views are, why those stopped that did, and what was skipped; ledgers by their names."""

    standings: list[ViewStatus]
    view_states: dict[str, ViewState]
    skips: list[skipped_events.SkippedEvent]
    ledgers: dict[int, str]

    def lines(self) -> list[str]:
        """Return it in words."""
        told = []
        for found in self.standings:
            behind = (
                f"{found.behind_events:,} behind, for {found.behind_s:,.0f} s" if found.behind_events else "all read"
            )
            told.append(
                f"{found.view:<18}  v{found.version:<3} {found.state:<9}  {found.position:>12,} events, {behind}"
            )
            status = self.view_states.get(found.view)
            if status is not None and status.failed_position is not None:
                ledger = self.ledgers.get(status.failed_ledger_id or 0, "?")
                told.append(f"    stopped before event {status.failed_position} of ledger {ledger}: {status.error}")
        for skip in self.skips:
            what = f"event {skip.position} of ledger {self.ledgers.get(skip.ledger_id, '?')}"
            if skip.stream_id is not None:
                what += f" and all later ones of {skip.stream_id}"
            told.append(f"{skip.view} v{skip.version} skips {what}: {skip.reason}")
            told.append(
                f"    by {skip.skipped_by}, {skip.skipped_at:%Y-%m-%d %H:%M} UTC; the view had stopped with "
                f"{skip.error}"
            )
        return told


async def overview(conninfo: str) -> Overview:
    """Return how all views are."""
    database = Database(conninfo, WORKER)
    await database.open()
    try:
        found = await status_in_all_ledgers(database)
    finally:
        await database.close()
    async with await connect(conninfo) as connection:
        cur = connection.cursor()
        stopped = {status.view: status for status in await view_states(cur)}
        skipped = await skipped_events.list_skipped(cur, SKIPS_SHOWN_MAX)
        await cur.execute("SELECT ledger_id, name FROM ledgers")
        return Overview(found, stopped, skipped, dict(await cur.fetchall()))


async def skip(
    conninfo: str, name: str, ledger: str, position: int, reason: str, by: str, *, and_later: bool = False
) -> None:
    """Let a view skip the event that stopped it, and write down who says so and why.

    With `and_later` it skips all later events of the same code or creator too.

    Raises:
        LookupError: there is no such view, or no such ledger, or this is not what stopped it.

    """
    view = view_named(name)
    async with await connect(conninfo) as connection, connection.transaction():
        cur = connection.cursor()
        await cur.execute("SELECT ledger_id FROM ledgers WHERE name = %s", (ledger,))
        row = await cur.fetchone()
        if row is None:
            message = f"There is no ledger {ledger}. `sparkledger ledgers list` shows all ledgers."
            raise LookupError(message)
        stream_id = await _stream_of(cur, row[0], position) if and_later else None
        await skipped_events.record_skip(cur, view, row[0], position, reason, by, stream_id=stream_id)


async def _stream_of(cur: AsyncCursor[Any], ledger_id: int, position: int) -> UUID | None:
    """Return the code or creator that an event is of; None where there is no such event, which then stopped nothing."""
    await cur.execute("SELECT stream_id FROM events WHERE ledger_id = %s AND position = %s", (ledger_id, position))
    row = await cur.fetchone()
    return row[0] if row else None


def current_user() -> str:
    """Return who is logged in, as the operating system has it: a name, or a number where it has none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
