"""Campaigns over HTTP: launched with a warning, ended, and listed by when they stop."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from tests.api.listing import listed
from tests.api.world import OTHER_ACCOUNT, OWN_ACCOUNT, OWN_CREATOR, World, campaign, days, refused, told


def test_a_campaign_that_would_outlive_the_code_is_warned_of(world: World) -> None:
    code = world.generate()
    world.redeem(code)

    inside = world.launch(code, "inside")
    beyond = world.launch(code, "beyond", ends_at=days(90))

    assert inside["warnings"] == []
    (warning,) = beyond["warnings"]
    assert f"{datetime.fromisoformat(code['expires_at']):%Y-%m-%d}" in warning
    stops = {entry["campaign_id"]: entry["stops_at"] for entry in beyond["campaigns"]}
    assert stops["beyond"] == code["expires_at"]
    assert stops["inside"] < code["expires_at"]


def test_the_same_campaign_again_answers_200_and_another_under_its_id_409(world: World) -> None:
    code = world.generate()
    world.redeem(code)
    path, asked = f"/v1/codes/{code['code_id']}/campaigns", campaign() | {"targeting": {"countries": ["US", {"x": 1}]}}

    assert world.client.post(path, json=asked).status_code == 201
    assert world.client.post(path, json=asked).status_code == 200
    other = world.client.post(path, json=asked | {"name": "Another"})
    assert refused(other) == (409, "campaign_exists_differently")
    assert other.json()["conflict_id"] == "campaign-1"


def test_a_budget_is_kept_with_two_decimals_and_in_a_currency(world: World) -> None:
    code = world.generate()
    world.redeem(code)
    path = f"/v1/codes/{code['code_id']}/campaigns"
    same = campaign()
    asked = [same | {"budget": {"amount": amount, "currency": "JPY"}} for amount in ("500", "500.0", "500.00")]

    answers = [world.client.post(path, json=one) for one in asked]

    assert [answer.status_code for answer in answers] == [201, 200, 200]
    assert answers[0].json()["campaigns"][0]["budget"] == {"amount": "500.00", "currency": "JPY"}
    for currency in ("XXX", "XTS"):
        answer = world.client.post(path, json=campaign() | {"budget": {"amount": "5", "currency": currency}})
        assert refused(answer) == (422, "malformed_body")
        assert answer.json()["errors"][0]["pointer"] == "/budget/currency"


def test_a_campaign_ends_with_or_without_a_body_and_stays_ended(world: World) -> None:
    code = world.running()
    path = f"/v1/codes/{code['code_id']}/campaigns/campaign-1/end"

    first = told(world.client.post(path), 200)
    again = told(world.client.post(path, json={"reason": "spent"}), 200)

    assert first["campaigns"][0]["running"] is False
    assert first == again
    assert refused(world.client.post(f"/v1/codes/{code['code_id']}/campaigns/nothing/end")) == (404, "campaign_unknown")


def test_a_brand_is_not_told_which_campaign_of_another_locks_the_creative(world: World) -> None:
    code = world.generate()
    world.redeem(code, OWN_ACCOUNT)
    world.redeem(code, OTHER_ACCOUNT)
    world.launch(code, "theirs", OTHER_ACCOUNT, caption_sha256="a" * 64)
    brand = world.brand()
    path, asked = f"/v1/codes/{code['code_id']}/campaigns", campaign("ours") | {"caption_sha256": "b" * 64}

    locked = brand.post(path, json=asked)
    assert refused(locked) == (409, "creative_locked")
    assert "theirs" not in locked.text
    assert world.client.post(path, json=asked).json()["conflict_id"] == "theirs"


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
