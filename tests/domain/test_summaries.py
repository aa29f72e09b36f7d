"""Each event as one plain sentence, and nothing sealed in any of them."""

from dataclasses import replace
from datetime import timedelta
from typing import cast
from uuid import UUID

import pytest
from eventsourcing.utils import get_topic

from domain.advertiser import Advertiser
from domain.code import Code
from domain.creator import Creator
from domain.recorded import Event, RecordedEvent
from domain.summaries import summary
from domain.values import Sealed
from tests import given
from tests.given import CAMPAIGN, NOW, Story

NOTE = "for the spring campaign of somebody"
REMARK = "this was meant for somebody else"
CONTRACT = "the contract of somebody"
THIRD_SECRET = Sealed("#third/secret+of-a-code=E5F6")


def everything() -> Story:
    """One story in which every event occurs."""
    story = given.after(
        given.generated(),
        given.share(note=NOTE),
        given.share(advertiser_id=None, channel="email"),
        given.share(advertiser_id=None, channel="text"),
        given.share(advertiser_id=None, channel="other"),
        given.redeem(),
        given.redeem(advertiser_id="advertiser-2"),
        given.launch(),
        given.end(reason="budget spent"),
        given.reveal(),
        given.note(text=REMARK),
        given.note(text=REMARK, about_position=3),
        given.rights(
            NOW + timedelta(days=90), platforms=("instagram", "tiktok"), edits_allowed=False, contract=CONTRACT
        ),
        given.rights(),
        given.launch(replace(CAMPAIGN, campaign_id="campaign-2")),
    )
    given.after(story.later(days=16), given.record_due())
    given.after(story.later(days=13), given.record_due())
    story.later(days=2).outcome(given.redeem())
    relaunch = given.launch(replace(CAMPAIGN, campaign_id="campaign-3"))
    given.after(story, given.record_due(), given.extend(days=60), relaunch)
    given.after(story, given.generate(given.OTHER_CODE, secret=given.OTHER_SECRET, supersedes=given.CODE))
    third = UUID(int=3)
    without = given.generate(third, video_id="video-2", secret=None, expires_at=NOW + timedelta(days=60))
    given.after(story, without, given.attach(THIRD_SECRET, third))
    return given.after(story, given.revoke(force=True), given.permission(enabled=False), given.erase())


VALID = "valid from 2026-03-01 12:00 UTC until 2026-03-31 12:00 UTC."
LAUNCHED = "with 500.00 USD, from 2026-03-02 12:00 UTC until 2026-05-30 12:00 UTC."
SUCCESSOR = (
    "Creator creator-1 accepted terms terms-2026 and generated code …C3D4 for video video-1, "
    "valid from 2026-04-01 12:00 UTC until 2026-05-01 12:00 UTC."
)
SENTENCES = [
    "Creator creator-1 switched ad authorization on.",
    f"Creator creator-1 accepted terms terms-2026 and generated code …A1B2 for video video-1, {VALID}",
    "The code was shared with brand brand-1 (advertiser advertiser-1) by a direct message.",
    "The code was shared with brand brand-1 by e-mail.",
    "The code was shared with brand brand-1 by a text message.",
    "The code was shared with brand brand-1 by another channel.",
    "Advertiser advertiser-1 redeemed the code.",
    "Advertiser advertiser-2 redeemed the code; whether it had been shared with that account was not known.",
    f"Advertiser advertiser-1 launched campaign campaign-1 {LAUNCHED}",
    "Campaign campaign-1 of advertiser advertiser-1 ended.",
    "The secret was revealed again.",
    "A note was added.",
    "A note was added about position 3.",
    (
        "Usage rights were stated: until 2026-05-30 12:00 UTC, on instagram, tiktok, no edits, by a contract whose "
        "reference is sealed."
    ),
    "Usage rights were stated: without an end.",
    f"Advertiser advertiser-1 launched campaign campaign-2 {LAUNCHED}",
    "The code expires within 14 days, at 2026-03-31 12:00 UTC.",
    "The code expires within 1 day, at 2026-03-31 12:00 UTC.",
    "Advertiser advertiser-1 was refused the code: code_expired.",
    "Campaign campaign-2 of advertiser advertiser-1 ended, because the code expired.",
    "The code expired at 2026-03-31 12:00 UTC.",
    "The code was extended from 2026-03-31 12:00 UTC to 2026-04-30 12:00 UTC.",
    f"Advertiser advertiser-1 launched campaign campaign-3 {LAUNCHED}",
    "The code was superseded by another from 2026-04-01 12:00 UTC on.",
    SUCCESSOR,
    (
        "Creator creator-1 accepted terms terms-2026 and generated a code whose secret is not known for video video-2, "
        "valid until 2026-04-30 12:00 UTC; nobody stated when it began."
    ),
    "The secret of the code was attached: …E5F6.",
    "Campaign campaign-3 of advertiser advertiser-1 ended, because the code was revoked.",
    "The code was revoked by force.",
    "Creator creator-1 switched ad authorization off.",
    "Creator creator-1 was erased: their sealed data can no longer be read.",
]


