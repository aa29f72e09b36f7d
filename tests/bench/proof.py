"""`proof`: what the signed log costs, and those who verify it.

Sealing from cold, proofs, the lag of checkpoints, heads, bundles and their verifiers, and `append` beside the sealer.
The log is filled by SQL, as the other benchmarks fill theirs, and sealed by the real sealer. Programs run as their
users run them, each as a process whose processor time and memory the system counts: on a busy machine, processor time
says more than the clock.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import psutil
import psycopg
import uvloop

from infra.auth.key_commands import create_key, create_ledger
from infra.crypto.envelope import fresh_key
from infra.jobs.heads import HeadsJob
from infra.postgres.embedded.server import EmbeddedPostgres
from infra.postgres.roles import API, WORKER
from infra.process_limits import tune_garbage_collector
from infra.proof import verify
from infra.proof.proofs import Proofs
from infra.proof.sealer import Sealer, SealerSettings
from infra.proof.tree_store import TreeStore
from infra.runtime import runtime
from tests.bench.append import Load, rate
from tests.bench.lag import Answered
from tests.bench.lives import fill
from tests.bench.place import SETTINGS, postgres
from tests.infra.session_tokens import present
from tests.keys import ERASURE_KEYS, master_key

ROOT: Final = Path(__file__).parents[2]
EVENTS: Final = 200_000
FULL: Final = 10_000_000
# Bundles have so many events at most; of a longer log only sealing, heads and proofs are measured.
BUNDLED: Final = 1_000_000
BUFFERS: Final = {"shared_buffers": "2GB"}
PROOFS: Final = 3_000
COMMANDS_PER_SECOND: Final = 200
LAG_S: Final = 20.0
LOOK_EVERY_S: Final = 0.002
MEMORY_EVERY_S: Final = 0.05
WITHIN_S: Final = 120.0
# `append` with the sealer and without it, in turns.
TURNS: Final = 8
TURN_S: Final = 3.0
WARM_S: Final = 1.0
IN_FLIGHT: Final = 32

_SIZE: Final = "SELECT coalesce(max(checkpoint_size), 0) FROM log_trees WHERE ledger_id = %s"
_HEAD: Final = "SELECT max(position) FROM events WHERE ledger_id = %s"
_KEYS: Final = "SELECT verifier_keys FROM log_trees WHERE ledger_id = %s"
_HEADS: Final = "SELECT keys FROM sealed_heads WHERE ledger_id = %s"
_ONE_MORE: Final = """
    INSERT INTO events (
        ledger_id, position, stream_id, version, event_id, type, type_version, recorded_at, effective_at,
        creator_stream, actor_role, actor_subject, source, command_id, creator_id, format, body)
    SELECT e.ledger_id, (SELECT max(h.position) FROM events h WHERE h.ledger_id = e.ledger_id) + 1, gen_random_uuid(),
        1, gen_random_uuid(), e.type, e.type_version, now(), now(), gen_random_uuid(),
        e.actor_role, e.actor_subject, e.source, gen_random_uuid(), e.creator_id, e.format, e.body
    FROM events e WHERE e.ledger_id = %s AND e.position = 1
    RETURNING position
"""
_CODE: Final = """
    SELECT stream_id FROM events WHERE ledger_id = %s AND type = 'CodeGenerated' ORDER BY position LIMIT 1
