"""What holds in every story, whatever is asked, in whatever order and however late."""

from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import combinations
from typing import Any
from uuid import UUID

from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st

from domain.authorization import verdict
from domain.campaign import Campaign
from domain.code import LONG, Code, fold_code, replay_code
from domain.creator import Creator, replay_creator
from domain.errors import Refused
from domain.periods import overlap
from domain.values import Sealed
from tests import given
from tests.given import CODE, NOW, OTHER_CODE, OTHER_SECRET, SECRET, Command, Story
from tests.memory_ledger import Conflict, Decided

SECRETS = {CODE: SECRET, OTHER_CODE: OTHER_SECRET, UUID(int=3): Sealed("#third/secret+of-a-code=E5F6")}
# The states that stories begin in, all with a code of the first video.
STATES = [
    *(given.generated, given.not_started, given.redeemed, given.running),
    *(given.window_over, given.cut_off, given.expired, given.revived, given.revoked),
    given.superseded,
]
VIDEOS = ["video-1", "video-2"]
ADVERTISERS = ["advertiser-1", "advertiser-2"]
HASHES = [None, "a" * 64, "b" * 64]

# What a command that was carried out comes to when it is given again, where that is not simply nothing.
AGAIN = {"extend": "window_not_longer", "generate": "secret_exists", "reveal": "CodeRevealed"}


@dataclass(frozen=True)
class Step:
    """A command of `tests.given` with its facts, after some time, and recorded some days late."""

    name: str
    facts: dict[str, Any]
    hours_later: int
    days_late: int

    @property
    def command(self) -> Command:
        command: Command = getattr(given, self.name)(**self.facts)
        return command

    def outcome(self, story: Story) -> str:
        return story.outcome(self.command, effective_at=self.effective_at(story))

    def decide(self, story: Story) -> Decided:
        """Decide; nothing where a rule refuses."""
        try:
            return story.decide(self.command, effective_at=self.effective_at(story))
        except Refused:
            return None

    def effective_at(self, story: Story) -> datetime:
        return story.clock() - timedelta(days=self.days_late)


@dataclass(frozen=True)
class Tale:
    """A story to be: a state, and what is asked from then on."""

    begin: Callable[[], Story]
    steps: list[Step]

    def play(self) -> Iterator[tuple[Story, Step]]:
        """Give the story before each step, once time has passed."""
        story = self.begin()
        for step in self.steps:
            yield story.later(hours=step.hours_later), step

    def played(self) -> Story:
        """Give the story after all steps."""
        story = self.begin()
        for step in self.steps:
            step.outcome(story.later(hours=step.hours_later))
        return story


def day(first: int, last: int) -> st.SearchStrategy[Any]:
    return st.integers(first, last).map(lambda days: NOW + timedelta(days=days))


def campaign(number: int, advertiser_id: str, start: int, length: int, mark: str | None) -> Campaign:
    starts_at = NOW + timedelta(days=start)
    ends_at = starts_at + timedelta(days=length)
    return Campaign(f"campaign-{number}", advertiser_id, "5.00", "USD", starts_at, ends_at, caption_sha256=mark)


