"""The history of the ledger: in every answer about it, and asked for by anyone who knows one."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import UUID, uuid4

import pytest

from infra.jobs.log_restart import restart
from tests.api.streaming import following
from tests.api.world import World, refused, told
from tests.waiting import until

HEADER = "Ledger-History"


def history(world: World) -> str:
    return world.client.get("/v1/stats").headers[HEADER]


def restart_log(world: World) -> None:
    """Let the ledger go on as another history, and wait until the server has heard of it."""
    before, serving = history(world), world.server.serving
    asyncio.run(restart(serving.database.dsn(), serving.master_key, world.server.ledger, None))
    until(lambda: history(world) != before)


def test_every_answer_about_a_ledger_names_its_history(world: World) -> None:
    code = world.generate()
    known = history(world)
    assert UUID(known)
    for answer in (
        world.client.get(f"/v1/codes/{code['code_id']}"),
        world.client.get("/v1/codes/unknown"),
        world.client.get("/v1/events", params={"limit": "none"}),
        world.client.post("/v1/codes", json={}),
        world.as_role("subscriber").get("/v1/codes"),
    ):
        assert answer.headers[HEADER] == known, answer.status_code
    assert HEADER not in world.with_key("slk_nobodys").get("/v1/codes").headers
    assert world.another().client.get("/v1/stats").headers[HEADER] != known


def test_who_knows_the_history_is_answered_and_who_knows_another_is_told(world: World) -> None:
    world.permit()
    assert world.client.get("/v1/events", headers={HEADER: history(world)}).status_code == 200
    other = str(uuid4())
    answer = world.client.put("/v1/creators/x/permission", json={"enabled": True}, headers={HEADER: other})
    assert refused(answer) == (409, "history_changed")
    assert (answer.json()["sent_history"], answer.json()["history"]) == (other, history(world))
    assert "last_common_position" not in answer.json()
    assert answer.json()["detail"].startswith("The ledger's history is `history`. What `sent_history` has in common")
    assert world.head() == 1


@pytest.mark.parametrize("sent", ["", "x", "5D0A2B9E-4F3C-4A57-9A43-0F6F6B7A1C02", "5d0a2b9e4f3c4a579a430f6f6b7a1c02"])
def test_a_malformed_history_is_refused(world: World, sent: str) -> None:
    assert refused(world.client.get("/v1/events", headers={HEADER: sent})) == (400, "malformed_header")


def test_after_a_restart_whoever_knows_the_history_before_is_told_the_last_common_position(world: World) -> None:
    world.generate()
    world.generate()
    before = history(world)
    page = told(world.client.get("/v1/events", params={"limit": 1}), 200)

    restart_log(world)

    asked: tuple[tuple[str, dict[str, Any], dict[str, str]], ...] = (
        ("/v1/events", {}, {HEADER: before}),
        ("/v1/events", {"limit": 1, "cursor": page["next_cursor"]}, {}),
        ("/v1/events/stream", {}, {"Last-Event-ID": f"{before}:2"}),
    )
    for path, query, headers in asked:
        answer = world.client.get(path, params=query, headers=headers)
        assert refused(answer) == (409, "history_changed")
        content = answer.json()
        assert (content["sent_history"], content["history"]) == (before, history(world))
        assert content["last_common_position"] == 3
        assert "because it has lost events" in content["detail"]
    bare = world.client.get("/v1/events/stream", headers={"Last-Event-ID": "2"})
    assert refused(bare) == (409, "history_changed")
    assert bare.json()["detail"].startswith("The ledger has had several histories, so a position alone is not accepted")
    assert not {"sent_history", "last_common_position"} & bare.json().keys()
    # Up to the last common position, a position means the same event in both.
    last = told(world.client.get("/v1/events", params={"after": 3}), 200)["events"][-1]
    assert (last["type"], last["body"]["history"], last["body"]["generation"]) == ("LogRestarted", history(world), 2)
    assert "code_id" not in last
    assert "creator_id" not in last


def test_an_open_stream_ends_where_the_ledger_goes_on_as_another_history(world: World) -> None:
    world.permit()
    before = history(world)
    with following(world.client) as stream:
        restart_log(world)
        assert stream.ending() == "history_changed"
    end = json.loads(stream.frames[-1].data or "")
    assert (end["sent_history"], end["history"], end["last_common_position"]) == (before, history(world), 1)


def test_after_a_restart_a_position_after_the_common_ones_is_accepted_with_its_history_alone(world: World) -> None:
    world.permit()
    page = told(world.client.get("/v1/events", params={"after": 0, "wait": 0}), 200)
    before = history(world)
    restart_log(world)
    world.permit("another")
    present = history(world)

    poll = world.client.get("/v1/events", params={"after": 0, "wait": 0})
    assert (page["next"], told(poll, 200)["next"]) == (1, 3)
    for path in ("/v1/events", "/v1/events/stream", "/v1/exports/events"):
        bare = world.client.get(path, params={"after": 2})
        assert refused(bare) == (409, "history_changed")
        assert bare.json()["detail"].startswith("The ledger has had several histories, so a position alone is not")
        other = world.client.get(path, params={"after": 2, "history": before})
        assert refused(other) == (409, "history_changed")
        assert other.json()["last_common_position"] == 1
    asked: tuple[tuple[dict[str, Any], dict[str, str]], ...] = (
        ({"after": 2}, {HEADER: present}),
        ({"after": 2, "history": present}, {}),
    )
    for query, headers in asked:
        events = told(world.client.get("/v1/events", params=query, headers=headers), 200)["events"]
        assert [event["position"] for event in events] == [3]
    # The link to the next page of a poller says of which history it is.
    assert told(world.client.get(poll.links["next"]["url"]), 200)["events"] == []
    with following(world.client, after=2, history=present) as stream:
        assert stream.take(1)[0]["position"] == 3