"""


@dataclass(frozen=True)
class Used:
    """What a program needed."""

    seconds: float
    cpu_s: float
    peak_mb: float
    output: str

    @property
    def figures(self) -> dict[str, float]:
        return {"seconds": self.seconds, "cpu_seconds": self.cpu_s, "peak_mb": self.peak_mb}


def used(*command: str, environment: dict[str, str] | None = None) -> Used:
    """Run a program to its good end."""
    with tempfile.TemporaryFile() as output:
        began = time.perf_counter()
        program = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **(environment or {})}, stdout=output)
        peak, ended = 0, 0
        while not ended:
            # What the system remembers of it begins with the memory of this process, so it is looked at instead.
            with suppress(psutil.Error):
                peak = max(peak, psutil.Process(program.pid).memory_info().rss)
            time.sleep(MEMORY_EVERY_S)
            ended, status, usage = os.wait4(program.pid, os.WNOHANG)
        seconds = time.perf_counter() - began
        program.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        said = output.read().decode()
    assert program.returncode == 0, f"{command}: {program.returncode}\n{said}"
    return Used(seconds, usage.ru_utime + usage.ru_stime, peak / 2**20, said)


class Place:
    """A server with ledgers, and the directory of their keys."""

    def __init__(self, server: EmbeddedPostgres, directory: Path) -> None:
        self.server = server
        self.directory = directory
        self.key = fresh_key()

    @property
    def environment(self) -> dict[str, str]:
        """What a program is given, as the database's owner."""
        return {
            "SPARKLEDGER_DATABASE_URL": self.server.dsn(),
            "SPARKLEDGER_MASTER_KEY": base64.b64encode(self.key).decode(),
            "SPARKLEDGER_ERASURE_KEY_DIR": str(ERASURE_KEYS),
            "SPARKLEDGER_DATA_DIR": str(self.directory),
        }

    def ledger(self, name: str) -> tuple[int, UUID]:
        """Begin a ledger; return its id, and that of a key."""
        asyncio.run(create_ledger(self.server.dsn(), master_key(self.key), name))
        key, _ = asyncio.run(create_key(self.server.dsn(), master_key(self.key), name, "operator", None))
        return key.ledger_id, key.key_id

    def ask(self, query: str, ledger_id: int) -> Any:
        with psycopg.connect(self.server.dsn(), autocommit=True) as connection:
            row = connection.execute(query, (ledger_id,)).fetchone()
        return None if row is None else row[0]

    def seal(self, events: int) -> dict[str, float]:
        """Seal all that is recorded, in this process; return how fast."""
        sealer = Sealer(self.server.dsn(WORKER), SealerSettings(self.directory / "signing", "ledger.example/log"))
        began, cpu = time.perf_counter(), time.process_time()
        with psycopg.connect(self.server.dsn(WORKER), autocommit=True) as connection:
            store = TreeStore(connection)
            while sealer.step(store):
                pass
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        return {"events": events, "events_per_second": events / seconds, "cpu_us_per_event": cpu / events * 1e6}

    @contextmanager
    def sealing(self) -> Iterator[subprocess.Popen[bytes]]:
        """Run a sealer as a process."""
        environment = {**os.environ, **self.environment, "SPARKLEDGER_DATABASE_URL": self.server.dsn(WORKER)}
        command = [sys.executable, "-m", "cli", "work", "--only", "seal"]
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as sealer:
            try:
                yield sealer
            finally:
                sealer.send_signal(signal.SIGCONT)
                sealer.terminate()

    def until_sealed(self, ledger_id: int) -> None:
        """Wait until a checkpoint covers all that is recorded."""
        deadline = time.monotonic() + WITHIN_S
        while self.ask(_SIZE, ledger_id) < (self.ask(_HEAD, ledger_id) or 0):
            assert time.monotonic() < deadline, "the sealer does not come"
            time.sleep(0.05)


