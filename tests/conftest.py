"""What tests share: a real PostgreSQL for each worker of the test run, and a fresh migrated database for each test."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import psycopg
import pytest
from psycopg import sql
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped] # it has no types

from infra.postgres.embedded.server import EmbeddedPostgres
from infra.postgres.migrate import migrate
from tests.places import directory

if TYPE_CHECKING:
    from tests.serving import LiveServer, Server, Serving

TEMPLATE = "template_migrated"
# Modules whose tests one process runs, since it makes once what they share: a walk through everything, a Kafka.
TOGETHER = ("tests/test_canary.py", "tests/infra/delivery/kafka/test_outages.py")
LONGEST = "tests/api/http/test_openapi.py::test_schemathesis_finds_nothing"
# Nothing is asked of the disk, and the log stays small, since it may be kept in memory.
FORGETFUL = {"fsync": "off", "full_page_writes": "off", "max_wal_size": "128MB", "max_connections": "200"}


class Scheduling(LoadScopeScheduling):  # type: ignore[misc] # as above
    """Each test goes to the process that is free, but for modules that share what is costly to make.

    xdist's own groups have no effect with this pytest: it no longer heeds what xdist appends to a test's id.
    """

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        return module if module in TOGETHER else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    """Take the place of whatever --dist names."""
    return Scheduling(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Run one process more than there are cores, since tests wait a good part of their time; each has its servers."""
    return min((psutil.cpu_count() or 1) + 1, 5)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest: begun last, it would leave the other processes idle."""
    items.sort(key=lambda item: not item.nodeid.startswith((*TOGETHER, LONGEST)))


@dataclass(frozen=True)
class TestDatabase:
    """One database of the test cluster, gone after the test."""

    __test__ = False
    cluster: EmbeddedPostgres
    name: str

    def dsn(self, user: str = "postgres") -> str:
        """Return how to reach it as a user: postgres, sparkledger_api or sparkledger_worker."""
        return self.cluster.dsn(user, self.name)


@pytest.fixture(scope="session")
def cluster() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL of this test process; it forgets on a crash, which the tests of crashes do not."""
    place = directory("cluster")
    with EmbeddedPostgres(place, FORGETFUL) as server:
        with psycopg.connect(server.dsn(dbname="postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(TEMPLATE)))
        migrate(server.dsn(dbname=TEMPLATE))
        with psycopg.connect(server.dsn(dbname=TEMPLATE), autocommit=True) as connection:
            # What tests below the domain record, as the clock or as an operator.
            connection.execute(
                "INSERT INTO event_types VALUES ('Tested', 1, '{clock,operator}'), ('Marked', 1, '{clock}')"
            )
        yield server
    shutil.rmtree(place)


@contextmanager
def _database(cluster: EmbeddedPostgres) -> Iterator[TestDatabase]:
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(cluster.dsn(dbname="postgres"), autocommit=True) as connection:
        connection.execute(
            # Copied by the file: writing each page to the log, the default, is dearer where nothing is flushed.
            sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(
                sql.Identifier(name), sql.Identifier(TEMPLATE)
            )
        )
        yield TestDatabase(cluster, name)
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def database(cluster: EmbeddedPostgres) -> Iterator[TestDatabase]:
    """A fresh database with every migration applied and nothing in it."""
    with _database(cluster) as fresh:
        yield fresh


@pytest.fixture
def server_path() -> Iterator[Path]:
    """As tmp_path, for what a server keeps: in memory where there is room, and any user may pass through it."""
    place = directory("server")
    yield place
    shutil.rmtree(place)


@pytest.fixture
def anyio_backend() -> str:
    """Async tests run on asyncio, as the server does."""
    return "asyncio"


@pytest.fixture(scope="session")
def serving(cluster: EmbeddedPostgres) -> Iterator[Serving]:
    """One server for this test process; each test gets a ledger of its own on it."""
    from tests.serving import Serving

    with _database(cluster) as database, Serving(database) as running:
        yield running


@pytest.fixture
def server(serving: Serving) -> Server:
    """A running server, and a fresh ledger on it."""
    from tests.serving import new_ledger

    return new_ledger(serving)


@pytest.fixture(scope="session")
def live_server() -> Iterator[LiveServer]:
    """`sparkledger up`, started as a user starts it; shared by the tests of this process."""
    from tests.serving import start_live_server

    place = directory("up")
    running = start_live_server(place / "data")
    try:
        yield running
    finally:
        assert running.stop() == 0, "sparkledger up did not end cleanly"
        shutil.rmtree(place)
