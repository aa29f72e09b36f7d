"""What a caller cannot do who means harm or is broken: guess, flood, stall, smuggle, or go unseen."""

from __future__ import annotations

import json
import socket
from collections import Counter
from typing import Any, cast

import httpx
import psycopg
import pytest
import uvicorn

from api.http.server import believing
from infra.auth.denied_attempts import RECORDED_PER_HOUR
from tests.api.http.test_hostile_input import post, speak
from tests.api.world import OTHER_CREATOR, OWN_ACCOUNT, OWN_CREATOR, World, refused, told

AGENT = "canary-agent/7f3a"


def refusals(world: World, client: Any = None) -> list[dict[str, Any]]:
    """What was refused, oldest first, as the administrator sees it, or someone else."""
    found = told((client or world.client).get("/v1/accesses", params={"limit": 200}), 200)["accesses"]
    return [access for access in found[::-1] if access["refused"] is not None]


def counted(world: World) -> dict[str, int]:
    counts: dict[str, int] = told(world.client.get("/v1/stats"), 200)["refused_attempts"]
    return counts


# -- Refused attempts


def test_a_refusal_is_told_with_who_why_and_from_where(world: World) -> None:
    code = world.generate(OTHER_CREATOR)
    world.permit()
    world.permit(enabled=False)
    creator, auditor = world.creator(), world.as_role("auditor")
    creator.headers["User-Agent"] = auditor.headers["User-Agent"] = AGENT
    refused(auditor.post("/v1/redemptions", json={}))
    refused(creator.get(f"/v1/codes/{code['code_id']}"))
    refused(creator.get("/v1/codes/0199b2f0-7c1e-7a11-8f0e-3a5c7d9e1b20"))
    refused(world.brand().post("/v1/redemptions", json={"secret": "#guess-at-it", "advertiser_id": OWN_ACCOUNT}))
    refused(creator.post("/v1/codes", json={"creator_id": OWN_CREATOR, "video_id": "v", "terms_version": "1"}))

    found = refusals(world)
    assert [(a["refused"], a["actor"]["role"], a["route"]) for a in found] == [
        ("role_not_allowed", "auditor", "POST /v1/redemptions"),
        ("not_allowed", "creator", "GET /v1/codes/{code_id}"),
        ("code_id_unknown", "creator", "GET /v1/codes/{code_id}"),
        ("code_unknown", "brand", "POST /v1/redemptions"),
        ("permission_disabled", "creator", "POST /v1/codes"),
    ]
    assert {access["address"] for access in found} == {"127.0.0.1"}
    assert [access["user_agent"] for access in found[:2]] == [AGENT, AGENT]
    assert found[1]["path"] == code["code_id"]
    assert {(access["complete"], access["rows"]) for access in found} == {(False, 0)}
    assert counted(world) == dict.fromkeys([access["refused"] for access in found], 1)


def test_a_code_that_was_not_known_yet_at_the_time_asked_about_is_read_and_no_attempt(world: World) -> None:
    code = world.generate()
    auditor = world.as_role("auditor")
    before = code["position"] - 1
    for path in (f"/v1/codes/{code['code_id']}", f"/v1/codes/{code['code_id']}/history"):
        assert refused(auditor.get(path, params={"as_of": before})) == (404, "code_unknown")
    world.server.serving.call(world.server.serving.api.reads.write())
    assert refusals(world) == []
    accesses = told(world.client.get("/v1/accesses", params={"code_id": code["code_id"]}), 200)["accesses"]
    assert {one["route"] for one in accesses} == {"GET /v1/codes/{code_id}", "GET /v1/codes/{code_id}/history"}
    assert [one["query"]["as_of"] for one in accesses] == [before, before]


def test_where_it_came_from_is_the_administrators_to_see_and_not_in_clear(world: World) -> None:
    auditor = world.as_role("auditor")
    auditor.headers["User-Agent"] = AGENT
    refused(auditor.post("/v1/keys", json={"role": "auditor"}))

    (seen,) = refusals(world, auditor)
    assert (seen["refused"], seen["address"], seen["user_agent"], seen["path"]) == ("role_not_allowed", *[None] * 3)
    with psycopg.connect(world.server.database.dsn()) as connection:
        rows = connection.execute(
            "SELECT a::text, a.sealed FROM accesses a JOIN ledgers l USING (ledger_id) WHERE l.name = %s"
            " AND a.refused IS NOT NULL",
            (world.server.ledger,),
        ).fetchall()
    assert rows
    for text, sealed in rows:
        assert AGENT not in text
        assert AGENT.encode() not in sealed
        assert b"127.0.0.1" not in sealed


def test_after_so_many_an_hour_a_keys_refusals_are_only_counted(world: World) -> None:
    auditor = world.as_role("auditor")
    for _ in range(RECORDED_PER_HOUR + 5):
        refused(auditor.post("/v1/keys", json={"role": "auditor"}))
    # Twice as many, where the hour struck in between.
    assert RECORDED_PER_HOUR <= len(refusals(world)) <= RECORDED_PER_HOUR + 5
    assert counted(world) == {"role_not_allowed": RECORDED_PER_HOUR + 5}


