"""`publish`: log to Kafka, catching up, by the program itself in a process of its own; and from commit to consumer.

Apache Kafka, PostgreSQL, the publisher and the consumer share the machine. The codes' states are published too, in the
same transactions; the rate counts events alone.
"""

from __future__ import annotations

import asyncio
import base64
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from threading import Thread
from typing import Any, Final

import psycopg
import uvloop

from infra.auth.key_commands import create_key, create_ledger
from infra.crypto.envelope import fresh_key
from infra.crypto.master_keys import MasterKey
from infra.postgres.embedded.server import EmbeddedPostgres
from infra.postgres.roles import API, WORKER
from infra.process_limits import tune_garbage_collector
from infra.runtime import runtime
from tests.bench.append import Load
from tests.bench.lives import fill
from tests.bench.place import SETTINGS, postgres
from tests.infra.delivery.kafka import broker
from tests.infra.delivery.kafka.publishing import events
from tests.infra.session_tokens import present
from tests.keys import ERASURE_KEYS, master_key
from tests.waiting import until

EVENTS: Final = 200_000
COMMANDS_PER_SECOND: Final = 200
LATENCY_S: Final = 10.0
PREFIX: Final = "bench"
WITHIN_S: Final = 300.0


@contextmanager
def _worker(server: EmbeddedPostgres, master_key: bytes, bootstrap: str) -> Iterator[None]:
    """Run `sparkledger work --only kafka`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SPARKLEDGER_")} | {
        "SPARKLEDGER_DATABASE_URL": server.dsn(),
        "SPARKLEDGER_WORKER_DATABASE_URL": server.dsn(WORKER),
        "SPARKLEDGER_MASTER_KEY": base64.b64encode(master_key).decode(),
        "SPARKLEDGER_ERASURE_KEY_DIR": str(ERASURE_KEYS),
        "SPARKLEDGER_KAFKA_BOOTSTRAP_SERVERS": bootstrap,
        "SPARKLEDGER_KAFKA_LEDGERS": f"bench={PREFIX}",
    }
    with subprocess.Popen([sys.executable, "-m", "cli", "work", "--only", "kafka"], env=environment) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait(20)


def _published(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("SELECT max(position) FROM publications").fetchone()
    return row[0] or 0 if row else 0


def _catch_up(server: EmbeddedPostgres) -> float:
    """Return events a second from the first transaction to the last."""
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        until(lambda: _published(connection) > 0, WITHIN_S)
        first, began = _published(connection), time.perf_counter()
        until(lambda: _published(connection) >= EVENTS, WITHIN_S)
        return (EVENTS - first) / (time.perf_counter() - began)


async def _command_steadily(server: EmbeddedPostgres, master: MasterKey, ledger_id: int, key_id: Any) -> float:
    """Send commands at a steady rate; return when the first was sent, in seconds of 1970."""
    async with runtime(server.dsn(API), API, master) as opened:
        present(opened.database, ledger_id, key_id)
        load = Load(opened.handler, ledger_id, key_id)
        await load.prepare()
        since_1970, began = time.time(), time.perf_counter()
        tasks = []
        for number in range(int(LATENCY_S * COMMANDS_PER_SECOND)):
            await asyncio.sleep(max(0.0, began + number / COMMANDS_PER_SECOND - time.perf_counter()))
            tasks.append(asyncio.create_task(load.command()))
        await asyncio.gather(*tasks)
    return since_1970


def _latencies(server: EmbeddedPostgres, master: MasterKey, bootstrap: str, ledger_id: int, key_id: Any) -> list[float]:
    """Return milliseconds from each event's recording, just before its commit, to its arrival at a consumer."""
    with events(bootstrap, PREFIX) as topic:
        topic.until(EVENTS, WITHIN_S)
        arrived: list[tuple[float, Any]] = []
        stopping = False

        def consume() -> None:
            while not stopping:
                arrived.extend((time.time(), record) for record in topic.poll())

        consumer = Thread(target=consume, daemon=True)
        consumer.start()
        began = uvloop.run(_command_steadily(server, master, ledger_id, key_id))
        until(lambda: len(topic.received) >= _head(server), WITHIN_S)
        stopping = True
        consumer.join(5)
    return [
        (at - recorded) * 1000
        for at, record in arrived
        if (recorded := datetime.fromisoformat(record.headers["ce_recordedtime"]).timestamp()) >= began
    ]


def _head(server: EmbeddedPostgres) -> int:
    with psycopg.connect(server.dsn()) as connection:
        row = connection.execute("SELECT max(position) FROM events").fetchone()
        return int(row[0]) if row else 0


def run() -> dict[str, Any]:
    """Measure catching up, then the way from a commit to a consumer."""
    tune_garbage_collector()
    key_bytes = fresh_key()
    master = master_key(key_bytes)
    with tempfile.TemporaryDirectory(prefix="sl-bench-kafka-") as directory, postgres() as server:
        kafka = broker.start(Path(directory), lasting=True)
        try:
            asyncio.run(create_ledger(server.dsn(), master, "bench"))
            key, _ = asyncio.run(create_key(server.dsn(), master, "bench", "operator", None))
            fill(server, key.ledger_id, EVENTS)
            with _worker(server, key_bytes, kafka.plain):
                rate = _catch_up(server)
                latencies = _latencies(server, master, kafka.plain, key.ledger_id, key.key_id)
        finally:
            broker.stop(kafka)
    quantiles = statistics.quantiles(latencies, n=100)
    return {
        "events_per_second": rate,
        "events": EVENTS,
        "commit_to_consumer": {
            "commands_per_second": COMMANDS_PER_SECOND,
            "received": len(latencies),
            "p50_ms": quantiles[49],
            "p99_ms": quantiles[98],
        },
        "settings": SETTINGS,
        "kafka": broker.version(),
    }
