"""The servers of an installation: what their file may be, and which servers cannot be one installation."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from infra.auth.key_commands import create_ledger, share_hashing
from infra.postgres.embedded.server import EmbeddedPostgres
from infra.servers import ServersError, home_of, number_servers, read_servers
from infra.settings import SettingsError, load_settings
from tests.conftest import TestDatabase, fresh_database
from tests.keys import master_key
from tests.servers import servers_file

MASTER = master_key()
URL = "postgresql://api:hunter2@db/sparkledger"


@pytest.fixture
def pair(cluster: EmbeddedPostgres) -> Iterator[tuple[TestDatabase, TestDatabase]]:
    """Two migrated databases."""
    with ExitStack() as opened:
        yield (opened.enter_context(fresh_database(cluster)), opened.enter_context(fresh_database(cluster)))


def test_a_file_names_servers_in_order(tmp_path: Path) -> None:
    file = servers_file(tmp_path / "servers", b=URL, a="host=db user=api dbname=x")
    file.write_text(f"# those of the desk\n\n{file.read_text()}")
    assert list(read_servers(file).items()) == [("b", URL), ("a", "host=db user=api dbname=x")]


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [
        (f"a = {URL}", 0o640, "chmod 600"),
        ("", 0o600, "with 0 servers"),
        (f"a = {URL}\na = {URL}", 0o600, "the server a twice"),
        (f"A = {URL}", 0o600, "line 1 is not `name = URL`"),
        (URL, 0o600, "line 1 is not `name = URL`"),
        (f"a = {URL}\nb = hunter2", 0o600, "line 2 has no libpq connection string"),
        (f"a = {URL}\nb =", 0o600, "line 2 has no libpq connection string"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_without_its_content(
    tmp_path: Path, content: str, mode: int, says: str
) -> None:
    file = tmp_path / "servers"
    file.write_text(content)
    file.chmod(mode)
    with pytest.raises(SettingsError) as refused:
        load_settings({"SPARKLEDGER_DATABASES": str(file)})
    assert says in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_a_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = servers_file(tmp_path / "servers", a=URL)
    monkeypatch.setattr("os.geteuid", lambda: 4321)
    monkeypatch.setattr("os.fstat", lambda _: os.stat_result((stat.S_IFREG | 0o600, 0, 0, 1, 12345, 0, 0, 0, 0, 0)))
    with pytest.raises(ValueError, match=r"belongs to the user with id 12345, .* run chown 4321 "):
        read_servers(file)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"SPARKLEDGER_DATABASE_URL": URL}, "SPARKLEDGER_DATABASE_URL are both set"),
        ({}, "SPARKLEDGER_DATABASES is set, but SPARKLEDGER_MASTER_KEY is not"),
    ],
)
def test_settings_that_contradict_a_file_are_refused(tmp_path: Path, more: dict[str, str], says: str) -> None:
    file = servers_file(tmp_path / "servers", a=URL)
    with pytest.raises(SettingsError) as refused:
        load_settings({"SPARKLEDGER_DATABASES": str(file)} | more)
    assert says in str(refused.value)


def test_the_workers_file_must_name_the_same_servers(tmp_path: Path) -> None:
    ours, theirs = servers_file(tmp_path / "ours", a=URL), servers_file(tmp_path / "theirs", b=URL)
    with pytest.raises(SettingsError) as refused:
        load_settings({"SPARKLEDGER_DATABASES": str(ours), "SPARKLEDGER_WORKER_DATABASES": str(theirs)})
    assert "names other servers" in str(refused.value)


async def test_an_installation_that_gets_a_second_server_keeps_its_ids(
    pair: tuple[TestDatabase, TestDatabase],
) -> None:
    old, new = pair
    await create_ledger(old.dsn(), MASTER, "main")
    servers = {"new": new.dsn(), "old": old.dsn()}
    number_servers(servers)
    await share_hashing(servers, MASTER)
    await create_ledger(old.dsn(), MASTER, "second")
    await create_ledger(new.dsn(), MASTER, "third")
    assert old.sql("SELECT ledger_id FROM ledgers ORDER BY 1") == [(1,), (2,)]
    assert new.sql("SELECT ledger_id FROM ledgers") == [(1_000_001,)]
    assert [home_of(servers, ledger) for ledger in ("main", "second", "third")] == ["old", "old", "new"]
    with pytest.raises(LookupError, match="There is no ledger named fourth"):
        home_of(servers, "fourth")


async def test_two_installations_cannot_become_one(pair: tuple[TestDatabase, TestDatabase]) -> None:
    for database, ledger in zip(pair, ("one", "two"), strict=True):
        await create_ledger(database.dsn(), MASTER, ledger)
    servers = dict(zip("ab", (one.dsn() for one in pair), strict=True))
    with pytest.raises(ServersError, match="has the same id as one of server a"):
        number_servers(servers)
    with pytest.raises(ServersError, match="hash API keys in different ways"):
        await share_hashing(servers, MASTER)


def test_a_database_has_one_name(pair: tuple[TestDatabase, TestDatabase]) -> None:
    number_servers({"a": pair[0].dsn()})
    with pytest.raises(ServersError, match="calls itself a"):
        number_servers({"b": pair[0].dsn(), "c": pair[1].dsn()})
