"""`expiry`: many codes that fall due in the same second, and what commands feel of it meanwhile.

One API process under a steady load of commands, one worker with its views and its clock, as `sparkledger up` runs
them. The load begins before the codes fall due, so that the figures of both times stand side by side.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
import threading
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psutil
import psycopg

from infra.auth.key_commands import create_key, create_ledger
from infra.crypto.envelope import fresh_key
from infra.postgres.embedded.server import EmbeddedPostgres
from infra.postgres.roles import API, WORKER
from infra.processes.worker import create_views
from projections import VIEWS
from tests.bench.client import drive
from tests.bench.due_codes import fill
from tests.bench.http import ROOT, Requests, _serve, process
from tests.bench.place import SETTINGS, postgres, processor_s
from tests.keys import master_key_of

CODES: Final = 5_000
FULL: Final = 100_000
COMMANDS_PER_SECOND: Final = 500
CONNECTIONS: Final = 16
SLICE_S: Final = 1.0
# The load runs for so long before the codes fall due.
BEFORE_S: Final = 5.0
# So long it takes at most to fill the ledger and let the views follow: some seconds, and some for every thousand codes.
LEAD_S: Final = 20.0
LEAD_PER_THOUSAND_S: Final = 1.0
# How many times as long, one after another, where that was too short.
SHORTER_LEADS: Final = (1, 3)
LONGEST_LEAD: Final = 9
WITHIN_S: Final = 300.0
LOOK_EVERY_S: Final = 0.25

_RECORDED: Final = """
SELECT count(*) FILTER (WHERE type = 'Expired'), coalesce(max(position), %(after)s), max(recorded_at)
FROM events
WHERE ledger_id = %(ledger)s AND position > %(after)s
"""
_BEHIND: Final = """
SELECT count(*) < %(views)s OR min(position) < (SELECT max(position) FROM events WHERE ledger_id = %(ledger)s)
FROM view_positions
WHERE ledger_id = %(ledger)s
"""


class ViewsLate(TimeoutError):
    """The codes fell due before the views had read of them."""


@dataclass
class Load:
    """A steady load of commands, in slices of a second, on a thread of its own."""

    port: int
    request: Callable[[], bytes]
    per_second: float
    slices: list[tuple[float, float, list[float]]] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None

    def run(self) -> None:
        """Send until told to stop."""
        try:
            while not self.stopping.is_set():
                began = time.time()
                figures = drive(
                    [self.port],
                    self.request,
                    connections=CONNECTIONS,
                    seconds=SLICE_S,
                    per_second=self.per_second,
                )
                assert set(figures.statuses) == {201}, f"answered {figures.statuses}"
                self.slices.append((began, time.time(), figures.latencies))
        except BaseException as error:  # noqa: BLE001 - the caller that waits for the thread raises it
            self.error = error

    def between(self, begin: float, end: float) -> dict[str, float]:
        """Return rate, median and 99th percentile of the slices that overlap a time."""
        chosen = [part for part in self.slices if part[0] < end and part[1] > begin]
        latencies = sorted(latency for _, _, part in chosen for latency in part)
        seconds = sum(ended - began for began, ended, _ in chosen)
        return {
            "commands_per_second": len(latencies) / seconds,
            "p50_ms": latencies[len(latencies) // 2] * 1000,
            "p99_ms": latencies[int(len(latencies) * 0.99)] * 1000,
            "max_ms": latencies[-1] * 1000,
        }


@contextmanager
def _working(environment: dict[str, str]) -> Iterator[psutil.Process]:
    """Run a worker."""
    with subprocess.Popen([sys.executable, "-m", "cli", "work"], cwd=ROOT, env={**os.environ, **environment}) as worker:
        try:
            yield psutil.Process(worker.pid)
        finally:
            worker.terminate()


@contextmanager
def _loading(load: Load) -> Iterator[None]:
    thread = threading.Thread(target=load.run)
    thread.start()
    try:
        yield
    finally:
        load.stopping.set()
        thread.join()
        if load.error is not None:
            raise load.error


def run(*, full: bool = False, codes: int | None = None, per_second: float = COMMANDS_PER_SECOND) -> dict[str, Any]:
    """Let so many codes fall due at once, 100,000 with `full`.

    Where the machine is too busy for the views to read of the codes before they fall due, begin again with more time.

    Raises:
        TimeoutError: the codes fell due before the views had read of them, or were not recorded in time.

    """
    codes = codes or (FULL if full else CODES)
    lead_s = LEAD_S + BEFORE_S + LEAD_PER_THOUSAND_S * codes / 1000
    for longer in SHORTER_LEADS:
        with suppress(ViewsLate):
            return _measure(codes, per_second, lead_s * longer)
    return _measure(codes, per_second, lead_s * LONGEST_LEAD)


def _measure(codes: int, per_second: float, lead_s: float) -> dict[str, Any]:
    master = base64.b64encode(fresh_key()).decode()
    with postgres() as server, ExitStack() as stack:
        asyncio.run(create_views(server.dsn()))
        requests = Requests(asyncio.run(create_ledger(server.dsn(), master_key_of(master), "bench")))
        port, api = stack.enter_context(process("-m", "tests.bench.serve", environment=_serve(server, master, API)))
        requests.prepare(port, 0, 0)
        key, _ = asyncio.run(create_key(server.dsn(), master_key_of(master), "bench", "auditor", None))
        ledger = {"ledger": key.ledger_id, "views": len(VIEWS)}
        due = (datetime.now(UTC) + timedelta(seconds=lead_s)).replace(microsecond=0)
        asyncio.run(fill(server.dsn(), master_key_of(master), key.ledger_id, codes, due))
        worker = stack.enter_context(_working(_serve(server, master, WORKER)))
        connection = stack.enter_context(psycopg.connect(server.dsn(), autocommit=True))
        try:
            _await(lambda: not _one(connection, _BEHIND, ledger)[0], due.timestamp() - BEFORE_S, "The views were late.")
        except TimeoutError as late:
            raise ViewsLate(*late.args) from late
        time.sleep(max(0.0, due.timestamp() - BEFORE_S - time.time()))
        load = Load(port, requests.issue, per_second)
        (head,) = _one(connection, "SELECT max(position) FROM events", {})
        with _loading(load):
            time.sleep(max(0.0, due.timestamp() - time.time()))
            before = _processor_s(server, worker, api)
            ended = _recorded(connection, ledger, codes, head)
        _await(lambda: not _one(connection, _BEHIND, ledger)[0], time.time() + WITHIN_S, "The views do not follow.")
        followed = time.time()
        spent = {who: seconds - before[who] for who, seconds in _processor_s(server, worker, api).items()}
    seconds = (ended - due).total_seconds()
    meanwhile = load.between(due.timestamp(), ended.timestamp())
    return {
        "codes": codes,
        "seconds": seconds,
        "codes_per_second": codes / seconds,
        "api_p99_ms": meanwhile["p99_ms"],
        "commands_per_second": meanwhile["commands_per_second"],
        "meanwhile": meanwhile,
        "before": load.between(0, due.timestamp() - SLICE_S),
        "views_followed_s": followed - due.timestamp(),
        # Until the views have followed, with what the commands meanwhile cost.
        "processor_us_per_code": {who: seconds / codes * 1e6 for who, seconds in spent.items()},
        "settings": SETTINGS,
    }


def _processor_s(server: EmbeddedPostgres, worker: psutil.Process, api: psutil.Process) -> dict[str, float]:
    """Return the seconds of the processor that each has used so far, the worker with its children."""
    processes = {"worker": [worker, *worker.children(recursive=True)], "api": [api]}
    used = {who: sum(sum(one.cpu_times()[:2]) for one in of) for who, of in processes.items()}
    return {**used, "postgres": processor_s(server)}


def _recorded(connection: psycopg.Connection[Any], ledger: dict[str, int], codes: int, after: int) -> datetime:
    """Wait until so many expiries are recorded after a position, and return when the last one was."""
    deadline = time.monotonic() + WITHIN_S
    count, last = 0, None
    while count < codes:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{count} of {codes} expiries were recorded in {WITHIN_S:.0f} s.")
        time.sleep(LOOK_EVERY_S)
        more, after, at = _one(connection, _RECORDED, {**ledger, "after": after})
        count, last = count + more, at if more else last
    assert isinstance(last, datetime)
    return last


def _one(connection: psycopg.Connection[Any], query: str, parameters: dict[str, Any]) -> tuple[Any, ...]:
    row: tuple[Any, ...] | None = connection.execute(query, parameters).fetchone()
    assert row is not None
    return row


def _await(condition: Callable[[], bool], until: float, otherwise: str) -> None:
    while not condition():
        if time.time() > until:
            raise TimeoutError(otherwise)
        time.sleep(LOOK_EVERY_S)


if __name__ == "__main__":
    parser = ArgumentParser(prog="python -m tests.bench.expiry")
    parser.add_argument("--codes", type=int, default=CODES)
    parser.add_argument("--per-second", type=float, default=COMMANDS_PER_SECOND)
    given = parser.parse_args()
    print(json.dumps(run(codes=given.codes, per_second=given.per_second), indent=2))  # noqa: T201 - what it is for
