"""The rules of redeeming a code, and of the campaigns that run on it."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from domain.campaign import Campaign
from domain.code import Code
from domain.values import Sealed
from tests import given
from tests.given import ADVERTISER, BRAND, CAMPAIGN, NOW, Command, Story

END = NOW + timedelta(days=30)
SECOND = replace(CAMPAIGN, campaign_id="campaign-2")
A, B = "a" * 64, "b" * 64


# Redemptions.


def test_several_advertisers_may_redeem_one_code() -> None:
    story = given.redeemed().later(days=1)
    story.when(given.redeem(advertiser_id="advertiser-2"))
    assert story.code().redemptions == {ADVERTISER: NOW, "advertiser-2": NOW + timedelta(days=1)}


@pytest.mark.parametrize(
    ("shared", "brand_ids", "flag"),
    [
        (given.share(), [], True),
        (given.share(advertiser_id=None), [BRAND], True),
        (given.share(advertiser_id=None), ["brand-2"], False),
        (given.share(advertiser_id=None), [], None),
        (given.share(advertiser_id="advertiser-2"), [], False),
        (given.reveal(), [BRAND], False),
    ],
)
def test_a_redemption_says_whether_the_code_was_shared_with_the_advertiser(
    shared: Command, brand_ids: list[str], *, flag: bool | None
) -> None:
    (redeemed,) = given.after(given.generated(), shared).when(given.redeem(brand_ids=frozenset(brand_ids)))
    known = {} if flag is None else {"shared_with_advertiser": flag}
    assert given.body(redeemed) == {"advertiser_id": ADVERTISER} | known


@pytest.mark.parametrize(
    ("story", "reason"),
    [(given.not_started, "code_not_started"), (given.window_over, "code_expired"), (given.revoked, "code_revoked")],
)
def test_a_refused_redemption_is_recorded_with_its_reason(story: Callable[[], Story], reason: str) -> None:
    told = story()
    told.outcome(given.redeem(advertiser_id="advertiser-2"))
    assert given.body(told.stream()[-1]) == {"advertiser_id": "advertiser-2", "reason": reason}


def test_the_same_refused_redemption_is_recorded_once_an_hour() -> None:
    story = given.not_started()
    answers = [story.later(**by).outcome(given.redeem()) for by in ({}, {"minutes": 59}, {"minutes": 1}, {"hours": 1})]
    assert answers == [
        "RedemptionRefused code_not_started",
        "code_not_started",
        "RedemptionRefused code_not_started",
        "RedemptionRefused code_not_started",
    ]


def test_a_refusal_of_another_advertiser_or_for_another_reason_is_recorded_at_once() -> None:
    story = given.not_started()
    answers = [story.outcome(given.redeem()), story.outcome(given.redeem(advertiser_id="advertiser-2"))]
    story.when(given.revoke())
    assert [*answers, story.outcome(given.redeem())] == [
        "RedemptionRefused code_not_started",
        "RedemptionRefused code_not_started",
        "RedemptionRefused code_revoked",
    ]


def test_a_secret_that_nobody_knows_records_nothing() -> None:
    assert given.generated().outcome(given.redeem(Sealed("mistyped"))) == "code_unknown"


# What a campaign needs.


def test_a_campaign_needs_a_redemption_by_its_own_advertiser() -> None:
    of_another = replace(CAMPAIGN, advertiser_id="advertiser-2")
    assert given.redeemed().outcome(given.launch(of_another)) == "not_redeemed_by_advertiser"


@pytest.mark.parametrize(
    ("starts_at", "answer"),
    [
        (NOW - timedelta(seconds=1), "campaign_outside_window"),
        (NOW, "CampaignLaunched"),
        (END - timedelta(seconds=1), "CampaignLaunched"),
        (END, "campaign_outside_window"),
    ],
)
def test_a_campaign_starts_inside_the_window(starts_at: datetime, answer: str) -> None:
    assert given.redeemed().outcome(given.launch(replace(CAMPAIGN, starts_at=starts_at))) == answer


def test_a_campaign_is_recorded_as_it_was_launched() -> None:
    asked = replace(CAMPAIGN, name="Spring", targeting={"age": [18, 24]}, caption_sha256=A, creative_sha256=B)
    (launched,) = given.redeemed().when(given.launch(asked))
    assert given.body(launched) == {
        "campaign_id": "campaign-1",
        "advertiser_id": ADVERTISER,
        "budget": {"amount": "500.00", "currency": "USD"},
        "starts_at": NOW + timedelta(days=1),
        "ends_at": NOW + timedelta(days=90),
        "name": "Spring",
        "targeting": {"age": [18, 24]},
        "caption_sha256": A,
        "creative_sha256": B,
    }


@pytest.mark.parametrize(
    "other",
    [
        replace(CAMPAIGN, amount="501.00"),
        replace(CAMPAIGN, currency="EUR"),
        replace(CAMPAIGN, starts_at=CAMPAIGN.starts_at + timedelta(seconds=1)),
        replace(CAMPAIGN, ends_at=CAMPAIGN.ends_at + timedelta(seconds=1)),
        replace(CAMPAIGN, name="Spring"),
        replace(CAMPAIGN, targeting={"age": [18, 24]}),
        replace(CAMPAIGN, caption_sha256=A),
        replace(CAMPAIGN, creative_sha256=A),
    ],
)
def test_a_campaign_of_the_same_id_with_other_details_is_refused(other: Campaign) -> None:
    assert given.running().outcome(given.launch(other)) == "campaign_exists_differently"


@pytest.mark.parametrize(("first", "again"), [("5", "5.00"), ("5.00", "5"), ("5.5", "5.50")])
def test_an_amount_is_the_same_however_many_decimals_it_is_written_with(first: str, again: str) -> None:
    story = given.after(given.redeemed(), given.launch(replace(CAMPAIGN, amount=first)))
    assert story.outcome(given.launch(replace(CAMPAIGN, amount=again))) == "nothing"


# How long a campaign runs.


def test_a_campaign_that_would_outlive_the_window_stops_at_its_end() -> None:
    code = given.running().code()
    assert code.stops_at(code.campaigns["campaign-1"]) == END


def test_a_campaign_that_ends_before_the_window_stops_at_its_own_end() -> None:
    short = replace(CAMPAIGN, ends_at=NOW + timedelta(days=5))
    code = given.after(given.redeemed(), given.launch(short)).code()
    assert code.stops_at(code.campaigns["campaign-1"]) == NOW + timedelta(days=5)


@pytest.mark.parametrize(
    ("story", "stopped_at"),
    [
        (given.campaign_ended, NOW),
        (lambda: given.after(given.running(), given.revoke(force=True)), NOW),
        (given.revived, END),
    ],
)
def test_a_campaign_that_was_ended_stopped_then_and_nothing_moves_that(
    story: Callable[[], Story], stopped_at: datetime
) -> None:
    code = story().code()
    assert code.stops_at(code.campaigns["campaign-1"]) == stopped_at


@pytest.mark.parametrize(
    ("story", "days", "running"),
    [
        (given.running, 0, ["campaign-1"]),  # it is scheduled for tomorrow
        (given.running, 29, ["campaign-1"]),
        (given.running, 30, []),
        (given.campaign_ended, 0, []),
        (lambda: given.after(given.running(), given.extend(days=60)), 59, ["campaign-1"]),
        (lambda: given.after(given.running(), given.extend(days=365)), 90, []),
        (lambda: given.after(given.running(), given.revoke(force=True)), 0, []),
        (given.revived, 31, []),
    ],
)
def test_a_campaign_runs_from_its_launch_until_something_ends_it(
    story: Callable[[], Story], days: int, running: list[str]
) -> None:
    assert [campaign.campaign_id for campaign in story().code().running(NOW + timedelta(days=days))] == running


def test_a_campaign_that_the_brand_ends_says_why() -> None:
    (ended,) = given.running().when(given.end(reason="budget spent"))
    assert given.body(ended) == {
        "campaign_id": "campaign-1",
        "advertiser_id": ADVERTISER,
        "cause": "ended",
        "reason": "budget spent",
    }


def test_a_forced_revocation_records_the_end_of_every_campaign_first() -> None:
    story = given.after(given.running(), given.launch(SECOND))
    recorded = [(r.type, given.body(r)) for r in story.when(given.revoke(force=True))]
    ended = {"advertiser_id": ADVERTISER, "cause": "code_revoked", "reason": "wrong brand"}
    assert recorded == [
        ("CampaignEnded", {"campaign_id": "campaign-1", **ended}),
        ("CampaignEnded", {"campaign_id": "campaign-2", **ended}),
        ("Revoked", {"reason": "wrong brand", "forced": True}),
    ]


def test_an_expiry_records_the_end_of_what_still_ran_first_and_at_the_same_moment() -> None:
    recorded = [(r.type, r.effective_at, given.body(r)) for r in given.cut_off().when(given.record_due())]
    ended = {"campaign_id": "campaign-1", "advertiser_id": ADVERTISER, "cause": "code_expired"}
    assert recorded == [("CampaignEnded", END, ended), ("Expired", END, {"expires_at": END})]


@pytest.mark.parametrize("ends_at", [NOW + timedelta(days=5), END])
def test_an_expiry_does_not_end_a_campaign_that_was_over_by_itself(ends_at: datetime) -> None:
    short = replace(CAMPAIGN, ends_at=ends_at)
    story = given.after(given.redeemed(), given.launch(short)).later(days=31)
    assert story.outcome(given.record_due()) == "Expired"


def test_a_code_may_be_revoked_once_its_campaign_was_over_by_itself() -> None:
    short = replace(CAMPAIGN, ends_at=NOW + timedelta(days=5))
    story = given.after(given.redeemed(), given.launch(short)).later(days=5)
    assert story.outcome(given.revoke()) == "Revoked"


# Caption and creative are locked while a campaign runs.


@pytest.mark.parametrize(
    ("first", "second", "answer"),
    [
        ({"caption_sha256": A}, {"caption_sha256": B}, "creative_locked"),
        ({"creative_sha256": A}, {"creative_sha256": B}, "creative_locked"),
        ({"caption_sha256": A, "creative_sha256": A}, {"caption_sha256": A, "creative_sha256": A}, "CampaignLaunched"),
        ({"caption_sha256": A}, {"creative_sha256": B}, "CampaignLaunched"),
        ({"caption_sha256": A}, {}, "CampaignLaunched"),
        ({}, {"caption_sha256": B}, "CampaignLaunched"),
    ],
)
def test_while_a_campaign_runs_another_caption_or_creative_is_refused(
    first: dict[str, Any], second: dict[str, Any], answer: str
) -> None:
    story = given.after(given.redeemed(), given.launch(replace(CAMPAIGN, **first)))
    assert story.outcome(given.launch(replace(SECOND, **second))) == answer


def test_the_caption_that_a_code_was_generated_with_is_the_one_first_recorded() -> None:
    story = given.after(given.generated(caption_sha256=A), given.redeem(), given.launch())
    assert story.outcome(given.launch(replace(SECOND, caption_sha256=B))) == "creative_locked"


def test_a_hash_that_a_later_campaign_recorded_first_is_locked_too() -> None:
    story = given.after(given.running(), given.launch(replace(SECOND, caption_sha256=A)))
    third = replace(CAMPAIGN, campaign_id="campaign-3", caption_sha256=B)
    assert story.outcome(given.launch(third)) == "creative_locked"


@pytest.mark.parametrize("name", ["caption_sha256", "creative_sha256"])
def test_a_campaign_that_names_no_hash_leaves_the_locked_one(name: str) -> None:
    first: dict[str, Any] = {name: A}
    other: dict[str, Any] = {name: B, "campaign_id": "campaign-3"}
    story = given.after(given.redeemed(), given.launch(replace(CAMPAIGN, **first)), given.launch(SECOND))
    assert story.outcome(given.launch(replace(CAMPAIGN, **other))) == "creative_locked"


def test_the_lock_is_lifted_when_no_campaign_runs() -> None:
    story = given.after(given.redeemed(), given.launch(replace(CAMPAIGN, caption_sha256=A)), given.end())
    assert story.outcome(given.launch(replace(SECOND, caption_sha256=B))) == "CampaignLaunched"


def test_an_end_whose_launch_is_left_out_changes_no_campaign() -> None:
    code = given.redeemed().code()
    code.trigger_event(Code.CampaignEnded, timestamp=NOW, campaign_id="gone", advertiser_id=ADVERTISER, cause="ended")
    assert code.campaigns == {}


def test_a_campaign_recorded_after_the_expiry_that_ended_it_does_not_run_again_when_the_code_is_revived() -> None:
    story = given.redeemed().later(days=31)
    story = given.after(story, given.record_due())
    within = NOW + timedelta(days=1)
    late = replace(CAMPAIGN, starts_at=within, ends_at=NOW + timedelta(days=90))
    story = given.after(story, lambda ledger, when: given.launch(late)(ledger, when._replace(at=within)))
    story = given.after(story, given.extend(days=60))
    assert story.outcome(given.revoke()) == "Revoked"


# What is recorded late: the window ended on day 30 and that is recorded; it is day 40. Times are days.


def lapsed(*facts: tuple[Command, float]) -> Story:
    """Tell that a redeemed code lapsed ten days ago, then what is recorded late, each with when it took effect."""
    story = given.after(given.redeemed().later(days=40), given.record_due())
    for command, day in facts:
        story.when(command, effective_at=NOW + timedelta(days=day))
    return story


LAUNCH = given.launch(replace(CAMPAIGN, ends_at=NOW + timedelta(days=90)))
EXTEND = given.extend(days=60)


@pytest.mark.parametrize(
    ("facts", "stop", "ended_by"),
    [
        ([(LAUNCH, 2)], 30, "code_expired"),
        ([(LAUNCH, 2), (EXTEND, 20)], 60, None),
        ([(EXTEND, 20), (LAUNCH, 2)], 60, None),
        ([(LAUNCH, 2), (EXTEND, 35)], 30, "code_expired"),
        ([(EXTEND, 35), (LAUNCH, 2)], 30, "code_expired"),
        ([(EXTEND, 35), (LAUNCH, 36)], 60, None),
        ([(LAUNCH, 2), (EXTEND, 35), (given.extend(expires_at=NOW + timedelta(days=50)), 20)], 60, None),
        ([(LAUNCH, 2), (EXTEND, 35), (given.extend(expires_at=NOW + timedelta(days=50)), 32)], 30, "code_expired"),
        ([(LAUNCH, 2), (given.end(), 5)], 5, "ended"),
        ([(LAUNCH, 2), (given.end(), 5), (EXTEND, 20)], 5, "ended"),
        ([(LAUNCH, 2), (EXTEND, 20), (given.end(), 5)], 5, "ended"),
        ([(LAUNCH, 2), (given.revoke(force=True), 5)], 5, "code_revoked"),
        ([(LAUNCH, 2), (given.end(), 31)], 30, "code_expired"),
        ([(LAUNCH, 2), (given.revoke(), 31)], 30, "code_expired"),
    ],
)
def test_what_is_recorded_late_stops_a_campaign_when_it_stopped_whichever_was_recorded_first(
    facts: list[tuple[Command, float]], stop: float, ended_by: str | None
) -> None:
    code = lapsed(*facts).code()
    campaign = code.campaigns["campaign-1"]
    assert (code.stops_at(campaign) - NOW, campaign.ended_by) == (timedelta(days=stop), ended_by)
    assert campaign.ended_at == (None if ended_by is None else NOW + timedelta(days=stop))


def test_a_campaign_whose_end_was_undone_ends_with_the_window_that_the_extension_set() -> None:
    story = lapsed((LAUNCH, 2), (EXTEND, 20)).later(days=21)
    assert story.outcome(given.record_due()) == "CampaignEnded Expired"
    assert story.code().campaigns["campaign-1"].ended_at == NOW + timedelta(days=60)


def test_a_campaign_is_not_launched_while_the_code_had_lapsed_though_it_was_revived_since() -> None:
    story, during = lapsed((EXTEND, 35)), NOW + timedelta(days=32)
    assert story.outcome(given.launch(replace(CAMPAIGN, starts_at=during)), effective_at=during) == "code_expired"
    assert story.outcome(given.launch()) == "CampaignLaunched", "now it is live"


def test_clocks_that_differ_by_a_moment_refuse_no_launch_on_a_code_just_revived() -> None:
    story = given.after(given.redeemed().later(days=40), EXTEND)
    story.clock.forward(seconds=-1)
    assert story.outcome(LAUNCH) == "CampaignLaunched"
    assert story.code().running(story.clock()) != []


def test_a_code_is_not_revoked_late_under_a_campaign_that_ran_then_unless_forced() -> None:
    assert lapsed((LAUNCH, 2)).outcome(given.revoke(), effective_at=NOW + timedelta(days=5)) == "campaign_running"


def test_another_creative_was_locked_while_a_campaign_ran_that_the_window_stopped_later() -> None:
    story = lapsed((given.launch(replace(CAMPAIGN, caption_sha256=A)), 2))
    other = given.launch(replace(SECOND, caption_sha256=B))
    assert story.outcome(other, effective_at=NOW + timedelta(days=5)) == "creative_locked"
