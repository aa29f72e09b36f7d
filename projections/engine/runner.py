"""The runner of a view: follows the log as the only leader among all workers, and stops at an event it cannot apply.

    waiting ──lead──▶ following ──an event it cannot apply──▶ stopped ──skipped, rebuilt, or a new program starts──┐
       ▲  └─ the database is away, or another process moved the view: start again ─┘                              │
       └──────────────────────────────────────────────────────────────────────────────────────────────────────────┘

The leader holds the view's advisory lock, which PostgreSQL releases when the session ends. Leadership only saves work:
the comparison with the checkpoint, in a page's own transaction, is what keeps a page from being applied twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Final

from projections.engine import checkpoints
from projections.engine.checkpoints import CheckpointConflict, has_stopped, position_reached
from projections.engine.projector import PAGE_EVENTS_MAX, Connect, EventLog, PoisonEvent, Projector
from projections.engine.rebuild import rebuild
from projections.engine.skipped_events import load_skip_rules
from projections.engine.view import View

if TYPE_CHECKING:
    from psycopg import AsyncConnection, AsyncCursor

# Between reads of the log if nothing wakes the runner, and between attempts to lead or to reconnect.
POLL_S: Final = 1.0
# After a page, before the next read: all that is committed meanwhile makes one page, and a page of a hundred events
# costs little more than a page of one.
LINGER_S: Final = 0.02
# While waiting for a view: the first pause between checks, and the longest.
WAIT_FIRST_S: Final = 0.002
WAIT_LONGEST_S: Final = 0.05

_log = logging.getLogger(__name__)


class ViewBehind(Exception):
    """A view did not read up to the wanted position in time."""

    def __init__(self, view: str, wanted: int, reached: int) -> None:
        """Name the view, the wanted position and the one that it has reached."""
        super().__init__(f"View {view} has read up to position {reached}, but not yet up to {wanted}.")
        self.view = view
        self.wanted = wanted
        self.reached = reached


class ViewStopped(ViewBehind):
    """A view has stopped before the wanted position, and reads no further until it is mended."""

    def __str__(self) -> str:
        """Name the view, and the position up to which it can be read."""
        return f"View {self.view} has stopped. It can be read up to position {self.reached}."


class Runner:
    """Keeps one view up to date while it runs."""

    def __init__(
        self,
        view: View[Any],
        log: EventLog,
        connect: Connect,
        wake: asyncio.Event,
        *,
        poll_s: float = POLL_S,
        page_events: int = PAGE_EVENTS_MAX,
    ) -> None:
        """Take what `run` needs.

        Args:
            view: the view.
            log: where its events come from.
            connect: opens a worker's session in autocommit, which is held while this runs.
            wake: set after a commit. This runner's own: it clears it.
            poll_s: seconds between reads of the log if nothing wakes it, and between attempts to lead.
            page_events: events in a page.

        """
        self._view = view
        self._log = log
        self._connect = connect
        self._wake = wake
        self._poll_s = poll_s
        self._page_events = page_events
        # The event at which this process has stopped: it does not try the same event again and again.
        self._stopped_at: tuple[int, int] | None = None
        self._last_message = ""

    async def run(self) -> None:
        """Follow the log until cancelled; no error ends this, and none affects another view."""
        while True:
            try:
                async with await self._connect() as connection:
                    await self._lead_and_follow(connection)
            except CheckpointConflict:
                self._log_once(logging.INFO, "was advanced by another process and continues from there")
                await asyncio.sleep(WAIT_LONGEST_S)
                continue
            except Exception as error:  # noqa: BLE001 - the next attempt shows whether it is over
                self._log_once(logging.WARNING, f"failed and is retried: {type(error).__name__}: {error}")
            await asyncio.sleep(self._poll_s)

    async def _lead_and_follow(self, connection: AsyncConnection[Any]) -> None:
        while not await self._may_follow(connection):  # noqa: ASYNC110 - other processes decide, they set no event
            await asyncio.sleep(self._poll_s)
        try:
            await self._follow(connection)
        except PoisonEvent as poison:
            self._stopped_at = poison.at
            self._log_once(logging.ERROR, f"has stopped. {poison}")
            await checkpoints.record_failure(connection.cursor(), self._view.name, self._stopped_at, poison.reason)

    async def _may_follow(self, connection: AsyncConnection[Any]) -> bool:
        """Return whether this process is to follow the view: it knows the view's version, and no other one leads."""
        cur = connection.cursor()
        state = await checkpoints.load_state(cur, self._view.name)
        if state is not None and state.version > self._view.version:
            # A newer program has rebuilt the view and follows it: this one must not write its rows.
            self._log_once(logging.INFO, f"is at version {state.version}; this program knows {self._view.version}")
            return False
        if state is not None and state.state == "failed":
            at = (state.failed_ledger_id, state.failed_position)
            if at == self._stopped_at:
                skip_rules = await load_skip_rules(cur, self._view.name, self._view.version)
                if at not in skip_rules.events:
                    return False
        return await checkpoints.try_to_lead(cur, self._view.name)

    async def _follow(self, connection: AsyncConnection[Any]) -> None:
        projector = Projector(self._view, connection)
        await projector.prepare()
        self._log.forget()
        state = await checkpoints.load_state(connection.cursor(), self._view.name)
        if state is None:
            await projector.create(indexes=True)
        elif state.version < self._view.version:
            self._log_once(logging.INFO, f"goes from version {state.version} to {self._view.version}")
            await rebuild(self._view, self._log, self._connect, page_events=self._page_events)
        await projector.find()
        self._log_once(logging.INFO, "is updated by this process")
        while True:
            self._wake.clear()
            await projector.apply_all(self._log, self._page_events)
            await asyncio.sleep(LINGER_S)
            with contextlib.suppress(TimeoutError):
                # Not wait_for: before Python 3.12 it may swallow being cancelled.
                async with asyncio.timeout(self._poll_s):
                    await self._wake.wait()

    def _log_once(self, level: int, message: str) -> None:
        """Log a message, unless it is the same as the last."""
        if message != self._last_message:
            _log.log(level, "View %s %s", self._view.name, message)
            self._last_message = message


async def create_missing(connect: Connect, views: Iterable[View[Any]]) -> None:
    """Create the tables of views that never began, so that reads find them, still empty, before any worker runs.

    `connect` opens a worker's session in autocommit.
    """
    async with await connect() as connection:
        for view in views:
            await Projector(view, connection).create(indexes=True)


async def wait_for_position(
    cursors: Callable[[], AbstractAsyncContextManager[AsyncCursor[Any]]],
    view: str,
    ledger_id: int,
    position: int,
    *,
    timeout_s: float = 5.0,
) -> int:
    """Wait until a view has read a ledger up to a position, and return how far it has read.

    Args:
        cursors: opens a cursor bound to the ledger; it is closed between checks, so that no connection is held.
        view: the view's name.
        ledger_id: the ledger.
        position: the wanted position.
        timeout_s: seconds to wait at most.

    Raises:
        ViewStopped: the view has stopped before the position.
        ViewBehind: the time ran out.

    """
    deadline = time.monotonic() + timeout_s
    pause = WAIT_FIRST_S
    while True:
        async with cursors() as cur:
            read = await position_reached(cur, ledger_id, view)
            if read >= position:
                return read
            if await has_stopped(cur, view):
                raise ViewStopped(view, position, read)
        left = deadline - time.monotonic()
        if left <= 0:
            raise ViewBehind(view, position, read)
        await asyncio.sleep(min(pause, left))
        pause = min(2 * pause, WAIT_LONGEST_S)
