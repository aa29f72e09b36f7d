"""The projector: applies pages of events to a view's tables, its own or its shadow tables.

One transaction writes a page's rows and moves the view's checkpoint, provided that the checkpoint is still where the
page was read from. So no event is lost or applied twice, whichever process is killed and whenever, even if two workers
both believe that they lead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

import orjson
import psycopg
from psycopg.types.json import set_json_loads

from projections.engine import checkpoints
from projections.engine.advisory_locks import AdvisoryLock
from projections.engine.checkpoints import CheckpointConflict
from projections.engine.page import EventPage, PositionGap, Span
from projections.engine.parts import Part
from projections.engine.skipped_events import NO_SKIPS, load_skip_rules
from projections.engine.view import SHADOW_SUFFIX, View

if TYPE_CHECKING:
    from psycopg import AsyncConnection, AsyncCursor

    from projections.engine.table import Statement

# Events in a page: enough to make the cost of a statement negligible, few enough to hold in memory.
PAGE_EVENTS_MAX: Final = 2_000

# Settings of a session that writes views. Rows are looked up in tables that grow while their query plans are cached, so
# nothing that reads a whole table must ever look cheap. A commit need not reach the disk at once: rows and positions
# are lost or kept together, and what was lost is read from the log again. Building an index takes longer than a caller
# would wait.
_SESSION: Final = """
    SET enable_seqscan = off;
    SET enable_hashjoin = off;
    SET enable_mergejoin = off;
    SET synchronous_commit = off;
    SET statement_timeout = 0
"""

# Classes of SQLSTATE that no event causes and that pass by themselves: the connection, rolled-back transactions,
# resources, locks, operator intervention, the system. Any other error would recur with the same event.
_TRANSIENT: Final = frozenset({"08", "40", "53", "55", "57", "58"})

Connect = Callable[[], Awaitable["AsyncConnection[Any]"]]


class EventLog(Protocol):
    """The log of all ledgers, as projectors read it."""

    async def after(self, positions: Mapping[int, int], limit: int) -> EventPage:
        """Return events past the given positions, by ledger and then by position, at most `limit`.

        Ledgers without a position are read from their beginning. A page ends before an event that cannot be read; if
        that would be the page's first, `UnreadableEvent` is raised.
        """

    def forget(self) -> None:
        """Drop what is buffered: after a lost session, the database may have lost the last events."""


class UnreadableEvent(Exception):
    """An event in the log cannot be read."""

    def __init__(self, ledger_id: int, position: int, reason: str) -> None:
        """Name the event, and what is wrong with it."""
        super().__init__(f"Event {position} of ledger {ledger_id} cannot be read: {reason}")
        self.ledger_id = ledger_id
        self.position = position


class PoisonEvent(Exception):
    """A view cannot apply an event, and stops before it."""

    def __init__(self, view: str, ledger_id: int, position: int, reason: str) -> None:
        """Name the view, the event, and what is wrong with it."""
        super().__init__(f"View {view} stops before event {position} of ledger {ledger_id}: {reason}")
        self.at = (ledger_id, position)
        self.reason = reason


async def prepare(connection: AsyncConnection[Any]) -> None:
    """Set up a worker's session for loading and writing the rows of views."""
    set_json_loads(orjson.loads, connection)
    await connection.execute(_SESSION)