def with_sealed_texts(story: Story, recorded: RecordedEvent) -> Event:
    """Put what is sealed back into an event, as only its writer has it."""
    for name, text in story.ledger.sealed.get(recorded.position, {}).items():
        vars(recorded.event)[name] = text
    return recorded.event


def event_types(of: type[Code] | type[Creator]) -> set[str]:
    """Return the wire names of an aggregate's events; what further events are made of is none itself."""
    kinds = [kind for kind in vars(of).values() if isinstance(kind, type) and issubclass(kind, of.Event)]
    return {get_topic(kind) for kind in kinds if not kind.__subclasses__()}


def test_every_event_has_its_sentence() -> None:
    assert [summary(r.event) for r in everything().ledger.events] == SENTENCES


def test_a_revocation_without_force_has_its_sentence() -> None:
    assert summary(given.revoked().stream()[-1].event) == "The code was revoked."


def test_a_code_whose_start_nobody_stated_says_so() -> None:
    story = given.generated(secret_given=True, expires_at=NOW + timedelta(days=30))
    assert summary(story.stream()[0].event) == (
        "Creator creator-1 accepted terms terms-2026 and generated code …A1B2 for video video-1, "
        "valid until 2026-03-31 12:00 UTC; nobody stated when it began."
    )


def test_a_redemption_by_an_account_with_which_the_code_was_not_shared_says_so() -> None:
    story = given.after(given.generated(), given.redeem())
    sentence = "Advertiser advertiser-1 redeemed the code, with which it had not been shared."
    assert summary(story.stream()[-1].event) == sentence


def test_whose_an_account_is_has_its_sentence() -> None:
    (named,) = Advertiser.begin(given.CODE, "advertiser-1", "brand-1", at=NOW).pending_events
    assert summary(cast("Event", named)) == "Advertiser account advertiser-1 is of brand brand-1."


def test_no_event_is_left_out_here() -> None:
    assert set(given.types(everything().ledger.events)) == event_types(Code) | event_types(Creator)


def test_no_sentence_holds_a_sealed_text() -> None:
    story = everything()
    sealed = {text for texts in story.ledger.sealed.values() for text in texts.values()}
    sentences = " ".join(summary(with_sealed_texts(story, r)) for r in story.ledger.events)
    secrets = {given.SECRET, given.OTHER_SECRET, THIRD_SECRET}
    assert sealed == {*secrets, Sealed(NOTE), Sealed(REMARK), Sealed(CONTRACT)}
    assert not [str(text) for text in sealed if text in sentences]


def test_an_event_without_a_sentence_stops_whoever_asks_for_it() -> None:
    event = Code.Event(given.CODE, 1, NOW + timedelta(days=1))
    with pytest.raises(NotImplementedError, match="no sentence is written for Event"):
        summary(event)
