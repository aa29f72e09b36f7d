"""What the database itself forbids: changing the log, and seeing another's ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from infra.database import Database, LedgerConnection
from infra.feed import Feed
from infra.runtime import API, WORKER
from infra.worker import connect
from projections import VIEWS
from projections.folding import Folding
from tests import given
from tests.conftest import TestDatabase
from tests.infra.opened import Opened, Tenant

CHANGES = {
    "insert": "INSERT INTO {table} SELECT * FROM {table}",
    "update": "UPDATE {table} SET ledger_id = ledger_id",
    "delete": "DELETE FROM {table}",
    "truncate": "TRUNCATE {table} CASCADE",
}


@pytest.fixture
async def tenant(opened: Opened) -> Tenant:
    """A ledger with something in every table that an append writes."""
    tenant = await opened.begin()
    await opened.when(tenant, given.permission(), "key-1")
    await opened.when(tenant, given.generate(), "key-2")
    return tenant


@pytest.fixture
def session(opened: Opened, tenant: Tenant, request: pytest.FixtureRequest) -> Iterator[psycopg.Connection]:
    """A session of the role that a test is for, bound to its ledger."""
    with psycopg.connect(opened.database.dsn(request.param), autocommit=True) as connection:
        connection.execute("SELECT set_config('sparkledger.ledger', %s, false)", (str(tenant.ledger_id),))
        yield connection


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("session", [API, WORKER], indirect=True)
def test_no_role_of_the_program_can_change_the_log(session: psycopg.Connection, change: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        session.execute(sql.SQL(CHANGES[change]).format(table=sql.Identifier("events")))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("table", "change"),
    [
        *[("claims", change) for change in CHANGES],
        *[("commands", change) for change in CHANGES],
        *[("ledgers", change) for change in CHANGES],
        *[("creator_keys", change) for change in ("update", "delete", "truncate")],
        *[("api_keys", change) for change in ("delete", "truncate")],
    ],
)
@pytest.mark.parametrize("session", [API], indirect=True)
def test_the_api_cannot_change_what_only_an_append_may(session: psycopg.Connection, table: str, change: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        session.execute(sql.SQL(CHANGES[change]).format(table=sql.Identifier(table)))  # type: ignore[arg-type]


@pytest.mark.parametrize("change", ["update", "delete", "truncate"])
@pytest.mark.parametrize("session", ["postgres"], indirect=True)
def test_not_even_a_superuser_changes_the_log_by_the_way(session: psycopg.Connection, change: str) -> None:
    with pytest.raises(psycopg.errors.RaiseException, match="events are append-only"):
        session.execute(sql.SQL(CHANGES[change]).format(table=sql.Identifier("events")))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "way_around",
    [
        "ALTER TABLE events DISABLE TRIGGER ALL",
        "SET session_replication_role = replica",
        "SET row_security = off; SELECT * FROM events",
        "SET ROLE postgres",
        "SET ROLE sparkledger_worker",
        "SET ROLE sparkledger_log",
        "ALTER TABLE events DISABLE ROW LEVEL SECURITY",
        "DROP POLICY one_ledger ON events",
        "CREATE TABLE public.mine (x int)",
        "CREATE OR REPLACE FUNCTION append() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "SELECT pg_read_file('PG_VERSION')",
    ],
)
@pytest.mark.parametrize("session", [API], indirect=True)
def test_the_api_has_no_way_around(session: psycopg.Connection, way_around: str) -> None:
    with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.InvalidParameterValue)):
        session.execute(way_around)  # type: ignore[call-overload]


async def test_the_appends_own_role_cannot_log_in(opened: Opened) -> None:
    with pytest.raises(psycopg.OperationalError, match="not permitted to log in"):
        await psycopg.AsyncConnection.connect(opened.database.dsn("sparkledger_log"))


# ── row-level security, for every table there is ──

TABLES_WITH_A_LEDGER = """
    SELECT c.oid::regclass::text, c.relrowsecurity AND c.relforcerowsecurity, has_table_privilege('sparkledger_api', c.oid, 'SELECT')
    FROM pg_class c
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'ledger_id' AND NOT a.attisdropped
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
    ORDER BY 1
