"""The question the product exists for, asked of every kind of code, about then and about now, as known then and now."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import get_args
from uuid import UUID

import pytest

from domain import commands
from domain.authorization import Reason, Verdict, verdict
from domain.values import When
from tests import given
from tests.given import ADVERTISER, CODE, NOW, OTHER_CODE, OTHER_SECRET, Story

END = NOW + timedelta(days=30)


def day(number: float) -> datetime:
    return NOW + timedelta(days=number)


def ask(
    story: Story, at: datetime = NOW, *, advertiser_id: str = ADVERTISER, as_of: int | None = None, turned: bool = False
) -> Verdict:
    """Ask about the first video, as far as the ledger knew at a position; `turned` gives the codes latest first."""
    known = [r for r in story.ledger.events if as_of is None or r.position <= as_of]
    streams = {stream: [r for r in known if r.stream_id == stream] for stream in story.ledger.streams}
    codes = [streams.get(CODE, []), streams.get(OTHER_CODE, [])]
    return verdict(codes[::-1] if turned else codes, streams, advertiser_id, at)


# The positions of `given.redeemed`: the permission went on at 1, the code was generated at 2, shared at 3, redeemed
# at 4. `given.running` adds the launch at 5, `given.expired` the end of the campaign at 6 and the expiry at 7, and
# `given.revived` the extension at 8.
AUTHORIZED = Verdict("authorized", CODE, NOW, END, permission_enabled=True, shared=True, evidence=(1, 2, 3, 4))


# Every reason.


@pytest.mark.parametrize("story", [given.unknown, given.permitted])
def test_a_video_without_codes_is_not_authorized(story: Callable[[], Story]) -> None:
    assert ask(story()) == Verdict("no_code", None, None, None, permission_enabled=False, shared=False, evidence=())


def test_a_redeemed_code_authorizes_its_advertiser_inside_the_window() -> None:
    assert ask(given.redeemed()) == AUTHORIZED


def test_a_code_does_not_authorize_another_advertiser() -> None:
    expected = replace(AUTHORIZED, reason="not_redeemed", shared=False, evidence=(1, 2))
    assert ask(given.redeemed(), advertiser_id="advertiser-2") == expected


def test_a_shared_code_authorizes_nobody_before_it_is_redeemed() -> None:
    assert ask(given.shared()) == replace(AUTHORIZED, reason="not_redeemed", evidence=(1, 2, 3))


def test_a_code_that_has_not_begun_authorizes_nobody() -> None:
    assert ask(given.not_started()) == Verdict(
        "not_started", CODE, day(5), day(35), permission_enabled=True, shared=False, evidence=(1, 2)
    )


def test_a_code_does_not_authorize_at_the_end_of_its_window_whatever_is_recorded() -> None:
    assert ask(given.redeemed(), END) == replace(AUTHORIZED, reason="expired")


def test_a_recorded_expiry_is_no_evidence_for_the_window_and_the_clock_are() -> None:
    assert ask(given.expired(), END) == replace(AUTHORIZED, reason="expired")


def test_a_revoked_code_authorizes_nobody() -> None:
    assert ask(given.revoked()) == replace(AUTHORIZED, reason="revoked", evidence=(1, 2, 3, 4, 5))


@pytest.mark.parametrize(
    ("story", "at", "reason"),
    [
        (given.after(given.not_started(), given.revoke()), day(1), "revoked"),
        (given.after(given.generated(), given.revoke()), day(31), "revoked"),
        (given.generated(), day(-1), "not_started"),
        (given.generated(), day(31), "expired"),
    ],
)
def test_revoked_outranks_the_window_and_the_window_outranks_a_missing_redemption(
    story: Story, at: datetime, reason: str
) -> None:
    assert ask(story, at).reason == reason


def test_only_the_reason_authorized_is_a_yes() -> None:
    assert [reason for reason in get_args(Reason) if Verdict(reason).authorized] == ["authorized"]


# Then and now.


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        (0, AUTHORIZED),
        (4.9, AUTHORIZED),
        (5, replace(AUTHORIZED, reason="revoked", evidence=(1, 2, 3, 4, 5))),
        (31, replace(AUTHORIZED, reason="revoked", evidence=(1, 2, 3, 4, 5))),
    ],
)
def test_an_ad_was_authorized_until_the_code_was_revoked(days: float, expected: Verdict) -> None:
    story = given.after(given.redeemed().later(days=5), given.revoke())
    assert ask(story, day(days)) == expected


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        (29, AUTHORIZED),
        (30.5, replace(AUTHORIZED, reason="expired")),
        (31, replace(AUTHORIZED, expires_at=day(61), evidence=(1, 2, 3, 4, 8))),
        (61, replace(AUTHORIZED, reason="expired", expires_at=day(61), evidence=(1, 2, 3, 4, 8))),
    ],
)
def test_a_revived_code_authorized_nobody_between_its_end_and_its_extension(days: float, expected: Verdict) -> None:
    assert ask(given.revived(), day(days)) == expected


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        (9, AUTHORIZED),
        (10, replace(AUTHORIZED, expires_at=day(60), evidence=(1, 2, 3, 4, 5))),
        (59, replace(AUTHORIZED, expires_at=day(60), evidence=(1, 2, 3, 4, 5))),
        (60, replace(AUTHORIZED, reason="expired", expires_at=day(60), evidence=(1, 2, 3, 4, 5))),
    ],
)
def test_an_extension_in_time_leaves_no_gap(days: float, expected: Verdict) -> None:
    story = given.after(given.redeemed().later(days=10), given.extend(days=60))
    assert ask(story, day(days)) == expected


def test_an_ad_was_not_authorized_before_the_redemption() -> None:
    story = given.after(given.shared().later(days=5), given.redeem())
    assert ask(story, day(4)) == replace(AUTHORIZED, reason="not_redeemed", evidence=(1, 2, 3))


def test_a_redemption_recorded_late_counts_from_when_it_happened() -> None:
    story = given.shared().later(days=5)
    story.when(given.redeem(), effective_at=day(2))
    assert [ask(story, day(days)).reason for days in (1, 2)] == ["not_redeemed", "authorized"]


def test_a_code_recorded_late_authorizes_from_the_start_of_its_window() -> None:
    story = given.generated(starts_at=day(-10))
    story.when(given.redeem(), effective_at=day(-9))
    assert ask(story, day(-9)).reason == "authorized"


# As the ledger knew then.


@pytest.mark.parametrize(
    ("as_of", "expected"),
    [
        (1, Verdict("no_code")),
        (2, replace(AUTHORIZED, reason="not_redeemed", shared=False, evidence=(1, 2))),
        (4, AUTHORIZED),
        (5, replace(AUTHORIZED, reason="revoked", evidence=(1, 2, 3, 4, 5))),
    ],
)
def test_what_was_recorded_after_a_position_was_not_known_there(as_of: int, expected: Verdict) -> None:
    assert ask(given.revoked(), as_of=as_of) == expected


def test_a_revocation_recorded_late_changes_what_was_true_and_not_what_was_known() -> None:
    story = given.redeemed().later(days=5)
    story.when(given.revoke(), effective_at=day(2))
    assert [ask(story, day(3), as_of=as_of).reason for as_of in (4, 5)] == ["authorized", "revoked"]


# Several codes of one video.


def two_codes() -> Story:
    """The first code ended on day 30 and was redeemed; the second was generated on day 31, and is redeemed on 35."""
    story = given.after(given.window_over(), given.generate(OTHER_CODE, secret=OTHER_SECRET)).later(days=4)
    return given.after(story, given.redeem(OTHER_SECRET))


SECOND = Verdict("authorized", OTHER_CODE, day(31), day(61), permission_enabled=True, shared=False, evidence=(1, 5, 6))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("days", "expected"),
    [
        (29, AUTHORIZED),
        (36, SECOND),
        (34, replace(SECOND, reason="not_redeemed", evidence=(1, 5))),
        (30, replace(AUTHORIZED, reason="expired")),
        (61, replace(SECOND, reason="expired")),
    ],
)
def test_of_several_codes_the_one_that_authorizes_answers_and_else_the_last_to_begin(
    days: float, expected: Verdict, *, turned: bool
) -> None:
    assert ask(two_codes(), day(days), turned=turned) == expected


@pytest.mark.parametrize("turned", [False, True])
def test_of_codes_recorded_in_any_order_the_one_whose_window_began_last_answers(*, turned: bool) -> None:
    story = given.generated(starts_at=day(-20))
    story.when(given.generate(OTHER_CODE, secret=OTHER_SECRET, starts_at=day(-60)))
    assert [ask(story, day(days), turned=turned).code_id for days in (-30, -10, 0)] == [OTHER_CODE, CODE, CODE]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("days", "advertiser_id", "expected"),
    [
        (9, ADVERTISER, "authorized"),
        (9, "advertiser-2", "not_redeemed"),
        (11, ADVERTISER, "revoked"),
        (11, "advertiser-2", "revoked"),
    ],
)
def test_a_code_that_has_not_begun_does_not_hide_why_the_one_before_it_does_not_authorize(
    days: float, advertiser_id: str, expected: str, *, turned: bool
) -> None:
    story = given.after(given.redeemed().later(days=10), given.revoke())
    given.after(story, given.generate(OTHER_CODE, secret=OTHER_SECRET, starts_at=day(20)))
    found = ask(story, day(days), advertiser_id=advertiser_id, turned=turned)
    assert (found.reason, found.code_id) == (expected, CODE)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("revoked", "expected"),
    [
        ([], ("not_started", CODE)),
        ([CODE], ("not_started", OTHER_CODE)),
        ([OTHER_CODE], ("not_started", CODE)),
        ([CODE, OTHER_CODE], ("revoked", CODE)),
    ],
)
def test_if_no_code_has_begun_the_one_that_begins_first_answers(
    revoked: list[UUID], expected: tuple[str, UUID], *, turned: bool
) -> None:
    story = given.after(given.not_started(), given.generate(OTHER_CODE, secret=OTHER_SECRET, starts_at=day(40)))
    given.after(story, *(given.revoke(code) for code in revoked))
    found = ask(story, turned=turned)
    assert (found.reason, found.code_id) == expected


# What stands beside the reason.


def test_an_ad_stays_authorized_when_the_permission_goes_off() -> None:
    assert ask(given.permission_off()) == replace(AUTHORIZED, permission_enabled=False, evidence=(2, 3, 4, 5))


def test_the_permission_was_off_before_it_was_first_switched_on() -> None:
    assert ask(given.generated(starts_at=day(-10)), day(-1)).permission_enabled is False


def test_the_permission_is_the_one_of_that_time() -> None:
    story = given.after(given.redeemed().later(days=5), given.permission(enabled=False))
    assert [ask(story, day(days)).permission_enabled for days in (4, 5)] == [True, False]


@pytest.mark.parametrize(
    ("share", "brand_ids", "shared", "evidence"),
    [
        (given.share(advertiser_id=None), ["brand-1"], True, (1, 2, 3, 4)),
        (given.share(advertiser_id=None), [], None, (1, 2, 3, 4)),
        (given.share(advertiser_id=None), ["brand-2"], None, (1, 2, 3, 4)),
        (given.share(advertiser_id="advertiser-2"), [], False, (1, 2, 4)),
    ],
)
def test_a_code_counts_as_shared_where_the_advertiser_or_its_brand_was_named(
    share: given.Command, brand_ids: list[str], *, shared: bool | None, evidence: tuple[int, ...]
) -> None:
    story = given.after(given.generated(), share, given.redeem(brand_ids=frozenset(brand_ids)))
    assert ask(story) == replace(AUTHORIZED, shared=shared, evidence=evidence)


def test_a_share_after_the_moment_asked_about_is_not_counted() -> None:
    story = given.after(given.generated(), given.redeem())
    given.after(story.later(days=5), given.share())
    assert [ask(story, day(days)).shared for days in (4, 5)] == [False, False], "it was redeemed before"


def test_a_share_before_the_redemption_counts_from_its_own_time() -> None:
    story = given.after(given.generated().later(days=2), given.share())
    given.after(story.later(days=2), given.redeem())
    assert [ask(story, day(days)).shared for days in (1, 3, 5)] == [False, True, True]


def test_what_does_not_decide_is_not_evidence() -> None:
    story = given.after(given.running(), given.reveal(), given.note(), given.redeem(advertiser_id="advertiser-2"))
    assert ask(story).evidence == (1, 2, 3, 4)


# Whose the account is.


def name(story: Story, brand_id: str, on: float) -> list[str]:
    """State since when the account is a brand's."""
    when = When(story.clock(), day(on))
    naming = commands.name_advertiser(story.ledger, ADVERTISER, brand_id, stream_id=UUID(int=0xAD), when=when)
    return given.types(story.ledger.append(given.done(naming), now=story.clock(), actor=given.OPERATOR))


