"""Each command over HTTP: what it answers, what a repeat answers, and what it refuses."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from tests.api.world import OTHER_ACCOUNT, OWN_ACCOUNT, OWN_BRAND, OWN_CREATOR, World, campaign, days, refused, told


def test_a_permission_tells_how_many_codes_stay_live_when_it_goes_off(world: World) -> None:
    world.generate()
    world.generate()

    answer = told(world.client.put(f"/v1/creators/{OWN_CREATOR}/permission", json={"enabled": False}), 200)

    assert answer == {"creator_id": OWN_CREATOR, "enabled": False, "live_codes": 2, "version": 2, "position": 4}


def test_switching_off_a_creator_nobody_knows_records_nothing(world: World) -> None:
    answer = told(world.client.put("/v1/creators/nobody/permission", json={"enabled": False}), 200)

    assert answer == {"creator_id": "nobody", "enabled": False, "live_codes": 0, "version": 0, "position": 0}
    assert world.head() == 0


def test_a_new_code_is_answered_with_its_secret_and_where_it_stands(world: World) -> None:
    world.permit()
    answer = world.client.post(
        "/v1/codes", json={"creator_id": OWN_CREATOR, "video_id": "video-1", "terms_version": "2026-01"}
    )
    code = told(answer, 201)

    assert answer.headers["location"] == f"/v1/codes/{code['code_id']}"
    assert answer.headers["etag"] == '"1"'
    assert answer.headers["ledger-position"] == "2"
    assert answer.headers["cache-control"] == "no-store"
    assert code["secret"].startswith("#")
    assert len(code["secret"]) > 40
    assert code["masked"] == f"…{code['secret'][-4:]}"
    window = datetime.fromisoformat(code["expires_at"]) - datetime.fromisoformat(code["starts_at"])
    assert window == timedelta(days=30)
    assert (code["state"], code["live"], code["version"], code["position"]) == ("generated", True, 1, 2)


@pytest.mark.parametrize("secret", ["#a/b+c=d/e", "12345678", "é#字+abcd", "#" + "k" * 512])
def test_a_code_that_tiktok_generated_keeps_its_own_string(world: World, secret: str) -> None:
    code = world.generate(secret=f" \n{secret}\t ")

    assert code["secret"] == secret
    assert (
        told(world.client.post("/v1/codes/lookup", json={"secret": f"\n{secret} "}), 200)["code_id"] == code["code_id"]
    )
    revealed = told(world.client.post(f"/v1/codes/{code['code_id']}/reveals", json={"reason": "why"}), 200)
    assert revealed["secret"] == secret


def test_a_code_is_extended_from_its_start_by_days_or_to_a_moment(world: World) -> None:
    code = world.generate()
    extensions = f"/v1/codes/{code['code_id']}/extensions"

    by_days = told(world.client.post(extensions, json={"days": 60}), 201)
    to_moment = told(world.client.post(extensions, json={"expires_at": days(90)}), 201)

    begins = datetime.fromisoformat(code["starts_at"])
    assert datetime.fromisoformat(by_days["expires_at"]) == begins + timedelta(days=60)
    assert to_moment["expires_at"] > by_days["expires_at"]
    assert to_moment["version"] == 3


def test_the_same_share_again_answers_200_and_records_nothing(world: World) -> None:
    code = world.generate()
    asked = {"brand_id": OWN_BRAND, "channel": "dm", "advertiser_id": OWN_ACCOUNT, "note": "for spring"}

    first = world.client.post(f"/v1/codes/{code['code_id']}/shares", json=asked)
    again = world.client.post(f"/v1/codes/{code['code_id']}/shares", json=asked)

    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert first.json()["state"] == "shared"


def test_a_lookup_tells_what_a_code_covers_and_records_nothing(world: World) -> None:
    code = world.generate()
    head = world.head()

    answer = told(world.brand().post("/v1/codes/lookup", json={"secret": code["secret"]}), 200)

    shown = ("code_id", "masked", "creator_id", "video_id", "starts_at", "expires_at", "state", "live")
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
        "advertiser_id": OWN_ACCOUNT,
        "state": "redeemed",
        "live": True,
        "shared_with_advertiser": True,
        "version": None,
        "position": None,
    }
    again = world.client.post("/v1/redemptions", json={"secret": code["secret"], "advertiser_id": OWN_ACCOUNT})
    assert again.status_code == 200


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


def test_a_campaign_ends_with_or_without_a_body_and_stays_ended(world: World) -> None:
    code = world.running()
    path = f"/v1/codes/{code['code_id']}/campaigns/campaign-1/end"

    first = told(world.client.post(path), 200)
    again = told(world.client.post(path, json={"reason": "spent"}), 200)

    assert first["campaigns"][0]["running"] is False
    assert first == again
    assert refused(world.client.post(f"/v1/codes/{code['code_id']}/campaigns/nothing/end")) == (404, "campaign_unknown")


def test_a_reveal_is_recorded_each_time_and_never_told_again(world: World) -> None:
    code = world.generate()
    headers = {"Idempotency-Key": "the-same"}

    for _ in range(2):
        answer = world.client.post(f"/v1/codes/{code['code_id']}/reveals", json={"reason": "lost"}, headers=headers)
        assert told(answer, 200)["secret"] == code["secret"]
        assert answer.headers["cache-control"] == "no-store"
        assert "idempotent-replayed" not in answer.headers

    history = told(world.client.get(f"/v1/codes/{code['code_id']}/history"), 200)["events"]
    assert [event["type"] for event in history] == ["CodeGenerated", "CodeRevealed", "CodeRevealed"]


def test_a_note_is_about_something_that_has_happened(world: World) -> None:
    code = world.generate()
    path = f"/v1/codes/{code['code_id']}/notes"

    assert world.client.post(path, json={"text": "so", "about_position": 2}).status_code == 201
    assert world.client.post(path, json={"text": "so", "about_position": 2}).status_code == 200
    ahead = world.client.post(path, json={"text": "so", "about_position": 99})
    assert refused(ahead) == (422, "malformed_body")
    assert ahead.json()["errors"][0]["pointer"] == "/about_position"


def test_what_happened_earlier_is_recorded_with_its_own_time(world: World) -> None:
    world.permit()
    world.client.put(f"/v1/creators/{OWN_CREATOR}/permission", json={"enabled": False, "effective_at": days(-2)})

    events = told(world.client.get("/v1/events"), 200)["events"]

    assert events[-1]["effective_at"] < events[0]["effective_at"]
    assert events[-1]["recorded_at"] > events[0]["recorded_at"]


def test_nothing_takes_effect_in_the_future(world: World) -> None:
    answer = world.client.put(f"/v1/creators/{OWN_CREATOR}/permission", json={"enabled": True, "effective_at": days(1)})
    assert refused(answer) == (422, "malformed_body")
    assert answer.json()["errors"][0]["pointer"] == "/effective_at"


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


def off(world: World, _code: Any) -> None:
    world.permit(enabled=False)


def revoked(world: World, code: Any) -> None:
    told(world.client.post(f"/v1/codes/{code['code_id']}/revocation", json={"reason": "why", "force": True}), 200)


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


def test_a_code_that_has_not_begun_can_be_asked_for_again(world: World) -> None:
    code = world.generate(starts_at=days(2))
    answer = redeeming(world, code)
    assert refused(answer) == (409, "code_not_started")
    assert answer.json()["retryable"] is True


def test_a_code_whose_window_is_over_is_expired(world: World) -> None:
    code = world.generate(starts_at=days(-40))
    assert (code["state"], code["live"]) == ("expired", False)
    for ask in (redeeming, launching(), on("shares", brand_id="b", channel="dm")):
        assert refused(ask(world, code)) == (409, "code_expired")
