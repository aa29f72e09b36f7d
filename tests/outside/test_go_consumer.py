"""The consumer in Go that users copy: each event once into one's own database, and what goes wrong is said.

It is built as its users build it, with modules from the Go module proxy.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest

from infra.delivery.kafka.connection import partition_of
from infra.delivery.kafka.topics import PARTITIONS, events_topic
from tests import given
from tests.conftest import TestDatabase
from tests.infra.delivery.kafka.broker import Broker
from tests.infra.delivery.kafka.fixtures import kafka, prefix
from tests.infra.delivery.kafka.publishing import publishing
from tests.infra.delivery.kafka.test_consumer import sender
from tests.infra.opened import Opened, opening
from tests.places import directory
from tests.serving import REPOSITORY
from tests.waiting import until

__all__ = ["kafka", "prefix"]

# As in tests/infra/delivery/kafka: a client that was given up leaves its sockets to the collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

WITHIN_S: Final = 90.0
BUILD_S: Final = 600
SOURCES: Final = REPOSITORY / "docs" / "consumer" / "go"


@pytest.fixture(scope="module")
def built() -> Iterator[Path]:
    """A folder with the example and the service of these tests, built and vetted."""
    if shutil.which("go") is None:
        pytest.fail("the consumer in Go needs Go: https://go.dev/dl")
    place = directory("go-consumer")
    shutil.copytree(SOURCES, place, dirs_exist_ok=True)
    (place / "service").mkdir()
    shutil.copy(Path(__file__).parent / "go_service.go", place / "service" / "main.go")
    for command in (["go", "vet", "./..."], ["go", "build", "-mod=readonly", "-o", "bin/", "./example", "./service"]):
        subprocess.run(command, cwd=place, check=True, timeout=BUILD_S)
    yield place / "bin"
    shutil.rmtree(place)


class Service:
    """A service that runs as a process, and its database."""

    def __init__(self, program: Path, dsn: str, kafka: Broker, prefix: str) -> None:
        self.dsn = dsn
        self._program = program
        self._environment = {
            **os.environ,
            "KAFKA": kafka.plain,
            # pgx would send libpq's `hostaddr` on to the server.
            "DATABASE_URL": dsn.replace("hostaddr=''", ""),
            "TOPIC": events_topic(prefix).name,
        }

    @contextmanager
    def running(self, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
        with subprocess.Popen(
            [self._program, *arguments],
            env={**self._environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def run(self, *arguments: str) -> str:
        """Run a command of the service to its end; return what it printed."""
        with self.running(*arguments) as process:
            printed, errors = process.communicate(timeout=WITHIN_S)
        assert process.returncode == 0, errors
        return printed

    def sql(self, table: str, columns: str, order: str) -> list[Any]:
        with psycopg.connect(self.dsn) as connection:
            if connection.execute("SELECT to_regclass(%s)", (table,)).fetchone() == (None,):
                return []
            return connection.execute(f"SELECT {columns} FROM {table} ORDER BY {order}").fetchall()

    def handled(self) -> list[int]:
        return [sequence for (sequence,) in self.sql("handled", "sequence", "sequence")]


@pytest.fixture
def service(built: Path, database: TestDatabase, kafka: Broker, prefix: str) -> Service:
    with psycopg.connect(database.dsn()) as connection:
        connection.execute("CREATE TABLE handled (n serial, subject text, sequence bigint)")
    return Service(built / "service", database.dsn(), kafka, prefix)


@pytest.fixture
def send(kafka: Broker, prefix: str) -> Iterator[Any]:
    with sender(kafka, prefix, b'{"body": {}}') as sending:
        yield sending


def elsewhere(subject: str) -> list[str]:
    """Return codes that are in other partitions than this one."""
    ours = partition_of(subject.encode(), PARTITIONS)
    names = (f"codes/{number}" for number in range(2, 40))
    return [name for name in names if partition_of(name.encode(), PARTITIONS) != ours]


# After each kill, Kafka waits until the session of the killed process has ended.
async def test_the_example_ends_with_the_same_table_however_often_it_is_killed(
    built: Path, kafka: Broker, database: TestDatabase, prefix: str
) -> None:
    async with opening(database) as opened:
        await kill_the_example(built, kafka, opened, prefix)


async def kill_the_example(built: Path, kafka: Broker, opened: Opened, prefix: str) -> None:
    tenant = await opened.begin()
    await opened.when(tenant, given.permission())
    opened.sql("CREATE SCHEMA ads")
    service = Service(built / "example", f"{opened.database.dsn()} options='-c search_path=ads'", kafka, prefix)

    def allowed() -> list[Any]:
        return service.sql("ads.allowed", "video_id, advertiser_id, until", "1, 2")

    def at_least(number: int) -> bool:
        return len(allowed()) >= number

    with publishing(opened.database, kafka.plain, prefix) as publisher:
        await opened.when(tenant, given.generate())
        accounts = [f"advertiser-{number:02}" for number in range(12)]
        for number, account in enumerate(accounts, 1):
            await opened.when(tenant, given.redeem(advertiser_id=account))
            publisher.wake()
            if number % 6 == 0:
                with service.running():
                    until(partial(at_least, number - random.randrange(6)), WITHIN_S)
        done = await opened.when(tenant, given.extend(days=60))
        publisher.wake()
        assert done.aggregate is not None
        end = done.aggregate.window.expires_at
        with service.running() as process:
            until(lambda: allowed() == [("video-1", account, end) for account in accounts], WITHIN_S)
            await opened.when(tenant, given.revoke())
            publisher.wake()
            until(lambda: allowed() == [], WITHIN_S)
            process.terminate()
            _, errors = process.communicate(timeout=20)
            assert process.returncode == 0, errors


def test_each_event_is_handled_once_also_when_it_comes_twice(service: Service, send: Any) -> None:
    send(1, 1)
    send(2, 2)
    send(2, 2)
    send(3, 1, "codes/2")
    with service.running():
        until(lambda: service.handled() == [1, 2, 3], WITHIN_S)
        send(4, 3)
        until(lambda: service.handled() == [1, 2, 3, 4], WITHIN_S)
    with service.running():
        send(5, 4)
        until(lambda: service.handled() == [1, 2, 3, 4, 5], WITHIN_S)


def test_two_processes_share_the_partitions_and_go_on_when_one_is_killed(service: Service, send: Any) -> None:
    codes = ["codes/1", *elsewhere("codes/1")]
    with service.running():
        with service.running():
            for sequence, code in enumerate(codes, 1):
                send(sequence, 1, code)
            until(lambda: service.handled() == list(range(1, len(codes) + 1)), WITHIN_S)
        for sequence, code in enumerate(codes, len(codes) + 1):
            send(sequence, 2, code)
        until(lambda: service.handled() == list(range(1, 2 * len(codes) + 1)), WITHIN_S)


def test_it_waits_for_a_topic_that_is_not_there_yet(service: Service, kafka: Broker, prefix: str) -> None:
    with service.running():
        until(lambda: tables_exist(service), WITHIN_S)
        with sender(kafka, prefix, b'{"body": {}}') as sending:
            sending(1, 1)
            until(lambda: service.handled() == [1], WITHIN_S)


def tables_exist(service: Service) -> bool:
    with psycopg.connect(service.dsn) as connection:
        return connection.execute("SELECT to_regclass('sparkledger_dead_letters')").fetchone() != (None,)


def test_an_event_that_fails_holds_up_its_own_partition_alone_and_is_a_dead_letter_until_it_is_redelivered(
    service: Service, send: Any
) -> None:
    others = elsewhere("codes/1")
    send(1, 1)
    send(2, 2)
    for sequence, name in enumerate(others, 3):
        send(sequence, 1, name)
    rest = list(range(2, 3 + len(others)))
    with service.running(FAIL="1"):
        until(lambda: service.handled() == rest, WITHIN_S)
    assert service.sql("sparkledger_dead_letters", "source, id, reason", "at") == [
        ("/ledgers/main", "id-1", "no such advertiser")
    ]
    # Its own partition waited for it, and the others did not.
    order = [sequence for (sequence,) in service.sql("handled", "sequence", "n")]
    assert order.index(2) > 0

    assert service.run("redeliver") == "1\n"
    assert service.handled() == [1, *rest]
    assert service.run("redeliver") == "0\n"


def test_a_record_that_is_no_event_is_a_dead_letter_by_its_place(
    service: Service, kafka: Broker, prefix: str, send: Any
) -> None:
    with sender(kafka, prefix, b"[]") as foreign:
        foreign(1, 1)
    send(2, 1)
    with service.running():
        until(lambda: service.handled() == [2], WITHIN_S)
    place = f"{partition_of(b'codes/1', PARTITIONS)}/0"
    assert service.sql("sparkledger_dead_letters", "id, reason", "at") == [(place, "its value is not a JSON object")]
    assert service.run("redeliver") == "0\n"


def test_what_the_database_cannot_hold_is_a_dead_letter_too(service: Service, send: Any) -> None:
    send(1, 1, "codes/1", "\0")
    send(2, 1, "codes/2")
    with service.running():
        until(lambda: service.handled() == [2], WITHIN_S)
        until(lambda: len(service.sql("sparkledger_dead_letters", "id", "at")) == 1, WITHIN_S)


def test_a_database_that_ends_its_connections_costs_no_event_an_attempt(service: Service, send: Any) -> None:
    send(1, 1)
    with service.running() as process:
        until(lambda: service.handled() == [1], WITHIN_S)
        for sequence in range(2, 8):
            with psycopg.connect(service.dsn) as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            send(sequence, sequence)
            until(lambda sequence=sequence: service.handled()[-1:] == [sequence], WITHIN_S)  # type: ignore[misc] # mypy infers no lambda with a default
        assert process.poll() is None
    assert service.handled() == list(range(1, 8))
    assert service.sql("sparkledger_dead_letters", "id", "at") == []


FORKED: Final = (
    "the ledger was restored to an earlier state: "
    "version 1 of {} of /ledgers/main, or position 1, was done as id-1 and is another now"
)


@pytest.mark.parametrize(
    ("sequence", "version", "subject", "event_id", "said"),
    [
        (3, 3, "codes/1", "", "events are missing: codes/1 of /ledgers/main goes from version 1 to 3"),
        (1, 1, "codes/1", "another", FORKED.format("codes/1")),
        (1, 1, "codes/2", "another", FORKED.format("codes/2")),
    ],
    ids=["a version is missing", "another event of the code", "another event at the position"],
)
def test_what_is_missing_or_forked_ends_it(
    service: Service, send: Any, sequence: int, version: int, subject: str, event_id: str, said: str
) -> None:
    send(1, 1)
    with service.running() as process:
        until(lambda: service.handled() == [1], WITHIN_S)
        send(sequence, version, subject, event_id)
        _, errors = process.communicate(timeout=WITHIN_S)
    assert process.returncode == 1
    assert said in errors
    assert service.handled() == [1]


def test_another_history_ends_it_until_somebody_accepts_it(service: Service, send: Any) -> None:
    send(1, 1, history="first")
    with service.running() as process:
        until(lambda: service.handled() == [1], WITHIN_S)
        send(2, 2, history="second")
        _, errors = process.communicate(timeout=WITHIN_S)
    assert "/ledgers/main goes on as history second" in errors
    service.run("accept", "/ledgers/main", "second")
    with service.running():
        until(lambda: service.handled() == [1, 2], WITHIN_S)
