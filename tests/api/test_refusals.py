"""Every rule that refuses a command over HTTP, by its name."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.world import OWN_CREATOR, World, campaign, days, refused, told


def off(world: World, _code: Any) -> None:
    world.permit(enabled=False)


def revoked(world: World, code: Any) -> None:
    told(world.client.post(f"/v1/codes/{code['code_id']}/revocation", json={"reason": "why", "force": True}), 200)


def bound_elsewhere(world: World, code: Any) -> None:
    told(world.client.put(f"/v1/videos/{code['video_id']}", json={"creator_id": "somebody-else"}), 200)


def on(path: str, **body: Any) -> Any:
    return lambda world, code: world.client.post(f"/v1/codes/{code['code_id']}/{path}", json=body)


def generating(**facts: Any) -> Any:
    def ask(world: World, code: Any) -> Any:
        asked = {"creator_id": OWN_CREATOR, "video_id": "fresh", "terms_version": "1"} | facts
        asked = {name: code[name] if value is SAME else value for name, value in asked.items()}
        return world.client.post("/v1/codes", json=asked)

    return ask


def redeeming(world: World, code: Any) -> Any:
    return world.client.post("/v1/redemptions", json={"secret": code["secret"], "advertiser_id": "someone"})


def launching(**more: Any) -> Any:
    return lambda world, code: world.client.post(
        f"/v1/codes/{code['code_id']}/campaigns", json=campaign("campaign-2") | more
    )


SAME = object()


HASH = "a" * 64


REFUSALS: list[tuple[str, Any, Any]] = [
    ("permission_disabled", off, generating()),
    ("terms_not_accepted", None, generating(terms_version="")),
    ("terms_not_accepted", None, generating(terms_version=None)),
    ("duration_not_allowed", None, generating(days=31)),
    ("duration_not_allowed", None, generating(days=0)),
    ("secret_exists", None, generating(secret=SAME)),
    ("live_code_exists", None, generating(video_id=SAME)),
    ("video_of_other_creator", bound_elsewhere, generating(video_id=SAME)),
    ("video_of_other_creator", bound_elsewhere, on("extensions", days=60)),
    ("permission_disabled", off, on("extensions", days=60)),
    ("code_revoked", revoked, on("extensions", days=60)),
    ("duration_not_allowed", None, on("extensions", days=-7)),
    ("window_not_longer", None, on("extensions", days=7)),
    ("permission_disabled", off, on("shares", brand_id="b", channel="dm")),
    ("code_revoked", revoked, on("shares", brand_id="b", channel="dm")),
    ("code_revoked", revoked, redeeming),
    ("code_revoked", revoked, launching()),
    ("not_redeemed_by_advertiser", None, launching(advertiser_id="someone")),
    ("campaign_outside_window", None, launching(starts_at=days(40), ends_at=days(50))),
    ("creative_locked", None, launching(caption_sha256=HASH)),
    ("campaign_running", None, on("revocation", reason="why")),
]


@pytest.mark.parametrize(("code", "before", "ask"), REFUSALS, ids=[f"{n}-{r[0]}" for n, r in enumerate(REFUSALS)])
def test_a_rule_that_says_no_answers_409_with_its_name(world: World, code: str, before: Any, ask: Any) -> None:
    existing = world.generate()
    world.redeem(existing)
    world.launch(existing, caption_sha256="b" * 64)
    if before is not None:
        before(world, existing)

    answer = ask(world, existing)

    assert refused(answer) == (409, code)
    conflict = {
        "secret_exists": existing["code_id"],
        "live_code_exists": existing["code_id"],
        "creative_locked": "campaign-1",
        "campaign_running": "campaign-1",
    }
    assert answer.json().get("conflict_id") == conflict.get(code)
