"""What the database itself forbids: changing the log, and seeing another's ledger."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from infra.auth.access_log import Access
from infra.ids import uuid7
from infra.postgres.pool import Database, LedgerConnection
from infra.postgres.roles import API, WORKER
from projections import VIEWS
from tests import given
from tests.infra.opened import Opened, Tenant
from tests.infra.session_tokens import bound_to

CHANGES = {
    "insert": "INSERT INTO {table} DEFAULT VALUES",
    "update": "UPDATE {table} SET {column} = {column}",
    "delete": "DELETE FROM {table}",
    "truncate": "TRUNCATE {table} CASCADE",
}


def changes(table: str, *kinds: str) -> list[str]:
    column = "name" if table == "ledgers" else "ledger_id"  # a ledger's id is generated, which is refused for itself
    return [CHANGES[kind].format(table=table, column=column) for kind in kinds or CHANGES]


@pytest.fixture
async def tenant(opened: Opened) -> Tenant:
    """A ledger with something in every table that an append writes."""
    tenant = await opened.begin()
    await opened.when(tenant, given.permission(), "key-1")
    await opened.when(tenant, given.generate(), "key-2")
    return tenant


def refusals(opened: Opened, tenant: Tenant, role: str, statements: Iterable[str]) -> dict[str, str]:
    """Try statements one by one in a role, bound to a ledger, and return what each was refused with."""
    refused = {}
    with psycopg.connect(opened.database.dsn(role), autocommit=True) as connection:
        setting = bound_to(opened.database, tenant.ledger_id)
        connection.execute("SELECT set_config('sparkledger.ledger', %s, false)", (setting,))
        for statement in statements:
            try:
                connection.execute(statement)
                refused[statement] = "nothing"
            except psycopg.Error as error:
                refused[statement] = type(error).__name__
    return refused


@pytest.mark.parametrize("role", [API, WORKER])
async def test_no_role_of_the_program_can_change_the_log(opened: Opened, tenant: Tenant, role: str) -> None:
    tried = changes("events")
    assert refusals(opened, tenant, role, tried) == dict.fromkeys(tried, "InsufficientPrivilege")


@pytest.mark.parametrize(
    ("table", "kinds"),
    [
        ("claims", ["insert", "update", "delete", "truncate"]),
        ("commands", ["insert", "update", "delete", "truncate"]),
        ("ledgers", ["insert", "update", "delete", "truncate"]),
        ("creator_keys", ["update", "delete", "truncate"]),
        ("api_keys", ["delete", "truncate"]),
        ("api_key_hashes", ["delete", "truncate"]),
        ("api_key_uses", ["delete", "truncate"]),
    ],
)
async def test_the_api_cannot_change_what_only_an_append_may(
    opened: Opened, tenant: Tenant, table: str, kinds: list[str]
) -> None:
    tried = changes(table, *kinds)
    assert refusals(opened, tenant, API, tried) == dict.fromkeys(tried, "InsufficientPrivilege")


async def test_not_even_a_superuser_changes_the_log_by_the_way(opened: Opened, tenant: Tenant) -> None:
    tried = changes("events", "update", "delete", "truncate")
    assert refusals(opened, tenant, "postgres", tried) == dict.fromkeys(tried, "RaiseException")


async def test_the_api_has_no_way_around(opened: Opened, tenant: Tenant) -> None:
    ways = [
        "ALTER TABLE events DISABLE TRIGGER ALL",
        "ALTER TABLE events DISABLE ROW LEVEL SECURITY",
        "DROP POLICY one_ledger ON events",
        "SET session_replication_role = replica",
        "SET row_security = off; SELECT * FROM events",
        "SET ROLE postgres",
        "SET ROLE sparkledger_worker",
        "SET ROLE sparkledger_log",
        "SET ROLE sparkledger_mover",
        "CREATE TABLE public.mine (x int)",
        "CREATE OR REPLACE FUNCTION append() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "SELECT pg_read_file('PG_VERSION')",
    ]
    assert refusals(opened, tenant, API, ways) == dict.fromkeys(ways, "InsufficientPrivilege")


@pytest.mark.parametrize("role", [API, WORKER])
async def test_no_login_of_the_program_can_move_or_hide_a_ledger(opened: Opened, tenant: Tenant, role: str) -> None:
    ways = [
        "SET ROLE sparkledger_mover",
        "UPDATE ledgers SET served_by = 'b'",
        f"INSERT INTO departures (ledger_id, target) VALUES ({tenant.ledger_id}, 'b')",
        "UPDATE departures SET moved_at = now()",
        "DELETE FROM departures",
        f"INSERT INTO arrivals (ledger_id, source, source_number) VALUES ({tenant.ledger_id}, 'a', 0)",
        "UPDATE arrivals SET stage = gen_random_uuid()",
        "SELECT note_departure()",
    ]
    assert refusals(opened, tenant, role, ways) == dict.fromkeys(ways, "InsufficientPrivilege")


async def test_the_appends_own_role_cannot_log_in(opened: Opened) -> None:
    with pytest.raises(psycopg.OperationalError, match="not permitted to log in"):
        await psycopg.AsyncConnection.connect(opened.database.dsn("sparkledger_log"))


# ── row-level security, for every table there is ──

TABLES_WITH_A_LEDGER = """
    SELECT c.oid::regclass::text, c.relrowsecurity AND c.relforcerowsecurity,
           has_table_privilege('sparkledger_api', c.oid, 'SELECT')
    FROM pg_class c
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'ledger_id' AND NOT a.attisdropped
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
    ORDER BY 1
