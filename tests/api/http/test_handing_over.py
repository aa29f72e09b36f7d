"""Requests that are handed over to another process, and their answers: both ends here, without a process between."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from api.http.handing_over import PIECE_BYTES, BrokenOff, Line, answer, ask_for_a_sign, figures_of, hand_over
from api.http.middleware import HANDED_OVER, HEAD
from api.http.problems import Problem
from api.http.protocol import CONNECTION, own

pytestmark = pytest.mark.anyio

App = Callable[[Scope, Receive, Send], Awaitable[None]]
ASKED: dict[str, Any] = {
    "type": "http",
    "method": "POST",
    "path": "/codes",
    "raw_path": b"/codes",
    "query_string": b"creator_id=%C3%A9",
    "root_path": "",
    "scheme": "https",
    "http_version": "1.1",
    "headers": [(b"host", b"ledger.example"), (b"cookie", b"a=\xe9")],
    "client": ("192.0.2.7", 4711),
    "server": ("ledger.example", 443),
    "request_id": "07" * 16,
}


class Client:
    """A client that sends a body in parts, and then stays or leaves; and what was sent to it."""

    def __init__(self, *parts: bytes, leaves: bool = False) -> None:
        self._messages: list[Message] = [
            {"type": "http.request", "body": part, "more_body": number < len(parts)}
            for number, part in enumerate(parts, 1)
        ]
        if leaves:
            self._messages.append({"type": "http.disconnect"})
        self.owner: object = None
        self.dropped = False
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        if not self._messages:
            await asyncio.Event().wait()
        return self._messages.pop(0)

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    def abort(self) -> None:
        self.dropped = True

    def outstanding(self) -> int:
        return 0

    async def ask(self, line: Line) -> None:
        """Have a request of it handed over."""
        await hand_over(line, {**ASKED, "extensions": {CONNECTION: self}}, self.receive, self.send)

    def body(self) -> bytes:
        return b"".join(bytes(message["body"]) for message in self.sent[1:])


@asynccontextmanager
async def answering(app: App) -> AsyncIterator[Line]:
    """Answer one request by an application at the other end."""
    here, there = socket.socketpair()
    for end in (here, there):
        end.setblocking(False)
    line = await Line.on(here)
    task = asyncio.create_task(answer(await Line.on(there), app, lambda: b"x" * (PIECE_BYTES + 1)))
    yield line
    line.close()
    async with asyncio.timeout(10):
        await task


async def read(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body += message["body"]
        if not message["more_body"]:
            return bytes(body)


async def test_a_request_arrives_as_it_came_and_so_does_its_answer() -> None:
    seen: dict[str, Any] = {}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.update({name: scope[name] for name in ASKED if name != "request_id"})
        seen["request_id"] = scope[HANDED_OVER]
        seen["is_head"] = HEAD in scope
        seen["body"] = await read(receive)
        headers = [(b"content-type", b"text/html"), (b"set-cookie", b"a=\xe9"), (b"request-id", b"said again")]
        await send({"type": "http.response.start", "status": 201, "headers": headers})
        await send({"type": "http.response.body", "body": b"a page"})

    client = Client(b"one", b"two")
    async with answering(app) as line:
        await client.ask(line)
    assert seen == {**ASKED, "is_head": False, "body": b"onetwo"}
    assert client.sent == [
        {
            "type": "http.response.start",
            "status": 201,
            "headers": [(b"content-type", b"text/html"), (b"set-cookie", b"a=\xe9")],
        },
        {"type": "http.response.body", "body": b"a page", "more_body": False},
    ]


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, PIECE_BYTES + 1, 5 * PIECE_BYTES - 1])
async def test_bodies_of_any_size_pass_both_ways(size: int) -> None:
    body = bytes(n % 251 for n in range(size))

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        echo = await read(receive)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": echo, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    client = Client(body)
    async with answering(app) as line:
        await client.ask(line)
    assert client.body() == body


async def test_the_connection_learns_whose_answer_it_sends() -> None:
    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        own(scope, 7)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    client = Client(b"")
    async with answering(app) as line:
        await client.ask(line)
    assert client.owner == 7


async def test_a_client_that_leaves_is_noticed_at_the_other_end_also_while_something_else_looks() -> None:
    heard: list[str] = []

    async def app(_scope: Scope, receive: Receive, _send: Send) -> None:
        await read(receive)
        both = await asyncio.gather(receive(), receive())
        heard.extend(message["type"] for message in both)

    async with answering(app) as line:
        with pytest.raises(ClientDisconnect):
            await Client(b"", leaves=True).ask(line)
    assert heard == ["http.disconnect", "http.disconnect"]


async def test_a_body_that_is_refused_while_it_comes_ends_the_request() -> None:
    class TooLarge(Client):
        async def receive(self) -> Message:
            raise Problem("body_too_large")

    async def app(_scope: Scope, receive: Receive, _send: Send) -> None:
        await receive()

    async with answering(app) as line:
        with pytest.raises(Problem, match="body"):
            await TooLarge().ask(line)


async def test_an_end_without_an_answer_is_told_from_one_in_the_middle_of_it() -> None:
    async def silent(_scope: Scope, _receive: Receive, _send: Send) -> None:
        return

    async def half(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})

    client = Client(b"")
    async with answering(silent) as line:
        with pytest.raises(BrokenOff):
            await client.ask(line)
    assert (client.sent, client.dropped) == ([], False)
    async with answering(half) as line:
        await client.ask(line)
    assert (client.body(), client.dropped) == (b"half", True)


async def test_figures_and_a_sign_are_asked_for_in_the_same_way() -> None:
    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise AssertionError

    async with answering(app) as line:
        assert await figures_of(line) == b"x" * (PIECE_BYTES + 1)
    async with answering(app) as line:
        await ask_for_a_sign(line)
