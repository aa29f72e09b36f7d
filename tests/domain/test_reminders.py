"""When a code's end is said to approach: at which thresholds, once for each end, and at nobody's cost."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from domain.values import CLOCK
from tests import given
from tests.given import CODE, NOW, Story

END = NOW + timedelta(days=30)
DAY = timedelta(days=1)


def reminded(story: Story) -> list[tuple[int, int]]:
    """Return each reminder: how many days were left, and how many days after the beginning it was recorded."""
    return [
        (given.body(r)["days_left"], (r.recorded_at - NOW).days)
        for r in story.stream()
        if r.type == "ExpiryApproaching"
    ]


def watched(story: Story, days: int) -> Story:
    """Let days pass one by one, and the clock look at each."""
    for _ in range(days):
        given.after(story.later(days=1), given.record_due())
    return story


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"days": 7}, [(1, 6)]),
        ({"days": 30}, [(14, 16), (7, 23), (1, 29)]),
        ({"days": 60}, [(30, 30), (14, 46), (7, 53), (1, 59)]),
        ({"days": 30, "starts_at": NOW - 20 * DAY}, [(7, 3), (1, 9)]),
        ({"days": 30, "starts_at": NOW - 23 * DAY}, [(1, 6)]),
        ({"days": 30, "starts_at": NOW - 60 * DAY}, []),
        # It is not reminded of before it has begun: no code is further from its end than it is long.
        ({"days": 30, "starts_at": NOW + 5 * DAY}, [(14, 21), (7, 28), (1, 34)]),
    ],
)
def test_a_code_is_reminded_of_at_the_thresholds_crossed_after_its_window_was_set(
    facts: dict[str, Any], expected: list[tuple[int, int]]
) -> None:
    assert reminded(watched(given.generated(**facts), 70)) == expected


def test_a_reminder_says_which_end_approaches_and_takes_effect_when_the_threshold_was_crossed() -> None:
    story = given.generated().later(days=16, hours=5)
    (recorded,) = story.when(given.record_due(), actor=CLOCK)
    assert given.body(recorded) == {"expires_at": END, "days_left": 14}
    assert (recorded.effective_at, recorded.recorded_at) == (END - 14 * DAY, NOW + 16 * DAY + timedelta(hours=5))
    assert recorded.source == "clock"


def test_a_threshold_is_crossed_at_its_very_moment_and_not_before() -> None:
    story = given.generated().later(days=16)
    story.clock.forward(microseconds=-1)
    assert story.outcome(given.record_due()) == "nothing"
    story.clock.forward(microseconds=1)
    assert story.outcome(given.record_due()) == "ExpiryApproaching"


@pytest.mark.parametrize(("days", "expected"), [(17, 14), (24, 7), (29, 1)])
def test_of_several_that_are_due_the_most_urgent_alone_is_recorded(days: int, expected: int) -> None:
    story = given.generated().later(days=days)
    assert [story.outcome(given.record_due()) for _ in range(3)] == ["ExpiryApproaching", "nothing", "nothing"]
    assert reminded(story) == [(expected, days)]


def test_an_extended_code_is_reminded_of_its_new_end() -> None:
    story = watched(given.generated(), 24)
    given.after(story, given.extend(days=60))
    assert reminded(watched(story, 36)) == [(14, 16), (7, 23), (30, 30), (14, 46), (7, 53), (1, 59)]


def test_an_extension_that_stays_inside_a_threshold_does_not_repeat_it() -> None:
    story = watched(given.generated(), 25)
    given.after(story, given.extend(expires_at=END + DAY))
    assert reminded(watched(story, 6)) == [(14, 16), (7, 23), (1, 30)]


def test_an_extension_recorded_late_counts_from_when_it_took_effect() -> None:
    story = given.generated().later(days=20)
    story.when(given.extend(expires_at=NOW + 27 * DAY + 4 * DAY), effective_at=NOW + 15 * DAY)
    given.after(story, given.record_due())
    assert reminded(story) == [(14, 20)]


@pytest.mark.parametrize("ended", [given.revoked, given.window_over, given.cut_off, given.expired])
def test_a_code_that_is_revoked_or_over_is_not_reminded_of(ended: Any) -> None:
    assert reminded(watched(ended(), 40)) == []


def test_a_clock_that_jumps_back_repeats_nothing() -> None:
    story = given.generated().later(days=23)
    assert story.outcome(given.record_due()) == "ExpiryApproaching"
    assert story.later(days=-5).outcome(given.record_due()) == "nothing"
    given.after(story.later(days=20), given.record_due())
    assert story.later(days=-10).outcome(given.record_due()) == "nothing"
    assert reminded(story) == [(7, 23)]


def test_a_reminder_makes_nobodys_command_stale() -> None:
    story = given.approaching()
    seen = story.code().command_version
    given.after(story, given.record_due())
    assert story.code().version == story.stream()[-1].stream_version == seen + 1
    assert story.outcome(given.extend(days=60, if_match=seen)) == "Extended"


def test_a_reminder_holds_only_until_the_window_ends() -> None:
    decision = given.approaching().decide(given.record_due())
    assert decision is not None
    assert (decision.valid_until, list(decision.claims)) == (END, [])


@pytest.mark.parametrize(
    ("story", "expected"),
    [
        (given.generated, "nothing"),
        (given.approaching, "ExpiryApproaching"),
        (given.window_over, "Expired"),
        (given.cut_off, "CampaignEnded Expired"),
        (given.expired, "nothing"),
        (given.revoked, "nothing"),
    ],
)
def test_the_clock_records_an_expiry_or_else_a_reminder(story: Any, expected: str) -> None:
    assert story().outcome(given.record_due(CODE)) == expected
