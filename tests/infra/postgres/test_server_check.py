"""A server or pooler that would lose or mix up what is recorded is refused, with one line that says what to do."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from infra.crypto.envelope import fresh_key
from infra.errors import Unavailable
from infra.postgres import pool, server_check
from infra.postgres.embedded.cluster import Cluster
from infra.postgres.embedded.server import EmbeddedPostgres
from infra.postgres.migrate import migrate
from infra.postgres.pool import Database, LedgerConnection
from infra.postgres.roles import API, WORKER
from infra.postgres.server_check import MAY_LOSE_DATA, UnsuitableServer, require_suitable_server
from tests import given
from tests.conftest import TestDatabase
from tests.infra.opened import Opened
from tests.infra.poolers import pgbouncer
from tests.infra.programs import ROOT
from tests.keys import ERASURE_KEYS
from tests.places import directory

pytestmark = pytest.mark.long("servers with other settings start, and poolers")

# Fewer than those after which the client prepares a statement, which a pooler loses, too.
ROUNDS: Final = 3


def refusal(conninfo: str, role: str = API) -> str:
    with pytest.raises(UnsuitableServer) as refused:
        require_suitable_server(conninfo, role)
    return str(refused.value)


@pytest.mark.parametrize("mode", ["session", "transaction"])
@pytest.mark.parametrize("ignored", ["options", "extra_float_digits"])
def test_a_pooler_is_refused(database: TestDatabase, mode: Any, ignored: str) -> None:
    with pgbouncer(database, mode, ignored=ignored) as through:
        assert refusal(through) == pool.POOLED


def test_a_process_does_not_start_behind_a_pooler(database: TestDatabase) -> None:
    with pgbouncer(database, "transaction") as through:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SPARKLEDGER_")},
            "SPARKLEDGER_DATABASE_URL": through,
            "SPARKLEDGER_MASTER_KEY": base64.b64encode(fresh_key()).decode(),
            "SPARKLEDGER_ERASURE_KEY_DIR": str(ERASURE_KEYS),
            "SPARKLEDGER_PORT": "0",
        }
        ended = subprocess.run(
            [sys.executable, "-m", "cli", "serve"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == f"sparkledger: {pool.POOLED}\n"


async def reads_of_two_ledgers(opened: Opened, through: str) -> set[tuple[int, tuple[int, ...]]]:
    """Read in turns in the pools of two processes, each bound to its own ledger; return whose events each saw."""
    databases = []
    for name in ("one", "two"):
        tenant = await opened.begin(name)
        await opened.when(tenant, given.permission())
        reading = Database(through, API, size=1)
        reading.tokens = opened.api.database.tokens
        await reading.open()
        databases.append((tenant.ledger_id, reading))

    async def look(connection: LedgerConnection) -> tuple[int, ...]:
        cursor = await connection.execute("SELECT DISTINCT ledger_id FROM events ORDER BY 1")
        return tuple(row[0] for row in await cursor.fetchall())

    try:
        return {(own, await reading.read(own, look)) for _ in range(ROUNDS) for own, reading in databases}
    finally:
        await asyncio.gather(*(reading.close() for _, reading in databases))


async def test_reads_behind_a_pooler_are_refused_though_nobody_looked_at_the_start(
    opened: Opened, database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "POOL_WAIT_S", 1.0)
    with pgbouncer(database, "transaction") as through, pytest.raises(Unavailable):
        await reads_of_two_ledgers(opened, through)


async def test_if_they_were_not_a_reader_would_see_the_events_of_another_ledger(
    opened: Opened, database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_is_own", lambda *_: True)
    with pgbouncer(database, "transaction") as through:
        seen = await reads_of_two_ledgers(opened, through)
    assert any(saw != (own,) for own, saw in seen)


async def test_an_ordinary_read_is_one_statement(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    tenant = await opened.begin()
    await opened.when(tenant, given.permission())
    await opened.events.head(tenant.ledger_id)
    statements: list[Any] = []
    execute = psycopg.AsyncCursor.execute
    loop = asyncio.get_running_loop()

    async def counted(self: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
        # The server that other tests share may read in this process, too.
        if asyncio.get_running_loop() is loop:
            statements.append(query)
        return await execute(self, query, *args, **kwargs)

    monkeypatch.setattr(psycopg.AsyncCursor, "execute", counted)
    for _ in range(10):
        await opened.events.head(tenant.ledger_id)
    assert len(statements) == 10


def test_a_server_that_drops_the_settings_of_a_session_is_refused(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_check, "session", lambda conninfo, _: {"conninfo": conninfo, "autocommit": True})
    refused = refusal(database.dsn(API))
    assert "ignores the settings of our sessions: statement_timeout is 0, lock_timeout is 0" in refused
    assert "Connect to PostgreSQL itself" in refused


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """The data of a server that is migrated and stopped."""
    made = directory("refused")
    with EmbeddedPostgres(made) as server:
        migrate(server.dsn())
    yield made
    shutil.rmtree(made)


@pytest.mark.parametrize("forgets", ["fsync", "full_page_writes", "synchronous_commit"])
def test_a_server_that_forgets_what_it_acknowledged_is_refused(place: Path, forgets: str) -> None:
    with EmbeddedPostgres(place, {forgets: "off"}) as server:
        assert refusal(server.dsn(API)) == (
            f"PostgreSQL runs with {forgets} = off, so it can lose commands that were acknowledged. "
            f"Set {forgets} = on, for the server and for our logins."
        )


def test_a_server_for_tests_may_say_that_its_data_can_be_lost(place: Path) -> None:
    with EmbeddedPostgres(place, {"fsync": "off", MAY_LOSE_DATA: "on"}) as server:
        require_suitable_server(server.dsn(API), API)


def test_a_login_that_does_not_wait_for_standbys_is_refused(place: Path) -> None:
    with EmbeddedPostgres(place) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("ALTER ROLE sparkledger_worker SET synchronous_commit = local")
        assert "synchronous_commit = local" in refusal(server.dsn(WORKER), WORKER)
        require_suitable_server(server.dsn(API), API)


def test_a_standby_is_refused_unless_the_url_names_others(place: Path) -> None:
    signal = Cluster(place).directory / "standby.signal"
    signal.touch()
    try:
        with EmbeddedPostgres(place) as server:
            assert refusal(server.dsn(API)).startswith("The database is a standby, which takes no writes.")
            host = conninfo_to_dict(server.dsn())["host"]
            require_suitable_server(make_conninfo(server.dsn(API), host=f"{host},/nowhere"), API)
    finally:
        signal.unlink()


def test_a_server_that_is_away_may_come_back() -> None:
    require_suitable_server("host=/nowhere dbname=nothing", API)
