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

from projections.table import Table

if TYPE_CHECKING:
    from psycopg import AsyncCursor

    from domain.recorded import Recorded

R = TypeVar("R")

# Events with their ledgers, by ledger and then by position.
Page = Sequence[tuple[int, "Recorded"]]

# An event's handler is that of its class, or else of the nearest class that it derives from.
Begin = Callable[[int, "Recorded", Any], R]
Change = Callable[[R, "Recorded", Any], Iterable[Any] | None]

# A row's ledger, and what names the row within it.
Key = tuple[int, Hashable]
_Step = tuple[Key, "Recorded", Begin[Any] | None, Change[Any] | None]

# What belongs to tables that are being filled beside those that are read.
NEXT: Final = "_next"

# How far each view has read each ledger, and what became of it; under its name for what is read, under its name with
# NEXT for what is being filled beside it. Durable, hence created by a migration.
DURABLE_DDL: Final = """
CREATE TABLE view_versions (
    view                text PRIMARY KEY,
    version             int NOT NULL,
    state               text NOT NULL CHECK (state IN ('following', 'building', 'failed')),
    error               text,
    failed_ledger_id    int,
    failed_position     bigint,
    changed_at          timestamptz NOT NULL DEFAULT now()
);

-- One row a ledger, updated with every page: the free space lets each new version stay in its block.
CREATE TABLE view_positions (
    view                text NOT NULL,
    version             int NOT NULL,
    ledger_id           int NOT NULL,
    position            bigint NOT NULL,
    recorded_at         timestamptz,
    PRIMARY KEY (view, version, ledger_id)
) WITH (fillfactor = 20);

ALTER TABLE view_positions ENABLE ROW LEVEL SECURITY;
ALTER TABLE view_positions FORCE ROW LEVEL SECURITY;
CREATE POLICY one_ledger ON view_positions TO sparkledger_api
    USING (ledger_id = nullif(current_setting('sparkledger.ledger', true), '')::int);
CREATE POLICY every_ledger ON view_positions TO sparkledger_worker
    USING (true);
GRANT SELECT ON view_versions, view_positions TO sparkledger_api;
GRANT SELECT, INSERT, UPDATE, DELETE ON view_versions, view_positions TO sparkledger_worker;
"""


@dataclass(frozen=True, eq=False)
class View(Generic[R]):
    """One view.

    Attributes:
        name: the question's name, and its first table's.
        version: of its rows: raised whenever the same events come to other rows, or to other columns.
        table: of the rows that events begin and change.
        row_of: which row a recorded event belongs to: the value of the second column of the table's key.
        begins: what makes a row of an event, in place of one that may be there.
        changes: what an event does to a row that is there; it may return rows for `further` tables.
        further: tables of what follows from changes, such as an index over ids.

    """

    name: str
    version: int
    table: Table[R]
    row_of: Callable[[Any], Hashable]
    begins: Mapping[type, Begin[R]]
    changes: Mapping[type, Change[R]] = field(default_factory=dict)
    further: Sequence[Table[Any]] = ()
    _handlers: dict[type, tuple[Begin[R] | None, Change[R] | None]] = field(default_factory=dict, init=False)

    @property
    def tables(self) -> list[Table[Any]]:
        """All its tables."""
        return [self.table, *self.further]

    async def fold(self, cur: AsyncCursor[Any], page: Page, suffix: str = "") -> None:
        """Bring the tables forward by a page of events, in the caller's transaction.

        Raises:
            LookupError: an event changes a row that no event began.
            Exception: whatever a handler raises.

        """
        steps = self._steps(page)
        if not steps:
            return
        rows: dict[Key, R] = {}
        standing = _not_begun_by(steps) if self.changes else ()
        if standing:
            rows = {self.table.key_of(row): row for row in await self.table.load(cur, standing, suffix)}
        further: dict[type, dict[Any, None]] = {table.row: {} for table in self.further}
        for key, recorded, begin, change in steps:
            if begin is not None:
                rows[key] = begin(key[0], recorded, recorded.event)
            elif change is not None:
                for extra in change(self._standing(rows, key), recorded, recorded.event) or ():
                    further[type(extra)][extra] = None
        await self.table.write(cur, rows.values(), suffix)
        for table in self.further:
            if further[table.row]:
                await table.write(cur, further[table.row], suffix)

    def _steps(self, page: Page) -> list[_Step]:
        """Return the events that this view reads, each with its row's key and its handler."""
        steps: list[_Step] = []
        for ledger_id, recorded in page:
            begin, change = self._handler(type(recorded.event))
            if begin is not None or change is not None:
                steps.append(((ledger_id, self.row_of(recorded)), recorded, begin, change))
        return steps

    def _standing(self, rows: Mapping[Key, R], key: Key) -> R:
        row = rows.get(key)
        if row is None:
            raise LookupError(f"view {self.name} has no row {key[1]}, which the event would change")
        return row

    def _handler(self, kind: type) -> tuple[Begin[R] | None, Change[R] | None]:
        found = self._handlers.get(kind)
        if found is None:
            bases = (base for base in kind.__mro__ if base in self.begins or base in self.changes)
            nearest = next(bases, object)
            found = self._handlers[kind] = (self.begins.get(nearest), self.changes.get(nearest))
        return found


def _not_begun_by(steps: Sequence[_Step]) -> list[Key]:
    """Return the rows that some step changes before any begins it: those that must be there."""
    seen: set[Key] = set()
    standing = []
    for key, _, begin, _ in steps:
        if key not in seen:
            seen.add(key)
            if begin is None:
                standing.append(key)
    return standing


@dataclass(frozen=True, slots=True)
class Status:
    """What became of a view; `failed_…` name the event that stopped it, where one did.

    `state` is "following", "failed", or "building" for what is being filled beside the view, under its name + `NEXT`.
    """

    view: str
    version: int
    state: str
    error: str | None
    failed_ledger_id: int | None
    failed_position: int | None
    changed_at: datetime


@dataclass(frozen=True, slots=True)
class Reached:
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

_STATUSES: Final = """
SELECT view, version, state, error, failed_ledger_id, failed_position, changed_at
FROM view_versions
ORDER BY view
"""


async def reached(cur: AsyncCursor[Any], ledger_id: int, *views: str) -> int:
    """Return the position that all these views have read up to, 0 where one has not begun.

    Ask before reading rows: then they are at least as new as the answer says.
    """
    await cur.execute(_REACHED, (list(views), ledger_id))
    row = await cur.fetchone()
    return int(row[0]) if row else 0


async def positions(cur: AsyncCursor[Any], ledger_id: int) -> list[Reached]:
    """Return how far every view has read a ledger, by name."""
    await cur.execute(_POSITIONS, (ledger_id,))
    return [Reached(*row) for row in await cur.fetchall()]


async def statuses(cur: AsyncCursor[Any]) -> list[Status]:
    """Return what became of every view, by name."""
    await cur.execute(_STATUSES)
    return [Status(*row) for row in await cur.fetchall()]
