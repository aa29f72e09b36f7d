"""How a connection is read: uvicorn's parser, with a limit on the head of a request and on the time it may take."""

from __future__ import annotations

import asyncio
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES: Final = 64 * 1024
# From the moment a connection is made until its first head is whole; between requests uvicorn has a limit of its own.
HEAD_WITHIN_S: Final = 15.0

_PROBLEM: Final = (
    b'{"type":"about:blank","title":"The head of the request is too large.","status":431,'
    b'"code":"head_too_large","retryable":false}'
)
_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n"
    b"content-type: application/problem+json\r\ncontent-length: %d\r\n\r\n%b" % (len(_PROBLEM), _PROBLEM)
)


class BoundedProtocol(HttpToolsProtocol):
    """One connection whose requests' heads are bounded in size and time, which the parser itself does not do."""

    _head_bytes = 0
    _in_head = True
    _silence: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Begin to wait for a head."""
        super().connection_made(transport)
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

    def on_message_begin(self) -> None:
        """Begin to count a head."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

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
