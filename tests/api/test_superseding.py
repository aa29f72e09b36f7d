"""A code supersedes another: nobody new redeems the old one, and what runs on it keeps running."""

from __future__ import annotations

from typing import Any

import httpx

from tests.api.world import (
    OTHER_ACCOUNT,
    OTHER_CREATOR,
    OWN_ACCOUNT,
    OWN_CREATOR,
    TERMS,
    World,
    campaign,
    days,
    refused,
    told,
)


def superseding(
    world: World, old: dict[str, Any], headers: dict[str, str] | None = None, **more: Any
) -> httpx.Response:
    asked = {
        "creator_id": OWN_CREATOR,
        "video_id": old["video_id"],
        "terms_version": TERMS,
        "supersedes": old["code_id"],
    }
    return world.client.post("/v1/codes", json=asked | more, headers=headers)


def redeeming(world: World, code: dict[str, Any], account: str, **more: Any) -> httpx.Response:
    return world.client.post("/v1/redemptions", json={"secret": code["secret"], "advertiser_id": account} | more)


def test_a_code_supersedes_another_in_one_append(world: World) -> None:
    old = world.running()

    new = told(superseding(world, old), 201)
    page = told(world.client.get("/v1/events", params={"order": "desc", "limit": 2}), 200)["events"]
    read = world.read(old)

    assert [(event["type"], event["code_id"]) for event in page] == [
        ("CodeGenerated", new["code_id"]),
        ("Superseded", old["code_id"]),
    ]
    assert page[0]["recorded_at"] == page[1]["recorded_at"]
    assert (new["supersedes"], new["superseded_by"], new["state"]) == (old["code_id"], None, "generated")
    assert (read["superseded_by"], read["superseded_at"]) == (new["code_id"], new["starts_at"])
    assert (read["state"], read["live"]) == ("superseded", True)


def test_what_was_redeemed_and_runs_on_a_superseded_code_goes_on(world: World) -> None:
    old = world.running()
    new = told(superseding(world, old), 201)
    path = f"/v1/codes/{old['code_id']}"

    assert refused(redeeming(world, old, OTHER_ACCOUNT)) == (409, "code_superseded")
    shared = world.client.post(f"{path}/shares", json={"brand_id": "b", "channel": "dm"})
    extended = world.client.post(f"{path}/extensions", json={"days": 60})
    assert (refused(shared), refused(extended)) == ((409, "code_superseded"), (409, "code_superseded"))
    assert shared.json()["conflict_id"] == extended.json()["conflict_id"] == new["code_id"]

    assert redeeming(world, old, OWN_ACCOUNT).status_code == 200
    launched = told(world.client.post(f"{path}/campaigns", json=campaign("campaign-2")), 201)
    assert [one["running"] for one in launched["campaigns"]] == [True, True]
    assert told(world.client.post(f"{path}/campaigns/campaign-2/end"), 200)["state"] == "superseded"
    assert redeeming(world, new, OTHER_ACCOUNT).status_code == 201
    revocation = {"reason": "why", "force": True}
    assert told(world.client.post(f"{path}/revocation", json=revocation), 200)["state"] == "revoked"


def test_revoking_the_new_code_revives_nothing(world: World) -> None:
    old = world.generate()
    new = told(superseding(world, old), 201)

    told(world.client.post(f"/v1/codes/{new['code_id']}/revocation", json={"reason": "why"}), 200)

    assert refused(redeeming(world, old, OWN_ACCOUNT)) == (409, "code_superseded")


def test_a_code_that_begins_later_supersedes_from_then_on(world: World) -> None:
    old = world.generate()
    new = told(superseding(world, old, starts_at=days(5)), 201)

    read = world.read(old)

    assert (read["state"], read["superseded_at"]) == ("generated", new["starts_at"])
    assert redeeming(world, old, OTHER_ACCOUNT).status_code == 201


def test_if_match_on_superseding_names_the_version_of_the_old_code(world: World) -> None:
    old = world.generate()
    world.share(old)

    stale = superseding(world, old, {"If-Match": '"1"'})
    matching = superseding(world, old, {"If-Match": '"2"'})
    none = world.client.post(
        "/v1/codes",
        json={"creator_id": OWN_CREATOR, "video_id": "v", "terms_version": TERMS},
        headers={"If-Match": '"1"'},
    )

    assert (refused(stale), stale.json()["current_version"]) == ((412, "stale_version"), 2)
    assert (told(matching, 201)["version"], matching.headers["etag"]) == (1, '"1"')
    assert refused(none) == (400, "malformed_header")


def test_a_repeated_request_answers_the_new_code_again(world: World) -> None:
    old = world.generate()
    headers = {"Idempotency-Key": "the-same"}

    first = superseding(world, old, headers)
    again = superseding(world, old, headers)

    assert told(again, 201) == told(first, 201)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json()["code_id"] != old["code_id"]


def test_what_cannot_be_superseded_is_refused_with_its_reason(world: World) -> None:
    revoked, over, twice, others, elsewhere = (
        world.generate(),
        world.generate(starts_at=days(-40)),
        world.generate(),
        world.generate(OTHER_CREATOR),
        world.generate(),
    )
    told(world.client.post(f"/v1/codes/{revoked['code_id']}/revocation", json={"reason": "why"}), 200)
    successor = told(superseding(world, twice), 201)

    assert refused(superseding(world, revoked)) == (409, "code_revoked")
    assert refused(superseding(world, over)) == (409, "code_expired")
    again = superseding(world, twice)
    assert (refused(again), again.json()["conflict_id"]) == ((409, "code_superseded"), successor["code_id"])
    assert refused(superseding(world, others)) == (409, "other_creator")
    assert refused(superseding(world, elsewhere, video_id="another")) == (409, "other_video")
    unknown = {"code_id": "0199b2f0-7c1e-7a11-8f0e-3a5c7d9e1b20", "video_id": "another"}
    assert refused(superseding(world, unknown)) == (404, "code_unknown")
    assert refused(superseding(world, {"code_id": "no-code", "video_id": "another"})) == (422, "malformed_body")


def test_a_creator_supersedes_only_codes_of_its_own(world: World) -> None:
    own, others = world.generate(), world.generate(OTHER_CREATOR)
    creator = world.creator()

    def asked(old: dict[str, Any]) -> dict[str, Any]:
        return {
            "creator_id": OWN_CREATOR,
            "video_id": old["video_id"],
            "terms_version": TERMS,
            "supersedes": old["code_id"],
        }

    assert refused(creator.post("/v1/codes", json=asked(others))) == (403, "not_allowed")
    assert creator.post("/v1/codes", json=asked(own)).status_code == 201
