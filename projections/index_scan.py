"""Which positions pass these conditions, looked for in the history?

Read by the audit trail and its exports. A search walks the history by one of its conditions, in order of position, and
looks at the others in the rows on its way. Which condition it walks by it finds out: each gets a turn, then the one
that came farthest goes on, so that two of which each alone is common still meet soon. However rare what is asked for,
a search ends: after so many rows, or so long a time, it says where it stopped, and the next goes on from there.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal
from uuid import UUID

from psycopg import sql

from projections.event_index import LATE_AFTER

if TYPE_CHECKING:
    from psycopg import AsyncCursor

Column = Literal[
    "code_id", "creator_stream", "advertiser_id", "brand_id", "refused", "channel", "actor", "type", "source"
]
# What an event may be searched by; the creator's and the video's own ids are turned into streams and codes first.
Field = Column | Literal["creator_id", "video_id"]

# The narrowest by nature first, each with its type.
_COLUMNS: Final[dict[Column, sql.SQL]] = {
    "code_id": sql.SQL("uuid"),
    "creator_stream": sql.SQL("uuid"),
    "advertiser_id": sql.SQL("text"),
    "brand_id": sql.SQL("text"),
    "refused": sql.SQL("text"),
    "channel": sql.SQL("text"),
    "actor": sql.SQL("text"),
    "type": sql.SQL("text"),
    "source": sql.SQL("text"),
}
_PRECEDENCE: Final = list(_COLUMNS)

MAX_ROWS_SCANNED: Final = 50_000
MAX_SECONDS: Final = 0.25
# Rows that are looked at with one query: so many to find out by which column to walk, and later at most.
_AT_FIRST: Final = 400
_AT_MOST: Final = 16_000
# Clocks differ: an effective time may lie this far ahead of the moment of recording.
_CLOCKS_APART: Final = timedelta(hours=1)
# Beyond any position.
END: Final = 2**62


@dataclass(frozen=True, slots=True)
class Among:
    """The field is one of the values; negated: it is none of them, or there is none."""

    field: Field
    values: tuple[str | UUID, ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Between:
    """The time is `since` or later and before `until`, each where it is given; negated: it is not."""

    field: Literal["recorded_at", "effective_at"]
    since: datetime | None = None
    until: datetime | None = None
    negated: bool = False


Condition = Among | Between


@dataclass(frozen=True, slots=True)
class IndexPage:
    """What a search came to.

    Attributes:
        positions: in the order asked for.
        rows_scanned: rows that were fetched, to the last one found or to where the search ended.
        stopped_at: the position after which it gave up before it had found enough; None where it did not.

    """

    positions: list[int]
    rows_scanned: int
    stopped_at: int | None = None


@dataclass(frozen=True, slots=True)
class _Walk:
    """One way through a range of positions: by a column's values, by what was recorded late, or row by row."""

    column: Column | None = None
    values: tuple[str | UUID, ...] = ()
    late: bool = False

    @property
    def width(self) -> int:
        """How many values it follows side by side."""
        return max(len(self.values), 1)


@dataclass(slots=True)
class _Range:
    """A range of positions, its ends excluded, that may be walked in any of several ways; and how far it was."""

    low: int
    high: int
    walks: Sequence[_Walk]
    rows: int = _AT_FIRST
    ended: bool = False
    _paces: dict[_Walk, float] = field(default_factory=dict)

    def walk(self) -> _Walk:
        """Return how to go on: each way has a turn, then the one that came farthest with as many rows."""
        for walk in self.walks:
            if walk not in self._paces:
                return walk
        return max(self.walks, key=self._paces.__getitem__)

    def went(self, walk: _Walk, fetched: int, last: int | None, *, full: bool, descending: bool) -> None:
        """Take note of a look that fetched so many rows up to the position `last`; not `full`, there are no more."""
        if last is None or not full:
            self.ended = True
            return
        came = self.high - last if descending else last - self.low
        if descending:
            self.high = last
        else:
            self.low = last
        self._paces[walk] = came / fetched
        if len(self._paces) == len(self.walks):
            self.rows = min(self.rows * 4, _AT_MOST)


