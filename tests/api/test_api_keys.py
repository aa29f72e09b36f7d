"""API keys: made, shown once, listed, rotated, revoked."""

from __future__ import annotations

import asyncio
import base64
import re
import string
import zlib
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import httpx
import pytest

from infra.auth.key_commands import create_ledger
from infra.crypto.envelope import fresh_key
from infra.processes.worker import create_views
from tests.api.processes import serving_process
from tests.api.world import World, days, refused, told
from tests.conftest import TestDatabase
from tests.keys import master_key_of
from tests.serving import Server
from tests.waiting import until


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
    shown = told(listed, 200)["keys"][0]
    assert shown.pop("last_used_at") is not None
    assert shown == {name: value for name, value in made.items() if name not in {"key", "last_used_at"}}


def test_a_key_is_written_so_that_a_scanner_can_be_sure_of_it(world: World) -> None:
    key = told(world.client.post("/v1/keys", json={"role": "auditor"}), 201)["key"]

    found = re.fullmatch(r"slk_([0-9A-Za-z]{43})([0-9A-Za-z]{6})", key)
    assert found is not None
    digits = string.digits + string.ascii_uppercase + string.ascii_lowercase
    checksum = 0
    for digit in found[2]:
        checksum = checksum * 62 + digits.index(digit)
    assert checksum == zlib.crc32(found[1].encode())


def test_a_rotated_key_acts_as_the_same_actor_under_both_texts(world: World) -> None:
    made = told(world.client.post("/v1/keys", json={"role": "operator"}), 201)
    rotation = f"/v1/keys/{made['key_id']}/rotation"
    answer = world.client.post(rotation, json={"overlap_seconds": 3600})
    rotated = told(answer, 200)

    assert answer.headers["cache-control"] == "no-store"
    assert (rotated["key_id"], rotated["overlap_ends_at"] is None) == (made["key_id"], False)
    for number, key in enumerate((made["key"], rotated["key"])):
        switched = world.with_key(key).put(f"/v1/creators/creator-{number}/permission", json={"enabled": True})
        assert switched.status_code == 200
    events = told(world.client.get("/v1/events"), 200)["events"]
    assert [event["actor"]["key_id"] for event in events] == [made["key_id"]] * 2


def test_a_command_is_told_again_after_its_key_was_rotated(world: World) -> None:
    """The Idempotency-Key belongs to the key, whatever its text is now."""
    made = told(world.client.post("/v1/keys", json={"role": "operator"}), 201)
    rotated = told(world.client.post(f"/v1/keys/{made['key_id']}/rotation", json={"overlap_seconds": 0}), 200)
    asked: dict[str, Any] = {"json": {"enabled": True}, "headers": {"Idempotency-Key": "once"}}
    first = world.with_key(rotated["key"]).put("/v1/creators/a/permission", **asked)
    again = told(world.client.post(f"/v1/keys/{made['key_id']}/rotation", json={"overlap_seconds": 0}), 200)
    second = world.with_key(again["key"]).put("/v1/creators/a/permission", **asked)

    assert second.json() == first.json()
    assert second.headers["idempotent-replayed"] == "true"


def test_without_an_overlap_the_text_before_ends_at_once(world: World) -> None:
    made = told(world.client.post("/v1/keys", json={"role": "auditor"}), 201)
    client = world.with_key(made["key"])
    assert client.get("/v1/codes").status_code == 200
    told(world.client.post(f"/v1/keys/{made['key_id']}/rotation", json={"overlap_seconds": 0}), 200)
    assert client.get("/v1/codes").status_code == 401


def test_the_same_rotation_again_changes_nothing_and_shows_no_text(world: World) -> None:
    key_id = told(world.client.post("/v1/keys", json={"role": "auditor"}), 201)["key_id"]
    asked: dict[str, Any] = {"json": {"overlap_seconds": 60}, "headers": {"Idempotency-Key": "once"}}
    first, second = [world.client.post(f"/v1/keys/{key_id}/rotation", **asked) for _ in range(2)]
    assert told(second, 200) == told(first, 200) | {"key": None}
    assert world.with_key(first.json()["key"]).get("/v1/codes").status_code == 200
    assert second.headers["idempotent-replayed"] == "true"
    other = world.client.post(f"/v1/keys/{key_id}/rotation", **(asked | {"json": {"overlap_seconds": 61}}))
    assert refused(other) == (422, "idempotency_key_reused")


def test_a_revoked_key_is_not_rotated(world: World) -> None:
    key_id = told(world.client.post("/v1/keys", json={"role": "auditor"}), 201)["key_id"]
    assert world.client.delete(f"/v1/keys/{key_id}").status_code == 204
    answer = world.client.post(f"/v1/keys/{key_id}/rotation", json={"overlap_seconds": 0})
    assert refused(answer) == (409, "key_not_rotatable")


