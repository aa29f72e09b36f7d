"""The live stream: every event once and in order, whatever ends it; only what the key may see; bounded."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from unittest.mock import AsyncMock
from uuid import uuid4

import httpx
import psycopg
import pytest

import api.catch_up
import api.event_content
import api.http.transport
import api.streams
import infra.eventstore.live_subscription
from infra.auth.stream_tokens import StreamTokens
from infra.errors import Unavailable
from infra.eventstore.reader import EventReader
from tests.api.streaming import Frame, following
from tests.api.world import OTHER_CREATOR, OWN_ACCOUNT, OWN_CREATOR, World, campaign, refused, told
from tests.waiting import until

AUTHORIZATION = "Authorization"


def trail(world: World, **query: Any) -> list[dict[str, Any]]:
    """Return the events of the trail, which a stream must show as they are."""
    events: list[dict[str, Any]] = told(world.client.get("/v1/events", params={"limit": 1000, **query}), 200)["events"]
    return events


def positions(events: list[dict[str, Any]]) -> list[int]:
    return [event["position"] for event in events]


# -- Order and resuming


def test_what_is_recorded_is_streamed_in_order_as_the_trail_shows_it(world: World) -> None:
    with following(world.client) as stream:
        world.running()
        assert stream.take(5) == trail(world)


def test_a_stream_begins_with_what_is_recorded_from_now_on(world: World) -> None:
    world.generate()
    head = world.head()

    with following(world.client) as stream:
        assert stream.response.headers["ledger-position"] == str(head)
        world.permit(OTHER_CREATOR)
        assert positions(stream.take(1)) == [head + 1]


@pytest.mark.parametrize("seen", [0, 1, 3])
def test_a_client_goes_on_after_the_last_event_that_it_saw(world: World, seen: int) -> None:
    world.running()
    with following(world.client, seen) as by_header, following(world.client, after=seen) as by_query:
        for stream in (by_header, by_query):
            assert stream.take(5 - seen) == trail(world, after=seen)


def test_the_last_event_id_outdoes_what_the_address_says(world: World) -> None:
    world.running()
    with following(world.client, 3, after=0) as stream:
        assert positions(stream.take(2)) == [4, 5]


def test_one_that_comes_from_far_back_is_handed_over_without_a_gap(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Neither the subscription nor a page holds what there is to catch up with. The subscription keeps all that is
    # recorded meanwhile, so that the client does not fall behind once it has caught up.
    monkeypatch.setattr(infra.eventstore.live_subscription, "READ_AHEAD_EVENTS", 5)
    monkeypatch.setattr(infra.eventstore.live_subscription, "KEPT_EVENTS", 30)
    monkeypatch.setattr(infra.eventstore.live_subscription, "KEPT_EVENTS_LEAST", 30)
    monkeypatch.setattr(api.catch_up, "PAGE_EVENTS", 7)
    for _ in range(12):
        world.running()

    with following(world.client, 0) as stream:
        events = stream.take(20)
        for _ in range(6):
            world.running()
        events += stream.take(world.head() - 20)

    assert events == trail(world)


@pytest.mark.parametrize(
    ("header", "query", "status", "code"),
    [
        ("nonsense", {}, 400, "malformed_header"),
        ("-1", {}, 400, "malformed_header"),
        ("1.0", {}, 400, "malformed_header"),
        ("", {}, 400, "malformed_header"),
        ("99", {}, 409, "ahead_of_ledger"),
        ("9" * 30, {}, 400, "malformed_header"),
        (None, {"after": "99"}, 409, "ahead_of_ledger"),
        (None, {"after": "x"}, 400, "malformed_query"),
        (None, {"creator": "x"}, 400, "malformed_query"),
    ],
)
def test_a_place_that_the_ledger_does_not_have_is_refused(
    world: World, header: str | None, query: dict[str, str], status: int, code: str
) -> None:
    world.generate()
    headers = {} if header is None else {"Last-Event-ID": header}
    assert refused(world.client.get("/v1/events/stream", params=query, headers=headers)) == (status, code)


def history(world: World) -> str:
    return world.client.get("/v1/events").headers["ledger-history"]


def test_an_id_names_the_history_and_the_position(world: World) -> None:
    world.running()
    known = history(world)
    with following(world.client, f"{known}:3") as stream:
        assert positions(stream.take(2)) == [4, 5]
        assert [frame.id for frame in stream.frames] == [f"{known}:{position}" for position in (3, 4, 5)]


def test_an_id_of_another_history_is_refused_before_the_stream_begins(world: World) -> None:
    world.running()
    other = str(uuid4())
    answer = world.client.get("/v1/events/stream", headers={"Last-Event-ID": f"{other}:3"})
    assert refused(answer) == (409, "history_changed")
    assert (answer.json()["history"], answer.json()["sent_history"]) == (history(world), other)
    assert "last_common_position" not in answer.json()


# -- Filters and roles

# A creator's and a video's later events do not name them: `ours` are the codes of OWN_CREATOR's video.
Passes = Callable[[dict[str, Any], set[str]], bool]

FILTERS: dict[str, tuple[dict[str, str], Passes]] = {
    "type": ({"type": "Redeemed"}, lambda event, _: event["type"] == "Redeemed"),
    "creator": (
        {"creator_id": OWN_CREATOR},
        lambda event, ours: event.get("creator_id") == OWN_CREATOR or event.get("code_id") in ours,
    ),
    "video": ({"video_id": "video-own"}, lambda event, ours: event.get("code_id") in ours),
    "advertiser": ({"advertiser_id": OWN_ACCOUNT}, lambda event, _: event["body"].get("advertiser_id") == OWN_ACCOUNT),
    "words": ({"q": "REDEEMED the"}, lambda event, _: "redeemed the" in event["summary"]),
    "negated": (
        {"q": f"-type:Shared,Redeemed creator:{OWN_CREATOR}"},
        lambda event, _: event["creator_id"] == OWN_CREATOR and event["type"] not in {"Shared", "Redeemed"},
    ),
    "not of a creator": (
        {"q": f"-creator:{OWN_CREATOR} -type:PermissionEnabled"},
        lambda event, ours: event["type"] != "PermissionEnabled" and event.get("code_id") not in ours,
    ),
    "brand and channel": (
        {"q": "brand:brand-own channel:dm"},
        lambda event, _: event["body"].get("brand_id") == "brand-own",
    ),
    "two": (
        {"video_id": "video-own", "type": "Shared"},
        lambda event, ours: event["type"] == "Shared" and event["code_id"] in ours,
    ),
}


def live_a_little(world: World) -> str:
    """Record a few events of two creators, and return the code of the one."""
    codes = {}
    for creator, video in ((OWN_CREATOR, "video-own"), (OTHER_CREATOR, "video-other")):
        code = codes[creator] = world.generate(creator, video_id=video)
        world.share(code)
        world.redeem(code)
        told(world.client.post(f"/v1/codes/{code['code_id']}/revocation", json={"reason": "why"}), 200)
    return str(codes[OWN_CREATOR]["code_id"])


@pytest.mark.parametrize(("filters", "passes"), FILTERS.values(), ids=FILTERS)
@pytest.mark.parametrize("live", [True, False], ids=["live", "missed"])
def test_a_filter_shows_all_that_passes_it_and_nothing_else(
    world: World, filters: dict[str, str], passes: Passes, *, live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infra.eventstore.live_subscription, "READ_AHEAD_EVENTS", 1)
    ours = {live_a_little(world)}
    seen = 3
    if live:
        with following(world.client, seen, **filters) as stream:
            ours.add(live_a_little(world))
            expected = [event for event in trail(world, after=seen) if passes(event, ours)]
            found = stream.take(len(expected))
    else:
        ours.add(live_a_little(world))
        expected = [event for event in trail(world, after=seen) if passes(event, ours)]
        with following(world.client, seen, **filters) as stream:
            found = stream.take(len(expected))
    assert expected
    assert found == expected


def test_a_keys_own_doings_can_be_followed(world: World) -> None:
    key = told(world.client.post("/v1/keys", json={"role": "creator", "subjects": {"creator_ids": [OWN_CREATOR]}}), 201)
    with following(world.client, actor=key["key_id"]) as stream:
        world.generate()
        told(world.with_key(key["key"]).put(f"/v1/creators/{OWN_CREATOR}/permission", json={"enabled": False}), 200)
        assert [event["type"] for event in stream.take(1)] == ["PermissionDisabled"]


def test_a_codes_filter_shows_its_events_alone(world: World) -> None:
    other = world.running()
    with following(world.client, code_id=world.generate()["code_id"], after=0) as stream:
        assert [event["type"] for event in stream.take(1)] == ["CodeGenerated"]
    with following(world.client, code_id=other["code_id"], after=0) as stream:
        assert {event["code_id"] for event in stream.take(4)} == {other["code_id"]}


def test_a_creators_key_follows_its_own_events_alone(world: World) -> None:
    creator = world.creator()
    with following(creator) as stream:
        ours = {live_a_little(world), live_a_little(world)}
        expected = [event for event in trail(world) if FILTERS["creator"][1](event, ours)]
        assert len(expected) == 9
        assert stream.take(9) == expected
    assert refused(creator.get("/v1/events/stream", params={"creator_id": OTHER_CREATOR})) == (403, "not_allowed")


def test_a_creator_that_nobody_knew_is_followed_from_its_first_event(world: World) -> None:
    with following(world.creator()) as stream:
        world.generate(OTHER_CREATOR)
        world.generate(OWN_CREATOR)
        assert [event["type"] for event in stream.take(2)] == ["PermissionEnabled", "CodeGenerated"]


def test_a_brands_key_follows_nothing(world: World) -> None:
    assert refused(world.brand().get("/v1/events/stream")) == (403, "not_allowed")


def test_another_ledgers_events_are_not_streamed(world: World) -> None:
    other = world.another()
    with following(world.client) as stream:
        other.generate()
        world.permit()
        assert [event["creator_id"] for event in stream.take(1)] == [OWN_CREATOR]


def test_the_name_of_an_erased_creators_key_is_forgotten_wherever_it_was_remembered(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.event_content, "NAMES_FOR_S", 3600)
    subjects = {"creator_ids": [OWN_CREATOR]}
    key = told(world.client.post("/v1/keys", json={"role": "creator", "name": "Ana", "subjects": subjects}), 201)
    told(world.with_key(key["key"]).put(f"/v1/creators/{OWN_CREATOR}/permission", json={"enabled": True}), 200)

    def names(events: list[dict[str, Any]]) -> list[str | None]:
        return [event["actor"]["key_name"] for event in events if event["actor"]["key_id"] == key["key_id"]]

    # As long as somebody follows, events are kept as they were encoded.
    with following(world.client, after=0) as first:
        assert names(first.take(1)) == names(trail(world)) == ["Ana"]
        told(world.client.post(f"/v1/creators/{OWN_CREATOR}/erasure", json={"reason": "asked"}), 200)
        until(lambda: names(trail(world)) == [None])
        with following(world.client, after=0) as second:
            assert names(second.take(2)) == [None]


# -- Endings


def test_a_heartbeat_comes_when_nothing_is_recorded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.streams, "HEARTBEAT_S", 0.05)
    with following(world.client) as stream:
        frames = [stream.frame() for _ in range(3)]
    assert [frame.comments for frame in frames if frame][1:] == [("heartbeat",), ("heartbeat",)]


def test_a_client_that_is_cut_before_its_first_event_misses_nothing(world: World) -> None:
    world.running()
    with following(world.client) as stream:
        opening = stream.frame()
    assert opening is not None
    assert (opening.position, opening.data) == (5, None)
    world.permit(OTHER_CREATOR)
    with following(world.client, opening.id) as stream:
        assert positions(stream.take(1)) == [6]


def test_a_heartbeat_moves_a_client_past_events_that_its_filter_does_not_show(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.streams, "HEARTBEAT_S", 0.05)
    with following(world.client, 0, type="Revoked") as stream:
        world.running()
        seen = iter(lambda: (stream.frame() or Frame(None, None, None, ())).position, 5)
        assert set(seen) <= {0, 1, 2, 3, 4}


def test_a_heartbeat_never_names_an_event_that_was_not_sent(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.streams, "HEARTBEAT_S", 0.001)
    with following(world.client) as stream:
        for _ in range(10):
            world.permit(OTHER_CREATOR)
            world.permit(OTHER_CREATOR, enabled=False)
        stream.take(20)
    seen = 0
    for frame in stream.frames:
        if frame.data is None:
            assert frame.position == seen
        else:
            seen = frame.position or 0
    assert seen == 20


def test_a_revoked_key_ends_its_stream_at_once(world: World) -> None:
    key = told(world.client.post("/v1/keys", json={"role": "auditor"}), 201)
    with following(world.with_key(key["key"])) as stream, following(world.client) as other:
        assert world.client.delete(f"/v1/keys/{key['key_id']}").status_code == 204
        assert stream.ending() == "key_no_longer_valid"
        world.permit()
        assert positions(other.take(1)) == [1]


def test_a_revoked_keys_stream_ends_where_no_word_of_it_comes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.streams, "KEYS_EVERY_S", 0.05)
    key = told(world.client.post("/v1/keys", json={"role": "auditor"}), 201)
    with following(world.with_key(key["key"])) as stream, psycopg.connect(world.server.database.dsn()) as owner:
        stream.frame()
        owner.execute("SET session_replication_role = replica")  # no trigger tells of it
        owner.execute("UPDATE api_keys SET revoked_at = now() WHERE key_id = %s", (key["key_id"],))
        owner.commit()
        assert stream.ending() == "key_no_longer_valid"


@pytest.mark.parametrize("before", range(4))
def test_nothing_recorded_after_a_revocation_is_sent_while_nobody_hears_of_it(
    world: World, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    monkeypatch.setattr(api.streams, "KEYS_EVERY_S", 60)
    key = told(world.client.post("/v1/keys", json={"role": "auditor"}), 201)
    hearing = world.server.serving.api.on_keys_changed
    heard = hearing[:]
    with following(world.with_key(key["key"])) as revoked, following(world.client) as other:
        for stream in (revoked, other):
            stream.frame()
        hearing.clear()
        try:
            for number in range(before):
                world.permit(f"before-{number}")
            with psycopg.connect(world.server.database.dsn()) as owner:
                owner.execute("UPDATE api_keys SET revoked_at = clock_timestamp() WHERE key_id = %s", (key["key_id"],))
            world.permit("after")
            assert "after" not in [event["creator_id"] for event in revoked.events()]
            assert revoked.frames[-1].event == "end"
            assert [event["creator_id"] for event in other.take(before + 1)][-1] == "after"
        finally:
            hearing[:] = heard
            monkeypatch.undo()
            # Or the next look at the keys would be a minute away, also for the tests after this one.
            world.server.serving.call(_look_at_keys(world))


async def _look_at_keys(world: World) -> None:
    world.server.serving.streams.keys_changed()


def test_nothing_is_handed_out_after_a_change_of_keys_before_it_is_known_whose_still_open(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = told(world.client.post("/v1/keys", json={"role": "auditor"}), 201)
    streams = world.server.serving.streams
    authenticator, going = streams._services.authenticator, threading.Event()
    still_opens = authenticator.still_opens

    async def slowly(presented: str, now: datetime) -> bool:
        await asyncio.to_thread(going.wait)
        return await still_opens(presented, now)

    with following(world.with_key(key["key"])) as revoked, following(world.client) as other:
        for stream in (revoked, other):
            stream.frame()
        monkeypatch.setattr(authenticator, "still_opens", slowly)
        try:
            assert world.client.delete(f"/v1/keys/{key['key_id']}").status_code == 204
            until(lambda: not streams.keys_checked.is_set())
            world.permit()
            until(lambda: streams.live_subscriptions.position(ledger_id(world)) == 1)
        finally:
            going.set()
        assert list(revoked.events()) == []
        assert positions(other.take(1)) == [1]
        assert [frame.event for frame in revoked.frames] == [None, "end"]


def ledger_id(world: World) -> int:
    with psycopg.connect(world.server.database.dsn()) as owner:
        row = owner.execute("SELECT ledger_id FROM ledgers WHERE name = %s", (world.server.ledger,)).fetchone()
    assert row is not None
    return int(row[0])


def test_a_key_that_was_revoked_while_its_stream_began_is_sent_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = told(world.client.post("/v1/keys", json={"role": "auditor"}), 201)
    world.permit()
    prepare = api.catch_up.CatchUp.prepare

    async def revoked_meanwhile(self: api.catch_up.CatchUp) -> None:
        await prepare(self)
        assert (await asyncio.to_thread(world.client.delete, f"/v1/keys/{key['key_id']}")).status_code == 204

    monkeypatch.setattr(api.catch_up.CatchUp, "prepare", revoked_meanwhile)
    with following(world.with_key(key["key"]), after=0) as stream:
        assert list(stream.events()) == []
        assert [frame.event for frame in stream.frames] == [None, "end"]


def test_keys_are_checked_again_after_a_check_that_failed(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(api.streams, "KEYS_EVERY_S", 0.05)
    key = told(world.client.post("/v1/keys", json={"role": "auditor"}), 201)
    failing = AsyncMock(side_effect=RuntimeError("a defect"))
    with following(world.with_key(key["key"])) as stream:
        stream.frame()
        with monkeypatch.context() as broken:
            broken.setattr(world.server.serving.streams, "check_histories", failing)
            until(lambda: failing.await_count > 1)
        assert world.client.delete(f"/v1/keys/{key['key_id']}").status_code == 204
        assert stream.ending() == "key_no_longer_valid"
    assert "The keys of streams could not be checked" in caplog.text


def test_an_expired_key_ends_its_stream(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.streams, "KEYS_EVERY_S", 0.05)
    soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    key = told(world.client.post("/v1/keys", json={"role": "auditor", "expires_at": soon}), 201)
    with following(world.with_key(key["key"])) as stream:
        stream.frame()
        world.server.clock.ahead = timedelta(hours=2)
        try:
            assert stream.ending() == "key_no_longer_valid"
        finally:
            world.server.clock.ahead = timedelta()


def test_a_stream_ends_with_its_connection_also_when_another_request_stands_in_line_behind_it(world: World) -> None:
    until(lambda: len(world.server.serving.streams._streams) == 0)
    place = httpx.URL(world.server.url)
    head = f"Host: x\r\n{AUTHORIZATION}: {world.client.headers[AUTHORIZATION]}\r\n\r\n"
    with socket.create_connection((place.host, place.port or 0), timeout=20) as connection:
        connection.sendall(f"GET /v1/events/stream HTTP/1.1\r\n{head}GET /livez HTTP/1.1\r\n{head}".encode())
        until(lambda: len(world.server.serving.streams._streams) == 1)
    until(lambda: len(world.server.serving.streams._streams) == 0)


def test_beyond_the_limit_a_client_is_told_to_come_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    until(lambda: len(world.server.serving.streams._streams) == 0)
    monkeypatch.setattr(world.server.serving.places.streams, "most", 2)
    monkeypatch.setattr(world.server.serving.places.streams, "wait_s", 0)
    with following(world.client), following(world.client):
        answer = world.client.get("/v1/events/stream")
        assert "This server already has 2 open streams" in turned_away(answer)
    # Who has left makes room.
    until(lambda: _opens(world.client))


def test_one_ledgers_streams_leave_room_for_others(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.server.serving.places.streams, "of_a_ledger", 2)
    monkeypatch.setattr(world.server.serving.places.streams, "wait_s", 0)
    one, two, three = (world.as_role("subscriber") for _ in range(3))
    with following(one), following(two):
        answer = three.get("/v1/events/stream")
        assert "This ledger already has 2 open streams" in turned_away(answer)
        assert _opens(world.another().client)
    until(lambda: _opens(three))


def test_one_keys_streams_leave_room_for_others(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.server.serving.places.streams, "of_a_key", 2)
    one, other = world.as_role("subscriber"), world.as_role("subscriber")
    with following(one), following(one):
        answer = one.get("/v1/events/stream")
        assert "This key already has 2 open streams" in turned_away(answer)
        assert _opens(other)
    until(lambda: _opens(one))


def turned_away(answer: httpx.Response) -> str:
    """Return why there is no room; an EventSource takes any other status for final, and this for a reason to return."""
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    waiting, end = answer.text.rstrip().split("\n\n")
    assert waiting == "retry: 5000"
    name, data = end.split("\n")
    content: dict[str, str] = json.loads(data.removeprefix("data: "))
    assert (name, content["code"]) == ("event: end", "no_room")
    return content["detail"]


def _opens(client: httpx.Client, token: str | None = None) -> bool:
    with client.stream("GET", "/v1/events/stream", params={} if token is None else {"token": token}) as answer:
        return next(answer.iter_lines()) == "retry: 1000"


class Deaf:
    """A client that sends its request and takes nothing of the answer."""

    def __init__(self, world: World) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        url = httpx.URL(world.server.url)
        self.socket.connect((url.host, url.port))
        # What is left is sent when the system asks again whether there is room, later each time that there was none.
        self.socket.settimeout(90)
        key = world.server.admin_key
        head = f"GET /v1/events/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nLast-Event-ID: 0\r\n\r\n"
        self.socket.sendall(head.encode())
        self.begun = self.socket.recv(15)

    def rest(self) -> bytes:
        """Take everything up to the end, quickly now."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        with self.socket:
            taken = b""
            while part := self.socket.recv(1 << 20):
                taken += part
            return taken


