"""Authorizations over HTTP: the answer, its reason and its proof."""

from __future__ import annotations

from typing import Any

from tests.api.world import OTHER_ACCOUNT, OWN_ACCOUNT, World, days, told


def ask(world: World, video_id: str, advertiser_id: str = OWN_ACCOUNT, **query: Any) -> dict[str, Any]:
    asked: dict[str, Any] = {"video_id": video_id, "advertiser_id": advertiser_id, "at_least": world.head()} | query
    return told(world.client.get("/v1/authorizations", params=asked), 200)


def test_the_question_is_answered_with_its_reason_and_its_proof(world: World) -> None:
    code = world.generate()
    world.share(code)
    redemption = world.redeem(code)

    answer = ask(world, code["video_id"])

    assert (answer["authorized"], answer["reason"], answer["code_id"]) == (True, "authorized", code["code_id"])
    assert (answer["permission_enabled"], answer["shared"]) == (True, True)
    assert (answer["starts_at"], answer["expires_at"]) == (code["starts_at"], code["expires_at"])
    assert answer["evidence"] == [1, 2, 3, 4]
    assert ask(world, code["video_id"], OTHER_ACCOUNT)["reason"] == "not_redeemed"
    assert ask(world, "another-video")["reason"] == "no_code"
    assert ask(world, code["video_id"], at=days(40))["reason"] == "expired"
    assert ask(world, code["video_id"], at=days(-40))["reason"] == "not_started"
    assert ask(world, code["video_id"], as_of=redemption["position"] - 1)["reason"] == "not_redeemed"
    assert ask(world, code["video_id"], as_of=0)["reason"] == "no_code"


def test_the_answer_to_a_past_question_does_not_change(world: World) -> None:
    code = world.generate()
    world.redeem(code)
    first = ask(world, code["video_id"])
    told(world.client.post(f"/v1/codes/{code['code_id']}/revocation", json={"reason": "why"}), 200)

    assert ask(world, code["video_id"])["reason"] == "revoked"
    then = ask(world, code["video_id"], as_of=first["as_of"], at=first["at"])
    assert then == first
    assert ask(world, code["video_id"], at=first["at"])["authorized"] is True