def test_another_ledgers_refusals_are_hidden(world: World) -> None:
    refused(world.as_role("auditor").post("/v1/keys", json={"role": "auditor"}))
    assert refusals(world.another()) == []


def test_who_it_comes_from_is_what_the_connection_says_and_not_a_header(world: World) -> None:
    auditor = world.as_role("auditor")
    forwarded = {"X-Forwarded-For": "203.0.113.7", "Forwarded": "for=203.0.113.7"}
    refused(auditor.post("/v1/keys", json={"role": "auditor"}, headers=forwarded))
    assert [access["address"] for access in refusals(world)] == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("proxies", "seen"),
    [
        (("none",), "10.1.2.3"),
        (("10.0.0.0/8",), "203.0.113.7"),
        (("10.9.0.0/16", "10.1.2.3"), "203.0.113.7"),
        (("10.9.0.0/16",), "10.1.2.3"),
    ],
)
async def test_a_proxy_is_believed_only_where_it_was_named(proxies: tuple[str, ...], seen: str) -> None:
    found: list[str] = []

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        found.append(scope["client"][0])

    config = uvicorn.Config(app, log_config=None, **believing(proxies))
    config.load()
    headers = [(b"x-forwarded-for", b"203.0.113.7")]
    scope = {"type": "http", "client": ("10.1.2.3", 1), "scheme": "http", "headers": headers}
    await cast("Any", config.loaded_app)(scope, None, None)
    assert found == [seen]


# -- Guessing


@pytest.fixture
def budget(monkeypatch: pytest.MonkeyPatch, world: World) -> int:
    """Give every key a budget of a few misses, which does not fill again while a test lasts."""
    limits = world.server.serving.limits
    monkeypatch.setattr(limits.guesses, "_at_once", FEW)
    monkeypatch.setattr(limits.guesses, "_per_second", FEW / 1_500)
    return FEW


FEW = 20


def guess(client: httpx.Client, secret: str) -> httpx.Response:
    return client.post("/v1/codes/lookup", json={"secret": secret})


def test_guessing_is_stopped_with_standard_headers_and_seen(world: World, budget: int) -> None:
    brand = world.brand()
    guesses = [guess(brand, f"#guess-no-{n:04}") for n in range(budget + 1)]
    last = guesses[-1]
    assert refused(last) == (429, "too_many_unknown_codes")
    wait = last.headers["retry-after"]
    assert last.headers["ratelimit"] == f'"too_many_unknown_codes";r=0;t={wait}'
    assert last.headers["ratelimit-policy"] == f'"too_many_unknown_codes";q={budget};w=1500'
    assert counted(world) == {"code_unknown": budget, "too_many_unknown_codes": 1}
    # One who guesses does not take the right from another.
    assert world.client.post("/v1/codes/lookup", json={"secret": "#guess-at-it"}).status_code == 404


def test_a_budget_is_of_five_hundred_distinct_codes(world: World) -> None:
    limits = world.server.serving.limits
    assert limits.guesses.policy == (500, 1_500)


def test_the_same_miss_again_costs_nothing_however_it_is_pasted(world: World, budget: int) -> None:
    brand, code = world.brand(), world.generate()
    for _ in range(budget):
        for paste in ("#guess-no-0001", "guess-no-0001", " '##guess-no-0001"):
            assert refused(guess(brand, paste)) == (404, "code_unknown")
    for n in range(2, budget + 1):
        assert refused(guess(brand, f"#guess-no-{n:04}")) == (404, "code_unknown")
    assert refused(guess(brand, code["secret"])) == (429, "too_many_unknown_codes")


def test_what_is_found_costs_nothing(world: World, budget: int) -> None:
    brand, code = world.brand(), world.generate(video_id="7312345678901234567")
    other = {"secret": code["secret"], "expected_video_id": "7312345678901234568"}
    for _ in range(budget + 1):
        assert guess(brand, code["secret"]).status_code == 200
        assert refused(brand.post("/v1/codes/lookup", json=other)) == (409, "other_video")
    assert refused(guess(brand, "#guess-no-0001")) == (404, "code_unknown")


def test_over_the_budget_hits_and_misses_are_refused_alike(world: World, budget: int) -> None:
    brand, code = world.brand(), world.generate()
    for n in range(budget):
        guess(brand, f"#guess-no-{n:04}")
    secrets = (code["secret"], "#guess-no-0001", "#never-guessed-before")
    answers = [guess(brand, secret) for secret in secrets]
    answers += [
        brand.post("/v1/redemptions", json={"secret": secret, "advertiser_id": OWN_ACCOUNT}) for secret in secrets
    ]
    told_apart = {
        (answer.status_code, answer.text.replace(answer.headers["request-id"], ""), answer.headers["ratelimit"][:30])
        for answer in answers
    }
    assert len(told_apart) == 1
    assert refused(answers[0]) == (429, "too_many_unknown_codes")


def test_operators_and_admins_have_nothing_to_guess(world: World, budget: int) -> None:
    operator = world.as_role("operator")
    for client in (world.client, operator):
        for n in range(budget + 2):
            assert refused(guess(client, f"#guess-no-{n:04}")) == (404, "code_unknown")