@pytest.mark.parametrize("overlap", [-1, 30 * 24 * 3600 + 1, 1.5, "60", None])
def test_an_overlap_is_a_bounded_number_of_seconds(world: World, overlap: object) -> None:
    key_id = told(world.client.post("/v1/keys", json={"role": "auditor"}), 201)["key_id"]
    answer = world.client.post(f"/v1/keys/{key_id}/rotation", json={"overlap_seconds": overlap})
    assert refused(answer) == (422, "malformed_body")


def test_what_is_done_with_keys_stands_in_the_log_of_accesses(world: World) -> None:
    made = told(world.client.post("/v1/keys", json={"role": "auditor", "name": "for the audit"}), 201)
    key_id = made["key_id"]
    world.with_key(made["key"]).get("/v1/codes")
    told(world.client.post(f"/v1/keys/{key_id}/rotation", json={"overlap_seconds": 60}), 200)
    world.client.delete(f"/v1/keys/{key_id}")

    accesses = told(world.client.get("/v1/accesses"), 200)["accesses"]
    about = [entry for entry in accesses if key_id in (entry["query"].get("key_id"), entry["actor"]["key_id"])]
    assert [(entry["actor"]["role"], entry["route"], entry["query"]) for entry in about] == [
        ("admin", "DELETE /v1/keys/{key_id}", {"key_id": key_id}),
        ("admin", "POST /v1/keys/{key_id}/rotation", {"key_id": key_id, "overlap_seconds": 60}),
        ("auditor", "first use", {"kind": "key"}),
        ("admin", "POST /v1/keys", {"key_id": key_id, "role": "auditor"}),
    ]
    # Of the key itself, and of what people call it, nothing is there.
    assert made["key"] not in str(accesses)
    assert "for the audit" not in [entry["query"].get("name") for entry in about]


def test_revoking_twice_answers_the_same(world: World) -> None:
    key_id = told(world.client.post("/v1/keys", json={"role": "auditor"}), 201)["key_id"]

    assert [world.client.delete(f"/v1/keys/{key_id}").status_code for _ in range(2)] == [204, 204]
    assert told(world.client.get("/v1/keys"), 200)["keys"][0]["revoked_at"] is not None


@pytest.mark.parametrize("key_id", ["x", "01a2047d-e22d-7479-9309-83e7d9fc9f1d", "%00"])
def test_a_key_that_is_not_there_is_unknown(world: World, key_id: str) -> None:
    assert refused(world.client.delete(f"/v1/keys/{key_id}")) == (404, "key_unknown")
    rotation = world.client.post(f"/v1/keys/{key_id}/rotation", json={"overlap_seconds": 0})
    assert refused(rotation) == (404, "key_unknown")


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
        # A key that acts for somebody says for whom: else it would open nothing, or one day everything.
        ({"role": "creator"}, "/subjects"),
        ({"role": "creator", "subjects": {}}, "/subjects"),
        ({"role": "brand"}, "/subjects"),
        ({"role": "brand", "subjects": None}, "/subjects"),
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


@pytest.mark.long("two servers start")
@pytest.mark.parametrize("change", ["revoked", "rotated"])
def test_a_key_that_changes_in_one_process_ends_in_the_others(database: TestDatabase, change: str) -> None:
    master = base64.b64encode(fresh_key()).decode()
    asyncio.run(create_views(database.dsn()))
    admin = asyncio.run(create_ledger(database.dsn(), master_key_of(master), "main"))
    with serving_process(database, master) as here, serving_process(database, master) as there, ExitStack() as stack:

        def client(url: str, key: str) -> httpx.Client:
            headers = {"Authorization": f"Bearer {key}"}
            return stack.enter_context(httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=20))

        administrator = client(here, admin)
        made = told(administrator.post("/v1/keys", json={"role": "auditor"}), 201)
        one, other = (client(url, made["key"]) for url in (here, there))
        for _ in range(2):
            assert [each.get("/v1/accesses").status_code for each in (one, other)] == [200, 200]
        if change == "revoked":
            assert administrator.delete(f"/v1/keys/{made['key_id']}").status_code == 204
        else:
            told(administrator.post(f"/v1/keys/{made['key_id']}/rotation", json={"overlap_seconds": 0}), 200)
        # Where it was done, from the very next request on; elsewhere as soon as the word of it has come.
        assert one.get("/v1/accesses").status_code == 401
        until(lambda: other.get("/v1/accesses").status_code == 401)


def test_pages_of_keys_follow_one_another_newest_first(world: World) -> None:
    made = [told(world.client.post("/v1/keys", json={"role": "auditor"}), 201)["key_id"] for _ in range(4)]
    found: list[str] = []
    answer = world.client.get("/v1/keys", params={"limit": 2})
    while True:
        content = told(answer, 200)
        found += [key["key_id"] for key in content["keys"]]
        if content["next"] is None:
            break
        answer = world.client.get(answer.links["next"]["url"])
    assert found[:4] == made[::-1]
    assert len(found) == 5, "and the administrator's own"
    assert refused(world.client.get("/v1/keys", params={"cursor": "AAAA"})) == (400, "malformed_cursor")
