"""Pages of events into a view's tables, those that are read or those being filled beside them.

One transaction writes a page's rows and the positions that the view has then reached, and only where it still stood
at the positions that the page was read from. So nothing is lost and nothing is taken in twice, whoever is killed and
whenever, even if two workers both believe that they lead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

import orjson
import psycopg
from psycopg.types.json import set_json_loads

from projections.engine import checkpoints
from projections.engine.advisory_locks import AdvisoryLock
from projections.engine.checkpoints import CheckpointConflict
from projections.engine.page import EventPage, PositionGap, Span
from projections.engine.skipped_events import NO_SKIPS, load_skip_rules
from projections.engine.view import SHADOW_SUFFIX, RowChanges, View

if TYPE_CHECKING:
    from psycopg import AsyncConnection, AsyncCursor

# Events folded at a time: enough for one statement's cost to vanish, few enough to hold in memory.
PAGE_EVENTS_MAX: Final = 2_000

# What a session that writes views needs. Rows are looked up in tables that fill while plans for them are kept, so no
# scan of a whole table may look cheap. A commit need not reach the disk at once: rows and positions are lost or kept
# together, and what was lost is read from the log again. Building an index takes longer than a caller would wait.
_SESSION: Final = """
    SET enable_seqscan = off;
    SET synchronous_commit = off;
    SET statement_timeout = 0
