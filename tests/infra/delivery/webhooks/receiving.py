"""A receiver of webhooks: verifies what it gets as its users do, remembers it, and answers as it is told."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from standardwebhooks import Webhook

WITHIN_S: Final = 15.0
HANG: Final = "hang"


@dataclass(frozen=True)
class Received:
    """One request."""

    at: float
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        """What tells it from every other message."""
        return self.headers["webhook-id"]

    @property
    def event(self) -> dict[str, Any]:
        """The CloudEvent that it carries."""
        event: dict[str, Any] = json.loads(self.body)
        return event

    @property
    def position(self) -> int:
        """Where the event stands in its ledger."""
        return int(self.event["sequence"])


def in_order(received: Iterable[Received]) -> bool:
    """Tell whether the first copies of each code's events came in order."""
    firsts: dict[str, list[int]] = {}
    seen = set()
    for one in received:
        if one.id not in seen:
            seen.add(one.id)
            firsts.setdefault(one.event["subject"], []).append(one.position)
    return all(before < after for positions in firsts.values() for before, after in pairwise(positions))


# Returns the answer to a request: a status, or one with headers, or HANG.
Answer = Callable[[Received], Any]


class Receiver:
    """Listens on this machine."""

    def __init__(self, answer: Answer = lambda _: 204) -> None:
        self.answer = answer
        self.secrets: list[str] = []
        self.received: list[Received] = []
        self.unverified: list[str] = []
        self.connections = 0
        self.url = ""
        self._news = asyncio.Event()

    async def until(self, condition: Callable[[], bool], within_s: float = WITHIN_S) -> None:
        """Wait until a condition holds; it is looked at whenever something arrives, and now and then."""
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline, f"in vain; {len(self.received)} requests came"
            self._news.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await self._news.wait()

    async def take(self, number: int) -> list[Received]:
        """Wait for so many requests, and return all there are."""
        await self.until(lambda: len(self.received) >= number)
        return self.received

    @property
    def positions(self) -> list[int]:
        """Where the events that came stand in their ledger, in the order in which they came."""
        return [received.position for received in self.received]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                await self._one(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers["content-length"]))
        received = Received(time.time(), headers, body)
        for secret in self.secrets:
            try:
                Webhook(secret).verify(body, headers)
            except Exception as error:  # noqa: BLE001 - whatever a user's library says
                self.unverified.append(f"{received.id}: {type(error).__name__} {error}")
        answer = self.answer(received)
        self.received.append(received)
        self._news.set()
        if answer == HANG:
            await asyncio.Event().wait()
        status, more, content = (answer, {}, b"") if isinstance(answer, int) else answer
        lines = [f"HTTP/1.1 {status} x", f"Content-Length: {len(content)}", *(f"{n}: {v}" for n, v in more.items())]
        writer.write("\r\n".join([*lines, "", ""]).encode() + content)
        await writer.drain()


@asynccontextmanager
async def receiving(answer: Answer = lambda _: 204, context: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    """Listen for as long as the block takes."""
    receiver = Receiver(answer)
    tasks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(receiver.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    receiver.url = f"{'http' if context is None else 'https'}://127.0.0.1:{port}/hook"
    try:
        yield receiver
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()
