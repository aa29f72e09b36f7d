"""Requests sent again, and requests that others came before: Idempotency-Key and If-Match."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest

from tests.api.world import OWN_ACCOUNT, OWN_CREATOR, World, campaign, days, refused, told

# What sends a command a first time, for each command that may be sent again: path, body, its status.
COMMANDS: dict[str, tuple[str, dict[str, Any], int]] = {
    "permission": (f"/v1/creators/{OWN_CREATOR}/permission", {"enabled": False}, 200),
    "generate": ("/v1/codes", {"creator_id": OWN_CREATOR, "video_id": "fresh", "terms_version": "1"}, 201),
    "extend": ("/v1/codes/{code_id}/extensions", {"days": 60}, 201),
    "share": ("/v1/codes/{code_id}/shares", {"brand_id": "b", "channel": "text"}, 201),
    "redeem": ("/v1/redemptions", {"secret": "{secret}", "advertiser_id": "someone"}, 201),
    "launch": ("/v1/codes/{code_id}/campaigns", campaign("another"), 201),
    "end": ("/v1/codes/{code_id}/campaigns/campaign-1/end", {"reason": "spent"}, 200),
    "revoke": ("/v1/codes/{code_id}/revocation", {"reason": "why", "force": True}, 200),
    "note": ("/v1/codes/{code_id}/notes", {"text": "so"}, 201),
    "key": ("/v1/keys", {"role": "auditor"}, 201),
}


def send(world: World, command: str, code: dict[str, Any], **headers: str) -> httpx.Response:
    path, body, _ = COMMANDS[command]
    filled = {name: code["secret"] if value == "{secret}" else value for name, value in body.items()}
    method = "PUT" if command == "permission" else "POST"
    return world.client.request(method, path.format(**code), json=filled, headers=headers)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_same_key_and_request_gets_the_first_answer_again(world: World, command: str) -> None:
    code = world.running()

    first = send(world, command, code, **{"Idempotency-Key": "once"})
    # What happens in between changes nothing of what is told again.
    world.client.post(f"/v1/codes/{code['code_id']}/shares", json={"brand_id": "in-between", "channel": "other"})
    head = world.head()
    again = send(world, command, code, **{"Idempotency-Key": '"once"'})

    assert first.status_code == again.status_code == COMMANDS[command][2]
    shown_once = {"key": None} if command == "key" else {}
    assert again.json() == first.json() | shown_once
    same = ("etag", "location", "ledger-position", "cache-control")
    assert [first.headers.get(name) for name in same] == [again.headers.get(name) for name in same]
    assert ("idempotent-replayed" in first.headers, again.headers["idempotent-replayed"]) == (False, "true")
    assert world.head() == head


@pytest.mark.parametrize("command", COMMANDS)
def test_the_same_key_with_another_request_is_refused(world: World, command: str) -> None:
    code = world.running()
    assert send(world, command, code, **{"Idempotency-Key": "once"}).status_code < 300

    path, body, _ = COMMANDS["note"] if command != "note" else COMMANDS["share"]
    if command == "key":
        path, body = "/v1/keys", {"role": "operator"}
    other = world.client.post(path.format(**code), json=body, headers={"Idempotency-Key": "once"})

    assert refused(other) == (422, "idempotency_key_reused")


def test_a_key_belongs_to_who_sends_it(world: World) -> None:
    code = world.generate()
    once = {"Idempotency-Key": "once"}
    path, asked = f"/v1/codes/{code['code_id']}/shares", {"brand_id": "b", "channel": "dm"}

    assert world.client.post(path, json=asked, headers=once).status_code == 201
    other = world.as_role("operator").post(f"/v1/codes/{code['code_id']}/notes", json={"text": "so"}, headers=once)

    assert other.status_code == 201
    assert "idempotent-replayed" not in other.headers


def test_if_match_is_part_of_the_request(world: World) -> None:
    code = world.generate()
    path, once = f"/v1/codes/{code['code_id']}/extensions", {"Idempotency-Key": "once"}

    assert world.client.post(path, json={"days": 60}, headers=once | {"If-Match": '"1"'}).status_code == 201
    again = world.client.post(path, json={"days": 60}, headers=once | {"If-Match": '"1"'})
    assert again.headers["idempotent-replayed"] == "true"
    assert refused(world.client.post(path, json={"days": 60}, headers=once)) == (422, "idempotency_key_reused")


def test_a_refusal_is_not_kept(world: World) -> None:
    once = {"Idempotency-Key": "once"}
    asked = {"creator_id": OWN_CREATOR, "video_id": "v", "terms_version": "1"}

    assert refused(world.client.post("/v1/codes", json=asked, headers=once)) == (409, "creator_unknown")
    world.permit()
    assert world.client.post("/v1/codes", json=asked, headers=once).status_code == 201


@pytest.mark.parametrize("key", ["", '"', '""', 'a"b', "k" * 256, '"' + "k" * 256 + '"', "a b", "schlüssel"])
def test_a_malformed_idempotency_key_is_refused(world: World, key: str) -> None:
    answer = world.client.put(
        f"/v1/creators/{OWN_CREATOR}/permission",
        json={"enabled": True},
        headers=[(b"Idempotency-Key", key.encode("latin-1"))],
    )
    assert refused(answer) == (400, "malformed_header")
    assert world.head() == 0


def test_a_request_sent_many_times_at_once_happens_once(world: World) -> None:
    world.permit()
    answers: list[httpx.Response] = []

    def ask() -> None:
        with world.server.client() as client:
            answers.append(
                client.post(
                    "/v1/codes",
                    json={"creator_id": OWN_CREATOR, "video_id": "v", "terms_version": "1"},
                    headers={"Idempotency-Key": "once"},
                )
            )

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    made = [answer for answer in answers if answer.status_code == 201]
    waiting = [answer for answer in answers if answer.status_code == 409]
    assert len({answer.json()["secret"] for answer in made}) == 1
    assert len(made) + len(waiting) == 12
    assert all(answer.json()["code"] == "idempotency_key_in_use" for answer in waiting)
    assert all("retry-after" in answer.headers for answer in waiting)
    assert world.head() == 2


MATCHING = {name: command for name, command in COMMANDS.items() if name not in {"generate", "key", "permission"}}


@pytest.mark.parametrize("command", MATCHING)
def test_a_stale_version_is_refused_with_the_one_that_stands(world: World, command: str) -> None:
    code = world.running()

    stale = send(world, command, code, **{"If-Match": '"1"'})
    assert refused(stale) == (412, "stale_version")
    assert (stale.headers["etag"], stale.json()["current_version"]) == ('"4"', 4)
    assert send(world, command, code, **{"If-Match": '"4"'}).status_code == COMMANDS[command][2]


def test_a_permission_can_be_matched_too(world: World) -> None:
    path = f"/v1/creators/{OWN_CREATOR}/permission"
    assert world.client.put(path, json={"enabled": True}, headers={"If-Match": '"0"'}).status_code == 200
    stale = world.client.put(path, json={"enabled": False}, headers={"If-Match": '"0"'})
    assert (refused(stale), stale.json()["current_version"]) == ((412, "stale_version"), 1)
    assert world.client.put(path, json={"enabled": False}, headers={"If-Match": '"1"'}).status_code == 200


def test_any_version_matches_a_star(world: World) -> None:
    code = world.generate()
    path = f"/v1/codes/{code['code_id']}/extensions"
    assert world.client.post(path, json={"days": 60}, headers={"If-Match": "*"}).status_code == 201


@pytest.mark.parametrize("tag", ["1", 'W/"1"', '"x"', '"1", "2"', '"-1"', '"01"', "", '""', '"99999999999"'])
def test_a_malformed_if_match_is_refused(world: World, tag: str) -> None:
    code = world.generate()
    answer = world.client.post(f"/v1/codes/{code['code_id']}/extensions", json={"days": 60}, headers={"If-Match": tag})
    assert refused(answer) == (400, "malformed_header")


def test_a_header_sent_twice_is_refused(world: World) -> None:
    code = world.generate()
    for name in ("If-Match", "Idempotency-Key", "Correlation-Id", "Causation-Id"):
        answer = world.client.post(
            f"/v1/codes/{code['code_id']}/extensions", json={"days": 60}, headers=[(name, "*"), (name, "*")]
        )
        assert refused(answer) == (400, "malformed_header")


def test_an_outsider_cannot_make_the_owners_version_stale(world: World) -> None:
    code = world.generate(starts_at=days(1))
    asked = {"secret": code["secret"], "advertiser_id": OWN_ACCOUNT}
    assert refused(world.client.post("/v1/redemptions", json=asked)) == (409, "code_not_started")

    read = world.read(code)
    assert (read["version"], read["position"]) == (1, code["position"] + 1)
    path = f"/v1/codes/{code['code_id']}/extensions"
    assert world.client.post(path, json={"days": 60}, headers={"If-Match": '"1"'}).status_code == 201


def test_a_correlation_id_is_recorded_with_what_it_led_to(world: World) -> None:
    headers = {"Correlation-Id": "launch:7"}
    told(world.client.put(f"/v1/creators/{OWN_CREATOR}/permission", json={"enabled": True}, headers=headers), 200)
    (event,) = told(world.client.get("/v1/events"), 200)["events"]
    assert event["correlation_id"] == "launch:7"

    bad = world.client.put(
        f"/v1/creators/{OWN_CREATOR}/permission", json={"enabled": True}, headers={"Correlation-Id": "a b"}
    )
    assert refused(bad) == (400, "malformed_header")


def test_a_commands_cause_is_recorded_with_its_events(world: World) -> None:
    path, cause = f"/v1/creators/{OWN_CREATOR}/permission", "0199b2f0-7c1e-7a11-8f0e-3a5c7d9e1b22"
    told(world.client.put(path, json={"enabled": True}, headers={"Causation-Id": cause}), 200)
    (event,) = told(world.client.get("/v1/events"), 200)["events"]
    assert event["causation_id"] == cause

    bad = world.client.put(path, json={"enabled": True}, headers={"Causation-Id": "order-66"})
    assert refused(bad) == (400, "malformed_header")
