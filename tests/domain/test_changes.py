"""What each event changed: before and after, by whom and however late it was recorded."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st

from domain.changes import Change, changes_of_code, changes_of_permission
from domain.code import Code, replay_code
from tests import given
from tests.given import CODE, NOW, OTHER_CODE, OTHER_SECRET, Story
from tests.projections.memory_log import happening

DAY = timedelta(days=1)
MONTH = 30 * DAY

LATER: dict[str, Any] = {"secret": OTHER_SECRET, "supersedes": CODE, "starts_at": NOW + DAY}

# What the last event of a story changed.
LAST: list[tuple[str, Story, list[tuple[str, Any, Any]]]] = [
    (
        "generated",
        given.generated(),
        [("state", None, "generated"), ("starts_at", None, NOW), ("expires_at", None, NOW + MONTH)],
    ),
    ("shared", given.shared(), [("state", "generated", "shared"), ("shares", 0, 1)]),
    ("shared again", given.after(given.shared(), given.share(brand_id="brand-2")), [("shares", 1, 2)]),
    ("redeemed", given.redeemed(), [("state", "shared", "redeemed"), ("redemptions", 0, 1)]),
    ("launched", given.running(), [("campaigns_running", 0, 1)]),
    ("ended", given.campaign_ended(), [("campaigns_running", 1, 0)]),
    ("revealed", given.after(given.shared(), given.reveal()), []),
    ("noted", given.after(given.shared(), given.note()), []),
    ("extended", given.after(given.shared(), given.extend(days=60)), [("expires_at", NOW + MONTH, NOW + 60 * DAY)]),
    ("expired", given.expired(), [("state", "redeemed", "expired")]),
    ("revived", given.revived(), [("state", "expired", "redeemed"), ("expires_at", NOW + MONTH, NOW + 61 * DAY)]),
    ("superseded", given.superseded(), [("state", "redeemed", "superseded"), ("superseded_at", None, NOW)]),
    (
        "to be superseded",
        given.after(given.shared(), given.generate(OTHER_CODE, **LATER)),
        [("superseded_at", None, NOW + DAY)],
    ),
    ("revoked", given.revoked(), [("state", "redeemed", "revoked"), ("revoked_at", None, NOW)]),
]


@pytest.mark.parametrize(("story", "changed"), [row[1:] for row in LAST], ids=[row[0] for row in LAST])
def test_an_event_changed_what_it_says(story: Story, changed: list[tuple[str, Any, Any]]) -> None:
    *_, last = changes_of_code(story.stream())
    assert last == [Change(*change) for change in changed]


def test_an_expiry_under_a_campaign_ends_the_campaign_first_and_then_the_window() -> None:
    *_, campaign, window = changes_of_code(given.expired().stream())
    assert campaign == [Change("campaigns_running", 1, 0)]
    assert window == [Change("state", "redeemed", "expired")]


def test_a_revocation_recorded_late_changed_what_stood_when_it_was_recorded() -> None:
    story = given.shared().later(days=2)
    story.when(given.redeem())
    story.when(given.revoke(), effective_at=NOW + DAY)
    *_, last = changes_of_code(story.stream())
    assert last == [Change("state", "redeemed", "revoked"), Change("revoked_at", None, NOW + DAY)]


@pytest.mark.parametrize(
    ("field", "command"),
    [
        ("shared_at", given.share()),
        ("redeemed_at", given.redeem()),
        ("launched_at", given.launch(replace(given.CAMPAIGN, starts_at=NOW + 9 * DAY))),
    ],
)
def test_what_is_recorded_again_because_it_was_earlier_changed_its_time(field: str, command: given.Command) -> None:
    story = given.generated()
    story.when(given.redeem(advertiser_id="advertiser-2"))
    if field == "launched_at":
        story.when(given.redeem())
    story.later(days=8).when(command)
    story.when(command, effective_at=NOW + 3 * DAY)
    *_, last = changes_of_code(story.stream())
    assert last == [Change(field, NOW + 8 * DAY, NOW + 3 * DAY)]


def test_a_permission_goes_on_and_off() -> None:
    story = given.after(given.permitted(), given.permission(enabled=False), given.permission())
    assert list(changes_of_permission(story.ledger.events)) == [
        [Change("enabled", False, True)],
        [Change("enabled", True, False)],
        [Change("enabled", False, True)],
    ]


@settings(deadline=None)
@for_all(st.integers(0, 10**6))
def test_what_one_event_left_is_what_the_next_found_but_for_the_clock(seed: int) -> None:
    for stream in happening(seed, 30).ledger.streams.values():
        if not isinstance(stream[0].event, Code.Generated):
            continue
        told: dict[str, Any] = {"shares": 0, "redemptions": 0, "caption_sha256": None, "creative_sha256": None}
        for changed in changes_of_code(stream):
            for change in changed:
                if change.field not in {"state", "campaigns_running"}:
                    assert told.get(change.field) == change.before
                    told[change.field] = change.after
        code = replay_code(stream)
        assert told == {
            "starts_at": code.window.starts_at,
            "expires_at": code.window.expires_at,
            "shares": len(code.shares),
            "redemptions": len(code.redemptions),
            "caption_sha256": code.caption_sha256,
            "creative_sha256": code.creative_sha256,
        } | ({"revoked_at": code.revoked_at} if code.revoked_at else {})
