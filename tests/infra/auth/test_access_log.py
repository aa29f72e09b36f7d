"""The log of accesses: what the API may write into it, what stands, and how long."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import UUID

import psycopg
import pytest

from infra.auth.access_log import KEEP_ACCESSES_DAYS, Access, AccessLog, purge
from infra.postgres.pool import Database
from infra.postgres.roles import API, WORKER
from tests.conftest import TestDatabase
from tests.infra.session_tokens import bound_to, present

ACCESS = Access(UUID(int=1), "auditor", "GET /v1/events", b'{"q":"a"}', "text/csv", 3, complete=True, request_id="r-1")


@pytest.fixture
async def accesses(database: TestDatabase) -> AsyncIterator[AccessLog]:
    opened = Database(database.dsn(API), API, size=3)
    present(opened, 1)
    present(opened, 2)
    await opened.open()
    yield AccessLog(opened)
    await opened.close()


async def test_an_access_is_there_once_it_is_recorded(accesses: AccessLog) -> None:
    access_id = await accesses.record(1, ACCESS)
    (row,) = await accesses.page(1, limit=10)
    assert row == replace(row, access_id=access_id, key_id=UUID(int=1), role="auditor", route="GET /v1/events")
    assert (row.query, row.format, row.rows, row.reads, row.complete) == ({"q": "a"}, "text/csv", 3, 1, True)
    assert row.ended_at == row.at


async def test_accesses_that_wait_together_are_all_recorded(accesses: AccessLog) -> None:
    import asyncio

    ids = await asyncio.gather(*(accesses.record(1, replace(ACCESS, request_id=f"r-{n}")) for n in range(50)))
    rows = await accesses.page(1, limit=100)
    assert sorted(ids) == sorted(row.access_id for row in rows)
    assert {row.request_id for row in rows} == {f"r-{n}" for n in range(50)}


async def test_one_that_was_under_way_ends_once(accesses: AccessLog) -> None:
    access_id = await accesses.record(1, replace(ACCESS, rows=0, complete=None))
    (row,) = await accesses.page(1, limit=1)
    assert (row.rows, row.complete, row.ended_at) == (0, None, None)

    await accesses.end(1, access_id, rows=7, complete=True)
    await accesses.end(1, access_id, rows=9, complete=False)

    (row,) = await accesses.page(1, limit=1)
    assert (row.rows, row.complete) == (7, True)


async def test_a_subscribers_reads_of_an_hour_are_added_up(accesses: AccessLog) -> None:
    import asyncio

    polls = [replace(ACCESS, role="subscriber", rows=n, request_id=f"r-{n}") for n in range(10)]
    await asyncio.gather(*(accesses.record(1, poll) for poll in polls[:5]))
    for poll in polls[5:]:
        await accesses.record(1, poll)
    rows = await accesses.page(1, limit=100)
    assert (sum(row.reads for row in rows), sum(row.rows for row in rows)) == (10, 45)
    # Two, where the hour struck in between.
    assert len(rows) <= 2


async def test_the_api_sees_and_writes_one_ledgers_accesses_and_changes_none(
    database: TestDatabase, accesses: AccessLog
) -> None:
    access_id = await accesses.record(1, ACCESS)
    assert await accesses.page(2, limit=10) == []
    bound = bound_to(database, 1)
    async with await psycopg.AsyncConnection.connect(
        database.dsn(API), autocommit=True, options=f"-c role={API} -c sparkledger.ledger={bound}"
    ) as connection:
        for refused in (
            "DELETE FROM accesses",
            "TRUNCATE accesses",
            "UPDATE accesses SET query = '{}'",
            "UPDATE accesses SET key_id = NULL",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await connection.execute(refused.encode())
        changed = await connection.execute("UPDATE accesses SET row_count = 0")
        assert changed.rowcount == 0
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await connection.execute(
                "INSERT INTO accesses (ledger_id, access_id, role, route, query, format, row_count)"
                " VALUES (2, gen_random_uuid(), 'admin', '', '{}', '', 0)"
            )
    (row,) = await accesses.page(1, limit=10)
    assert (row.access_id, row.rows) == (access_id, 3)


async def test_accesses_are_forgotten_after_their_time(database: TestDatabase, accesses: AccessLog) -> None:
    old, young = [await accesses.record(1, replace(ACCESS, request_id=name)) for name in ("old", "young")]
    async with await psycopg.AsyncConnection.connect(database.dsn(), autocommit=True) as owner:
        for access_id, days in ((old, KEEP_ACCESSES_DAYS), (young, KEEP_ACCESSES_DAYS - 1)):
            await owner.execute(
                "UPDATE accesses SET at = now() - make_interval(days => %s, mins => 1) WHERE access_id = %s",
                (days, access_id),
            )
    worker = Database(database.dsn(WORKER), WORKER, size=1)
    await worker.open()
    async with worker.connection() as connection:
        assert await purge(connection, 10) == 1
    await worker.close()
    assert [row.access_id for row in await accesses.page(1, limit=10)] == [young]
