"""What comes before a request is one, beside its body and after its answer: heads and trailers that never end."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import socket
from collections import Counter
from ipaddress import ip_network
from typing import Any, cast
from urllib.parse import urlsplit

import pytest

from api.http import protocol
from api.http.problems import STATUSES
from api.http.protocol import MAX_BESIDE_BYTES, MAX_HEAD_BYTES, MAX_HEADERS, BoundedProtocol, bounded_by_address
from tests.serving import LiveServer, Server
from tests.waiting import until

CHUNKED = (
    b"POST /v1/codes/lookup HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
)
GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


def connected(server: Server) -> socket.socket:
    place = urlsplit(server.url)
    return socket.create_connection((place.hostname or "", place.port or 0), timeout=20)


def everything(connection: socket.socket) -> bytes:
    """Return all that comes until the server closes the connection."""
    answered = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            answered += piece
    return answered


def closed(connection: socket.socket) -> bool:
    """Read what still comes, until nothing can any more."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        return False
    return True


def test_a_head_that_does_not_end_is_refused_and_the_connection_closed(live_server: LiveServer) -> None:
    place = urlsplit(live_server.url)
    with socket.create_connection((place.hostname or "", place.port or 0), timeout=20) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Long: ")
        sent = 0
        try:
            while sent <= 4 * MAX_HEAD_BYTES:
                connection.sendall(b"a" * 4096)
                sent += 4096
            answer = connection.recv(65536)
        except (BrokenPipeError, ConnectionResetError):
            answer = b"HTTP/1.1 431 (reset before it could be read)"
    assert answer.startswith(b"HTTP/1.1 431")


def test_a_usual_head_is_answered(live_server: LiveServer) -> None:
    place = urlsplit(live_server.url)
    with socket.create_connection((place.hostname or "", place.port or 0), timeout=20) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("trailers", [b"a: " + b"x" * 4000 + b"\r\n", b"x" * 4096], ids=["many", "one"])
def test_trailers_that_do_not_end_close_the_connection(server: Server, trailers: bytes) -> None:
    with connected(server) as connection:
        connection.sendall(CHUNKED + b"\r\n0\r\na: ")
        sent = 0
        try:
            while sent <= 64 * MAX_BESIDE_BYTES:
                connection.sendall(trailers)
                sent += len(trailers)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert sent < 64 * MAX_BESIDE_BYTES