def record_megabytes(world: World, number: int) -> None:
    """Record so many megabytes of events, of 16 KiB each. A code has few of them, since each answer shows all."""
    targeting = {"words": "x" * 16_000}
    for _ in range(number * 16):
        code = world.running()
        for i in range(4):
            asked = campaign(f"campaign-{i}-big") | {"targeting": targeting}
            told(world.client.post(f"/v1/codes/{code['code_id']}/campaigns", json=asked), 201)


@pytest.mark.long("a client falls behind by all that is kept for it")
def test_a_client_that_reads_too_slowly_is_told_so_and_can_go_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infra.eventstore.live_subscription, "KEPT_BYTES", 256 * 1024)
    # However long the recording takes: it is not dropped for taking nothing meanwhile.
    monkeypatch.setattr(api.streams, "STALLED_S", 100)
    monkeypatch.setattr(api.http.transport, "STALLED_S", 100)
    deaf = Deaf(world)
    # Three times what is kept for it, by the system and by us.
    record_megabytes(world, 2)

    # What was under way arrives whole, then the reason.
    text = deaf.rest().decode()
    assert '"code":"slow_reader"' in text
    lines = text.splitlines()
    seen = [
        int(line.rpartition(":")[2])
        for line, next_ in pairwise(lines)
        if line.startswith("id: ") and next_.startswith('data: {"p')
    ]
    assert seen == list(range(1, seen[-1] + 1))
    with following(world.client, seen[-1]) as stream:
        rest = stream.take(world.head() - seen[-1])
    assert positions(rest) == list(range(seen[-1] + 1, world.head() + 1))