class _Bounds:
    """How much a search may look through, and how long."""

    def __init__(self, rows: int, seconds: float) -> None:
        self.rows_scanned = 0
        self._rows = rows
        self._ends_at = time.monotonic() + seconds
        self._looks_at = 0.0
        # By walk, what a row took at its last look: one reads an index alone, another a block for each row.
        self._seconds_a_row: dict[_Walk, float] = {}

    def reached(self, walk: _Walk) -> bool:
        """Return whether to give up before this walk goes on; for time, only once each way has had a turn."""
        if self.rows_scanned >= self._rows:
            return True
        return walk in self._seconds_a_row and time.monotonic() >= self._ends_at

    def begin(self, walk: _Walk) -> int:
        """Begin a look: return how many rows it may take, by the time that a row took the last one."""
        self._looks_at = time.monotonic()
        rows = self._rows - self.rows_scanned
        seconds = self._seconds_a_row.get(walk)
        return min(rows, int((self._ends_at - self._looks_at) / seconds)) if seconds else rows

    def end(self, walk: _Walk, looked: int) -> None:
        """End the look, which has taken so many rows."""
        self.rows_scanned += looked
        self._seconds_a_row[walk] = (time.monotonic() - self._looks_at) / max(looked, 1)


_LOOK: Final = sql.SQL("""
    SELECT count(*), {last}(l.position), array_agg(l.position ORDER BY l.position {direction}) FILTER (WHERE l.passes)
    FROM (
        SELECT h.position, {passes} AS passes
        FROM ({walked}) h
        ORDER BY h.position {direction}
        LIMIT %(rows)s
    ) l
""")

# Compared as pairs, so that no index but the column's own gives the order: the planner would else walk the whole
# ledger for a value that it takes to be common.
_BY_COLUMN: Final = sql.SQL("""
    SELECT h.*
    FROM unnest(%(values)s::{type}[]) AS x (value)
    CROSS JOIN LATERAL (
        SELECT h.*
        FROM views.history h
        WHERE h.ledger_id = %(ledger_id)s
        AND (h.{column}, h.position) > (x.value, %(low)s)
        AND (h.{column}, h.position) < (x.value, %(high)s)
        AND h.{column} IS NOT NULL
        ORDER BY h.{column} {direction}, h.position {direction}
        LIMIT %(rows)s
    ) h
""")

_BY_POSITION: Final = sql.SQL("""
    SELECT h.*
    FROM views.history h
    WHERE h.ledger_id = %(ledger_id)s
    AND h.position > %(low)s
    AND h.position < %(high)s
    {late}
    ORDER BY h.position {direction}
    LIMIT %(rows)s
""")

_ESTIMATE: Final = sql.SQL("""
    EXPLAIN (FORMAT JSON)
    SELECT
    FROM views.history h
    WHERE h.ledger_id = %(ledger_id)s
    AND h.position > %(low)s
    AND h.position < %(high)s
    AND {passes}
""")

_STREAMS_OF_CREATORS: Final = """
    SELECT DISTINCT creator_stream
    FROM views.history
    WHERE ledger_id = %s
    AND creator_id = ANY (%s)
    AND type = 'PermissionEnabled'
"""

_CODES_OF_VIDEOS: Final = """
    SELECT code_id
    FROM views.history
    WHERE ledger_id = %s
    AND video_id = ANY (%s)
    AND type = 'CodeGenerated'
"""

# By halving: recorded_at never decreases with position. An event that the history was told to skip counts as recorded
# with the one before it.
_LAST_BEFORE: Final = """
    WITH RECURSIVE halves (low, high) AS (
        SELECT 0::bigint, coalesce(max(position), 0)
        FROM views.history
        WHERE ledger_id = %(ledger_id)s
        UNION ALL
        SELECT CASE WHEN h.before THEN s.middle ELSE s.low END,
               CASE WHEN h.before THEN s.high ELSE s.middle - 1 END
        FROM (SELECT low, high, (low + high + 1) / 2 AS middle FROM halves WHERE low < high) s
        CROSS JOIN LATERAL (
            SELECT coalesce((
                SELECT recorded_at
                FROM views.history
                WHERE ledger_id = %(ledger_id)s
                AND position <= s.middle
                ORDER BY position DESC
                LIMIT 1
            ) < %(moment)s, true) AS before
        ) h
    )
    SELECT low
    FROM halves
    WHERE low = high
"""