def test_requests_that_are_held_and_released_together_cannot_pass_the_budget(world: World, budget: int) -> None:
    """Four hundred bodies are sent but for their last byte, and then all of those bytes."""
    key = world.brand().headers["authorization"]
    host, port = world.server.url.removeprefix("http://").split(":")
    sockets = []
    for n in range(HELD):
        body = json.dumps({"secret": f"#guess-no-{n:04}"}).encode()
        head = (
            f"POST /v1/codes/lookup HTTP/1.1\r\nHost: {host}\r\nAuthorization: {key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        connection = socket.create_connection((host, int(port)), timeout=60)
        connection.sendall(head.encode() + body[:-1])
        sockets.append((connection, body[-1:]))
    for connection, last in sockets:
        connection.sendall(last)
    statuses: Counter[int] = Counter()
    for connection, _ in sockets:
        with connection, connection.makefile("rb") as answered:
            statuses[int(answered.readline().split()[1])] += 1
    assert statuses == {404: budget, 429: HELD - budget}


HELD = 400


def test_bringing_codes_of_ones_own_is_no_way_to_guess_faster(world: World, budget: int) -> None:
    world.generate(OTHER_CREATOR, secret="#their-code")
    creator, occupied = world.creator(), world.generate(OWN_CREATOR)["video_id"]
    asked = {"creator_id": OWN_CREATOR, "video_id": occupied, "terms_version": "1"}
    # What tells a guess that is right from one that is not, and neither leaves an event.
    assert refused(creator.post("/v1/codes", json=asked | {"secret": "#their-code"})) == (409, "secret_exists")
    # One that leaves an event tells it, too.
    told(creator.post("/v1/codes", json=asked | {"secret": "#guess-no-0001", "video_id": "free"}), 201)
    for n in range(1, budget - 1):
        assert refused(creator.post("/v1/codes", json=asked | {"secret": f"#guess-no-1{n:03}"})) == (
            409,
            "live_code_exists",
        )
    assert refused(creator.post("/v1/codes", json=asked | {"secret": "#guess-at-it"})) == (
        429,
        "too_many_unknown_codes",
    )
    # Codes that are made here are nobody's guess.
    told(creator.post("/v1/codes", json=asked | {"video_id": "another"}), 201)


# -- What is sent


@pytest.mark.parametrize(
    "content",
    [
        b'{"creator_id": "a", "creator_id": "b", "video_id": "v", "terms_version": "1"}',
        b'{"creator_id": "a", "creator_\\u0069d": "b", "video_id": "v", "terms_version": "1"}',
        b'{"a": {"b": 1, "b": 1}}',
        b'{"a": [{"b": 1, "b": 1}]}',
    ],
)
def test_a_field_that_is_sent_twice_is_refused(world: World, content: bytes) -> None:
    answer = post(world, content)
    assert refused(answer) == (422, "malformed_body")
    assert answer.json()["errors"] == [{"pointer": "", "problem": "A field was sent more than once."}]


def test_a_body_that_is_said_to_be_two_things_is_refused(world: World) -> None:
    types = [("Content-Type", "application/json"), ("Content-Type", "text/plain")]
    for said in (types, types[::-1], types[:1] * 2):
        answer = world.client.post("/v1/codes/lookup", content=b'{"secret":"#guess-at-it"}', headers=said)
        assert refused(answer) == (415, "unsupported_media_type")


@pytest.mark.parametrize("levels", [254, 255, 500, 1_000, 1_023, 1_024, 1_025, 5_000, 400_000])
def test_json_is_refused_however_deep_it_is(world: World, levels: int) -> None:
    for content in (b'{"a":' * levels + b"1" + b"}" * levels, b'{"a":' + b"[" * levels + b"]" * levels + b"}"):
        assert refused(post(world, content[: 1024 * 1024])) == (422, "malformed_body")


def test_a_number_of_any_length_is_refused_and_not_computed(world: World) -> None:
    assert refused(post(world, b'{"days": ' + b"9" * 100_000 + b"}")) == (422, "malformed_body")


# -- What comes before a request, and what an answer tells of us


def test_what_is_no_http_gets_a_problem(world: World) -> None:
    answered = speak(world, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n")
    head, _, body = answered.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request")
    assert b"content-type: application/problem+json" in head
    assert b'"code":"malformed_request"' in body


def test_connections_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    host, port = world.server.url.removeprefix("http://").split(":")
    monkeypatch.setattr("api.http.protocol.MAX_CONNECTIONS", 0)
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        answered = connection.recv(65_536)
    assert answered.startswith(b"HTTP/1.1 503 Service Unavailable")
    assert b"retry-after: 1" in answered


def test_no_answer_names_the_server_or_its_language(world: World) -> None:
    for request in (b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"nonsense\r\n\r\n"):
        answered = speak(world, request).lower()
        for told_of_us in (b"\nserver:", b"x-powered-by", b"uvicorn", b"python", b"traceback"):
            assert told_of_us not in answered
