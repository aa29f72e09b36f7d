"""`stream`: how long after its recording an event reaches each of 100 clients, at 200 commands a second; and of 1,000.

Counted from `recorded_at`, which the append takes before it commits: the commit itself is in every figure.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import Any, Final

from api.streams import MAX_STREAMS_OF_A_KEY
from infra.auth.key_commands import create_key, create_ledger
from infra.crypto.envelope import fresh_key
from infra.postgres.embedded.server import EmbeddedPostgres
from infra.postgres.roles import API
from infra.processes.worker import create_views
from tests.bench.client import drive
from tests.bench.http import ROOT, Requests, _serve, process
from tests.bench.place import SETTINGS, postgres
from tests.keys import master_key_of

CLIENTS: Final = (100, 1_000)
COMMANDS_PER_SECOND: Final = {100: 200.0, 1_000: 20.0}
RUN_S: Final = 10.0
# What is still on its way when the last command was answered.
ARRIVE_S: Final = 2.0


def measure(port: int, requests: Requests, keys: list[str], clients: int) -> dict[str, Any]:
    """Let clients follow while commands are recorded."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.bench.followers", f"http://127.0.0.1:{port}", str(clients), *keys],
        cwd=ROOT,
        env=dict(os.environ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as followers:
        assert followers.stdout is not None
        assert followers.stdout.readline() == "following\n"
        rate = COMMANDS_PER_SECOND[clients]
        figures = drive([port], requests.issue, connections=8, seconds=RUN_S, per_second=rate)
        assert set(figures.statuses) == {201}, figures.statuses
        time.sleep(ARRIVE_S)
        told, _ = followers.communicate("")
    found = json.loads(told)
    assert found["events"] == found["events_most"] == len(figures.latencies), (found, len(figures.latencies))
    assert found["gaps"] == 0
    return {**found, "clients": clients, "commands_per_second": figures.per_second}


async def subscriber(server: EmbeddedPostgres, master: str) -> str:
    """Mint a key that follows."""
    return (await create_key(server.dsn(), master_key_of(master), "bench", "subscriber", None))[1]


def run() -> dict[str, Any]:
    """Measure both numbers of clients on one API process."""
    master = base64.b64encode(fresh_key()).decode()
    with postgres() as server, ExitStack() as stack:
        asyncio.run(create_views(server.dsn()))
        requests = Requests(asyncio.run(create_ledger(server.dsn(), master_key_of(master), "bench")))
        port, api = stack.enter_context(process("-m", "tests.bench.serve", environment=_serve(server, master, API)))
        requests.prepare(port, 10, 10)
        drive([port], requests.issue, seconds=2.0)
        keys = [asyncio.run(subscriber(server, master)) for _ in range(max(CLIENTS) // MAX_STREAMS_OF_A_KEY)]
        few = measure(port, requests, keys, CLIENTS[0])
        many = measure(port, requests, keys, CLIENTS[1])
        rss_mb = api.memory_info().rss / 2**20
    return {
        "p50_ms": few["p50_ms"],
        "p99_ms": few["p99_ms"],
        "clients": few["clients"],
        "commands_per_second": few["commands_per_second"],
        "thousand": {name: many[name] for name in ("p50_ms", "p99_ms", "clients", "commands_per_second")},
        "rss_mb": rss_mb,
        "settings": SETTINGS,
    }


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))  # noqa: T201 - what a benchmark is for
