"""The view of what expires: what the clock has to record now, and ends ahead."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st

from domain.code import Code, replay_code
from domain.values import Sealed
from projections import expiring
from projections.expiring import Due, ExpiringRow
from tests import given
from tests.given import CODE, CREATOR, NOW, VIDEO, Story
from tests.projections.conftest import Cursor, Followed
from tests.projections.late import recorded_late
from tests.projections.memory_log import MemoryLog, happening, rows

DAY = timedelta(days=1)
END = NOW + 30 * DAY


async def test_an_end_is_open_until_it_is_recorded_or_revoked(follow: Followed, worker: Cursor) -> None:
    await follow(expiring.VIEW, MemoryLog(given.shared(), given.revoked(), given.expired(), given.revived()))
    revived, new_end = NOW + 31 * DAY, NOW + 61 * DAY
    expected = [
        ExpiringRow(1, CODE, CREATOR, VIDEO, NOW, END, NOW, False, None, END - 14 * DAY, True, False, 2),
        ExpiringRow(2, CODE, CREATOR, VIDEO, NOW, END, NOW, False, None, END - 14 * DAY, False, True, 5),
        ExpiringRow(3, CODE, CREATOR, VIDEO, NOW, END, NOW, False, None, END - 14 * DAY, False, False, 7),
        ExpiringRow(4, CODE, CREATOR, VIDEO, NOW, new_end, revived, True, None, new_end - 14 * DAY, True, False, 8),
    ]
    assert await rows(worker, expiring.VIEW) == {
        "expiring": [tuple(getattr(row, column) for column in expiring.EXPIRING.columns) for row in expected]
    }


async def test_what_is_due_next_is_the_next_reminder_of_the_present_end_and_at_last_that_end(
    follow: Followed, worker: Cursor
) -> None:
    await begin_ledgers(worker, 4)
    two_weeks, one_day = (given.after(given.generated().later(days=d), given.record_due()) for d in (16, 29))
    extended = given.after(given.approaching(), given.record_due(), given.extend(days=60))
    await follow(expiring.VIEW, MemoryLog(given.generated(), two_weeks, one_day, extended))
    assert await expiring.first_due(worker, {}) == {
        2: END - 7 * DAY,
        1: END - 14 * DAY,
        3: END,
        4: NOW + 30 * DAY,
    }


@settings(max_examples=100, deadline=None)
@for_all(st.integers(0, 10**6), st.integers(0, 40 * 24), st.booleans())
def test_the_view_and_the_code_agree_on_what_is_due(seed: int, hours: int, late: bool) -> None:
    story = recorded_late(seed, 40) if late else happening(seed, 40)
    now = story.clock() + timedelta(hours=hours)
    for stream in story.ledger.streams.values():
        if isinstance(stream[0].event, Code.Generated):
            code, row = replay_code(stream), expiring.generated(1, stream[0], stream[0].event)
            for recorded in stream[1:]:
                change = expiring.VIEW.updates.get(type(recorded.event))
                if change is not None:
                    change(row, recorded, recorded.event)
            due = code.expiry_due(now) or code.reminder_due(now) is not None
            assert (row.open and row.due_at <= now) == due


def ending(*days: int) -> Story:
    """Codes on videos of their own, numbered from 1, that last so many days."""
    story = given.permitted()
    for number, length in enumerate(days, 1):
        secret = Sealed(f"#secret+of+code+number+{number}=")
        story.when(given.generate(UUID(int=number), video_id=f"video-{number}", days=length, secret=secret))
    return story


async def test_the_clock_is_told_what_is_due_in_a_ledger_the_longest_due_first(
    follow: Followed, worker: Cursor
) -> None:
    await follow(expiring.VIEW, MemoryLog(ending(30, 7, 7)))
    soon, later = NOW + 6 * DAY, NOW + 16 * DAY
    whole = [Due(soon, UUID(int=2)), Due(soon, UUID(int=3)), Due(later, UUID(int=1))]
    assert await expiring.due(worker, 1, soon - timedelta(microseconds=1), 10) == []
    assert await expiring.due(worker, 1, soon, 10) == whole[:2]
    assert await expiring.due(worker, 1, END, 2) == whole[:2]
    assert await expiring.due(worker, 1, END, 2, after=whole[1]) == whole[2:]
    assert await expiring.due(worker, 2, END, 10) == []


async def test_the_clock_is_told_in_which_ledgers_something_is_due_next(follow: Followed, worker: Cursor) -> None:
    await begin_ledgers(worker, 3)
    nothing_open = given.after(ending(7).later(days=8), given.record_due(UUID(int=1)))
    await follow(expiring.VIEW, MemoryLog(ending(30), nothing_open, ending(60, 7)))
    assert await expiring.first_due(worker, {}) == {3: NOW + 6 * DAY, 1: NOW + 16 * DAY}
    passed = Due(NOW + 6 * DAY, UUID(int=2))
    assert await expiring.first_due(worker, {3: passed, 1: passed}) == {1: NOW + 16 * DAY, 3: NOW + 30 * DAY}
    assert await expiring.first_due(worker, {1: Due(NOW + 16 * DAY, UUID(int=1))}) == {3: NOW + 6 * DAY}


async def begin_ledgers(cur: Cursor, count: int) -> None:
    """Begin ledgers, numbered from 1."""
    for number in range(1, count + 1):
        await cur.execute("INSERT INTO ledgers (name, fingerprint_key) VALUES (%s, '')", (f"ledger-{number}",))
