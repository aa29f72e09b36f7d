"""The small values: what a secret shows, and where a window begins and ends."""

from datetime import datetime, timedelta

import pytest

from domain.values import Sealed, Window, masked
from tests import given
from tests.given import NOW, SECRET

WINDOW = Window(NOW, NOW + timedelta(days=30))


@pytest.mark.parametrize(
    ("secret", "shown"),
    [
        ("", "…"),
        ("#short/secret+1", "…"),
        ("#longer/secret+1", "…et+1"),
        (SECRET, "…A1B2"),
    ],
)
def test_a_mask_shows_four_characters_of_a_long_secret_and_nothing_of_a_short_one(secret: str, shown: str) -> None:
    assert masked(secret) == shown


def test_a_decision_never_shows_what_is_sealed() -> None:
    decision = given.permitted().decide(given.generate())
    assert decision is not None
    (event,) = decision.aggregate.pending_events
    shown = f"{decision} {decision!r} {decision.claims} {event} {event!r} {event=} {vars(event)} %s" % (event,)
    assert SECRET not in shown


def test_a_code_keeps_no_secret_and_no_note() -> None:
    story = given.after(given.generated(), given.share(note="for spring"), given.note(text="a remark"))
    assert not [text for text in (SECRET, "for spring", "a remark") if text in str(vars(story.code()))]


def test_a_sealed_text_is_the_text_that_it_seals() -> None:
    assert Sealed("text") == "text"


@pytest.mark.parametrize(
    ("moment", "started", "contained", "ended"),
    [
        (WINDOW.starts_at - timedelta(microseconds=1), False, False, False),
        (WINDOW.starts_at, True, True, False),
        (WINDOW.expires_at - timedelta(microseconds=1), True, True, False),
        (WINDOW.expires_at, True, False, True),
    ],
)
def test_a_window_holds_its_first_instant_and_not_its_last(
    moment: datetime, *, started: bool, contained: bool, ended: bool
) -> None:
    assert (WINDOW.started_by(moment), WINDOW.contains(moment), WINDOW.ended_by(moment)) == (started, contained, ended)
