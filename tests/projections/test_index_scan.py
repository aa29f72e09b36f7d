"""The search of the event index: it finds what a scan of every row would find."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from random import Random
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from domain.recorded import RecordedEvent
from domain.values import Actor
from projections import event_index, index_scan
from projections.event_index import EventIndexRow
from projections.index_scan import Among, Between, Condition, Positions, RecordedLate
from tests import given
from tests.given import ADVERTISER, BRAND, CODE, CREATOR, NOW, OTHER_CODE, OTHER_SECRET, VIDEO, Story
from tests.projections.conftest import Cursor, Followed
from tests.projections.memory_log import MemoryLog, happening

DAY = timedelta(days=1)


def told() -> Story:
    """Two creators with a code each on two videos, a day between events, and a second key.

    1 on(creator-1) 2 generated 3 shared 4 redeemed 5 on(creator-2) 6 generated 7 shared 8 redeemed 9 revoked(the first)
    10 refused, of the first, which was tried half a day later; 11 shared(the second) three days before it was recorded
    """
    story = given.unknown()
    other = Actor(key_id="key-2", role="operator")
    for command, actor in (
        (given.permission(), given.OPERATOR),
        (given.generate(), given.OPERATOR),
        (given.share(), given.OPERATOR),
        (given.redeem(), given.OPERATOR),
        (given.permission(creator_id="creator-2"), other),
        (given.generate(OTHER_CODE, creator_id="creator-2", video_id="video-2", secret=OTHER_SECRET), other),
        (given.share(OTHER_CODE, brand_id="brand-2", advertiser_id=ADVERTISER), other),
        (given.redeem(OTHER_SECRET, advertiser_id="advertiser-2"), other),
        (given.revoke(), other),
    ):
        story.when(command, actor=actor)
        story.later(days=1)
    assert story.outcome(given.redeem(advertiser_id="advertiser-3")) == "RedemptionRefused code_revoked"
    story.when(given.share(OTHER_CODE, brand_id="brand-3", channel="email"), effective_at=story.clock() - 3 * DAY)
    return story


def one(field: Any, *values: str | UUID) -> Among:
    return Among(field, values)


def no(field: Any, *values: str | UUID) -> Among:
    return Among(field, values, negated=True)


CONDITIONS: list[tuple[list[Condition], list[int]]] = [
    ([], [*range(1, 12)]),
    ([one("code_id", CODE)], [2, 3, 4, 9, 10]),
    ([one("creator_id", CREATOR)], [1, 2, 3, 4, 9, 10]),
    ([one("creator_id", "creator-2")], [5, 6, 7, 8, 11]),
    ([one("creator_id", CREATOR, "creator-2"), one("type", "Shared")], [3, 7, 11]),
    ([one("creator_id", "nobody")], []),
    ([one("creator_id")], []),
    ([no("creator_id", CREATOR)], [5, 6, 7, 8, 11]),
    ([no("creator_id", "nobody")], [*range(1, 12)]),
    ([one("video_id", "video-2")], [6, 7, 8, 11]),
    ([one("video_id", VIDEO), one("creator_id", "creator-2")], []),
    ([one("video_id", "video-3")], []),
    ([no("video_id", "video-2")], [1, 2, 3, 4, 5, 9, 10]),
    ([one("advertiser_id", ADVERTISER)], [3, 4, 7, 11]),
    ([no("advertiser_id", ADVERTISER)], [1, 2, 5, 6, 8, 9, 10]),
    ([one("brand_id", BRAND)], [3]),
    ([one("brand_id", BRAND, "brand-2")], [3, 7]),
    ([one("actor", "key-2")], [5, 6, 7, 8, 9]),
    ([one("type", "Redeemed")], [4, 8]),
    ([one("type", "Redeemed", "Shared")], [3, 4, 7, 8, 11]),
    ([one("type", "Redeemed", "Redeemed")], [4, 8]),
    ([one("type", "Shared", "Shared"), one("actor", "key-2", "key-2")], [7]),
    ([one("type", "Redeemed"), one("actor", "key-2")], [8]),
    ([one("type", "Redeemed"), no("actor", "key-2")], [4]),
    ([one("channel", "email")], [11]),
    ([no("channel", "email"), one("type", "Shared")], [3, 7]),
    ([one("refused", "code_revoked")], [10]),
    ([one("refused", "code_expired")], []),
    ([one("source", "operator"), no("type", "Shared")], [1, 2, 4, 5, 6, 8, 9, 10]),
    ([Between("recorded_at", since=NOW + 3 * DAY)], [*range(4, 12)]),
    ([Between("recorded_at", until=NOW + 3 * DAY)], [1, 2, 3]),
    ([Between("recorded_at", NOW + 2 * DAY, NOW + 5 * DAY)], [3, 4, 5]),
    ([Between("recorded_at", NOW + 2 * DAY, NOW + 5 * DAY, negated=True)], [1, 2, *range(6, 12)]),
    ([Between("recorded_at", since=NOW + 90 * DAY)], []),
    ([Between("recorded_at", until=NOW)], []),
    ([Between("effective_at", NOW + 5 * DAY, NOW + 7 * DAY)], [6, 7, 11]),
    ([Between("effective_at", NOW + 5 * DAY, NOW + 7 * DAY), one("type", "Shared")], [7, 11]),
    ([Between("effective_at", until=NOW + DAY)], [1]),
    ([Between("effective_at", since=NOW + 8 * DAY)], [9, 10]),
    ([Between("effective_at", NOW + 5 * DAY, NOW + 7 * DAY, negated=True)], [1, 2, 3, 4, 5, 8, 9, 10]),
    ([Between("effective_at", NOW + 6 * DAY, NOW + 8 * DAY), Between("recorded_at", since=NOW + 8 * DAY)], [11]),
]


async def test_events_are_found_in_both_directions_by_every_condition(follow: Followed, api: Cursor) -> None:
    await follow(event_index.VIEW, MemoryLog(told()))

    async def found(*, descending: bool) -> list[tuple[list[Condition], list[int]]]:
        return [
            (conditions, (await index_scan.search(api, 1, conditions, limit=100, descending=descending)).positions)
            for conditions, _ in CONDITIONS
        ]

    assert await found(descending=False) == CONDITIONS
    assert await found(descending=True) == [(conditions, expected[::-1]) for conditions, expected in CONDITIONS]


@pytest.mark.parametrize("position", [1, 6, 11])
async def test_times_are_found_around_an_event_that_the_history_skips(
    follow: Followed, worker: Cursor, api: Cursor, position: int
) -> None:
    skip = """
        INSERT INTO view_skips (ledger_id, view, version, position, error, reason, skipped_by)
        VALUES (1, 'history', %s, %s, 'cannot be read', 'nobody asks for it', 'ada')
    """
    await worker.execute(skip, (event_index.VERSION, position))
    await follow(event_index.VIEW, MemoryLog(told()))
    for conditions, expected in CONDITIONS:
        if all(isinstance(condition, Between) for condition in conditions):
            found = await index_scan.search(api, 1, conditions, limit=100)
            assert (conditions, found.positions) == (conditions, [p for p in expected if p != position])


class Overtaken:
    """A cursor of a view that reads on as soon as a search has looked up which streams are meant."""

    def __init__(self, cur: Cursor, read_on: Callable[[], Awaitable[None]]) -> None:
        self._cur = cur
        self._read_on = read_on

    async def execute(self, query: Any, parameters: Any) -> None:
        await self._cur.execute(query, parameters)
        if isinstance(query, str) and "SELECT DISTINCT" in query:
            self._streams = await self._cur.fetchall()
            await self._read_on()

    async def fetchall(self) -> Any:
        return self._streams

    async def fetchone(self) -> Any:
        return await self._cur.fetchone()


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("condition", [no("creator_id", "creator-2"), no("video_id", "video-2")])
async def test_what_the_view_reads_during_a_search_does_not_pass_as_of_another_creator_or_video(
    follow: Followed, api: Cursor, condition: Among, *, descending: bool
) -> None:
    log = MemoryLog(told())
    whole = log.ledgers[1]
    log.ledgers[1] = whole[:4]
    await follow(event_index.VIEW, log)

    async def read_on() -> None:
        log.ledgers[1] = whole
        await follow(event_index.VIEW, log)

    overtaken: Any = Overtaken(api, read_on)
    found = await index_scan.search(overtaken, 1, [condition], limit=100, descending=descending)
    assert sorted(found.positions) == [1, 2, 3, 4]


async def test_pages_of_positions_together_are_the_whole(follow: Followed, api: Cursor) -> None:
    await follow(event_index.VIEW, MemoryLog(told()))
    of = [one("creator_id", CREATOR)]
    onwards = [(await index_scan.search(api, 1, of, limit=2, after=after)).positions for after in (0, 2, 4, 10)]
    back = [
        (await index_scan.search(api, 1, of, limit=2, before=before, descending=True)).positions
        for before in (index_scan.END, 9, 3, 1)
    ]
    assert onwards == [[1, 2], [3, 4], [9, 10], []]
    assert back == [[10, 9], [4, 3], [2, 1], []]
    assert (await index_scan.search(api, 1, [], limit=9, after=3, before=7)).positions == [4, 5, 6]


async def test_a_search_ends_after_enough_rows_and_the_next_continues_there(follow: Followed, api: Cursor) -> None:
    await follow(event_index.VIEW, MemoryLog(told()))
    rare: list[Condition] = [one("source", "operator"), one("type", "Shared"), no("channel", "dm")]

    found = await index_scan.search(api, 1, rare, limit=5, max_rows_scanned=2)
    assert (found.positions, found.rows_scanned) == ([], 2)
    assert found.stopped_at is not None

    positions: list[int] = []
    after: int | None = 0
    while after is not None:
        found = await index_scan.search(api, 1, rare, limit=5, after=after, max_rows_scanned=1)
        positions += found.positions
        after = found.stopped_at
    assert positions == [11]
    assert await backwards(api, rare) == [11]


async def backwards(cur: Cursor, conditions: Sequence[Condition]) -> list[int]:
    positions: list[int] = []
    before: int | None = index_scan.END
    while before is not None:
        found = await index_scan.search(
            cur, 1, conditions, limit=5, before=before, descending=True, max_rows_scanned=2, max_seconds=0
        )
        positions += found.positions
        before = found.stopped_at
    return positions


@pytest.mark.parametrize("seed", range(4))
async def test_a_search_finds_what_a_scan_of_every_row_would(follow: Followed, api: Cursor, seed: int) -> None:
    events = happening(seed, 150).ledger.events
    log = MemoryLog(Story())
    log.ledgers[1] = events
    await follow(event_index.VIEW, log)
    random = Random(seed)
    rows = [event_index.indexed(1, recorded, recorded.event) for recorded in events]
    for _ in range(60):
        conditions = [_any_condition(random, events) for _ in range(random.randrange(1, 4))]
        limit, after, descending = random.choice([1, 3, 1000]), random.randrange(20), random.random() < 0.5
        expected = [row.position for row in rows if row.position > after and _passes(row, conditions, rows)]
        found: list[int] = []
        ends: dict[str, int] = {"after": after}
        while True:
            page = await index_scan.search(
                api,
                1,
                conditions,
                limit=limit,
                descending=descending,
                max_rows_scanned=random.choice([3, 10**6]),
                **ends,
            )
            found += page.positions
            if page.stopped_at is None and len(page.positions) < limit:
                break
            ends["before" if descending else "after"] = (
                page.stopped_at if page.stopped_at is not None else page.positions[-1]
            )
        assert found == (expected[::-1] if descending else expected), conditions


def _any_condition(random: Random, events: Sequence[RecordedEvent]) -> Condition:
    negated = random.random() < 0.3
    if random.random() < 0.3:
        ends = sorted(random.choice(events).recorded_at for _ in range(2))
        ends = [end + timedelta(hours=random.choice([-2, 0, 0, 2])) for end in ends]
        since, until = (end if random.random() < 0.8 else None for end in ends)
        return Between(random.choice(["recorded_at", "effective_at"]), since, until, negated)
    if random.random() < 0.2:
        drawn = [sorted(random.choices(range(1, len(events) + 20), k=2)) for _ in range(random.choice([1, 2, 5]))]
        return Positions(tuple((first, last) for first, last in drawn), negated)
    if random.random() < 0.2:
        return RecordedLate(timedelta(hours=random.choice([1, 12, 48])), negated)
    numbers = range(3)
    field, values = random.choice(
        [
            ("creator_id", [f"creator-{number}" for number in numbers]),
            ("video_id", [f"video-{number}" for number in numbers]),
            ("code_id", [UUID(int=number) for number in numbers]),
            ("brand_id", [f"brand-{number}" for number in numbers]),
            ("advertiser_id", [f"advertiser-{number}" for number in numbers]),
            ("type", ["Shared", "Redeemed", "CodeGenerated", "PermissionDisabled", "Expired"]),
            ("source", ["operator", "clock"]),
            ("refused", ["code_expired", "code_revoked"]),
        ]
    )
    return Among(field, tuple(random.choices(values, k=random.choice([1, 1, 2, 3]))), negated)  # type: ignore[arg-type]


def _passes(row: EventIndexRow, conditions: Sequence[Condition], rows: Sequence[EventIndexRow]) -> bool:
    return all(_fulfils(row, condition, rows) != condition.negated for condition in conditions)


def _fulfils(row: EventIndexRow, condition: Condition, rows: Sequence[EventIndexRow]) -> bool:
    if isinstance(condition, Between):
        moment: datetime = getattr(row, condition.field)
        return (condition.since is None or moment >= condition.since) and (
            condition.until is None or moment < condition.until
        )
    if isinstance(condition, Positions):
        return any(first <= row.position <= last for first, last in condition.ranges)
    if isinstance(condition, RecordedLate):
        return row.recorded_at - row.effective_at > condition.delay
    if condition.field == "creator_id":
        return any(r.creator_id in condition.values and r.creator_stream == row.creator_stream for r in rows)
    if condition.field == "video_id":
        return any(r.video_id in condition.values and r.code_id == row.code_id for r in rows)
    return getattr(row, condition.field) in condition.values


MANY = """
    INSERT INTO views.history
    SELECT 1, n, 'Shared', NULL, lpad('7', 32, '0')::uuid, NULL, NULL, 'brand-1', 'advertiser-1', 'dm', NULL, 'key-1',
           'operator', now(), now(), false
    FROM generate_series(1, %s) AS n