"""


@pytest.fixture
async def two(opened: Opened) -> tuple[Tenant, Tenant]:
    """Two ledgers with the same story, taken in by every view."""
    tenants = (await opened.begin("one"), await opened.begin("two"))
    for tenant in tenants:
        for command in (given.permission(), given.generate(), given.share(), given.redeem()):
            await opened.when(tenant, command, f"key-{id(command)}")
        await opened.ledgers.refusals.count(tenant.ledger_id, tenant.actor, "code_unknown")
    await take_in(opened.database)
    return tenants


async def take_in(database: TestDatabase) -> None:
    worker = Database(database.dsn(WORKER), WORKER)
    await worker.open()
    async with await connect(database.dsn(WORKER)) as connection:
        for view in VIEWS:
            folding = Folding(view, connection)
            await folding.prepare()
            await folding.create(indexes=True)
            await folding.find()
            await folding.take_in_all(Feed(worker), page_events=100)
    await worker.close()


async def test_every_table_with_a_ledger_forces_row_level_security(opened: Opened, two: tuple[Tenant, Tenant]) -> None:
    tables = opened.sql(TABLES_WITH_A_LEDGER)
    assert len(tables) >= 8 + len(VIEWS)
    assert [table for table, forced, _ in tables if not forced] == []


async def test_without_a_ledger_no_table_shows_a_row(opened: Opened, two: tuple[Tenant, Tenant]) -> None:
    with psycopg.connect(opened.database.dsn(API), autocommit=True) as session:
        never_bound = counts(opened, session)
        session.execute("SELECT set_config('sparkledger.ledger', '', false)")
        assert counts(opened, session) == never_bound == dict.fromkeys(never_bound, 0)


async def test_bound_to_a_ledger_every_table_shows_its_rows_and_no_others(
    opened: Opened, two: tuple[Tenant, Tenant]
) -> None:
    one = two[0]
    with psycopg.connect(opened.database.dsn(API), autocommit=True) as session:
        session.execute("SELECT set_config('sparkledger.ledger', %s, false)", (str(one.ledger_id),))
        shown = counts(opened, session)
        own = {table: count(opened, table, f"WHERE ledger_id = {one.ledger_id}") for table in shown}
    assert shown == own
    # Otherwise the test would say nothing about the table.
    assert [table for table in shown if not own[table]] == []
    assert [table for table in shown if own[table] == count(opened, table)] == []


def counts(opened: Opened, session: psycopg.Connection) -> dict[str, int]:
    """Count what a session sees of each table that it may read at all."""
    found = {}
    for table, _, readable in opened.sql(TABLES_WITH_A_LEDGER):
        if readable:
            row = session.execute(f"SELECT count(*) FROM {table}").fetchone()  # type: ignore[call-overload]
            found[table] = row[0]
    return found


def count(opened: Opened, table: str, where: str = "") -> int:
    return int(opened.sql(f"SELECT count(*) FROM {table} {where}")[0][0])


async def test_a_read_of_another_ledger_finds_nothing(opened: Opened, two: tuple[Tenant, Tenant]) -> None:
    """Even if a query named the wrong ledger: the session is bound to its own."""
    async with opened.api.database.connection(two[0].ledger_id) as connection:
        cursor = await connection.execute("SELECT count(*) FROM events WHERE ledger_id = %s", (two[1].ledger_id,))
        assert await cursor.fetchone() == (0,)


async def test_a_session_whose_binding_was_cancelled_is_bound_anew(
    opened: Opened, two: tuple[Tenant, Tenant], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server may have carried out what the caller no longer waited for."""
    dsn = opened.database.dsn(API)
    async with await LedgerConnection.connect(dsn, autocommit=True) as connection:
        await connection.bind(two[0].ledger_id)
        with monkeypatch.context() as patch:
            patch.setattr(LedgerConnection, "execute", carried_out_and_cancelled)
            with pytest.raises(asyncio.CancelledError):
                await connection.bind(two[1].ledger_id)
        await connection.bind(two[0].ledger_id)
        cursor = await connection.execute("SELECT DISTINCT ledger_id FROM events")
        assert await cursor.fetchall() == [(two[0].ledger_id,)]


async def carried_out_and_cancelled(connection: LedgerConnection, query: str, parameters: tuple[str]) -> None:
    await psycopg.AsyncConnection.execute(connection, query, parameters)  # type: ignore[arg-type]
    raise asyncio.CancelledError
