"""`http`: requests a second of one API process and of two, beside a bare FastAPI route on the same machine.

Every request is authenticated, every command carries an idempotency key and is sealed and committed with fsync on.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import psutil

from infra.auth.key_commands import create_ledger
from infra.crypto.envelope import fresh_key
from infra.postgres.embedded.server import EmbeddedPostgres
from infra.postgres.roles import API, WORKER
from infra.processes.worker import create_views
from tests.bench.client import Figures, drive, http
from tests.bench.place import RUNS, SETTINGS, postgres, processor_s
from tests.keys import ERASURE_KEYS, master_key_of

ROOT: Final = Path(__file__).parents[2]
RUN_S: Final = 5.0
CONNECTIONS: Final = 32
# One process and two are compared with more of them, too: what keeps one process busy leaves two of them waiting.
MORE: Final = (64, 128)
CREATOR: Final = "creator-1"


@contextmanager
def process(*argv: str, environment: dict[str, str] | None = None) -> Iterator[tuple[int, psutil.Process]]:
    """Run a server and yield its port, which it says on its standard output, and the process."""
    with subprocess.Popen(
        [sys.executable, *argv],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        try:
            assert running.stdout is not None
            url = re.search(r"127\.0\.0\.1:(\d+)", running.stdout.readline())
            assert url is not None, "the server did not say where it answers"
            yield int(url[1]), psutil.Process(running.pid)
        finally:
            running.terminate()


class Requests:
    """The requests of one ledger's operator."""

    def __init__(self, key: str) -> None:
        self.key = key
        # Those that are read are not those that are redeemed, and grow: a read is of a code as codes usually are.
        self.codes: list[str] = []
        self.secrets: list[str] = []

    def prepare(self, port: int, to_read: int, to_redeem: int) -> None:
        """Switch the permission on and issue codes to read and others to redeem."""
        headers = {"Authorization": f"Bearer {self.key}"}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, trust_env=False) as client:
            client.put(f"/v1/creators/{CREATOR}/permission", json={"enabled": True}).raise_for_status()
            for number in range(to_read + to_redeem):
                answer = client.post("/v1/codes", json=self._order()).raise_for_status().json()
                if number < to_read:
                    self.codes.append(answer["code_id"])
                else:
                    self.secrets.append(answer["secret"])

    def issue(self) -> bytes:
        """A command that issues a code."""
        return http("POST", "/v1/codes", self.key, json.dumps(self._order()).encode(), secrets.token_hex(16))

    def redeem(self) -> bytes:
        """A command that redeems a code, by an advertiser that has not."""
        order = {"secret": secrets.choice(self.secrets), "advertiser_id": f"advertiser-{secrets.token_hex(6)}"}
        return http("POST", "/v1/redemptions", self.key, json.dumps(order).encode(), secrets.token_hex(16))

    def read(self) -> bytes:
        """A read of a code."""
        return http("GET", f"/v1/codes/{secrets.choice(self.codes)}", self.key)

    def _order(self) -> dict[str, str]:
        return {"creator_id": CREATOR, "video_id": f"7{secrets.randbelow(10**17):017}7", "terms_version": "2026-01"}


def _measured(
    ports: list[int],
    request: Callable[[], bytes],
    expected: int,
    *,
    connections: int = CONNECTIONS,
    per_second: float = 0,
) -> Figures:
    figures = drive(ports, request, connections=connections, seconds=RUN_S, per_second=per_second)
    assert set(figures.statuses) == {expected}, f"answered {figures.statuses}"
    return figures


class Processors:
    """The processor's time of all that takes part in a run: on few cores, the sum limits what can be answered."""

    def __init__(self, server: EmbeddedPostgres, apis: list[psutil.Process]) -> None:
        self._server, self._apis = server, apis

    def seconds(self) -> dict[str, float]:
        """Return what each has used so far."""
        apis = [api.cpu_times() for api in self._apis]
        return {
            "api": sum(times.user + times.system for times in apis),
            "postgres": processor_s(self._server),
            "client": time.process_time(),
        }


@dataclass(frozen=True)
class Median:
    """The medians of some runs: requests a second, p99, and microseconds of the processor for a request."""

    rate: float
    p99_ms: float
    processor_us: dict[str, float]


def _rounds(runs: list[tuple[str, Callable[[], Figures]]], processors: Processors) -> dict[str, Median]:
    """Run each in turn, several times; return the medians by name."""
    found: dict[str, list[Median]] = {}
    for _ in range(RUNS):
        for name, run in runs:
            before = processors.seconds()
            figures = run()
            us = {
                who: (seconds - before[who]) / len(figures.latencies) * 1e6
                for who, seconds in processors.seconds().items()
            }
            found.setdefault(name, []).append(Median(figures.per_second, figures.p99_ms(), us))
    return {
        name: Median(
            statistics.median(one.rate for one in medians),
            statistics.median(one.p99_ms for one in medians),
            {who: statistics.median(one.processor_us[who] for one in medians) for who in medians[0].processor_us},
        )
        for name, medians in found.items()
    }


