"""Reads that are noted: counted by minute, written soon, and kept while they cannot be written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import psycopg
import pytest

from infra.auth import read_log
from infra.auth.access_log import AccessLog, AccessRow
from infra.auth.read_log import Read, ReadLog
from infra.errors import Unavailable
from infra.postgres.pool import Database
from infra.postgres.roles import API
from tests.conftest import TestDatabase
from tests.infra.session_tokens import present

CODE = UUID(int=7)
READ = Read(UUID(int=1), "brand", "GET /v1/codes/{code_id}", b'{"code_id":"c"}', CODE, "ana", "7312345678901234567")


@pytest.fixture
async def opened(database: TestDatabase) -> AsyncIterator[Database]:
    opened = Database(database.dsn(API), API, size=3)
    present(opened, 1)
    present(opened, 2)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture(autouse=True)
def at_noon(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands still, so that no minute ends in the middle of a test."""
    clock = SimpleNamespace(now=1_772_366_400.0)
    monkeypatch.setattr(read_log, "time", SimpleNamespace(time=lambda: clock.now))
    return clock


async def entries(database: Database, ledger_id: int = 1) -> list[AccessRow]:
    return await AccessLog(database).page(ledger_id, limit=100)


async def test_equal_reads_of_a_minute_are_one_entry_with_their_number(
    opened: Database, at_noon: SimpleNamespace
) -> None:
    one, other = ReadLog(opened), ReadLog(opened)  # two processes
    for reads, request_id in ((one, "a"), (one, "b"), (other, "c")):
        reads.note(1, READ, 2, request_id)
    one.note(1, READ._replace(code_id=UUID(int=8)), 1, "d")
    one.note(2, READ, 1, "e")
    for reads in (one, other):
        await reads.stop()
    entry, another = sorted(await entries(opened), key=lambda entry: entry.request_id or "")
    assert (entry.reads, entry.rows, entry.request_id, entry.complete) == (3, 6, "a", True)
    assert (entry.key_id, entry.role, entry.route) == READ[:3]
    assert (entry.query, entry.code_id, entry.creator_id, entry.video_id) == ({"code_id": "c"}, *READ[4:])
    assert (another.code_id, another.reads) == (UUID(int=8), 1)
    assert [entry.request_id for entry in await entries(opened, 2)] == ["e"]

    at_noon.now += 60
    later = ReadLog(opened)
    later.note(1, READ, 1, "f")
    await later.stop()
    newest = (await entries(opened))[0]
    assert (newest.request_id, newest.reads) == ("f", 1)


async def test_what_is_noted_is_written_soon(opened: Database) -> None:
    assert read_log.GATHER_S < 1
    reads = ReadLog(opened)
    reads.note(1, READ, 1, "a")
    assert reads._writing is not None
    await asyncio.wait_for(reads._writing, read_log.GATHER_S + 5)
    assert len(await entries(opened)) == 1


async def test_a_write_ends_when_what_another_one_has_taken_is_written_too(opened: Database) -> None:
    reads = ReadLog(opened)
    reads.note(1, READ, 1, "a")
    first = asyncio.create_task(reads.write())
    await asyncio.sleep(0)  # it has taken what there is, and waits for the database
    await reads.write()
    assert [entry.request_id for entry in await entries(opened)] == ["a"]
    await first


async def test_what_cannot_be_written_is_kept_and_at_some_point_no_more_is_answered(
    opened: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_log, "GATHER_S", 3600)
    monkeypatch.setattr(read_log, "MAX_PENDING", 2)

    @asynccontextmanager
    async def away(*_: Any) -> AsyncIterator[None]:
        raise Unavailable("away")
        yield

    reads = ReadLog(opened)
    with monkeypatch.context() as patched:
        patched.setattr(opened, "connection", away)
        reads.note(1, READ, 1, "a")
        await reads.write()
        reads.note(1, READ, 1, "b")
        reads.note(2, READ, 1, "c")
        with pytest.raises(Unavailable, match="Reads cannot be recorded now"):
            reads.note(1, READ, 1, "d")
    await reads.write()
    assert [(entry.request_id, entry.reads) for entry in await entries(opened)] == [("a", 2)]
    reads.note(1, READ, 1, "e")
    await reads.stop()
    assert [entry.reads for entry in await entries(opened)] == [3]


async def test_an_entry_is_no_longer_added_to_when_its_minute_is_long_over(
    database: TestDatabase, opened: Database
) -> None:
    reads = ReadLog(opened)
    reads.note(1, READ, 1, "a")
    await reads.write()
    with psycopg.connect(database.dsn(), autocommit=True) as owner:
        owner.execute("UPDATE accesses SET at = now() - interval '11 minutes'")
    async with opened.connection(1) as connection:
        cursor = await connection.execute("UPDATE accesses SET reads = 1")
        assert cursor.rowcount == 0
    await reads.stop()
