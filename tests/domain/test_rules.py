"""The rules of codes: permission and terms, one code for a video, windows, extension, expiry, revocation, repeats.

Redemptions and campaigns have a file of their own; what each command comes to in each state is in the life cycle.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from domain.code import Code, Ending
from domain.commands import Ledger
from domain.values import CLOCK, Actor, Policy, Sealed, When, Window
from tests import given
from tests.given import (
    BRAND,
    CREATOR,
    NOW,
    OTHER_CODE,
    OTHER_SECRET,
    SECRET,
    TERMS,
    VIDEO,
    Command,
    Story,
)
from tests.memory_ledger import Conflict

END = NOW + timedelta(days=30)


# Permission and terms.


def test_a_code_records_the_terms_and_the_moment_of_their_acceptance() -> None:
    story = given.generated()
    (generated,) = story.stream()
    assert given.body(generated) == {
        "creator_id": CREATOR,
        "video_id": VIDEO,
        "terms_version": TERMS,
        "terms_accepted_at": NOW,
        "starts_at": NOW,
        "expires_at": END,
        "masked": "…A1B2",
        "fingerprint": story.ledger.fingerprint(SECRET),
        "secret_given": False,
        "start_stated": True,
    }


@pytest.mark.parametrize(
    ("story", "command"),
    [
        (given.permitted, given.generate()),
        (given.generated, given.extend(days=60)),
        (given.generated, given.share()),
    ],
)
def test_no_code_extension_or_share_is_appended_after_the_permission_went_off(
    story: Callable[[], Story], command: Command
) -> None:
    told = story()
    decided = told.decide(command)
    told.when(given.permission(enabled=False))
    with pytest.raises(Conflict):
        told.ledger.append(decided, now=told.clock(), actor=given.OPERATOR)


def test_a_live_code_stays_valid_when_the_permission_goes_off() -> None:
    story = given.after(given.shared(), given.permission(enabled=False), given.redeem())
    assert (story.code().live(NOW), story.code().state(NOW)) == (True, "redeemed")


# One code at a time occupies a video.


def test_32_generates_at_once_make_one_code() -> None:
    story = given.permitted()
    asked = [given.generate(UUID(int=n), secret=Sealed(f"secret number {n}")) for n in range(1, 33)]
    decided = [story.decide(command) for command in asked]
    appended = []
    for decision in decided:
        try:
            appended += story.ledger.append(decision, now=story.clock(), actor=given.OPERATOR)
        except Conflict:
            continue
    again = [story.outcome(command) for command in asked[1:]]
    assert (given.types(appended), again) == (["CodeGenerated"], ["live_code_exists"] * 31)


def test_one_secret_recorded_twice_at_once_makes_one_code() -> None:
    story = given.permitted()
    first, second = (story.decide(given.generate(UUID(int=n), video_id=f"video-{n}")) for n in (1, 2))
    story.ledger.append(first, now=story.clock(), actor=given.OPERATOR)
    with pytest.raises(Conflict):
        story.ledger.append(second, now=story.clock(), actor=given.OPERATOR)


def test_a_code_that_has_not_started_occupies_its_video() -> None:
    assert given.not_started().outcome(given.generate(OTHER_CODE, secret=OTHER_SECRET)) == "live_code_exists"


def test_a_code_recorded_after_its_end_occupies_nothing() -> None:
    story = given.generated(starts_at=NOW - timedelta(days=40))
    assert story.outcome(given.generate(OTHER_CODE, secret=OTHER_SECRET)) == "CodeGenerated"


def test_a_code_recorded_after_its_end_may_stand_beside_the_one_that_occupies_the_video() -> None:
    late = given.generate(OTHER_CODE, secret=OTHER_SECRET, starts_at=NOW - timedelta(days=40))
    assert given.generated().outcome(late) == "CodeGenerated"


@pytest.mark.parametrize(
    ("story", "command"),
    [(given.redeemed, given.revoke()), (given.cut_off, given.record_due()), (given.cut_off, given.revoke())],
)
def test_a_code_that_expired_or_was_revoked_frees_its_video(story: Callable[[], Story], command: Command) -> None:
    told = given.after(story(), command)
    assert told.outcome(given.generate(OTHER_CODE, secret=OTHER_SECRET)) == "CodeGenerated"


def test_a_late_expiry_does_not_free_the_video_from_the_code_that_took_it() -> None:
    story = given.after(given.window_over(), given.generate(OTHER_CODE, secret=OTHER_SECRET), given.record_due())
    assert story.outcome(given.generate(UUID(int=3), secret=Sealed("a third secret"))) == "live_code_exists"


def test_two_late_codes_of_the_same_time_cannot_both_pass() -> None:
    story = given.permitted()
    asked = [
        given.generate(starts_at=NOW - timedelta(days=40)),
        given.generate(OTHER_CODE, secret=OTHER_SECRET, starts_at=NOW - timedelta(days=20)),
    ]
    decided = [story.decide(command) for command in asked]
    story.ledger.append(decided[0], now=story.clock(), actor=given.OPERATOR)
    with pytest.raises(Conflict):
        story.ledger.append(decided[1], now=story.clock(), actor=given.OPERATOR)
    assert story.outcome(asked[1]) == "live_code_exists"


def test_a_code_may_be_recorded_between_two_periods_of_another() -> None:
    story = given.after(given.window_over().later(days=20), given.extend(days=60))
    between = given.generate(OTHER_CODE, secret=OTHER_SECRET, days=7, starts_at=NOW + timedelta(days=31))
    assert story.outcome(between) == "CodeGenerated"


def test_a_code_revoked_before_another_took_its_video_is_recorded_with_its_revocation() -> None:
    story = given.permitted()
    story.when(given.generate(OTHER_CODE, secret=OTHER_SECRET))
    begun, taken_back = NOW - timedelta(days=9), NOW - timedelta(days=2)
    alone = given.generate(starts_at=begun)
    both = given.generate(starts_at=begun, revoked=Ending(taken_back, "wrong brand"))
    assert (story.outcome(alone), story.outcome(both)) == ("live_code_exists", "CodeGenerated Revoked")
    assert story.code().occupation() == [Window(begun, taken_back)]


def test_a_revival_takes_the_video_again() -> None:
    assert given.revived().outcome(given.generate(OTHER_CODE, secret=OTHER_SECRET)) == "live_code_exists"


def test_a_code_is_not_revived_while_another_occupies_its_video() -> None:
    story = given.after(given.expired(), given.generate(OTHER_CODE, secret=OTHER_SECRET))
    assert story.outcome(given.extend(days=60)) == "live_code_exists"


def test_an_extension_decided_before_the_end_gives_way_to_a_code_that_took_the_video_after_it() -> None:
    story = given.generated().later(days=30, seconds=-1)
    extension = story.decide(given.extend(days=60))
    given.after(story.later(seconds=1), given.generate(OTHER_CODE, secret=OTHER_SECRET))
    with pytest.raises(Conflict):
        story.ledger.append(extension, now=story.clock(), actor=given.OPERATOR)


def test_a_code_decided_for_a_free_video_gives_way_to_the_revival_of_the_one_that_held_it() -> None:
    story = given.window_over()
    second = story.decide(given.generate(OTHER_CODE, secret=OTHER_SECRET))
    story.when(given.extend(days=60))
    with pytest.raises(Conflict):
        story.ledger.append(second, now=story.clock(), actor=given.OPERATOR)


# Windows.


def test_a_window_may_have_begun_before_it_is_recorded() -> None:
    begun = NOW - timedelta(days=10)
    assert given.generated(starts_at=begun).code().window == Window(begun, begun + timedelta(days=30))


def test_a_window_begins_when_the_code_was_generated_in_the_world() -> None:
    story = given.unknown()
    for command in (given.permission(), given.generate()):
        story.when(command, effective_at=NOW - timedelta(days=3))
    assert story.code().window == Window(NOW - timedelta(days=3), NOW + timedelta(days=27))


@pytest.mark.parametrize("days", [7, 30, 60, 365])
def test_these_lengths_are_allowed_by_default(days: int) -> None:
    assert given.permitted().outcome(given.generate(days=days)) == "CodeGenerated"


@pytest.mark.parametrize("days", [-30, 0, 1, 29, 180, 366])
def test_no_other_length_is_allowed_by_default(days: int) -> None:
    assert given.permitted().outcome(given.generate(days=days)) == "duration_not_allowed"


def test_the_policy_decides_which_lengths_are_allowed() -> None:
    policy = Policy(allowed_days=(180,))
    answers = [given.permitted().outcome(given.generate(days=days, policy=policy)) for days in (180, 30)]
    assert answers == ["CodeGenerated", "duration_not_allowed"]


# Extension.


def test_days_of_an_extension_count_from_the_start_of_the_window() -> None:
    story = given.generated().later(days=10)
    (extended,) = story.when(given.extend(days=60))
    assert given.body(extended) == {"old_expires_at": END, "expires_at": NOW + timedelta(days=60)}


def test_an_extension_to_a_moment_need_not_be_of_an_allowed_length() -> None:
    story = given.after(given.generated(), given.extend(expires_at=END + timedelta(hours=1)))
    assert story.code().window == Window(NOW, END + timedelta(hours=1))


@pytest.mark.parametrize(("beyond", "answer"), [(0, "Extended"), (1, "duration_not_allowed")])
def test_an_end_lies_at_most_the_longest_length_from_now(beyond: int, answer: str) -> None:
    story = given.generated().later(days=10)
    assert story.outcome(given.extend(expires_at=NOW + timedelta(days=10 + 365, seconds=beyond))) == answer


@pytest.mark.parametrize("seconds", [-1, 0])
def test_an_end_that_is_not_later_is_refused(seconds: int) -> None:
    assert given.generated().outcome(given.extend(expires_at=END + timedelta(seconds=seconds))) == "window_not_longer"


def test_a_new_end_that_is_over_already_is_refused() -> None:
    assert given.window_over().later(days=60).outcome(given.extend(days=60)) == "window_not_longer"


def test_a_policy_may_forbid_to_revive_a_code() -> None:
    forbids = Policy(extend_after_expiry=False)
    assert given.window_over().outcome(given.extend(days=60, policy=forbids)) == "code_expired"


# Expiry.


@pytest.mark.parametrize(("microseconds", "answer"), [(-1, "Shared"), (0, "code_expired")])
def test_a_code_is_over_at_the_very_end_of_its_window_whatever_is_recorded(microseconds: int, answer: str) -> None:
    assert given.generated().later(days=30, microseconds=microseconds).outcome(given.share()) == answer


def test_an_expiry_takes_effect_at_the_end_of_the_window_whenever_it_is_recorded() -> None:
    story = given.window_over()
    (expired,) = story.when(given.record_due(), actor=CLOCK)
    assert (given.body(expired), expired.effective_at, expired.recorded_at, expired.source) == (
        {"expires_at": END},
        END,
        END + timedelta(days=1),
        "clock",
    )


@pytest.mark.parametrize(
    ("command", "recorded"),
    [
        (given.extend(days=60), [("Expired", END), ("Extended", END + timedelta(days=1))]),
        (given.revoke(), [("Expired", END), ("Revoked", END + timedelta(days=1))]),
    ],
)
def test_an_unrecorded_expiry_is_recorded_before_what_follows_it(command: Command, recorded: list[object]) -> None:
    assert [(r.type, r.effective_at) for r in given.window_over().when(command)] == recorded


def test_an_extension_from_before_the_end_recorded_after_it_records_no_expiry() -> None:
    recorded = given.window_over().when(given.extend(days=60), effective_at=NOW + timedelta(days=29))
    assert [(r.type, r.effective_at) for r in recorded] == [("Extended", NOW + timedelta(days=29))]


def test_an_extended_code_expires_again() -> None:
    story = given.after(given.revived().later(days=30), given.record_due())
    assert [given.body(r)["expires_at"] for r in story.stream() if r.type == "Expired"] == [
        END,
        END + timedelta(days=31),
    ]


def test_a_revoked_code_never_expires() -> None:
    assert given.revoked().later(days=31).outcome(given.record_due()) == "nothing"


# Revocation.


def test_a_revocation_says_whether_it_needed_force() -> None:
    bodies = [given.body(story().when(given.revoke(force=True))[-1]) for story in (given.redeemed, given.running)]
    assert bodies == [{"reason": "wrong brand", "forced": False}, {"reason": "wrong brand", "forced": True}]


def test_a_revoked_code_is_not_live_in_its_window() -> None:
    code = given.revoked().code()
    assert (code.live(NOW), code.occupation(), code.state(NOW)) == (False, [], "revoked")


def test_revoked_outranks_expired() -> None:
    story = given.after(given.window_over(), given.revoke())
    assert story.code().state(story.clock()) == "revoked"


# The same command again.


def test_another_channel_brand_account_or_note_is_another_share() -> None:
    story = given.shared()
    others = [
        given.share(channel="email"),
        given.share(brand_id="brand-2"),
        given.share(advertiser_id=None),
        given.share(note="for spring"),
    ]
    assert [story.outcome(command) for command in [*others, *others]] == ["Shared"] * 4 + ["nothing"] * 4


def test_the_same_note_about_another_position_is_another_note() -> None:
    story = given.generated()
    asked = [given.note(), given.note(), given.note(about_position=2), given.note(about_position=2)]
    assert [story.outcome(command) for command in asked] == ["NoteAdded", "nothing", "NoteAdded", "nothing"]


def test_every_reveal_is_recorded() -> None:
    story = given.generated()
    assert [story.outcome(given.reveal()) for _ in range(2)] == ["CodeRevealed", "CodeRevealed"]


# The version that If-Match speaks of.


@pytest.mark.parametrize("command", [given.reveal(), given.note()])
def test_a_reveal_or_a_note_leaves_the_version_that_a_caller_must_name(command: Command) -> None:
    story = given.after(given.shared(), command)
    assert (story.code().version, story.code().command_version) == (3, 2)


def test_a_refused_redemption_leaves_the_version_that_a_caller_must_name() -> None:
    story = given.not_started()
    story.outcome(given.redeem())
    assert (story.code().version, story.code().command_version) == (2, 1)


@pytest.mark.parametrize(
    "command",
    [
        given.extend(days=60),
        given.share(brand_id="brand-2"),
        given.redeem(advertiser_id="advertiser-2"),
        given.end(),
        given.revoke(force=True),
    ],
)
def test_every_other_event_moves_the_version_that_a_caller_must_name(command: Command) -> None:
    story = given.after(given.running(), command)
    assert story.code().command_version == story.code().version > 4


@pytest.mark.parametrize(("if_match", "answer"), [(2, "Extended"), (1, "stale_version")])
def test_a_command_is_decided_on_the_version_that_its_caller_saw(if_match: int, answer: str) -> None:
    story = given.after(given.shared(), given.note())
    assert story.outcome(given.extend(days=60, if_match=if_match)) == answer


# Late records, corrections and sources.


def test_what_happened_inside_the_window_may_be_recorded_after_it() -> None:
    (shared,) = given.window_over().when(given.share(brand_id="brand-2"), effective_at=NOW + timedelta(days=2))
    assert (shared.effective_at, shared.recorded_at) == (NOW + timedelta(days=2), NOW + timedelta(days=31))


def test_recorded_at_never_decreases_when_a_clock_steps_back() -> None:
    story = given.after(given.generated().later(hours=-1), given.share())
    assert [r.recorded_at for r in story.ledger.events] == [NOW, NOW, NOW]


def test_a_note_answers_an_earlier_position_and_changes_nothing_else() -> None:
    story = given.shared()
    before = story.code()
    (noted,) = story.when(given.note(text="another brand was meant", about_position=3))
    after = story.code()
    assert given.body(noted)["about_position"] == 3
    assert story.ledger.sealed[noted.position] == {"text": "another brand was meant"}
    assert (after.shares, after.window, after.redemptions) == (before.shares, before.window, before.redemptions)


@pytest.mark.parametrize(
    ("actor", "source"),
    [
        (Actor("key-1", "creator", CREATOR), "creator"),
        (Actor("key-1", "brand", BRAND), "brand"),
        (Actor("key-1", "operator"), "operator"),
        (Actor("key-1", "admin"), "operator"),
        (CLOCK, "clock"),
    ],
)
def test_the_source_of_a_fact_follows_the_role(actor: Actor, source: str) -> None:
    (shared,) = given.generated().when(given.share(), actor=actor)
    assert (shared.actor, shared.source) == (actor, source)


def test_an_event_is_applied_even_where_a_rule_of_today_would_refuse_it() -> None:
    code = given.revoked().code()
    code.trigger_event(Code.Extended, timestamp=NOW, old_expires_at=END, expires_at=NOW)
    assert code.window == Window(NOW, NOW)


def test_nothing_can_be_said_to_have_happened_before_the_code_began() -> None:
    story = given.generated()

    def early(ledger: Ledger, when: When) -> Any:
        return given.revoke()(ledger, when._replace(at=NOW - timedelta(days=1)))

    assert story.outcome(early) == "effective_too_early"


# ── one creator, however spelled ──


@pytest.mark.parametrize("spelling", ["Creator-1", "CREATOR-1"])
def test_a_creator_is_the_same_however_spelled_and_keeps_the_first_spelling(spelling: str) -> None:
    story = given.after(given.permitted(), given.generate(creator_id=spelling))
    assert story.code().creator_id == CREATOR
    assert story.outcome(given.permission(creator_id=spelling)) == "nothing"
    assert story.outcome(given.permission(creator_id=spelling, enabled=False)) == "PermissionDisabled"
    assert story.outcome(given.erase(creator_id=spelling)) == "CreatorErased"


# ── what is recorded with its end ──


def test_a_code_cannot_be_recorded_with_a_revocation_from_before_it_began() -> None:
    story = given.permitted().later(days=20)
    early = Ending(NOW - timedelta(days=1), "too early")
    recorded = given.generate(secret_given=True, revoked=early)
    assert story.outcome(recorded, effective_at=NOW) == "effective_too_early"


@pytest.mark.parametrize("days", [-(2**31), 2**31])
def test_no_number_of_days_is_more_than_a_time_can_be_moved_by(days: int) -> None:
    given_code = given.permitted()
    assert given_code.outcome(given.generate(secret_given=True, days=days)) == "duration_not_allowed"
    story = given.generated(secret_given=True)
    refusal = "window_not_longer" if days < 0 else "duration_not_allowed"
    assert [story.outcome(given.extend(days=days)), story.outcome(given.extend(add_days=days))] == [refusal] * 2