def _serve(server: EmbeddedPostgres, master: str, role: str) -> dict[str, str]:
    return {
        "SPARKLEDGER_DATABASE_URL": server.dsn(role),
        "SPARKLEDGER_MASTER_KEY": master,
        "SPARKLEDGER_ERASURE_KEY_DIR": str(ERASURE_KEYS),
        "SPARKLEDGER_PORT": "0",
        "SPARKLEDGER_REQUESTS_PER_SECOND": "1000000",
    }


def run() -> dict[str, Any]:
    """Measure everything in one run on one PostgreSQL."""
    master = base64.b64encode(fresh_key()).decode()
    with postgres() as server, ExitStack() as stack:
        asyncio.run(create_views(server.dsn()))
        requests = Requests(asyncio.run(create_ledger(server.dsn(), master_key_of(master), "bench")))
        environment = _serve(server, master, API)
        port, api = stack.enter_context(process("-m", "tests.bench.serve", environment=environment))
        second, other = stack.enter_context(process("-m", "tests.bench.serve", environment=environment))
        bare, _ = stack.enter_context(process("-m", "tests.bench.bare"))
        requests.prepare(port, 500, 3_000)
        _fill_views(server, master)
        drive([port, second], requests.issue, seconds=2.0)
        began_mb = api.memory_info().rss / 2**20
        processors = Processors(server, [api, other])

        def issuing(ports: list[int], connections: int) -> Callable[[], Figures]:
            return lambda: _measured(ports, requests.issue, 201, connections=connections)

        one = _rounds(
            [
                ("bare POST", lambda: _measured([bare], requests.issue, 201)),
                ("POST /v1/codes", lambda: _measured([port], requests.issue, 201)),
                ("bare GET", lambda: _measured([bare], requests.read, 200)),
                ("GET /v1/codes/{code_id}", lambda: _measured([port], requests.read, 200)),
                ("POST /v1/redemptions", lambda: _measured([port], requests.redeem, 201)),
                (_several("two", CONNECTIONS), issuing([port, second], CONNECTIONS)),
                *((_several("one", number), issuing([port], number)) for number in MORE),
                *((_several("two", number), issuing([port, second], number)) for number in MORE),
            ],
            processors,
        )
        top = one["POST /v1/codes"].rate
        paced = [("half", lambda: _measured([port], requests.issue, 201, per_second=top / 2))]
        half = _rounds(paced, processors)["half"]
        ended_mb = api.memory_info().rss / 2**20
    ours = {name: figures for name, figures in one.items() if not name.startswith(("bare", "one", "two"))}
    several = {name: figures for name, figures in one.items() if name.startswith(("one", "two"))}
    best_of_one = max(top, *(one[_several("one", number)].rate for number in MORE))
    best_of_two = max(one[_several("two", number)].rate for number in (CONNECTIONS, *MORE))
    return {
        "requests_per_second": {name: median.rate for name, median in ours.items()},
        "two_processes": {name: median.rate for name, median in several.items()},
        "bare": {"POST": one["bare POST"].rate, "GET": one["bare GET"].rate},
        "p99_ms": {name: median.p99_ms for name, median in ours.items()},
        "p99_ms_half_load": {"POST /v1/codes": half.p99_ms},
        "processor_us": {name: one[name].processor_us for name in (*ours, *several)},
        "rss_mb": {"start": began_mb, "end": ended_mb},
        "ratios": {
            "POST /v1/codes to bare": top / one["bare POST"].rate,
            "GET /v1/codes/{code_id} to bare": one["GET /v1/codes/{code_id}"].rate / one["bare GET"].rate,
            "two processes to one, each at its best": best_of_two / best_of_one,
            f"two processes to one, {CONNECTIONS} connections": one[_several("two", CONNECTIONS)].rate / top,
            **{
                f"two processes to one, {number} connections": (
                    one[_several("two", number)].rate / one[_several("one", number)].rate
                )
                for number in MORE
            },
        },
        "settings": SETTINGS,
        "runs": RUNS,
    }


def _several(processes: str, connections: int) -> str:
    return f"{processes}, {connections} connections: POST /v1/codes"


def _fill_views(server: EmbeddedPostgres, master: str) -> None:
    """Let the views read what there is to read; they do not run beside what is measured."""
    for view in ("codes", "history"):
        subprocess.run(
            [sys.executable, "-m", "cli", "rebuild", view],
            cwd=ROOT,
            env={**os.environ, **_serve(server, master, WORKER)},
            check=True,
            stdout=subprocess.DEVNULL,
        )


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))  # noqa: T201 - what a benchmark is for