async def search(
    cur: AsyncCursor[Any],
    ledger_id: int,
    conditions: Collection[Condition],
    *,
    limit: int,
    after: int = 0,
    before: int = END,
    descending: bool = False,
    max_rows_scanned: int = MAX_ROWS_SCANNED,
    max_seconds: float = MAX_SECONDS,
) -> IndexPage:
    """Return the positions that pass every condition, with after < position < before, at most `limit` of them.

    Args:
        cur: bound to the ledger; rows as tuples.
        ledger_id: the ledger.
        conditions: what an event must fulfil; an `Among` without values matches nothing, negated everything.
        limit: positions at most.
        after: only later positions.
        before: only earlier positions.
        descending: newest first.
        max_rows_scanned: rows after which it gives up.
        max_seconds: seconds after which it gives up.

    """
    ranges, passes = await _plan(cur, ledger_id, conditions, after, before)
    found: list[int] = []
    bounds = _Bounds(max_rows_scanned, max_seconds)
    for within in reversed(ranges) if descending else ranges:
        while not within.ended:
            walk, missing = within.walk(), limit - len(found)
            if bounds.reached(walk):
                return IndexPage(found, bounds.rows_scanned, within.high if descending else within.low)
            rows = _rows(within, walk, passes, missing, bounds.begin(walk))
            parameters = {"ledger_id": ledger_id, "low": within.low, "high": within.high, "rows": rows}
            await cur.execute(_look(walk, passes, descending=descending), {**parameters, **_values(walk, passes)})
            looked, last, passed = await cur.fetchone() or (0, None, None)
            # Of several values, each had so many rows fetched for what comes first of them all.
            full = looked == rows
            fetched = looked * walk.width if full else looked
            bounds.end(walk, fetched)
            found += passed or ()
            if len(found) >= limit:
                return IndexPage(found[:limit], bounds.rows_scanned)
            within.went(walk, fetched, last, full=full, descending=descending)
    return IndexPage(found, bounds.rows_scanned)


async def estimate(
    cur: AsyncCursor[Any], ledger_id: int, conditions: Collection[Condition], *, after: int = 0, before: int = END
) -> int:
    """Return how many positions pass, as the planner's statistics have it: nothing is counted."""
    ranges, passes = await _plan(cur, ledger_id, conditions, after, before)
    total = 0
    for within in ranges:
        walk = within.walks[0]
        # In a range that follows from a time, that time says nothing more: counted twice it would halve the half.
        by_time = walk == _Walk() and within.high < before
        counted = [c for c in passes if not (by_time and isinstance(c, Between) and not c.negated)]
        query = _ESTIMATE.format(passes=_all_of(counted, sql.SQL("h.late") if walk.late else None))
        await cur.execute(
            query, {"ledger_id": ledger_id, "low": within.low, "high": within.high, **_values(walk, counted)}
        )
        row = await cur.fetchone()
        total += 0 if row is None else int(row[0][0]["Plan"]["Plan Rows"])
    return total


async def _plan(
    cur: AsyncCursor[Any], ledger_id: int, conditions: Collection[Condition], after: int, before: int
) -> tuple[list[_Range], list[Condition]]:
    """Return the ranges to look through, in order of position, and what the rows there must fulfil."""
    low, high = after, before
    passes: list[Condition] = []
    late_from: int | None = None
    for condition in conditions:
        if isinstance(condition, Among):
            passes.append(_without_repeats(await _of_columns(cur, ledger_id, condition)))
        elif condition.negated:
            passes.append(condition)
        elif condition.field == "recorded_at":
            low = max(low, await _last_before(cur, ledger_id, condition.since, 0))
            high = min(high, await _last_before(cur, ledger_id, condition.until, END - 1) + 1)
        else:
            passes.append(condition)
            since, until = condition.since, condition.until
            # Nothing is recorded before it takes effect. After its time has passed, only what is late still may be.
            low = max(low, await _last_before(cur, ledger_id, since and since - _CLOCKS_APART, 0))
            if until is not None:
                on_time = await _last_before(cur, ledger_id, until + LATE_AFTER, END - 1)
                late_from = on_time if late_from is None else min(late_from, on_time)
    given = [condition for condition in passes if isinstance(condition, Among) and not condition.negated]
    if low + 1 >= high or not all(condition.values for condition in given):
        return [], passes
    given.sort(key=lambda condition: _PRECEDENCE.index(condition.field))  # type: ignore[arg-type] # a column by now
    walks = [_Walk(condition.field, condition.values) for condition in given]  # type: ignore[arg-type] # as above
    if walks or late_from is None:
        return [_Range(low, high, walks or [_Walk()])], passes
    ranges = [_Range(low, min(high, late_from + 1), [_Walk()]), _Range(max(low, late_from), high, [_Walk(late=True)])]
    return [within for within in ranges if within.low + 1 < within.high], passes


