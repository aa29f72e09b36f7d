"""A receiver of webhooks that takes everything at once: `python -m tests.bench.receiver`.

It prints its address, then, when its standard input ends, how many messages came, how many of them once more, and how
long the first and the last were apart.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import uvloop

_ANSWER = b"HTTP/1.1 204 No Content\r\n\r\n"


class Receiving(asyncio.Protocol):
    """One connection."""

    def __init__(self, came: dict[bytes, int], times: list[float]) -> None:
        self._came = came
        self._times = times
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._rest += data
        while (end := self._rest.find(b"\r\n\r\n")) >= 0:
            head = self._rest[:end].lower()
            at = head.index(b"content-length: ") + 16
            length = int(head[at:].split(b"\r\n", 1)[0])
            if len(self._rest) < end + 4 + length:
                return
            at = head.index(b"webhook-id: ") + 12
            name = head[at : at + 36]
            self._came[name] = self._came.get(name, 0) + 1
            self._times.append(time.perf_counter())
            self._rest = self._rest[end + 4 + length :]
            self._transport.write(_ANSWER)  # type: ignore[attr-defined] # uvloop's are none by class


async def receive() -> dict[str, float]:
    """Receive until standard input ends."""
    came: dict[bytes, int] = {}
    times: list[float] = []
    server = await asyncio.get_running_loop().create_server(lambda: Receiving(came, times), "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook", flush=True)  # noqa: T201 - as above
    await asyncio.to_thread(sys.stdin.read)
    return {"messages": len(came), "again": len(times) - len(came), "seconds": times[-1] - times[0] if times else 0.0}


if __name__ == "__main__":
    print(json.dumps(uvloop.run(receive())))  # noqa: T201 - the process that started this one waits for it
