"""Counts of refused attempts that are not events: unknown secrets, and repeats of a refusal within its hour."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from datetime import datetime

    from domain.values import Actor
    from infra.database import Database, LedgerConnection


class Refusals:
    """Counts by ledger, hour, reason and API key."""

    def __init__(self, database: Database) -> None:
        """Take the sessions to count with."""
        self._database = database

    async def count(self, ledger_id: int, actor: Actor, reason: str) -> None:
        """Count one refused attempt.

        Raises:
            Unavailable: the database is away.

        """
        async with self._database.connection(ledger_id) as connection:
            await connection.execute(
                "INSERT INTO refused_attempts AS r (ledger_id, hour, reason, key_id, count)"
                " VALUES (%s, date_trunc('hour', now()), %s, %s, 1)"
                " ON CONFLICT (ledger_id, hour, reason, key_id) DO UPDATE SET count = r.count + 1",
                (ledger_id, reason, UUID(actor.key_id)),
            )

    async def counts(self, ledger_id: int, *, since: datetime) -> dict[str, int]:
        """Return the counts by reason since an hour."""

        async def query(connection: LedgerConnection) -> dict[str, int]:
            cursor = await connection.execute(
                "SELECT reason, sum(count)::bigint FROM refused_attempts"
                " WHERE ledger_id = %s AND hour >= date_trunc('hour', %s) GROUP BY reason ORDER BY reason",
                (ledger_id, since),
            )
            return {row[0]: row[1] for row in await cursor.fetchall()}

        return await self._database.read(ledger_id, query)
