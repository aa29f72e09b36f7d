"""Figures over HTTP: by whom, for whom, page by page, and as a file."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from tests.api.world import (
    OTHER_ACCOUNT,
    OTHER_BRAND,
    OTHER_CREATOR,
    OWN_ACCOUNT,
    OWN_BRAND,
    OWN_CREATOR,
    World,
    days,
    refused,
    told,
)

NOW = datetime.now(UTC)


def figures(world: World, client: httpx.Client | None = None, **query: Any) -> dict[str, Any]:
    asked = {"at_least": world.head()} | query
    return told((client or world.client).get("/v1/stats/figures", params=asked), 200)


def by(world: World, client: httpx.Client | None = None, **query: Any) -> dict[str, dict[str, Any]]:
    """Return the entries by their keys, each with what is neither 0 nor null nor empty."""
    found = figures(world, client, **query)["figures"]
    return {one.pop("key"): {name: value for name, value in one.items() if value} for one in found}


@pytest.fixture
def lived(world: World) -> World:
    """Two creators with codes, of which one was shared, redeemed and used for a campaign."""
    mine = world.generate(OWN_CREATOR, video_id="7312345678901234561", starts_at=days(-20), days=60)
    world.share(mine)
    world.redeem(mine)
    world.launch(mine, ends_at=days(90))
    theirs = world.generate(OTHER_CREATOR, video_id="7312345678901234562", days=30)
    world.share(theirs, brand_id=OTHER_BRAND, advertiser_id=OTHER_ACCOUNT)
    world.generate(OTHER_CREATOR, video_id="7312345678901234563", days=30)
    return world


def test_figures_add_up_by_creator_video_brand_account_and_month(lived: World) -> None:
    whole = figures(lived)["totals"]
    assert (whole["issued"], whole["shares"], whole["redemptions"], whole["campaigns"]) == (3, 2, 1, 1)
    for way in ("month", "creator", "video"):
        found = figures(lived, by=way)
        assert found["totals"] == whole
        for name in ("issued", "shares", "redemptions", "windows_ended", "campaigns", "recorded_late"):
            assert sum(one[name] for one in found["figures"]) == whole[name], (way, name)
    assert {key: one["issued"] for key, one in by(lived, by="creator").items()} == {OWN_CREATOR: 1, OTHER_CREATOR: 2}
    assert {key: one["shares"] for key, one in by(lived, by="brand").items()} == {OWN_BRAND: 1, OTHER_BRAND: 1}
    account = by(lived, by="advertiser")[OWN_ACCOUNT]
    assert (account["redemptions"], account["campaigns"], account["planned_spend"]) == (1, 1, {"USD": "500.00"})
    assert account["campaigns_beyond_code"] == 1
    assert figures(lived, by="advertiser")["figures"][0]["issued"] is None


def test_a_brand_has_its_accounts_figures_once_somebody_said_whose_they_are(lived: World) -> None:
    assert "redemptions" not in by(lived, by="brand")[OWN_BRAND]
    told(lived.client.put(f"/v1/advertisers/{OWN_ACCOUNT}", json={"brand_id": OWN_BRAND}), 200)
    assert by(lived, by="brand")[OWN_BRAND]["redemptions"] == 1
    months = by(lived, by="month", brand_id=OWN_BRAND)
    assert sum(one.get("campaigns", 0) for one in months.values()) == 1


def test_a_year_is_shown_month_by_month_with_those_of_nothing(world: World) -> None:
    found = figures(world, to="2026-02")["figures"]
    assert [one["key"] for one in found] == [f"2025-{month:02}" for month in range(3, 13)] + ["2026-01", "2026-02"]
    assert len(figures(world, to="2026-02", **dict[str, Any]({"from": "2016-03"}))["figures"]) == 120


def test_pages_follow_each_other_by_key_and_by_figure(lived: World) -> None:
    queries: tuple[dict[str, Any], ...] = ({"by": "creator"}, {"by": "creator", "sort": "issued"}, {"by": "video"})
    for query in queries:
        whole = figures(lived, **query)["figures"]
        pages: list[dict[str, Any]] = []
        cursor: dict[str, Any] = {}
        while True:
            page = figures(lived, limit=1, **query, **cursor)
            pages += page["figures"]
            if page["next"] is None:
                break
            cursor = {"cursor": page["next"]}
        assert pages == whole
    assert [one["key"] for one in figures(lived, by="creator", sort="issued")["figures"]] == [
        OTHER_CREATOR,
        OWN_CREATOR,
    ]
    page = figures(lived, by="creator", limit=1)
    other = {"by": "creator", "sort": "issued", "cursor": page["next"]}
    assert refused(lived.client.get("/v1/stats/figures", params=other)) == (400, "malformed_cursor")


def test_a_key_sees_the_figures_of_its_own(lived: World) -> None:
    creator, brand = lived.creator(), lived.brand()
    assert list(by(lived, creator, by="creator")) == [OWN_CREATOR]
    assert list(by(lived, creator, by="video")) == ["7312345678901234561"]
    assert figures(lived, creator)["totals"]["issued"] == 1
    assert list(by(lived, brand, by="brand")) == [OWN_BRAND]
    assert list(by(lived, brand, by="advertiser")) == [OWN_ACCOUNT]
    totals = figures(lived, brand)["totals"]
    assert (totals["shares"], totals["redemptions"], totals["issued"]) == (1, 1, None)
    for client, query in (
        (creator, {"by": "brand"}),
        (creator, {"by": "creator", "creator_id": OTHER_CREATOR}),
        (creator, {"brand_id": OWN_BRAND}),
        (brand, {"by": "creator"}),
        (brand, {"by": "brand", "brand_id": OTHER_BRAND}),
        (brand, {"creator_id": OWN_CREATOR}),
    ):
        assert refused(client.get("/v1/stats/figures", params=query)) == (403, "not_allowed"), query


@pytest.mark.parametrize(
    "query",
    [
        {"from": "2026-03", "to": "2026-02"},
        {"from": "2016-01", "to": "2026-01"},
        {"from": "2026-3"},
        {"from": "2026-13"},
        {"from": "1999-12"},
        {"by": "code"},
        {"by": "creator", "brand_id": "acme"},
        {"by": "month", "brand_id": "acme", "creator_id": "ana"},
        {"by": "month", "sort": "issued"},
        {"by": "video", "sort": "issued"},
        {"by": "brand", "sort": "issued"},
    ],
)
def test_figures_that_cannot_be_summed_are_refused(world: World, query: dict[str, str]) -> None:
    assert refused(world.client.get("/v1/stats/figures", params=query)) == (400, "malformed_query")


def test_spend_at_risk_is_that_of_campaigns_whose_code_ends_first(lived: World) -> None:
    def at_risk(client: httpx.Client, **query: Any) -> dict[str, Any]:
        return told(client.get("/v1/stats/spend-at-risk", params={"at_least": lived.head()} | query), 200)

    found = at_risk(lived.client, within_days=60)
    (entry,) = found["spend_at_risk"]
    first = entry.pop("first_stops_at")
    assert entry == {"key": OWN_CREATOR, "campaigns": 1, "planned_spend": {"USD": "500.00"}}
    assert first[:10] == days(40)[:10]
    assert found["totals"] == {"campaigns": 1, "planned_spend": {"USD": "500.00"}}
    nothing: dict[str, Any] = {"spend_at_risk": [], "totals": {"campaigns": 0, "planned_spend": {}}, "next": None}
    soon = at_risk(lived.client, within_days=30)
    assert {name: soon[name] for name in nothing} == nothing
    assert [one["key"] for one in at_risk(lived.brand(), by="advertiser", within_days=60)["spend_at_risk"]] == [
        OWN_ACCOUNT
    ]
    assert at_risk(lived.brand(), within_days=60)["spend_at_risk"] == []  # nobody said whose the account is
    assert len(at_risk(lived.creator(), within_days=60)["spend_at_risk"]) == 1
    for client, query in ((lived.brand(), {"by": "creator"}), (lived.creator(), {"by": "brand"})):
        assert refused(client.get("/v1/stats/spend-at-risk", params=query)) == (403, "not_allowed")
    wrong: tuple[dict[str, Any], ...] = (
        {"within_days": 0},
        {"within_days": 401},
        {"by": "month"},
        {"brand_id": "acme"},
        {"cursor": "x"},
    )
    for query in wrong:
        assert refused(lived.client.get("/v1/stats/spend-at-risk", params=query))[0] == 400, query


def test_an_export_has_all_entries(lived: World) -> None:
    file = lived.client.get("/v1/exports/figures", params={"by": "creator", "at_least": lived.head()})
    rows = list(csv.DictReader(io.StringIO(file.text)))
    assert [row["key"] for row in rows] == [*sorted([OWN_CREATOR, OTHER_CREATOR]), "end"]
    assert [row["issued"] for row in rows[:2]] == [
        str(by(lived, by="creator")[row["key"]]["issued"]) for row in rows[:2]
    ]
    months = lived.client.get("/v1/exports/figures", params={"at_least": lived.head(), "format": "ndjson"})
    assert len(months.text.splitlines()) == 13