@pytest.mark.long("all buffers between server and client are filled")
def test_the_connection_of_a_client_that_takes_nothing_is_dropped(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    until(lambda: len(world.server.serving.streams._streams) == 0)
    monkeypatch.setattr(api.streams, "STALLED_S", 0.3)
    deaf = Deaf(world)
    until(lambda: len(world.server.serving.streams._streams) == 1)
    for _ in range(8):
        record_megabytes(world, 1)
        if len(world.server.serving.streams._streams) == 0:
            break

    until(lambda: len(world.server.serving.streams._streams) == 0)
    # In mid-sentence: neither what was held for it nor the end is sent.
    assert not deaf.rest().endswith(b"\r\n0\r\n\r\n")


def test_a_client_that_takes_a_little_now_and_then_is_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    until(lambda: len(world.server.serving.streams._streams) == 0)
    monkeypatch.setattr(api.streams, "STALLED_S", 1.0)
    record_megabytes(world, 1)
    slow = Deaf(world)
    pause = threading.Event()
    with slow.socket:
        for _ in range(60):  # three seconds, at about 20 kB/s
            pause.wait(0.05)
            slow.socket.recv(1024)
        assert len(world.server.serving.streams._streams) == 1
    until(lambda: len(world.server.serving.streams._streams) == 0)


def test_a_stream_is_recorded_among_the_accesses_with_what_it_was_handed(world: World) -> None:
    world.running()
    auditor = world.as_role("auditor")
    with following(auditor, 2, type="Redeemed") as stream:
        stream.take(1)

    def ended() -> list[dict[str, Any]]:
        entries = told(world.client.get("/v1/accesses"), 200)["accesses"]
        return [e for e in entries if e["route"] == "GET /v1/events/stream" and e["complete"] is not None]

    until(lambda: len(ended()) == 1)
    (entry,) = ended()
    assert (entry["query"], entry["format"], entry["rows"]) == ({"type": "Redeemed"}, "text/event-stream", 1)


# -- Tokens for browsers


def token_of(client: httpx.Client, **filters: str) -> str:
    return str(told(client.post("/v1/stream-tokens", json={"filters": filters}), 201)["token"])


def browser(world: World) -> httpx.Client:
    """A client that cannot send headers of its own."""
    world.clients.append(httpx.Client(base_url=world.server.url, timeout=20, trust_env=False))
    return world.clients[-1]


def test_a_token_opens_the_stream_that_it_was_made_for(world: World) -> None:
    world.running()
    token = token_of(world.as_role("subscriber"), type="Redeemed")
    assert token.startswith("slt_")
    with following(browser(world), token=token, after=0) as stream:
        assert [event["type"] for event in stream.take(1)] == ["Redeemed"]
        world.running()
        assert [event["type"] for event in stream.take(1)] == ["Redeemed"]
        last = stream.last_id
    with following(browser(world), last, token=token) as stream:
        world.running()
        assert [event["type"] for event in stream.take(1)] == ["Redeemed"]


def test_a_token_is_used_within_a_minute_and_then_for_long(world: World) -> None:
    used, unused = (token_of(world.client) for _ in range(2))
    assert _opens(browser(world), used)
    world.server.clock.ahead = timedelta(minutes=2)
    try:
        assert _opens(browser(world), used)
        answer = browser(world).get("/v1/events/stream", params={"token": unused})
        assert refused(answer) == (401, "unauthenticated")
    finally:
        world.server.clock.ahead = timedelta()


def test_a_token_is_good_for_one_stream_at_a_time(world: World) -> None:
    token = token_of(world.client)
    with following(browser(world), token=token) as first, following(browser(world), token=token) as second:
        assert first.ending() == "replaced"
        world.permit()
        assert positions(second.take(1)) == [1]


def test_a_token_that_another_process_has_used_ends_its_stream_here(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.streams, "KEYS_EVERY_S", 0.05)
    token = token_of(world.client)
    with following(browser(world), token=token) as stream, psycopg.connect(world.server.database.dsn()) as owner:
        stream.frame()
        owner.execute("UPDATE stream_tokens SET uses = uses + 1 WHERE ledger_id = %s", (ledger_id(world),))
        owner.commit()
        assert stream.ending() == "replaced"


def test_a_token_ends_with_its_key(world: World) -> None:
    key = told(world.client.post("/v1/keys", json={"role": "auditor"}), 201)
    token = token_of(world.with_key(key["key"]))
    with following(browser(world), token=token) as stream:
        assert world.client.delete(f"/v1/keys/{key['key_id']}").status_code == 204
        assert stream.ending() == "key_no_longer_valid"
    answer = browser(world).get("/v1/events/stream", params={"token": token})
    assert refused(answer) == (401, "unauthenticated")


def test_a_token_shows_what_its_key_can_read_alone_and_not_the_key(world: World) -> None:
    creator = world.creator()
    answer = creator.post("/v1/stream-tokens", json={"filters": {"creator_id": OTHER_CREATOR}})
    assert refused(answer) == (403, "not_allowed")
    token = token_of(creator)
    assert creator.headers[AUTHORIZATION].removeprefix("Bearer ") not in token
    world.permit(OTHER_CREATOR)
    world.permit()
    with following(browser(world), token=token, after=0) as stream:
        assert [event["creator_id"] for event in stream.take(1)] == [OWN_CREATOR]


@pytest.mark.parametrize("client", ["a browser with a token", "an EventSource with a key", "another program"])
def test_an_eventsource_comes_back_after_the_database_was_away(
    world: World, monkeypatch: pytest.MonkeyPatch, client: str
) -> None:
    token = token_of(world.client)

    async def away(*_: object) -> None:
        raise Unavailable("The database cannot be reached.")

    with monkeypatch.context() as while_away:
        if client == "a browser with a token":
            while_away.setattr(StreamTokens, "open", away)
            answer = browser(world).get("/v1/events/stream", params={"token": token})
        else:
            while_away.setattr(EventReader, "head", away)
            accept = "text/event-stream" if client == "an EventSource with a key" else "*/*"
            answer = world.client.get("/v1/events/stream", headers={"Accept": accept, "Last-Event-ID": "0"})
    if client == "another program":
        assert refused(answer) == (503, "unavailable")
        return
    # An EventSource takes another status as final.
    assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (200, "text/event-stream")
    reason = '{"code":"unavailable","detail":"The database cannot be reached."}'
    # Clients take the id of what comes last, so it is the one that they have sent.
    repeated = "id: 0\n" if client == "an EventSource with a key" else ""
    assert answer.text == f"retry: {api.streams.RETRY_AFTER_S * 1000}\n{repeated}\nevent: end\ndata: {reason}\n\n"
    with following(browser(world), token=token):
        pass


@pytest.mark.parametrize("token", ["", "x", "slt_x", "slt_" + "A" * 200])
def test_what_is_no_token_opens_nothing(world: World, token: str) -> None:
    answer = browser(world).get("/v1/events/stream", params={"token": token})
    assert refused(answer) == (401, "unauthenticated")


def test_a_token_stands_for_a_key_and_for_filters(world: World) -> None:
    token = token_of(world.client)
    for client, query in ((world.client, {}), (browser(world), {"type": "Shared"})):
        answer = client.get("/v1/events/stream", params={"token": token, **query})
        assert refused(answer) == (400, "malformed_query")
    for filters in ({"token": token}, {"typ": "Shared"}, {"type": "Nonsense"}):
        assert refused(world.client.post("/v1/stream-tokens", json={"filters": filters})) == (422, "malformed_body")
    malformed = world.client.post("/v1/stream-tokens", json={}, headers={"Idempotency-Key": "a b"})
    assert refused(malformed) == (400, "malformed_header")


# -- Sharing


def test_an_event_is_encoded_once_for_all_who_follow(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    encode = api.streams.Streams.encode

    async def counting(self: api.streams.Streams, ledger_id: int, page: Any) -> list[bytes]:
        encoded.extend(recorded.position for recorded in page)
        return await encode(self, ledger_id, page)

    monkeypatch.setattr(api.streams.Streams, "encode", counting)
    # The server's own object has taken the method as it was.
    streams = world.server.serving.streams
    monkeypatch.setattr(streams.live_subscriptions, "_encode", streams.encode)
    with following(world.client) as one, following(world.creator()) as two, following(world.client, q="code") as three:
        code = world.generate()
        assert len(one.take(2)) == len(two.take(2)) == 2
        assert [json.loads(json.dumps(event))["code_id"] for event in three.take(1)] == [code["code_id"]]
    assert encoded == [1, 2]
