"""To which creator a video is bound, and what that means for codes."""

from uuid import UUID

import pytest

from domain.code import Code
from domain.commands import Decision
from domain.errors import Refused
from domain.values import Sealed
from domain.video import Video
from tests import given
from tests.given import CODE, CREATOR, NOW, OTHER_CODE, OTHER_SECRET, VIDEO
from tests.memory_ledger import Conflict

OTHER = "creator-2"
OTHERS_CODE = given.generate(OTHER_CODE, creator_id=OTHER, secret=OTHER_SECRET)


def two_creators() -> given.Story:
    return given.after(given.permitted(), given.permission(creator_id=OTHER))


def test_a_bound_video_takes_codes_of_its_creator_alone() -> None:
    story = given.after(two_creators(), given.bind())
    assert story.outcome(OTHERS_CODE) == "video_of_other_creator"
    assert story.outcome(given.generate()) == "CodeGenerated"


def test_recording_a_code_that_tiktok_generated_is_refused_like_generating_one() -> None:
    story = given.after(two_creators(), given.bind()).later(days=10)
    recorded = given.generate(OTHER_CODE, creator_id=OTHER, secret=OTHER_SECRET, secret_given=True)
    assert story.outcome(recorded, effective_at=NOW) == "video_of_other_creator"


def test_another_creator_keeps_a_code_but_cannot_extend_it() -> None:
    story = given.after(two_creators(), OTHERS_CODE, given.bind())
    assert story.outcome(given.extend(OTHER_CODE, days=60)) == "video_of_other_creator"
    assert story.outcome(given.share(OTHER_CODE)) == "Shared"
    assert story.outcome(given.redeem(OTHER_SECRET)) == "Redeemed"
    assert story.outcome(given.revoke(OTHER_CODE)) == "Revoked"
    assert story.outcome(given.generate()) == "CodeGenerated"


@pytest.mark.parametrize("spelled", ["Creator-1", "CREATOR-1"])
def test_every_spelling_is_the_same_creator(spelled: str) -> None:
    story = given.after(two_creators(), given.bind(spelled))
    (bound,) = [r.event for r in story.ledger.events if isinstance(r.event, Video.Bound)]
    assert bound.creator_id == CREATOR
    assert story.outcome(given.bind()) == "nothing"
    assert story.outcome(given.generate()) == "CodeGenerated"


def test_a_creator_of_whom_nothing_is_recorded_yet_can_have_a_video() -> None:
    story = given.after(given.unknown(), given.bind("Creator-1"))
    given.after(story, given.permission(), given.permission(creator_id=OTHER))
    assert story.outcome(OTHERS_CODE) == "video_of_other_creator"
    assert story.outcome(given.generate()) == "CodeGenerated"


def test_a_binding_can_be_changed_and_lifted() -> None:
    story = given.after(two_creators(), given.bind(), given.bind(OTHER))
    assert story.outcome(given.generate()) == "video_of_other_creator"
    assert story.outcome(given.bind(None)) == "VideoReleased"
    assert story.outcome(given.generate()) == "CodeGenerated"


def test_a_binding_holds_for_what_took_effect_before_it() -> None:
    story = two_creators().later(days=10)
    story.when(given.bind())
    assert story.outcome(OTHERS_CODE, effective_at=NOW) == "video_of_other_creator"


def test_the_binding_takes_its_place_among_the_claims_of_the_video() -> None:
    """Two codes, a binding between them, and a third: none of the numbers is taken twice, and none is left out."""
    story = given.after(given.generated(), given.revoke(), given.bind())
    second = given.generate(OTHER_CODE, secret=OTHER_SECRET)
    third = given.generate(UUID(int=3), secret=Sealed("#third/secret+of-a-code=E5F6"))
    given.after(story, second, given.revoke(OTHER_CODE), third)
    known = given.done(story.ledger.of_video(VIDEO))
    assert [code.id for code in known.codes] == [CODE, OTHER_CODE, UUID(int=3)]
    assert (known.video is not None, known.next_claim) == (True, 5)


@pytest.mark.parametrize("command", ["generate", "extend"])
def test_a_command_fails_if_the_video_is_bound_before_its_events_are_appended(command: str) -> None:
    story = two_creators()
    if command == "extend":
        story.when(OTHERS_CODE)
    asked = OTHERS_CODE if command == "generate" else given.extend(OTHER_CODE, days=60)
    decided = story.decide(asked)
    story.when(given.bind())
    with pytest.raises(Conflict):
        story.ledger.append(decided, now=story.clock(), actor=given.OPERATOR)


@pytest.mark.parametrize("command", ["generate", "extend"])
def test_a_command_fails_if_the_binding_changes_before_its_events_are_appended(command: str) -> None:
    story = given.after(two_creators(), given.bind(OTHER))
    if command == "extend":
        story.when(OTHERS_CODE)
    asked = OTHERS_CODE if command == "generate" else given.extend(OTHER_CODE, days=60)
    decided = story.decide(asked)
    story.when(given.bind())
    with pytest.raises(Conflict):
        story.ledger.append(decided, now=story.clock(), actor=given.OPERATOR)


def test_a_command_on_a_video_that_nobody_bound_reads_and_claims_nothing_more() -> None:
    decided = two_creators().decide(OTHERS_CODE)
    assert isinstance(decided, Decision)
    assert isinstance(decided.aggregate, Code)
    assert [claim.kind for claim in decided.claims] == ["secret", "video"]
    assert len(decided.also_read) == 1


def test_the_refusal_does_not_name_the_creator() -> None:
    story = given.after(two_creators(), given.bind())
    with pytest.raises(Refused) as refused:
        story.when(OTHERS_CODE)
    assert CREATOR not in refused.value.detail
    assert refused.value.conflict_id is None
