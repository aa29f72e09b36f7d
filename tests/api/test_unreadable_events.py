"""What a version of the program answers of events that it cannot read: their metadata, or that it cannot answer."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.api.streaming import following
from tests.api.world import OTHER_CREATOR, OWN_ACCOUNT, World, refused, told
from tests.conftest import TestDatabase
from tests.serving import Serving, new_ledger

SPOILT = 4
SPOILS: dict[str, Any] = {"type": "FromTheFuture", "type_version": 99, "body": b"no JSON"}


@pytest.fixture(params=SPOILS)
def world(database: TestDatabase, request: pytest.FixtureRequest) -> Iterator[World]:
    """A server of its own, with a ledger of five events, one of which cannot be read."""
    with Serving(database) as serving:
        server = new_ledger(serving)
        with server.client() as client:
            world = World(server, client)
            world.running()
            column = request.param
            with psycopg.connect(database.dsn(), autocommit=True) as connection:
                connection.execute("ALTER TABLE events DISABLE TRIGGER USER")
                connection.execute(
                    sql.SQL("UPDATE events SET {} = %s WHERE position = %s").format(sql.Identifier(column)),
                    (SPOILS[column], SPOILT),
                )
            yield world
            for opened in world.clients:
                opened.close()


def shown(event: dict[str, Any]) -> tuple[Any, ...]:
    """Return what tells an event that cannot be read from others."""
    return event["position"], event.get("unreadable"), "body" in event, event["creator_id"], event["video_id"][:6]


def test_the_trail_and_its_exports_show_its_metadata_alone(world: World) -> None:
    events = told(world.client.get("/v1/events"), 200)["events"]
    spoilt = events[SPOILT - 1]

    assert [event["position"] for event in events] == [1, 2, 3, 4, 5]
    assert [event["position"] for event in events if "unreadable" in event] == [SPOILT]
    assert shown(spoilt) == (SPOILT, True, False, "creator-own", "video-")
    alone: dict[str, Any] = {"proof": {"state": "pending", "size": None, "witnesses": []}, "cause": None, "effects": []}
    answer = told(world.client.get(f"/v1/events/{SPOILT}"), 200)
    # The view of effects stops before this event: there may be some.
    assert isinstance(answer.pop("more_effects"), bool)
    assert answer == spoilt | alone
    lines = world.client.get("/v1/exports/events").text.splitlines()
    assert json.loads(lines[SPOILT - 1]) == spoilt
    table = world.client.get("/v1/exports/events", params={"format": "csv"}).text
    row = list(csv.DictReader(io.StringIO(table)))[SPOILT - 1]
    assert (row["position"], row["type"], row["body"]) == (str(SPOILT), spoilt["type"], "")
    found = told(world.client.get("/v1/events", params={"q": '"cannot read"'}), 200)["events"]
    assert found == [spoilt]


def test_what_rests_on_it_is_not_answered(world: World) -> None:
    code = told(world.client.get("/v1/events/2"), 200)
    history = world.client.get(f"/v1/codes/{code['code_id']}/history")
    asked = {"video_id": code["video_id"], "advertiser_id": OWN_ACCOUNT, "at_least": SPOILT - 1}
    question = world.client.get("/v1/authorizations", params=asked)

    assert [refused(history), refused(question)] == [(503, "unavailable")] * 2
    assert "cannot be read" in history.json()["detail"]


def test_a_stream_ends_before_it(world: World) -> None:
    for query in ({}, {"advertiser_id": OWN_ACCOUNT}):
        with following(world.client, after=0, **query) as stream:
            before = [event["position"] for event in stream.take(3 if not query else 1)]
            assert (before[-1], stream.ending()) == (3, "unavailable")
        with following(world.client, after=3, **query) as stream:
            assert stream.ending() == "unavailable"


def test_a_stream_that_does_not_ask_for_it_goes_on(world: World) -> None:
    with following(world.client, after=0, type="PermissionEnabled") as stream:
        assert [event["position"] for event in stream.take(1)] == [1]
        world.permit(OTHER_CREATOR)
        assert [event["position"] for event in stream.take(1)] == [6]
