"""The pool of sessions: how it is shared between ledgers."""

from __future__ import annotations

import pytest

from infra.errors import Unavailable
from infra.postgres import pool
from infra.postgres.pool import Database
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
