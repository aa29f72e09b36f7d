"""Lists as of a moment: of each entry what the entry itself says with the same `as_of` and `at`."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from api import past_codes
from tests.api.world import OWN_ACCOUNT, OWN_BRAND, OWN_CREATOR, World, days, refused, told

OF_ONE = ("state", "live", "starts_at", "expires_at", "revoked_at", "superseded_at", "version", "position")


def listed(world: World, name: str, client: httpx.Client | None = None, **query: Any) -> list[dict[str, Any]]:
    """Return all entries of a list, page by page."""
    rows: list[dict[str, Any]] = []
    cursor: dict[str, Any] = {}
    for _ in range(100):
        page = told((client or world.client).get(f"/v1/{name}", params={"limit": 2} | query | cursor), 200)
        rows += page[name]
        if page["next"] is None:
            return rows
        cursor = {"cursor": page["next"]}
    raise AssertionError("a list without an end")


@pytest.fixture
def lived(world: World) -> World:
    """Three codes in whose lives much happens, in turns, and some of it recorded late."""
    codes = [world.generate(creator, starts_at=days(-20), days=60) for creator in ("ana", "ben", OWN_CREATOR)]
    for code in codes:
        world.share(code)
        world.redeem(code)
    told(world.client.post(f"/v1/codes/{codes[0]['code_id']}/revocation", json={"reason": "why"}), 200)
    told(world.client.post(f"/v1/codes/{codes[1]['code_id']}/extensions", json={"days": 365}), 201)
    world.launch(codes[1])
    late = {"reason": "why", "effective_at": days(-1)}
    told(world.client.post(f"/v1/codes/{codes[2]['code_id']}/revocation", json=late), 200)
    return world


def test_a_list_of_codes_says_at_every_position_what_each_code_says_there(lived: World) -> None:
    for position in range(lived.head() + 1):
        rows = listed(lived, "codes", as_of=position)
        ones = [lived.read(row, as_of=position) for row in rows]
        assert [[row[name] for name in OF_ONE] for row in rows] == [[one[name] for name in OF_ONE] for one in ones]
        assert [row["brand_ids"] for row in rows] == [
            sorted({share["brand_id"] for share in one["shares"]}) for one in ones
        ]
    assert [row["creator_id"] for row in rows] == [OWN_CREATOR, "ben", "ana"]


def test_a_list_of_codes_says_at_every_moment_what_each_code_says_then(lived: World) -> None:
    for at in (days(-21), days(-19), days(-0.5), days(50), days(400)):
        rows = listed(lived, "codes", at=at)
        ones = [lived.read(row, at=at) for row in rows]
        assert [[row[name] for name in OF_ONE] for row in rows] == [[one[name] for name in OF_ONE] for one in ones]
    assert listed(lived, "codes", at=days(-400)) == []


def test_what_was_recorded_late_is_in_no_list_of_before(lived: World) -> None:
    before = lived.head() - 1
    assert {row["creator_id"]: row["state"] for row in listed(lived, "codes", as_of=before)}[OWN_CREATOR] == "redeemed"
    yesterday = days(-0.9)
    found = {row["creator_id"]: row["state"] for row in listed(lived, "codes", as_of=before, at=yesterday)}
    assert found[OWN_CREATOR] == "generated"
    found = {row["creator_id"]: row["state"] for row in listed(lived, "codes", at=yesterday)}
    assert found[OWN_CREATOR] == "revoked"


@pytest.mark.parametrize(
    "query",
    [
        {"state": "revoked"},
        {"state": "redeemed"},
        {"creator_id": "ben"},
        {"brand_id": OWN_BRAND},
        {"advertiser_id": OWN_ACCOUNT},
        {"expires_before": days(100)},
    ],
)
def test_the_list_as_of_now_is_the_list(lived: World, query: dict[str, Any]) -> None:
    head = lived.head()
    assert listed(lived, "codes", as_of=head, **query) == listed(lived, "codes", at_least=head, **query)


def test_filters_see_codes_as_they_were(lived: World) -> None:
    first = next(p for p in range(lived.head()) if len(listed(lived, "codes", as_of=p, state="redeemed")) == 1)
    (row,) = listed(lived, "codes", as_of=first, state="redeemed")
    assert row["creator_id"] == "ana"
    assert [r["creator_id"] for r in listed(lived, "codes", as_of=first, brand_id=OWN_BRAND)] == ["ana"]
    assert listed(lived, "codes", as_of=first, state="revoked") == []


def test_a_page_looks_at_a_limited_number_of_codes_and_says_where_it_stopped(
    lived: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(past_codes, "CODES_AT_ONCE", 1)
    monkeypatch.setattr(past_codes, "MAX_CODES_READ", 1)
    page = told(
        lived.client.get("/v1/codes", params={"as_of": lived.head(), "creator_id": "ana", "state": "shared"}), 200
    )
    assert (page["codes"], page["next"] is None) == ([], False)
    assert [row["creator_id"] for row in listed(lived, "codes", as_of=lived.head(), state="revoked")] == [
        OWN_CREATOR,
        "ana",
    ]


def test_a_key_sees_in_a_list_of_the_past_what_concerned_it_then(lived: World) -> None:
    brand, creator = lived.brand(), lived.creator()
    for position in range(lived.head() + 1):
        rows = listed(lived, "codes", brand, as_of=position)
        assert [row["code_id"] for row in rows] == [
            row["code_id"] for row in listed(lived, "codes", as_of=position) if OWN_BRAND in row["brand_ids"]
        ]
    assert {row["creator_id"] for row in listed(lived, "codes", creator, as_of=lived.head())} == {OWN_CREATOR}


def test_a_list_of_campaigns_says_at_every_position_what_each_code_says_there(lived: World) -> None:
    second = lived.generate("ben", video_id="7312345678901234599", days=60)
    lived.redeem(second)
    lived.launch(second, "campaign-2", ends_at=days(90))
    told(lived.client.post(f"/v1/codes/{second['code_id']}/campaigns/campaign-2/end", json={}), 200)
    for position in range(lived.head() + 1):
        rows = listed(lived, "campaigns", as_of=position)
        ones = [campaign_of(lived.read(row, as_of=position), row["campaign_id"]) for row in rows]
        shown = ("running", "stops_at", "ended_at", "ends_at", "launched_at", "advertiser_id")
        assert [[row[name] for name in shown] for row in rows] == [[one[name] for name in shown] for one in ones]
    assert [row["campaign_id"] for row in rows] == ["campaign-2", "campaign-1"]
    queries: tuple[dict[str, Any], ...] = (
        {},
        {"creator_id": "ben"},
        {"running": "false"},
        {"stop_reason": "code_end"},
        {"code_id": rows[1]["code_id"]},
    )
    for query in queries:
        now = sorted(listed(lived, "campaigns", at_least=lived.head(), **query), key=str)
        assert sorted(listed(lived, "campaigns", as_of=lived.head(), **query), key=str) == now
    launched = min(row["position"] for row in rows)
    assert listed(lived, "campaigns", as_of=launched - 1) == []
    assert listed(lived, "campaigns", at=days(-10)) == []
    assert [row["campaign_id"] for row in listed(lived, "campaigns", lived.brand(), as_of=launched)] == ["campaign-1"]
    assert listed(lived, "campaigns", lived.creator(), as_of=lived.head()) == []
    ordered = lived.client.get("/v1/campaigns", params={"as_of": 1, "order": "asc"})
    assert refused(ordered) == (400, "malformed_query")


def test_a_campaign_that_was_launched_or_revoked_late_is_listed_as_it_was_known_and_as_it_was_true(
    world: World,
) -> None:
    world.permit(effective_at=days(-30))
    code = world.generate(starts_at=days(-20), days=60)
    redemption = {"secret": code["secret"], "advertiser_id": OWN_ACCOUNT, "effective_at": days(-19)}
    told(world.client.post("/v1/redemptions", json=redemption), 201)
    world.launch(code, starts_at=days(-10), ends_at=days(90), effective_at=days(-10))
    before = world.head()
    late = {"reason": "why", "force": True, "effective_at": days(-5)}
    told(world.client.post(f"/v1/codes/{code['code_id']}/revocation", json=late), 200)
    (known,) = listed(world, "campaigns", as_of=before)
    assert (known["running"], known["stop_reason"], known["stops_at"][:10]) == (True, "code_end", days(40)[:10])
    (true,) = listed(world, "campaigns", at=days(-4))
    assert (true["running"], true["ended_by"], true["stops_at"][:10]) == (False, "code_revoked", days(-5)[:10])
    (earlier,) = listed(world, "campaigns", at=days(-6))
    assert (earlier["running"], earlier["ended_by"]) == (True, None)
    assert listed(world, "campaigns", at=days(-11)) == []
    assert listed(world, "campaigns", as_of=before, running="false") == []


def campaign_of(code: dict[str, Any], campaign_id: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = [one for one in code["campaigns"] if one["campaign_id"] == campaign_id]
    (one,) = found
    return one


def test_a_share_and_a_redemption_are_listed_as_they_were_known(world: World) -> None:
    world.permit(effective_at=days(-30))
    code = world.generate(starts_at=days(-20))
    share = {"brand_id": OWN_BRAND, "channel": "dm"}
    redemption = {"secret": code["secret"], "advertiser_id": OWN_ACCOUNT}
    path = f"/v1/codes/{code['code_id']}/shares"
    for moment in (days(-5), days(-9)):
        told(world.client.post(path, json=share | {"effective_at": moment}), 201)
        told(world.client.post("/v1/redemptions", json=redemption | {"effective_at": moment}), 201)
    head = world.head()
    for name, moment in (("shares", "shared_at"), ("redemptions", "attempted_at")):
        found = [[(row["position"], row[moment][:10]) for row in listed(world, name, as_of=p)] for p in range(head + 1)]
        first = 3 if name == "shares" else 4
        days_ = (days(-5)[:10], days(-9)[:10])
        assert found == [[]] * first + [[(first, days_[0])]] * 2 + [[(first + 2, days_[1])]] * (head - first - 1)
        assert listed(world, name, at_least=head) == listed(world, name, as_of=head)


def test_permissions_are_listed_as_they_were(world: World) -> None:
    world.permit("ana")
    world.permit("ben")
    world.permit("ana", enabled=False)
    world.permit("ben", enabled=False, effective_at=days(-3))
    world.permit("ben", effective_at=days(-9))
    for position in range(world.head() + 1):
        rows = listed(world, "permissions", as_of=position)
        ones = [
            told(world.client.get(f"/v1/creators/{row['creator_id']}/permission", params={"as_of": position}), 200)
            for row in rows
        ]
        assert [(row["enabled"], row["version"], row["position"]) for row in rows] == [
            (one["enabled"], one["version"], one["position"]) for one in ones
        ]
    now = listed(world, "permissions", at_least=world.head())
    assert sorted(rows, key=str) == sorted(now, key=str)
    assert [row["enabled"] for row in listed(world, "permissions", at=days(-5))] == [True]
    assert listed(world, "permissions", at=days(-10)) == []
    assert [row["creator_id"] for row in listed(world, "permissions", as_of=world.head(), enabled="true")] == ["ben"]


def test_a_list_of_the_past_has_one_order_and_no_future(world: World) -> None:
    for query in ({"as_of": "1", "order": "ending"}, {"at": days(-1), "live_at": days(-1)}, {"as_of": days(1)}):
        assert refused(world.client.get("/v1/codes", params=query)) == (400, "malformed_query")
    assert refused(world.client.get("/v1/shares", params={"as_of": 99})) == (409, "ahead_of_ledger")