# The code that a story begins with is asked for most, for the others may not exist yet.
codes = st.sampled_from([CODE, CODE, CODE, *SECRETS])
facts: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "permission": st.fixed_dictionaries({"enabled": st.sampled_from([True, True, False])}),
    "generate": st.builds(
        lambda code_id, **rest: {"code_id": code_id, "secret": SECRETS[code_id], **rest},
        st.sampled_from(list(SECRETS)),
        video_id=st.sampled_from(["video-1", *VIDEOS]),
        days=st.sampled_from([7, 30]),
        starts_at=st.none() | day(-40, 40),
    )
    | st.builds(
        lambda code_id, supersedes: {"code_id": code_id, "secret": SECRETS[code_id], "supersedes": supersedes},
        st.sampled_from([OTHER_CODE, UUID(int=3)]),
        st.sampled_from([CODE, OTHER_CODE]),
    ),
    "extend": st.fixed_dictionaries({"code_id": codes, "days": st.sampled_from([7, 30, 60, 365])})
    | st.fixed_dictionaries({"code_id": codes, "expires_at": day(0, 120)}),
    "share": st.fixed_dictionaries({"code_id": codes, "advertiser_id": st.sampled_from([None, *ADVERTISERS])}),
    "redeem": st.fixed_dictionaries(
        {"secret": codes.map(SECRETS.__getitem__), "advertiser_id": st.sampled_from(ADVERTISERS)}
    ),
    "launch": st.fixed_dictionaries(
        {
            "code_id": codes,
            "campaign": st.builds(
                campaign,
                st.integers(1, 2),
                st.sampled_from(ADVERTISERS),
                st.integers(0, 60),
                st.integers(1, 60),
                st.sampled_from(HASHES),
            ),
        }
    ),
    "end": st.fixed_dictionaries({"code_id": codes, "campaign_id": st.sampled_from(["campaign-1", "campaign-2"])}),
    "revoke": st.fixed_dictionaries({"code_id": codes, "force": st.booleans()}),
    "reveal": st.fixed_dictionaries({"code_id": codes}),
    "bind": st.fixed_dictionaries({"creator_id": st.sampled_from([None, "creator-1", "creator-2"])}),
    "note": st.fixed_dictionaries({"code_id": codes, "about_position": st.none() | st.integers(1, 3)}),
    "record_due": st.fixed_dictionaries({"code_id": codes}),
    "erase": st.just({}),
}
# An erasure ends most of what a story could tell, so stories have it more rarely. What is due is so at few moments.
names = [*[name for name in facts if name != "erase"] * 3, *["record_due"] * 3, "erase"]
# Made once: a strategy that is made while a story is drawn is checked each time, which takes longer than the story.
steps_by_name = {
    name: st.builds(
        Step,
        st.just(name),
        known,
        hours_later=st.sampled_from([0, 0, 0, 1, 24, 8 * 24, 25 * 24]),
        days_late=st.sampled_from([0, 0, 0, 1, 10]),
    )
    for name, known in facts.items()
}
steps = st.sampled_from(names).flatmap(steps_by_name.__getitem__)
stories = st.builds(Tale, st.sampled_from(STATES), st.lists(steps, min_size=8, max_size=25))
bounded = settings(max_examples=75, deadline=None)


def codes_of(story: Story) -> list[Code]:
    return [story.code(code_id) for code_id in SECRETS if code_id in story.ledger.streams]


def kept(code: Code) -> dict[str, Any]:
    """Return the state of a code without what an outsider or a remark may add to it."""
    beside = {"_version", "_modified_on", "refusals", "notes"}
    return {name: value for name, value in vars(code).items() if name not in beside}


def overlapping(story: Story) -> list[tuple[UUID, UUID]]:
    """Return the pairs of codes that occupy one video at the same time, save a code and the one that superseded it."""
    pairs = combinations(codes_of(story), 2)
    return [
        (one.id, other.id)
        for one, other in pairs
        if one.video_id == other.video_id
        and overlap(one.occupation(), other.occupation())
        and str(one.id) != other.supersedes
        and str(other.id) != one.supersedes
    ]


@bounded
@for_all(stories)
def test_replaying_what_was_recorded_gives_the_aggregate_that_recorded_it(tale: Tale) -> None:
    for story, step in tale.play():
        decision = step.decide(story)
        if decision is not None:
            story.ledger.append(decision, now=story.clock(), actor=given.OPERATOR)
            stream = story.ledger.streams[decision.aggregate.id]
            replay = replay_code if isinstance(decision.aggregate, Code) else replay_creator
            assert replay(stream) == decision.aggregate


@bounded
@for_all(stories)
def test_the_same_command_again_records_nothing_new(tale: Tale) -> None:
    for story, step in tale.play():
        first = step.outcome(story).split()
        refusal = " ".join(word for word in first if word.islower())
        carried_out = first != ["nothing"] and not refusal
        if carried_out and step.name == "extend" and step.days_late:
            continue  # its own end may have changed what it is compared with
        assert step.outcome(story) == (AGAIN.get(step.name, "nothing") if carried_out else refusal or "nothing")


@bounded
@for_all(stories)
def test_nothing_that_happens_after_a_revocation_is_recorded_of_the_code(tale: Tale) -> None:
    for story, step in tale.play():
        revoked = {code.id: code.revoked_at for code in codes_of(story)}
        recorded = len(story.ledger.events)
        step.outcome(story)
        for r in story.ledger.events[recorded:]:
            revoked_at = revoked.get(r.stream_id)
            if revoked_at is not None and isinstance(r.event, Code.Changed):
                assert r.effective_at <= revoked_at


@bounded
@for_all(stories)
def test_an_extension_moves_the_end_as_it_stood_then_and_nothing_moves_the_start(tale: Tale) -> None:
    story = tale.played()
    for code in codes_of(story):
        assert replay_code(story.stream(code.id)[:1]).window.starts_at == code.window.starts_at
        for r in story.stream(code.id):
            if isinstance(r.event, Code.Extended):
                assert r.event.expires_at > max(r.event.old_expires_at, r.effective_at)


