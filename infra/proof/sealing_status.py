"""Whether the signed logs are being sealed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from infra.postgres.pool import Database, LedgerConnection


async def is_sealing_stopped(database: Database) -> bool:
    """Tell whether the log of any ledger is not sealed any more, because something contradicts what was signed."""

    async def query(connection: LedgerConnection) -> bool:
        row = await (await connection.execute("SELECT is_sealing_stopped()")).fetchone()
        return bool(row and row[0])

    return await database.read(None, query)
