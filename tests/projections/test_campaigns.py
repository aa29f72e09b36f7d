"""The view of campaigns: the day each will stop and by what, however often that day moves."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import given as for_all
from hypothesis import strategies as st

from domain.code import replay_code
from domain.periods import first_period
from domain.values import Window
from projections import campaigns
from projections.campaigns import CampaignRow
from projections.engine import checkpoints
from tests import given
from tests.given import ADVERTISER, CAMPAIGN, CODE, CREATOR, NOW, OTHER_CODE, OTHER_SECRET, VIDEO, Story
from tests.projections.conftest import Cursor, Followed
from tests.projections.late import code_streams, recorded_late
from tests.projections.memory_log import MemoryLog

DAY = timedelta(days=1)
WINDOW_END = NOW + 30 * DAY
OWN_END = NOW + 90 * DAY


def row(**differs: Any) -> CampaignRow:
    """What `given.running` comes to, but for what differs."""
    facts: dict[str, Any] = {
        "ledger_id": 1,
        "position": 5,
        "code_id": CODE,
        "creator_id": CREATOR,
        "video_id": VIDEO,
        "campaign_id": CAMPAIGN.campaign_id,
        "advertiser_id": ADVERTISER,
        "name": None,
        "amount": "500.00",
        "currency": "USD",
        "starts_at": NOW + DAY,
        "ends_at": OWN_END,
        "expires_at": WINDOW_END,
        "launched_at": NOW,
        "ended_at": None,
        "cause": None,
        "stops_at": WINDOW_END,
        "stop_reason": "code_end",
    }
    return CampaignRow(**(facts | differs))


def extended(days: int) -> Story:
    return given.after(given.running(), given.extend(days=days))


def ended_after_a_day() -> Story:
    story = given.running().later(days=1)
    story.when(given.end())
    return story


def revoked_after_a_day() -> Story:
    story = given.running().later(days=1)
    story.when(given.revoke(force=True))
    return story


def revoked_late() -> Story:
    story = given.running().later(days=3)
    story.when(given.revoke(force=True), effective_at=NOW + DAY)
    return story


def extended_late() -> Story:
    """The window's end is recorded, and then that it had been moved before it came."""
    story = given.expired()
    story.when(given.extend(days=60), effective_at=NOW + 20 * DAY)
    return story


def launched_late() -> Story:
    """The code lapsed and was revived, and then it is recorded that a campaign had been launched before that."""
    story = given.after(given.window_over(), given.extend(expires_at=NOW + 61 * DAY))
    story.when(given.launch(), effective_at=NOW + DAY)
    return story


CASES: list[tuple[str, Story, dict[str, Any]]] = [
    ("it outlives the window", given.running(), {}),
    ("the window was extended", extended(60), {"expires_at": NOW + 60 * DAY, "stops_at": NOW + 60 * DAY}),
    (
        "the window was extended beyond it",
        extended(365),
        {"expires_at": NOW + 365 * DAY, "stops_at": OWN_END, "stop_reason": "campaign_end"},
    ),
    (
        "somebody ended it",
        ended_after_a_day(),
        {"ended_at": NOW + DAY, "cause": "ended", "stops_at": NOW + DAY, "stop_reason": "campaign_end"},
    ),
    ("the window ended, unrecorded", given.cut_off(), {}),
    ("the window ended", given.expired(), {"ended_at": WINDOW_END, "cause": "code_expired"}),
    (
        "the code was revived",
        given.revived(),
        {"expires_at": NOW + 61 * DAY, "ended_at": WINDOW_END, "cause": "code_expired"},
    ),
    ("the window had been extended", extended_late(), {"expires_at": NOW + 60 * DAY, "stops_at": NOW + 60 * DAY}),
    (
        "it is recorded after the code was revived",
        launched_late(),
        {
            "position": 7,
            "launched_at": NOW + DAY,
            "expires_at": NOW + 61 * DAY,
            "ended_at": WINDOW_END,
            "cause": "code_expired",
        },
    ),
    (
        "the code was revoked",
        revoked_after_a_day(),
        {"ended_at": NOW + DAY, "cause": "code_revoked", "stops_at": NOW + DAY},
    ),
    ("that was recorded late", revoked_late(), {"ended_at": NOW + DAY, "cause": "code_revoked", "stops_at": NOW + DAY}),
]


