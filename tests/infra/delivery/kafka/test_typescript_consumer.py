"""The consumer in TypeScript that users copy: each event once into one's own database, and what goes wrong is said."""

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
from tests.absent import absent
from tests.conftest import TestDatabase
from tests.infra.delivery.kafka.broker import Broker
from tests.infra.delivery.kafka.publishing import publishing
from tests.infra.delivery.kafka.test_consumer import sender
from tests.infra.opened import Opened
from tests.infra.programs import ROOT
from tests.places import directory
from tests.waiting import until

WITHIN_S: Final = 90.0
SOURCES: Final = ROOT / "docs" / "consumer" / "typescript"
INSTALL: Final = ("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")


@pytest.fixture(scope="module")
def built() -> Iterator[Path]:
    """A folder with the consumer and its services, compiled with every check that the compiler has switched on."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        absent("the consumer in TypeScript needs Node.js 20 and npm: install nodejs and npm")
    place = directory("typescript")
    for source in (*SOURCES.glob("*.ts"), *SOURCES.glob("*.json"), Path(__file__).parent / "failing-service.ts"):
        shutil.copy(source, place)
    installed = subprocess.run(INSTALL, cwd=place, capture_output=True, text=True, check=False)
    if installed.returncode != 0:
        absent(f"the packages of the consumer in TypeScript cannot be installed: {installed.stderr[-300:]}")
    compiled = subprocess.run(["npm", "run", "build"], cwd=place, capture_output=True, text=True, check=False)
    assert compiled.returncode == 0, compiled.stdout
    yield place / "dist"
    shutil.rmtree(place)


class Service:
    """A service that runs as a process, and its database."""

    def __init__(self, built: Path, name: str, url: str, kafka: Broker, prefix: str) -> None:
        self.url = url
        self._command = ["node", str(built / f"{name}.js")]
        self._environment = {
            **os.environ,
            "KAFKA": kafka.plain,
            "DATABASE_URL": url,
            "TOPIC": events_topic(prefix).name,
        }

    @contextmanager
    def running(self, **environment: str) -> Iterator[subprocess.Popen[str]]:
        with subprocess.Popen(
            self._command, env={**self._environment, **environment}, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def sql(self, table: str, columns: str, order: str) -> list[Any]:
        with psycopg.connect(self.url) as connection:
            if connection.execute("SELECT to_regclass(%s)", (table,)).fetchone() == (None,):
                return []
            return connection.execute(f"SELECT {columns} FROM {table} ORDER BY {order}").fetchall()

    def handled(self) -> list[int]:
        return [row[0] for row in self.sql("handled", "sequence", "sequence")]


def url_of(database: TestDatabase, schema: str = "public") -> str:
    """Return how Node.js reaches a database as its owner."""
    with psycopg.connect(database.dsn()) as connection:
        info = connection.info
        host = f"host={info.host}" if info.host.startswith("/") else ""
        address = "localhost" if host else info.host
        user = f"{info.user}:{info.password}" if info.password else info.user
        options = "&".join(filter(None, [host, f"options=-c%20search_path%3D{schema}"]))
        return f"postgresql://{user}@{address}:{info.port}/{info.dbname}?{options}"


@pytest.fixture
def service(built: Path, database: TestDatabase, kafka: Broker, prefix: str) -> Service:
    return Service(built, "failing-service", url_of(database), kafka, prefix)


@pytest.fixture
def send(kafka: Broker, prefix: str) -> Iterator[Any]:
    with sender(kafka, prefix, b'{"body": {}}') as sending:
        yield sending


# After each kill, Kafka waits until the session of the killed process has ended.
@pytest.mark.timeout(300)
async def test_the_example_ends_with_the_same_table_however_often_it_is_killed(
    built: Path, kafka: Broker, opened: Opened, prefix: str
) -> None:
    tenant = await opened.begin()
    await opened.when(tenant, given.permission())
    opened.sql("CREATE SCHEMA ads")
    service = Service(built, "example-service", url_of(opened.database, "ads"), kafka, prefix)

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
                    least = number - random.randrange(6)
                    until(partial(at_least, least), WITHIN_S)
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
            assert process.wait(20) == 0


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


def test_an_event_that_fails_again_and_again_is_a_dead_letter_and_other_partitions_go_on(
    service: Service, send: Any
) -> None:
    ours = partition_of(b"codes/1", PARTITIONS)
    others = [name for name in range(2, 30) if partition_of(b"codes/%d" % name, PARTITIONS) != ours]
    send(1, 1)
    send(2, 2)
    for sequence, name in enumerate(others, 3):
        send(sequence, 1, f"codes/{name}")
    with service.running(FAIL="1"):
        until(lambda: service.handled() == list(range(2, 3 + len(others))), WITHIN_S)
    assert service.sql("sparkledger_dead_letters", "source, id, reason", "at") == [
        ("/ledgers/main", "id-1", "Error: no such advertiser")
    ]
    # Its own partition waited for it, and the others did not.
    (last,) = [n for n, sequence in service.sql("handled", "n, sequence", "n") if sequence == 2]
    assert [sequence for n, sequence in service.sql("handled", "n, sequence", "n") if n < last] != []


def test_a_record_that_is_no_event_is_a_dead_letter_by_its_place(
    service: Service, kafka: Broker, prefix: str, send: Any
) -> None:
    with sender(kafka, prefix, b"[]") as foreign:
        foreign(1, 1)
    send(2, 1)
    with service.running():
        until(lambda: service.handled() == [2], WITHIN_S)
    place = f"{partition_of(b'codes/1', PARTITIONS)}/0"
    assert service.sql("sparkledger_dead_letters", "id, reason", "at") == [
        (place, "TypeError: the value is not an event")
    ]


@pytest.mark.parametrize(
    ("sequence", "version", "event_id", "said"),
    [
        (3, 3, "", "Gap: codes/1 of /ledgers/main goes from version 1 to 3: events in between are missing."),
        (
            1,
            1,
            "another",
            "Forked: Version 1 of codes/1 of /ledgers/main, or position 1, was done as id-1 and is anothe",
        ),
    ],
)
def test_what_is_missing_or_forked_ends_it(
    service: Service, send: Any, sequence: int, version: int, event_id: str, said: str
) -> None:
    send(1, 1)
    with service.running() as process:
        until(lambda: service.handled() == [1], WITHIN_S)
        send(sequence, version, "codes/1", event_id)
        _, errors = process.communicate(timeout=WITHIN_S)
    assert process.returncode == 1
    assert said in errors
    assert service.handled() == [1]
