"""The view of statistics: the figures of every day, whatever was recorded late and whatever the clock alone brings."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, cast
from uuid import UUID

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import given as for_all
from hypothesis import strategies as st

from domain.code import Code, effective_as_of, fold_code, replay_code
from domain.values import Sealed, State
from projections import statistics
from projections.code_timeline import CodeTimelineRow, bucket, day_of, move_end, transitions
from projections.engine import checkpoints
from projections.statistics import COUNTED_STATES, Day
from tests import given
from tests.given import CAMPAIGN, CODE, NOW, OTHER_CODE, OTHER_SECRET, Story
from tests.projections.conftest import Cursor, Followed
from tests.projections.late import code_streams, recorded_late
from tests.projections.memory_log import MemoryLog

DAY = timedelta(days=1)
TODAY = day_of(NOW)
JUST_BEFORE = timedelta(microseconds=1)
CODE_3 = UUID(int=0xC0DE_3)


def states(**counts: int) -> dict[State, int]:
    none: dict[State, int] = dict.fromkeys(COUNTED_STATES, 0)
    return none | cast("dict[State, int]", counts)


def count_states(story: Story, moment: datetime) -> dict[State, int]:
    """Count the codes by state as it was true at a moment, code by code."""
    counts = Counter[str]()
    for stream in code_streams(story):
        begun = replay_code(stream)
        if min(begun.generated_at, begun.window.starts_at) <= moment:
            counts[fold_code(effective_as_of(stream, moment)).state(moment)] += 1
    return states(**counts)


async def figures(story: Story, follow: Followed, cur: Cursor, first: int, last: int) -> list[Day]:
    """Return the figures of days, counted from `NOW`'s."""
    await follow(statistics.VIEW, MemoryLog(story))
    days = {"first": TODAY + first * DAY, "last": TODAY + last * DAY}
    return await statistics.by_day(cur, 1, now=story.clock(), **days)


async def forget(cur: Cursor) -> None:
    for table in statistics.VIEW.tables:
        await table.drop(cur)
    await checkpoints.delete(cur, [statistics.NAME])


@pytest.mark.long("Hypothesis tells many lives of many codes")
@settings(max_examples=25, deadline=None, suppress_health_check=[*HealthCheck])
@for_all(st.integers(0, 10**6), st.integers(0, 10**6))
async def test_the_states_of_every_day_are_what_was_true_when_it_ended(
    follow: Followed, worker: Cursor, seed: int, minutes: int
) -> None:
    story = recorded_late(seed, 40)
    story.later(minutes=minutes % (60 * 24))
    now = story.clock()
    await follow(statistics.VIEW, MemoryLog(story))
    first, last = TODAY - 40 * DAY, day_of(now) + 70 * DAY
    found = {day.day: day.codes for day in await statistics.by_day(worker, 1, first=first, last=last, now=now)}
    ended = {first + number * DAY: first + (number + 1) * DAY for number in range((last - first).days + 1)}
    assert found == {
        day: count_states(story, now if day == day_of(now) else end - JUST_BEFORE) for day, end in ended.items()
    }
    assert await statistics.count_by_state(worker, 1, now) == count_states(story, now)
    for days in (0, 1, 7, 30):
        until = now + days * DAY + timedelta(hours=1)
        ahead = sum(
            code.revoked_at is None and now < code.window.expires_at < until
            for code in map(replay_code, code_streams(story))
        )
        assert await statistics.count_ahead(worker, 1, now=now, until=until) == ahead
    await forget(worker)


@settings(max_examples=10, deadline=None, suppress_health_check=[*HealthCheck])
@for_all(st.integers(0, 10**6), st.integers(0, 10**6))
async def test_what_was_known_at_the_end_of_a_day_is_what_a_ledger_of_that_day_says(
    follow: Followed, worker: Cursor, seed: int, chosen: int
) -> None:
    story = recorded_late(seed, 40)
    log = MemoryLog(story)
    known = day_of(log.ledgers[1][chosen % len(log.ledgers[1])].recorded_at)
    log.ledgers[2] = [recorded for recorded in log.ledgers[1] if day_of(recorded.recorded_at) <= known]
    await follow(statistics.VIEW, log, page_events=50)
    days = {"first": TODAY - 40 * DAY, "last": day_of(story.clock()) + 70 * DAY}
    found = await statistics.by_day(worker, 1, now=story.clock(), known=known, **days)
    assert found == await statistics.by_day(worker, 2, now=known + DAY - JUST_BEFORE, **days)
    await forget(worker)


