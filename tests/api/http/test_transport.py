"""What is written in one turn of the loop goes out at once, and nothing of it is lost."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import uvloop
from uvicorn.protocols.http.flow_control import FlowControl

from api.http import transport
from api.http.protocol import BoundedProtocol
from api.http.transport import Gathering


class Counted(Gathering):
    """Knows how often something was sent."""

    sends = 0

    def _send(self) -> None:
        if self._written:
            self.sends += 1
        super()._send()


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Counted, asyncio.StreamReader]]:
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
    reader, writer = await asyncio.open_connection(sock=theirs)
    gathering = Counted(transport, loop)
    try:
        yield gathering, reader
    finally:
        gathering.abort()
        writer.close()


def driven(test: Callable[[Counted, asyncio.StreamReader], object]) -> None:
    async def run() -> None:
        async with connected() as (gathering, reader), asyncio.timeout(30):
            await test(gathering, reader)  # type: ignore[misc]

    uvloop.run(run())


def test_head_and_body_are_sent_together_and_in_order() -> None:
    async def test(gathering: Counted, reader: asyncio.StreamReader) -> None:
        gathering.write(b"head, ")
        gathering.write(b"body")
        assert gathering.get_write_buffer_size() == len(b"head, body")
        assert await reader.readexactly(10) == b"head, body"
        assert gathering.sends == 1

    driven(test)


def test_what_was_written_before_a_close_arrives() -> None:
    async def test(gathering: Counted, reader: asyncio.StreamReader) -> None:
        gathering.writelines([b"the ", b"last"])
        gathering.close()
        assert gathering.is_closing()
        assert await reader.read() == b"the last"

    driven(test)


def test_nothing_is_sent_after_an_abort() -> None:
    async def test(gathering: Counted, reader: asyncio.StreamReader) -> None:
        gathering.write(b"never mind")
        gathering.abort()
        assert await reader.read() == b""
        assert gathering.sends == 0

    driven(test)


def test_a_reader_that_takes_nothing_pauses_the_protocol() -> None:
    class Paused(asyncio.Protocol):
        def __init__(self) -> None:
            self.paused = asyncio.Event()

        def pause_writing(self) -> None:
            self.paused.set()

    async def run() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with theirs:
            transport, protocol = await loop.create_connection(Paused, sock=ours)
            gathering = Gathering(transport, loop)
            gathering.set_write_buffer_limits(high=1_000)
            gathering.write(b"x" * 10_000_000)
            async with asyncio.timeout(30):
                await protocol.paused.wait()
            gathering.abort()

    uvloop.run(run())


class Told(asyncio.Protocol):
    """Knows that its connection is gone."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()


@pytest.mark.parametrize("end", [Gathering.close, Gathering.watch])
def test_who_takes_nothing_is_dropped(monkeypatch: pytest.MonkeyPatch, end: Callable[[Gathering], None]) -> None:
    monkeypatch.setattr(transport, "STALLED_S", 0.05)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with theirs:
            sending, told = await loop.create_connection(Told, sock=ours)
            gathering = Gathering(sending, loop)
            gathering.write(bytes(8 * 1024 * 1024))
            end(gathering)
            async with asyncio.timeout(30):
                await told.lost.wait()

    uvloop.run(run())


def test_what_waits_in_all_is_limited_and_who_waited_longest_of_whom_most_waits_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = 8 * 1024 * 1024
    monkeypatch.setattr(transport, "MAX_UNREAD_BYTES", 5 * size // 2)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        unread: list[tuple[Gathering, Told]] = []
        with contextlib.ExitStack() as open_sockets:
            for owner in (1, 2, 1):
                ours, theirs = socket.socketpair()
                open_sockets.enter_context(theirs)
                sending, told = await loop.create_connection(Told, sock=ours)
                gathering = Gathering(sending, loop)
                gathering.owner = owner
                gathering.write(bytes(size))
                await asyncio.sleep(0)
                gathering.watch()
                unread.append((gathering, told))
            async with asyncio.timeout(30):
                await unread[0][1].lost.wait()
            assert [told.lost.is_set() for _, told in unread] == [True, False, False]
            for gathering, _ in unread:
                gathering.abort()
        # Those of a server that other tests share in this process are there, too.
        assert [gathering for gathering, _ in unread if gathering in transport.UNREAD._connections] == []

    uvloop.run(run())


def test_who_takes_something_again_and_again_gets_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "STALLED_S", 0.5)
    size = 2 * 1024 * 1024

    async def test(gathering: Counted, reader: asyncio.StreamReader) -> None:
        gathering.write(bytes(size))
        gathering.close()
        taken = 0
        while piece := await reader.read(4096):
            taken += len(piece)
        assert taken == size

    driven(test)


def test_a_connection_is_watched_while_its_answers_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    watched: list[str] = []
    monkeypatch.setattr(Gathering, "watch", lambda _: watched.append("watch"))
    monkeypatch.setattr(Gathering, "unwatch", lambda _: watched.append("unwatch"))

    async def test(gathering: Counted, _: asyncio.StreamReader) -> None:
        protocol = BoundedProtocol.__new__(BoundedProtocol)
        protocol.flow, protocol._gathering = FlowControl(gathering), gathering
        protocol.pause_writing()
        assert watched == ["watch"]
        protocol.resume_writing()
        assert watched == ["watch", "unwatch"]
        protocol.pause_writing()
        gathering.close()
        protocol.resume_writing()
        assert watched == ["watch", "unwatch", "watch"]

    driven(test)
