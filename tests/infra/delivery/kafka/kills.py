"""A publisher that is killed again and again while a load is put on, and what its subscribers then have."""

from __future__ import annotations

import base64
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import orjson
import psycopg
from kafka import KafkaConsumer, TopicPartition  # type: ignore[import-untyped]

from domain.code import Code, replay_code
from infra.delivery.kafka.code_state import state_content
from infra.delivery.kafka.topics import PARTITIONS, events_topic
from infra.eventstore.reader import COLUMNS, to_recorded
from infra.postgres.roles import WORKER
from tests.conftest import TestDatabase
from tests.faults.durable import Scene
from tests.infra.delivery.kafka.broker import Broker
from tests.infra.delivery.kafka.publishing import Received, Topic, events, once_and_in_order, states
from tests.infra.programs import ROOT
from tests.keys import ERASURE_KEYS
from tests.waiting import LOOK_EVERY_S, until

MASTER_KEY = base64.b64encode(bytes(range(32))).decode()
BETWEEN_EVENTS = 400
WITHIN_S = 120.0
# So long after its end was sent, a transaction stands open no more.
ENDED_WITHIN_S = 1.0

_HEADS = "SELECT name, max(position) FROM events JOIN ledgers USING (ledger_id) GROUP BY name"


@dataclass(frozen=True)
class Counts:
    """What came of it."""

    kills: int
    events: int
    committed: int
    uncommitted: int
    problems: list[str]


@contextmanager
def publisher(database: TestDatabase, broker: str, prefix: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run `sparkledger work --only kafka` until it is killed or the block ends."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SPARKLEDGER_")} | {
        "SPARKLEDGER_DATABASE_URL": database.dsn(),
        "SPARKLEDGER_WORKER_DATABASE_URL": database.dsn(WORKER),
        "SPARKLEDGER_MASTER_KEY": MASTER_KEY,
        "SPARKLEDGER_ERASURE_KEY_DIR": str(ERASURE_KEYS),
        "SPARKLEDGER_KAFKA_BOOTSTRAP_SERVERS": broker,
        "SPARKLEDGER_KAFKA_LEDGERS": f"*={prefix}",
    }
    command = [sys.executable, "-m", "cli", "work", "--only", "kafka"]
    with subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