async def test_a_code_counts_by_the_clock_before_anyone_records_that_it_expired(follow: Followed, api: Cursor) -> None:
    story = given.shared()
    await follow(statistics.VIEW, MemoryLog(story))
    end = NOW + 30 * DAY
    assert await statistics.count_by_state(api, 1, end - JUST_BEFORE) == states(shared=1)
    assert await statistics.count_by_state(api, 1, end) == states(expired=1)
    ahead = [await statistics.count_ahead(api, 1, now=NOW, until=NOW + days * DAY) for days in (29, 30, 31)]
    assert ahead == [0, 0, 1]


async def test_a_code_that_lapsed_and_was_extended_was_expired_in_between(follow: Followed, api: Cursor) -> None:
    found = await figures(given.revived(), follow, api, 29, 62)
    assert [day.codes for day in found] == [
        states(redeemed=1),  # its last day begins at midnight and ends at noon of the next
        states(expired=1),
        *[states(redeemed=1)] * 30,
        *[states(expired=1)] * 2,
    ]
    assert [day.ended for day in found] == [0, 1, *[0] * 30, 1, 0]


def test_a_code_that_is_extended_again_and_again_before_it_ends_keeps_one_end() -> None:
    row = CodeTimelineRow(1, CODE, NOW, True, NOW + DAY, None, NOW + DAY, *[None] * 8)
    for number in range(1, 1000):
        move_end(row, NOW + number * DAY / 2, NOW + (number + 2) * DAY / 2)
    assert (row.first_end, row.moved) == (NOW + 1001 * DAY / 2, None)
    for number in range(1, 1000):  # and after it lapsed
        move_end(row, row.first_end + number * DAY, row.first_end + (number + 2) * DAY)
    period = [row.first_end + DAY, row.first_end + 1001 * DAY, row.first_end + 999 * DAY]
    assert row.moved == {"ends": [[moment.isoformat() for moment in period]]}
    assert transitions(row) == [
        (NOW, "generated"),
        (NOW + 1001 * DAY / 2, "expired"),
        (row.first_end + DAY, "generated"),
        (row.expires_at, "expired"),
    ]


async def test_an_imported_code_counts_from_when_its_window_began(follow: Followed, api: Cursor) -> None:
    story = given.permitted()
    story.when(given.generate(starts_at=NOW - 20 * DAY))
    found = await figures(story, follow, api, -21, 11)
    assert [day.codes for day in found] == [states(), *[states(generated=1)] * 30, *[states(expired=1)] * 2]
    assert [day.issued for day in found][:2] == [0, 1]


async def test_what_is_recorded_late_counts_on_the_day_it_took_effect(follow: Followed, api: Cursor) -> None:
    story = given.generated().later(days=5)
    story.when(given.redeem(), effective_at=NOW + 2 * DAY)
    story.when(given.revoke(), effective_at=NOW + 4 * DAY)
    found = await figures(story, follow, api, 0, 5)
    assert [day.codes for day in found] == [
        *[states(generated=1)] * 2,
        *[states(redeemed=1)] * 2,
        *[states(revoked=1)] * 2,
    ]
    assert [day.redemptions for day in found] == [0, 0, 1, 0, 0, 0]
    assert found[2].redeemed_after == {str(3 * 24 * 3600): 1}


async def test_what_is_recorded_again_because_it_was_earlier_counts_once_and_on_its_own_day(
    follow: Followed, api: Cursor
) -> None:
    story = given.generated().later(days=3)
    for command in (given.share(), given.redeem(), given.launch(replace(CAMPAIGN, starts_at=NOW + 3 * DAY))):
        story.when(command)
    for command in (given.share(), given.redeem(), given.launch(replace(CAMPAIGN, starts_at=NOW + 3 * DAY))):
        assert len(story.when(command, effective_at=NOW + DAY)) == 1, "an earlier one is recorded"
    found = await figures(story, follow, api, 0, 3)
    assert [(day.shares, day.redemptions, day.launched) for day in found] == [(0, 0, 0), (1, 1, 1), *[(0, 0, 0)] * 2]
    assert await statistics.totals(api, 1, "redemptions") == {"": 1}


