"""A fill: pages of the log applied to rows in memory, many pages written in one transaction.

A row that several events change is then written once, a sum to which many events add is added to once, and while
PostgreSQL writes, Python applies the next pages. Rows are loaded on a session of their own: that of the view is busy
with writing, and what it writes is still in memory.

A transaction moves the checkpoint past all pages whose rows it writes. So a fill that is killed has lost what it had in
memory, and nothing else.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import psycopg

from projections.engine import checkpoints
from projections.engine.page import EventPage, PositionGap
from projections.engine.projector import is_transient
from projections.engine.view import RowChanges

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg import AsyncConnection, AsyncCursor

    from projections.engine.page import Events
    from projections.engine.projector import EventLog, Projector
    from projections.engine.table import Statement
    from projections.engine.view import Key, View

R = TypeVar("R")

# Events whose rows are written in one transaction; of a part, positions, so that several parts need no more memory
# than one process does. The rows of twice as many are in memory: those being written, and those that come next.
FILL_EVENTS_MAX: Final = 20_000


class FillFailed(Exception):
    """Events could not be applied, or their rows not be written; the cause says why. Nothing of them was written."""


class UnwrittenRows(Generic[R]):
    """The rows of a view that events have changed and that are not in its tables yet."""

    def __init__(self, view: View[R], suffix: str) -> None:
        """Take the view, and the suffix of its tables."""
        self._view = view
        self._suffix = suffix
        # Rows that are not in the table, rows that are, and those of both that are being written now.
        self._created: dict[Key, R] = {}
        self._updated: dict[Key, R] = {}
        self._written: tuple[dict[Key, R], dict[Key, R]] = ({}, {})
        self._secondary: dict[type, dict[Any, Any]] = {table.row: {} for table in view.secondary}

    @property
    def worthwhile(self) -> bool:
        """Whether gathering the rows of many events saves anything: not if each event only has a row of its own."""
        return bool(self._view.updates or self._view.secondary)

    async def apply(self, cur: AsyncCursor[Any], events: Events) -> None:
        """Apply events; after an error, the rows are of no use.

        `cur` loads rows that no event of this fill has changed, or only events of transactions that are committed.
        """
        view = self._view
        steps, indexes, existing = view.plan(events)
        created, updated, (written, rewritten) = self._created, self._updated, self._written
        rows: list[R | None] = [*map(created.get, indexes)]
        for key, index in indexes.items():
            if rows[index] is not None:
                continue
            row = updated.get(key)
            if row is None:
                row = written.get(key) or rewritten.get(key)
                if row is not None:
                    updated[key] = row
            rows[index] = row
        missing = [known for key, known in existing.items() if rows[indexes[key]] is None]
        for row in await view.table.load(cur, missing, self._suffix) if missing else ():
            key = view.key_of(row)
            rows[indexes[key]] = updated[key] = row
        before = rows.copy()
        secondary = view.run(steps, rows)
        for key, known, row in zip(indexes, before, rows, strict=True):
            if row is not known and row is not None:  # most are changed in place
                # If the table has one already, columns that no update changes may differ, too.
                created[key] = row
                updated.pop(key, None)
        for table in view.secondary:
            table.merge(self._secondary[table.row], secondary[table.row])

    def take(self) -> RowChanges:
        """Return what is to be written, which loads take from memory until the next time."""
        changes = RowChanges(
            [*self._created.values()],
            [*self._updated.values()],
            {table.row: table.merged_rows(self._secondary[table.row]) for table in self._view.secondary},
            merged=True,
        )
        self._written = (self._created, self._updated)
        self._created, self._updated = {}, {}
        self._secondary = {table.row: {} for table in self._view.secondary}
        return changes


class Filler:
    """Applies page after page to a projector's tables."""

    def __init__(
        self,
        projector: Projector,
        loads: AsyncConnection[Any],
        on_write: Callable[[int], None],
        fill_events: int,
    ) -> None:
        """Take what `fill` is given."""
        self._projector = projector
        self._loads = loads.cursor(binary=True)
        self._on_write = on_write
        self._rows = UnwrittenRows(projector.view, projector.suffix)
        self._fill_events = fill_events if self._rows.worthwhile else 1
        self._applied: list[EventPage] = []
        self._events = 0
        self._writing: asyncio.Task[None] | None = None
        self._writing_events = 0

    async def run(self, log: EventLog, page_events: int) -> None:
        """Fill until the log has no more; if it cannot be read further, what was read before is written.

        Raises:
            FillFailed: events could not be applied, or their rows not be written.

        """
        projector = self._projector
        reached = projector.positions
        ahead: asyncio.Task[EventPage] | None = None
        try:
            page = await projector.read(log, reached, page_events)
            while page.spans:
                reached = checkpoints.positions_after(reached, page)
                # As in `Projector.apply_all`.
                if page.length > page_events // 2:
                    ahead = asyncio.create_task(projector.read(log, reached, page_events))
                await self._apply(page)
                try:
                    page = await (ahead or projector.read(log, reached, page_events))
                except Exception:
                    await self._finish()
                    raise
                ahead = None
            await self._finish()
        except Exception:
            # What is committed moves the projector's positions, from which its user may go on.
            with suppress(FillFailed):
                await self._written()
            raise
        finally:
            unfinished = [task for task in (ahead, self._writing) if task is not None]
            for task in unfinished:
                task.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)

    async def _apply(self, page: EventPage) -> None:
        try:
            await self._rows.apply(self._loads, page.events)
        except Exception as error:
            raise FillFailed from error
        # Only its span is needed from here on.
        self._applied.append(EventPage((), page.spans))
        self._events += page.length
        if self._events >= self._fill_events:
            await self._write()

    async def _finish(self) -> None:
        if self._applied:
            await self._write()
        await self._written()

    async def _write(self) -> None:
        """Begin to write all that was applied, as soon as what came before it is written."""
        await self._written()
        try:
            statements = await self._encoded(self._rows.take())
        except Exception as error:
            raise FillFailed from error
        page = EventPage.joined(self._applied)
        self._applied, self._events = [], 0
        self._writing = asyncio.create_task(self._projector.commit(page, statements))
        self._writing_events = page.length

    async def _encoded(self, changes: RowChanges) -> list[Statement]:
        """Return the statements for these rows, encoded before the next events change them."""
        projector = self._projector
        encoded: list[Statement] = []
        for statement in projector.view.statements(changes, projector.suffix, fresh=projector.fresh):
            statement.encode()
            encoded.append(statement)
            await asyncio.sleep(0)  # others of this process are not to wait for all of it
        return encoded

    async def _written(self) -> None:
        """Wait for what is being written."""
        if self._writing is None:
            return
        try:
            await self._writing
        except Exception as error:
            raise FillFailed from error
        self._writing = None
        self._on_write(self._writing_events)