@pytest.mark.parametrize(("story", "differs"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
async def test_a_campaign_stops_on_the_day_and_for_the_reason(
    story: Story, differs: dict[str, Any], follow: Followed, api: Cursor
) -> None:
    await follow(campaigns.VIEW, MemoryLog(story))
    assert await campaigns.search(api, 1, now=story.clock(), limit=10) == [row(**differs)]


def test_a_campaign_that_ends_with_the_window_comes_to_its_own_end() -> None:
    open_in = [first_period(Window(NOW - DAY, NOW))]
    stop = campaigns.campaign_stop(NOW, NOW - DAY, None, None, open_in=open_in, revoked_at=None)
    assert stop == (NOW, "campaign_end")


@settings(max_examples=25, deadline=None, suppress_health_check=[*HealthCheck])
@for_all(st.integers(0, 10**6))
async def test_stops_and_what_runs_are_the_aggregates_own(follow: Followed, worker: Cursor, seed: int) -> None:
    story = recorded_late(seed, 60)
    await follow(campaigns.VIEW, MemoryLog(story))
    rows = await campaigns.search(worker, 1, now=story.clock(), limit=1000)
    expected = {}
    for code in map(replay_code, code_streams(story)):
        for campaign in code.campaigns.values():
            stops_at = code.stops_at(campaign)
            expected[code.id, campaign.campaign_id] = (stops_at, campaign in code.running(story.clock()))
    assert {(r.code_id, r.campaign_id): (r.stops_at, r.running(story.clock())) for r in rows} == expected
    assert [(r.stops_at, r.position) for r in rows] == sorted((r.stops_at, r.position) for r in rows)
    for table in campaigns.VIEW.tables:
        await table.drop(worker)
    await checkpoints.delete(worker, [campaigns.NAME])


def several() -> Story:
    """On one code campaigns a, b and c of the first advertiser and d of another; on another creator's code, e.

    Their ends lie 5, 10, 40, 20 and 15 days ahead; the window's 30 days cut c off, and a was ended after a day.
    """
    story = given.after(given.redeemed(), given.redeem(advertiser_id="account-2"), given.permission(creator_id="other"))
    story.when(given.generate(OTHER_CODE, creator_id="other", video_id="video-2", secret=OTHER_SECRET))
    story.when(given.redeem(OTHER_SECRET))
    for name, advertiser, days, code in (
        ("a", ADVERTISER, 5, CODE),
        ("b", ADVERTISER, 10, CODE),
        ("c", ADVERTISER, 40, CODE),
        ("d", "account-2", 20, CODE),
        ("e", ADVERTISER, 15, OTHER_CODE),
    ):
        campaign = replace(CAMPAIGN, campaign_id=name, advertiser_id=advertiser, ends_at=NOW + days * DAY)
        story.when(given.launch(campaign, code))
    story.later(days=1).when(given.end("a"))
    return story.later(days=11)


FILTERS: list[tuple[dict[str, Any], str]] = [
    ({}, "a b e d c"),
    ({"descending": True}, "c d e b a"),
    ({"running": True}, "e d c"),
    ({"running": False}, "a b"),
    ({"running": False, "descending": True}, "b a"),
    ({"stop_reason": "code_end"}, "c"),
    ({"stops_before": NOW + 15 * DAY}, "a b"),
    ({"stops_from": NOW + 15 * DAY, "stops_before": NOW + 30 * DAY}, "e d"),
    ({"running": True, "stops_before": NOW + 20 * DAY}, "e"),
    ({"code_id": OTHER_CODE}, "e"),
    ({"creator_ids": ["other"]}, "e"),
    ({"creator_ids": ["other", CREATOR]}, "a b e d c"),
    ({"creator_ids": []}, ""),
    ({"video_id": VIDEO}, "a b d c"),
    ({"campaign_id": "d"}, "d"),
    ({"advertiser_id": "account-2"}, "d"),
    ({"visible_advertisers": ["account-2", "nobody"]}, "d"),
    ({"visible_advertisers": [ADVERTISER], "creator_ids": [CREATOR]}, "a b c"),
    ({"visible_advertisers": []}, ""),
]


async def test_campaigns_are_found_by_every_filter_the_soonest_to_stop_first(follow: Followed, api: Cursor) -> None:
    story = several()
    await follow(campaigns.VIEW, MemoryLog(story))
    found = []
    for filters, _ in FILTERS:
        rows = await campaigns.search(api, 1, now=story.clock(), limit=100, **filters)
        found.append((filters, " ".join(row.campaign_id for row in rows)))
    assert found == FILTERS


@pytest.mark.parametrize(
    "filters", [{}, {"descending": True}, {"creator_ids": [CREATOR, "other"]}, {"visible_advertisers": [ADVERTISER]}]
)
async def test_pages_of_campaigns_together_are_the_whole(
    filters: dict[str, Any], follow: Followed, api: Cursor
) -> None:
    story = several()
    await follow(campaigns.VIEW, MemoryLog(story))

    async def page(limit: int, after: Any = None) -> list[CampaignRow]:
        return await campaigns.search(api, 1, now=NOW, limit=limit, after=after, **filters)

    whole, paged = await page(100), await page(2)
    while following := await page(2, (paged[-1].stops_at, paged[-1].position)):
        paged += following
    assert paged == whole


async def test_another_ledgers_campaigns_are_hidden(follow: Followed, api: Cursor) -> None:
    await follow(campaigns.VIEW, MemoryLog(given.permitted(), given.running()))
    assert [await campaigns.search(api, ledger, now=NOW, limit=10) for ledger in (1, 2)] == [[], []]
