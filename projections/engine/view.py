"""What a view is: rows of its own, derived from events alone, that answer one question.

A page of events becomes rows in memory: the rows it changes are loaded with one query, each event runs through its
handler, and what came of it is written with one statement a table. A view says which row an event belongs to
(`row_of`), which events begin a row and which change one; a row is a plain dataclass.

Views are never migrated: a changed one gets a new `VERSION`, fills tables beside the old ones, and is switched to.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from projections.engine.page import Events
from projections.engine.table import Table

if TYPE_CHECKING:
    from psycopg import AsyncCursor

    from domain.recorded import RecordedEvent

R = TypeVar("R")

# An event's handler is that of its class, or else of the nearest class that it derives from.
Create = Callable[[int, "RecordedEvent", Any], R]
Update = Callable[[R, "RecordedEvent", Any], Iterable[Any] | None]

# A row's ledger, and what names the row within it.
Key = tuple[int, Hashable]
_Step = tuple[int, int, "RecordedEvent", Create[Any] | None, Update[Any] | None]

# What belongs to tables that are being filled beside those that are read.
SHADOW_SUFFIX: Final = "_next"


@dataclass(frozen=True, slots=True)
class RowChanges:
    """The rows that events lead to: those that they begin, those that stood and change, and the further tables'."""

    created: Sequence[Any]
    updated: Sequence[Any]
    secondary: Mapping[type, Sequence[Any]]


@dataclass(frozen=True, eq=False)
class View(Generic[R]):
    """One view.

    Attributes:
        name: the question's name, and its first table's.
        version: of its rows: raised whenever the same events come to other rows, or to other columns.
        table: of the rows that events begin and change.
        row_of: which row a recorded event belongs to: the value of the second column of the table's key.
        creates: by event class, what makes a new row of an event; it replaces one that is there.
        updates: by event class, what changes a row that is there, or that the same event has just created; it may
            return rows of `secondary` tables.
        secondary: tables derived from the changes, such as an index over ids, or counts.

    """

    name: str
    version: int
    table: Table[R]
    row_of: Callable[[Any], Hashable]
    creates: Mapping[type, Create[R]]
    updates: Mapping[type, Update[R]] = field(default_factory=dict)
    secondary: Sequence[Table[Any]] = ()
    _handlers: dict[type, tuple[Create[R] | None, Update[R] | None]] = field(default_factory=dict, init=False)

    @property
    def tables(self) -> list[Table[Any]]:
        """All its tables."""
        return [self.table, *self.secondary]

    async def fold(self, cur: AsyncCursor[Any], events: Events, suffix: str = "") -> RowChanges:
        """Return the rows that events lead to, from those that stand; nothing is written.

        Args:
            cur: a session of the worker's, that answers in binary.
            events: by ledger and then by position.
            suffix: of the tables.

        Raises:
            LookupError: an event changes a row that no event began.
            Exception: whatever a handler raises.

        """
        steps, places, existing = self._plan(events)
        rows: list[R | None] = [None] * len(places)
        loaded = await self.table.load(cur, existing, suffix) if existing else []
        for row in loaded:
            rows[places[self.table.key_of(row)]] = row
        secondary: dict[type, list[Any]] = {table.row: [] for table in self.secondary}
        for place, ledger_id, recorded, begin, change in steps:
            if begin is not None:
                rows[place] = begin(ledger_id, recorded, recorded.event)
            if change is not None:
                for extra in change(self._existing(rows[place], recorded), recorded, recorded.event) or ():
                    secondary[type(extra)].append(extra)
        stood = set(map(id, loaded))
        return RowChanges(
            created=[row for row in rows if id(row) not in stood],
            updated=[row for row in rows if id(row) in stood],
            secondary=secondary,
        )

    async def write(self, cur: AsyncCursor[Any], changes: RowChanges, suffix: str = "", *, fresh: bool = False) -> None:
        """Write rows, in the caller's transaction.

        Args:
            cur: a session of the worker's.
            changes: the rows.
            suffix: of the tables.
            fresh: none of those that were begun is there yet, so that none need be looked for.

        Raises:
            UniqueViolation: one was there, though `fresh`.

        """
        if fresh and changes.created:
            await self.table.insert(cur, changes.created, suffix)
        elif changes.created:
            await self.table.write(cur, changes.created, suffix)
        if changes.updated:
            await self.table.write(cur, changes.updated, suffix)
        for table in self.secondary:
            if changes.secondary[table.row]:
                await table.write(cur, table.merged(changes.secondary[table.row]), suffix)

    def _plan(self, events: Events) -> tuple[list[_Step], dict[Key, int], list[Key]]:
        """Return what is to be done: steps in order, the place of each row in a list, and the rows that must be there.

        Those are the rows that some step changes before any begins it. A key is looked up once a step, for a UUID is
        slow to compare.
        """
        steps: list[_Step] = []
        places: dict[Key, int] = {}
        existing: list[Key] = []
        handlers, row_of = self._handlers, self.row_of
        for ledger_id, recorded in events:
            kind = type(recorded.event)
            begin, change = handlers.get(kind) or self._handler(kind)
            if begin is None and change is None:
                continue
            key = (ledger_id, row_of(recorded))
            known = len(places)
            place = places.setdefault(key, known)
            if place == known and begin is None:
                existing.append(key)
            steps.append((place, ledger_id, recorded, begin, change))
        return steps, places, existing

    def _existing(self, row: R | None, recorded: RecordedEvent) -> R:
        if row is None:
            key = self.row_of(recorded)
            raise LookupError(f"view {self.name} has no row {key}, which the event would change")
        return row

    def _handler(self, kind: type) -> tuple[Create[R] | None, Update[R] | None]:
        found = self._handlers.get(kind)
        if found is None:
            bases = (base for base in kind.__mro__ if base in self.creates or base in self.updates)
            nearest = next(bases, object)
            found = self._handlers[kind] = (self.creates.get(nearest), self.updates.get(nearest))
        return found