"""


class Slow:
    """A cursor of a database that looks at 2,048 rows a second, and at ten times as many where it goes by the actor."""

    def __init__(self, cur: Cursor) -> None:
        self.clock = 0.0
        self._cur = cur

    async def execute(self, query: Any, parameters: Any) -> None:
        if "rows" in parameters:
            quick = 'ORDER BY h."actor"' in query.as_string()
            self.clock += parameters["rows"] / (20_480 if quick else 2_048)
        await self._cur.execute(query, parameters)

    async def fetchone(self) -> Any:
        return await self._cur.fetchone()


@pytest.fixture
async def slow(follow: Followed, worker: Cursor, api: Cursor, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A slow database with many events that are alike; its time is the clock of searches."""
    await follow(event_index.VIEW, MemoryLog(Story()))
    await worker.execute(MANY, (9_000,))
    slow = Slow(api)
    monkeypatch.setattr(index_scan, "time", SimpleNamespace(monotonic=lambda: slow.clock))
    return slow


async def test_a_query_scans_no_more_rows_than_there_is_time_for(slow: Any) -> None:
    found = await index_scan.search(slow, 1, [no("type", "Shared")], limit=1, max_seconds=0.25)

    # 400 rows to begin with, then as many as fill the quarter of a second.
    assert (found.positions, found.rows_scanned, found.stopped_at, slow.clock) == ([], 512, 512, 0.25)