def percentiles(values: list[float]) -> dict[str, float]:
    """Return the median and the 99th percentile."""
    ordered = sorted(values)
    return {"p50_ms": ordered[len(ordered) // 2], "p99_ms": ordered[int(len(ordered) * 0.99)]}


async def _proofs(place: Place, ledger_id: int, key_id: UUID, events: int) -> dict[str, float]:
    """Prove events from all over the log, one at a time."""
    tune_garbage_collector()
    async with runtime(place.server.dsn(API), API, master_key(place.key)) as opened:
        present(opened.database, ledger_id, key_id)
        proofs = Proofs(opened.database)
        took = []
        cpu = time.process_time()
        for position in (random.randrange(1, events + 1) for _ in range(PROOFS)):
            began = time.perf_counter()
            assert await proofs.of_event(ledger_id, position) is not None
            took.append((time.perf_counter() - began) * 1000)
        cpu = time.process_time() - cpu
    # The first are not counted: sessions are opened for them.
    return {**percentiles(took[PROOFS // 10 :]), "cpu_us": cpu / PROOFS * 1e6}


async def _seal_heads(order: dict[str, str]) -> dict[str, float]:
    """Seal the heads of all logs, as a worker does; return what that needed, and the memory before."""
    async with runtime(order["dsn"], WORKER, master_key(base64.b64decode(order["master"]))) as worker:
        before = psutil.Process().memory_info().rss
        began, cpu = time.perf_counter(), time.process_time()
        await HeadsJob(worker, every_s=0).round()
        return {
            "seconds": time.perf_counter() - began,
            "cpu_seconds": time.process_time() - cpu,
            "before_mb": before / 2**20,
        }


def _heads(place: Place, ledger_id: int) -> dict[str, Any]:
    """Seal the heads of a log twice, in processes of their own: from its first event on, and with one event more."""
    order = json.dumps({"dsn": place.server.dsn(WORKER), "master": base64.b64encode(place.key).decode()})
    command = (sys.executable, "-m", "tests.bench.proof", "--heads", order)
    cold = used(*command)
    place.ask(_ONE_MORE, ledger_id)
    place.seal(2)
    again = used(*command)
    return {
        "keys": place.ask(_HEADS, ledger_id),
        "from_the_first_event": json.loads(cold.output) | {"peak_mb": cold.peak_mb},
        "of_all": json.loads(again.output) | {"peak_mb": again.peak_mb},
    }


def _bundles(place: Place, name: str, ledger_id: int) -> dict[str, Any]:
    """Make the bundle of the whole ledger, and one of a code in both forms, and verify each with both verifiers."""
    keys = place.directory / f"{name}.vkeys"
    keys.write_text("".join(f"{key}\n" for key in place.ask(_KEYS, ledger_id)))
    code = str(place.ask(_CODE, ledger_id))
    by_cli = (sys.executable, "-m", "cli", "verify", "--key", str(keys))
    by_file = (sys.executable, "-I", verify.__file__, "--key", str(keys))
    figures: dict[str, Any] = {}
    for of, options in (
        ("ledger", ("--kind", "ledger")),
        ("code", ("--kind", "code", "--code", code)),
        ("short_code", ("--kind", "code", "--code", code, "--short")),
    ):
        path = place.directory / f"{of}.zip"
        make = (sys.executable, "-m", "cli", "evidence", str(path), "--ledger", name, *options)
        made = used(*make, environment=place.environment)
        figures[of] = {
            "mb": path.stat().st_size / 2**20,
            "made": made.figures,
            "verified_by_cli": used(*by_cli, str(path)).figures,
            "verified_by_file": used(*by_file, str(path)).figures,
        }
        path.unlink()
    return figures


def _lag(place: Place, ledger_id: int, key_id: UUID) -> dict[str, float]:
    """Record commands at an even rate; return how long after its answer a checkpoint covers each."""
    path = place.directory / "answered.json"
    order = {
        "dsn": place.server.dsn(API),
        "master": base64.b64encode(place.key).decode(),
        "ledger_id": ledger_id,
        "key_id": str(key_id),
        "per_second": COMMANDS_PER_SECOND,
        "seconds": LAG_S,
        "answered": str(path),
    }
    seen: list[tuple[int, float]] = []
    command = [sys.executable, "-m", "tests.bench.lag", "--order", json.dumps(order)]
    with subprocess.Popen(command, cwd=ROOT) as writer, psycopg.connect(place.server.dsn(), autocommit=True) as looking:
        deadline = None
        while True:
            over = writer.poll() is not None
            row = looking.execute(_SIZE, (ledger_id,)).fetchone()
            assert row is not None
            if not seen or row[0] > seen[-1][0]:
                seen.append((row[0], time.monotonic()))
            if over and row[0] == place.ask(_HEAD, ledger_id):
                break
            deadline = deadline or (time.monotonic() + WITHIN_S if over else None)
            assert deadline is None or time.monotonic() < deadline, "the sealer does not come"
            time.sleep(LOOK_EVERY_S)
    answered: Answered = json.loads(path.read_text())
    lags, at = [], 0
    for position, answered_at in sorted(answered):
        while seen[at][0] < position:
            at += 1
        lags.append(max(0.0, seen[at][1] - answered_at) * 1000)
    return {**percentiles(lags), "commands_per_second": COMMANDS_PER_SECOND}


async def _append(place: Place, sealer: subprocess.Popen[bytes], ledger_id: int, key_id: UUID) -> dict[str, Any]:
    """Measure commands with the sealer and without it in turns, on one ledger."""
    tune_garbage_collector()
    rates: dict[bool, list[float]] = {True: [], False: []}
    async with runtime(place.server.dsn(API), API, master_key(place.key)) as opened:
        present(opened.database, ledger_id, key_id)
        load = Load(opened.handler, ledger_id, key_id)
        await load.prepare()
        await rate(load, IN_FLIGHT, 1.0)
        for turn in range(2 * TURNS):
            seals = turn % 2 == 0
            sealer.send_signal(signal.SIGCONT if seals else signal.SIGSTOP)
            if seals:
                place.until_sealed(ledger_id)
            await rate(load, IN_FLIGHT, WARM_S)  # both begin alike: the first after a pause are slower
            rates[seals].append(await rate(load, IN_FLIGHT, TURN_S))
    on, off = (statistics.median(rates[seals]) for seals in (True, False))
    return {"ratio": on / off, "with_sealer": on, "without": off, "turns": TURNS}


def run(*, full: bool = False, events: int | None = None) -> dict[str, Any]:
    """Measure on so many events; `full` is ten million."""
    events = events or (FULL if full else EVENTS)
    figures: dict[str, Any] = {}
    with postgres(BUFFERS) as server, tempfile.TemporaryDirectory() as directory:
        place = Place(server, Path(directory))
        # First, for the program's own check of other ledgers would name the parts that the filling made up.
        ledger_id, key_id = place.ledger("live")
        with place.sealing() as sealer:
            figures["checkpoint_lag"] = _lag(place, ledger_id, key_id)
            figures["append"] = uvloop.run(_append(place, sealer, ledger_id, key_id))
        for name, count in (("bench", min(events, BUNDLED)), ("long", events)):
            if name == "long" and count <= BUNDLED:
                continue
            ledger_id, key_id = place.ledger(name)
            fill(server, ledger_id, count)
            figures["sealing"] = place.seal(count)
            figures["heads"] = _heads(place, ledger_id)
            place.seal(1)
            if name == "bench":
                figures["bundles"] = {"events": count, **_bundles(place, name, ledger_id)}
            figures["proof"] = {"events": count, **uvloop.run(_proofs(place, ledger_id, key_id, count))}
    return {**figures, "settings": {**SETTINGS, **BUFFERS}}


def _main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=EVENTS, help="in the log")
    parser.add_argument("--heads", help="for the process that seals heads")
    arguments = parser.parse_args()
    heads = arguments.heads and asyncio.run(_seal_heads(json.loads(arguments.heads)))
    print(json.dumps(heads or run(events=arguments.events), indent=2))  # noqa: T201 - what a benchmark is for


if __name__ == "__main__":
    _main()
