"""Redemptions over HTTP: a code looked up and redeemed, and attempts listed by what became of them."""

from __future__ import annotations

from typing import Any

from tests.api.listing import listed
from tests.api.world import OTHER_ACCOUNT, OTHER_CREATOR, OWN_ACCOUNT, OWN_CREATOR, World, refused, told


def test_a_lookup_tells_what_a_code_covers_and_records_nothing(world: World) -> None:
    code = world.generate()
    head = world.head()

    answer = told(world.brand().post("/v1/codes/lookup", json={"secret": code["secret"]}), 200)

    shown = ("code_id", "masked", "creator_id", "video_id", "starts_at", "expires_at", "start_stated", "state", "live")
    assert answer == {name: code[name] for name in shown}
    assert world.head() == head


def test_a_redemption_tells_whether_the_code_was_shared_with_the_account(world: World) -> None:
    code = world.generate()
    world.share(code)

    shared = world.redeem(code, OWN_ACCOUNT)
    stranger = world.redeem(code, OTHER_ACCOUNT)

    assert (shared["shared_with_advertiser"], stranger["shared_with_advertiser"]) == (True, False)
    assert {**shared, **dict.fromkeys(("version", "position"))} == {
        **{name: code[name] for name in ("code_id", "masked", "creator_id", "video_id", "starts_at", "expires_at")},
        "start_stated": True,
        "advertiser_id": OWN_ACCOUNT,
        "state": "redeemed",
        "live": True,
        "shared_with_advertiser": True,
        "version": None,
        "position": None,
    }
    again = world.client.post("/v1/redemptions", json={"secret": code["secret"], "advertiser_id": OWN_ACCOUNT})
    assert again.status_code == 200


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


def test_a_code_that_is_expected_to_be_for_another_video_is_refused_and_that_is_recorded(world: World) -> None:
    code = world.generate(video_id="7312345678901234567")
    link = "https://www.tiktok.com/@name/video/7312345678901234567"
    body = {"secret": code["secret"], "advertiser_id": OWN_ACCOUNT}
    other = {"expected_video_id": "7312345678901234568"}

    looked_up = world.client.post("/v1/codes/lookup", json={"secret": code["secret"]} | other)
    redeemed = world.client.post("/v1/redemptions", json=body | other)
    attempts = listed(world, "redemptions", refused="true")
    right = told(world.client.post("/v1/redemptions", json=body | {"expected_video_id": link}), 201)
    found = world.client.post("/v1/codes/lookup", json={"secret": code["secret"], "expected_video_id": link})

    assert (refused(looked_up), refused(redeemed)) == ((409, "other_video"), (409, "other_video"))
    assert [attempt["reason"] for attempt in attempts] == ["other_video"]
    assert {right["code_id"], told(found, 200)["code_id"]} == {code["code_id"]}


def test_the_expected_video_is_compared_before_repeats_and_other_refusals(world: World) -> None:
    code = world.generate(video_id="7312345678901234567")
    world.redeem(code)
    body = {
        "secret": code["secret"],
        "advertiser_id": OWN_ACCOUNT,
        "expected_video_id": "7312345678901234568",
    }

    repeat = world.client.post("/v1/redemptions", json=body)
    told(world.client.post(f"/v1/codes/{code['code_id']}/revocation", json={"reason": "why"}), 200)
    revoked = world.client.post("/v1/redemptions", json=body)
    unknown = world.client.post("/v1/redemptions", json=body | {"secret": "#of/a+code-that-is-unknown"})

    assert (refused(repeat), refused(revoked)) == ((409, "other_video"), (409, "other_video"))
    assert refused(unknown) == (404, "code_unknown")
