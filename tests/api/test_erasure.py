"""Erasing a creator over HTTP: who asked and why is told, what was sealed reads as erased, and all else goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.errors import Unavailable
from infra.jobs.erasure import Erasures
from tests.api.world import OTHER_CREATOR, OWN_ACCOUNT, OWN_CREATOR, World, campaign, refused, told
from tests.waiting import until

NOTE, REMARK = "for the birthday of Ana Lopes", "Ana Lopes meant another brand"
WHY = {"reason": "asked for on 3 March"}


def with_notes(world: World, creator_id: str = OWN_CREATOR) -> dict[str, Any]:
    """Record a code with a note in its share and one beside it."""
    code = world.generate(creator_id)
    world.share(code, note=NOTE)
    world.redeem(code)
    told(world.client.post(f"/v1/codes/{code['code_id']}/notes", json={"text": REMARK}), 201)
    return code


def erase(world: World, creator_id: str = OWN_CREATOR, **more: Any) -> httpx.Response:
    return world.client.post(f"/v1/creators/{creator_id}/erasure", json=WHY, **more)


def notes(world: World, code: dict[str, Any]) -> list[tuple[str | None, bool]]:
    """Return text and erasure of each event of a code's history that has or had a note."""
    events = told(world.client.get(f"/v1/codes/{code['code_id']}/history"), 200)["events"]
    noted = [event for event in events if "note_fingerprint" in event["body"]]
    return [(event["body"].get("note", event["body"].get("text")), event.get("erased", False)) for event in noted]


def test_an_erasure_answers_who_asked_why_and_when(world: World) -> None:
    with_notes(world)
    answer = erase(world)
    erasure = told(answer, 200)
    last = told(world.client.get("/v1/events", params={"order": "desc", "limit": 1}), 200)["events"][0]
    assert erasure == {
        "creator_id": OWN_CREATOR,
        "state": "carried_out",
        "reason": WHY["reason"],
        "carried_out_at": erasure["carried_out_at"],
        **{name: last[name] for name in ("actor", "recorded_at", "effective_at", "event_id", "position")},
    }
    assert (last["type"], last["body"]) == ("CreatorErased", {"creator_id": OWN_CREATOR, **WHY})
    assert answer.headers["ledger-position"] == str(last["position"])
    assert told(world.client.get(f"/v1/creators/{OWN_CREATOR}/erasure"), 200) == erasure


def test_erasing_again_answers_the_first_erasure(world: World) -> None:
    with_notes(world)
    first = told(erase(world), 200)
    again = world.client.post(f"/v1/creators/{OWN_CREATOR}/erasure", json={"reason": "another"})
    assert told(again, 200) == first
    keyed = [erase(world, headers={"Idempotency-Key": "once"}) for _ in range(2)]
    assert [told(answer, 200) for answer in keyed] == [first, first]
    assert world.head() == first["position"]


def test_notes_of_an_erased_creator_read_as_erased(world: World) -> None:
    ours, theirs = with_notes(world), with_notes(world, OTHER_CREATOR)
    assert notes(world, ours) == [(NOTE, False), (REMARK, False)]
    told(erase(world), 200)
    assert notes(world, ours) == [(None, True), (None, True)]
    assert notes(world, theirs) == [(NOTE, False), (REMARK, False)]


def test_the_secret_of_an_erased_creators_code_is_shown_to_nobody(world: World) -> None:
    code, other = with_notes(world), with_notes(world, OTHER_CREATOR)
    asked = {"creator_id": OWN_CREATOR, "video_id": "video-once", "terms_version": "1"}
    once = {"Idempotency-Key": "generated-once"}
    assert told(world.client.post("/v1/codes", json=asked, headers=once), 201)["secret"]
    told(erase(world), 200)
    reveal = world.client.post(f"/v1/codes/{code['code_id']}/reveals", json={"reason": "lost"})
    assert refused(reveal) == (409, "creator_erased")
    # Not even to who was shown it before: told again for its Idempotency-Key, a secret is unsealed again.
    assert refused(world.client.post("/v1/codes", json=asked, headers=once)) == (409, "creator_erased")
    revealed = told(world.client.post(f"/v1/codes/{other['code_id']}/reveals", json={"reason": "lost"}), 200)
    assert revealed["secret"] == other["secret"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("extensions", {"days": 60}),
        ("shares", {"brand_id": "brand-2", "channel": "dm"}),
        ("reveals", {"reason": "why"}),
        ("notes", {"text": "another"}),
    ],
)
def test_nothing_new_is_recorded_on_an_erased_creators_code(world: World, path: str, body: dict[str, Any]) -> None:
    code = with_notes(world)
    head = told(erase(world), 200)["position"]
    assert refused(world.client.post(f"/v1/codes/{code['code_id']}/{path}", json=body)) == (409, "creator_erased")
    assert world.head() == head


