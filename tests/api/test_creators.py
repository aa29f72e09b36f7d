"""One creator, however the account is spelled: with or without @, in upper or lower case, or as a link."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from tests.api.listing import listed
from tests.api.streaming import following
from tests.api.test_reads import noted
from tests.api.world import OWN_ACCOUNT, OWN_BRAND, TERMS, World, campaign, refused, told

FIRST = "Ana.Creates"
SPELLINGS = [
    "ana.creates",
    "@ana.creates",
    "ANA.CREATES",
    " @@Ana.Creates",
    "https://www.tiktok.com/@ANA.creates?lang=en",
]
IN_PATHS = ["ana.creates", "@ana.creates", "ANA.CREATES"]


def generating(creator_id: str, video_id: str = "video-0", **more: Any) -> dict[str, Any]:
    return {"creator_id": creator_id, "video_id": video_id, "terms_version": TERMS} | more


@pytest.mark.parametrize("spelling", IN_PATHS)
def test_a_permission_is_switched_and_read_however_the_creator_is_spelled(world: World, spelling: str) -> None:
    world.permit(FIRST)
    path = f"/v1/creators/{spelling}/permission"

    off = told(world.client.put(path, json={"enabled": False}), 200)
    read = told(world.client.get(path, params={"at_least": off["position"]}), 200)
    then = told(world.client.get(path, params={"as_of": off["position"]}), 200)
    history = told(world.client.get(f"{path}/history"), 200)

    assert [(one["creator_id"], one["version"]) for one in (off, read, then)] == [(FIRST, 2)] * 3
    assert [(event["type"], event["creator_id"]) for event in history["events"]] == [
        ("PermissionEnabled", FIRST),
        ("PermissionDisabled", FIRST),
    ]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_code_is_of_the_creator_however_spelled_and_shows_the_first_spelling(world: World, spelling: str) -> None:
    world.permit(FIRST)

    code = told(world.client.post("/v1/codes", json=generating(spelling)), 201)
    event = told(world.client.get(f"/v1/events/{code['position']}"), 200)

    assert (code["creator_id"], event["body"]["creator_id"]) == (FIRST, FIRST)
    assert told(world.client.get(f"/v1/creators/{FIRST}/permission?as_of={code['position']}"), 200)["live_codes"] == 1


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_list_is_filtered_however_the_creator_is_spelled(world: World, spelling: str) -> None:
    world.generate("another")
    code = world.generate(FIRST)
    world.share(code)
    world.redeem(code)
    world.launch(code)
    head = world.head()

    for name in ("codes", "shares", "redemptions", "campaigns"):
        found = told(world.client.get(f"/v1/{name}", params={"creator_id": spelling, "at_least": head}), 200)[name]
        assert [one["creator_id"] for one in found] == [FIRST], name
    for query in ({"creator_id": spelling}, {"q": f'creator:"{spelling}"'}):
        events = told(world.client.get("/v1/events", params={**query, "at_least": head}), 200)["events"]
        assert [event["type"] for event in events] == [
            "PermissionEnabled",
            "CodeGenerated",
            "Shared",
            "Redeemed",
            "CampaignLaunched",
        ]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_key_acts_for_the_creator_however_the_key_spells_them(world: World, spelling: str) -> None:
    others = world.generate("another")
    code = world.generate(FIRST)
    creator = world.as_role("creator", creator_ids=[spelling])

    assert told(creator.put(f"/v1/creators/{FIRST}/permission", json={"enabled": True}), 200)["creator_id"] == FIRST
    assert creator.post("/v1/codes", json=generating("@ANA.creates")).status_code == 201
    shared = creator.post(f"/v1/codes/{code['code_id']}/shares", json={"brand_id": OWN_BRAND, "channel": "dm"})
    assert told(shared, 201)["creator_id"] == FIRST
    assert refused(creator.get(f"/v1/codes/{others['code_id']}")) == (403, "not_allowed")
    listed_codes = told(creator.get("/v1/codes", params={"at_least": world.head()}), 200)["codes"]
    assert {one["creator_id"] for one in listed_codes} == {FIRST}
    permissions = told(creator.get("/v1/permissions", params={"at_least": world.head()}), 200)["permissions"]
    assert [one["creator_id"] for one in permissions] == [FIRST]
    assert {event["actor"]["subject"] for event in told(creator.get("/v1/events"), 200)["events"]} == {
        None,
        "ana.creates",
    }


def test_a_live_stream_and_a_webhook_follow_the_creator_however_spelled(world: World) -> None:
    world.generate("another")
    code = world.generate(FIRST)
    made = {"url": "https://receiver.example/", "creator_ids": ["@ANA.creates", "ana.creates"]}
    webhook = told(world.client.post("/v1/webhooks", json=made), 201)

    with following(world.client, creator_id="@ana.CREATES", after=0) as stream:
        events = stream.events()
        assert [next(events)["type"] for _ in range(2)] == ["PermissionEnabled", "CodeGenerated"]
        world.share(code)
        assert next(events)["type"] == "Shared"
    assert webhook["creator_ids"] == ["ana.creates"]


def test_an_erasure_is_of_the_creator_however_spelled_with_the_keys_that_act_for_them(world: World) -> None:
    code = world.generate(FIRST)
    asked = {"role": "creator", "name": "Ana Example", "subjects": {"creator_ids": ["ANA.creates"]}}
    made = told(world.client.post("/v1/keys", json=asked), 201)
    creator = world.with_key(made["key"])

    erased = told(world.client.post("/v1/creators/@ana.CREATES/erasure", json={"reason": "asked"}), 200)
    read = told(world.client.get("/v1/creators/ana.creates/erasure"), 200)

    assert (erased["creator_id"], read["creator_id"], read["state"]) == (FIRST, FIRST, "carried_out")
    revealed = world.client.post(f"/v1/codes/{code['code_id']}/reveals", json={"reason": "why"})
    assert refused(revealed) == (409, "creator_erased")
    assert refused(creator.get("/v1/codes")) == (401, "unauthenticated")
    keys = {key["key_id"]: key["name"] for key in told(world.client.get("/v1/keys"), 200)["keys"]}
    assert keys[made["key_id"]] is None
    again = world.client.put("/v1/creators/ANA.CREATES/permission", json={"enabled": True})
    assert refused(again) == (409, "creator_erased")


@pytest.mark.parametrize("id_", [".", ".."])
def test_a_dot_and_two_dots_are_no_ids(world: World, id_: str) -> None:
    world.permit()
    code = world.running()
    path = f"/v1/codes/{code['code_id']}"
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/v1/codes", generating(id_)),
        ("/v1/codes", generating("creator-own", video_id=id_)),
        (f"{path}/shares", {"brand_id": id_, "channel": "dm"}),
        (f"{path}/shares", {"brand_id": "b", "advertiser_id": id_, "channel": "dm"}),
        ("/v1/redemptions", {"secret": code["secret"], "advertiser_id": id_}),
        (f"{path}/campaigns", campaign(id_)),
        ("/v1/keys", {"role": "creator", "subjects": {"creator_ids": [id_]}}),
        ("/v1/keys", {"role": "brand", "subjects": {"brand_ids": [id_]}}),
        ("/v1/webhooks", {"url": "https://receiver.example/", "creator_ids": [id_]}),
    ]
    for address, body in bodies:
        assert refused(world.client.post(address, json=body)) == (422, "malformed_body"), body
    encoded = quote(id_, safe="").replace(".", "%2E")
    for address in (f"/v1/creators/{encoded}/permission", f"/v1/advertisers/{encoded}"):
        body = {"enabled": True} if "creators" in address else {"brand_id": OWN_BRAND}
        assert world.client.put(address, json=body).status_code in {400, 404, 405}
    for query in ("creator_id", "advertiser_id", "q"):
        value = f"creator:{id_}" if query == "q" else id_
        assert refused(world.client.get("/v1/events", params={query: value})) == (400, "malformed_query")


@pytest.mark.parametrize("text", ["@", "", "https://www.tiktok.com/", "https://example.com/@ana", "ana creates"])
def test_what_is_no_creator_is_refused_with_a_reason(world: World, text: str) -> None:
    body = world.client.post("/v1/codes", json=generating(text))
    query = world.client.get("/v1/codes", params={"creator_id": text})

    assert (refused(body), refused(query)) == ((422, "malformed_body"), (400, "malformed_query"))
    for answer in (body, query):
        assert [(error["pointer"], error["reason"]) for error in answer.json()["errors"]] == [
            ("/creator_id", "not_a_creator_id")
        ]


def test_the_list_of_attempts_names_the_first_spelling(world: World) -> None:
    code = world.generate("@Ana.Creates")
    world.redeem(code, OWN_ACCOUNT)
    assert code["creator_id"] == FIRST
    assert [one["creator_id"] for one in listed(world, "redemptions", creator_id="ana.creates")] == [FIRST]


@pytest.mark.parametrize("spelling", IN_PATHS)
def test_reads_are_found_by_their_creator_however_spelled(world: World, spelling: str) -> None:
    code = world.generate(FIRST)
    told(world.client.get(f"/v1/creators/{spelling}/permission"), 200)
    world.read(code)
    told(world.client.get("/v1/codes", params={"creator_id": spelling}), 200)

    for asked in SPELLINGS:
        found = noted(world, creator_id=asked)
        assert {access["creator_id"] for access in found} == {"ana.creates"}
        assert {access["route"] for access in found} - {"GET /v1/accesses"} == {
            "GET /v1/creators/{creator_id}/permission",
            "GET /v1/codes/{code_id}",
            "GET /v1/codes",
        }