def ask_knowing(story: Story, at: datetime) -> Verdict:
    advertiser = story.ledger.streams.get(UUID(int=0xAD), [])
    return verdict([story.stream()], story.ledger.streams, ADVERTISER, at, advertiser)


@pytest.mark.parametrize(
    ("named", "shared"),
    [
        ([], None),
        ([("brand-1", 1)], True),
        ([("brand-2", 1)], False),
        ([("brand-1", 6)], None),
        ([("brand-2", 1), ("brand-1", 3)], True),
        ([("brand-1", 3), ("brand-2", 1)], True),
        ([("brand-1", 3), ("brand-2", 3)], False),
    ],
)
def test_a_share_with_a_brand_counts_for_an_account_that_was_known_to_be_of_it(
    named: list[tuple[str, float]], *, shared: bool | None
) -> None:
    story = given.after(given.generated(), given.share(advertiser_id=None)).later(days=5)
    given.after(story, given.redeem()).later(days=5)
    assert [name(story, brand, on) for brand, on in named] == [["AdvertiserNamed"]] * len(named)
    assert ask_knowing(story, day(9)).shared is shared


def test_the_same_statement_again_records_nothing() -> None:
    story = given.generated().later(days=5)
    told = [name(story, "brand-1", 5), name(story, "brand-1", 5), name(story, "brand-1", 3), name(story, "brand-1", 3)]
    assert told == [["AdvertiserNamed"], [], ["AdvertiserNamed"], []]