async def test_a_slow_scan_is_not_given_the_rows_of_a_quick_one(slow: Any) -> None:
    both = [one("brand_id", "brand-1"), one("actor", "key-1"), no("type", "Shared")]
    found = await index_scan.search(slow, 1, both, limit=1, max_seconds=0.5)

    assert (found.positions, found.rows_scanned == found.stopped_at) == ([], True)
    assert slow.clock == pytest.approx(0.5, abs=0.001)


async def test_each_scan_has_a_turn_however_long_another_takes(slow: Any) -> None:
    both = [one("brand_id", "brand-1"), one("type", "Redeemed")]
    found = await index_scan.search(slow, 1, both, limit=1, max_seconds=0.1)

    assert (found.positions, found.stopped_at) == ([], None), "there is no such type, which its first look tells"


EVERY_TENTH = """
    UPDATE views.history
    SET type = 'Redeemed'
    WHERE position % 10 = 0
"""


@pytest.mark.parametrize(
    ("columns", "limit", "rows_scanned"),
    [
        # 40 are found in the first 400 rows, so 60 more in about 600, and a quarter of that to spare.
        (["actor"], 100, 400 + 750),
        # 20 more are as near as another scan's turn would be long.
        (["brand_id", "actor"], 60, 400 + 250),
        # 60 more are not, so the other scan has a turn, and finds 40.
        (["brand_id", "actor"], 100, 400 + 400 + 250),
    ],
)
async def test_a_search_reads_little_more_than_what_it_finds_lies_in(
    slow: Any, worker: Cursor, columns: list[Any], limit: int, rows_scanned: int
) -> None:
    await worker.execute(EVERY_TENTH)
    values = {"actor": "key-1", "brand_id": "brand-1"}
    conditions = [*(one(column, values[column]) for column in columns), no("type", "Shared")]

    found = await index_scan.search(slow, 1, conditions, limit=limit, max_seconds=60.0)
    assert (found.positions, found.rows_scanned) == ([*range(10, 10 * limit + 1, 10)], rows_scanned)


