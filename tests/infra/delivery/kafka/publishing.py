"""A publisher as a test runs it, and a consumer's view of what it published."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self

import orjson
from kafka import KafkaConsumer, TopicPartition  # type: ignore[import-untyped]

from infra.delivery.kafka.connection import client_options
from infra.delivery.kafka.publication_status import destinations
from infra.delivery.kafka.publisher import Publisher
from infra.delivery.kafka.topics import events_topic, progress_topic, state_topic
from infra.postgres.roles import WORKER
from infra.settings import load_settings
from tests.conftest import TestDatabase
from tests.waiting import LOOK_EVERY_S

WITHIN_S = 30.0


@dataclass(frozen=True)
class Received:
    """One record, as a consumer of what is committed sees it."""

    topic: str
    partition: int
    offset: int
    key: str
    headers: Mapping[str, str]
    value: Any

    @property
    def position(self) -> int:
        """The position in the ledger."""
        return int(self.headers["ce_sequence"])


def options(bootstrap: str, **settings: str) -> dict[str, Any]:
    """Return how clients reach a broker, as the program's own settings have it."""
    environ = {"SPARKLEDGER_KAFKA_BOOTSTRAP_SERVERS": bootstrap}
    environ |= {f"SPARKLEDGER_KAFKA_{name.upper()}": value for name, value in settings.items()}
    return client_options(load_settings(environ))


@contextmanager
def publishing(
    database: TestDatabase,
    bootstrap: str,
    prefix: str,
    ledgers: str = "*",
    compression: str | None = None,
    **settings: str,
) -> Iterator[Publisher]:
    """Publish a database's ledgers for as long as the block takes."""
    (destination,) = destinations([f"{name}={prefix}" for name in ledgers.split(",")])
    publisher = Publisher(database.dsn(WORKER), destination, options(bootstrap, **settings), compression=compression)
    publisher.start()
    try:
        yield publisher
    finally:
        publisher.stop(10)


class Topic:
    """A topic as a consumer of what is committed reads it, from its beginning."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._consumer = KafkaConsumer(
            bootstrap_servers=bootstrap,
            group_id=None,
            enable_auto_commit=False,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            allow_auto_create_topics=False,
            max_poll_records=5000,
            reconnect_backoff_max_ms=500,
        )
        self._topic = topic
        self.received: list[Received] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(Exception):
            self._consumer.close(autocommit=False)

    def poll(self) -> list[Received]:
        """Return what has come since; nothing where the topic is not there yet."""
        if not self._consumer.assignment():
            numbers = self._consumer.partitions_for_topic(self._topic) or ()
            if not numbers:
                time.sleep(LOOK_EVERY_S)
                return []
            partitions = [TopicPartition(self._topic, number) for number in sorted(numbers)]
            self._consumer.assign(partitions)
            self._consumer.seek_to_beginning(*partitions)
        polled = self._consumer.poll(timeout_ms=100)
        new = [
            Received(
                record.topic,
                record.partition,
                record.offset,
                record.key.decode(),
                {name: value.decode() for name, value in record.headers},
                None if record.value is None else orjson.loads(record.value),
            )
            for records in polled.values()
            for record in records
        ]
        self.received += new
        return new

    def until(self, count: int, within_s: float = WITHIN_S) -> list[Received]:
        """Return what there is once there are so many; fail where they do not come."""
        deadline = time.monotonic() + within_s
        while len(self.received) < count:
            self.poll()
            assert time.monotonic() < deadline, f"{len(self.received)} of {count} records came within {within_s:.0f} s"
        return self.received


def events(bootstrap: str, prefix: str) -> Topic:
    """Return the topic of every event."""
    return Topic(bootstrap, events_topic(prefix).name)


def states(bootstrap: str, prefix: str) -> Topic:
    """Return the topic of the codes' states."""
    return Topic(bootstrap, state_topic(prefix).name)


def progress(bootstrap: str, prefix: str) -> Topic:
    """Return the topic of how far ledgers are published."""
    return Topic(bootstrap, progress_topic(prefix).name)


def once_and_in_order(received: Sequence[Received], expected: Sequence[int]) -> list[str]:
    """Return what is wrong with one ledger's records: missing, twice, out of a key's order, with a gap in a key."""
    problems = []
    positions = [record.position for record in received]
    if sorted(positions) != list(expected):
        twice = sorted({position for position in positions if positions.count(position) > 1})[:10]
        missing = sorted(set(expected) - set(positions))[:10]
        problems.append(f"{len(positions)} records for {len(expected)} events; twice: {twice}; missing: {missing}")
    by_key: dict[str, list[Received]] = {}
    for record in received:
        by_key.setdefault(record.key, []).append(record)
    for key, records in by_key.items():
        in_partition = sorted(records, key=lambda record: record.offset)
        if len({record.partition for record in records}) != 1:
            problems.append(f"{key} is spread over partitions")
        if [int(record.headers["ce_streamversion"]) for record in in_partition] != list(range(1, len(records) + 1)):
            problems.append(f"{key} is out of order")
    return problems
