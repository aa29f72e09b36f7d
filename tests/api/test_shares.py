"""Shares over HTTP: recorded once, and listed by every filter."""

from __future__ import annotations

from typing import Any

import pytest

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
    told,
)


def test_the_same_share_again_answers_200_and_records_nothing(world: World) -> None:
    code = world.generate()
    asked = {"brand_id": OWN_BRAND, "channel": "dm", "advertiser_id": OWN_ACCOUNT, "note": "for spring"}

    first = world.client.post(f"/v1/codes/{code['code_id']}/shares", json=asked)
    again = world.client.post(f"/v1/codes/{code['code_id']}/shares", json=asked)

    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert first.json()["state"] == "shared"


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


@pytest.fixture
def two_worlds(world: World) -> World:
    """Fill a ledger with a running campaign of our own, and one of others."""
    world.running()
    world.running(OTHER_CREATOR, OTHER_BRAND, OTHER_ACCOUNT)
    return world


def test_a_brand_may_not_ask_for_anothers_shares(two_worlds: World) -> None:
    assert two_worlds.brand().get("/v1/shares", params={"brand_id": OTHER_BRAND}).status_code == 403
