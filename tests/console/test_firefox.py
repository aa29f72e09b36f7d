"""The pages in a second browser: one walk, from signing in to signing out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.absent import absent
from tests.console.firefox import BINARY, ENTER, firefox
from tests.console.seed import ACCOUNT, VIDEO, Seeded
from tests.console.test_start import key_of
from tests.serving import Server

# What Firefox says of the live channel of a page that is left.
LEFT = "The connection to http"


@pytest.mark.long("another browser starts")
def test_the_question_is_asked_and_a_code_is_read_in_firefox(
    seeded_ledger: Server, seeded: Seeded, tmp_path: Path
) -> None:
    if BINARY is None:
        absent("The walk in a second browser needs Firefox: apt-get install firefox-esr")
    with firefox(tmp_path) as tab:
        tab.go(f"{seeded_ledger.url}/")
        tab.type("#key", key_of(seeded_ledger, "auditor") + ENTER)
        tab.shows("h1", "Find a code, a video or a person")
        tab.click(".ask, a[href='/question']")
        tab.shows("h1", "Was this video authorized?")
        tab.type("input[name=video_id]", VIDEO)
        tab.type("input[name=advertiser_id]", ACCOUNT + ENTER)
        tab.shows("h1", "Yes, it was authorized")
        tab.go(f"{seeded_ledger.url}/codes/{seeded.running['code_id']}")
        # By htmx, under the policy and Trusted Types: a part of the page changes, and the page stays.
        tab.evaluate("window.stays = true")
        tab.click("#step-as_of-1")
        tab.shows(".stated", "Not known")
        assert tab.evaluate("window.stays") is True
        assert "as_of=" in tab.evaluate("location.search")
        tab.click("details.who summary")
        tab.click("form[action='/sign-out'] button")
        tab.shows("[role=status]", "You are signed out.")
        tab.back()
        tab.shows("h1", "Sign in")
        assert [error for error in tab.errors if not error.startswith(LEFT)] == []
