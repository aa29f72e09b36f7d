"""A late fact is judged by its own time, by all that is known now; recording a code is not issuing one.

Days count from `NOW`. The measure of all this is in the late paperwork; here is each rule by itself.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from domain.authorization import verdict
from domain.code import Ending
from domain.errors import Malformed, Refused
from domain.values import Sealed, Window
from tests import given
from tests.given import ADVERTISER, CAMPAIGN, CODE, NOW, OTHER_CODE, OTHER_SECRET, Command, Story
from tests.memory_ledger import Conflict

NEW = "advertiser-2"


def day(number: float) -> datetime:
    return NOW + timedelta(days=number)


def late(story: Story, *facts: tuple[Command, float]) -> list[str]:
    """Record facts, each as of a day, and return what came of them."""
    return [story.outcome(command, effective_at=day(at)) for command, at in facts]


# Permission.


def test_a_permission_that_was_on_lets_a_code_of_that_time_be_recorded_after_it_went_off() -> None:
    story = given.after(given.permitted().later(days=60), given.permission(enabled=False))
    given.after(story.later(days=30))
    assert late(story, (given.generate(), 20), (given.generate(OTHER_CODE, secret=OTHER_SECRET), 70)) == [
        "CodeGenerated",
        "permission_disabled",
    ]


def test_a_switch_recorded_late_is_recorded_unless_the_same_is_on_record_at_that_moment() -> None:
    story = given.permitted().later(days=10)
    switches = [(given.permission(), 5), (given.permission(), 5), (given.permission(enabled=False), 5)]
    assert late(story, *switches) == ["PermissionEnabled", "nothing", "PermissionDisabled"]
    assert late(story, (given.generate(), 4), (given.generate(), 6)) == ["CodeGenerated", "permission_disabled"]


def test_a_switch_off_of_somebody_unknown_is_recorded_where_it_is_said_to_be_earlier() -> None:
    story = given.unknown().later(days=10)
    assert late(story, (given.permission(enabled=False), 5), (given.permission(), 2)) == [
        "PermissionDisabled",
        "PermissionEnabled",
    ]
    assert late(story, (given.generate(days=7), 3), (given.extend(days=30), 6)) == [
        "CodeGenerated",
        "permission_disabled",
    ]


def test_the_last_recorded_of_one_moment_wins() -> None:
    story = given.permitted().later(days=10)
    late(story, (given.permission(enabled=False), 5), (given.permission(), 5))
    assert late(story, (given.generate(), 6)) == ["CodeGenerated"]


# What is judged by its own time.


@pytest.mark.parametrize("command", [given.redeem(advertiser_id=NEW), given.share(brand_id="brand-2")])
@pytest.mark.parametrize(("at", "accepted"), [(4, True), (5, False), (6, False)])
def test_what_happened_before_a_revocation_is_recorded_after_it(command: Command, at: int, *, accepted: bool) -> None:
    story = given.after(given.shared().later(days=5), given.revoke()).later(days=5)
    (outcome,) = late(story, (command, at))
    assert outcome == (outcome if accepted and outcome in {"Redeemed", "Shared"} else "code_revoked")


def test_a_refusal_of_what_is_said_to_be_earlier_is_answered_and_not_recorded() -> None:
    story = given.window_over()
    assert late(story, (given.redeem(advertiser_id=NEW), 30.5)) == ["code_expired"]
    assert story.outcome(given.redeem(advertiser_id=NEW)) == "RedemptionRefused code_expired"


def test_an_extension_of_long_ago_is_recorded_with_the_expiry_that_followed() -> None:
    story = given.after(given.running().later(days=61), given.record_due())
    (outcome,) = late(story, (given.extend(expires_at=day(60)), 20))
    assert outcome == "Extended CampaignEnded Expired"
    assert story.code().campaigns["campaign-1"].ended_at == day(60)


def test_an_extension_is_compared_with_the_end_as_it_stood_then() -> None:
    story = given.after(given.generated().later(days=20), given.extend(expires_at=day(90)))
    assert late(
        story,
        (given.extend(expires_at=day(30)), 10),
        (given.extend(expires_at=day(40)), 10),
        (given.extend(expires_at=day(40)), 12),
    ) == ["window_not_longer", "Extended", "window_not_longer"]
    assert (story.code().end_at(day(15)), story.code().window.expires_at) == (day(40), day(90))


@pytest.mark.parametrize("length", [{"days": 60}, {"add_days": 30}])
def test_a_number_of_days_is_ambiguous_before_an_extension_that_is_on_record(length: dict[str, Any]) -> None:
    story = given.after(given.generated().later(days=20), given.extend(days=365))
    assert late(story, (given.extend(**length), 10)) == ["later_extension"]


def test_an_extension_is_refused_where_one_that_is_on_record_would_then_shorten_the_window() -> None:
    story = given.after(given.generated().later(days=20), given.extend(expires_at=day(60)))
    too_long, as_long = given.extend(expires_at=day(70)), given.extend(expires_at=day(60))
    assert late(story, (too_long, 10), (as_long, 12)) == ["later_extension", "Extended"]
    assert story.code().window.expires_at == day(60)


def test_an_extension_with_a_wrong_end_is_corrected_before_an_earlier_one_is_recorded() -> None:
    story = given.after(given.generated().later(days=20), given.extend(expires_at=day(60))).later(days=5)
    corrected, earlier = given.extend(expires_at=day(80)), given.extend(expires_at=day(70))
    assert late(story, (corrected, 20), (earlier, 10)) == ["Extended", "Extended"]
    assert [story.code().end_at(day(at)) for at in (9, 10, 20)] == [day(30), day(70), day(80)]


def test_days_that_are_added_count_from_the_end_as_it_stood_then() -> None:
    story = given.after(given.generated().later(days=20), given.extend(add_days=5))
    assert story.code().window.expires_at == day(35)


def test_a_launch_and_an_end_are_recorded_after_the_revocation_that_followed() -> None:
    story = given.after(given.redeemed().later(days=10), given.revoke()).later(days=10)
    assert late(story, (given.launch(), 2), (given.end(), 12), (given.end(), 5)) == [
        "CampaignLaunched CampaignEnded",
        "nothing",
        "CampaignEnded",
    ]
    assert story.code().stop(CAMPAIGN) == (day(5), "ended")


def test_the_earliest_revocation_holds() -> None:
    story = given.after(given.running().later(days=10), given.revoke(force=True)).later(days=10)
    asked = [(given.revoke(), 12), (given.revoke(), 5), (given.revoke(force=True), 5)]
    assert late(story, *asked) == ["nothing", "campaign_running", "CampaignEnded Revoked"]
    assert (story.code().revoked_at, story.code().stop(CAMPAIGN)) == (day(5), (day(5), "code_revoked"))


def test_a_revocation_counts_only_campaigns_launched_by_then_and_ends_the_others_at_their_launch() -> None:
    story = given.redeemed().later(days=8)
    given.after(story, given.launch(replace(CAMPAIGN, starts_at=day(9)))).later(days=2)
    assert late(story, (given.revoke(), 5)) == ["CampaignEnded Revoked"]
    assert story.code().stop(CAMPAIGN) == (day(8), "code_revoked")


def test_what_is_on_record_after_a_revocation_stays_and_authorizes_nothing() -> None:
    story = given.after(
        given.generated().later(days=8),
        given.share(),
        given.redeem(),
        given.launch(replace(CAMPAIGN, starts_at=day(9))),
    )
    assert (story.code().recorded_after_revocation, late(story.later(days=2), (given.revoke(), 5))) == (
        0,
        ["CampaignEnded Revoked"],
    )
    code = story.code()
    assert (code.recorded_after_revocation, list(code.redemptions)) == (3, [ADVERTISER])
    asked = verdict([story.stream()], story.ledger.streams, ADVERTISER, day(9))
    assert asked.reason == "revoked"


def test_a_redemption_of_the_moment_of_a_revocation_counts_for_nothing_whichever_is_recorded_first() -> None:
    before = given.after(given.generated().later(days=5), given.redeem(), given.revoke())
    after = given.after(given.generated().later(days=5), given.revoke())
    assert before.code().recorded_after_revocation == 1
    assert after.outcome(given.redeem()) == "RedemptionRefused code_revoked"
    assert verdict([before.stream()], before.ledger.streams, ADVERTISER, day(5)).reason == "revoked"


def test_extending_and_superseding_a_code_that_was_revoked_by_then_is_counted() -> None:
    story = given.after(given.generated().later(days=8), given.extend(days=60))
    later = given.generate(OTHER_CODE, secret=OTHER_SECRET, supersedes=CODE, starts_at=day(12))
    given.after(story, later).later(days=2)
    counts = []
    for at in (9, 5):
        assert late(story, (given.revoke(), at)) == ["Revoked"]
        counts.append(story.code().recorded_after_revocation)
    assert counts == [0, 2]


def test_an_end_while_the_code_had_lapsed_counts_once_an_extension_shows_that_it_had_not() -> None:
    story = given.after(given.running().later(days=40), given.record_due())
    assert late(story, (given.end(), 35), (given.extend(days=60), 20)) == ["CampaignEnded", "Extended"]
    assert story.code().stop(CAMPAIGN) == (day(35), "ended")


def test_an_end_before_its_launch_cannot_have_been() -> None:
    story = given.redeemed().later(days=8)
    given.after(story, given.launch(replace(CAMPAIGN, starts_at=day(9)))).later(days=2)
    assert late(story, (given.end(), 5)) == ["effective_too_early"]
    with pytest.raises(Refused, match="before the campaign was launched"):
        story.when(given.end(), effective_at=day(5))


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (given.shared, given.share()),
        (given.redeemed, given.redeem()),
        (given.running, given.launch()),
        (given.campaign_ended, given.end()),
    ],
)
def test_the_same_again_is_a_repeat_where_the_recorded_one_was_not_later(
    first: Callable[[], Story], again: Command
) -> None:
    assert late(first().later(days=5), (again, 3)) == ["nothing"]


def test_what_was_earlier_than_the_recorded_one_is_recorded_and_counts() -> None:
    story = given.generated().later(days=6)
    given.after(story, given.share(), given.redeem(), given.launch(replace(CAMPAIGN, starts_at=day(7))), given.end())
    earlier = [
        *[(given.share(), 1), (given.redeem(), 2), (given.launch(replace(CAMPAIGN, starts_at=day(7))), 3)],
        *[(given.end(), 5), (given.end(), 4)],
    ]
    assert late(story, *earlier) == ["Shared", "Redeemed", "CampaignLaunched", "CampaignEnded", "CampaignEnded"]
    code = story.code()
    assert (list(code.shares.values()), code.redemptions) == ([day(1)], {ADVERTISER: day(2)})
    assert (code.campaigns["campaign-1"].launched_at, code.stop(CAMPAIGN)) == (day(3), (day(4), "ended"))


# The creative is locked while campaigns run at the same time.


@pytest.mark.parametrize(
    ("starts_at", "answer"),
    [(day(19), "creative_locked"), (day(20), "CampaignLaunched")],
)
def test_another_creative_may_follow_a_campaign_that_is_over_by_then(starts_at: datetime, answer: str) -> None:
    first = replace(CAMPAIGN, creative_sha256="a" * 64, ends_at=day(20))
    second = replace(CAMPAIGN, campaign_id="campaign-2", creative_sha256="b" * 64, starts_at=starts_at)
    assert given.after(given.redeemed(), given.launch(first)).outcome(given.launch(second)) == answer


def test_a_late_campaign_meets_those_launched_after_it_too() -> None:
    story = given.redeemed().later(days=5)
    later = replace(CAMPAIGN, campaign_id="campaign-2", creative_sha256="b" * 64, starts_at=day(6))
    given.after(story, given.launch(later))
    first = given.launch(replace(CAMPAIGN, creative_sha256="a" * 64))
    assert late(story, (first, 1)) == ["creative_locked"]


def test_a_campaign_that_was_over_when_another_began_is_recorded_with_its_end() -> None:
    story = given.redeemed().later(days=5)
    later = replace(CAMPAIGN, campaign_id="campaign-2", creative_sha256="b" * 64, starts_at=day(6))
    given.after(story, given.launch(later))
    first = given.launch(replace(CAMPAIGN, creative_sha256="a" * 64), ended=Ending(day(4), "budget spent"))
    assert late(story, (first, 1)) == ["CampaignLaunched CampaignEnded"]


# A code that TikTok generated is recorded with the window that it has.


def recorded(**facts: Any) -> Command:
    return given.generate(secret_given=True, **facts)


@pytest.mark.parametrize(
    ("facts", "window"),
    [
        ({"days": 1}, Window(NOW, day(1))),
        ({"days": 180}, Window(NOW, day(180))),
        ({"days": 3_653}, Window(NOW, day(3_653))),
        ({"starts_at": day(-90), "days": 100}, Window(day(-90), day(10))),
        ({"starts_at": day(-90), "expires_at": day(11)}, Window(day(-90), day(11))),
        ({"expires_at": day(11)}, Window(NOW, day(11))),
    ],
)
def test_any_window_of_up_to_ten_years_is_recorded(facts: dict[str, Any], window: Window) -> None:
    assert given.after(given.permitted(), recorded(**facts)).code().window == window


@pytest.mark.parametrize(
    "facts",
    [
        {"days": 0},
        {"days": 3_654},
        {"days": 10**12},
        {"starts_at": day(-3_000), "expires_at": day(800)},
        {"starts_at": day(3_000), "expires_at": day(3_700)},
        {"expires_at": day(3_654)},
    ],
)
def test_a_window_of_more_than_ten_years_is_refused(facts: dict[str, Any]) -> None:
    assert given.permitted().outcome(recorded(**facts)) == "duration_not_allowed"


@pytest.mark.parametrize(
    "facts",
    [{"expires_at": NOW}, {"expires_at": day(-1)}, {"starts_at": day(5), "expires_at": day(5)}],
)
def test_an_end_before_the_beginning_is_no_window(facts: dict[str, Any]) -> None:
    with pytest.raises(Malformed) as malformed:
        given.permitted().when(recorded(**facts))
    assert malformed.value.pointer == "/expires_at"


@pytest.mark.parametrize("length", [{"days": 100}, {"add_days": 400}, {"expires_at": day(3_000)}])
def test_a_recorded_code_is_extended_by_whatever_it_was(length: dict[str, Any]) -> None:
    assert given.after(given.permitted(), recorded()).outcome(given.extend(**length)) == "Extended"


# A code of which nobody stated the start.


def unstated() -> Story:
    """A code generated on day 10, which ends on day 40; it is day 20."""
    story = given.permitted().later(days=20)
    story.when(recorded(expires_at=day(40)), effective_at=day(10))
    return story


def test_its_start_is_the_first_thing_that_is_known_of_it() -> None:
    story = unstated()
    starts = [story.code().window.starts_at]
    for command, at in [(given.redeem(), 12), (given.share(), 6), (given.redeem(), 3), (given.redeem(), 5)]:
        story.outcome(command, effective_at=day(at))
        starts.append(story.code().window.starts_at)
    assert starts == [day(10), day(10), day(6), day(3), day(3)]
    assert story.code().start_stated is False


def test_its_length_says_nothing_about_its_end() -> None:
    story = unstated()
    answers = [story.outcome(given.extend(days=60)), story.outcome(given.extend(add_days=30))]
    assert answers == ["start_unknown", "Extended"]


def test_before_its_start_the_question_answers_not_started() -> None:
    story = unstated()
    late(story, (given.redeem(), 5))
    asked = [verdict([story.stream()], story.ledger.streams, ADVERTISER, day(at)) for at in (4, 5)]
    assert [(v.reason, v.starts_at) for v in asked] == [("not_started", day(5)), ("authorized", day(5))]


def test_its_start_never_lies_in_another_codes_time() -> None:
    story = unstated()
    other = given.generate(OTHER_CODE, secret=OTHER_SECRET, days=7, starts_at=day(0))
    assert late(story, (other, 0), (given.redeem(), 6), (given.share(), 3), (given.redeem(), 7)) == [
        "CodeGenerated",
        "code_not_started",
        "code_not_started",
        "Redeemed",
    ]
    assert late(story, (given.redeem(), 6)) == ["code_not_started"]


def test_another_code_cannot_be_recorded_in_the_time_that_it_had() -> None:
    story = unstated()
    late(story, (given.redeem(), 5))
    other = given.generate(OTHER_CODE, secret=OTHER_SECRET, days=7, starts_at=day(0))
    assert late(story, (other, 0)) == ["live_code_exists"]


# Superseding.


def successor(**facts: Any) -> Command:
    return given.generate(OTHER_CODE, secret=OTHER_SECRET, supersedes=CODE, **facts)


def test_a_code_that_takes_anothers_place_is_recorded_with_that_in_one_append() -> None:
    story = given.redeemed().later(days=5)
    old, new = story.when(successor())
    assert (given.body(old), given.body(new)["supersedes"]) == (
        {"superseded_by": str(OTHER_CODE), "superseded_at": day(5)},
        str(CODE),
    )
    assert [story.code(code).state(day(6)) for code in (CODE, OTHER_CODE)] == ["superseded", "generated"]
    assert story.code().live(day(6)) is True


def test_what_runs_on_a_superseded_code_stays_and_its_redeemers_may_launch_more() -> None:
    story = given.after(given.running(), successor(), given.launch(replace(CAMPAIGN, campaign_id="campaign-2")))
    assert [c.campaign_id for c in story.code().running(day(2))] == ["campaign-1", "campaign-2"]
    assert given.types(story.when(given.end())) == ["CampaignEnded"]


def test_a_successor_that_begins_later_takes_the_place_then() -> None:
    story = given.after(given.shared(), successor(starts_at=day(10)))
    assert story.code().state(day(9)) == "shared"
    assert story.outcome(given.redeem()) == "Redeemed"
    assert story.later(days=10).outcome(given.redeem(advertiser_id=NEW)) == ("RedemptionRefused code_superseded")


def test_a_successor_must_be_of_the_same_video_and_creator() -> None:
    story = given.after(given.redeemed(), given.permission(creator_id="creator-2"))
    assert [story.outcome(successor(video_id="video-2")), story.outcome(successor(creator_id="creator-2"))] == [
        "other_video",
        "other_creator",
    ]


@pytest.mark.parametrize(
    ("story", "answer"),
    [(given.revoked, "code_revoked"), (given.window_over, "code_expired"), (given.superseded, "code_superseded")],
)
def test_only_a_code_that_occupies_its_video_is_superseded(story: Callable[[], Story], answer: str) -> None:
    third = given.generate(UUID(int=3), secret=Sealed("#third/secret+of-a-code=E5F6"), supersedes=CODE)
    assert story().outcome(third) == answer


def test_the_refusal_of_a_superseded_code_names_its_successor() -> None:
    with pytest.raises(Refused) as refusal:
        given.superseded().when(given.share(brand_id="brand-2"))
    assert refusal.value.conflict_id == str(OTHER_CODE)


def test_a_successor_is_decided_on_the_version_of_the_old_code_that_its_caller_saw() -> None:
    story = given.redeemed()
    assert [story.outcome(successor(if_match=version)) for version in (2, 3)] == [
        "stale_version",
        "Superseded CodeGenerated",
    ]


def test_two_successors_at_once_cannot_both_pass() -> None:
    story = given.redeemed()
    third = given.generate(UUID(int=3), secret=Sealed("#third/secret+of-a-code=E5F6"), supersedes=CODE)
    first, second = story.decide(successor()), story.decide(third)
    assert len(story.ledger.append(first, now=story.clock(), actor=given.OPERATOR)) == 2
    with pytest.raises(Conflict):
        story.ledger.append(second, now=story.clock(), actor=given.OPERATOR)


def test_revoking_the_successor_revives_nothing() -> None:
    story = given.after(given.superseded(), given.revoke(OTHER_CODE))
    assert story.outcome(given.share(brand_id="brand-2")) == "code_superseded"
    assert story.outcome(given.generate(UUID(int=3), secret=Sealed("#third/secret+of-a-code=E5F6"))) == "CodeGenerated"


def test_where_both_authorize_the_new_one_answers() -> None:
    story = given.after(given.redeemed().later(days=5), successor(starts_at=day(-5)), given.redeem(OTHER_SECRET))
    streams = [story.stream(OTHER_CODE), story.stream()]
    for codes in (streams, streams[::-1]):
        answer = verdict(codes, story.ledger.streams, ADVERTISER, day(6))
        assert (answer.reason, answer.code_id) == ("authorized", OTHER_CODE)
    assert verdict(streams, story.ledger.streams, ADVERTISER, day(4)).code_id == CODE


# The right post.


def test_a_code_of_another_video_than_expected_is_refused_on_record_before_anything_else() -> None:
    story = given.revoked()
    assert story.outcome(given.redeem(expected_video_id="video-2")) == "RedemptionRefused other_video"
    assert given.redeemed().outcome(given.redeem(expected_video_id="video-2")) == "RedemptionRefused other_video"
    assert given.redeemed().outcome(given.redeem(expected_video_id=given.VIDEO)) == "nothing"
