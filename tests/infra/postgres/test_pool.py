"""The pool of sessions: how it is shared between ledgers, and that a cancelled read ends."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool

from infra.errors import Unavailable
from infra.postgres import pool
from infra.postgres.pool import Database, LedgerConnection
from infra.postgres.roles import WORKER
from tests.conftest import TestDatabase


async def test_one_ledgers_reads_leave_sessions_for_others(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "POOL_WAIT_S", 0.2)
    shared = Database(database.dsn(WORKER), WORKER, size=3, size_of_a_ledger=2)
    await shared.open()
    try:
        async with shared.connection(1), shared.connection(1):
            with pytest.raises(Unavailable):
                async with shared.connection(1):
                    pass
            async with shared.connection(2):
                pass
        async with shared.connection(1), shared.connection(1):
            pass
    finally:
        await shared.close()


async def test_a_read_that_is_cancelled_while_the_pool_checks_its_sessions_ends(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    checking = asyncio.Event()

    async def check(_: psycopg.AsyncConnection[object]) -> None:
        checking.set()
        await asyncio.Event().wait()

    async def lost(_: LedgerConnection) -> None:
        message = "the server closed the connection"
        raise psycopg.OperationalError(message)

    monkeypatch.setattr(AsyncConnectionPool, "check_connection", staticmethod(check))
    opened = Database(database.dsn(WORKER), WORKER, size=1)
    await opened.open()
    try:
        reading = asyncio.create_task(opened.read(None, lost))
        await checking.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    finally:
        await opened.close()
