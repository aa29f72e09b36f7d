"""What tests share: a real PostgreSQL for each worker of the test run, and a fresh migrated database for each test."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import sql

from infra.postgres.embedded.server import EmbeddedPostgres
from infra.postgres.migrate import migrate

if TYPE_CHECKING:
    from tests.serving import LiveServer, Server, Serving

TEMPLATE = "template_migrated"


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
    directory = Path(tempfile.mkdtemp(prefix="sl-"))
    directory.chmod(0o755)
    server = EmbeddedPostgres(directory, {"fsync": "off", "full_page_writes": "off", "max_connections": "200"})
    with server:
        with psycopg.connect(server.dsn(dbname="postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(TEMPLATE)))
        migrate(server.dsn(dbname=TEMPLATE))
        yield server
    shutil.rmtree(directory)


@contextmanager
def _database(cluster: EmbeddedPostgres) -> Iterator[TestDatabase]:
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(cluster.dsn(dbname="postgres"), autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(TEMPLATE))
        )
        yield TestDatabase(cluster, name)
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def database(cluster: EmbeddedPostgres) -> Iterator[TestDatabase]:
    """A fresh database with every migration applied and nothing in it."""
    with _database(cluster) as fresh:
        yield fresh


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

    directory = Path(tempfile.mkdtemp(prefix="sl-up-"))
    directory.chmod(0o755)
    running = start_live_server(directory / "data")
    try:
        yield running
    finally:
        assert running.stop() == 0, "sparkledger up did not end cleanly"
        shutil.rmtree(directory)
