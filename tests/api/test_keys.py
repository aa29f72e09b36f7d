"""API keys: made, shown once, listed, revoked."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tests.api.world import World, days, refused, told
from tests.serving import Server


def test_a_key_is_shown_once_and_works(world: World) -> None:
    answer = world.client.post(
        "/v1/keys",
        json={"role": "creator", "name": "Ana", "subjects": {"creator_ids": ["b", "a", "a"]}, "expires_at": days(1)},
    )
    made = told(answer, 201)

    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["location"] == f"/v1/keys/{made['key_id']}"
    assert made["subjects"] == {"creator_ids": ["a", "b"], "brand_ids": [], "advertiser_ids": []}
    assert world.with_key(made["key"]).get("/v1/codes").status_code == 200
    listed = world.client.get("/v1/keys")
    assert made["key"] not in listed.text
    assert told(listed, 200)["keys"][0] == {name: value for name, value in made.items() if name != "key"}


def test_revoking_twice_answers_the_same(world: World) -> None:
    key_id = told(world.client.post("/v1/keys", json={"role": "auditor"}), 201)["key_id"]

    assert [world.client.delete(f"/v1/keys/{key_id}").status_code for _ in range(2)] == [204, 204]
    assert told(world.client.get("/v1/keys"), 200)["keys"][0]["revoked_at"] is not None


@pytest.mark.parametrize("key_id", ["x", "01a2047d-e22d-7479-9309-83e7d9fc9f1d", "%00"])
def test_a_key_that_is_not_there_is_unknown(world: World, key_id: str) -> None:
    assert refused(world.client.delete(f"/v1/keys/{key_id}")) == (404, "key_unknown")


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/role"),
        ({"role": "clock"}, "/role"),
        ({"role": "admin", "expires_at": days(-1)}, "/expires_at"),
        ({"role": "admin", "name": ""}, "/name"),
        ({"role": "admin", "name": "a\0b"}, "/name"),
        ({"role": "operator", "subjects": {"creator_ids": ["a"]}}, "/subjects"),
        ({"role": "creator", "subjects": {"brand_ids": ["a"]}}, "/subjects"),
        ({"role": "creator", "subjects": {"creator_ids": ["a b"]}}, "/subjects/creator_ids/0"),
        ({"role": "creator", "subjects": {"creator_ids": ["a"] * 1001}}, "/subjects/creator_ids"),
        ({"role": "creator", "subjects": []}, "/subjects"),
    ],
)
def test_a_malformed_key_is_refused(world: World, body: dict[str, Any], pointer: str) -> None:
    answer = world.client.post("/v1/keys", json=body)
    assert refused(answer) == (422, "malformed_body")
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


def test_a_key_expires(world: World) -> None:
    made = told(world.client.post("/v1/keys", json={"role": "auditor", "expires_at": days(1)}), 201)
    client = world.with_key(made["key"])
    assert client.get("/v1/codes").status_code == 200

    clock, before = world.server.clock, world.server.clock.ahead
    clock.ahead += timedelta(days=1, minutes=1)
    try:
        assert client.get("/v1/codes").status_code == 401
    finally:
        clock.ahead = before


def test_a_revoked_key_neither_mints_nor_revokes_although_a_read_may_remember_it(server: Server) -> None:
    with server.client() as root:
        minted = root.post("/v1/keys", json={"role": "admin"}).json()
        with server.client(minted["key"]) as stolen:
            assert stolen.get("/v1/stats").status_code == 200
            assert root.delete(f"/v1/keys/{minted['key_id']}").status_code == 204
            assert stolen.post("/v1/keys", json={"role": "admin"}).status_code == 401
            assert stolen.delete(f"/v1/keys/{minted['key_id']}").status_code == 401
