"""Requests that one process hands over to another one, which answers them by the same application.

For each request there is a pair of connected sockets, and the other process is given one end of it. Nothing listens, so
nobody else can hand anything over: what is said here of a client's address is believed. Both sides send messages, each
with its kind and its length:

    SCOPE, then MORE … LAST      the request: its head, and its body in pieces
    START, then MORE … LAST       its answer
    OWNER                        whose answer it is, once that is known
    FIGURES, and then LAST       in place of a request: the figures of the other process
    SIGN, and then LAST          in place of a request: a sign that it still answers

A client that leaves, or a process that ends, closes its end. The client's own connection is never handed over.
"""

from __future__ import annotations

import asyncio
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import orjson
from starlette.requests import ClientDisconnect

from api.http.middleware import HANDED_OVER, HEAD
from api.http.protocol import CONNECTION, abort, own
from infra.ending import cancelled

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Of one message. A head has 64 KiB at most, and not all of it is sent as it came.
MAX_MESSAGE_BYTES: Final = 1024 * 1024
PIECE_BYTES: Final = 64 * 1024
# The figures of a process, in pieces.
MAX_FIGURES_BYTES: Final = 16 * 1024 * 1024

SCOPE: Final = b"S"
START: Final = b"A"
MORE: Final = b"M"
LAST: Final = b"L"
OWNER: Final = b"O"
FIGURES: Final = b"F"
SIGN: Final = b"?"

_LENGTH: Final = struct.Struct("!cI")
_TEXTS: Final = ("method", "path", "scheme", "root_path", "http_version")
# What the middleware of the process that has the client says again.
_SAID_AGAIN: Final = frozenset({b"request-id", b"x-content-type-options"})


class BrokenOff(Exception):
    """The other process ended before it had begun to answer."""


class Line:
    """One end of the sockets of a request."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take the streams of the socket."""
        self._reader = reader
        self._writer = writer
        self._announced: bytes | None = None

    @classmethod
    async def on(cls, end: socket.socket) -> Line:
        """Open one end, which is closed with the line."""
        return cls(*await asyncio.open_unix_connection(sock=end))

    async def read(self) -> tuple[bytes, bytes]:
        """Return the kind and the content of the next message; a wait that is cancelled can be begun again.

        Raises:
            EOFError: the other end is closed.

        """
        try:
            if self._announced is None:
                self._announced = await self._reader.readexactly(_LENGTH.size)
            kind, length = _LENGTH.unpack(self._announced)
            if length > MAX_MESSAGE_BYTES:
                raise EOFError
            content = await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            raise EOFError from None
        self._announced = None
        return kind, content

    def say(self, kind: bytes, content: bytes = b"") -> None:
        """Send a message, whether there is room for it or not; nothing, once the other end is closed."""
        if not self._writer.is_closing():
            self._writer.write(_LENGTH.pack(kind, len(content)) + content)

    async def write(self, kind: bytes, content: bytes = b"") -> None:
        """Send a message, and wait until there is room for another one."""
        self.say(kind, content)
        with suppress(ConnectionError):
            await self._writer.drain()

    async def write_body(self, body: bytes, *, more: bool) -> None:
        """Send some of a body, in pieces."""
        for start in range(0, max(len(body) - PIECE_BYTES, 0), PIECE_BYTES):
            await self.write(MORE, body[start : start + PIECE_BYTES])
        rest = (len(body) - 1) // PIECE_BYTES * PIECE_BYTES if body else 0
        await self.write(MORE if more else LAST, body[rest:])

    def waiting(self) -> int:
        """Return how many bytes wait to be sent."""
        return self._writer.transport.get_write_buffer_size()

    def abort(self) -> None:
        """Close it, whatever waits to be sent."""
        self._writer.transport.abort()

    def close(self) -> None:
        """Send what waits, then close it."""
        self._writer.close()


async def hand_over(line: Line, scope: Scope, receive: Receive, send: Send) -> None:
    """Have the other process answer a request, and pass its answer on.

    Raises:
        BrokenOff: the other process ended, and nothing was answered.
        ClientDisconnect: the client left.
        Problem: what receiving the body raises.

    """
    await line.write(SCOPE, _packed(scope))
    giving = asyncio.create_task(_give(line, receive))
    passing = asyncio.create_task(_pass_on(line, scope, send))
    try:
        await asyncio.wait({giving, passing}, return_when=asyncio.FIRST_COMPLETED)
        if passing.done() or giving.exception() is None:
            await passing
        else:
            await giving
    finally:
        await cancelled((giving, passing))


