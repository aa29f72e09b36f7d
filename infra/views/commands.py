"""The commands of operators on views: list them, rebuild them, skip an event that stopped one."""

from __future__ import annotations

import asyncio
import getpass
import os
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import psycopg

from infra.eventstore.all_ledgers_reader import AllLedgersReader
from infra.postgres.pool import Database, LedgerConnection, session
from infra.postgres.roles import WORKER
from infra.process_limits import GC_FILL_OBJECTS, tune_garbage_collector
from infra.views.part_processes import Processes
from infra.views.status import ViewStatus, status_in_all_ledgers
from projections import VIEWS
from projections.engine import skipped_events
from projections.engine.checkpoints import load_states
from projections.engine.projector import prepare
from projections.engine.rebuild import RebuildProgress
from projections.engine.rebuild import rebuild as rebuild_view
from projections.engine.shared_reader import SharedLog

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from psycopg import AsyncCursor

    from projections.engine.checkpoints import ViewState
    from projections.engine.view import View

# Views that are rebuilt together share one reading of the log: the quick ones wait for the slow, unless one hangs. On a
# slow machine, the rows of many pages may take seconds to write.
SHARED_READ_PATIENCE_S: Final = 30.0
SKIPS_SHOWN_MAX: Final = 1_000


async def connect(conninfo: str) -> psycopg.AsyncConnection[Any]:
    """Open a worker's session without a statement timeout: building an index on a long log takes its time."""
    return await LedgerConnection.connect(**session(conninfo, WORKER, statement_timeout_ms=0))


def view_named(name: str) -> View[Any]:
    """Return the view of a name.

    Raises:
        LookupError: there is none.

    """
    view = next((view for view in VIEWS if view.name == name), None)
    if view is None:
        message = f"There is no view {name}. The views are {', '.join(view.name for view in VIEWS)}."
        raise LookupError(message)
    return view


async def rebuild(
    conninfo: str, names: Sequence[str], on_progress: Callable[[RebuildProgress, int], None], *, jobs: int = 1
) -> None:
    """Rebuild views in shadow tables from one reading of the log, and swap each in as soon as it is complete.

    A view that cannot be rebuilt keeps its old rows, and no other view waits for it. With several `jobs`, as many
    processes fill a part of all of these views each, from one reading of that part.

    Args:
        conninfo: the database, with a login that is or may become the worker's role.
        names: of the views.
        on_progress: called after each page with a view's progress, and the number of events in all at the start.
        jobs: how many processes fill the views; with one, this one does.

    Raises:
        LookupError: there is no view of one of these names.
        Exception: the error of the first view that could not be rebuilt, once all others are done.

    """
    views = [view_named(name) for name in names]
    tune_garbage_collector(GC_FILL_OBJECTS)
    database = Database(conninfo, WORKER)
    await database.open()
    try:
        all_ledgers = AllLedgersReader(database)
        total = sum((await all_ledgers.heads()).values())
        shared = SharedLog(all_ledgers, patience_s=SHARED_READ_PATIENCE_S)

        async def one(view: View[Any], own: psycopg.AsyncConnection[Any], processes: Processes) -> None:
            async def opened() -> psycopg.AsyncConnection[Any]:
                return own

            reader = shared.reader()
            try:
                await rebuild_view(
                    view,
                    reader,
                    opened,
                    lambda progress: on_progress(progress, total),
                    processes=processes,
                    loads=loads,
                )
            finally:
                reader.close()

        async with AsyncExitStack() as stack:
            loads = await stack.enter_async_context(await connect(conninfo))
            await prepare(loads)
            # Before the first read: a view that opens its session drops what was read before, and all read it again.
            sessions = [await stack.enter_async_context(await connect(conninfo)) for _ in views]
            processes = await stack.enter_async_context(Processes(conninfo, all_ledgers, jobs))
            rebuilds = (one(view, own, processes) for view, own in zip(views, sessions, strict=True))
            outcomes = await asyncio.gather(*rebuilds, return_exceptions=True)
    finally:
        await database.close()
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome


@dataclass(frozen=True, slots=True)
class Overview:
    """The status of all views, why some have stopped, and what was skipped; with the names of ledgers."""

    statuses: list[ViewStatus]
    states: dict[str, ViewState]
    skipped: list[skipped_events.SkippedEvent]
    ledgers: dict[int, str]

    def lines(self) -> list[str]:
        """Return the overview as lines of text."""
        lines = []
        for status in self.statuses:
            behind = (
                f"{status.behind_events:,} behind, for {status.behind_s:,.0f} s" if status.behind_events else "all read"
            )
            lines.append(
                f"{status.view:<18}  v{status.version:<3} {status.state:<9}  {status.position:>12,} events, {behind}"
            )
            state = self.states.get(status.view)
            if state is not None and state.failed_position is not None:
                ledger = self.ledgers.get(state.failed_ledger_id or 0, "?")
                lines.append(f"    stopped before event {state.failed_position} of ledger {ledger}: {state.error}")
        for skip in self.skipped:
            what = f"event {skip.position} of ledger {self.ledgers.get(skip.ledger_id, '?')}"
            if skip.stream_id is not None:
                what += f" and all later ones of {skip.stream_id}"
            lines.append(f"{skip.view} v{skip.version} skips {what}: {skip.reason}")
            lines.append(
                f"    by {skip.skipped_by}, {skip.skipped_at:%Y-%m-%d %H:%M} UTC; the view had stopped with "
                f"{skip.error}"
            )
        return lines


async def overview(conninfo: str) -> Overview:
    """Return the overview of all views."""
    database = Database(conninfo, WORKER)
    await database.open()
    try:
        statuses = await status_in_all_ledgers(database)
    finally:
        await database.close()
    async with await connect(conninfo) as connection:
        cur = connection.cursor()
        states = {state.view: state for state in await load_states(cur)}
        skipped = await skipped_events.list_skipped(cur, SKIPS_SHOWN_MAX)
        await cur.execute("SELECT ledger_id, name FROM ledgers")
        return Overview(statuses, states, skipped, dict(await cur.fetchall()))


async def skip(
    conninfo: str, name: str, ledger: str, position: int, reason: str, by: str, *, and_later: bool = False
) -> None:
    """Let a view skip the event that stopped it, and record who decided it and why.

    With `and_later` it skips all later events of the same code or creator too.

    Raises:
        LookupError: there is no such view or ledger, or the view has not stopped before this event.

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
    """Return the code or creator of an event; None if there is no such event, which then cannot have stopped a view."""
    await cur.execute("SELECT stream_id FROM events WHERE ledger_id = %s AND position = %s", (ledger_id, position))
    row = await cur.fetchone()
    return row[0] if row else None


def current_user() -> str:
    """Return the operating system's user: its name, or its number if it has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