async def test_what_is_fetched_for_each_of_many_values_counts(follow: Followed, worker: Cursor, api: Cursor) -> None:
    await follow(event_index.VIEW, MemoryLog(Story()))
    await worker.execute(MANY, (100,))
    many = one("brand_id", "brand-1", *(f"brand-{number}" for number in range(2, 11)))

    found = await index_scan.search(api, 1, [many], limit=100, max_rows_scanned=200)
    assert (found.positions, found.rows_scanned, found.stopped_at) == ([*range(1, 21)], 200, 20)


@pytest.mark.parametrize(
    "of",
    [
        one("creator_stream", UUID(int=7)),
        one("actor", "key-1"),
        one("brand_id", "brand-1"),
        one("advertiser_id", "advertiser-1"),
    ],
)
async def test_a_scan_past_events_of_other_types_reads_no_row_of_them(
    follow: Followed, worker: Cursor, api: Cursor, of: Among
) -> None:
    await follow(event_index.VIEW, MemoryLog(Story()))
    await worker.execute(MANY, (10_000,))
    await worker.execute("VACUUM ANALYZE views.history")

    async with api.connection.transaction():
        found = await index_scan.search(api, 1, [of, no("type", "Shared")], limit=1, max_seconds=60.0)
        await api.execute("SELECT idx_tup_fetch, seq_scan FROM pg_stat_xact_user_tables WHERE relname = 'history'")
        assert (found.rows_scanned, await api.fetchone()) == (10_000, (0, 0))


