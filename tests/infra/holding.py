"""Holding an append up inside the database, so that a test can act while it is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg

from infra.eventstore.append import Append, Outcome
from infra.eventstore.group_commit import GroupCommitWriter
from tests.infra.opened import Opened, Tenant

WAITS_WITHIN_S = 15

# A session that waits for a ledger's row.
_WAITING = """
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE %s AND pid <> %s
"""


@asynccontextmanager
async def locked(opened: Opened, tenant: Tenant) -> AsyncIterator[psycopg.AsyncConnection]:
    """Hold the ledger's row until the block ends, so that an append waits inside the database."""
    async with await psycopg.AsyncConnection.connect(opened.database.dsn()) as other:
        await other.execute("SELECT 1 FROM ledgers WHERE ledger_id = %s FOR UPDATE", (tenant.ledger_id,))
        yield other


async def until_it_waits(opened: Opened, other_than: int = 0, function: str = "append") -> int:
    """Wait until a call waits for the row, in another session than a given one, and return its process id."""
    async with asyncio.timeout(WAITS_WITHIN_S):
        while True:
            found = opened.sql(_WAITING, f"%{function}(%", other_than)
            if found:
                return int(found[0][0])
            await asyncio.sleep(0.01)


def sent(writer: GroupCommitWriter, request: Append) -> asyncio.Task[Outcome]:
    """Send an append without waiting for it."""
    return asyncio.create_task(writer.append(request))


def count(opened: Opened) -> int:
    """Count what is recorded."""
    return int(opened.sql("SELECT count(*) FROM events")[0][0])
