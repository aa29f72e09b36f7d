"""A small HTTP client that keeps many connections busy: requests are bytes made beforehand, answers are only counted.

General clients cost more for each request than the server under test does, and would be what is measured.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import uvloop

# An answer that does not come ends the run instead of holding it up.
GRACE_S = 20.0


@dataclass
class Figures:
    """What came of a run: answers by status, and each answer's time in seconds."""

    seconds: float = 0.0
    statuses: dict[int, int] = field(default_factory=dict)
    latencies: list[float] = field(default_factory=list)

    @property
    def per_second(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds

    def p99_ms(self) -> float:
        """The time within which 99 of 100 answers came, in milliseconds."""
        return sorted(self.latencies)[int(len(self.latencies) * 0.99)] * 1000


class _Connection(asyncio.Protocol):
    """One keep-alive connection with one request in flight."""

    def __init__(self, figures: Figures, request: Callable[[], bytes], pause_s: float, due: float, end: float) -> None:
        self._figures, self._request, self._pause_s, self._end = figures, request, pause_s, end
        self._buffer = b""
        self._began = 0.0
        self._due = due
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by class
        self._send_when_due(time.perf_counter())

    def _send_when_due(self, now: float) -> None:
        asyncio.get_running_loop().call_later(max(0.0, self._due - now), self._send)

    def _send(self) -> None:
        self._began = time.perf_counter()
        self._transport.write(self._request())

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        at = self._buffer.lower().find(b"content-length: ", 0, head)
        length = int(self._buffer[at + 16 : self._buffer.find(b"\r\n", at)])
        if len(self._buffer) < head + 4 + length:
            return
        now = time.perf_counter()
        status = int(self._buffer[9:12])
        self._buffer = b""
        self._figures.statuses[status] = self._figures.statuses.get(status, 0) + 1
        self._figures.latencies.append(now - self._began)
        if now >= self._end:
            self._transport.close()
            self.over.set_result(None)
        elif self._pause_s:
            # By the clock and not by the answers: what a slow answer held up is sent at once, and the next request is
            # due when it always was. So a slow answer makes the load no lighter, and connections keep their turns.
            self._due += self._pause_s
            self._send_when_due(now)
        else:
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over.done():
            self.over.set_exception(exc or ConnectionError("the server closed a connection that was in use"))


def drive(
    ports: list[int], request: Callable[[], bytes], *, connections: int = 32, seconds: float, per_second: float = 0
) -> Figures:
    """Keep connections busy for some seconds, as fast as the server answers or at a given rate.

    Args:
        ports: on loopback; connections are spread over them.
        request: makes the bytes of the next request.
        connections: how many.
        seconds: how long.
        per_second: requests a second in all; 0 for as many as are answered.

    """

    async def main() -> Figures:
        figures = Figures()
        began = time.perf_counter()
        pause_s = connections / per_second if per_second else 0.0
        loop = asyncio.get_running_loop()
        made = [
            await loop.create_connection(
                # One after another, where they are paced: all at once would be a burst again and again.
                lambda i=i: _Connection(figures, request, pause_s, began + pause_s * i / connections, began + seconds),  # type: ignore[misc]
                "127.0.0.1",
                ports[i % len(ports)],
            )
            for i in range(connections)
        ]
        async with asyncio.timeout(seconds + GRACE_S):
            await asyncio.gather(*(connection.over for _, connection in made))
        figures.seconds = time.perf_counter() - began
        return figures

    return uvloop.run(main())


def http(method: str, path: str, key: str, body: bytes = b"", idempotency: str = "") -> bytes:
    """Return the bytes of a request."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
    if idempotency:
        head += f"Idempotency-Key: {idempotency}\r\n"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body