async def fill(
    projector: Projector,
    log: EventLog,
    loads: AsyncConnection[Any],
    page_events: int,
    on_write: Callable[[int], None],
    *,
    fill_events: int = FILL_EVENTS_MAX,
) -> None:
    """Apply page after page to a projector's tables until the log has no more, many pages in one transaction.

    Args:
        projector: with its positions, which are moved.
        log: where events come from.
        loads: a prepared session in autocommit, from which rows are loaded; other views may use it, too.
        page_events: events in a page.
        on_write: called after each transaction with its number of events.
        fill_events: events whose rows are written in one transaction.

    Raises:
        PoisonEvent: the view cannot apply an event; all events before it are applied.
        CheckpointConflict: another process has moved the view's checkpoint.

    """
    while True:
        try:
            return await Filler(projector, loads, on_write, fill_events).run(log, page_events)
        except FillFailed as failed:
            error = failed.__cause__ or failed
            if isinstance(error, checkpoints.CONFLICT_ERROR):
                raise checkpoints.CheckpointConflict from error
            if isinstance(error, PositionGap) or loads.closed or projector.connection.closed or is_transient(error):
                raise error from None
            if not (projector.fresh and isinstance(error, psycopg.errors.UniqueViolation)):
                # Page by page, it finds the event that caused it.
                await projector.apply_all(log, page_events, on_write)
                return None
            # Some events of this view replace rows that are there: from now on, created rows may overwrite.
            projector.fresh = False
