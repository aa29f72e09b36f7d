"""Pages of lists: without a gap, for their own query alone, and to whom the entries concern."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from api.http.cursors import encode_time
from api.http.dependencies import DatabaseCursor
from api.shares import SharesQuery
from projections import codes
from tests.api.listing import listed
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

LISTS = ("shares", "redemptions", "campaigns")


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
        *(
            (f"/v1/{name}", {"cursor": cursor})
            for cursor in ("", "x", given[:-1], given.replace(".", ".B", 1), "A" * 500)
        ),
    ):
        assert refused(world.client.get(path, params=query)) == (400, "malformed_cursor")


def test_a_cursor_of_a_place_that_no_ledger_reaches_is_refused(world: World) -> None:
    same = SharesQuery().model_dump(exclude={"cursor", "limit", "at_least"})
    for position, expected in ((2**62, 200), (2**62 + 1, 400), (2**64 - 1, 400)):
        cursor = world.cursor(encode_time(datetime(2026, 1, 1, tzinfo=UTC), position, same))
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