@dataclass(frozen=True, slots=True)
class ViewState:
    """What became of a view; `failed_…` name the event that stopped it, where one did.

    `state` is "following" or "failed"; or "building" for shadow tables, whose name is the view's + `SHADOW_SUFFIX`.
    """

    view: str
    version: int
    state: str
    error: str | None
    failed_ledger_id: int | None
    failed_position: int | None
    changed_at: datetime

    @property
    def stopped(self) -> bool:
        """Whether reads of the view fall behind; one that cannot be filled anew is still read and followed."""
        return self.state == "failed" and not self.view.endswith(SHADOW_SUFFIX)


@dataclass(frozen=True, slots=True)
class ViewPosition:
    """How far a view has read a ledger: the last position, and when the ledger recorded that."""

    view: str
    position: int
    recorded_at: datetime | None


_REACHED: Final = """
SELECT coalesce(min(coalesce(p.position, 0)), 0)
FROM unnest(%s::text[]) AS x (view)
LEFT JOIN view_positions p ON p.view = x.view AND p.ledger_id = %s
"""

_POSITIONS: Final = """
SELECT view, position, recorded_at
FROM view_positions
WHERE ledger_id = %s
ORDER BY view
"""

_STOPPED: Final = """
SELECT
FROM view_versions
WHERE view = %s
AND state = 'failed'
"""

_STATUSES: Final = """
SELECT view, version, state, error, failed_ledger_id, failed_position, changed_at
FROM view_versions
ORDER BY view
"""


async def position_reached(cur: AsyncCursor[Any], ledger_id: int, *views: str) -> int:
    """Return the position that all these views have read up to, 0 where one has not begun.

    Ask before reading rows: then they are at least as new as the answer says.
    """
    await cur.execute(_REACHED, (list(views), ledger_id))
    row = await cur.fetchone()
    return int(row[0]) if row else 0


async def view_positions(cur: AsyncCursor[Any], ledger_id: int) -> list[ViewPosition]:
    """Return how far every view has read a ledger, by name."""
    await cur.execute(_POSITIONS, (ledger_id,))
    return [ViewPosition(*row) for row in await cur.fetchall()]


async def has_stopped(cur: AsyncCursor[Any], view: str) -> bool:
    """Tell whether a view stands before an event that it cannot take in."""
    await cur.execute(_STOPPED, (view,))
    return await cur.fetchone() is not None


async def view_states(cur: AsyncCursor[Any]) -> list[ViewState]:
    """Return what became of every view, by name."""
    await cur.execute(_STATUSES)
    return [ViewState(*row) for row in await cur.fetchall()]


async def is_read_only(cur: AsyncCursor[Any]) -> bool:
    """Tell whether the database takes no writes, as a standby does and one that was made so."""
    await cur.execute("SELECT current_setting('transaction_read_only')")
    row = await cur.fetchone()
    return row is not None and row[0] == "on"
