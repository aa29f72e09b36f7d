"""The view of what expires: ends that have come, and ends ahead."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from domain.values import Sealed
from projections import expiring
from projections.expiring import Due, ExpiringRow
from tests import given
from tests.given import CODE, CREATOR, NOW, VIDEO, Story
from tests.projections.conftest import Cursor, Followed
from tests.projections.memory_log import MemoryLog, rows

END = NOW + timedelta(days=30)


async def test_an_end_is_open_until_it_is_recorded_or_revoked(follow: Followed, worker: Cursor) -> None:
    await follow(expiring.VIEW, MemoryLog(given.shared(), given.revoked(), given.expired(), given.revived()))
    expected = [
        ExpiringRow(1, CODE, CREATOR, VIDEO, END, True, 2),
        ExpiringRow(2, CODE, CREATOR, VIDEO, END, False, 5),
        ExpiringRow(3, CODE, CREATOR, VIDEO, END, False, 7),
        ExpiringRow(4, CODE, CREATOR, VIDEO, NOW + timedelta(days=61), True, 8),
    ]
    assert await rows(worker, expiring.VIEW) == {
        "expiring": [tuple(getattr(row, column) for column in expiring.EXPIRING.columns) for row in expected]
    }


def ending(*days: int) -> Story:
    """Codes on videos of their own, numbered from 1, that last so many days."""
    story = given.permitted()
    for number, length in enumerate(days, 1):
        secret = Sealed(f"#secret+of+code+number+{number}=")
        story.when(given.generate(UUID(int=number), video_id=f"video-{number}", days=length, secret=secret))
    return story


async def test_the_clock_is_told_what_is_due_in_any_ledger_the_longest_overdue_first(
    follow: Followed, worker: Cursor
) -> None:
    due_and_recorded = given.after(ending(7).later(days=8), given.expire(UUID(int=1)))
    await follow(expiring.VIEW, MemoryLog(ending(30, 7), ending(60), due_and_recorded))
    week, month = NOW + timedelta(days=7), NOW + timedelta(days=30)
    both = [Due(1, UUID(int=2), week), Due(1, UUID(int=1), month)]
    assert await expiring.next_end(worker) == week
    assert await expiring.due(worker, week - timedelta(seconds=1), 10) == []
    assert await expiring.due(worker, week, 10) == both[:1], "the last instant lies outside the window"
    assert await expiring.due(worker, month, 10) == both
    assert await expiring.due(worker, month, 1) == both[:1]


async def test_where_nothing_is_open_no_end_comes_next(follow: Followed, worker: Cursor) -> None:
    await follow(expiring.VIEW, MemoryLog(given.revoked()))
    assert await expiring.next_end(worker) is None


async def test_ends_ahead_come_soonest_first_in_pages(follow: Followed, api: Cursor) -> None:
    await follow(expiring.VIEW, MemoryLog(ending(30, 7, 30, 60), ending(7)))
    until = NOW + timedelta(days=60)
    whole = await expiring.ahead(api, 1, now=NOW, until=until, limit=10)
    assert [row.code_id.int for row in whole] == [2, 1, 3], "what ends at `until` is not among them"
    paged, after = [], None
    while page := await expiring.ahead(api, 1, now=NOW, until=until, limit=1, after=after):
        paged += page
        after = (page[0].expires_at, page[0].code_id)
    assert paged == whole
    assert await expiring.count_ahead(api, 1, now=NOW, until=until) == 3
    assert await expiring.ahead(api, 1, now=NOW + timedelta(days=30), until=until, limit=10) == []
    assert await expiring.count_ahead(api, 1, now=NOW + timedelta(days=7), until=until) == 2
