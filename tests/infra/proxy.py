"""A Unix socket in front of PostgreSQL's, whose connections can be cut in the moment that a test is about."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from psycopg.conninfo import conninfo_to_dict, make_conninfo

SOCKET_NAME: Final = ".s.PGSQL.5432"
CHUNK: Final = 65_536


class Proxy:
    """Passes bytes to and fro.

    Attributes:
        cut_request: asked for each request of a client; where it says so, the connection ends instead of sending it.
        hold_reply: asked likewise; where it says so, the server gets the request, and when its whole reply is here the
            connection ends instead of passing it on.
        swallow: asked likewise; where it says so, the request is dropped, and the connection stays open.
        refusing: new connections end at once, as if the server were gone.
        cuts: how many connections were cut.

    """

    def __init__(self, server: Path) -> None:
        self._server = server
        self.cut_request: Callable[[bytes], bool] = lambda _: False
        self.hold_reply: Callable[[bytes], bool] = lambda _: False
        self.swallow: Callable[[bytes], bool] = lambda _: False
        self.refusing = False
        self.cuts = 0
        self.replied = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self.refusing:
            writer.close()
            return
        # A server's task that ends as cancelled is reported as an error by asyncio.
        with contextlib.suppress(asyncio.CancelledError), contextlib.closing(writer):
            server = await asyncio.open_unix_connection(str(self._server))
            with contextlib.closing(server[1]):
                await _Session(self, (reader, writer), server).run()

    async def close(self) -> None:
        """End every connection."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class _Session:
    def __init__(
        self,
        proxy: Proxy,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._holding = False

    async def run(self) -> None:
        ways = {asyncio.create_task(self._requests()), asyncio.create_task(self._replies())}
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for _, writer in (self._client, self._server):
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    async def _requests(self) -> None:
        while request := await self._client[0].read(CHUNK):
            if self._proxy.cut_request(request):
                self._proxy.cuts += 1
                return
            if self._proxy.swallow(request):
                continue
            self._holding = self._holding or self._proxy.hold_reply(request)
            self._server[1].write(request)
            await self._server[1].drain()

    async def _replies(self) -> None:
        while reply := await self._server[0].read(CHUNK):
            if self._holding:
                # The server answers a call that it committed with ReadyForQuery, idle, as its last six bytes.
                if reply.endswith(b"Z\x00\x00\x00\x05I"):
                    self._proxy.cuts += 1
                    self._proxy.replied.set()
                    return
                continue
            self._client[1].write(reply)
            await self._client[1].drain()


@asynccontextmanager
async def proxied(dsn: str, directory: Path) -> AsyncIterator[tuple[Proxy, str]]:
    """Put a proxy before a server, and yield it with the connection string that leads through it."""
    proxy = Proxy(Path(str(conninfo_to_dict(dsn)["host"])) / SOCKET_NAME)
    listening = await asyncio.start_unix_server(proxy.accept, str(directory / SOCKET_NAME))
    try:
        yield proxy, make_conninfo(dsn, host=str(directory))
    finally:
        listening.close()
        await proxy.close()