def test_an_erased_creators_permission_is_off_for_good(world: World) -> None:
    with_notes(world)
    position = told(erase(world), 200)["position"]
    path = f"/v1/creators/{OWN_CREATOR}/permission"
    assert refused(world.client.put(path, json={"enabled": True})) == (409, "creator_erased")
    assert told(world.client.put(path, json={"enabled": False}), 200)["enabled"] is False
    assert told(world.client.get(path, params={"at_least": position}), 200)["enabled"] is False
    history = told(world.client.get(f"{path}/history"), 200)["events"]
    assert [event["type"] for event in history] == ["PermissionEnabled", "CreatorErased"]
    assert history[1]["changes"] == [{"field": "enabled", "before": True, "after": False}]


def test_what_others_do_with_an_erased_creators_code_goes_on(world: World) -> None:
    code = with_notes(world)
    told(erase(world), 200)
    redeemed = {"secret": code["secret"], "advertiser_id": "account-2"}
    told(world.client.post("/v1/redemptions", json=redeemed), 201)
    told(world.client.post("/v1/codes/lookup", json={"secret": code["secret"]}), 200)
    told(world.client.post(f"/v1/codes/{code['code_id']}/campaigns", json=campaign()), 201)
    told(world.client.post(f"/v1/codes/{code['code_id']}/campaigns/campaign-1/end"), 200)
    told(world.client.post(f"/v1/codes/{code['code_id']}/revocation", json={"reason": "over"}), 200)


def test_every_read_answers_after_an_erasure_and_shows_nothing_of_it(world: World) -> None:
    code = with_notes(world)
    position = told(erase(world), 200)["position"]
    video, code_id = code["video_id"], code["code_id"]
    reads = [
        f"/v1/codes/{code_id}",
        f"/v1/codes/{code_id}?version=2",
        f"/v1/codes/{code_id}/history",
        f"/v1/codes?creator_id={OWN_CREATOR}&at_least={position}",
        f"/v1/creators/{OWN_CREATOR}/permission?at_least={position}",
        f"/v1/creators/{OWN_CREATOR}/permission?as_of={position}",
        f"/v1/creators/{OWN_CREATOR}/permission/history",
        f"/v1/permissions?at_least={position}",
        f"/v1/shares?at_least={position}",
        f"/v1/redemptions?at_least={position}",
        f"/v1/authorizations?video_id={video}&advertiser_id={OWN_ACCOUNT}&at_least={position}",
        f"/v1/events?creator_id={OWN_CREATOR}&at_least={position}",
        "/v1/events?q=erased",
        f"/v1/events/{position}",
        "/v1/exports/events",
        "/v1/stats",
        "/v1/accesses",
        "/v1/keys",
    ]
    answers = {read: world.client.get(read) for read in reads}
    assert {read: answer.status_code for read, answer in answers.items()} == dict.fromkeys(reads, 200)
    hidden = [code["secret"], NOTE, REMARK]
    assert [(read, text) for read, answer in answers.items() for text in hidden if text in answer.text] == []
    question = answers[f"/v1/authorizations?video_id={video}&advertiser_id={OWN_ACCOUNT}&at_least={position}"].json()
    assert (question["authorized"], question["permission_enabled"], question["evidence"][-1]) == (True, False, position)


def test_a_creator_of_whom_nothing_is_recorded_is_not_erased(world: World) -> None:
    assert refused(erase(world, "nobody")) == (404, "creator_unknown")
    assert refused(world.client.get("/v1/creators/nobody/erasure")) == (404, "erasure_unknown")
    world.permit()
    assert refused(world.client.get(f"/v1/creators/{OWN_CREATOR}/erasure")) == (404, "erasure_unknown")


def test_another_ledgers_creator_is_as_unknown_as_any(world: World) -> None:
    with_notes(world)
    other = world.another()
    assert refused(erase(other)) == (404, "creator_unknown")
    told(erase(world), 200)
    assert refused(other.client.get(f"/v1/creators/{OWN_CREATOR}/erasure")) == (404, "erasure_unknown")
    assert notes(other, with_notes(other)) == [(NOTE, False), (REMARK, False)]


