"""Tokens for brokers: asked for with the client's credentials, and kept until they are about to end."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import pytest

from infra.delivery.kafka import oauth
from infra.delivery.kafka.oauth import ClientCredentials, TokenRefused, TokenUnavailable


@contextmanager
def authorization_server(*answers: tuple[int, Any]) -> Iterator[tuple[str, list[tuple[str, dict[str, list[str]]]]]]:
    """Answer one request after the other; yield the URL, and what was asked."""
    asked: list[tuple[str, dict[str, list[str]]]] = []
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            asked.append((self.headers["Authorization"], parse_qs(body)))
            status, content = left.pop(0)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/token", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_token_is_asked_for_once_and_kept_until_it_is_about_to_end() -> None:
    answers = [(200, {"access_token": f"t{number}", "expires_in": 31 if number else 29}) for number in range(3)]
    with authorization_server(*answers) as (url, asked):
        credentials = ClientCredentials(url, "spark:ledger", "p@ss", "kafka")
        # The first is about to end already.
        assert [credentials.token() for _ in range(4)] == ["t0", "t1", "t1", "t1"]
    login = base64.b64encode(b"spark%3Aledger:p%40ss").decode()
    assert asked == [(f"Basic {login}", {"grant_type": ["client_credentials"], "scope": ["kafka"]})] * 2


@pytest.mark.parametrize(
    "answer", [(401, {"error": "invalid_client"}), (200, {}), (200, ["t"]), (200, {"access_token": 1})]
)
def test_a_server_that_gives_no_token_refuses(answer: tuple[int, Any]) -> None:
    with authorization_server(answer) as (url, _), pytest.raises(TokenRefused, match="authorization server"):
        ClientCredentials(url, "u", "hunter2", None).token()


def test_a_server_that_is_away_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oauth, "TIMEOUT_S", 1.0)
    with authorization_server() as (url, _):
        pass
    with pytest.raises(TokenUnavailable, match="cannot be reached"):
        ClientCredentials(url, "u", "hunter2", None).token()
