"""Where several refusals hold at once, the one that stands first in `domain.errors.REFUSALS` is the answer.

For each command, one function tells of a situation in which exactly the named refusals hold, and gives the command.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from itertools import combinations
from typing import Any
from uuid import UUID

import pytest

from domain.errors import REFUSALS, SENTENCES, Refused, StaleVersion
from domain.values import Policy, Sealed
from tests import given
from tests.given import CAMPAIGN, CREATOR, NOW, OTHER_CODE, OTHER_SECRET, TERMS, VIDEO, Command, Story

OTHER_ADVERTISER = "advertiser-2"


def tell(story: Story, *told: tuple[bool, Command]) -> Story:
    """Carry out those commands whose condition holds."""
    return given.after(story, *(command for holds, command in told if holds))


def generate(holds: set[str]) -> tuple[Story, Command]:
    # Only a command that supersedes another code can be refused for what became of that one.
    supersedes = {"other_creator", "other_video", "code_revoked", "code_expired", "code_superseded"} & holds
    over = {"code_revoked", "code_expired", "code_superseded"} & holds
    elsewhere = "other_video" in holds or ("live_code_exists" in holds and not over)
    old_video = "video-9" if elsewhere else VIDEO
    old, old_secret = UUID(int=9), Sealed("#the/secret+of-the-code-superseded")
    whose = "creator-9" if "other_creator" in holds else CREATOR
    story = tell(
        given.permitted(),
        (whose != CREATOR, given.permission(creator_id=whose)),
        (bool(supersedes), given.generate(old, creator_id=whose, video_id=old_video, secret=old_secret)),
        (
            "code_superseded" in holds,
            given.generate(
                UUID(int=8),
                creator_id=whose,
                video_id=old_video,
                secret=Sealed("#the/secret+of-its-successor"),
                supersedes=old,
            ),
        ),
        ("code_superseded" in holds and "live_code_exists" not in holds, given.revoke(UUID(int=8))),
        ("code_revoked" in holds, given.revoke(old)),
    ).later(days=31 if "code_expired" in holds else 0)
    story = tell(
        story,
        ("secret_exists" in holds, given.generate(OTHER_CODE, video_id="video-2")),
        # Where one has superseded the old one, that one occupies the video.
        (
            "live_code_exists" in holds and (elsewhere or "code_superseded" not in holds),
            given.generate(UUID(int=3), secret=OTHER_SECRET),
        ),
        ("video_of_other_creator" in holds, given.bind("creator-3")),
        ("permission_disabled" in holds, given.permission(enabled=False)),
        ("creator_erased" in holds, given.erase()),
    )
    return story, given.generate(
        creator_id="creator-2" if "creator_unknown" in holds else CREATOR,
        terms_version="" if "terms_not_accepted" in holds else TERMS,
        days=8 if "duration_not_allowed" in holds else 30,
        supersedes=old if supersedes else None,
    )


def extend(holds: set[str]) -> tuple[Story, Command]:
    taken, later = "live_code_exists" in holds, "later_extension" in holds
    ended = taken or "code_expired" in holds
    unknown: dict[str, Any] = {"secret_given": True, "expires_at": NOW + timedelta(days=30)}
    story = given.generated(**(unknown if "start_unknown" in holds else {}))
    story = tell(
        story,
        (
            "code_superseded" in holds,
            given.generate(UUID(int=8), secret=Sealed("#the/secret+of-its-successor"), supersedes=given.CODE),
        ),
        ("code_superseded" in holds, given.revoke(UUID(int=8))),
    )
    story = tell(story.later(days=31 if ended else 0), (taken, given.generate(OTHER_CODE, secret=OTHER_SECRET)))
    moment = story.clock()
    if later:  # the command speaks of this moment, and of a later one something is on record
        story.later(days=50)
        revived = given.extend(expires_at=story.clock() + timedelta(days=40))
        if "code_superseded" not in holds:
            story.when(revived)
    for holding, command in [
        ("code_revoked", given.revoke()),
        ("video_of_other_creator", given.bind("creator-3")),
        ("permission_disabled", given.permission(enabled=False)),
        ("creator_erased", given.erase()),
    ]:
        if holding in holds:
            story.when(command, effective_at=moment)
    not_longer, longer = (5, 90) if "duration_not_allowed" in holds else (7, 60)
    asked = given.extend(
        days=not_longer if "window_not_longer" in holds else longer,
        policy=Policy(extend_after_expiry="code_expired" not in holds),
    )
    return story, lambda ledger, when: asked(ledger, when._replace(at=moment))


def attach(holds: set[str]) -> tuple[Story, Command]:
    story = tell(
        given.generated() if "secret_known" in holds else given.without_secret(),
        ("secret_exists" in holds, given.generate(OTHER_CODE, secret=OTHER_SECRET, video_id="video-2")),
        ("creator_erased" in holds, given.erase()),
    )
    return story, given.attach(OTHER_SECRET)


SUPERSEDE = given.generate(OTHER_CODE, secret=OTHER_SECRET, supersedes=given.CODE)


def share(holds: set[str]) -> tuple[Story, Command]:
    story = tell(
        given.generated(),
        ("code_superseded" in holds, SUPERSEDE),
    ).later(days=31 if "code_expired" in holds else 0)
    story = tell(
        story,
        ("code_revoked" in holds, given.revoke()),
        ("permission_disabled" in holds, given.permission(enabled=False)),
        ("creator_erased" in holds, given.erase()),
    )
    return story, given.share()


def redeem(holds: set[str]) -> tuple[Story, Command]:
    starts_at = NOW + timedelta(days=5 if "code_not_started" in holds else 0)
    story = tell(given.generated(starts_at=starts_at), ("code_superseded" in holds, SUPERSEDE))
    story = tell(
        story.later(days=31 if "code_expired" in holds else 0),
        ("code_revoked" in holds, given.revoke()),
    )
    return story, given.redeem(expected_video_id="video-2" if "other_video" in holds else VIDEO)


def launch(holds: set[str]) -> tuple[Story, Command]:
    if {"code_revoked", "code_not_started"} <= holds:
        return given.after(given.not_started(), given.revoke()), given.launch()
    # The code began two days ago, so a launch of three days ago, recorded late, came before its window.
    begun = timedelta(days=2 if "code_not_started" in holds else 0)
    running = replace(CAMPAIGN, campaign_id="campaign-2", advertiser_id=OTHER_ADVERTISER, creative_sha256="a" * 64)
    asked = replace(
        CAMPAIGN,
        creative_sha256=("b" if "creative_locked" in holds else "a") * 64,
        starts_at=NOW + timedelta(days=40 if "campaign_outside_window" in holds else 1),
    )
    story = tell(
        given.generated(starts_at=NOW - begun),
        ("not_redeemed_by_advertiser" not in holds, given.redeem()),
        (True, given.redeem(advertiser_id=OTHER_ADVERTISER)),
        ("creative_locked" in holds, given.launch(running)),
        ("campaign_exists_differently" in holds, given.launch(replace(running, campaign_id=asked.campaign_id))),
        ("code_revoked" in holds, given.revoke(force=True)),
    ).later(days=31 if "code_expired" in holds else 0)
    command = given.launch(asked)
    if "code_not_started" in holds:
        return story, lambda ledger, when: command(ledger, when._replace(at=NOW - timedelta(days=3)))
    return story, command


def revoke(holds: set[str]) -> tuple[Story, Command]:
    story = given.running() if "campaign_running" in holds else given.redeemed()
    return story, given.revoke()


def permission(holds: set[str]) -> tuple[Story, Command]:
    return tell(given.permission_off(), ("creator_erased" in holds, given.erase())), given.permission()


def reveal(holds: set[str]) -> tuple[Story, Command]:
    story = given.without_secret() if "secret_unknown" in holds else given.redeemed()
    return tell(story, ("creator_erased" in holds, given.erase())), given.reveal()


def note(holds: set[str]) -> tuple[Story, Command]:
    return tell(given.redeemed(), ("creator_erased" in holds, given.erase())), given.note()


def rights(holds: set[str]) -> tuple[Story, Command]:
    return tell(given.redeemed(), ("creator_erased" in holds, given.erase())), given.rights(NOW)


def bind(holds: set[str]) -> tuple[Story, Command]:
    return tell(given.generated(), ("creator_erased" in holds, given.erase())), given.bind()


SITUATIONS: dict[str, Callable[[set[str]], tuple[Story, Command]]] = {
    "permission": permission,
    "generate": generate,
    "attach": attach,
    "extend": extend,
    "share": share,
    "redeem": redeem,
    "launch": launch,
    "revoke": revoke,
    "reveal": reveal,
    "note": note,
    "rights": rights,
    "bind": bind,
}
# A window that has not begun is not over, and no campaign runs on a code that was revoked or has expired.
# Of a creator whom nobody knows nothing is recorded.
IMPOSSIBLE = {
    ("generate", "creator_unknown", "creator_erased"),
    ("redeem", "code_not_started", "code_expired"),
    ("launch", "code_not_started", "code_expired"),
    ("launch", "code_revoked", "creative_locked"),
    ("launch", "code_expired", "creative_locked"),
}


@pytest.mark.parametrize(("command", "refusal"), [(c, refusal) for c, all_ in REFUSALS.items() for refusal in all_])
def test_a_refusal_that_holds_alone_is_the_answer(command: str, refusal: str) -> None:
    story, asked = SITUATIONS[command]({refusal})
    assert story.outcome(asked).split()[-1] == refusal


@pytest.mark.parametrize(
    ("command", "earlier", "later"),
    [
        (command, earlier, later)
        for command, refusals in REFUSALS.items()
        for earlier, later in combinations(refusals, 2)
        if (command, earlier, later) not in IMPOSSIBLE
    ],
)
def test_of_two_refusals_the_earlier_is_the_answer(command: str, earlier: str, later: str) -> None:
    story, asked = SITUATIONS[command]({earlier, later})
    assert story.outcome(asked).split()[-1] == earlier


@pytest.mark.parametrize("command", SITUATIONS)
def test_a_command_that_nothing_refuses_is_carried_out(command: str) -> None:
    story, asked = SITUATIONS[command](set())
    assert len(story.when(asked)) == 1


@pytest.mark.parametrize("command", ["generate", "extend", "share"])
def test_where_all_refusals_hold_the_first_is_the_answer(command: str) -> None:
    story, asked = SITUATIONS[command](set(REFUSALS[command]))
    assert story.outcome(asked) == REFUSALS[command][0]


def test_every_command_with_refusals_has_its_situations_here() -> None:
    assert set(SITUATIONS) == {command for command, refusals in REFUSALS.items() if refusals}


def test_every_refusal_of_a_command_has_a_sentence() -> None:
    of_commands = {refusal for refusals in REFUSALS.values() for refusal in refusals}
    assert of_commands | {"effective_too_early"} == set(SENTENCES)  # what is recorded late has a rule of its own


@pytest.mark.parametrize(
    ("story", "repeat", "refusal"),
    [
        (given.shared, given.share(), "permission_disabled"),
        (given.redeemed, given.redeem(), "RedemptionRefused code_expired"),
        (given.running, given.launch(), "code_expired"),
    ],
)
def test_a_repeat_is_recognised_only_after_the_refusals(
    story: Callable[[], Story], repeat: Command, refusal: str
) -> None:
    told = given.after(story(), given.permission(enabled=False)).later(days=31)
    assert told.outcome(repeat) == refusal


def test_a_repeated_launch_is_refused_while_another_creative_is_locked() -> None:
    story = given.after(
        given.redeemed(),
        given.launch(replace(CAMPAIGN, creative_sha256="a" * 64)),
        given.end(),
        given.launch(replace(CAMPAIGN, campaign_id="campaign-2", creative_sha256="b" * 64)),
    )
    assert story.outcome(given.launch(replace(CAMPAIGN, creative_sha256="a" * 64))) == "creative_locked"


def test_a_stale_version_is_answered_before_any_rule() -> None:
    story = given.after(given.revoked(), given.permission(enabled=False))
    with pytest.raises(StaleVersion) as stale:
        story.when(given.extend(days=8, if_match=1))
    assert stale.value.current == 4


def test_an_unknown_code_is_answered_before_a_stale_version() -> None:
    assert given.permitted().outcome(given.share(if_match=1)) == "code_unknown"


def test_the_refusal_of_an_occupied_video_names_the_code_that_occupies_it() -> None:
    with pytest.raises(Refused) as refusal:
        given.generated().when(given.generate(OTHER_CODE, secret=OTHER_SECRET, video_id=VIDEO))
    assert refusal.value.conflict_id == str(given.CODE)


def test_the_refusal_of_a_revocation_names_the_campaign_that_runs() -> None:
    with pytest.raises(Refused) as refusal:
        given.running().when(given.revoke())
    assert refusal.value.conflict_id == CAMPAIGN.campaign_id


def test_only_a_window_that_has_not_begun_is_worth_a_retry() -> None:
    assert {code for code in SENTENCES if Refused(code).retryable} == {"code_not_started"}