def test_a_trailer_is_no_header(server: Server) -> None:
    with connected(server) as connection:
        connection.sendall(CHUNKED + f"\r\n0\r\nAuthorization: Bearer {server.admin_key}\r\n\r\n".encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 401")


def test_a_body_in_many_small_chunks_is_read(server: Server) -> None:
    body = b'{"secret":"%b"}' % (b"x" * 500)
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    with connected(server) as connection:
        connection.sendall(
            CHUNKED + f"Authorization: Bearer {server.admin_key}\r\n\r\n".encode() + chunks + b"0\r\n\r\n"
        )
        assert connection.recv(65536).startswith(b"HTTP/1.1 404")


@pytest.mark.parametrize("half", [b"G", b"\r\n"], ids=["half a head", "nothing"])
def test_a_head_after_an_answer_has_its_time_too(server: Server, monkeypatch: pytest.MonkeyPatch, half: bytes) -> None:
    monkeypatch.setattr(protocol, "HEAD_WITHIN_S", 0.2)
    with connected(server) as connection:
        connection.sendall(GET)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(half)
        assert closed(connection)


def test_a_body_that_nobody_waits_for_has_its_time_too(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with connected(server) as connection:
        connection.sendall(CHUNKED + b"\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 401")
        monkeypatch.setattr(protocol, "HEAD_WITHIN_S", 0.2)
        connection.sendall(b"1\r\nx\r\n")
        assert closed(connection)


def test_one_request_after_another_is_answered_on_the_same_connection(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_WITHIN_S", 60.0)
    with connected(server) as connection:
        for _ in range(3):
            connection.sendall(GET[:20])
            connection.sendall(GET[20:])
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")


NOT_HTTP = b"HTTP/1.1 400 Bad Request"
TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large"
# The second request that somebody else could have been made to send: none of its answer may ever come.
SMUGGLED = b"GET /v1/smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "answer"),
    [
        (b"GET /livez\r\n\r\n", NOT_HTTP),
        (b"GET /livez HTTP/0.9\r\nHost: x\r\n\r\n", NOT_HTTP),
        (b"GET /livez HTTP/2.0\r\nHost: x\r\n\r\n", NOT_HTTP),
        (b"GET /livez HTTP/1.1\r\n\r\n", NOT_HTTP),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", NOT_HTTP),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nHOST: y\r\n\r\n", NOT_HTTP),
        (b"GET /livez HTTP/1.0\r\nHost: x\r\nHost: x\r\n\r\n", NOT_HTTP),
        (b"GET /livez HTTP/1.1\r\nHost: x y\r\n\r\n", NOT_HTTP),
        (b"GET /livez HTTP/1.1\r\nHost: x/y\r\n\r\n", NOT_HTTP),
        (b"GET /livez HTTP/1.1\r\nHost: a, b\r\n\r\n", NOT_HTTP),
        *(
            (b"POST /livez HTTP/%b\r\nHost: x\r\nTransfer-Encoding: %b\r\n\r\n0\r\n\r\n" % coded, NOT_HTTP)
            for coded in [
                (b"1.1", b"gzip, chunked"),
                (b"1.1", b"gzip"),
                (b"1.1", b"chunked, chunked"),
                (b"1.1", b"chunked\r\nTransfer-Encoding: chunked"),
                (b"1.1", b"identity"),
                (b"1.1", b"chunked\r\nContent-Length: 5"),
                (b"1.0", b"chunked"),
            ]
        ),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nX: %b\r\n\r\n" % (b"a" * MAX_HEAD_BYTES), TOO_LARGE),
        (b"GET /livez?%b HTTP/1.1\r\nHost: x\r\n\r\n" % (b"a" * MAX_HEAD_BYTES), TOO_LARGE),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\n%b\r\n" % (b"X: a\r\n" * MAX_HEADERS), TOO_LARGE),
    ],
)
def test_a_head_that_two_programs_could_read_differently_is_refused(server: Server, head: bytes, answer: bytes) -> None:
    with connected(server) as connection:
        connection.sendall(head + SMUGGLED)
        answered = everything(connection)
    assert answered.startswith(answer)
    assert len(re.findall(rb"HTTP/1\.1 [0-9]{3} ", answered)) == 1
    assert b"application/problem+json" in answered
    problem = json.loads(answered.partition(b"\r\n\r\n")[2])
    assert problem.keys() == {"type", "title", "status", "detail", "code", "retryable"}
    assert problem["type"] == f"/docs#{problem['code']}"
    assert STATUSES[problem["code"]] == problem["status"]


@pytest.mark.parametrize(
    "head",
    [
        b"GET /livez HTTP/1.1\r\nHost: x\r\n",
        b"GET /livez HTTP/1.1\r\nHost:\r\n",
        b"GET /livez HTTP/1.1\r\nhost: [::1]:8080\r\n",
        b"GET /livez HTTP/1.1\r\nHost: api.example:80\r\n",
        b"GET /livez HTTP/1.0\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nX: %b\r\n" % (b"a" * (MAX_HEAD_BYTES - 200)),
    ],
)
def test_other_heads_are_answered(server: Server, head: bytes) -> None:
    with connected(server) as connection:
        connection.sendall(head + b"Connection: close\r\n\r\n")
        assert everything(connection).startswith(b"HTTP/1.1 200 OK")


def head_of(size: int) -> bytes:
    """Return a head whose target and headers have so many bytes, counted as `name: value` with the end of its line."""
    head = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: "
    counted = len(b"/livez" + b"Host: x\r\n" + b"Connection: close\r\n" + b"X: \r\n")
    return head + b"a" * (size - counted) + b"\r\n\r\n"


@pytest.mark.parametrize("before", [b"", GET], ids=["first", "after another one"])
@pytest.mark.parametrize(("beyond", "answer"), [(0, b"HTTP/1.1 200 OK"), (1, TOO_LARGE)])
def test_a_head_may_be_as_large_as_its_limit(server: Server, before: bytes, beyond: int, answer: bytes) -> None:
    with connected(server) as connection:
        connection.sendall(before)
        if before:
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(head_of(MAX_HEAD_BYTES + beyond))
        assert everything(connection).startswith(answer)


def test_what_is_no_request_gets_no_answer_while_an_earlier_one_is_answered(server: Server) -> None:
    with connected(server) as connection:
        connection.sendall(
            b"GET /v1/events/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\n\r\n" % server.admin_key.encode()
        )
        begun = connection.recv(65536)
        connection.sendall(b"no request\r\n\r\n")
        assert NOT_HTTP not in begun + everything(connection)


def test_nobody_fills_the_log_with_what_is_no_request(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    requests = (
        b"no request\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    )
    with caplog.at_level(logging.WARNING):
        for request in requests:
            with connected(server) as connection:
                connection.sendall(request)
                # What comes after a protocol was asked for that we do not speak would be in that protocol.
                assert everything(connection)
    assert caplog.messages == []


def test_the_connections_of_a_trusted_proxy_are_not_counted(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedProtocol, "_of_addresses", Counter())
    monkeypatch.setattr(BoundedProtocol, "max_of_an_address", 2)
    with connected(server), connected(server):
        until(lambda: BoundedProtocol._of_addresses == {"127.0.0.1": 2})
        with monkeypatch.context() as patched:
            patched.setattr(BoundedProtocol, "proxies", (ip_network("127.0.0.0/8"),))
            with connected(server) as proxy:
                proxy.sendall(GET)
                assert proxy.recv(65536).startswith(b"HTTP/1.1 200")
                assert BoundedProtocol._of_addresses == {"127.0.0.1": 2}
    until(lambda: BoundedProtocol._of_addresses == {})


def test_each_server_counts_its_own_connections_and_a_network_of_ipv6_as_one_address() -> None:
    one, other = (bounded_by_address(1, ["2001:db8:1::/48"]) for _ in range(2))

    def answered(kind: type[BoundedProtocol], address: str) -> bytes | None:
        connection = cast("Any", object.__new__(kind))
        connection.connections, connection.client = set(), (address, 1)
        found: bytes | None = connection._counted()
        return found

    assert answered(one, "2001:db8::1") is None
    assert b"This address has too many connections" in (answered(one, "2001:db8::2") or b"")
    assert answered(one, "2001:db8:0:1::1") is None
    assert [answered(one, "2001:db8:1::1") for _ in range(3)] == [None] * 3
    assert answered(other, "2001:db8::1") is None


def test_who_asks_for_a_websocket_is_answered_in_http(server: Server) -> None:
    with connected(server) as connection:
        connection.sendall(
            b"GET /v1/codes HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 401")
        assert b"application/problem+json" in answer
