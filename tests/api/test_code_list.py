"""The list of codes: by every filter, in pages, and to whom they concern."""

from __future__ import annotations

from typing import Any

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


def listed(world: World, client: Any = None, **query: Any) -> list[str]:
    answer = (client or world.client).get("/v1/codes", params={"at_least": world.head()} | query)
    return [code["code_id"] for code in told(answer, 200)["codes"]]


def test_codes_are_listed_newest_first_by_every_filter(world: World) -> None:
    plain = world.generate(OTHER_CREATOR, video_id="video-x")["code_id"]
    shared = world.generate()
    world.share(shared)
    redeemed = world.generate()
    world.redeem(redeemed, OTHER_ACCOUNT)
    expired = world.generate(starts_at=days(-60))["code_id"]
    superseded = world.generate()
    successor = world.generate(
        video_id=superseded["video_id"], secret="#its/successor+0123456789", supersedes=superseded["code_id"]
    )["code_id"]
    shared, redeemed, superseded = shared["code_id"], redeemed["code_id"], superseded["code_id"]

    assert listed(world) == [successor, superseded, expired, redeemed, shared, plain]
    assert listed(world, state="superseded") == [superseded]
    assert listed(world, state="generated") == [successor, plain]
    assert listed(world, state="shared") == [shared]
    assert listed(world, state="redeemed") == [redeemed]
    assert listed(world, state="expired") == [expired]
    assert listed(world, state="revoked") == []
    assert listed(world, creator_id=OTHER_CREATOR) == [plain]
    assert listed(world, video_id="video-x") == [plain]
    assert listed(world, brand_id=OWN_BRAND) == [shared]
    assert listed(world, advertiser_id=OTHER_ACCOUNT) == [redeemed]
    assert listed(world, expires_before=days(1)) == [expired]
    assert listed(world, creator_id=OWN_CREATOR, state="shared") == [shared]


def test_pages_of_codes_follow_one_another_without_a_gap(world: World) -> None:
    made = [world.generate(video_id=f"video-{number}")["code_id"] for number in range(7)]
    found: list[str] = []
    answer = world.client.get("/v1/codes", params={"limit": 3, "at_least": world.head()})
    while True:
        content = told(answer, 200)
        found += [code["code_id"] for code in content["codes"]]
        if content["next"] is None:
            assert "link" not in answer.headers
            break
        following = answer.links["next"]["url"]
        assert content["next"] in following
        answer = world.client.get(following)
    assert found == made[::-1]


def test_codes_are_listed_by_when_they_end_in_pages(world: World) -> None:
    later = [world.generate(days=length)["code_id"] for length in (60, 7, 30)]
    world.share(world.read({"code_id": later[0]}))
    told(world.client.post(f"/v1/codes/{world.generate()['code_id']}/revocation", json={"reason": "why"}), 200)
    world.generate(starts_at=days(-60))
    soonest = [later[1], later[2], later[0]]

    assert listed(world, order="ending") == soonest
    assert listed(world, order="ending", expires_before=days(31)) == soonest[:2]
    assert listed(world, world.creator(), order="ending") == soonest
    assert listed(world, world.brand(), order="ending") == soonest[2:]
    first = told(world.client.get("/v1/codes", params={"order": "ending", "limit": 2}), 200)
    rest = told(world.client.get("/v1/codes", params={"order": "ending", "cursor": first["next"]}), 200)
    assert [code["code_id"] for code in first["codes"] + rest["codes"]] == soonest
    assert rest["next"] is None
    assert refused(world.client.get("/v1/codes", params={"cursor": first["next"]})) == (400, "malformed_cursor")


def test_codes_that_were_live_at_a_moment_are_listed_whatever_became_of_them(world: World) -> None:
    running = world.generate(starts_at=days(-20), days=60)["code_id"]
    expired = world.generate(starts_at=days(-60))["code_id"]
    revoked = world.generate(starts_at=days(-50), days=60)["code_id"]
    gone = {"reason": "why", "effective_at": days(-10)}
    told(world.client.post(f"/v1/codes/{revoked}/revocation", json=gone), 200)

    assert listed(world, live_at=days(-61)) == []
    assert listed(world, live_at=days(-45)) == [expired, revoked]
    assert listed(world, live_at=days(-15)) == [revoked, running]
    assert listed(world, live_at=days(-15), order="ending") == [revoked, running]
    assert listed(world, live_at=days(-5)) == [running]
    assert listed(world, live_at=days(30)) == [running]
    assert listed(world, live_at=days(-45), state="expired") == [expired]
    assert listed(world, world.creator(), live_at=days(-45)) == [expired, revoked]
    assert listed(world, world.brand(), live_at=days(-45)) == []
    first = told(world.client.get("/v1/codes", params={"live_at": days(-45), "limit": 1}), 200)
    following = {"live_at": first["codes"][0]["expires_at"], "cursor": first["next"]}
    assert refused(world.client.get("/v1/codes", params=following)) == (400, "malformed_cursor")
    wrong = world.client.get("/v1/codes", params={"live_at": days(-45), "order": "newest"})
    assert (refused(wrong), wrong.json()["errors"][0]["pointer"]) == ((400, "malformed_query"), "/order")


def test_a_cursor_is_good_for_its_own_query_alone(world: World) -> None:
    for number in range(3):
        world.generate(video_id=f"video-{number}")
    given = told(world.client.get("/v1/codes", params={"limit": 1, "at_least": world.head()}), 200)["next"]

    assert world.client.get("/v1/codes", params={"cursor": given, "limit": 5}).status_code == 200
    queries: list[dict[str, str]] = [{"state": "shared"}, {"creator_id": OWN_CREATOR}]
    for query in queries:
        assert refused(world.client.get("/v1/codes", params={"cursor": given} | query)) == (400, "malformed_cursor")
    for cursor in ("", "x", given[:-1], given.replace(".", ".B", 1), given + "A", "é", "A" * 500):
        assert refused(world.client.get("/v1/codes", params={"cursor": cursor})) == (400, "malformed_cursor")


def test_a_creator_lists_its_own_codes_and_a_brand_those_that_reached_it(world: World) -> None:
    own, foreign = world.generate(OWN_CREATOR), world.generate(OTHER_CREATOR)
    world.share(own, OTHER_BRAND, OTHER_ACCOUNT)
    world.share(foreign, OWN_BRAND, OWN_ACCOUNT)
    world.share(foreign, OTHER_BRAND, OTHER_ACCOUNT)

    assert listed(world, world.creator()) == [own["code_id"]]
    brand = world.brand()
    (row,) = told(brand.get("/v1/codes", params={"at_least": world.head()}), 200)["codes"]
    assert (row["code_id"], row["brand_ids"], row["advertiser_ids"]) == (foreign["code_id"], [OWN_BRAND], [OWN_ACCOUNT])


def test_a_filter_that_names_others_is_turned_away(world: World) -> None:
    creator, brand = world.creator(), world.brand()
    assert creator.get("/v1/codes", params={"creator_id": OWN_CREATOR}).status_code == 200
    assert creator.get("/v1/codes", params={"creator_id": OTHER_CREATOR}).status_code == 403
    assert brand.get("/v1/codes", params={"brand_id": OWN_BRAND, "advertiser_id": OWN_ACCOUNT}).status_code == 200
    assert brand.get("/v1/codes", params={"brand_id": OTHER_BRAND}).status_code == 403
    assert brand.get("/v1/codes", params={"advertiser_id": OTHER_ACCOUNT}).status_code == 403
