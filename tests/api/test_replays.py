"""Repeated requests with an Idempotency-Key: what of their first answer a caller gets who may not be given it now."""

from __future__ import annotations

from typing import Any

import httpx
import psycopg
import pytest

from tests.api.world import OWN_CREATOR, TERMS, World, refused, told

ONCE = {"Idempotency-Key": "once"}
CODE = {"creator_id": OWN_CREATOR, "video_id": "video-1", "terms_version": TERMS}
URL = "https://receiver.example/hook"


def generate(client: httpx.Client) -> httpx.Response:
    return client.post("/v1/codes", json=CODE, headers=ONCE)


def make_key(world: World, **asked: Any) -> dict[str, Any]:
    return told(world.client.post("/v1/keys", json={"role": "operator"} | asked), 201)


def replays(world: World) -> list[tuple[str, str, dict[str, Any]]]:
    """Return whose repeated requests are in the access log, oldest first: key, route, and what was recorded."""
    accesses = told(world.client.get("/v1/accesses"), 200)["accesses"][::-1]
    return [
        (entry["actor"]["key_id"], entry["route"], entry["query"])
        for entry in accesses
        if entry["query"].get("replayed")
    ]


def test_a_repeated_request_gives_the_secret_to_who_may_reveal_it_and_is_recorded(world: World) -> None:
    world.permit()
    key = make_key(world)
    client = world.with_key(key["key"])
    first, again = (generate(client) for _ in range(2))

    assert told(again, 201) == told(first, 201)
    assert again.headers["idempotent-replayed"] == "true"
    recorded = {"code_id": first.json()["code_id"], "replayed": True, "secret": "shown"}
    assert replays(world) == [(key["key_id"], "POST /v1/codes", recorded)]


def test_a_repeated_request_withholds_the_secret_from_who_may_not_reveal_it_and_is_recorded(world: World) -> None:
    world.permit()
    key = make_key(world, may_reveal=False)
    client = world.with_key(key["key"])
    first, again = (generate(client) for _ in range(2))

    assert told(first, 201)["secret"].startswith("#")
    assert told(again, 201) == told(first, 201) | {"secret": None}
    assert first.json()["secret"] not in again.text
    recorded = {"code_id": first.json()["code_id"], "replayed": True, "secret": "withheld"}
    assert replays(world) == [(key["key_id"], "POST /v1/codes", recorded)]


def test_an_administrator_who_may_not_reveal_gets_no_secret_through_a_key_that_it_rotates(world: World) -> None:
    world.permit()
    key = make_key(world, may_reveal=False)
    secret = told(generate(world.with_key(key["key"])), 201)["secret"]
    admin = world.with_key(make_key(world, role="admin", may_reveal=False)["key"])
    rotated = told(admin.post(f"/v1/keys/{key['key_id']}/rotation", json={"overlap_seconds": 0}), 200)["key"]

    again = generate(world.with_key(rotated))
    assert told(again, 201)["secret"] is None
    assert secret not in again.text


def test_a_key_that_may_not_reveal_any_more_gets_no_secret_again(world: World) -> None:
    world.permit()
    key = make_key(world)
    client = world.with_key(key["key"])
    told(generate(client), 201)
    may_not_reveal(world, key["key_id"])

    assert told(generate(client), 201)["secret"] is None


def may_not_reveal(world: World, key_id: str) -> None:
    """Take the right to reveal from a key, which no command does yet; its row's change reaches every process."""
    with psycopg.connect(world.server.database.dsn(), autocommit=True) as connection:
        connection.execute("UPDATE api_keys SET may_reveal = false WHERE key_id = %s", (key_id,))
    world.server.serving.api.authenticator.forget()


@pytest.mark.parametrize("rotation", [False, True])
def test_a_key_is_shown_once_although_its_request_is_repeated(world: World, rotation: bool) -> None:
    body: dict[str, Any] = {"role": "auditor"}
    path, status = "/v1/keys", 201
    if rotation:
        path, body, status = f"/v1/keys/{make_key(world)['key_id']}/rotation", {"overlap_seconds": 60}, 200
    first, again = (world.client.post(path, json=body, headers=ONCE) for _ in range(2))

    assert told(again, status) == told(first, status) | {"key": None}
    key_id = first.json()["key_id"]
    route = f"POST {'/v1/keys/{key_id}/rotation' if rotation else '/v1/keys'}"
    assert [replay[1:] for replay in replays(world)] == [(route, {"key_id": key_id, "replayed": True})]


@pytest.mark.parametrize("rotation", [False, True])
def test_a_webhooks_secret_is_shown_once_although_its_request_is_repeated(world: World, rotation: bool) -> None:
    path, body = "/v1/webhooks", {"url": URL}
    if rotation:
        webhook_id = told(world.client.post("/v1/webhooks", json=body), 201)["webhook_id"]
        path, body = f"/v1/webhooks/{webhook_id}/rotation", {}
    first, again = (world.client.post(path, json=body, headers=ONCE) for _ in range(2))

    assert told(again, 201) == told(first, 201) | {"secret": None}
    (replay,) = replays(world)
    assert replay[2]["webhook_id"] == first.json()["webhook_id"]


def test_what_is_refused_to_a_caller_now_is_not_repeated_to_it(world: World) -> None:
    """The first answer is for anyone who still may do this; the creator's key lost the other creator meanwhile."""
    code = world.generate()
    key = make_key(world, role="creator", subjects={"creator_ids": [OWN_CREATOR]})
    client, path = world.with_key(key["key"]), f"/v1/codes/{code['code_id']}/notes"
    assert client.post(path, json={"text": "so"}, headers=ONCE).status_code == 201
    with psycopg.connect(world.server.database.dsn(), autocommit=True) as connection:
        narrowed = "UPDATE api_keys SET creator_ids = '{someone-else}' WHERE key_id = %s"
        connection.execute(narrowed, (key["key_id"],))
    world.server.serving.api.authenticator.forget()

    again = client.post(path, json={"text": "so"}, headers=ONCE)
    assert refused(again) == (403, "not_allowed")
    assert code["video_id"] not in again.text