async def _give(line: Line, receive: Receive) -> None:
    """Give the other process the body, and then wait until the client leaves."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        await line.write_body(message.get("body", b""), more=message.get("more_body", False))


async def _pass_on(line: Line, scope: Scope, send: Send) -> None:
    begun = False
    try:
        while True:
            kind, content = await line.read()
            if kind == START:
                begun = True
                status, headers = orjson.loads(content)
                given = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
                kept = [one for one in given if one[0] not in _SAID_AGAIN]
                await send({"type": "http.response.start", "status": status, "headers": kept})
            elif kind == OWNER:
                own(scope, int(content))
            else:
                await send({"type": "http.response.body", "body": content, "more_body": kind == MORE})
                if kind == LAST:
                    return
    except EOFError:
        if not begun:
            raise BrokenOff from None
        # Nobody takes what was sent for the whole.
        await abort(scope)


def _packed(scope: Scope) -> bytes:
    return orjson.dumps(
        {
            **{name: scope[name] for name in _TEXTS},
            "raw_path": scope["raw_path"].decode("latin-1"),
            "query_string": scope["query_string"].decode("latin-1"),
            "headers": [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]],
            "client": scope["client"],
            "server": scope["server"],
            "request_id": scope["request_id"],
            "is_head": HEAD in scope,
        }
    )


class _Handed:
    """What an answer here can do with the connection of its client, which another process has."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._owner: object = None

    @property
    def owner(self) -> object:
        """Whose answer is sent."""
        return self._owner

    @owner.setter
    def owner(self, ledger_id: object) -> None:
        self._owner = ledger_id
        self._line.say(OWNER, str(ledger_id).encode())

    def abort(self) -> None:
        """Drop the connection."""
        self._line.abort()

    def outstanding(self) -> int:
        """Return how many bytes wait to be sent."""
        return self._line.waiting()


def _unpacked(content: bytes, line: Line) -> Scope:
    packed: dict[str, Any] = orjson.loads(content)
    scope: Scope = {
        "type": "http",
        # What uvicorn says of itself: `send` tells nobody that the client has left.
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        **{name: packed[name] for name in _TEXTS},
        "raw_path": packed["raw_path"].encode("latin-1"),
        "query_string": packed["query_string"].encode("latin-1"),
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in packed["headers"]],
        "client": packed["client"] and tuple(packed["client"]),
        "server": packed["server"] and tuple(packed["server"]),
        "state": {},
        "extensions": {CONNECTION: _Handed(line)},
        HANDED_OVER: packed["request_id"],
    }
    if packed["is_head"]:
        scope[HEAD] = True
    return scope


async def answer(line: Line, app: ASGIApp, figures: Callable[[], bytes]) -> None:
    """Answer what another process hands over, or say the figures of this one, or that it answers."""
    try:
        try:
            kind, content = await line.read()
        except EOFError:
            return  # it was given up before it was whole
        if kind == FIGURES:
            await line.write_body(figures(), more=False)
            return
        if kind == SIGN:
            await line.write(LAST)
            return
        scope = _unpacked(content, line)

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in message["headers"]]
                await line.write(START, orjson.dumps((message["status"], given)))
            elif message["type"] == "http.response.body":
                await line.write_body(bytes(message.get("body", b"")), more=message.get("more_body", False))

        await app(scope, _Received(line).receive, send)
    finally:
        line.close()


class _Received:
    """The body of a request that was handed over."""

    def __init__(self, line: Line) -> None:
        self._line = line
        # A stream may look whether its client has left, while something else waits for that.
        self._reading = asyncio.Lock()

    async def receive(self) -> Message:
        """Return the next piece of it; after the last one, wait until the client has left."""
        try:
            async with self._reading:
                kind, content = await self._line.read()
        except EOFError:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": content, "more_body": kind == MORE}


async def ask_for_a_sign(line: Line) -> None:
    """Return once the other process has shown that it answers.

    Raises:
        EOFError: it has ended.

    """
    await line.write(SIGN)
    await line.read()


async def figures_of(line: Line) -> bytes:
    """Return the figures of the other process.

    Raises:
        EOFError: it has ended, or says too much.

    """
    await line.write(FIGURES)
    parts: list[bytes] = []
    size = 0
    while True:
        kind, content = await line.read()
        parts.append(content)
        size += len(content)
        if kind == LAST:
            return b"".join(parts)
        if size > MAX_FIGURES_BYTES:
            raise EOFError
