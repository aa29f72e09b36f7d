"""How webhooks stand, in all ledgers together: for metrics, by ids that tell nobody whose they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from infra.postgres.pool import Database, LedgerConnection

# A time series each, and more than a worker sends to.
MAX_SHOWN: Final = 1_000


@dataclass(frozen=True, slots=True)
class WebhookLag:
    """One webhook; `behind` are events it has not looked at, of which the oldest was recorded at `oldest`."""

    webhook_id: UUID
    disabled: bool
    position: int
    behind: int
    oldest: datetime | None
    waiting: int
    dead: int
    failures: int
    delivered: int
    failed: int

    def behind_s(self, now: datetime) -> float:
        """Return how long the oldest event waits, in seconds; 0 where none does."""
        return max(0.0, (now - self.oldest).total_seconds()) if self.oldest else 0.0


async def webhook_lags(database: Database) -> list[WebhookLag]:
    """Return how every webhook stands, in either role.

    Raises:
        Unavailable: the database is away.

    """

    async def query(connection: LedgerConnection) -> list[Any]:
        return await (await connection.execute("SELECT * FROM webhook_lag(%s)", (MAX_SHOWN,))).fetchall()

    return [WebhookLag(*row) for row in await database.read(None, query)]