async def test_an_estimate_is_near_where_statistics_are(follow: Followed, api: Cursor, worker: Cursor) -> None:
    events = happening(1, 400).ledger.events
    log = MemoryLog(Story())
    log.ledgers[1] = events
    await follow(event_index.VIEW, log)
    await worker.execute("ANALYZE views.history")
    middle = events[len(events) // 2].recorded_at

    asked: list[tuple[list[Condition], int]] = [
        ([], len(events)),
        ([one("type", "Shared")], sum(r.type == "Shared" for r in events)),
        ([no("type", "Shared")], sum(r.type != "Shared" for r in events)),
        ([one("creator_id", "nobody")], 0),
        ([Between("effective_at", until=middle)], sum(r.effective_at < middle for r in events)),
    ]
    for conditions, actual in asked:
        assert await index_scan.estimate(api, 1, conditions) == pytest.approx(actual, rel=0.3), conditions


async def test_another_ledgers_history_is_hidden(follow: Followed, api: Cursor) -> None:
    await follow(event_index.VIEW, MemoryLog(given.permitted(), told()))
    assert (await index_scan.search(api, 1, [], limit=100)).positions == [1]
    assert (await index_scan.search(api, 2, [], limit=100)).positions == []
    assert (await index_scan.search(api, 2, [one("type", "Shared")], limit=100)).positions == []
