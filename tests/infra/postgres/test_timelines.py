"""Which of several servers is the primary, on a real server; tests/faults has servers that are promoted."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from infra.postgres import pool, timelines
from infra.postgres.migrate import MigrationError, require_migrated
from infra.postgres.pool import LedgerConnection, session
from infra.postgres.roles import API
from infra.postgres.timelines import (
    PLACE,
    FormerPrimary,
    NoPrimary,
    Place,
    ServerConnection,
    Servers,
    _without_secrets,
    note,
    split,
)
from tests.conftest import TestDatabase
from tests.waiting import until

pytestmark = pytest.mark.long("servers are looked for until time limits have passed")

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
def found(database: TestDatabase, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """The server, as if this database were in a cluster of its own: what is noted of it concerns no other test."""
    system = "(pg_control_system()).system_identifier"
    invented = uuid.uuid4().int >> 65
    asked = PLACE.replace(system, f"CASE current_database() WHEN '{database.name}' THEN {invented} ELSE {system} END")
    for module in (pool, timelines):
        monkeypatch.setattr(module, "PLACE", asked)
    yield place(database)._replace(system=invented)
    timelines._newest.pop(invented, None)


@pytest.fixture
def promoted(found: Place) -> Place:
    """As if this process had seen a newer primary than the database's server."""
    note(found._replace(timeline=found.timeline + 1))
    return found


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


def test_sessions_with_a_primary_are_cut_when_another_one_is_promoted(database: TestDatabase, found: Place) -> None:
    with ServerConnection.connect(with_another(database), autocommit=True) as connection:
        note(found._replace(timeline=found.timeline + 1))

        def lost() -> bool:
            try:
                connection.execute("SELECT 1")
            except psycopg.OperationalError:
                return True
            return False

        until(lost)


async def cut_while_it_waits(url: str, found: Place) -> BaseException | None:
    async with await LedgerConnection.connect(**session(url, API, statement_timeout_ms=0)) as connection:
        waiting = asyncio.create_task(connection.execute("SELECT pg_sleep(60)"))
        note(found._replace(timeline=found.timeline + 1))
        await asyncio.wait({waiting}, timeout=30)
        return waiting.exception()


def test_a_query_that_is_under_way_is_cut_too(database: TestDatabase, found: Place) -> None:
    error = asyncio.run(cut_while_it_waits(with_another(database), found))
    assert isinstance(error, psycopg.OperationalError)
    assert not isinstance(error, psycopg.errors.QueryCanceled)


class Idle:
    """A session that nobody uses, which so stays open after it was cut."""

    closed = False

    def __init__(self, place: Place) -> None:
        """Be with a server."""
        self.place: Place | None = place
        self.cuts = 0

    def cut(self) -> None:
        """Count."""
        self.cuts += 1


def test_a_check_at_the_start_asks_no_former_primary(database: TestDatabase, promoted: Place) -> None:
    database.sql("DELETE FROM migrations WHERE number = 1")
    require_migrated(database.dsn())  # as if it were away
    timelines._newest[promoted.system] = promoted.timeline
    with pytest.raises(MigrationError):
        require_migrated(database.dsn())


def test_a_session_is_cut_once(caplog: pytest.LogCaptureFixture) -> None:
    place, servers = Place(uuid.uuid4().int >> 65, 1, False), Servers(["host=a", "host=b"])
    idle = Idle(place)
    servers.keep(idle)
    for _ in range(3):
        servers._note(0, place._replace(timeline=2))
    assert idle.cuts == 1
    assert [record.message.split(":")[0] for record in caplog.records] == ["1 sessions with a former primary are cut"]


def test_servers_that_cannot_be_watched_are_watched_by_the_next_session(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(_: threading.Thread) -> None:
        message = "can't start new thread"
        raise RuntimeError(message)

    url = with_another(database)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(NoPrimary, match="cannot be asked: can't start new thread"):
            ServerConnection.connect(url)
    ServerConnection.connect(url).close()


def test_a_mistake_in_asking_leaves_no_answer_standing(
    database: TestDatabase, found: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = with_another(database)
    with ServerConnection.connect(url):
        servers = Servers.named(url)
        assert servers is not None

        async def broken(_: Any) -> Place:
            raise ZeroDivisionError

        with monkeypatch.context() as patched:
            patched.setattr(timelines, "_place", broken)
            until(lambda: servers._places[1] is None)
            assert servers._errors[1] == "ZeroDivisionError"
        until(lambda: servers._places[1] == found)


def test_why_a_server_gives_no_session_is_said_without_the_password(database: TestDatabase) -> None:
    url = make_conninfo(with_another(database), dbname="nothing", password="very-secret")
    with pytest.raises(NoPrimary, match=r'Errors: .*No such file.*database "nothing" does not exist') as none:
        ServerConnection.connect(url)
    assert "very-secret" not in str(none.value)
    assert _without_secrets(ValueError("it is very-secret"), url) == "it is ***"


def test_lists_of_the_environment_name_servers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Servers.named("dbname=ledger") is None
    monkeypatch.setenv("PGHOST", "a,b")
    assert [conninfo_to_dict(one)["host"] for one in split("dbname=ledger")] == ["a", "b"]
    assert Servers.named("host=c hostaddr='' port=1 dbname=ledger") is None


def test_hosts_and_ports_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(psycopg.ProgrammingError, match="names 3 in `host` and 2 in `port`"):
        Servers.named("host=a,b,c port=1,2")


def test_what_the_url_wants_is_chosen() -> None:
    servers, system = Servers(["host=a", "host=b"]), uuid.uuid4().int >> 65
    servers._note(0, Place(system, 1, False))
    assert servers._chosen("any") == "host=a"
    assert servers._chosen("prefer-standby") is None, "there may be one"
    servers._note(1, Place(system, 1, True))
    chosen = {wanted: servers._chosen(wanted) for wanted in ("primary", "read-write", "any")}
    assert set(chosen.values()) == {"host=a"}
    assert {servers._chosen(wanted) for wanted in ("standby", "read-only", "prefer-standby")} == {"host=b"}
    servers._note(1, None)
    assert servers._chosen("prefer-standby") == "host=a"
    assert servers._chosen("standby") is None