# What an answer says of its evidence.


def test_an_answer_says_whose_code_it_rests_on_and_when_its_evidence_was_recorded() -> None:
    answer = ask(given.redeemed().later(days=3), day(2))
    assert (answer.creator_id, answer.start_stated, answer.evidence_recorded_at) == (given.CREATOR, True, NOW)
    assert (answer.recorded_late, answer.backdated) == (False, False)


def test_an_answer_that_rests_on_what_was_recorded_later_says_so() -> None:
    story = given.shared().later(days=5)
    story.when(given.redeem(), effective_at=day(2))
    answers = [ask(story, day(days)) for days in (1, 3, 6)]
    assert [(a.recorded_late, a.backdated) for a in answers] == [(False, False), (True, True), (False, True)]


def test_an_expiry_that_the_clock_recorded_later_makes_no_answer_late() -> None:
    assert ask(given.expired(), day(30.5)).recorded_late is False


def test_before_a_code_was_generated_its_window_ends_as_an_extension_of_that_moment_says() -> None:
    story = given.permitted().later(days=10)
    story.when(given.generate(secret_given=True, expires_at=day(5)), effective_at=day(1))
    story.when(given.extend(expires_at=day(25)), effective_at=day(1))
    before = ask(story, day(0))
    assert (before.reason, before.starts_at, before.expires_at) == ("not_started", day(1), day(25))
    assert len(before.evidence) == len(ask(story, day(2)).evidence)