"""


# A row for each table that nothing of the story below writes in: of a ledger, and an id of the row's own.
FILLED_BY_HAND = (
    "INSERT INTO tracking VALUES (%(ledger)s, 'upstream', 1)",
    """
    INSERT INTO webhooks (webhook_id, ledger_id, key_id, url, secret)
    VALUES (%(id)s, %(ledger)s, %(key)s, 'https://receiver.example/', '')
    """,
    "INSERT INTO webhook_progress (webhook_id, ledger_id, position) VALUES (%(id)s, %(ledger)s, 0)",
    """
    INSERT INTO webhook_messages (webhook_id, ledger_id, message_id, type, lane, attempts)
    VALUES (%(id)s, %(ledger)s, %(id)s, 'Tested', %(id)s, 1)
    """,
    """
    INSERT INTO webhook_attempts (webhook_id, ledger_id, message_id, type, attempt, at, outcome, duration_ms)
    VALUES (%(id)s, %(ledger)s, %(id)s, 'Tested', 1, now(), 'failed', 1)
    """,
    "INSERT INTO webhook_requests (ledger_id, key, request_hash) VALUES (%(ledger)s, '', '')",
    """
    INSERT INTO alert_rules (rule_id, ledger_id, key_id, kind, channel, address, zone)
    VALUES (%(id)s, %(ledger)s, %(key)s, 'ending', 'email', '', 'UTC')
    """,
    "INSERT INTO alert_progress (rule_id, ledger_id, since) VALUES (%(id)s, %(ledger)s, 0)",
    """
    INSERT INTO alert_messages (message_id, rule_id, ledger_id, findings, made_at, next_at)
    VALUES (%(id)s, %(id)s, %(ledger)s, 1, now(), now())
    """,
    "INSERT INTO alert_findings (rule_id, ledger_id, finding, found_at) VALUES (%(id)s, %(ledger)s, 'found', now())",
    """
    INSERT INTO calendars (calendar_id, ledger_id, key_id, hash)
    VALUES (%(id)s, %(ledger)s, %(key)s, uuid_send(%(id)s))
    """,
    """
    INSERT INTO import_runs (import_id, ledger_id, key_id, role, asked, file_sha256, bytes, sealed_key, rows)
    VALUES (%(id)s, %(ledger)s, %(key)s, 'operator', '{}', '', 0, '', 1)
    """,
    "INSERT INTO import_parts VALUES (%(id)s, %(ledger)s, 'sheet', 1, '')",
    "INSERT INTO import_mappings VALUES (%(ledger)s, 'agency', '{}', now(), %(key)s)",
    "INSERT INTO stream_tokens VALUES (%(ledger)s, %(id)s, %(key)s, 1, now())",
    """
    INSERT INTO console_sessions (hash, ledger_id, key_id, sealed, expires_at)
    VALUES (uuid_send(%(id)s), %(ledger)s, %(key)s, '', now())
    """,
    "INSERT INTO key_changes VALUES (%(ledger)s, 1) ON CONFLICT DO NOTHING",
    "INSERT INTO anchored_ledgers VALUES (%(ledger)s)",
    "INSERT INTO history_checks (ledger_id, database) VALUES (%(ledger)s, database_identity())",
    "INSERT INTO publications (ledger_id, destination, position, state) VALUES (%(ledger)s, 'topic', 1, 'publishing')",
    """
    INSERT INTO log_trees (ledger_id, generation, ledger, origin, verifier_keys, public, size, root)
    VALUES (%(ledger)s, 1, 'name', %(id)s::text, '{}', false, 0, '')
    """,
    "INSERT INTO log_tiles VALUES (%(ledger)s, 1, 0, 0, sha256(''))",
    "INSERT INTO log_checks VALUES (%(ledger)s, 1, 'events', now(), 0, now())",
    "INSERT INTO log_differences VALUES (%(ledger)s, 1, 'events', 1, 'events', 'message', now(), now())",
    "INSERT INTO log_witnesses VALUES (%(ledger)s, 1, 'witness.example', 0)",
    "INSERT INTO witnessed_checkpoints VALUES (%(ledger)s, 1, 0, 'note', 1, now())",
    "INSERT INTO evidence_checkpoints VALUES (%(ledger)s, 1, 1, 'note')",
    "INSERT INTO witness_keys VALUES (%(ledger)s, 'w.example+00000000+BA==')",
    "INSERT INTO log_handovers VALUES (%(ledger)s, 1, 1, ARRAY['key'], 'note')",
    "INSERT INTO stamped_checkpoints VALUES (%(ledger)s, 1, 1, 'note', 'response', now())",
    "INSERT INTO log_heads VALUES (%(ledger)s, 1, substring(sha256('') FROM 1 FOR 16), 1, sha256(''))",
    "INSERT INTO sealed_heads VALUES (%(ledger)s, 1, 1, 1, sha256(''), 2, now(), '')",
    """
    INSERT INTO view_skips (ledger_id, view, version, position, error, reason, skipped_by)
    VALUES (%(ledger)s, 'codes', 1, 1, 'error', 'reason', 'somebody')
    """,
)


@pytest.fixture
async def two(opened: Opened) -> tuple[Tenant, Tenant]:
    """Two ledgers with the same story, taken in by every view."""
    tenants = (await opened.begin("one"), await opened.begin("two"))
    now = datetime.now(UTC)
    campaign = replace(given.CAMPAIGN, starts_at=now + timedelta(days=1), ends_at=now + timedelta(days=2))
    story = (
        given.permission(),
        given.generate(),
        given.share(),
        given.redeem(),
        given.launch(campaign),
        given.advertiser(),
    )
    for tenant in tenants:
        for command in story:
            await opened.when(tenant, command, f"key-{id(command)}")
        await opened.when(tenant, given.permission(creator_id="creator-erased"))
        await opened.erase(tenant, "creator-erased")
        await opened.api.denied_attempts.count(tenant.ledger_id, tenant.actor, "code_unknown")
        _, text, _ = await opened.key_admin.create(tenant.ledger_id, role="auditor")
        await opened.api.authenticator.authenticate(text, datetime.now(UTC))
        row = {"ledger": tenant.ledger_id, "key": tenant.key.key_id, "id": uuid7()}
        with psycopg.connect(opened.database.dsn(), autocommit=True) as connection:
            for statement in FILLED_BY_HAND:
                connection.execute(statement, row)
        access = Access(None, "machine", "sparkledger export", b"{}", "text/csv", 0, complete=True, request_id="")
        await opened.api.views.access_log.record(tenant.ledger_id, access)
    await opened.apply()
    return tenants


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
        setting = bound_to(opened.database, one.ledger_id)
        session.execute("SELECT set_config('sparkledger.ledger', %s, false)", (setting,))
        shown = counts(opened, session)
        own = {table: count(opened, table, f"WHERE ledger_id = {one.ledger_id}") for table in shown}
    assert shown == own
    # Otherwise the test would say nothing about the table: fill it, in the story or by hand.
    assert [table for table in shown if not own[table]] == []
    assert [table for table in shown if own[table] == count(opened, table)] == []


def counts(opened: Opened, session: psycopg.Connection) -> dict[str, int]:
    """Count what a session sees of each table that it may read at all."""
    found = {}
    for table, _, readable in opened.sql(TABLES_WITH_A_LEDGER):
        if readable:
            found[table] = session.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0]
    return found


def count(opened: Opened, table: str, where: str = "") -> int:
    return int(opened.sql(f"SELECT count(*) FROM {table} {where}")[0][0])


async def test_a_read_of_another_ledger_finds_nothing(opened: Opened, two: tuple[Tenant, Tenant]) -> None:
    """Even if a query named the wrong ledger: the session is bound to its own."""
    async with opened.api.database.connection(two[0].ledger_id) as connection:
        cursor = await connection.execute("SELECT count(*) FROM events WHERE ledger_id = %s", (two[1].ledger_id,))
        assert await cursor.fetchone() == (0,)


async def seen(connection: LedgerConnection) -> list[tuple[int]]:
    """Return the ledgers whose events a session sees."""
    return await (await connection.execute("SELECT DISTINCT ledger_id FROM events")).fetchall()


async def test_a_query_that_forgets_its_ledger_finds_nothing_whoever_had_its_session_before(
    opened: Opened, two: tuple[Tenant, Tenant]
) -> None:
    ledger_ids = [tenant.ledger_id for tenant in two]
    async with pooled(opened) as database:
        found = [await database.read(ledger_id, seen) for ledger_id in (ledger_ids[0], None, ledger_ids[1], None)]
    assert found == [[(ledger_ids[0],)], [], [(ledger_ids[1],)], []]


async def test_a_session_is_bound_by_a_statement_only_where_its_ledger_changes(
    opened: Opened, two: tuple[Tenant, Tenant], monkeypatch: pytest.MonkeyPatch
) -> None:
    bound: list[str] = []
    execute = LedgerConnection.execute

    async def noting(connection: LedgerConnection, query: str, *more: Any) -> Any:
        bound.extend(parameters[0] for parameters in more if "set_config" in query)
        return await execute(connection, query, *more)

    monkeypatch.setattr(LedgerConnection, "execute", noting)
    one = two[0].ledger_id
    async with pooled(opened) as database:
        for ledger_id in (None, None, one, one, one, None, None, one):
            await database.read(ledger_id, seen)
    tokens = opened.api.database.tokens
    assert bound == [tokens.setting(one), "", tokens.setting(one)]


@asynccontextmanager
async def pooled(opened: Opened) -> AsyncIterator[Database]:
    """Lend a pool of one session, in the API's role."""
    database = Database(opened.database.dsn(API), API, size=1)
    database.tokens = opened.api.database.tokens
    await database.open()
    yield database
    await database.close()


@pytest.mark.parametrize("after", [0, None], ids=["another", "none"])
async def test_a_session_whose_binding_was_cancelled_is_bound_anew(
    opened: Opened, two: tuple[Tenant, Tenant], monkeypatch: pytest.MonkeyPatch, after: int | None
) -> None:
    """The server may have carried out what the caller no longer waited for."""
    dsn = opened.database.dsn(API)
    wanted = None if after is None else two[after].ledger_id
    async with await LedgerConnection.connect(dsn, autocommit=True) as connection:
        tokens = opened.api.database.tokens
        await connection.bind(wanted, tokens)
        with monkeypatch.context() as patch:
            patch.setattr(LedgerConnection, "execute", carried_out_and_cancelled)
            with pytest.raises(asyncio.CancelledError):
                await connection.bind(two[1].ledger_id, tokens)
        await connection.bind(wanted, tokens)
        assert await seen(connection) == ([] if wanted is None else [(wanted,)])


async def carried_out_and_cancelled(connection: LedgerConnection, query: str, parameters: tuple[str]) -> None:
    await psycopg.AsyncConnection.execute(connection, query, parameters)
    raise asyncio.CancelledError
