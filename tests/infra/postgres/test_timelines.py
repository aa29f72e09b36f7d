"""Which of several servers is the primary, on a real server; tests/faults has servers that are promoted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from infra.postgres import timelines
from infra.postgres.pool import LedgerConnection, session
from infra.postgres.roles import API
from infra.postgres.timelines import PLACE, FormerPrimary, NoPrimary, Place, ServerConnection, note, split
from tests.conftest import TestDatabase
from tests.waiting import until

NOBODY = "/nowhere"


def place(database: TestDatabase) -> Place:
    ((system, timeline, standby),) = database.sql(f"SELECT {PLACE}")
    return Place(system, timeline, standby)


def with_another(database: TestDatabase) -> str:
    """Return a URL that names a server that is down, and then the database's."""
    one = conninfo_to_dict(database.dsn(API))
    return make_conninfo(
        database.dsn(API), host=f"{NOBODY},{one['host']}", hostaddr=None, target_session_attrs="primary"
    )


@pytest.fixture
def promoted(database: TestDatabase) -> Iterator[Place]:
    """As if this process had seen a newer primary than the database's server."""
    found = place(database)
    note(found._replace(timeline=found.timeline + 1))
    yield found
    timelines._newest[found.system] = found.timeline


def test_a_server_says_its_timeline_and_that_it_is_no_standby(database: TestDatabase) -> None:
    assert place(database) == Place(place(database).system, 1, False)


def test_a_url_with_several_servers_is_one_for_each() -> None:
    whole = "host=a,b hostaddr=10.0.0.1,10.0.0.2 port=5432 user=someone dbname=ledger"
    assert [conninfo_to_dict(one) for one in split(whole)] == [
        {"host": "a", "hostaddr": "10.0.0.1", "port": "5432", "user": "someone", "dbname": "ledger"},
        {"host": "b", "hostaddr": "10.0.0.2", "port": "5432", "user": "someone", "dbname": "ledger"},
    ]
    assert [conninfo_to_dict(one)["port"] for one in split("host=a port=1,2")] == ["1", "2"]


def test_a_session_goes_to_the_primary_though_a_server_before_it_is_down(database: TestDatabase) -> None:
    with ServerConnection.connect(with_another(database)) as connection:
        assert connection.execute("SELECT current_database()").fetchone() == (database.name,)

    async def asynchronous() -> str:
        async with await LedgerConnection.connect(**session(with_another(database), API)) as connection:
            return connection.info.dbname

    assert asyncio.run(asynchronous()) == database.name


@pytest.mark.parametrize("several", [True, False])
def test_a_former_primary_gets_no_session(database: TestDatabase, promoted: Place, several: bool) -> None:
    assert promoted.timeline == 1
    url = with_another(database) if several else database.dsn(API)
    said = f"{NOBODY}:5432 does not answer; .* is a former primary, of timeline 1" if several else "timeline 2"
    expected = NoPrimary if several else FormerPrimary
    with pytest.raises(expected, match=said):
        ServerConnection.connect(url)
    with pytest.raises(expected, match=said):
        asyncio.run(LedgerConnection.connect(**session(url, API)))


def test_sessions_with_a_primary_are_cut_when_another_one_is_promoted(database: TestDatabase) -> None:
    url = with_another(database)
    found = place(database)
    with ServerConnection.connect(url, autocommit=True) as connection:
        try:
            note(found._replace(timeline=found.timeline + 1))

            def lost() -> bool:
                try:
                    connection.execute("SELECT 1")
                except psycopg.OperationalError:
                    return True
                return False

            until(lost)
        finally:
            timelines._newest[found.system] = found.timeline


async def cut_while_it_waits(url: str, found: Place) -> None:
    async with await LedgerConnection.connect(**session(url, API)) as connection:
        waiting = asyncio.create_task(connection.execute("SELECT pg_sleep(60)"))
        note(found._replace(timeline=found.timeline + 1))
        with pytest.raises(psycopg.OperationalError):
            await waiting


def test_a_query_that_is_under_way_is_cut_too(database: TestDatabase) -> None:
    found = place(database)
    try:
        asyncio.run(cut_while_it_waits(with_another(database), found))
    finally:
        timelines._newest[found.system] = found.timeline
