"""What follows from what: events that another event brought about name it, also one that was recorded long ago."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from tests import given
from tests.given import NOW, OTHER_CODE, Story


def causes(story: Story) -> list[tuple[str, str]]:
    """Return the types of all events of codes that follow from another, each with that one's type and version."""
    codes = (given.CODE, OTHER_CODE)
    streams = [recorded for code in codes for recorded in story.ledger.streams.get(code, [])]
    types = {recorded.event_id: f"{recorded.type} {recorded.stream_version}" for recorded in streams}
    return [(recorded.type, types[recorded.causation_id]) for recorded in streams if recorded.causation_id is not None]


def extended_and_over() -> Story:
    """An extended window is over, and that is recorded."""
    return given.after(given.after(given.redeemed(), given.extend(days=60)).later(days=61), given.record_due())


def extended_late() -> Story:
    """An extension whose own end has passed is recorded after both ends."""
    story = given.after(given.generated().later(days=31), given.record_due()).later(days=60)
    story.when(given.extend(days=60), effective_at=NOW + timedelta(days=1))
    return story


def launched_after_the_revocation() -> Story:
    """A campaign that a revocation ended is recorded after that revocation."""
    story = given.redeemed().later(days=2)
    revoked_at = story.clock()
    story.when(given.revoke())
    story.later(days=1).when(given.launch(), effective_at=revoked_at - timedelta(hours=1))
    return story


@pytest.mark.parametrize(
    ("story", "told"),
    [
        (given.redeemed, []),
        (given.revoked, []),
        (given.campaign_ended, []),
        (
            lambda: given.after(given.running(), given.revoke(force=True)),
            [("CampaignEnded", "Revoked 6")],
        ),
        (given.expired, [("CampaignEnded", "Expired 6"), ("Expired", "CodeGenerated 1")]),
        (lambda: given.after(given.approaching(), given.record_due()), [("ExpiryApproaching", "CodeGenerated 1")]),
        (extended_and_over, [("Expired", "Extended 4")]),
        (extended_late, [("Expired", "CodeGenerated 1"), ("Expired", "Extended 3")]),
        (launched_after_the_revocation, [("CampaignEnded", "Revoked 4")]),
        (given.superseded, [("Superseded", "CodeGenerated 1")]),
    ],
)
def test_an_event_names_the_one_that_it_follows_from(story: Callable[[], Story], told: list[tuple[str, str]]) -> None:
    assert causes(story()) == told


def test_a_superseded_code_names_the_event_of_its_successor() -> None:
    story = given.superseded()
    (superseded,) = [recorded for recorded in story.stream() if recorded.type == "Superseded"]
    assert superseded.causation_id == story.stream(OTHER_CODE)[0].event_id
