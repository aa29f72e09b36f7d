"""A view: tables that answer one question, and the handlers that derive their rows only from events.

A page of events becomes rows in memory: one query loads the rows that the page changes, each event runs through its
handler, and one statement a table writes the result. A view says which row an event belongs to (`row_of`), which events
create a row and which update one; a row is a plain dataclass.

Views are never migrated. A changed view gets a new `VERSION`: it is rebuilt in shadow tables, which then replace the
old ones.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar
from uuid import UUID

from projections.engine.page import Events
from projections.engine.table import Statement, Table

if TYPE_CHECKING:
    from psycopg import AsyncCursor

    from domain.recorded import RecordedEvent

R = TypeVar("R")

# The handler of an event is that of its class, or else that of the nearest base class with one.
Create = Callable[[int, "RecordedEvent", Any], R]
Update = Callable[[R, "RecordedEvent", Any], Iterable[Any] | None]

# A row's ledger, and its name within the ledger: of a UUID its number, because a UUID is slow to hash and to compare.
Key = tuple[int, Hashable]
Step = tuple[int, int, "RecordedEvent", Create[Any] | None, Update[Any] | None]

# Marks shadow tables, which a rebuild fills while the view's own tables are read.
SHADOW_SUFFIX: Final = "_next"


@dataclass(frozen=True, slots=True)
class RowChanges:
    """Rows that events create and update, and the rows of secondary tables, by their class: if `merged`, one a key."""

    created: Sequence[Any]
    updated: Sequence[Any]
    secondary: Mapping[type, Iterable[Any]]
    merged: bool = False


@dataclass(frozen=True, eq=False)
class View(Generic[R]):
    """One view.

    Attributes:
        name: of the view, and of its main table.
        version: of its rows: raised whenever the same events lead to other rows, or to other columns.
        table: the main table.
        row_of: the row that a recorded event belongs to: the value of the second column of the table's key.
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
        """Apply events to the rows in the tables, and return the rows that change; nothing is written.

        Args:
            cur: of a worker's session, with answers in binary.
            events: by ledger and then by position.
            suffix: of the tables.

        Raises:
            LookupError: an event updates a row that no event created.
            Exception: whatever a handler raises.

        """
        steps, indexes, existing = self.plan(events)
        rows: list[R | None] = [None] * len(indexes)
        loaded = await self.table.load(cur, existing.values(), suffix) if existing else []
        for row in loaded:
            rows[indexes[self.key_of(row)]] = row
        secondary = self.run(steps, rows)
        were_there = set(map(id, loaded))
        return RowChanges(
            created=[row for row in rows if id(row) not in were_there],
            updated=[row for row in rows if id(row) in were_there],
            secondary=secondary,
        )

    def statements(self, changes: RowChanges, suffix: str = "", *, fresh: bool = False) -> Iterator[Statement]:
        """Return the statements that write rows, in order, each of a bounded number of rows.

        Args:
            changes: the rows.
            suffix: of the tables.
            fresh: none of the created rows is there yet: a plain insert, which is quicker, will do. It raises
                `UniqueViolation` if one is.

        """
        yield from (self.table.inserts if fresh else self.table.writes)(changes.created, suffix)
        yield from self.table.updates(changes.updated, suffix)
        for table in self.secondary:
            rows = changes.secondary[table.row]
            yield from table.writes(rows if changes.merged else table.merged(rows), suffix)

    def key_of(self, row: R) -> Key:
        """Return the key of a row."""
        ledger_id, name = self.table.key_of(row)
        return ledger_id, name.int if type(name) is UUID else name

    def plan(self, events: Events) -> tuple[list[Step], dict[Key, int], dict[Key, tuple[int, Any]]]:
        """Return the steps in order, the index of each row in a list, and by key what names the rows to load.

        A row is loaded if a step updates it before any creates it.
        """
        steps: list[Step] = []
        indexes: dict[Key, int] = {}
        existing: dict[Key, tuple[int, Any]] = {}
        handlers, row_of = self._handlers, self.row_of
        for ledger_id, recorded in events:
            kind = type(recorded.event)
            create, update = handlers.get(kind) or self._handler(kind)
            if create is None and update is None:
                continue
            if update is not None and recorded.stream_version > 1:
                create = None  # of a stream's further events, those that can begin it only change its row
            name = row_of(recorded)
            key = (ledger_id, name.int if type(name) is UUID else name)
            next_index = len(indexes)
            index = indexes.setdefault(key, next_index)
            if index == next_index and create is None:
                existing[key] = (ledger_id, name)
            steps.append((index, ledger_id, recorded, create, update))
        return steps, indexes, existing

    def run(self, steps: Iterable[Step], rows: list[R | None]) -> dict[type, list[Any]]:
        """Carry out steps on rows, and return the rows of secondary tables, by their class.

        Raises:
            LookupError: an event updates a row that no event created.
            Exception: whatever a handler raises.

        """
        secondary: dict[type, list[Any]] = {table.row: [] for table in self.secondary}
        for index, ledger_id, recorded, create, update in steps:
            if create is not None:
                rows[index] = create(ledger_id, recorded, recorded.event)
            if update is not None:
                row = rows[index]
                if row is None:
                    message = f"view {self.name} has no row {self.row_of(recorded)}, which the event would change"
                    raise LookupError(message)
                for extra in update(row, recorded, recorded.event) or ():
                    secondary[type(extra)].append(extra)
        return secondary

    def _handler(self, kind: type) -> tuple[Create[R] | None, Update[R] | None]:
        handler = self._handlers.get(kind)
        if handler is None:
            bases = (base for base in kind.__mro__ if base in self.creates or base in self.updates)
            nearest = next(bases, object)
            handler = self._handlers[kind] = (self.creates.get(nearest), self.updates.get(nearest))
        return handler
