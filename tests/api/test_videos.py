"""Videos that an operator binds to their creator: whose codes they then take, and where that can be read."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from tests.api.world import OTHER_CREATOR, OWN_ACCOUNT, OWN_CREATOR, TERMS, World, refused, told

VIDEO = "7312345678901234567"
PATH = f"/v1/videos/{VIDEO}"


def bind(world: World, creator_id: str | None = OWN_CREATOR, video_id: str = VIDEO) -> dict[str, Any]:
    return told(world.client.put(f"/v1/videos/{video_id}", json={"creator_id": creator_id}), 200)


def generating(client: httpx.Client, creator_id: str, **more: Any) -> httpx.Response:
    body = {"creator_id": creator_id, "video_id": VIDEO, "terms_version": TERMS} | more
    return client.post("/v1/codes", json=body)


def two_creators(world: World) -> httpx.Client:
    """Switch both permissions on, and return the client of the other creator."""
    world.permit(OWN_CREATOR)
    world.permit(OTHER_CREATOR)
    return world.as_role("creator", creator_ids=[OTHER_CREATOR])


def asked(client: httpx.Client, world: World, **more: Any) -> dict[str, Any]:
    query: dict[str, Any] = {"video_id": VIDEO, "advertiser_id": OWN_ACCOUNT, "at_least": world.head()} | more
    return told(client.get("/v1/authorizations", params=query), 200)


def test_no_creator_can_take_a_video_that_is_bound_to_another(world: World) -> None:
    stranger = two_creators(world)
    bind(world)

    generated = generating(stranger, OTHER_CREATOR)
    recorded = generating(stranger, OTHER_CREATOR, secret="#a/code+that+tiktok+generated==", days=30)
    linked = generating(stranger, OTHER_CREATOR, video_id=f"https://www.tiktok.com/@{OTHER_CREATOR}/video/{VIDEO}")

    for answer in (generated, recorded, linked):
        assert refused(answer) == (409, "video_of_other_creator")
        assert OWN_CREATOR not in answer.text
    assert told(generating(world.creator(), OWN_CREATOR), 201)["creator_id"] == OWN_CREATOR


def test_a_binding_holds_for_operators_too_until_they_change_or_lift_it(world: World) -> None:
    two_creators(world)
    bind(world)
    assert refused(generating(world.client, OTHER_CREATOR)) == (409, "video_of_other_creator")

    bind(world, OTHER_CREATOR)
    code = told(generating(world.client, OTHER_CREATOR), 201)
    told(world.client.post(f"/v1/codes/{code['code_id']}/revocation", json={"reason": "why"}), 200)
    assert refused(generating(world.client, OWN_CREATOR)) == (409, "video_of_other_creator")

    bind(world, None)
    assert told(generating(world.client, OWN_CREATOR), 201)["creator_id"] == OWN_CREATOR


def test_a_code_that_another_creator_has_already_cannot_be_extended(world: World) -> None:
    stranger = two_creators(world)
    code = told(generating(stranger, OTHER_CREATOR), 201)

    assert bind(world)["other_creators"] == [OTHER_CREATOR]

    extension = stranger.post(f"/v1/codes/{code['code_id']}/extensions", json={"days": 60})
    assert refused(extension) == (409, "video_of_other_creator")
    told(world.client.post(f"/v1/codes/{code['code_id']}/revocation", json={"reason": "Not their video"}), 200)
    told(generating(world.creator(), OWN_CREATOR), 201)


def test_binding_records_an_event_of_its_own(world: World) -> None:
    answer = world.client.put(PATH, json={"creator_id": OWN_CREATOR})
    bound = told(answer, 200)
    event = told(world.client.get(f"/v1/events/{bound['position']}"), 200)

    assert bound == {
        "video_id": VIDEO,
        "creator_id": OWN_CREATOR,
        "other_creators": [],
        "version": 1,
        "position": 1,
    }
    assert (answer.headers["etag"], answer.headers["ledger-position"]) == ('"1"', "1")
    assert {field: event[field] for field in ("type", "video_id", "stream_version", "body", "summary")} == {
        "type": "VideoBound",
        "video_id": VIDEO,
        "stream_version": 1,
        "body": {"video_id": VIDEO, "creator_id": OWN_CREATOR},
        "summary": f"Video {VIDEO} was bound to creator {OWN_CREATOR}.",
    }
    assert not {"code_id", "creator_id"} & event.keys()


def test_the_same_again_records_nothing_and_neither_does_releasing_what_nobody_bound(world: World) -> None:
    assert bind(world, None) == {
        "video_id": VIDEO,
        "creator_id": None,
        "other_creators": [],
        "version": 0,
        "position": 0,
    }
    first = bind(world)
    assert bind(world, f"@{OWN_CREATOR.upper()}") == first
    assert bind(world, None)["version"] == 2
    assert bind(world, None)["version"] == 2
    assert world.head() == 2


def test_to_whom_a_video_is_bound_can_be_read(world: World) -> None:
    stranger = two_creators(world)
    auditor = world.as_role("auditor")
    unknown = auditor.get(PATH, params={"at_least": world.head()})
    told(generating(stranger, OTHER_CREATOR), 201)
    position = bind(world)["position"]
    bound = auditor.get(PATH, params={"at_least": world.head()})

    nobody: dict[str, Any] = {
        "video_id": VIDEO,
        "creator_id": None,
        "other_creators": [],
        "version": 0,
        "position": 0,
        "as_of": 2,
    }
    assert told(unknown, 200) == nobody
    assert told(bound, 200) == {
        "video_id": VIDEO,
        "creator_id": OWN_CREATOR,
        "other_creators": [OTHER_CREATOR],
        "version": 1,
        "position": position,
        "as_of": position,
    }
    assert (unknown.headers["etag"], bound.headers["etag"]) == ('"0"', '"1"')


def test_only_operators_and_admins_bind_and_only_ids_of_videos(world: World) -> None:
    body = {"creator_id": OWN_CREATOR}
    two_creators(world)
    assert refused(world.creator().put(PATH, json=body)) == (403, "not_allowed")
    assert refused(world.creator().get(PATH)) == (403, "not_allowed")
    assert world.as_role("operator").put(PATH, json=body).status_code == 200
    assert refused(world.client.put("/v1/videos/no%20id", json=body)) == (400, "malformed_path")
    assert refused(world.client.put(PATH, json={})) == (422, "malformed_body")
    late = body | {"effective_at": "2026-01-01T00:00:00Z"}
    assert refused(world.client.put(PATH, json=late)) == (422, "malformed_body")


def test_no_video_is_bound_to_an_erased_creator(world: World) -> None:
    two_creators(world)
    told(world.client.post(f"/v1/creators/{OTHER_CREATOR}/erasure", json={"reason": "why"}), 200)
    answer = world.client.put(PATH, json={"creator_id": OTHER_CREATOR})
    assert refused(answer) == (409, "creator_erased")


def test_the_question_warns_of_codes_of_another_creator_than_the_one_whose_video_it_is(world: World) -> None:
    stranger = two_creators(world)
    code = told(generating(stranger, OTHER_CREATOR), 201)
    world.redeem(code)
    before, brand = world.head(), world.brand()
    assert asked(world.client, world)["warnings"] == []

    bind(world)

    said = f"An operator bound this video to its creator, {OWN_CREATOR}. Codes of other creators are recorded"
    based = "This answer is based on a code of another creator."
    answer = asked(world.client, world)
    assert (answer["authorized"], answer["creator_id"]) == (True, OTHER_CREATOR)
    assert answer["warnings"] == [f"{said}: {OTHER_CREATOR}.", based]
    assert asked(brand, world)["warnings"] == answer["warnings"]
    assert asked(world.client, world, as_of=before)["warnings"] == []
    batch = world.client.post(
        "/v1/authorizations/batch",
        params={"at_least": world.head()},
        content=f"video_id,advertiser_id\n{VIDEO},{OWN_ACCOUNT}\n",
        headers={"Content-Type": "text/csv"},
    )
    assert based in batch.text

    bind(world, OTHER_CREATOR)
    assert asked(world.client, world)["warnings"] == []


def test_a_brand_learns_of_no_creator_whose_code_it_may_not_read(world: World) -> None:
    stranger = two_creators(world)
    code = told(generating(stranger, OTHER_CREATOR), 201)
    told(world.client.post(f"/v1/codes/{code['code_id']}/revocation", json={"reason": "why"}), 200)
    world.redeem(told(generating(world.client, OWN_CREATOR), 201))
    bind(world)

    warnings = asked(world.brand(), world)["warnings"]

    assert warnings == ["An operator bound this video to its creator. Codes of other creators are recorded."]


def test_the_trail_finds_a_binding_by_its_video(world: World) -> None:
    two_creators(world)
    bind(world)
    told(generating(world.client, OWN_CREATOR), 201)
    bind(world, None)
    later = {"at_least": world.head()}

    def found(client: httpx.Client, **query: Any) -> list[str]:
        events = told(client.get("/v1/events", params=later | query), 200)["events"]
        return sorted(event["type"] for event in events)

    assert found(world.client, video_id=VIDEO) == ["CodeGenerated", "VideoBound", "VideoReleased"]
    assert found(world.client, q=f"video:{VIDEO} -type:CodeGenerated") == ["VideoBound", "VideoReleased"]
    assert found(world.client, type="VideoBound") == ["VideoBound"]
    assert found(world.creator()) == ["CodeGenerated", "PermissionEnabled"]


def test_a_binding_is_recorded_once_for_each_idempotency_key(world: World) -> None:
    headers = {"Idempotency-Key": "the-same"}
    first = world.client.put(PATH, json={"creator_id": OWN_CREATOR}, headers=headers)
    bind(world, OTHER_CREATOR)

    again = world.client.put(PATH, json={"creator_id": OWN_CREATOR}, headers=headers)
    other = world.client.put(PATH, json={"creator_id": OTHER_CREATOR}, headers=headers)

    assert (told(again, 200), again.headers["idempotent-replayed"]) == (told(first, 200), "true")
    assert refused(other) == (422, "idempotency_key_reused")


def test_a_binding_is_refused_if_it_is_not_as_its_caller_knows_it(world: World) -> None:
    def put(version: int, creator_id: str) -> httpx.Response:
        return world.client.put(PATH, json={"creator_id": creator_id}, headers={"If-Match": f'"{version}"'})

    assert told(put(0, OWN_CREATOR), 200)["version"] == 1
    stale = put(0, OTHER_CREATOR)
    assert (refused(stale), stale.json()["current_version"]) == ((412, "stale_version"), 1)
    assert told(put(1, OTHER_CREATOR), 200)["version"] == 2


def test_of_bindings_and_codes_that_arrive_together_no_code_passes_a_binding(world: World) -> None:
    """Each code was recorded before the binding, or refused by it; the last binding holds."""
    stranger = two_creators(world)
    videos = [f"731234567890123{number:04}" for number in range(8)]

    def race(video_id: str) -> tuple[httpx.Response, httpx.Response]:
        with ThreadPoolExecutor(2) as pool:
            code = pool.submit(generating, stranger, OTHER_CREATOR, video_id=video_id)
            binding = pool.submit(world.client.put, f"/v1/videos/{video_id}", json={"creator_id": OWN_CREATOR})
            return code.result(), binding.result()

    with ThreadPoolExecutor(4) as pool:
        for code, binding in pool.map(race, videos):
            bound = told(binding, 200)
            if code.status_code == 201:
                assert code.json()["position"] < bound["position"]
                assert bound["other_creators"] == [OTHER_CREATOR]
            else:
                assert refused(code) == (409, "video_of_other_creator")
    for video_id in videos:
        assert refused(generating(stranger, OTHER_CREATOR, video_id=video_id))[1] in {
            "video_of_other_creator",
            "live_code_exists",
        }
