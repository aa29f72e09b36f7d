"""Migrations: from nothing, again, at once, by an owner who is no superuser, and never on a newer database."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from infra.postgres.embedded.server import EmbeddedPostgres
from infra.postgres.migrate import MigrationError, migrate, migrations, require_migrated
from infra.postgres.roles import API, ROLES, WORKER
from tests import given
from tests.conftest import TestDatabase
from tests.infra.eventstore.appends import appending, row, writing
from tests.infra.opened import Opened, opening
from tests.places import directory

pytestmark = pytest.mark.long("databases are migrated from nothing, again and again")

EVERY = [f"{number:04d}_{name}" for number, name, _ in migrations()]
OWNER = "an_owner"


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[EmbeddedPostgres]:
    """A cluster where nothing was ever migrated: roles belong to a cluster, not to a database."""
    place = directory("migrate")
    with EmbeddedPostgres(place, {"fsync": "off", "full_page_writes": "off"}) as server:
        with psycopg.connect(server.dsn(dbname="postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE ROLE {OWNER} LOGIN CREATEROLE")
        yield server
    shutil.rmtree(place)


@pytest.fixture
def fresh(own_cluster: EmbeddedPostgres) -> Iterator[TestDatabase]:
    """An empty database of an owner who may create roles and is no superuser, as a hoster would give one."""
    name = f"owned_{uuid4().hex}"
    with psycopg.connect(own_cluster.dsn(dbname="postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), sql.Identifier(OWNER)))
    with closing(TestDatabase(own_cluster, name)) as database:
        yield database


def test_a_fresh_database_gets_every_migration_in_order(fresh: TestDatabase) -> None:
    assert migrate(fresh.dsn(OWNER)) == EVERY


def test_a_second_run_applies_nothing(fresh: TestDatabase) -> None:
    migrate(fresh.dsn(OWNER))
    assert migrate(fresh.dsn(OWNER)) == []


def test_numbers_ascend_and_names_are_kept() -> None:
    numbers = [number for number, _, _ in migrations()]
    assert numbers == sorted(set(numbers))


def test_several_programs_that_migrate_at_once_apply_each_once(fresh: TestDatabase) -> None:
    with ThreadPoolExecutor(4) as threads:
        applied = list(threads.map(lambda _: migrate(fresh.dsn(OWNER)), range(4)))
    assert sorted(applied) == [[], [], [], EVERY]


def test_what_fails_in_the_middle_leaves_nothing(fresh: TestDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = [(1, "half", "CREATE TABLE half (x int); SELECT 1/0")]
    monkeypatch.setattr("infra.postgres.migrate.migrations", lambda: iter(broken))
    with pytest.raises(psycopg.errors.DivisionByZero):
        migrate(fresh.dsn(OWNER))
    with psycopg.connect(fresh.dsn(OWNER)) as connection:
        assert connection.execute("SELECT to_regclass('half')").fetchone() == (None,)


def test_a_newer_database_is_refused(fresh: TestDatabase) -> None:
    migrate(fresh.dsn(OWNER))
    with psycopg.connect(fresh.dsn(OWNER), autocommit=True) as connection:
        connection.execute("INSERT INTO migrations (number, name, sha256) VALUES (9999, 'from_the_future', '')")
    with pytest.raises(MigrationError, match=r"newer version of this program \(migration 9999\)"):
        migrate(fresh.dsn(OWNER))


def test_a_database_that_lacks_migrations_is_not_served(fresh: TestDatabase) -> None:
    with pytest.raises(MigrationError, match=r"lacks the migrations 0001_log.*Run `sparkledger migrate` first"):
        require_migrated(fresh.dsn(OWNER))


@pytest.mark.parametrize("role", [OWNER, API, WORKER])
def test_a_migrated_database_is_served_to_every_role(fresh: TestDatabase, role: str) -> None:
    migrate(fresh.dsn(OWNER))
    require_migrated(fresh.dsn(role))


def test_a_database_that_is_away_is_waited_for() -> None:
    require_migrated("host=/nowhere dbname=nothing")


def test_roles_get_the_passwords_given(fresh: TestDatabase) -> None:
    migrate(fresh.dsn(OWNER), {API: "one", WORKER: "two"})
    migrate(fresh.dsn(OWNER), {API: "three"})
    with psycopg.connect(fresh.dsn()) as connection:
        query = "SELECT rolname, rolpassword LIKE 'SCRAM-SHA-256$%%' FROM pg_authid WHERE rolname = ANY (%s)"
        have = connection.execute(query, (list(ROLES),)).fetchall()
    assert dict[str, bool](have) == {API: True, WORKER: True, "sparkledger_log": None, "sparkledger_mover": None}


def test_no_role_of_the_program_may_do_what_a_superuser_may(fresh: TestDatabase) -> None:
    migrate(fresh.dsn(OWNER))
    query = "SELECT count(*) FROM pg_roles WHERE rolname = ANY (%s) AND (rolsuper OR rolbypassrls OR rolcreaterole)"
    with psycopg.connect(fresh.dsn()) as connection:
        assert connection.execute(query, (list(ROLES),)).fetchone() == (0,)


@pytest.fixture
async def owned(fresh: TestDatabase) -> Opened:
    """A database of that owner, with an event in it."""
    migrate(fresh.dsn(OWNER))
    async with opening(fresh) as opened:
        await opened.when(await opened.begin(), given.permission())
    return opened


@pytest.mark.parametrize("change", ["UPDATE events SET version = 9", "DELETE FROM events", "TRUNCATE events CASCADE"])
async def test_the_log_cannot_be_changed_by_its_owner(owned: Opened, change: str) -> None:
    with (
        psycopg.connect(owned.database.dsn(OWNER), autocommit=True) as connection,
        pytest.raises(psycopg.errors.RaiseException, match="events are append-only"),
    ):
        connection.execute(change)


@pytest.mark.parametrize(
    "earlier",
    ["ALTER TABLE migrations DROP COLUMN sha256", "UPDATE migrations SET sha256 = 'of another text' WHERE number = 1"],
    ids=["before texts were compared", "with another text"],
)
def test_a_database_of_another_version_from_before_1_0_is_refused_in_one_sentence(
    fresh: TestDatabase, earlier: str
) -> None:
    migrate(fresh.dsn())
    with psycopg.connect(fresh.dsn(), autocommit=True) as connection:
        connection.execute(earlier)
    for refusing in (migrate, require_migrated):
        with pytest.raises(MigrationError, match=r"created by another version of this program, from before 1\.0"):
            refusing(fresh.dsn())


async def test_the_owner_can_serve_as_the_api(owned: Opened) -> None:
    ((ledger_id,),) = owned.sql("SELECT ledger_id FROM ledgers")
    owned.sql("INSERT INTO event_types VALUES ('Tested', 1, '{clock}')")
    async with writing(owned.database, user=OWNER, role=API) as writer:
        await writer.append(appending(ledger_id, row(uuid4())))
    assert owned.sql("SELECT max(position) FROM events") == [(2,)]
