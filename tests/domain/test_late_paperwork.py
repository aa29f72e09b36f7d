"""The same facts recorded in any order come to what they come to when each is recorded as it happens.

A fact that is refused is sent again once others are recorded, until nothing more is accepted. What happened is made up
by a model that shares no code with the product, and the answers are compared with that model's.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta
from random import Random
from typing import Any, cast
from uuid import UUID

import pytest
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st

from domain.advertiser import Advertiser
from domain.authorization import verdict
from domain.campaign import Campaign
from domain.code import Ending, effective_as_of, fold_code
from domain.errors import Refused
from domain.recorded import RecordedEvent
from domain.values import CLOCK, Sealed
from tests import given
from tests.given import Command, Story
from tests.late_paperwork import ADVERTISERS, DAY, VIDEOS, Fact, answer, paperwork, state, told

JUST_AFTER = timedelta(microseconds=1)
# How often a way of recording was needed.
COUNTED: Counter[str] = Counter()
many = settings(max_examples=150, deadline=None)


def command(fact: Fact, ended: Ending | None = None) -> Command:  # noqa: C901, PLR0911 - one return for each kind
    """Return the command that records a fact."""
    said, code = fact.facts, UUID(int=fact.code or 0)
    match fact.kind:
        case "permit":
            return given.permission(creator_id=said["creator"], enabled=said["enabled"])
        case "name":
            return given.advertiser(said["advertiser"], said["brand"])
        case "generate":
            window: dict[str, Any]
            if said["given"]:
                window = {"expires_at": said["ends"]}
            else:
                window = {"days": (said["ends"] - (said["starts"] or fact.at)).days}
            return given.generate(
                code,
                creator_id=said["creator"],
                video_id=said["video"],
                starts_at=said["starts"],
                secret=secret(fact.code),
                secret_given=said["given"],
                caption_sha256=said["caption"],
                revoked=ended,
                supersedes=None if said["replaces"] is None else UUID(int=said["replaces"]),
                **window,
            )
        case "extend":
            return given.extend(code, expires_at=said["ends"])
        case "rights":
            return given.rights(said["until"], code)
        case "share":
            return given.share(code, brand_id=said["brand"], advertiser_id=said["advertiser"])
        case "redeem":
            return given.redeem(secret(fact.code), advertiser_id=said["advertiser"])
        case "launch":
            campaign = Campaign(
                said["name"],
                said["advertiser"],
                "5.00",
                "USD",
                said["starts"],
                said["ends"],
                caption_sha256=said["caption"],
            )
            return given.launch(campaign, code, ended=ended)
        case "end":
            return given.end(said["name"], code)
        case _:
            return given.revoke(code, force=said["force"])


def secret(number: int | None) -> Sealed:
    return Sealed(f"#secret-of-code-{number}")


def in_time(facts: list[Fact], random: Random) -> Story:
    """Record each fact as it happens, and let the clock look in now and then."""
    story = Story()
    for fact in facts:
        story.clock.now = fact.at
        if random.random() < 0.3:
            _keep_time(story)
        story.when(command(fact))
    return story


def late(facts: list[Fact], now: datetime, random: Random) -> Story:
    """Record the facts in any order, long after they happened; those refused again, until none is accepted.

    If what ended a code or a campaign must be known for it to be accepted, both are sent together. If that is the
    successor of a code, the code is sent with an end just after it was superseded, and extended to its own end later.
    """
    story = Story()
    story.clock.now = now
    pending = random.sample(facts, len(facts))
    while pending:
        events = len(story.ledger.events)
        refused = [fact for fact in pending if not _accepted(story, command(fact), fact.at, random)]
        if len(refused) == len(pending):
            refused = [fact for fact in pending if not _accepted_with_its_end(story, fact, pending, random)]
        if len(refused) == len(pending):
            refused = _accepted_until_superseded(story, pending, random)
        assert len(refused) < len(pending) or len(story.ledger.events) > events, f"nothing of {refused} is accepted"
        pending = random.sample(refused, len(refused))
    return story


def _accepted_with_its_end(story: Story, fact: Fact, pending: list[Fact], random: Random) -> bool:
    by, name = {"generate": ("revoke", None), "launch": ("end", fact.facts.get("name"))}.get(fact.kind, (None, None))
    of_it = [other for other in pending if (other.kind, other.code, other.facts.get("name")) == (by, fact.code, name)]
    if not of_it:
        return False
    return _accepted(story, command(fact, Ending(min(of.at for of in of_it), "it was over")), fact.at, random)


def _accepted_until_superseded(story: Story, pending: list[Fact], random: Random) -> list[Fact]:
    """Record windows up to when their codes were superseded; return what is still to be recorded."""
    left: list[Fact] = []
    for fact in pending:
        by = next((other for other in pending if other.facts.get("replaces") == fact.code is not None), None)
        begins = [max(one.at, one.facts.get("starts") or one.at) for one in (fact, by or fact)]
        until = max(begins) + JUST_AFTER
        if by is None or fact.kind not in {"generate", "extend"} or not fact.at < until < fact.facts["ends"]:
            left.append(fact)
            continue
        short, rest = fact.facts | {"ends": until}, fact
        if fact.kind == "generate":
            starts = fact.facts["starts"] or (None if fact.facts["given"] else fact.at)
            short |= {"given": True, "starts": starts}
            rest = Fact(fact.at, "extend", fact.code, {"ends": fact.facts["ends"]})
        accepted = _accepted(story, command(replace(fact, facts=short)), fact.at, random)
        COUNTED["until superseded"] += accepted
        left.append(rest if accepted else fact)
    return left


def _accepted(story: Story, command: Command, at: datetime, random: Random) -> bool:
    if random.random() < 0.2:
        _keep_time(story)
    events = len(story.ledger.events)
    try:
        story.when(command, effective_at=at)
    except Refused:
        assert len(story.ledger.events) == events, "a refusal of what is said to have happened earlier is not recorded"
        return False
    return True


def _keep_time(story: Story) -> None:
    for stream_id, stream in list(story.ledger.streams.items()):
        if stream[0].type == "CodeGenerated":
            story.when(given.record_due(stream_id), actor=CLOCK)


def known(story: Story, facts: list[Fact], moments: list[datetime]) -> dict[Any, Any]:
    """Return what a ledger says of every code, campaign and question at some moments."""
    codes = {fact.code: story.ledger.streams[UUID(int=fact.code or 0)] for fact in facts if fact.kind == "generate"}
    found: dict[Any, Any] = {}
    for moment in moments:
        for number, stream in codes.items():
            if stream[0].effective_at <= moment:
                code = fold_code(effective_as_of(stream, moment))
                found["code", number, moment] = (code.state(moment), code.window.starts_at, code.window.expires_at)
        for video in VIDEOS:
            for advertiser in ADVERTISERS:
                of_video = [story.ledger.streams[code.id] for code in given.done(story.ledger.of_video(video)).codes]
                v = verdict(of_video, story.ledger.streams, advertiser, moment, account(story, advertiser))
                number = None if v.code_id is None else v.code_id.int
                found["question", video, advertiser, moment] = (
                    *(v.reason, number, v.starts_at, v.expires_at, v.rights_until),
                    v.permission_enabled,
                    v.shared,
                )
    for number in codes:
        code = story.code(UUID(int=number or 0))
        for name, campaign in code.campaigns.items():
            found["campaign", number, name] = (campaign.launched_at, *code.stop(campaign))
    return found


def account(story: Story, advertiser: str) -> list[RecordedEvent]:
    """Return what is recorded of an advertiser account."""
    named = [r for r in story.ledger.events if isinstance(r.event, Advertiser.Named)]
    return [r for r in named if cast("Advertiser.Named", r.event).advertiser_id == advertiser]


def happened(facts: list[Fact], moments: list[datetime]) -> dict[Any, Any]:
    """Return the same from the model."""
    found: dict[Any, Any] = {}
    for moment in moments:
        world = told(facts, moment)
        for number, slip in world.slips.items():
            found["code", number, moment] = (state(world, number), slip.starts, slip.ends)
        for video in VIDEOS:
            for advertiser in ADVERTISERS:
                found["question", video, advertiser, moment] = answer(facts, video, advertiser, moment)
    for number, slip in told(facts, facts[-1].at + 4_000 * DAY).slips.items():
        for name, ad in slip.ads.items():
            assert ad.stopped is not None
            found["campaign", number, name] = (ad.launched, *ad.stopped)
    return found


def moments_of(facts: list[Fact], random: Random) -> list[datetime]:
    """Return moments at which something happened, just before them, and some between."""
    turns = [fact.at for fact in facts]
    turns += [fact.facts["ends"] for fact in facts if "ends" in fact.facts]
    turns += [fact.facts["until"] for fact in facts if fact.facts.get("until") is not None]
    some = random.sample(turns, min(6, len(turns)))
    hours = int((facts[-1].at + 60 * DAY - facts[0].at) / timedelta(hours=1))
    between = [facts[0].at + timedelta(hours=random.randint(0, hours), minutes=17) for _ in range(4)]
    return sorted([*some, *(turn - timedelta(microseconds=1) for turn in some), *between])


def differing(one: dict[Any, Any], other: dict[Any, Any]) -> dict[Any, Any]:
    keys = [*dict.fromkeys([*one, *other])]
    return {key: (one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)}


@pytest.mark.long("Hypothesis tells many lives of a code")
@many
@for_all(paperwork, st.integers(0, 2**32))
def test_facts_recorded_as_they_happen_come_to_what_happened(facts: list[Fact], seed: int) -> None:
    random = Random(seed)
    moments = moments_of(facts, random)
    assert differing(known(in_time(facts, random), facts, moments), happened(facts, moments)) == {}


@pytest.mark.long("Hypothesis tells many lives of a code, each in several orders")
@many
@for_all(paperwork, st.integers(0, 2**32))
def test_facts_recorded_late_in_any_order_come_to_what_happened(facts: list[Fact], seed: int) -> None:
    random = Random(seed)
    moments = moments_of(facts, random)
    now = facts[-1].at + random.choice([1, 20, 200]) * DAY
    assert differing(known(late(facts, now, random), facts, moments), happened(facts, moments)) == {}