async def _of_columns(cur: AsyncCursor[Any], ledger_id: int, condition: Among) -> Among:
    """Return a condition on the column by which a creator's or a video's events are found."""
    if condition.field not in {"creator_id", "video_id"}:
        return condition
    column: Column = "creator_stream" if condition.field == "creator_id" else "code_id"
    query = _STREAMS_OF_CREATORS if condition.field == "creator_id" else _CODES_OF_VIDEOS
    await cur.execute(query, (ledger_id, list(condition.values)))
    return Among(column, tuple(row[0] for row in await cur.fetchall()), condition.negated)


def _without_repeats(condition: Among) -> Among:
    """Return the same condition with each value once: a walk follows every one that it is given."""
    return Among(condition.field, tuple(dict.fromkeys(condition.values)), condition.negated)


async def _last_before(cur: AsyncCursor[Any], ledger_id: int, moment: datetime | None, otherwise: int) -> int:
    """Return the last position recorded before a moment, 0 where there is none; `otherwise` where no moment is."""
    if moment is None:
        return otherwise
    await cur.execute(_LAST_BEFORE, {"ledger_id": ledger_id, "moment": moment})
    row = await cur.fetchone()
    return 0 if row is None else int(row[0])


def _rows(within: _Range, walk: _Walk, passes: Sequence[Condition], missing: int, allowed: int) -> int:
    """Return how many rows to look at next, at least one; as many are fetched for each of the walk's values."""
    sure = not passes or (walk.column is not None and passes == [Among(walk.column, walk.values)])
    rows = missing if sure else within.rows // walk.width
    return max(min(rows, allowed // walk.width), 1)


def _look(walk: _Walk, passes: Sequence[Condition], *, descending: bool) -> sql.Composed:
    direction = sql.SQL("DESC" if descending else "ASC")
    if walk.column is None:
        late = sql.SQL("AND h.late" if walk.late else "")
        walked = _BY_POSITION.format(late=late, direction=direction)
    else:
        walked = _BY_COLUMN.format(column=sql.Identifier(walk.column), type=_COLUMNS[walk.column], direction=direction)
    last = sql.SQL("min" if descending else "max")
    return _LOOK.format(last=last, direction=direction, walked=walked, passes=_all_of(passes))


def _all_of(passes: Sequence[Condition], secondary: sql.SQL | None = None) -> sql.Composed:
    """Return the expression that a row `h` fulfils every condition: true or false, never null."""
    tests: list[sql.Composable] = [sql.SQL("true") if secondary is None else secondary]
    for i, condition in enumerate(passes):
        column = sql.Identifier("h", condition.field)
        if isinstance(condition, Among):
            type_ = _COLUMNS[condition.field]  # type: ignore[index] # a column by now
            test: sql.Composable = sql.SQL("{} = ANY ({}::{}[])").format(column, sql.Placeholder(f"any_{i}"), type_)
        else:
            test = _between(condition, column, i)
        tests.append(sql.SQL("({}) IS NOT TRUE" if condition.negated else "({}) IS TRUE").format(test))
    return sql.SQL(" AND ").join(tests)


def _between(condition: Between, column: sql.Identifier, i: int) -> sql.Composable:
    since = sql.SQL("{} >= {}").format(column, sql.Placeholder(f"since_{i}"))
    until = sql.SQL("{} < {}").format(column, sql.Placeholder(f"until_{i}"))
    sides = [side for side, moment in ((since, condition.since), (until, condition.until)) if moment is not None]
    return sql.SQL(" AND ").join(sides) if sides else sql.SQL("true")


def _values(walk: _Walk, passes: Sequence[Condition]) -> dict[str, Any]:
    given: dict[str, Any] = {"values": list(walk.values)}
    for i, condition in enumerate(passes):
        if isinstance(condition, Among):
            given[f"any_{i}"] = list(condition.values)
        else:
            given |= {f"since_{i}": condition.since, f"until_{i}": condition.until}
    return given