class Transactions:
    """Tells whether a transaction stands open in a topic: something was appended there, and is not committed yet."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._topic = topic
        self._consumers = [
            KafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False, isolation_level=level)
            for level in ("read_committed", "read_uncommitted")
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for consumer in self._consumers:
            consumer.close(autocommit=False)

    def until_one_is_cut_off(self, process: subprocess.Popen[bytes]) -> None:
        """Stop the publisher in the midst of one, which lasts for milliseconds; return once it stands still in it."""
        deadline = time.monotonic() + WITHIN_S
        while True:
            while not self._open():
                assert time.monotonic() < deadline, "no transaction was seen"
            process.send_signal(signal.SIGSTOP)
            # Its end may be on its way already: a publisher that is stopped sends it no more.
            until_s = time.monotonic() + ENDED_WITHIN_S
            while self._open():
                if time.monotonic() > until_s:
                    return
            process.send_signal(signal.SIGCONT)

    def _open(self) -> bool:
        partitions = [TopicPartition(self._topic, number) for number in range(PARTITIONS)]
        committed, appended = (consumer.end_offsets(partitions) for consumer in self._consumers)
        return any(committed[partition] < appended[partition] for partition in partitions)


def kill_again_and_again(scene: Scene, kafka: Broker, prefix: str, kills: int) -> Counts:
    """Kill the publisher so often under load, let the last one finish, and look at what a subscriber has.

    Every other time it is killed in the midst of a transaction; in between at any moment after its start, while it
    connects, wins the lease or asks how far the one before it came.
    """
    sql = psycopg.connect(scene.database.dsn(), autocommit=True)
    transactions = Transactions(kafka.plain, events_topic(prefix).name)
    with sql, scene.telling("load"), transactions:
        for number in range(kills):
            with publisher(scene.database, kafka.plain, prefix) as process:
                if number % 2 == 0:
                    reached = _published(sql) + BETWEEN_EVENTS
                    while _published(sql) < reached:
                        assert process.poll() is None, "the publisher ended by itself"
                        time.sleep(LOOK_EVERY_S)
                    transactions.until_one_is_cut_off(process)
                else:
                    time.sleep(random.uniform(0.5, 3))
                process.kill()
                process.wait()
        scene.stop.touch()
        until(lambda: _still(sql), WITHIN_S)
    with psycopg.connect(scene.database.dsn(), autocommit=True) as sql:
        with publisher(scene.database, kafka.plain, prefix):
            until(lambda: _waiting(sql) == 0, WITHIN_S)
        return _look(sql, kafka, prefix, kills)


def _look(sql: psycopg.Connection[Any], kafka: Broker, prefix: str, kills: int) -> Counts:
    heads = dict(
        sql.execute("SELECT name, max(position) FROM events JOIN ledgers USING (ledger_id) GROUP BY 1").fetchall()
    )
    expected = sum(heads.values())
    with events(kafka.plain, prefix) as topic:
        received = topic.until(expected, WITHIN_S)
        received += topic.poll() + topic.poll()
    problems = []
    for name, head in heads.items():
        of_ledger = [record for record in received if record.headers["ce_source"] == f"/ledgers/{name}"]
        problems += [f"{name}: {problem}" for problem in once_and_in_order(of_ledger, range(1, head + 1))]
    with states(kafka.plain, prefix) as topic:
        problems += _wrong_states(sql, topic)
    uncommitted = _appended(kafka.plain, events_topic(prefix).name)
    return Counts(kills, expected, len(received), uncommitted - len(received), problems)


def _wrong_states(sql: psycopg.Connection[Any], topic: Topic) -> list[str]:
    """Return the codes whose last published state is not that of the log."""
    rows = (
        sql.cursor(binary=True)
        .execute(f"SELECT l.name, {COLUMNS} FROM events e JOIN ledgers l USING (ledger_id) ORDER BY stream_id, version")
        .fetchall()
    )
    streams: dict[str, tuple[str, list[Any]]] = {}
    for row in rows:
        recorded = to_recorded(row[1:])
        if isinstance(recorded.event, Code.Event):
            streams.setdefault(str(recorded.stream_id), (row[0], []))[1].append(recorded)
    topic.until(len(streams), WITHIN_S)
    while topic.poll():
        pass
    last: dict[str, Received] = {record.key: record for record in topic.received}
    return [
        f"{code_id} has another state than was published"
        for code_id, (name, stream) in streams.items()
        if orjson.loads(orjson.dumps(state_content(replay_code(stream), name, stream[-1]), option=orjson.OPT_UTC_Z))
        != last[code_id].value
    ]


def _appended(bootstrap: str, topic: str) -> int:
    """Count every record that was ever appended, those of aborted transactions too."""
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, group_id=None, enable_auto_commit=False)
    partitions = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic)]
    consumer.assign(partitions)
    consumer.seek_to_beginning(*partitions)
    ends = consumer.end_offsets(partitions)
    count = 0
    while any(consumer.position(partition) < ends[partition] for partition in partitions):
        count += sum(len(records) for records in consumer.poll(timeout_ms=200).values())
    consumer.close(autocommit=False)
    return count


def _published(sql: psycopg.Connection[Any]) -> int:
    row = sql.execute("SELECT coalesce(sum(position), 0) FROM publications").fetchone()
    return int(row[0]) if row else 0


def _waiting(sql: psycopg.Connection[Any]) -> int:
    row = sql.execute("SELECT sum(waiting) FROM publication_lag()").fetchone()
    return int(row[0]) if row else 0


def _head(sql: psycopg.Connection[Any]) -> int:
    row = sql.execute("SELECT count(*) FROM events").fetchone()
    return int(row[0]) if row else 0


def _still(sql: psycopg.Connection[Any]) -> bool:
    before = _head(sql)
    time.sleep(0.5)
    return _head(sql) == before
