"""What comes before a request is one: heads that never end."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from api.protocol import MAX_HEAD_BYTES
from tests.serving import LiveServer


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
