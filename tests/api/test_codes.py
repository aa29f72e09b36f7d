"""Codes over HTTP: generated, extended, revealed, noted on, and read now, as known then, and as true then."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from tests.api.world import (
    OTHER_ACCOUNT,
    OTHER_BRAND,
    OWN_ACCOUNT,
    OWN_BRAND,
    OWN_CREATOR,
    World,
    campaign,
    days,
    refused,
    told,
)


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


def redeeming(world: World, code: Any) -> Any:
    return world.client.post("/v1/redemptions", json={"secret": code["secret"], "advertiser_id": "someone"})


def test_a_code_that_has_not_begun_can_be_asked_for_again(world: World) -> None:
    code = world.generate(starts_at=days(2))
    answer = redeeming(world, code)
    assert refused(answer) == (409, "code_not_started")
    assert answer.json()["retryable"] is True


def on(path: str, **body: Any) -> Any:
    return lambda world, code: world.client.post(f"/v1/codes/{code['code_id']}/{path}", json=body)


def launching(**more: Any) -> Any:
    return lambda world, code: world.client.post(
        f"/v1/codes/{code['code_id']}/campaigns", json=campaign("campaign-2") | more
    )


def test_a_code_whose_window_is_over_is_expired(world: World) -> None:
    code = world.generate(starts_at=days(-40))
    assert (code["state"], code["live"]) == ("expired", False)
    for ask in (redeeming, launching(), on("shares", brand_id="b", channel="dm")):
        assert refused(ask(world, code)) == (409, "code_expired")


@pytest.mark.parametrize(
    ("path", "body", "state"),
    [("extensions", {"expires_at": days(30)}, "redeemed"), ("revocation", {"reason": "why"}, "revoked")],
)
def test_a_creator_records_an_end_that_nobody_has_recorded_yet(
    world: World, path: str, body: dict[str, Any], state: str
) -> None:
    world.permit(effective_at=days(-100))
    code = world.generate(starts_at=days(-40))
    redemption = {"secret": code["secret"], "advertiser_id": OWN_ACCOUNT, "effective_at": days(-39)}
    told(world.client.post("/v1/redemptions", json=redemption), 201)
    launch = campaign() | {"starts_at": days(-38), "ends_at": days(20), "effective_at": days(-38)}
    told(world.client.post(f"/v1/codes/{code['code_id']}/campaigns", json=launch), 201)

    answer = told(
        world.creator().post(f"/v1/codes/{code['code_id']}/{path}", json=body), (201, 200)[path == "revocation"]
    )
    history = told(world.client.get(f"/v1/codes/{code['code_id']}/history"), 200)["events"]

    assert answer["state"] == state
    ends = {event["type"]: event["effective_at"] for event in history if event["type"] in {"CampaignEnded", "Expired"}}
    assert ends == dict.fromkeys(("CampaignEnded", "Expired"), code["expires_at"])


# What a code's answer adds or leaves out between the command's answer and a read of it.
READ_ALONE = {"as_of"}


def test_a_code_reads_as_the_command_left_it(world: World) -> None:
    code = world.generate()
    shared = world.share(code)

    read = world.read(code)

    assert {name: value for name, value in read.items() if name not in READ_ALONE} == shared
    assert read["as_of"] == shared["position"]


TOLD_ONCE = {"secret"}


def test_a_code_reads_as_it_stood_at_each_version(world: World) -> None:
    code = world.generate()
    answers = [code, world.share(code), told(world.client.get(f"/v1/codes/{code['code_id']}"), 200)]
    world.redeem(code)

    for version, left in enumerate(answers[:2], start=1):
        read = world.read(code, version=version)
        expected = {name: value for name, value in left.items() if name not in TOLD_ONCE}
        assert {name: value for name, value in read.items() if name not in READ_ALONE} == expected
    beyond = world.client.get(f"/v1/codes/{code['code_id']}", params={"version": 9})
    assert refused(beyond) == (404, "version_unknown")


def test_a_code_reads_as_the_ledger_knew_it_at_a_position_or_a_time(world: World) -> None:
    code = world.generate()
    shared = world.share(code)
    events = told(world.client.get(f"/v1/codes/{code['code_id']}/history"), 200)["events"]
    world.redeem(code)

    assert world.read(code, as_of=shared["position"])["state"] == "shared"
    assert world.read(code, as_of=events[-1]["recorded_at"])["state"] == "shared"
    assert world.read(code, as_of=code["position"])["state"] == "generated"
    answer = world.client.get(f"/v1/codes/{code['code_id']}", params={"as_of": code["position"]})
    assert answer.headers["ledger-position"] == str(code["position"])
    assert answer.headers["etag"] == '"1"'

    before = world.client.get(f"/v1/codes/{code['code_id']}", params={"as_of": code["position"] - 1})
    assert refused(before) == (404, "code_unknown")


def test_what_the_ledger_learned_late_was_true_before_it_knew(world: World) -> None:
    code = world.generate(starts_at=days(-5))
    path = f"/v1/codes/{code['code_id']}/revocation"
    told(world.client.post(path, json={"reason": "why", "effective_at": days(-2)}), 200)

    assert world.read(code, at=days(-3))["state"] == "generated"
    assert world.read(code, at=days(-1))["state"] == "revoked"
    assert world.read(code, at=days(-1), as_of=code["position"])["state"] == "generated"


def test_a_code_is_told_to_have_begun_with_its_generation_or_its_window_and_had_no_state_before(world: World) -> None:
    recorded_late, planned = world.generate(starts_at=days(-5)), world.generate(starts_at=days(5))
    for code, begun_at, before, after in (
        (recorded_late, recorded_late["starts_at"], days(-6), days(-4)),
        (planned, planned["generated_at"], days(-1), days(1)),
    ):
        for path in (f"/v1/codes/{code['code_id']}", f"/v1/codes/{code['code_id']}/history"):
            answer = world.client.get(path, params={"at": before})
            assert refused(answer) == (404, "code_not_begun")
            assert answer.json()["begun_at"] == begun_at
            assert world.client.get(path, params={"at": after}).status_code == 200
        assert world.read(code, at=after)["state"] == "generated"
        assert code["start_stated"] is True


def test_what_is_on_record_after_a_revocation_is_warned_of_in_every_answer(world: World) -> None:
    code = world.generate(starts_at=days(-5))
    world.share(code)
    world.redeem(code)
    world.redeem(code, OTHER_ACCOUNT)
    revocation = {"reason": "why", "effective_at": days(-2)}
    revoked = told(world.client.post(f"/v1/codes/{code['code_id']}/revocation", json=revocation), 200)

    def warning(number: int) -> list[str]:
        kinds = "shares, redemptions, campaigns, extensions or supersessions"
        facts = f"{number} {kinds} are recorded as of the revocation or later."
        return [f"{facts} They stay in the history, and authorize nothing."]

    assert (code["warnings"], revoked["warnings"], world.read(code)["warnings"]) == ([], warning(3), warning(3))
    assert told(world.brand().get(f"/v1/codes/{code['code_id']}"), 200)["warnings"] == []
    asked = {"video_id": code["video_id"], "advertiser_id": OWN_ACCOUNT, "at_least": revoked["position"]}
    assert told(world.client.get("/v1/authorizations", params=asked), 200)["reason"] == "revoked"


def test_an_unknown_code_and_what_is_no_code_id_are_told_the_same(world: World) -> None:
    code = world.generate()["code_id"]
    creator_stream = "01a2047d-e22d-7479-9309-83e7d9fc9f1d"
    ids = ["x", "lookup", creator_stream, code.upper(), code.replace("-", ""), f"{{{code}}}", "%00", "a" * 2000]

    answers = [world.client.get(f"/v1/codes/{id_}") for id_ in ids]

    texts = {answer.text.replace(answer.headers["request-id"], "") for answer in answers}
    assert {answer.status_code for answer in answers} == {404}
    assert len(texts) == 1


def test_a_brand_reads_of_a_code_what_concerns_it_alone(world: World) -> None:
    code = world.running()
    world.share(code, OTHER_BRAND, OTHER_ACCOUNT, note="a note for the other brand")
    world.redeem(code, OTHER_ACCOUNT)
    world.launch(code, "campaign-2", OTHER_ACCOUNT)
    world.client.post(f"/v1/codes/{code['code_id']}/notes", json={"text": "for ourselves"})
    brand = world.brand()

    read = told(brand.get(f"/v1/codes/{code['code_id']}"), 200)
    history = brand.get(f"/v1/codes/{code['code_id']}/history")

    assert [share["brand_id"] for share in read["shares"]] == [OWN_BRAND]
    assert [redemption["advertiser_id"] for redemption in read["redemptions"]] == [OWN_ACCOUNT]
    assert [entry["campaign_id"] for entry in read["campaigns"]] == ["campaign-1"]
    told_types = [event["type"] for event in told(history, 200)["events"]]
    assert told_types == ["CodeGenerated", "Shared", "Redeemed", "CampaignLaunched", "NoteAdded"]
    for hidden in (OTHER_BRAND, OTHER_ACCOUNT, "campaign-2", "for the other brand", "for ourselves", code["secret"]):
        assert hidden not in history.text


def test_the_first_entries_of_a_code_are_told_with_how_many_there_are(world: World) -> None:
    code = world.running()
    for number in (2, 3):
        world.share(code, f"brand-{number}", f"account-{number}")
        world.redeem(code, f"account-{number}")
    world.launch(code, "campaign-2", "account-2")
    path = f"/v1/codes/{code['code_id']}"
    whole = told(world.client.get(path), 200)

    first = told(world.client.get(path, params={"entries": 1}), 200)
    past = told(world.client.get(path, params={"entries": 2, "as_of": whole["position"] - 1}), 200)

    assert [first[name] for name in ("shares", "redemptions", "campaigns")] == [
        whole[name][:1] for name in ("shares", "redemptions", "campaigns")
    ]
    assert first["counts"] == {"shares": 3, "redemptions": 3, "campaigns": 2, "running": 2}
    assert past["shares"] == whole["shares"][:2]
    assert past["counts"] == {"shares": 3, "redemptions": 3, "campaigns": 1, "running": 1}
    assert "counts" not in whole


def test_a_brand_is_told_no_count_of_what_others_did(world: World) -> None:
    code = world.running()
    world.share(code, OTHER_BRAND, OTHER_ACCOUNT)
    world.redeem(code, OTHER_ACCOUNT)
    world.launch(code, "campaign-2", OTHER_ACCOUNT)

    read = told(world.brand().get(f"/v1/codes/{code['code_id']}", params={"entries": 1}), 200)

    assert read["counts"] == {"shares": 1, "redemptions": 1, "campaigns": 1, "running": 1}