"""

# Classes of SQLSTATE that say nothing of an event and pass by themselves: the connection, what rolled a transaction
# back, resources, locks, somebody who intervened, the machine. Every other refusal of the database comes again.
_PASSING: Final = frozenset({"08", "40", "53", "55", "57", "58"})

Connect = Callable[[], Awaitable["AsyncConnection[Any]"]]


class EventLog(Protocol):
    """The log of all ledgers, as views read it."""

    async def after(self, positions: Mapping[int, int], limit: int) -> EventPage:
        """Return events past the given positions, by ledger and then by position, at most `limit`.

        Ledgers that are not named are read from their beginning. An event that cannot be read ends the page before
        it; where it would be the page's first, `UnreadableEvent` is raised.
        """

    def forget(self) -> None:
        """Keep nothing of what was read: a session was lost, and the next may find a log that lost its last events."""


class UnreadableEvent(Exception):
    """An event in the log cannot be read."""

    def __init__(self, ledger_id: int, position: int, reason: str) -> None:
        """Name the event, and what is wrong with it."""
        super().__init__(f"Event {position} of ledger {ledger_id} cannot be read: {reason}")
        self.ledger_id = ledger_id
        self.position = position


class PoisonEvent(Exception):
    """A view cannot take in an event, and stops before it."""

    def __init__(self, view: str, ledger_id: int, position: int, reason: str) -> None:
        """Name the view, the event, and what is wrong."""
        super().__init__(f"View {view} stops before event {position} of ledger {ledger_id}: {reason}")
        self.at = (ledger_id, position)
        self.reason = reason


class Projector:
    """One view's tables on one session, and the positions that they have reached.

    Attributes:
        name: what it is called in the durable tables: the view's name, or that with `SHADOW_SUFFIX`.
        positions: by ledger, as they stood after the last page.
        stopped: it is written down that the view has stopped, and it has not read past that event yet.
        skipped: what this version of the view was told to skip.

    """

    def __init__(self, view: View[Any], connection: AsyncConnection[Any], *, shadow: bool = False) -> None:
        """Take the view, and a session of the worker's in autocommit; `shadow` for the tables being filled."""
        self.view = view
        self.connection = connection
        self.suffix = SHADOW_SUFFIX if shadow else ""
        self.name = view.name + self.suffix
        self.positions: dict[int, int] = {}
        self.stopped = False
        self.skip_rules = NO_SKIPS
        self._state = "building" if shadow else "following"
        self._fresh = shadow

    async def prepare(self) -> None:
        """Set the session up for writing."""
        set_json_loads(orjson.loads, self.connection)
        await self.connection.execute(_SESSION)

    async def create(self, *, indexes: bool) -> None:
        """Create the tables, and write down that the view begins; nothing where it has begun already."""
        async with self.connection.transaction():
            cur = self.connection.cursor()
            # Whoever else creates it now waits, and then finds it.
            await cur.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", (AdvisoryLock.VIEW_CREATION, self.name))
            if await checkpoints.load_state(cur, self.name) is not None:
                return
            for table in self.view.tables:
                await table.drop(cur, self.suffix)  # left by nobody knows whom: no one has read or filled it
                await table.create(cur, self.suffix)
                if indexes:
                    await table.create_indexes(cur, self.suffix)
            await checkpoints.record_start(cur, self.name, self.view.version, self._state)

    async def find(self) -> None:
        """Find out which positions the view has reached, whether it has stopped, and what it skips."""
        cur = self.connection.cursor()
        state = await checkpoints.load_state(cur, self.name)
        self.stopped = state is not None and state.state == "failed"
        self.positions = await checkpoints.load_positions(cur, self.name, self.view.version)
        self.skip_rules = await load_skip_rules(cur, self.view.name, self.view.version)

    async def apply_all(self, log: EventLog, page_events: int, on_page: Callable[[int], None] | None = None) -> int:
        """Take in page after page until the log has no more; return how many events that were.

        While one page is written the next is read already. `on_page` is called after each with how many were in it.

        Raises:
            Poisoned: the view cannot take in an event; all before it is written.
            Overtaken: somebody else has moved the view.

        """
        total = 0
        page = await self.read(log, self.positions, page_events)
        while page.spans:
            reached = checkpoints.positions_after(self.positions, page)
            # A page that is not nearly full was all there is; one that ledgers shared out may be a little short.
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

    async def apply(self, page: EventPage) -> None:
        """Write a page's rows and the positions it leads to; on an error, find the event that caused it.

        Raises:
            Poisoned: the view cannot take in an event of the page; all before it is written.
            Overtaken: somebody else has moved the view.
            psycopg.Error: the database is away, or could not do it now.

        """
        cur = self.connection.cursor(binary=True)
        try:
            changes = await self.view.fold(cur, page.events, self.suffix)
            # All of a pipeline is one transaction, sent at once: many small pages cost what their round trips cost.
            async with self.connection.pipeline():
                await self.write(cur, page, changes, fresh=self._fresh)
        except checkpoints.CONFLICT_ERROR as error:
            raise CheckpointConflict from error
        except (CheckpointConflict, PositionGap):
            raise
        except Exception as error:
            if self.connection.closed or _passes(error) or not page.events:
                raise
            await self._find_cause(page, error)
        else:
            self.positions = checkpoints.positions_after(self.positions, page)
            if self.stopped:
                self.stopped = not await checkpoints.record_recovery(self.connection.cursor(), self.name, self._state)

    async def _find_cause(self, page: EventPage, error: Exception) -> None:
        """Take in part by part a page that failed as a whole, up to the event which it failed for.

        Raises:
            Poisoned: it was this event; all before it is written.

        """
        if self._fresh and isinstance(error, psycopg.errors.UniqueViolation):
            # Events of this view begin rows that are there: from now on they are looked for.
            self._fresh = False
            await self.apply(page)
        elif len(page.events) > 1:
            for half in page.halves():
                await self.apply(half)
        else:
            ledger_id, recorded = page.events[0]
            reason = f"{type(error).__name__}: {error}"
            raise PoisonEvent(self.name, ledger_id, recorded.position, reason) from error

    async def write(self, cur: AsyncCursor[Any], page: EventPage, changes: RowChanges, *, fresh: bool = False) -> None:
        """Write a page's rows and positions in the caller's transaction; `positions` is left to the caller.

        What the rows were folded from may have been read before: whoever changed it since has moved the positions.
        `fresh` is as for `View.write`.
        """
        # First the positions: whoever comes second waits here, and learns that it does before it touches a row.
        await checkpoints.advance(cur, self.name, self.view.version, self.positions, page)
        await self.view.write(cur, changes, self.suffix, fresh=fresh)

    async def read(self, log: EventLog, positions: Mapping[int, int], page_events: int) -> EventPage:
        """Read what comes next after these positions, without what is skipped.

        Raises:
            Poisoned: it cannot be read.

        """
        try:
            page = await log.after(positions, page_events)
        except UnreadableEvent as error:
            if (error.ledger_id, error.position) in self.skip_rules.events:
                return EventPage((), {error.ledger_id: Span(error.position, error.position, None)})
            raise PoisonEvent(self.name, error.ledger_id, error.position, str(error)) from error
        return page.without(self.skip_rules.events, self.skip_rules.streams)


def _passes(error: Exception) -> bool:
    """Tell whether an error is one of the moment, after which the same page may well be taken in."""
    return isinstance(error, psycopg.Error) and (error.sqlstate or "")[:2] in _PASSING
