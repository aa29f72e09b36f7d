"""What comes before a request is one, beside its body and after its answer: heads and trailers that never end."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import pytest

from api.http import protocol
from api.http.protocol import MAX_BESIDE_BYTES, MAX_HEAD_BYTES
from tests.serving import LiveServer, Server

CHUNKED = (
    b"POST /v1/codes/lookup HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
)
GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


def connected(server: Server) -> socket.socket:
    place = urlsplit(server.url)
    return socket.create_connection((place.hostname or "", place.port or 0), timeout=20)


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


def test_who_asks_for_a_websocket_is_answered_in_http(server: Server) -> None:
    with connected(server) as connection:
        connection.sendall(
            b"GET /v1/codes HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 401")
        assert b"application/problem+json" in answer