async def test_a_superseded_code_counts_as_that_from_when_the_other_begins_until_it_ends(
    follow: Followed, api: Cursor
) -> None:
    begins = NOW + 2 * DAY + timedelta(hours=3)
    story = given.after(given.redeemed(), given.generate(OTHER_CODE, secret=OTHER_SECRET, days=7, supersedes=CODE))
    later = given.generate(CODE_3, secret=Sealed("#third/secret+of-a-code"), starts_at=begins, supersedes=OTHER_CODE)
    story.when(later)
    found = await figures(story, follow, api, 0, 31)
    by_day = {(day.day - TODAY).days: day.codes for day in found}
    assert by_day[0] == states(superseded=1, generated=2)
    assert by_day[2] == states(superseded=2, generated=1)
    assert by_day[7] == states(superseded=1, expired=1, generated=1)
    assert by_day[30] == states(expired=2, generated=1)
    for moment in (NOW, begins - JUST_BEFORE, begins, NOW + 7 * DAY - JUST_BEFORE, NOW + 30 * DAY - JUST_BEFORE):
        assert (moment, await statistics.count_by_state(api, 1, moment)) == (moment, count_states(story, moment))


async def test_attempts_are_counted_on_their_day_by_reason(follow: Followed, api: Cursor) -> None:
    story = given.after(given.shared(), given.share(brand_id="brand-2"))
    story.later(minutes=10).when(given.redeem())
    story.when(given.redeem(advertiser_id="account-2"))
    story.later(days=1).when(given.revoke())
    for hours in (0, 2):
        story.later(hours=hours)
        assert story.outcome(given.redeem(advertiser_id="late")) == "RedemptionRefused code_revoked"
    today, tomorrow = await figures(story, follow, api, 0, 1)
    assert today == Day(TODAY, states(redeemed=1), issued=1, shares=2, redemptions=2, redeemed_after={str(15 * 60): 1})
    assert tomorrow == Day(TODAY + DAY, states(revoked=1), refused={"code_revoked": 2})
    assert await statistics.totals(api, 1, "refused") == {"code_revoked": 2}
    assert await statistics.totals(api, 1, "redemptions") == {"": 2}


def stops(days: list[Day]) -> dict[int, dict[str, int]]:
    return {(day.day - TODAY).days: day.stopped for day in days if day.stopped}


async def test_a_campaign_counts_on_the_day_that_it_will_stop(follow: Followed, api: Cursor) -> None:
    running = given.running()
    assert stops(await figures(running, follow, api, 0, 100)) == {30: {"window_end": 1}}
    running.when(given.extend(days=60))
    assert stops(await figures(running, follow, api, 0, 100)) == {60: {"window_end": 1}}
    running.when(given.extend(days=365))
    assert stops(await figures(running, follow, api, 0, 100)) == {90: {"campaign_end": 1}}
    running.later(days=1).when(given.revoke(force=True))
    found = await figures(running, follow, api, 0, 100)
    assert stops(found) == {1: {"revocation": 1}}
    assert found[0].launched == 1


async def test_a_campaign_that_its_expiry_ended_stays_stopped_when_the_code_is_revived(
    follow: Followed, api: Cursor
) -> None:
    assert stops(await figures(given.revived(), follow, api, 0, 100)) == {30: {"window_end": 1}}


async def test_a_campaign_counts_on_the_day_that_it_stops_once_its_end_is_undone(follow: Followed, api: Cursor) -> None:
    story = given.expired()
    story.when(given.extend(days=60), effective_at=NOW + 20 * DAY)
    found = await figures(story, follow, api, 0, 100)
    assert stops(found) == {60: {"window_end": 1}}
    assert [(day.day - TODAY).days for day in found if day.ended] == [60]


async def test_another_ledgers_codes_are_not_counted(follow: Followed, api: Cursor) -> None:
    await follow(statistics.VIEW, MemoryLog(given.permitted(), given.shared()))
    assert await statistics.count_by_state(api, 1, NOW) == states()
    assert await statistics.count_by_state(api, 2, NOW) == states()


async def test_codes_of_one_day_are_added_up(follow: Followed, api: Cursor) -> None:
    story = given.shared()
    story.when(given.generate(OTHER_CODE, video_id="video-2", secret=OTHER_SECRET))
    (today,) = await figures(story, follow, api, 0, 0)
    assert today == Day(TODAY, states(generated=1, shared=1), issued=2, shares=1)


def test_a_time_falls_into_the_bucket_that_it_lies_below() -> None:
    passed: list[tuple[dict[str, Any], str]] = [
        ({"seconds": 0}, "60"),
        ({"seconds": 59.9}, "60"),
        ({"seconds": 60}, "300"),
        ({"days": 29}, str(30 * 24 * 3600)),
        ({"days": 365}, "longer"),
    ]
    assert [bucket(timedelta(**time)) for time, _ in passed] == [label for _, label in passed]


def test_every_event_that_changes_a_state_is_read() -> None:
    assert {Code.Generated, Code.Extended, Code.Shared, Code.Redeemed, Code.Revoked} <= statistics.VIEW.updates.keys()