class Projector:
    """One view's tables, or its shadow tables, on one session, with the positions that they have reached.

    Attributes:
        name: in the durable tables: the view's name, for shadow tables with `SHADOW_SUFFIX`, or the part's.
        positions: by ledger, after the last page.
        stopped: the view is recorded as stopped, and has not read past that event yet.
        skip_rules: what this version of the view skips.
        fresh: created rows are taken to be new, as those of shadow tables are, in nearly all views.

    """

    def __init__(
        self, view: View[Any], connection: AsyncConnection[Any], *, shadow: bool = False, part: Part | None = None
    ) -> None:
        """Take the view, and a worker's session in autocommit.

        `shadow` chooses the shadow tables; `part`, those of their rows that another process does not fill.
        """
        self.view = view
        self.connection = connection
        self.suffix = SHADOW_SUFFIX if shadow else ""
        self.name = part.name(view.name) if part else view.name + self.suffix
        self.positions: dict[int, int] = {}
        self.stopped = False
        self.skip_rules = NO_SKIPS
        self._state = "building" if shadow else "following"
        self.fresh = shadow

    async def prepare(self) -> None:
        """Set up the session for writing."""
        await prepare(self.connection)

    async def create(self, *, indexes: bool) -> None:
        """Create the tables and record that the view begins, unless it has begun already."""
        async with self.connection.transaction():
            cur = self.connection.cursor()
            # Another process that creates it now waits, and then finds it.
            await cur.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", (AdvisoryLock.VIEW_CREATION, self.name))
            if await checkpoints.load_state(cur, self.name) is not None:
                return
            for table in self.view.tables:
                await table.drop(cur, self.suffix)  # a leftover: nothing has read or filled it
                await table.create(cur, self.suffix)
                if indexes:
                    await table.create_indexes(cur, self.suffix)
            await checkpoints.record_start(cur, self.name, self.view.version, self._state)

    async def find(self) -> None:
        """Load the positions that the view has reached, whether it has stopped, and what it skips."""
        cur = self.connection.cursor()
        state = await checkpoints.load_state(cur, self.name)
        self.stopped = state is not None and state.state == "failed"
        self.positions = await checkpoints.load_positions(cur, self.name, self.view.version)
        self.skip_rules = await load_skip_rules(cur, self.view.name, self.view.version)

    async def apply_all(self, log: EventLog, page_events: int, on_page: Callable[[int], None] | None = None) -> int:
        """Apply page after page until the log has no more, and return the number of events.

        While one page is written, the next is read. `on_page` is called after each page with its number of events.

        Raises:
            PoisonEvent: the view cannot apply an event; all events before it are applied.
            CheckpointConflict: another process has moved the view's checkpoint.

        """
        total = 0
        page = await self.read(log, self.positions, page_events)
        while page.spans:
            reached = checkpoints.positions_after(self.positions, page)
            # A page that is less than half full was all there is; one that ledgers share may be a little short.
            full = page.length > page_events // 2
            ahead = asyncio.create_task(self.read(log, reached, page_events)) if full else None
            try:
                await self.apply(page)
            except BaseException:
                if ahead is not None:
                    ahead.cancel()
                    await asyncio.gather(ahead, return_exceptions=True)
                raise
            total += page.length
            if on_page is not None:
                on_page(page.length)
            page = await ahead if ahead is not None else await self.read(log, self.positions, page_events)
        return total

    async def commit(self, page: EventPage, statements: Iterable[Statement]) -> None:
        """Write rows and move the checkpoint past the page that they follow from, in one transaction.

        If it is interrupted before all is sent, as when it is cancelled, the session is closed.

        Raises:
            psycopg.Error: it could not be done; nothing is written.

        """
        cur = self.connection.cursor(binary=True)
        # A pipeline is one transaction, sent at once: small pages cost little more than their round trips.
        async with self.connection.pipeline():
            try:
                await self.write(cur, page, statements)
            except BaseException as error:
                # The end of a pipeline commits what was sent, unless PostgreSQL itself has failed.
                if not (isinstance(error, psycopg.Error) and error.sqlstate):
                    self.connection.pgconn.finish()
                raise
        self.positions = checkpoints.positions_after(self.positions, page)
        if self.stopped:
            self.stopped = not await checkpoints.record_recovery(self.connection.cursor(), self.name, self._state)

    async def apply(self, page: EventPage) -> None:
        """Write a page's rows and move the checkpoint past it; on an error, find the event that caused it.

        Raises:
            PoisonEvent: the view cannot apply an event of the page; all events before it are applied.
            CheckpointConflict: another process has moved the view's checkpoint.
            psycopg.Error: the database cannot be reached, or cannot do it now.

        """
        cur = self.connection.cursor(binary=True)
        try:
            changes = await self.view.fold(cur, page.events, self.suffix)
            statements = [*self.view.statements(changes, self.suffix, fresh=self.fresh)]
            for statement in statements:
                # Before anything is sent, so that a value that cannot be does not end the transaction halfway.
                statement.encode()
            await self.commit(page, statements)
        except checkpoints.CONFLICT_ERROR as error:
            raise CheckpointConflict from error
        except (CheckpointConflict, PositionGap):
            raise
        except Exception as error:
            if self.connection.closed or is_transient(error) or not page.events:
                raise
            await self._find_cause(page, error)

    async def _find_cause(self, page: EventPage, error: Exception) -> None:
        """Apply a failed page in ever smaller parts, up to the event that made it fail.

        Raises:
            PoisonEvent: this event made it fail; all events before it are applied.

        """
        if self.fresh and isinstance(error, psycopg.errors.UniqueViolation):
            # Some events of this view replace rows that are there: from now on, created rows may overwrite.
            self.fresh = False
            await self.apply(page)
        elif len(page.events) > 1:
            for half in page.halves():
                await self.apply(half)
        else:
            ledger_id, recorded = page.events[0]
            reason = f"{type(error).__name__}: {error}"
            raise PoisonEvent(self.name, ledger_id, recorded.position, reason) from error

    async def write(self, cur: AsyncCursor[Any], page: EventPage, statements: Iterable[Statement]) -> None:
        """Write a page's rows and move the checkpoint, in the caller's transaction; the caller updates `positions`.

        The rows that were updated may have been read before: another process that changed them has also moved the
        checkpoint.
        """
        # The checkpoint comes first: of two processes, the second waits here, and fails before it touches a row.
        await checkpoints.advance(cur, self.name, self.view.version, self.positions, page)
        for statement in statements:
            await statement.execute(cur)

    async def read(self, log: EventLog, positions: Mapping[int, int], page_events: int) -> EventPage:
        """Read the next page after these positions, without the events to skip.

        Raises:
            PoisonEvent: the next event cannot be read.

        """
        try:
            page = await log.after(positions, page_events)
        except UnreadableEvent as error:
            if (error.ledger_id, error.position) in self.skip_rules.events:
                return EventPage((), {error.ledger_id: Span(error.position, error.position, None)})
            raise PoisonEvent(self.name, error.ledger_id, error.position, str(error)) from error
        return page.without(self.skip_rules.events, self.skip_rules.streams)


def is_transient(error: BaseException) -> bool:
    """Return whether the same page may succeed later."""
    return isinstance(error, psycopg.Error) and (error.sqlstate or "")[:2] in _TRANSIENT
