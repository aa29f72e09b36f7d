"""Clients of the event stream, many in one process: how long after its recording each event reaches each of them.

Run as a process of its own: `python -m tests.bench.followers URL CLIENTS KEY…`, each client with the next of the keys.
It says `following` once all are connected, ends when its standard input does, and prints its figures as one object of
JSON.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import sys
import time
from datetime import datetime
from typing import cast
from urllib.parse import urlsplit

import uvloop

_EVENT = re.compile(rb'id: [0-9a-f-]+:(\d+)\ndata: .*?"recorded_at":"([^"]+)"')


class Follower(asyncio.Protocol):
    """One connection, of which nothing is kept but when what came."""

    def __init__(self, request: bytes, latencies: list[float], moments: dict[bytes, float]) -> None:
        self._request = request
        self._latencies = latencies
        self._moments = moments
        self._rest = b""
        self.events = 0
        self.last = 0
        self.gaps = 0
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).write(self._request)  # uvloop's are none by class

    def data_received(self, data: bytes) -> None:
        now = time.time()
        if not self.begun.done():
            assert data.startswith(b"HTTP/1.1 200"), data[:200]
            self.begun.set_result(None)
        data = self._rest + data
        whole, _, self._rest = data.rpartition(b"\n\n")
        for position, recorded_at in _EVENT.findall(whole):
            moment = self._moments.get(recorded_at)
            if moment is None:
                moment = self._moments[recorded_at] = datetime.fromisoformat(recorded_at.decode()).timestamp()
            self._latencies.append(now - moment)
            self.events += 1
            self.gaps += self.last not in {0, int(position) - 1}
            self.last = int(position)


async def follow(url: str, clients: int, keys: list[str]) -> dict[str, float]:
    """Follow until standard input ends."""
    parts = urlsplit(url)
    ask = "GET /v1/events/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\r\n"
    requests = itertools.cycle([ask.format(key).encode() for key in keys])
    latencies: list[float] = []
    moments: dict[bytes, float] = {}
    followers: list[Follower] = []
    loop = asyncio.get_running_loop()
    for _ in range(clients):
        _, follower = await loop.create_connection(
            lambda: Follower(next(requests), latencies, moments), parts.hostname or "", parts.port or 0
        )
        followers.append(follower)
        if len(followers) % 50 == 0:
            await followers[-1].begun
    await asyncio.gather(*(follower.begun for follower in followers))
    print("following", flush=True)  # noqa: T201 - the process that started this one waits for it
    await asyncio.to_thread(sys.stdin.read)
    found = sorted(latencies) or [0.0]
    return {
        "events": min(follower.events for follower in followers),
        "events_most": max(follower.events for follower in followers),
        "gaps": sum(follower.gaps for follower in followers),
        "p50_ms": found[len(found) // 2] * 1000,
        "p99_ms": found[int(len(found) * 0.99)] * 1000,
        "longest_ms": found[-1] * 1000,
    }


if __name__ == "__main__":
    print(json.dumps(uvloop.run(follow(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))))  # noqa: T201 - as above
