"""Late paperwork over HTTP: a fact is judged by its own time, and can be recorded together with its end."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.api.world import (
    OWN_ACCOUNT,
    OWN_BRAND,
    OWN_CREATOR,
    TERMS,
    World,
    campaign,
    refused,
    told,
)

FIRST, SECOND = "#first/secret+of-a-code=A1B2", "#other/secret+of-a-code=C3D4"


def day(month: int, number: int) -> str:
    return f"2026-{month:02}-{number:02}T00:00:00Z"


def recording(world: World, secret: str, starts_at: str, **more: Any) -> httpx.Response:
    asked = {
        "creator_id": OWN_CREATOR,
        "video_id": "video-0",
        "terms_version": TERMS,
        "secret": secret,
        "starts_at": starts_at,
        "effective_at": starts_at,
    }
    return world.client.post("/v1/codes", json=asked | more)


def permitted(world: World) -> None:
    world.permit(effective_at=day(1, 1))


def test_a_permission_that_was_on_then_lets_a_code_of_then_be_recorded(world: World) -> None:
    permitted(world)
    world.permit(enabled=False, effective_at=day(3, 1))

    assert told(recording(world, FIRST, day(2, 1)), 201)["generated_at"] == day(2, 1)
    assert refused(recording(world, SECOND, day(3, 2))) == (409, "permission_disabled")


def test_an_extension_of_then_is_recorded_though_its_end_is_over(world: World) -> None:
    permitted(world)
    code = told(recording(world, FIRST, day(2, 1), days=10), 201)

    extended = told(
        world.client.post(f"/v1/codes/{code['code_id']}/extensions", json={"add_days": 10, "effective_at": day(2, 5)}),
        201,
    )
    history = told(world.client.get(f"/v1/codes/{code['code_id']}/history"), 200)["events"]

    assert (extended["expires_at"], extended["state"]) == (day(2, 21), "expired")
    assert [event["type"] for event in history if event["type"] != "ExpiryApproaching"][-2:] == ["Extended", "Expired"]


def test_days_are_ambiguous_where_a_later_extension_is_recorded(world: World) -> None:
    permitted(world)
    code = told(recording(world, FIRST, day(2, 1), days=10), 201)
    path = f"/v1/codes/{code['code_id']}/extensions"
    told(world.client.post(path, json={"add_days": 20, "effective_at": day(2, 8)}), 201)

    for body in ({"days": 30}, {"add_days": 5}):
        answer = world.client.post(path, json=body | {"effective_at": day(2, 5)})
        assert refused(answer) == (409, "later_extension")
    to_moment = world.client.post(path, json={"expires_at": day(2, 20), "effective_at": day(2, 5)})
    assert told(to_moment, 201)["expires_at"] == day(3, 3)


def test_a_redemption_before_a_revocation_is_recorded_after_it(world: World) -> None:
    permitted(world)
    code = told(recording(world, FIRST, day(2, 1), days=3_000), 201)
    path = f"/v1/codes/{code['code_id']}"
    told(world.client.post(f"{path}/revocation", json={"reason": "why", "effective_at": day(3, 1)}), 200)
    body = {"secret": FIRST, "advertiser_id": OWN_ACCOUNT}

    late = world.client.post("/v1/redemptions", json=body | {"effective_at": day(2, 20)})
    too_late = world.client.post("/v1/redemptions", json=body | {"effective_at": day(3, 2), "advertiser_id": "a"})
    history = told(world.client.get(f"{path}/history"), 200)["events"]

    assert (told(late, 201)["state"], refused(too_late)) == ("revoked", (409, "code_revoked"))
    assert [event["type"] for event in history] == ["CodeGenerated", "Revoked", "Redeemed"]


def test_what_is_recorded_as_of_a_revocation_or_later_is_counted_in_a_warning(world: World) -> None:
    permitted(world)
    code = told(recording(world, FIRST, day(2, 1), days=3_000), 201)
    path = f"/v1/codes/{code['code_id']}"
    share = {"brand_id": OWN_BRAND, "channel": "dm", "effective_at": day(3, 5)}
    told(world.client.post(f"{path}/shares", json=share), 201)
    redemption = {"secret": FIRST, "advertiser_id": OWN_ACCOUNT, "effective_at": day(3, 6)}
    told(world.client.post("/v1/redemptions", json=redemption), 201)
    told(world.client.post(f"{path}/extensions", json={"add_days": 5, "effective_at": day(3, 7)}), 201)

    revoked = told(world.client.post(f"{path}/revocation", json={"reason": "why", "effective_at": day(3, 1)}), 200)

    assert revoked["warnings"] == [
        (
            "3 shares, redemptions, campaigns, extensions or supersessions are recorded as of the revocation or later. "
            "They stay in the history, and authorize nothing."
        )
    ]
    assert world.read(code)["warnings"] == revoked["warnings"]
    assert told(world.brand().get(path), 200)["warnings"] == []


def test_the_earliest_revocation_holds(world: World) -> None:
    permitted(world)
    code = told(recording(world, FIRST, day(2, 1), days=3_000), 201)
    path = f"/v1/codes/{code['code_id']}/revocation"

    def revoked_at(effective_at: str) -> Any:
        answer = world.client.post(path, json={"reason": "why", "effective_at": effective_at})
        return told(answer, 200)["revoked_at"]

    assert [revoked_at(day(3, n)) for n in (9, 5, 7)] == [day(3, 9), day(3, 5), day(3, 5)]


def test_a_code_is_recorded_with_its_revocation_where_another_took_the_video_then(world: World) -> None:
    permitted(world)
    told(recording(world, SECOND, day(3, 1), days=3_000), 201)

    alone = recording(world, FIRST, day(2, 1), days=3_000)
    revoked = {"effective_at": day(2, 20), "reason": "A new code was sent"}
    together = recording(world, FIRST, day(2, 1), days=3_000, revoked=revoked)
    code = told(together, 201)
    history = told(world.client.get(f"/v1/codes/{code['code_id']}/history"), 200)["events"]

    assert refused(alone) == (409, "live_code_exists")
    assert (code["state"], code["revoked_at"], code["version"]) == ("revoked", day(2, 20), 2)
    assert [(event["type"], event["effective_at"]) for event in history] == [
        ("CodeGenerated", day(2, 1)),
        ("Revoked", day(2, 20)),
    ]
    assert history[1]["body"] == {"reason": "A new code was sent", "forced": False}


def test_a_campaign_is_recorded_with_its_end_where_another_creative_ran_then(world: World) -> None:
    permitted(world)
    code = told(recording(world, FIRST, day(2, 1), days=3_000), 201)
    path = f"/v1/codes/{code['code_id']}/campaigns"
    redemption = {"secret": FIRST, "advertiser_id": OWN_ACCOUNT, "effective_at": day(2, 2)}
    told(world.client.post("/v1/redemptions", json=redemption), 201)
    second = campaign("second") | {"starts_at": day(3, 1), "ends_at": day(9, 1), "creative_sha256": "b" * 64}
    told(world.client.post(path, json=second | {"effective_at": day(3, 1)}), 201)
    first = campaign("first") | {"starts_at": day(2, 3), "ends_at": day(9, 1), "creative_sha256": "a" * 64}
    late = first | {"effective_at": day(2, 3)}

    alone = world.client.post(path, json=late)
    together = world.client.post(
        path, json=late | {"ended": {"effective_at": day(2, 28), "reason": "Another creative"}}
    )

    assert refused(alone) == (409, "creative_locked")
    ends = {entry["campaign_id"]: entry["ended_at"] for entry in told(together, 201)["campaigns"]}
    assert ends == {"second": None, "first": day(2, 28)}


@pytest.mark.parametrize("effective_at", ["2026-01-31T00:00:00Z", "2099-01-01T00:00:00Z"])
def test_a_code_is_not_recorded_with_a_revocation_that_cannot_have_been(world: World, effective_at: str) -> None:
    permitted(world)
    answer = recording(world, FIRST, day(2, 1), revoked={"effective_at": effective_at, "reason": "why"})
    if effective_at < day(2, 1):
        assert refused(answer) == (409, "effective_too_early")
    else:
        assert refused(answer) == (422, "malformed_body")
        assert answer.json()["errors"][0]["pointer"] == "/revoked/effective_at"


def test_only_operators_and_admins_record_something_with_its_end(world: World) -> None:
    code = world.running()
    end = {"effective_at": day(2, 1), "reason": "why"}
    asked = {"creator_id": OWN_CREATOR, "video_id": "v", "terms_version": TERMS, "revoked": end}
    launch = campaign("another") | {"ended": end}

    assert refused(world.creator().post("/v1/codes", json=asked)) == (403, "not_allowed")
    path = f"/v1/codes/{code['code_id']}/campaigns"
    assert refused(world.brand().post(path, json=launch)) == (403, "not_allowed")


def test_a_code_did_not_exist_before_it_began(world: World) -> None:
    permitted(world)
    code = told(recording(world, FIRST, day(2, 1), effective_at=day(1, 20)), 201)
    path = f"/v1/codes/{code['code_id']}"

    assert refused(world.client.get(path, params={"at": day(1, 19)})) == (404, "code_not_begun")
    between = told(world.client.get(path, params={"at": day(1, 25)}), 200)
    assert (between["state"], between["live"]) == ("generated", False)
    assert told(world.client.get(path, params={"at": day(2, 1)}), 200)["live"] is True


def test_what_came_before_the_code_is_refused(world: World) -> None:
    permitted(world)
    code = told(recording(world, FIRST, day(2, 1)), 201)
    path = f"/v1/codes/{code['code_id']}"
    early = {"effective_at": day(1, 31)}

    shared = world.client.post(f"{path}/shares", json={"brand_id": "b", "channel": "dm"} | early)
    noted = world.client.post(f"{path}/notes", json={"text": "so"} | early)
    redeemed = world.client.post("/v1/redemptions", json={"secret": FIRST, "advertiser_id": "a"} | early)

    assert (refused(shared), refused(noted)) == ((409, "effective_too_early"), (409, "effective_too_early"))
    assert refused(redeemed) == (409, "code_not_started")


def test_a_refusal_of_something_late_is_answered_and_never_recorded(world: World) -> None:
    permitted(world)
    code = told(recording(world, FIRST, day(2, 1), days=10), 201)

    late = {"secret": FIRST, "advertiser_id": OWN_ACCOUNT, "effective_at": day(2, 20)}
    assert refused(world.client.post("/v1/redemptions", json=late)) == (409, "code_expired")

    history = told(world.client.get(f"/v1/codes/{code['code_id']}/history"), 200)["events"]
    assert "RedemptionRefused" not in {event["type"] for event in history}


def test_a_campaign_from_before_a_revocation_stops_with_it_and_the_answer_says_so(world: World) -> None:
    permitted(world)
    code = told(recording(world, FIRST, day(2, 1), days=3_000), 201)
    path = f"/v1/codes/{code['code_id']}"
    redemption = {"secret": FIRST, "advertiser_id": OWN_ACCOUNT, "effective_at": day(2, 2)}
    told(world.client.post("/v1/redemptions", json=redemption), 201)
    told(world.client.post(f"{path}/revocation", json={"reason": "why", "effective_at": day(3, 1)}), 200)

    late = campaign() | {"starts_at": day(2, 3), "ends_at": day(9, 1), "effective_at": day(2, 3)}
    launched = told(world.client.post(f"{path}/campaigns", json=late), 201)

    assert launched["warnings"] == [
        "The campaign stopped on 2026-03-01 at 00:00 UTC, when the code was revoked, before its own end."
    ]
    assert [(one["ended_at"], one["stops_at"]) for one in launched["campaigns"]] == [(day(3, 1), day(3, 1))]


def test_a_campaign_that_is_over_already_is_said_to_have_stopped(world: World) -> None:
    permitted(world)
    code = told(recording(world, FIRST, day(2, 1), days=10), 201)
    redemption = {"secret": FIRST, "advertiser_id": OWN_ACCOUNT, "effective_at": day(2, 2)}
    told(world.client.post("/v1/redemptions", json=redemption), 201)

    late = campaign() | {"starts_at": day(2, 3), "ends_at": day(9, 1), "effective_at": day(2, 3)}
    launched = told(world.client.post(f"/v1/codes/{code['code_id']}/campaigns", json=late), 201)

    assert launched["warnings"] == [
        "The campaign stopped on 2026-02-11 at 00:00 UTC, when the code's window ended, before its own end."
    ]


def test_an_extension_is_refused_where_a_later_one_with_an_earlier_end_is_on_record(world: World) -> None:
    permitted(world)
    code = told(recording(world, FIRST, day(1, 1), days=50), 201)
    extensions = f"/v1/codes/{code['code_id']}/extensions"

    told(world.client.post(extensions, json={"expires_at": day(6, 1), "effective_at": day(2, 10)}), 201)
    answer = world.client.post(extensions, json={"expires_at": day(6, 10), "effective_at": day(2, 5)})

    assert refused(answer) == (409, "later_extension")
    assert "first record it again at its own effective_at" in answer.json()["detail"]
    assert told(world.client.get(f"/v1/codes/{code['code_id']}"), 200)["expires_at"] == day(6, 1)
