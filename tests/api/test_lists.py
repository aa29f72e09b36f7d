"""Lists of shares, redemptions and campaigns: by every filter, in pages, and to whom they concern."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

import infra.views.reader
from api.http.cursors import encode_time
from api.http.dependencies import DatabaseCursor
from api.shares import SharesQuery
from projections import codes
from tests.api.world import (
    OTHER_ACCOUNT,
    OTHER_BRAND,
    OTHER_CREATOR,
    OWN_ACCOUNT,
    OWN_BRAND,
    OWN_CREATOR,
    World,
    campaign,
    days,
    refused,
    told,
)

LISTS = ("shares", "redemptions", "campaigns")


def listed(world: World, name: str, client: httpx.Client | None = None, **query: Any) -> list[dict[str, Any]]:
    """Return a list as it stands after all that was recorded."""
    head = world.head()
    answer = (client or world.client).get(f"/v1/{name}", params={"at_least": head} | query)
    assert int(answer.headers["ledger-position"]) >= head
    entries: list[dict[str, Any]] = told(answer, 200)[name]
    return entries


def test_a_share_is_listed_with_whom_how_and_when(world: World) -> None:
    code = world.generate()
    shared = world.share(code, channel="email")
    event = told(world.client.get(f"/v1/events/{shared['position']}"), 200)

    assert listed(world, "shares") == [
        {
            "code_id": code["code_id"],
            "creator_id": OWN_CREATOR,
            "video_id": code["video_id"],
            "brand_id": OWN_BRAND,
            "advertiser_id": OWN_ACCOUNT,
            "channel": "email",
            "shared_at": event["effective_at"],
            "recorded_at": event["recorded_at"],
            "position": shared["position"],
        }
    ]


def test_shares_are_listed_by_every_filter(world: World) -> None:
    world.permit(effective_at=days(-10))
    own = world.generate(starts_at=days(-10))
    other = world.generate(OTHER_CREATOR)
    first = world.share(own)["position"]
    late = world.share(own, OTHER_BRAND, OTHER_ACCOUNT, channel="email", effective_at=days(-5))["position"]
    last = world.share(other, OTHER_BRAND, OTHER_ACCOUNT, channel="text")["position"]

    def found(**query: Any) -> list[int]:
        return [share["position"] for share in listed(world, "shares", **query)]

    assert found() == [last, first, late], "the latest first, in effective time"
    assert found(brand_id=OWN_BRAND) == [first]
    assert found(advertiser_id=OTHER_ACCOUNT) == [last, late]
    assert found(creator_id=OWN_CREATOR) == [first, late]
    assert found(creator_id=OWN_CREATOR, brand_id=OTHER_BRAND) == [late]
    assert found(code_id=other["code_id"]) == [last]
    assert found(video_id=own["video_id"]) == [first, late]
    assert found(channel="email") == [late]
    assert found(**{"from": days(-6), "to": days(-4)}) == [late]
    assert found(creator_id="nobody") == found(video_id="nothing") == []


@pytest.mark.parametrize(
    ("path", "query", "pointer", "problem"),
    [
        (
            "/v1/codes",
            {"order": "ending", "state": "revoked"},
            "/state",
            "`order=ending` lists only codes that are neither expired nor revoked.",
        ),
        (
            "/v1/codes",
            {"order": "ending", "state": "expired"},
            "/state",
            "`order=ending` lists only codes that are neither expired nor revoked.",
        ),
        (
            "/v1/redemptions",
            {"refused": "false", "reason": "code_expired"},
            "/reason",
            "Only refused attempts have a reason. Leave out `refused=false`.",
        ),
        (
            "/v1/redemptions",
            {"refused": "true", "shared": "true"},
            "/shared",
            "Only successful redemptions have this. It cannot be combined with filters for refused attempts.",
        ),
        (
            "/v1/redemptions",
            {"reason": "code_expired", "shared": "false"},
            "/shared",
            "Only successful redemptions have this. It cannot be combined with filters for refused attempts.",
        ),
    ],
)
def test_filters_that_nothing_can_meet_together_are_refused(
    world: World, path: str, query: dict[str, str], pointer: str, problem: str
) -> None:
    answer = world.client.get(path, params=query)
    assert refused(answer) == (400, "malformed_query")
    assert answer.json()["errors"] == [{"pointer": pointer, "problem": problem}]


RANGES = [
    ("/v1/permissions", "from", "to"),
    ("/v1/shares", "from", "to"),
    ("/v1/redemptions", "from", "to"),
    ("/v1/campaigns", "stops_from", "stops_before"),
    ("/v1/events", "from", "to"),
    ("/v1/exports/events", "from", "to"),
    ("/v1/accesses", "from", "to"),
    ("/v1/codes", "live_at", "expires_before"),
]


@pytest.mark.parametrize(("path", "since", "until"), RANGES)
def test_a_range_that_holds_nothing_is_refused_by_every_list(world: World, path: str, since: str, until: str) -> None:
    for first, end in ((days(-1), days(-2)), (days(-1),) * 2):
        answer = world.client.get(path, params={since: first, until: end})
        problem = f"This must be later than `{since}`: this range is empty."
        assert refused(answer) == (400, "malformed_query")
        assert answer.json()["errors"] == [{"pointer": f"/{until}", "problem": problem}]


def test_attempts_are_listed_by_outcome_and_reason(world: World) -> None:
    code = world.generate()
    world.share(code)
    first = world.redeem(code)
    second = world.redeem(code, OTHER_ACCOUNT)
    told(world.client.post(f"/v1/codes/{code['code_id']}/revocation", json={"reason": "why"}), 200)
    body = {"secret": code["secret"], "advertiser_id": "too-late"}
    assert refused(world.client.post("/v1/redemptions", json=body)) == (409, "code_revoked")

    turned_away, *_ = listed(world, "redemptions")
    assert {name: turned_away[name] for name in ("advertiser_id", "refused", "reason", "shared_with_advertiser")} == {
        "advertiser_id": "too-late",
        "refused": True,
        "reason": "code_revoked",
        "shared_with_advertiser": None,
    }
    assert (turned_away["creator_id"], turned_away["video_id"]) == (OWN_CREATOR, code["video_id"])

    def found(**query: Any) -> list[int]:
        return [attempt["position"] for attempt in listed(world, "redemptions", **query)]

    last = turned_away["position"]
    one, other = first["position"], second["position"]
    assert found() == [last, other, one]
    assert found(refused="true") == found(reason="code_revoked") == found(reason="CODE_REVOKED") == [last]
    assert found(refused="false") == [other, one]
    assert (found(shared="true"), found(shared="false")) == ([one], [other])
    assert found(advertiser_id=OTHER_ACCOUNT) == [other]
    assert found(creator_id=OTHER_CREATOR) == []
    assert found(code_id=code["code_id"], refused="true") == [last]


def test_campaigns_are_listed_by_the_day_that_each_will_stop(world: World) -> None:
    code = world.generate()
    world.redeem(code)
    for name, ends_at in (("long", days(40)), ("short", days(5)), ("middle", days(20))):
        world.launch(code, name, ends_at=ends_at)
    told(world.client.post(f"/v1/codes/{code['code_id']}/campaigns/middle/end"), 200)

    def found(**query: Any) -> list[str]:
        return [entry["campaign_id"] for entry in listed(world, "campaigns", **query)]

    assert found() == ["middle", "short", "long"]
    assert found(order="desc") == ["long", "short", "middle"]
    assert found(running="true") == ["short", "long"]
    assert found(running="false") == ["middle"]
    assert found(stops_before=days(10), running="true") == ["short"]
    assert found(stops_from=days(10)) == ["long"]
    assert found(stop_reason="code_end") == ["long"]
    assert found(campaign_id="short", advertiser_id=OWN_ACCOUNT, creator_id=OWN_CREATOR) == ["short"]
    assert found(video_id=code["video_id"], code_id=code["code_id"], stop_reason="campaign_end") == ["middle", "short"]
    assert found(advertiser_id=OTHER_ACCOUNT) == []


def test_the_day_that_a_campaign_stops_moves_with_its_code(world: World) -> None:
    code = world.generate()
    world.redeem(code)
    asked = campaign() | {"ends_at": days(40)}
    told(world.client.post(f"/v1/codes/{code['code_id']}/campaigns", json=asked), 201)

    def stop() -> tuple[Any, ...]:
        (entry,) = listed(world, "campaigns")
        return entry["stops_at"], entry["stop_reason"], entry["running"], entry["ended_by"]

    assert stop() == (code["expires_at"], "code_end", True, None)
    told(world.client.post(f"/v1/codes/{code['code_id']}/extensions", json={"days": 60}), 201)
    (entry,) = listed(world, "campaigns")
    assert stop() == (entry["ends_at"], "campaign_end", True, None)
    path = f"/v1/codes/{code['code_id']}/revocation"
    revoked = told(world.client.post(path, json={"reason": "why", "force": True}), 200)
    assert stop() == (revoked["revoked_at"], "code_end", False, "code_revoked")


@pytest.fixture
def two_worlds(world: World) -> World:
    """Fill a ledger with a running campaign of our own, and one of others."""
    world.running()
    world.running(OTHER_CREATOR, OTHER_BRAND, OTHER_ACCOUNT)
    return world


@pytest.mark.parametrize("name", LISTS)
def test_creators_and_brands_are_shown_their_own(two_worlds: World, name: str) -> None:
    world = two_worlds
    both = {OWN_CREATOR, OTHER_CREATOR}
    for role, seen in (("operator", both), ("auditor", both), ("admin", both)):
        assert {entry["creator_id"] for entry in listed(world, name, world.as_role(role))} == seen
    for client in (world.creator(), world.brand()):
        assert [entry["creator_id"] for entry in listed(world, name, client)] == [OWN_CREATOR]
    agency = world.as_role("creator", creator_ids=[OWN_CREATOR, OTHER_CREATOR, "nobody"])
    assert {entry["creator_id"] for entry in listed(world, name, agency)} == both
    assert listed(world, name, world.as_role("creator", creator_ids=["nobody"])) == []
    assert listed(world, name, world.as_role("brand", advertiser_ids=["nobody"])) == []
    assert world.as_role("subscriber").get(f"/v1/{name}").status_code == 403


@pytest.mark.parametrize("name", LISTS)
def test_a_filter_that_names_others_is_turned_away(two_worlds: World, name: str) -> None:
    creator, brand = two_worlds.creator(), two_worlds.brand()
    assert creator.get(f"/v1/{name}", params={"creator_id": OWN_CREATOR}).status_code == 200
    assert creator.get(f"/v1/{name}", params={"creator_id": OTHER_CREATOR}).status_code == 403
    assert brand.get(f"/v1/{name}", params={"advertiser_id": OWN_ACCOUNT}).status_code == 200
    assert brand.get(f"/v1/{name}", params={"advertiser_id": OTHER_ACCOUNT}).status_code == 403
    assert [entry["creator_id"] for entry in listed(two_worlds, name, brand, creator_id=OTHER_CREATOR)] == []


def test_a_brand_may_not_ask_for_anothers_shares(two_worlds: World) -> None:
    assert two_worlds.brand().get("/v1/shares", params={"brand_id": OTHER_BRAND}).status_code == 403


@pytest.mark.parametrize("name", LISTS)
def test_pages_follow_one_another_without_a_gap(world: World, name: str) -> None:
    for number in range(5):
        code = world.generate()
        world.share(code)
        world.redeem(code)
        world.launch(code, f"campaign-{number}")
    whole = listed(world, name)
    for client in (world.client, world.creator(), world.brand()):
        paged: list[dict[str, Any]] = []
        answer = client.get(f"/v1/{name}", params={"limit": 2})
        while True:
            content = told(answer, 200)
            paged += content[name]
            if content["next"] is None:
                assert "link" not in answer.headers
                break
            assert content["next"] in answer.links["next"]["url"]
            answer = client.get(answer.links["next"]["url"])
        assert paged == whole


@pytest.mark.parametrize("name", LISTS)
def test_a_cursor_is_good_for_its_own_list_and_filters_alone(world: World, name: str) -> None:
    for _ in range(2):
        world.running()
    given = told(world.client.get(f"/v1/{name}", params={"limit": 1, "at_least": world.head()}), 200)["next"]

    assert world.client.get(f"/v1/{name}", params={"cursor": given, "limit": 5}).status_code == 200
    other_list = LISTS[LISTS.index(name) - 1]
    for path, query in (
        (f"/v1/{name}", {"cursor": given, "creator_id": OWN_CREATOR}),
        (f"/v1/{other_list}", {"cursor": given}),
        *((f"/v1/{name}", {"cursor": cursor}) for cursor in ("", "x", given[:-1], "B" + given[1:], "A" * 500)),
    ):
        assert refused(world.client.get(path, params=query)) == (400, "malformed_cursor")


def test_a_cursor_of_a_place_that_no_ledger_reaches_is_refused(world: World) -> None:
    same = SharesQuery().model_dump(exclude={"cursor", "limit", "at_least"})
    for position, expected in ((2**62, 200), (2**62 + 1, 400), (2**64 - 1, 400)):
        cursor = encode_time(datetime(2026, 1, 1, tzinfo=UTC), position, same)
        assert world.client.get("/v1/shares", params={"cursor": cursor}).status_code == expected


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("shares", {"from": days(1), "to": days(0)}),
        ("redemptions", {"from": days(1), "to": days(0)}),
        ("campaigns", {"stops_from": days(1), "stops_before": days(0)}),
        ("shares", {"channel": "fax"}),
        ("redemptions", {"refused": "1"}),
        ("redemptions", {"reason": "x"}),
        ("redemptions", {"reason": "creative_locked"}),
        ("campaigns", {"running": "yes"}),
        ("campaigns", {"order": "newest"}),
        ("shares", {"limit": "0"}),
        ("shares", {"brand": OWN_BRAND}),
    ],
)
def test_a_malformed_query_is_refused(world: World, path: str, query: dict[str, str]) -> None:
    assert refused(world.client.get(f"/v1/{path}", params=query)) == (400, "malformed_query")


@pytest.mark.parametrize("name", LISTS)
def test_another_ledgers_entries_are_hidden(two_worlds: World, name: str) -> None:
    assert told(two_worlds.another().client.get(f"/v1/{name}"), 200)[name] == []


@pytest.mark.parametrize("name", LISTS)
def test_a_position_that_nobody_has_reached_is_told_to_come_back(
    world: World, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infra.views.reader, "AT_LEAST_WAIT_S", 0.1)
    world.permit()
    assert refused(world.client.get(f"/v1/{name}", params={"at_least": 999})) == (503, "unavailable")


def test_permissions_are_listed_by_when_they_were_last_switched(world: World) -> None:
    world.permit(OTHER_CREATOR)
    world.permit()
    body = {"enabled": False, "effective_at": days(-5)}
    off = told(world.client.put(f"/v1/creators/{OWN_CREATOR}/permission", json=body), 200)

    def found(client: httpx.Client | None = None, **query: Any) -> list[str]:
        return [entry["creator_id"] for entry in listed(world, "permissions", client, **query)]

    (_, own) = listed(world, "permissions")
    assert own == {
        "creator_id": OWN_CREATOR,
        "enabled": False,
        "since": own["since"],
        "version": 2,
        "position": off["position"],
    }
    assert found() == [OTHER_CREATOR, OWN_CREATOR]
    assert (found(enabled="true"), found(enabled="false")) == ([OTHER_CREATOR], [OWN_CREATOR])
    last_week: dict[str, Any] = {"from": days(-6), "to": days(-4)}
    assert found(**last_week) == [OWN_CREATOR]
    assert found(world.creator()) == [OWN_CREATOR]
    first = told(world.client.get("/v1/permissions", params={"limit": 1}), 200)
    rest = told(world.client.get("/v1/permissions", params={"cursor": first["next"]}), 200)
    assert [entry["creator_id"] for entry in rest["permissions"]] == [OWN_CREATOR]
    assert rest["next"] is None
    assert world.brand().get("/v1/permissions").status_code == 403


def test_pages_of_keys_follow_one_another_newest_first(world: World) -> None:
    made = [told(world.client.post("/v1/keys", json={"role": "auditor"}), 201)["key_id"] for _ in range(4)]
    found: list[str] = []
    answer = world.client.get("/v1/keys", params={"limit": 2})
    while True:
        content = told(answer, 200)
        found += [key["key_id"] for key in content["keys"]]
        if content["next"] is None:
            break
        answer = world.client.get(answer.links["next"]["url"])
    assert found[:4] == made[::-1]
    assert len(found) == 5, "and the administrator's own"
    assert refused(world.client.get("/v1/keys", params={"cursor": "AAAA"})) == (400, "malformed_cursor")


def test_a_list_that_takes_too_long_says_so_and_what_to_do(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow(cur: DatabaseCursor, *_: Any, **_asked: Any) -> Any:
        await cur.execute("SET statement_timeout = 50")
        try:
            await cur.execute("SELECT pg_sleep(60)")
        finally:
            await cur.execute("SET statement_timeout = 10000")

    monkeypatch.setattr(codes, "search", slow)
    answer = world.client.get("/v1/codes", params={"state": "redeemed"})
    assert refused(answer) == (503, "unavailable")
    assert answer.json()["detail"] == (
        "The query took too long and was stopped. Narrow it with a filter, such as creator_id or video_id."
    )
    assert answer.headers["retry-after"] == "60"