@bounded
@for_all(stories, day(-50, 400))
def test_live_depends_on_window_revocation_and_the_clock_alone(tale: Tale, moment: Any) -> None:
    story = tale.played()
    for code in codes_of(story):
        matters = (Code.Generated, Code.Extended, Code.Revoked)
        bare = fold_code([r for r in story.stream(code.id) if isinstance(r.event, matters)])
        assert code.live(moment) == bare.live(moment)


@bounded
@for_all(stories)
def test_no_two_codes_ever_occupy_a_video_at_the_same_time(tale: Tale) -> None:
    assert overlapping(tale.played()) == []


@bounded
@for_all(stories)
def test_every_code_of_a_video_is_found_by_it(tale: Tale) -> None:
    story = tale.played()
    for video in VIDEOS:
        of_video = given.done(story.ledger.of_video(video)).codes
        assert {code.id for code in of_video} == {code.id for code in codes_of(story) if code.video_id == video}


@bounded
@for_all(stories, steps, steps)
def test_no_two_codes_occupy_a_video_at_the_same_time_when_two_commands_race(
    tale: Tale, one: Step, other: Step
) -> None:
    story = tale.played()
    slow = one.decide(story)
    other.outcome(story.later(hours=other.hours_later))
    try:
        story.ledger.append(slow, now=story.clock(), actor=given.OPERATOR)
    except Conflict:
        one.outcome(story)
    assert overlapping(story) == []


@bounded
@for_all(stories)
def test_a_decision_that_records_nothing_takes_and_frees_no_name(tale: Tale) -> None:
    for story, step in tale.play():
        decision = step.decide(story)
        if decision is not None and not decision.aggregate.pending_events:
            assert list(decision.claims) == []
        story.ledger.append(decision, now=story.clock(), actor=given.OPERATOR)


@bounded
@for_all(stories, st.data())
def test_no_event_fails_to_apply_whichever_came_before_it(tale: Tale, data: st.DataObject) -> None:
    story = tale.played()
    for code in codes_of(story):
        first, *rest = story.stream(code.id)
        some = [first, *(r for r in rest if data.draw(st.booleans()))]
        assert fold_code(some).version == some[-1].stream_version


@bounded
@for_all(stories)
def test_folding_a_whole_stream_is_replaying_it(tale: Tale) -> None:
    story = tale.played()
    for code in codes_of(story):
        assert fold_code(story.stream(code.id)) == code


@bounded
@for_all(stories, st.sampled_from(ADVERTISERS), st.sampled_from(VIDEOS))
def test_the_answer_about_now_agrees_with_the_codes_as_they_stand(
    tale: Tale, advertiser_id: str, video_id: str
) -> None:
    story = tale.played()
    now = story.clock()
    of_video = [code for code in codes_of(story) if code.video_id == video_id]
    answer = verdict([story.stream(code.id) for code in of_video], story.ledger.streams, advertiser_id, now)
    assert answer.authorized == any(code.live(now) and advertiser_id in code.redemptions for code in of_video)


def test_the_stories_tell_of_every_event() -> None:
    told: set[str] = set()

    @settings(bounded, derandomize=True, database=None)
    @for_all(stories)
    def listen(tale: Tale) -> None:
        told.update(given.types(tale.played().ledger.events))

    listen()
    assert told == {
        *("PermissionEnabled", "PermissionDisabled", "CodeGenerated", "Extended", "Shared", "Redeemed"),
        *("RedemptionRefused", "CampaignLaunched", "CampaignEnded", "CodeRevealed", "NoteAdded", "Revoked", "Expired"),
        "Superseded",
        *("ExpiryApproaching", "CreatorErased", "VideoBound", "VideoReleased"),
    }


@bounded
@for_all(stories)
def test_nothing_is_sealed_for_a_creator_once_they_are_erased(tale: Tale) -> None:
    """What a command seals rests on the creator as it read them: after an erasure the append itself refuses it."""
    for story, step in tale.play():
        decision = step.decide(story)
        if decision is not None and any(
            type(v) is Sealed for e in decision.aggregate.pending_events for v in vars(e).values()
        ):
            assert any(isinstance(read, Creator) and read.erased_at is None for read in decision.also_read)
        story.ledger.append(decision, now=story.clock(), actor=given.OPERATOR)


def test_a_long_stream_builds_the_same_code_and_what_follows_changes_only_its_own_copy() -> None:
    shares = [given.share(brand_id=f"brand-{number}") for number in range(LONG)]
    *stream, last = given.after(given.generated(), *shares).stream(CODE)
    one_by_one = None
    for recorded in stream:
        one_by_one = recorded.event.mutate(one_by_one)
    assert len(stream) == LONG
    for built in (replay_code(stream), fold_code(stream)):
        assert vars(built) == vars(one_by_one)
        later = copy(built)
        last.event.apply(later)
        assert (len(built.shares), len(later.shares)) == (LONG - 1, LONG)
