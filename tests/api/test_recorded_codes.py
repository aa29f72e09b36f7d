"""Recording a code is not issuing it: a code that TikTok generated can have any window, and can begin unknown."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from tests.api.world import OTHER_ACCOUNT, OTHER_CREATOR, OWN_ACCOUNT, OWN_CREATOR, TERMS, World, days, refused, told

SECRET = "#recorded/code+of-tiktok=0123456789"


def given_code(world: World, **facts: Any) -> dict[str, Any]:
    return world.generate(secret=SECRET, **facts)


def asked(**facts: Any) -> dict[str, Any]:
    return {"creator_id": OWN_CREATOR, "video_id": "video-0", "terms_version": TERMS, "secret": SECRET} | facts


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize(
    ("window", "length"),
    [({"days": 1}, 1), ({"days": 45}, 45), ({"days": 3_650}, 3_650), ({}, 30)],
)
def test_a_recorded_code_can_have_any_length_in_days(world: World, window: dict[str, Any], length: int) -> None:
    code = given_code(world, **window)

    assert moment(code["expires_at"]) - moment(code["starts_at"]) == timedelta(days=length)
    assert code["start_stated"] is True


def test_a_recorded_code_can_have_a_start_and_an_end(world: World) -> None:
    code = given_code(world, starts_at="2026-01-27 08:30:00", expires_at=days(400))

    assert (code["starts_at"], code["start_stated"]) == ("2026-01-27T08:30:00Z", True)


def test_a_code_of_which_only_the_end_is_known_says_that_nobody_stated_its_start(world: World) -> None:
    end = days(12)
    code = given_code(world, expires_at=end)
    event = told(world.client.get(f"/v1/codes/{code['code_id']}/history"), 200)["events"][0]
    found = told(world.client.post("/v1/codes/lookup", json={"secret": SECRET}), 200)

    assert (code["start_stated"], found["start_stated"]) == (False, False)
    assert moment(code["expires_at"]) == moment(end)
    assert (code["starts_at"], found["starts_at"]) == (code["generated_at"], code["generated_at"])
    assert "nobody stated when it began" in event["summary"]
    assert event["body"]["start_stated"] is False


def test_lists_begin_a_code_with_an_unknown_start_when_its_answer_does(world: World) -> None:
    code = given_code(world, expires_at=days(12))

    query = {"video_id": code["video_id"], "at_least": code["position"]}
    (listed,) = told(world.client.get("/v1/codes", params=query), 200)["codes"]

    # It was recorded a moment after its command was decided.
    assert (listed["starts_at"], listed["generated_at"]) == (code["starts_at"], code["generated_at"])


def test_an_earlier_redemption_moves_an_unknown_start(world: World) -> None:
    code = given_code(world, expires_at=days(12))

    late = {"secret": SECRET, "advertiser_id": OWN_ACCOUNT, "effective_at": "2026-01-05T00:00:00Z"}
    redeemed = told(world.client.post("/v1/redemptions", json=late), 201)
    before = world.client.get(f"/v1/codes/{code['code_id']}", params={"at": "2026-01-04T23:59:59Z"})

    assert (redeemed["starts_at"], redeemed["start_stated"]) == ("2026-01-05T00:00:00Z", False)
    assert refused(before) == (404, "code_not_begun")


def test_an_unknown_start_is_never_moved_into_the_time_of_another_code(world: World) -> None:
    world.permit(effective_at="2025-01-01T00:00:00Z")
    # Of one video: the first ended in the middle of January, and the second one's start is unknown.
    first = world.generate(video_id="video-0", starts_at="2026-01-01T00:00:00Z", days=7)
    code = given_code(world, video_id="video-0", expires_at=days(12))

    share = {"brand_id": "b", "channel": "dm", "effective_at": "2026-01-05T00:00:00Z"}
    redemption = {"secret": SECRET, "advertiser_id": OWN_ACCOUNT, "effective_at": "2026-01-05T00:00:00Z"}

    assert refused(world.client.post(f"/v1/codes/{code['code_id']}/shares", json=share)) == (409, "code_not_started")
    assert refused(world.client.post("/v1/redemptions", json=redemption)) == (409, "code_not_started")
    assert first["expires_at"] == "2026-01-08T00:00:00Z"


def test_a_code_of_unknown_start_is_extended_by_its_end_and_not_by_its_length(world: World) -> None:
    code = given_code(world, expires_at=days(12))
    extensions = f"/v1/codes/{code['code_id']}/extensions"

    by_length = world.client.post(extensions, json={"days": 60})
    added = told(world.client.post(extensions, json={"add_days": 30}), 201)
    to_moment = told(world.client.post(extensions, json={"expires_at": "2030-01-01T00:00:00Z"}), 201)

    assert refused(by_length) == (409, "start_unknown")
    assert moment(added["expires_at"]) - moment(code["expires_at"]) == timedelta(days=30)
    assert to_moment["expires_at"] == "2030-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("window", "status", "problem"),
    [
        ({"days": 0}, 409, "duration_not_allowed"),
        ({"days": -(2**31) + 1}, 409, "duration_not_allowed"),
        ({"days": 2**31 - 1}, 409, "duration_not_allowed"),
        ({"starts_at": days(-1), "expires_at": days(3_660)}, 409, "duration_not_allowed"),
        ({"starts_at": days(3_000), "expires_at": days(4_000)}, 409, "duration_not_allowed"),
        ({"expires_at": days(-1)}, 422, "malformed_body"),
        ({"starts_at": days(3), "expires_at": days(2)}, 422, "malformed_body"),
        ({"days": 30, "expires_at": days(30)}, 422, "malformed_body"),
    ],
)
def test_a_recorded_code_lasts_at_most_ten_years_and_ends_after_it_began(
    world: World, window: dict[str, Any], status: int, problem: str
) -> None:
    world.permit()
    assert refused(world.client.post("/v1/codes", json=asked(**window))) == (status, problem)


def test_an_end_by_the_effective_time_names_the_field(world: World) -> None:
    world.permit(effective_at="2026-01-01T00:00:00Z")
    end = "2026-05-01T00:00:00Z"

    at_its_end = world.client.post("/v1/codes", json=asked(expires_at=end, effective_at=end))
    before = world.client.post("/v1/codes", json=asked(expires_at=end, effective_at="2026-04-30T00:00:00Z"))

    assert (refused(at_its_end), at_its_end.json()["errors"][0]["pointer"]) == ((422, "malformed_body"), "/expires_at")
    assert told(before, 201)["expires_at"] == end


def test_a_code_that_is_issued_here_has_no_end_of_its_own(world: World) -> None:
    world.permit()
    body = {name: value for name, value in asked(expires_at=days(30)).items() if name != "secret"}
    answer = world.client.post("/v1/codes", json=body)
    assert refused(answer) == (422, "malformed_body")
    assert "Send days" in answer.json()["errors"][0]["problem"]


@pytest.mark.parametrize(
    ("body", "moved"),
    [({"add_days": 30}, 60), ({"days": 45}, 45), ({"days": 500}, 500), ({"add_days": 1_000}, 1_030)],
)
def test_a_recorded_code_is_extended_by_any_number_of_days(world: World, body: dict[str, int], moved: int) -> None:
    code = given_code(world)
    extended = told(world.client.post(f"/v1/codes/{code['code_id']}/extensions", json=body), 201)
    assert moment(extended["expires_at"]) - moment(code["starts_at"]) == timedelta(days=moved)


@pytest.mark.parametrize("body", [{"add_days": 4_000}, {"days": 2**31 - 1}, {"expires_at": days(3_700)}])
def test_no_extension_reaches_beyond_ten_years(world: World, body: dict[str, Any]) -> None:
    code = given_code(world)
    answer = world.client.post(f"/v1/codes/{code['code_id']}/extensions", json=body)
    assert refused(answer) == (409, "duration_not_allowed")


@pytest.mark.parametrize(
    "body", [{"add_days": 0}, {"add_days": -5}, {"add_days": -(2**31) + 1}, {"days": -(2**31) + 1}]
)
def test_no_extension_shortens_a_window(world: World, body: dict[str, int]) -> None:
    code = given_code(world)
    answer = world.client.post(f"/v1/codes/{code['code_id']}/extensions", json=body)
    assert refused(answer) == (409, "window_not_longer")


def test_a_code_that_is_issued_here_is_extended_by_days_from_its_end(world: World) -> None:
    code = world.generate()
    path = f"/v1/codes/{code['code_id']}/extensions"

    added = told(world.client.post(path, json={"add_days": 30}), 201)

    assert moment(added["expires_at"]) - moment(code["expires_at"]) == timedelta(days=30)
    assert refused(world.client.post(path, json={"add_days": 330})) == (409, "duration_not_allowed")


@pytest.mark.parametrize(
    "body",
    [{}, {"days": 60, "add_days": 30}, {"days": 60, "expires_at": days(60)}, {"add_days": 1, "expires_at": days(60)}],
)
def test_an_extension_says_exactly_one_thing(world: World, body: dict[str, Any]) -> None:
    code = world.generate()
    answer = world.client.post(f"/v1/codes/{code['code_id']}/extensions", json=body)
    assert refused(answer) == (422, "malformed_body")
    assert answer.json()["errors"] == [{"pointer": "", "problem": "Send exactly one of days, add_days and expires_at."}]


def test_a_code_that_is_known_already_is_named_to_whoever_may_read_it(world: World) -> None:
    code = given_code(world)
    world.permit("creator-2")
    stranger = world.as_role("creator", creator_ids=["creator-2"])

    own = world.creator().post("/v1/codes", json=asked(video_id="video-other"))
    others = stranger.post("/v1/codes", json=asked(video_id="video-other", creator_id="creator-2"))
    operator = world.as_role("operator").post("/v1/codes", json=asked(video_id="video-other"))

    assert [refused(answer) for answer in (own, others, operator)] == [(409, "secret_exists")] * 3
    assert [answer.json().get("conflict_id") for answer in (own, others, operator)] == [
        code["code_id"],
        None,
        code["code_id"],
    ]


def test_a_creator_who_is_not_known_is_not_one_whose_permission_is_off(world: World) -> None:
    world.permit("off", enabled=True)
    world.permit("off", enabled=False)

    unknown = world.client.post("/v1/codes", json=asked(creator_id="nobody"))
    off = world.client.post("/v1/codes", json=asked(creator_id="off"))
    denied = told(world.client.get("/v1/accesses", params={"refused": "true"}), 200)["accesses"]

    assert (refused(unknown), refused(off)) == ((409, "creator_unknown"), (409, "permission_disabled"))
    assert [access["refused"] for access in denied] == ["permission_disabled", "creator_unknown"]
    counted = told(world.client.get("/v1/stats"), 200)["refused_attempts"]
    assert counted == {"permission_disabled": 1, "creator_unknown": 1}


def test_a_brand_that_meets_a_refusal_learns_no_code_that_it_may_not_read(world: World) -> None:
    old = given_code(world)
    new = world.generate(video_id=old["video_id"], secret="#its/successor+0123456789", supersedes=old["code_id"])
    body = {"secret": SECRET, "advertiser_id": OWN_ACCOUNT}

    brand = world.brand().post("/v1/redemptions", json=body)
    operator = world.client.post("/v1/redemptions", json=body | {"advertiser_id": OTHER_ACCOUNT})

    assert (refused(brand), refused(operator)) == ((409, "code_superseded"), (409, "code_superseded"))
    assert (brand.json().get("conflict_id"), operator.json()["conflict_id"]) == (None, new["code_id"])


def test_a_link_that_names_another_creator_is_warned_of(world: World) -> None:
    world.permit("ana")
    links = [f"https://www.tiktok.com/@{name}/video/731234567890123456{n}" for n, name in enumerate(["bo", "Ana"])]
    asked = {"creator_id": "@ana", "terms_version": TERMS}
    others, own = [told(world.client.post("/v1/codes", json=asked | {"video_id": link}), 201) for link in links]
    assert (others["video_id"], own["warnings"]) == ("7312345678901234560", [])
    assert others["warnings"] == ["The link names @bo, but the code is for ana. Check whose video it is."]


def test_a_new_code_of_a_video_that_had_codes_of_another_creator_is_warned_of(world: World) -> None:
    """Also in the answer to the same request again; only operators and admins are told whose codes they are."""
    first = world.generate(OTHER_CREATOR)
    told(world.client.post(f"/v1/codes/{first['code_id']}/revocation", json={"reason": "why"}), 200)
    world.permit(OWN_CREATOR)
    asked = {"creator_id": OWN_CREATOR, "video_id": first["video_id"], "terms_version": TERMS}
    again, key = {"starts_at": days(40)}, {"Idempotency-Key": "one"}

    code, replayed = [told(world.client.post("/v1/codes", json=asked, headers=key), 201) for _ in range(2)]
    unnamed = told(world.creator().post("/v1/codes", json=asked | again), 201)

    warning = "Codes of this video are recorded from other creators too"
    assert code["warnings"] == replayed["warnings"] == [f"{warning}: {OTHER_CREATOR}. Check whose video it is."]
    assert unnamed["warnings"] == [f"{warning}. Check whose video it is."]
    assert first["warnings"] == []


def test_a_creator_can_keep_a_video_from_its_owner_until_an_operator_revokes(world: World) -> None:
    world.permit(OTHER_CREATOR)
    asked = {"creator_id": OTHER_CREATOR, "video_id": "video-of-another", "terms_version": TERMS}
    stranger = world.as_role("creator", creator_ids=[OTHER_CREATOR])
    claimed = told(stranger.post("/v1/codes", json=asked | {"days": 365}), 201)
    world.permit(OWN_CREATOR)
    owner, mine = world.creator(), asked | {"creator_id": OWN_CREATOR}
    revocation = f"/v1/codes/{claimed['code_id']}/revocation"

    assert refused(owner.post("/v1/codes", json=mine)) == (409, "live_code_exists")
    assert refused(owner.post(revocation, json={"reason": "It is my video"}))[0] == 403
    told(world.as_role("operator").post(revocation, json={"reason": "It is another creator's video"}), 200)
    told(owner.post("/v1/codes", json=mine), 201)
