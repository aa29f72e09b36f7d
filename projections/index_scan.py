"""A search of the event index: the positions that meet all conditions, in order, with bounded work.

Used by the audit trail and its exports. A search scans the index of one condition in order of position, and tests the
others on each row. It finds out which condition to scan by: each gets a turn, then the one that came farthest with as
many rows goes on. However rare the events are, a search ends after a number of rows or some time, and says where it
stopped, so that the next one can continue there.
"""

from __future__ import annotations

import time
from collections import Counter
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
# What an event may be searched by. Ids of creators and videos are turned into streams and codes first.
Field = Column | Literal["creator_id", "video_id"]

# With the type of each; the narrowest by nature first.
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
# How many rows one query scans: as long as it is not known which scan is best; later at least; and always at most.
_ROWS_FIRST: Final = 400
_ROWS_LEAST: Final = 100
_ROWS_MAX: Final = 16_000
# So many times as many rows are scanned as what is missing should lie in: another query costs more than some rows.
_ROWS_SPARE: Final = 1.25
# Clocks differ: an effective time may be this far ahead of the time of recording.
_CLOCKS_APART: Final = timedelta(hours=1)
# Beyond any position.
END: Final = 2**62


@dataclass(frozen=True, slots=True)
class Among:
    """The field has one of the values; negated: it has none of them, or no value."""

    field: Field
    values: tuple[str | UUID, ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Between:
    """The time is at or after `since` and before `until`, if they are given; negated: it is not."""

    field: Literal["recorded_at", "effective_at"]
    since: datetime | None = None
    until: datetime | None = None
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Positions:
    """The position lies in one of the ranges, both ends included; negated: in none of them."""

    ranges: tuple[tuple[int, int], ...]
    negated: bool = False

    def include(self, position: int) -> bool:
        """Tell whether a position lies in one of the ranges."""
        return any(first <= position <= last for first, last in self.ranges)


@dataclass(frozen=True, slots=True)
class RecordedLate:
    """The event was recorded longer than `delay` after it took effect; negated: it was not.

    A delay below `LATE_AFTER` would miss events that are not indexed as late.
    """

    delay: timedelta
    negated: bool = False


Condition = Among | Between | Positions | RecordedLate


@dataclass(frozen=True, slots=True)
class IndexPage:
    """The result of a search.

    Attributes:
        positions: in the order that was asked for.
        rows_scanned: number of rows read, up to the last one found or to the end of the search.
        stopped_at: the position after which the search gave up before it had found enough; None if it did not.

    """

    positions: list[int]
    rows_scanned: int
    stopped_at: int | None = None


@dataclass(frozen=True, slots=True)
class _Scan:
    """A scan of a range of positions: by the values of a column, through the late events, or row by row."""

    column: Column | None = None
    values: tuple[str | UUID, ...] = ()
    late: bool = False

    @property
    def width(self) -> int:
        """Number of values that are scanned side by side."""
        return max(len(self.values), 1)


@dataclass(slots=True)
class _Range:
    """A range of positions, its ends excluded, with the scans that it may be searched by, and the progress made."""

    low: int
    high: int
    scans: Sequence[_Scan]
    rows: int = _ROWS_FIRST
    ended: bool = False
    _paces: dict[_Scan, float] = field(default_factory=dict)
    _scanned: Counter[_Scan] = field(default_factory=Counter)
    _passed: Counter[_Scan] = field(default_factory=Counter)

    def scan(self, missing: int) -> _Scan:
        """Return the scan to go on with: each has a turn, then the one that came farthest with as many rows.

        A first turn of another one is left out where this one will likely find what is missing in as few rows.
        """
        for scan in self.scans:
            if scan not in self._paces or self._likely(scan, missing) <= _ROWS_FIRST:
                return scan
        return max(self.scans, key=self._paces.__getitem__)

    def wanted(self, scan: _Scan, missing: int) -> int:
        """Return how many rows to scan next, to find what is missing: at once, where some was found before."""
        if not self._passed[scan]:
            return self.rows // scan.width
        rows = min(max(self._likely(scan, missing), _ROWS_LEAST), self.rows * 4)
        return min(rows, _ROWS_MAX // scan.width)

    def _likely(self, scan: _Scan, missing: int) -> int:
        """Return in how many rows of a scan what is missing will likely be found, by what was found before."""
        passed = self._passed[scan]
        return int(missing * self._scanned[scan] / passed * _ROWS_SPARE) if passed else _ROWS_MAX

    def count(self, scan: _Scan, scanned_rows: int, passed: int) -> None:
        """Note that so many of the rows that a scan read met every condition."""
        self._scanned[scan] += scanned_rows
        self._passed[scan] += passed

    def advance(self, scan: _Scan, fetched: int, last: int | None, *, full: bool, descending: bool) -> None:
        """Note that a scan fetched rows up to the position `last`; if not `full`, there are no more."""
        if last is None or not full:
            self.ended = True
            return
        progress = self.high - last if descending else last - self.low
        if descending:
            self.high = last
        else:
            self.low = last
        self._paces[scan] = progress / fetched
        if len(self._paces) == len(self.scans):
            self.rows = min(self.rows * 4, _ROWS_MAX)


class _Budget:
    """The rows and the time that a search may still take."""

    def __init__(self, rows: int, seconds: float) -> None:
        self.rows_scanned = 0
        self._rows = rows
        self._ends_at = time.monotonic() + seconds
        self._begun_at = 0.0
        # By scan, the time of a row in its last query: one reads only an index, another a block for each row.
        self._seconds_a_row: dict[_Scan, float] = {}

    def is_spent(self, scan: _Scan) -> bool:
        """Return whether to give up before this scan goes on; because of time, only once each scan has had a turn."""
        if self.rows_scanned >= self._rows:
            return True
        return scan in self._seconds_a_row and time.monotonic() >= self._ends_at

    def begin(self, scan: _Scan) -> int:
        """Begin a query, and return how many rows it may take, by the time that a row took in the last one."""
        self._begun_at = time.monotonic()
        rows = self._rows - self.rows_scanned
        seconds = self._seconds_a_row.get(scan)
        return min(rows, int((self._ends_at - self._begun_at) / seconds)) if seconds else rows

    def end(self, scan: _Scan, scanned_rows: int) -> None:
        """End the query, which took this many rows."""
        self.rows_scanned += scanned_rows
        self._seconds_a_row[scan] = (time.monotonic() - self._begun_at) / max(scanned_rows, 1)


_SCAN: Final = sql.SQL("""
    SELECT count(*), {last}(l.position), array_agg(l.position ORDER BY l.position {direction}) FILTER (WHERE l.passes)
    FROM (
        SELECT h.position, {passes} AS passes
        FROM ({scanned}) h
        ORDER BY h.position {direction}
        LIMIT %(rows)s
    ) l
""")

# Compared as pairs, so that only the column's own index gives the order: for a value that it believes to be common, the
# planner would otherwise scan the whole ledger.
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
    AND type IN ('PermissionEnabled', 'PermissionDisabled')
"""

_CODES_OF_VIDEOS: Final = """
    SELECT DISTINCT code_id
    FROM views.history
    WHERE ledger_id = %s
    AND video_id = ANY (%s)
    AND type IN ('CodeGenerated', 'VideoBound')
"""

_LAST: Final = """
    SELECT coalesce(max(position), 0)
    FROM views.history
    WHERE ledger_id = %s
"""

# A binary search: recorded_at never decreases with position. An event that the view skips counts as recorded with the
# one before it.
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
    """Return the positions that meet every condition, with after < position < before, at most `limit` of them.

    Args:
        cur: bound to the ledger; rows as tuples.
        ledger_id: the ledger.
        conditions: that an event must meet; an `Among` without values matches nothing, negated everything.
        limit: maximum number of positions.
        after: only later positions.
        before: only earlier positions.
        descending: newest first.
        max_rows_scanned: the number of rows after which the search gives up.
        max_seconds: the seconds after which it gives up.

    """
    if any(_rules_out_streams(condition) for condition in conditions):
        # What the view reads from here on may be of a stream that is not found below, and would pass.
        before = min(before, await _end(cur, ledger_id))
    ranges, passes = await _plan(cur, ledger_id, conditions, after, before)
    found: list[int] = []
    budget = _Budget(max_rows_scanned, max_seconds)
    for within in reversed(ranges) if descending else ranges:
        while not within.ended:
            missing = limit - len(found)
            scan = within.scan(missing)
            if budget.is_spent(scan):
                return IndexPage(found, budget.rows_scanned, within.high if descending else within.low)
            rows = _rows(within, scan, passes, missing, budget.begin(scan))
            parameters = {"ledger_id": ledger_id, "low": within.low, "high": within.high, "rows": rows}
            await cur.execute(_scan_query(scan, passes, descending=descending), {**parameters, **_values(scan, passes)})
            scanned_rows, last, passed = await cur.fetchone() or (0, None, None)
            # With several values, so many rows are fetched for each, to find those that come first among all.
            full = scanned_rows == rows
            fetched = scanned_rows * scan.width if full else scanned_rows
            budget.end(scan, fetched)
            within.count(scan, scanned_rows, len(passed or ()))
            found += passed or ()
            if len(found) >= limit:
                return IndexPage(found[:limit], budget.rows_scanned)
            within.advance(scan, fetched, last, full=full, descending=descending)
    return IndexPage(found, budget.rows_scanned)


async def estimate(
    cur: AsyncCursor[Any], ledger_id: int, conditions: Collection[Condition], *, after: int = 0, before: int = END
) -> int:
    """Return the planner's estimate of how many positions meet the conditions."""
    ranges, passes = await _plan(cur, ledger_id, conditions, after, before)
    total = 0
    for within in ranges:
        scan = within.scans[0]
        # A time that has already narrowed the range must not narrow the estimate a second time.
        by_time = scan == _Scan() and within.high < before
        counted = [c for c in passes if not (by_time and isinstance(c, Between) and not c.negated)]
        query = _ESTIMATE.format(passes=_all_of(counted, sql.SQL("h.late") if scan.late else None))
        await cur.execute(
            query, {"ledger_id": ledger_id, "low": within.low, "high": within.high, **_values(scan, counted)}
        )
        row = await cur.fetchone()
        total += 0 if row is None else int(row[0][0]["Plan"]["Plan Rows"])
    return total


async def _plan(
    cur: AsyncCursor[Any], ledger_id: int, conditions: Collection[Condition], after: int, before: int
) -> tuple[list[_Range], list[Condition]]:
    """Return the ranges to search, in order of position, and the conditions that their rows must meet."""
    low, high = after, before
    passes: list[Condition] = []
    late_from: int | None = None
    positions = [(low + 1, high - 1)]
    for condition in conditions:
        if isinstance(condition, Among):
            passes.append(_without_repeats(await _of_columns(cur, ledger_id, condition)))
        elif condition.negated:
            passes.append(condition)
        elif isinstance(condition, Positions):
            positions = _intersection(positions, condition.ranges)
        elif isinstance(condition, RecordedLate):
            passes.append(condition)
            late_from = 0
        elif condition.field == "recorded_at":
            low = max(low, await _last_before(cur, ledger_id, condition.since, 0))
            high = min(high, await _last_before(cur, ledger_id, condition.until, END - 1) + 1)
        else:
            passes.append(condition)
            since, until = condition.since, condition.until
            # No event is recorded before it takes effect. Long after `until`, only late events can still have taken
            # effect before it.
            low = max(low, await _last_before(cur, ledger_id, since and since - _CLOCKS_APART, 0))
            if until is not None:
                on_time = await _last_before(cur, ledger_id, until + LATE_AFTER, END - 1)
                late_from = on_time if late_from is None else min(late_from, on_time)
    given = [condition for condition in passes if isinstance(condition, Among) and not condition.negated]
    if low + 1 >= high or not all(condition.values for condition in given):
        return [], passes
    given.sort(key=lambda condition: _PRECEDENCE.index(condition.field))  # type: ignore[arg-type] # a column by now
    scans = [_Scan(condition.field, condition.values) for condition in given]  # type: ignore[arg-type] # as above
    if scans or late_from is None:
        ranges = [_Range(low, high, scans or [_Scan()])]
    else:
        prompt = _Range(low, min(high, late_from + 1), [_Scan()])
        ranges = [prompt, _Range(max(low, late_from), high, [_Scan(late=True)])]
    parts = [
        _Range(max(within.low, first - 1), min(within.high, last + 1), within.scans)
        for within in ranges
        for first, last in positions
    ]
    return [part for part in parts if part.low + 1 < part.high], passes


def _rules_out_streams(condition: Condition) -> bool:
    return isinstance(condition, Among) and condition.negated and condition.field in {"creator_id", "video_id"}


async def _end(cur: AsyncCursor[Any], ledger_id: int) -> int:
    """Return the position after the last one that the view has."""
    await cur.execute(_LAST, (ledger_id,))
    row = await cur.fetchone()
    return 1 if row is None else int(row[0]) + 1


def _intersection(ranges: Sequence[tuple[int, int]], others: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the positions that both have, as ranges that do not overlap, in order."""
    both = sorted(
        (max(first, start), min(last, end))
        for first, last in ranges
        for start, end in others
        if max(first, start) <= min(last, end)
    )
    merged: list[tuple[int, int]] = []
    for first, last in both:
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return merged


async def _of_columns(cur: AsyncCursor[Any], ledger_id: int, condition: Among) -> Among:
    """Return the condition on the column by which events of creators or videos are found."""
    if condition.field not in {"creator_id", "video_id"}:
        return condition
    column: Column = "creator_stream" if condition.field == "creator_id" else "code_id"
    query = _STREAMS_OF_CREATORS if condition.field == "creator_id" else _CODES_OF_VIDEOS
    await cur.execute(query, (ledger_id, list(condition.values)))
    return Among(column, tuple(row[0] for row in await cur.fetchall()), condition.negated)


def _without_repeats(condition: Among) -> Among:
    """Return the same condition with each value once: a scan reads the rows of every value that it is given."""
    return Among(condition.field, tuple(dict.fromkeys(condition.values)), condition.negated)


async def _last_before(cur: AsyncCursor[Any], ledger_id: int, moment: datetime | None, otherwise: int) -> int:
    """Return the last position recorded before a moment, 0 if there is none; `otherwise` if no moment is given."""
    if moment is None:
        return otherwise
    await cur.execute(_LAST_BEFORE, {"ledger_id": ledger_id, "moment": moment})
    row = await cur.fetchone()
    return 0 if row is None else int(row[0])


def _rows(within: _Range, scan: _Scan, passes: Sequence[Condition], missing: int, allowed: int) -> int:
    """Return how many rows to scan next, at least one; as many are fetched for each value of the scan."""
    all_match = not passes or (scan.column is not None and passes == [Among(scan.column, scan.values)])
    rows = missing if all_match else within.wanted(scan, missing)
    return max(min(rows, allowed // scan.width), 1)


def _scan_query(scan: _Scan, passes: Sequence[Condition], *, descending: bool) -> sql.Composed:
    direction = sql.SQL("DESC" if descending else "ASC")
    if scan.column is None:
        late = sql.SQL("AND h.late" if scan.late else "")
        scanned = _BY_POSITION.format(late=late, direction=direction)
    else:
        scanned = _BY_COLUMN.format(column=sql.Identifier(scan.column), type=_COLUMNS[scan.column], direction=direction)
    last = sql.SQL("min" if descending else "max")
    return _SCAN.format(last=last, direction=direction, scanned=scanned, passes=_all_of(passes))


def _all_of(passes: Sequence[Condition], secondary: sql.SQL | None = None) -> sql.Composed:
    """Return the expression that a row `h` meets every condition: true or false, never null."""
    tests: list[sql.Composable] = [sql.SQL("true") if secondary is None else secondary]
    for i, condition in enumerate(passes):
        if isinstance(condition, Positions):
            test: sql.Composable = _in_ranges(i)
        elif isinstance(condition, RecordedLate):
            test = sql.SQL("h.recorded_at - h.effective_at > {}").format(sql.Placeholder(f"delay_{i}"))
        elif isinstance(condition, Among):
            column = sql.Identifier("h", condition.field)
            type_ = _COLUMNS[condition.field]  # type: ignore[index] # a column by now
            test = sql.SQL("{} = ANY ({}::{}[])").format(column, sql.Placeholder(f"any_{i}"), type_)
        else:
            test = _between(condition, sql.Identifier("h", condition.field), i)
        tests.append(sql.SQL("({}) IS NOT TRUE" if condition.negated else "({}) IS TRUE").format(test))
    return sql.SQL(" AND ").join(tests)


def _in_ranges(i: int) -> sql.Composed:
    return sql.SQL(
        "EXISTS (SELECT FROM unnest({}::bigint[], {}::bigint[]) AS r (first, last) "
        "WHERE h.position BETWEEN r.first AND r.last)"
    ).format(sql.Placeholder(f"first_{i}"), sql.Placeholder(f"last_{i}"))


def _between(condition: Between, column: sql.Identifier, i: int) -> sql.Composable:
    since = sql.SQL("{} >= {}").format(column, sql.Placeholder(f"since_{i}"))
    until = sql.SQL("{} < {}").format(column, sql.Placeholder(f"until_{i}"))
    sides = [side for side, moment in ((since, condition.since), (until, condition.until)) if moment is not None]
    return sql.SQL(" AND ").join(sides) if sides else sql.SQL("true")


def _values(scan: _Scan, passes: Sequence[Condition]) -> dict[str, Any]:
    given: dict[str, Any] = {"values": list(scan.values)}
    for i, condition in enumerate(passes):
        if isinstance(condition, Among):
            given[f"any_{i}"] = list(condition.values)
        elif isinstance(condition, Positions):
            given |= {f"first_{i}": [r[0] for r in condition.ranges], f"last_{i}": [r[1] for r in condition.ranges]}
        elif isinstance(condition, RecordedLate):
            given[f"delay_{i}"] = condition.delay
        else:
            given |= {f"since_{i}": condition.since, f"until_{i}": condition.until}
    return given
