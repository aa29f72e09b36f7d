"""How a connection is read: uvicorn's parser, with limits on connections, and on a head's size and time.

What is refused here was never a request, so it has no request id; it is a problem (RFC 9457) all the same.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Final

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.transport import Gathering

MAX_HEAD_BYTES: Final = 64 * 1024
# From the moment a connection is made until its first head is whole; between requests uvicorn has a limit of its own.
HEAD_WITHIN_S: Final = 15.0
# Of one process; with the database's sessions it stays below the 4,096 files that a process may usually open.
MAX_CONNECTIONS: Final = 3_000

ABORT: Final = "sparkledger.abort"


def _answer(status: HTTPStatus, code: str, title: str, *, retryable: bool = False) -> bytes:
    problem = {"type": "about:blank", "title": title, "status": status, "code": code, "retryable": retryable}
    body = orjson.dumps(problem)
    return (
        b"HTTP/1.1 %d %b\r\nconnection: close\r\n%bcontent-type: application/problem+json\r\n"
        b"content-length: %d\r\n\r\n%b"
    ) % (status, status.phrase.encode(), b"retry-after: 1\r\n" if retryable else b"", len(body), body)


_TOO_LARGE: Final = _answer(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "head_too_large", "The head of the request is too large."
)
_NOT_HTTP: Final = _answer(HTTPStatus.BAD_REQUEST, "malformed_request", "This is not a request in HTTP/1.1.")
_CROWDED: Final = _answer(
    HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", "This process has as many connections as it takes.", retryable=True
)


class BoundedProtocol(HttpToolsProtocol):
    """One connection whose requests' heads are bounded in size and time, which the parser itself does not do."""

    _head_bytes = 0
    _in_head = True
    _silence: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Begin to wait for a head."""
        transport = Gathering(transport, self.loop)
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.write(_CROWDED)
            transport.close()
            return
        self._silence = self.loop.call_later(HEAD_WITHIN_S, self._close_silent)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._heard()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass on what comes, as long as a head that is not whole yet stays within its limit."""
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                transport = self.transport
                transport.write(_TOO_LARGE)
                transport.close()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - what uvicorn would say is not a problem
        """Answer what could not be parsed."""
        self.transport.write(_NOT_HTTP)
        self.transport.close()

    def on_message_begin(self) -> None:
        """Begin to count a head."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()
        # For streams whose client takes nothing any more: closing would wait until it has taken what is buffered.
        self.scope["extensions"] = {ABORT: {"abort": self.transport.abort}}

    def on_headers_complete(self) -> None:
        """Stop counting: the head is whole, and the application limits the body."""
        self._in_head = False
        self._heard()
        super().on_headers_complete()

    def _heard(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None

    def _close_silent(self) -> None:
        self.transport.close()
