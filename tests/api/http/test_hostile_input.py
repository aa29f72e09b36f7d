"""Malformed, oversized, mistyped and hostile input: one clear refusal, nothing echoed, nothing changed."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import api.http.route
from api.http.middleware import MAX_BODY_BYTES
from tests.api.world import OWN_ACCOUNT, OWN_CREATOR, World, campaign, days, refused, told

# Stands in what is sent, and must stand in nothing that comes back.
CANARY = "canary-7f3a"

GENERATE: dict[str, Any] = {"creator_id": OWN_CREATOR, "video_id": "video", "terms_version": "1"}


def post(world: World, content: bytes, path: str = "/v1/codes", **headers: str) -> Any:
    return world.client.post(path, content=content, headers={"Content-Type": "application/json"} | headers)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b" ",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"1",
        b"{}{}",
        b'{"creator_id": NaN}',
        b'{"a": Infinity}',
        b"{'a': 1}",
        b"\xff\xfe",
        b'{"creator_id": "\xff"}',
        b'{"creator_id": "\\ud800"}',
        b"\xef\xbb\xbf{}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        json.dumps(GENERATE).encode("utf-16"),
    ],
)
def test_what_is_no_json_object_in_utf_8_is_refused(world: World, content: bytes) -> None:
    assert refused(post(world, content)) == (422, "malformed_body")
    assert world.head() == 0


@pytest.mark.parametrize(
    ("changed", "pointer"),
    [
        ({"creator_id": None}, "/creator_id"),
        ({"creator_id": 7}, "/creator_id"),
        ({"creator_id": ["a"]}, "/creator_id"),
        ({"creator_id": {CANARY: CANARY}}, "/creator_id"),
        ({"creator_id": ""}, "/creator_id"),
        ({"creator_id": "a" * 129}, "/creator_id"),
        ({"creator_id": "a b"}, "/creator_id"),
        ({"creator_id": f"{CANARY}\0"}, "/creator_id"),
        ({"creator_id": f"{CANARY}/../x"}, "/creator_id"),
        ({"video_id": f"{CANARY}'; DROP TABLE events; --"}, "/video_id"),
        ({"terms_version": 1}, "/terms_version"),
        *(({"terms_version": f"a{control}b"}, "/terms_version") for control in "\0\t\n\r\x1b\x7f\x85"),
        ({"terms_version": "a" * 129}, "/terms_version"),
        ({"days": "30"}, "/days"),
        ({"days": 30.0}, "/days"),
        ({"days": True}, "/days"),
        ({"days": 10**10}, "/days"),
        ({"days": 10**40}, "/days"),
        ({"starts_at": 1_700_000_000}, "/starts_at"),
        ({"starts_at": "2026-03-01"}, "/starts_at"),
        ({"starts_at": "2026-03-01T12:00:00"}, "/starts_at"),
        ({"starts_at": "2026-02-30T12:00:00Z"}, "/starts_at"),
        ({"starts_at": "2026-03-01T24:00:00Z"}, "/starts_at"),
        ({"starts_at": "2026-03-01T23:59:60Z"}, "/starts_at"),
        ({"starts_at": "2026-03-01T12:00:00+24:00"}, "/starts_at"),
        ({"starts_at": "2026-03-01 12:00:00Z"}, "/starts_at"),
        ({"starts_at": "1999-12-31T23:59:59Z"}, "/starts_at"),
        ({"starts_at": "2100-01-01T00:00:00Z"}, "/starts_at"),
        ({"starts_at": "9999-12-31T23:59:59-14:00"}, "/starts_at"),
        ({"starts_at": "२०२६-03-01T12:00:00Z"}, "/starts_at"),
        ({"caption_sha256": "A" * 64}, "/caption_sha256"),
        ({"caption_sha256": "a" * 63}, "/caption_sha256"),
        ({"secret": ""}, "/secret"),
        ({"secret": " \t\n"}, "/secret"),
        ({"secret": f"#{CANARY}\0"}, "/secret"),
        ({"secret": CANARY * 100}, "/secret"),
        ({"secret": {"$ne": CANARY}}, "/secret"),
        ({CANARY: CANARY}, ""),
        ({"__proto__": {"admin": CANARY}}, ""),
    ],
)
def test_a_wrong_field_is_named_and_never_told_back(world: World, changed: dict[str, Any], pointer: str) -> None:
    world.permit()
    head = world.head()

    answer = world.client.post("/v1/codes", json=GENERATE | changed)

    assert refused(answer) == (422, "malformed_body")
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
    assert CANARY not in answer.text
    assert CANARY not in str(answer.headers)
    assert world.head() == head


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("changed", "pointer"),
    [
        ({"budget": {"amount": 500, "currency": "USD"}}, "/budget/amount"),
        ({"budget": {"amount": "500.001", "currency": "USD"}}, "/budget/amount"),
        ({"budget": {"amount": "-5", "currency": "USD"}}, "/budget/amount"),
        ({"budget": {"amount": "0.00", "currency": "USD"}}, "/budget/amount"),
        ({"budget": {"amount": "1e3", "currency": "USD"}}, "/budget/amount"),
        ({"budget": {"amount": "\u0665", "currency": "USD"}}, "/budget/amount"),
        ({"budget": {"amount": "5", "currency": "usd"}}, "/budget/currency"),
        ({"budget": {"amount": "5", "currency": "USD", "tax": "1"}}, "/budget/tax"),
        ({"ends_at": days(1), "starts_at": days(1.5)}, "/ends_at"),
        ({"name": "a" * 201}, "/name"),
        ({"targeting": []}, "/targeting"),
        ({"targeting": "all"}, "/targeting"),
        ({"targeting": nested(9)}, "/targeting"),
        ({"targeting": {"a": [[[[[[[[1]]]]]]]]}}, "/targeting"),
        ({"targeting": {"a": "x" * 16_400}}, "/targeting"),
        ({"targeting": {"a": f"{CANARY}\0"}}, "/targeting"),
        ({"targeting": {f"{CANARY}\0": 1}}, "/targeting"),
    ],
)
def test_a_wrong_campaign_is_refused_where_it_is_wrong(world: World, changed: dict[str, Any], pointer: str) -> None:
    code = world.generate()
    world.redeem(code)
    answer = world.client.post(f"/v1/codes/{code['code_id']}/campaigns", json=campaign() | changed)
    assert refused(answer) == (422, "malformed_body")
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
    assert CANARY not in answer.text


def test_targeting_comes_back_as_it_was_sent(world: World) -> None:
    code = world.generate()
    world.redeem(code)
    targeting = {"deep": nested(7), "numbers": [1, -1.5, 2**53], "words": ["é", "字", "\\u0000", ""], "none": None}
    told_back = world.launch(code, targeting=targeting)["campaigns"][0]["targeting"]
    assert told_back == targeting


@pytest.mark.parametrize("body", [{}, {"days": 60, "expires_at": days(60)}, {"days": None, "expires_at": None}])
def test_an_extension_says_one_of_both(world: World, body: dict[str, Any]) -> None:
    code = world.generate()
    answer = world.client.post(f"/v1/codes/{code['code_id']}/extensions", json=body)
    assert refused(answer) == (422, "malformed_body")
    assert [error["pointer"] for error in answer.json()["errors"]] == [""]


@pytest.mark.parametrize("creator_id", ["a%20b", "a" * 129, "%00", "a%2Fb", "%E2%80%AE", "%FF", "a%0A"])
def test_a_malformed_creator_in_the_path_is_refused(world: World, creator_id: str) -> None:
    for method in ("GET", "PUT"):
        answer = world.client.request(method, f"/v1/creators/{creator_id}/permission", json={"enabled": True})
        # A slash makes it another address.
        assert refused(answer) in {(400, "malformed_path"), (404, "route_unknown")}


def test_unusual_ids_of_the_alphabet_are_fine(world: World) -> None:
    for creator_id in ("a" * 128, "0", "a.b_c:d@e-f", "-", ":"):
        code = world.generate(creator_id)
        path = f"/v1/creators/{creator_id}/permission"
        assert told(world.client.get(path, params={"at_least": code["position"]}), 200)["live_codes"] == 1


@pytest.mark.parametrize(
    "content_type",
    ["", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1", "application/xml"],
)
def test_a_body_that_is_not_said_to_be_json_is_refused(world: World, content_type: str) -> None:
    content = json.dumps(GENERATE).encode()
    answer = world.client.post("/v1/codes", content=content, headers={"Content-Type": content_type})
    assert refused(answer) == (415, "unsupported_media_type")


@pytest.mark.parametrize(("coding", "expected"), [("gzip", 415), ("identity, br", 415), ("identity", 201), ("", 201)])
def test_a_body_that_would_have_to_be_decoded_first_is_refused(world: World, coding: str, expected: int) -> None:
    world.permit(GENERATE["creator_id"])
    headers = {"Content-Type": "application/json", "Content-Encoding": coding}
    answer = world.client.post("/v1/codes", content=json.dumps(GENERATE).encode(), headers=headers)
    assert answer.status_code == expected


def test_what_is_wrong_with_a_body_is_said_in_sentences_and_not_in_patterns(world: World) -> None:
    answer = world.client.post("/v1/codes", json=GENERATE | {"creator_id": "a b", "video_id": 7})
    assert refused(answer) == (422, "malformed_body")
    assert {wrong["pointer"]: wrong["problem"] for wrong in answer.json()["errors"]} == {
        "/creator_id": "A creator's id has 1 to 128 letters, digits or . _ : @ -, and is neither . nor ..",
        "/video_id": "Expected a string.",
    }


@pytest.mark.parametrize(
    ("path", "body", "errors"),
    [
        ("/v1/codes", {f"unknown_{number}": 1 for number in range(400)}, 400 + 2),
        ("/v1/keys", {"role": "brand", "subjects": {f"unknown_{number}": 1 for number in range(400)}}, 400),
    ],
    ids=["fields", "fields within one"],
)
def test_of_many_errors_twenty_are_described_and_the_others_counted(
    world: World, path: str, body: dict[str, Any], errors: int
) -> None:
    answer = world.client.post(path, json=body)
    assert refused(answer) == (422, "malformed_body")
    assert (len(answer.json()["errors"]), answer.json()["more_errors"]) == (20, errors - 20)
    assert len(answer.content) < 10_000


def test_a_body_of_very_many_fields_is_refused_before_it_is_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    content = json.dumps({f"{number:05}": 1 for number in range(80_000)}, separators=(",", ":")).encode()
    with monkeypatch.context() as patched:
        patched.setattr(api.http.route, "orjson", SimpleNamespace(loads=never))
        answer = post(world, content)
    assert refused(answer) == (422, "malformed_body")
    assert answer.json()["errors"] == [
        {"pointer": "", "problem": "This has about 80,000 fields and entries. The maximum is 20,000."}
    ]


def test_targeting_of_the_largest_size_is_not_too_many_values(world: World) -> None:
    code = world.generate()
    world.redeem(code)
    targeting = {"commas": "," * 16_000}
    assert world.launch(code, targeting=targeting)["campaigns"][0]["targeting"] == targeting


@pytest.mark.parametrize("name", [".", ".."])
def test_what_an_address_would_take_for_a_folder_is_no_id(world: World, name: str) -> None:
    code = world.generate()
    world.redeem(code)
    launched = world.client.post(f"/v1/codes/{code['code_id']}/campaigns", json=campaign(name))
    shared = world.client.post(f"/v1/codes/{code['code_id']}/shares", json={"brand_id": name, "channel": "dm"})
    for answer, pointer in ((launched, "/campaign_id"), (shared, "/brand_id")):
        assert refused(answer) == (422, "malformed_body")
        assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
    ended = world.client.post(f"/v1/codes/{code['code_id']}/campaigns/%2E%2E/end", json={})
    assert refused(ended) == (404, "campaign_unknown")


def test_json_by_another_spelling_of_its_type_is_fine(world: World) -> None:
    for content_type in ("application/json;charset=UTF-8", "Application/JSON", 'application/json; charset="utf-8"'):
        answer = world.client.put(
            f"/v1/creators/{OWN_CREATOR}/permission",
            content=b'{"enabled": true}',
            headers={"Content-Type": content_type},
        )
        assert answer.status_code == 200


def test_a_body_that_is_too_large_is_refused_however_it_comes(world: World) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(MAX_BODY_BYTES // 65_536 + 1):
            yield b" " * 65_536

    for content in (b" " * (MAX_BODY_BYTES + 1), chunks()):
        with contextlib.suppress(ConnectionError):
            answer = world.client.post("/v1/codes", content=content, headers={"Content-Type": "application/json"})
            assert refused(answer) == (413, "body_too_large")
    exact = json.dumps(GENERATE).encode().ljust(MAX_BODY_BYTES)
    assert refused(post(world, exact)) == (409, "creator_unknown")


def speak(world: World, request: bytes) -> bytes:
    """Send bytes as they are, and return all that comes back."""
    host, port = world.server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while part := connection.recv(65_536):
            received += part
        return received


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        (b"Content-Length: 99999999999999999999999\r\n", b"{}", {b"400", b"413"}),
        (b"Content-Length: 5000000\r\n", b"{}", {b"413"}),
        (b"Content-Length: -1\r\n", b"{}", {b"400"}),
        (b"Content-Length: x\r\n", b"{}", {b"400"}),
        (b"Content-Length: 2\r\nContent-Length: 3\r\n", b"{}", {b"400"}),
        (b"Transfer-Encoding: chunked\r\n", b"ffffffffffffffffffffff\r\n", {b"400", b"413"}),
    ],
)
def test_a_length_that_lies_is_refused(world: World, headers: bytes, body: bytes, status: set[bytes]) -> None:
    request = (
        b"POST /v1/codes HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Authorization: Bearer " + world.server.admin_key.encode() + b"\r\n" + headers + b"\r\n" + body
    )
    answered = speak(world, request)
    assert answered.split(b" ")[1] in status
    assert world.head() == 0


def test_a_body_that_ends_early_changes_nothing(world: World) -> None:
    body = json.dumps({"enabled": True}).encode()
    speak(
        world,
        b"PUT /v1/creators/x/permission HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Authorization: Bearer " + world.server.admin_key.encode() + b"\r\nContent-Length: 100\r\n\r\n" + body,
    )
    assert world.head() == 0


def test_a_method_that_an_address_does_not_know_is_answered_with_those_it_knows(world: World) -> None:
    code = world.generate()
    known = {
        "/v1/codes": "GET, HEAD, POST",
        f"/v1/codes/{code['code_id']}": "GET, HEAD",
        f"/v1/codes/{code['code_id']}/shares": "POST",
        f"/v1/creators/{OWN_CREATOR}/permission": "GET, HEAD, PUT",
        "/v1/keys": "GET, HEAD, POST",
        "/livez": "GET, HEAD",
    }
    for path, allowed in known.items():
        answer = world.client.patch(path)
        assert refused(answer) == (405, "method_not_allowed")
        assert answer.headers["allow"] == allowed


def test_the_bare_address_leads_to_the_console(world: World) -> None:
    answer = world.client.get("/")
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")


@pytest.mark.parametrize("path", ["/v1", "/v1/codes/", "/v2/codes", "/v1/codes/a/b/c", "/v1//codes", "/%2e%2e/etc"])
def test_an_address_that_leads_nowhere_is_told_so(world: World, path: str) -> None:
    assert refused(world.client.get(path)) == (404, "route_unknown")


def test_a_secret_that_was_sent_stands_in_no_answer_but_its_own(world: World) -> None:
    secret = f"#{CANARY}+/="
    code = world.generate(secret=secret)
    asked = {"secret": secret, "advertiser_id": OWN_ACCOUNT}

    answers = [
        world.client.post("/v1/codes", json=GENERATE | {"secret": secret}),
        world.client.post("/v1/codes/lookup", json={"secret": secret}),
        world.client.post("/v1/codes/lookup", json={"secret": secret + "x"}),
        world.client.post("/v1/redemptions", json=asked),
        world.client.post("/v1/redemptions", json=asked | {"advertiser_id": "a b"}),
        world.client.post("/v1/redemptions", json=asked | {"secret": [secret]}),
        world.client.get(f"/v1/codes/{code['code_id']}"),
        world.client.get("/v1/codes"),
        world.client.get("/metrics"),
        world.client.get("/v1/stats"),
    ]

    for answer in answers:
        assert CANARY not in answer.text