def test_a_malformed_erasure_is_refused_and_nothing_is_erased(world: World) -> None:
    code = with_notes(world)
    path = f"/v1/creators/{OWN_CREATOR}/erasure"
    for body in ({}, {"reason": ""}, {"reason": "x" * 501}, {"reason": "why", "sure": True}):
        assert refused(world.client.post(path, json=body))[0] == 422
    assert refused(world.client.post(path, json=WHY, headers={"If-Match": '"7"'})) == (412, "stale_version")
    assert refused(world.client.post("/v1/creators/no%20id/erasure", json=WHY)) == (400, "malformed_path")
    assert notes(world, code) == [(NOTE, False), (REMARK, False)]


def test_keys_of_an_erased_creator_open_nothing_any_more(world: World) -> None:
    with_notes(world)
    creator = world.creator()
    told(creator.get("/v1/codes"), 200)
    told(erase(world), 200)
    assert refused(creator.get("/v1/codes")) == (401, "unauthenticated")
    revoked = [key for key in told(world.client.get("/v1/keys"), 200)["keys"] if key["role"] == "creator"]
    assert [(key["name"], key["revoked_at"] is None) for key in revoked] == [(None, False)]
    routes = [access["route"] for access in told(world.client.get("/v1/accesses"), 200)["accesses"]]
    assert "erasure" in routes, "a worker revoked it, and says so"


def test_no_key_is_made_for_an_erased_creator(world: World) -> None:
    with_notes(world)
    asked = {"role": "creator", "name": "Ana Lopes", "subjects": {"creator_ids": [OWN_CREATOR]}}
    once = {"Idempotency-Key": "once"}
    told(world.client.post("/v1/keys", json=asked, headers=once), 201)
    told(erase(world), 200)
    for headers in ({}, once):
        assert refused(world.client.post("/v1/keys", json=asked, headers=headers)) == (409, "creator_erased")
    assert "Ana Lopes" not in world.client.get("/v1/keys").text
    both = asked | {"subjects": {"creator_ids": [OWN_CREATOR, OTHER_CREATOR]}}
    told(world.client.post("/v1/keys", json=both), 201)


def test_where_an_erased_creators_refused_attempts_came_from_is_shown_to_nobody(world: World) -> None:
    with_notes(world)

    def attempts() -> list[tuple[str, str | None, str | None]]:
        accesses = told(world.client.get("/v1/accesses"), 200)["accesses"]
        return [(a["refused"], a["address"], a["user_agent"]) for a in accesses if a["refused"] is not None]

    assert world.creator().get("/v1/keys", headers={"User-Agent": "Anas-Phone/1.0"}).status_code == 403
    assert attempts() == [("role_not_allowed", "127.0.0.1", "Anas-Phone/1.0")]
    told(erase(world), 200)
    assert attempts() == [("role_not_allowed", None, None)]


