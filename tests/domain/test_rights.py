"""Usage rights: what a contract allows beside a code, and which of all ends comes first."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from domain.authorization import verdict
from domain.campaign import CampaignStop
from domain.rights import End, Statement, UsageRights, effective_end, ended_after
from tests import given
from tests.given import ADVERTISER, CAMPAIGN, NOW, Story


def day(number: float) -> datetime:
    return NOW + timedelta(days=number)


def reason(story: Story, at: datetime) -> str:
    """Ask whether the code authorizes the account."""
    return verdict([story.stream()], story.ledger.streams, ADVERTISER, at).reason


@pytest.mark.parametrize(
    ("revoked_at", "rights_until", "end"),
    [
        (None, None, End(day(30), "code")),
        (None, day(40), End(day(30), "code")),
        (None, day(30), End(day(30), "code")),
        (None, day(20), End(day(20), "rights")),
        (day(10), day(20), End(day(10), "code")),
        (day(25), day(20), End(day(20), "rights")),
    ],
)
def test_the_earliest_end_counts_and_of_the_same_time_the_codes(
    revoked_at: datetime | None, rights_until: datetime | None, end: End
) -> None:
    assert effective_end(day(30), revoked_at, rights_until) == end


def test_a_statement_takes_the_place_of_the_one_before_whichever_is_recorded_first() -> None:
    story = given.generated()
    given.after(story, given.rights(day(9), platforms=("tiktok",), edits_allowed=True))
    assert story.code().usage_rights == Statement(NOW, UsageRights(day(9), ("tiktok",), edits_allowed=True))
    story.later(days=5)
    given.after(story, given.rights(day(20)))
    story.when(given.rights(day(12)), effective_at=day(3))
    code = story.code()
    assert [code.rights_until(day(n)) for n in (0, 3, 5)] == [day(9), day(12), day(20)]
    assert code.effective_end == End(day(20), "rights")


def test_the_same_rights_again_record_nothing_and_another_contract_does() -> None:
    story = given.generated()
    assert story.outcome(given.rights(day(9), contract="C-1")) == "UsageRightsStated"
    assert story.outcome(given.rights(day(9), contract="C-1")) == "nothing"
    assert story.outcome(given.rights(day(9), contract="C-2")) == "UsageRightsStated"
    story.later(days=2)
    # Between two known statements there may have been others.
    assert story.outcome(given.rights(day(9), contract="C-2"), effective_at=day(1)) == "UsageRightsStated"
    assert story.outcome(given.rights(day(9), contract="C-2"), effective_at=day(1)) == "nothing"


def test_rights_can_be_stated_with_a_new_code() -> None:
    story = given.generated(rights=UsageRights(day(9)))
    assert (story.told(), story.code().effective_end) == ("CodeGenerated UsageRightsStated", End(day(9), "rights"))


def test_the_question_answers_no_from_the_end_of_the_rights_on_until_more_are_agreed() -> None:
    story = given.redeemed()
    given.after(story, given.rights(day(9)))
    story.later(days=12)
    given.after(story, given.rights(day(40)))
    assert [reason(story, day(n)) for n in (8.9, 9, 11.9, 12, 30)] == [
        *("authorized", "rights_ended", "rights_ended", "authorized", "expired")
    ]
    found = verdict([story.stream()], story.ledger.streams, ADVERTISER, day(10))
    assert (found.rights_until, found.end, len(found.evidence)) == (day(9), End(day(9), "rights"), 5)


def test_a_campaign_stops_for_good_when_the_rights_end_also_where_they_are_extended_later() -> None:
    story = given.running()
    given.after(story, given.rights(day(9)))
    assert story.code().stop(CAMPAIGN) == CampaignStop(day(9), "rights_ended")
    story.later(days=8)
    given.after(story, given.rights(day(12)))
    assert story.code().stop(CAMPAIGN) == CampaignStop(day(12), "rights_ended")
    story.later(days=8)
    given.after(story, given.rights(day(90)))
    assert story.code().stop(CAMPAIGN) == CampaignStop(day(12), "rights_ended")
    # Nobody but people stops an ad: when they did is recorded, and changes nothing.
    assert story.outcome(given.end()) == "CampaignEnded"
    assert story.code().stop(CAMPAIGN) == CampaignStop(day(12), "rights_ended")
    # Recorded late, an agreement of before shows that it ran on.
    story.when(given.rights(day(60)), effective_at=day(11))
    assert story.code().stop(CAMPAIGN) == CampaignStop(day(16), "ended")


def test_what_runs_no_longer_by_the_rights_keeps_no_revocation_out() -> None:
    story = given.running()
    given.after(story, given.rights(day(9)))
    assert story.outcome(given.revoke()) == "campaign_running"
    story.later(days=9)
    assert story.outcome(given.revoke()) == "Revoked"


def test_rights_that_were_over_when_they_were_stated_end_with_the_statement_and_with_a_launch() -> None:
    over = [Statement(day(5), UsageRights(day(2)))]
    assert [ended_after(over, day(n)) for n in (1, 5, 7)] == [day(5), day(5), day(7)]
    renewed = [*over, Statement(day(6), UsageRights(None))]
    assert [ended_after(renewed, day(n)) for n in (1, 5, 7)] == [day(5), day(5), None]
