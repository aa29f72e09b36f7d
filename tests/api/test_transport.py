"""What is written in one turn of the loop goes out at once, and nothing of it is lost."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import uvloop

from api.transport import Gathering


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