def test_an_erasure_whose_deed_was_not_done_holds_and_is_finished_beside(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = with_notes(world)
    remove, complete = Erasures.remove, Erasures.complete

    async def not_now(*_: Any) -> bool:
        raise Unavailable("The database is away.")

    monkeypatch.setattr(Erasures, "remove", not_now)
    monkeypatch.setattr(Erasures, "complete", not_now)
    assert told(erase(world), 200)["state"] == "recorded"
    assert notes(world, code) == [(None, True), (None, True)]
    read = f"/v1/creators/{OWN_CREATOR}/erasure"
    monkeypatch.setattr(Erasures, "remove", remove)
    until(lambda: told(world.client.get(read), 200)["state"] == "carrying_out")
    assert told(world.client.get(read), 200)["carried_out_at"] is None
    monkeypatch.setattr(Erasures, "complete", complete)
    until(lambda: told(world.client.get(read), 200)["state"] == "carried_out")


def test_a_request_whose_erasure_key_is_missing_is_told_to_come_back_and_the_log_says_which_key(
    world: World, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """As where the directory is not mounted: what needs no key goes on."""
    code = with_notes(world)
    keys = world.server.serving.master_key.epochs
    reveal = f"/v1/codes/{code['code_id']}/reveals"
    there, keys.directory = keys.directory, tmp_path
    world.server.serving.api.keyring.forget_creators()
    try:
        answer = world.client.post(reveal, json={"reason": "why"})
        assert refused(answer) == (503, "unavailable")
        assert str(tmp_path) not in answer.text
        assert f"is not in {tmp_path}" in caplog.text
        assert world.client.get(f"/v1/codes/{code['code_id']}").status_code == 200
    finally:
        keys.directory = there
    assert told(world.client.post(reveal, json={"reason": "why"}), 200)["secret"] == code["secret"]


# ── the right to show a secret again ──


@pytest.mark.parametrize("role", ["creator", "operator", "admin"])
def test_a_key_from_which_revealing_was_withheld_shows_no_secret(world: World, role: str) -> None:
    code = with_notes(world)
    subjects = {"creator_ids": [OWN_CREATOR]} if role == "creator" else {}
    asked = {"role": role, "subjects": subjects}
    keys = [told(world.client.post("/v1/keys", json={**asked, **more}), 201) for more in ({}, {"may_reveal": False})]
    reveals = [
        world.with_key(key["key"]).post(f"/v1/codes/{code['code_id']}/reveals", json={"reason": "lost"}) for key in keys
    ]
    assert [key["may_reveal"] for key in keys] == [True, False]
    assert told(reveals[0], 200)["secret"] == code["secret"]
    assert refused(reveals[1]) == (403, "not_allowed")
    history = told(world.client.get(f"/v1/codes/{code['code_id']}/history"), 200)["events"]
    assert [event["body"] for event in history if event["type"] == "CodeRevealed"] == [{"reason": "lost"}]


def test_a_rotated_key_still_may_not_reveal_what_was_withheld(world: World) -> None:
    code = with_notes(world)
    key = told(world.client.post("/v1/keys", json={"role": "operator", "may_reveal": False}), 201)
    rotated = told(world.client.post(f"/v1/keys/{key['key_id']}/rotation", json={"overlap_seconds": 0}), 200)
    reveal = world.with_key(rotated["key"]).post(f"/v1/codes/{code['code_id']}/reveals", json={"reason": "lost"})
    assert refused(reveal) == (403, "not_allowed")


@pytest.mark.parametrize("role", ["brand", "auditor", "subscriber"])
def test_a_key_whose_role_reveals_nothing_is_told_so(world: World, role: str) -> None:
    subjects = {"brand_ids": ["brand-1"]} if role == "brand" else {}
    key = told(world.client.post("/v1/keys", json={"role": role, "subjects": subjects}), 201)
    assert key["may_reveal"] is False


def test_a_key_that_may_not_reveal_makes_none_that_does(world: World) -> None:
    weak = world.with_key(told(world.client.post("/v1/keys", json={"role": "admin", "may_reveal": False}), 201)["key"])
    creator = {"role": "creator", "subjects": {"creator_ids": [OWN_CREATOR]}}
    before = told(world.client.get("/v1/keys"), 200)
    for asked in (creator, {"role": "operator"}, {"role": "admin"}, {"role": "admin", "may_reveal": True}):
        assert refused(weak.post("/v1/keys", json=asked)) == (403, "not_allowed")
    after = told(world.client.get("/v1/keys"), 200)
    assert [key["key_id"] for key in after["keys"]] == [key["key_id"] for key in before["keys"]]
    made = [
        told(weak.post("/v1/keys", json=asked), 201)
        for asked in (creator | {"may_reveal": False}, {"role": "admin", "may_reveal": False}, {"role": "auditor"})
    ]
    assert [key["may_reveal"] for key in made] == [False, False, False]


def test_a_key_that_may_not_reveal_rotates_none_that_does(world: World) -> None:
    code = with_notes(world)
    weak = world.with_key(told(world.client.post("/v1/keys", json={"role": "admin", "may_reveal": False}), 201)["key"])
    revealing = told(world.client.post("/v1/keys", json={"role": "operator"}), 201)
    asked = {"overlap_seconds": 3600}
    assert refused(weak.post(f"/v1/keys/{revealing['key_id']}/rotation", json=asked)) == (403, "not_allowed")
    # Nothing has changed: no overlap began, and the key goes on.
    shown = told(world.client.get("/v1/keys"), 200)["keys"][0]
    assert (shown["key_id"], shown["overlap_ends_at"]) == (revealing["key_id"], None)
    reveal = world.with_key(revealing["key"]).post(f"/v1/codes/{code['code_id']}/reveals", json={"reason": "lost"})
    assert told(reveal, 200)["secret"] == code["secret"]
    for role in ("operator", "auditor"):
        other = told(world.client.post("/v1/keys", json={"role": role, "may_reveal": False}), 201)
        told(weak.post(f"/v1/keys/{other['key_id']}/rotation", json=asked), 200)
