"""`lag`: from a command's answer to the moment at which a view shows it, under a steady load.

One process carries commands out, another follows the log into every view, as they do behind `sparkledger up`, and wakes
by a real NOTIFY. A third looks at the views' positions again and again: what it sees is what a reader would.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import psycopg
import uvloop

from infra.auth.key_commands import create_key, create_ledger
from infra.crypto.envelope import fresh_key
from infra.eventstore.command_handler import CommandHandler
from infra.postgres.roles import API, WORKER
from infra.process_limits import tune_garbage_collector
from infra.processes.worker import create_views
from infra.runtime import runtime
from projections import VIEWS
from tests.bench.append import Load
from tests.bench.place import SETTINGS, postgres
from tests.infra.session_tokens import present
from tests.keys import ERASURE_KEYS, master_key

ROOT: Final = Path(__file__).parents[2]
COMMANDS_PER_SECOND: Final = 1_000
RUN_S: Final = 20.0
# So long the load runs before it is measured.
WARM_S: Final = 3.0
IN_FLIGHT_MAX: Final = 500
LOOK_EVERY_S: Final = 0.002
GRACE_S: Final = 30.0

_READ: Final = "SELECT view, position FROM view_positions WHERE ledger_id = %s"
_HEAD: Final = "SELECT max(position) FROM events WHERE ledger_id = %s"

# When a position was answered, and when each view was first seen to have read so far: seconds by the machine's clock,
# which is the same in all its processes.
Answered = list[tuple[int, float]]
Seen = dict[str, list[tuple[int, float]]]


class Told(Load):
    """Commands that note when they were answered, and at which position they stand."""

    def __init__(self, handler: CommandHandler, ledger_id: int, key_id: UUID) -> None:
        super().__init__(handler, ledger_id, key_id)
        self.answered: Answered = []

    async def _execute(self, idempotency_key: str, decide: Callable[..., Awaitable[Any]]) -> Any:
        done = await super()._execute(idempotency_key, decide)
        self.answered.append((done.position, time.monotonic()))
        return done


async def _load(order: dict[str, Any]) -> Answered:
    """Carry commands out at an even rate, each begun at its own time, whatever became of the others."""
    tune_garbage_collector()
    master = master_key(base64.b64decode(order["master"]))
    async with runtime(order["dsn"], API, master) as opened:
        present(opened.database, order["ledger_id"], UUID(order["key_id"]))
        load = Told(opened.handler, order["ledger_id"], UUID(order["key_id"]))
        await load.prepare()
        running: set[asyncio.Task[None]] = set()
        began = time.monotonic()
        for number in range(int((WARM_S + order["seconds"]) * order["per_second"])):
            await asyncio.sleep(began + number / order["per_second"] - time.monotonic())
            while len(running) >= IN_FLIGHT_MAX:
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            task = asyncio.create_task(load.command())
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)
        return [(position, at) for position, at in load.answered if at >= began + WARM_S]


@contextmanager
def _working(dsn: str, master: str) -> Iterator[None]:
    """Run a worker that follows the views alone."""
    environment = {
        "SPARKLEDGER_DATABASE_URL": dsn,
        "SPARKLEDGER_MASTER_KEY": master,
        "SPARKLEDGER_ERASURE_KEY_DIR": str(ERASURE_KEYS),
    }
    command = [sys.executable, "-m", "cli", "work", "--only", "views"]
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.DEVNULL) as worker:
        try:
            yield
        finally:
            worker.terminate()


def _watch(dsn: str, ledger_id: int, writer: subprocess.Popen[bytes]) -> Seen:
    """Look at the views' positions until all have read what the writer, who has ended by then, wrote."""
    seen: Seen = {view.name: [] for view in VIEWS}
    with psycopg.connect(dsn, autocommit=True) as connection:
        deadline = None
        while True:
            over = writer.poll() is not None
            head = connection.execute(_HEAD, (ledger_id,)).fetchone() if over else None
            found = connection.execute(_READ, (ledger_id,)).fetchall()
            now = time.monotonic()
            for view, position in found:
                if not seen[view] or position > seen[view][-1][0]:
                    seen[view].append((position, now))
            if head is not None:
                if len(found) == len(seen) and all((position,) == head for _, position in found):
                    return seen
                deadline = deadline or now + GRACE_S
                assert now < deadline, f"the views did not read all: {found}, {head}"
            time.sleep(LOOK_EVERY_S)


def _lags_ms(answered: Answered, seen: list[tuple[int, float]]) -> list[float]:
    """Return how long after its answer each position was seen, in order of length."""
    lags, at = [], 0
    for position, answered_at in sorted(answered):
        while seen[at][0] < position:
            at += 1
        lags.append(max(0.0, seen[at][1] - answered_at) * 1000)
    return sorted(lags)


def _at(share: float, lags: list[float]) -> float:
    return lags[min(len(lags) - 1, int(len(lags) * share))]


def run(*, per_second: int = COMMANDS_PER_SECOND, seconds: float = RUN_S) -> dict[str, Any]:
    """Measure so many commands a second for so long."""
    key_bytes = fresh_key()
    master = base64.b64encode(key_bytes).decode()
    with postgres() as server:
        asyncio.run(create_ledger(server.dsn(), master_key(key_bytes), "bench"))
        key, _ = asyncio.run(create_key(server.dsn(), master_key(key_bytes), "bench", "operator", None))
        asyncio.run(create_views(server.dsn()))
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "answered.json"
            order = {
                "dsn": server.dsn(API),
                "master": master,
                "ledger_id": key.ledger_id,
                "key_id": str(key.key_id),
                "per_second": per_second,
                "seconds": seconds,
                "answered": str(path),
            }
            command = [sys.executable, "-m", "tests.bench.lag", "--order", json.dumps(order)]
            with _working(server.dsn(WORKER), master), subprocess.Popen(command, cwd=ROOT) as writer:
                seen = _watch(server.dsn(), key.ledger_id, writer)
            answered: Answered = json.loads(path.read_text())
    lags = {view: _lags_ms(answered, of_view) for view, of_view in seen.items()}
    slowest = max(lags.values(), key=lambda of_view: _at(0.99, of_view))
    return {
        # Of the view that shows things last.
        "p50_ms": _at(0.5, slowest),
        "p99_ms": _at(0.99, slowest),
        "commands_per_second": len(answered) / (max(at for _, at in answered) - min(at for _, at in answered)),
        "views": {view: {"p50_ms": _at(0.5, of_view), "p99_ms": _at(0.99, of_view)} for view, of_view in lags.items()},
        "looked_every_ms": LOOK_EVERY_S * 1000,
        "settings": SETTINGS,
    }


def _main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--per-second", type=int, default=COMMANDS_PER_SECOND, help="commands")
    parser.add_argument("--seconds", type=float, default=RUN_S, help="how long they come")
    parser.add_argument("--order", help="for the process that carries them out")
    arguments = parser.parse_args()
    if arguments.order:
        order = json.loads(arguments.order)
        Path(order["answered"]).write_text(json.dumps(uvloop.run(_load(order))))
    else:
        print(json.dumps(run(per_second=arguments.per_second, seconds=arguments.seconds), indent=2))  # noqa: T201


if __name__ == "__main__":
    _main()
