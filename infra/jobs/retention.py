"""What is kept for a time only, and forgotten by the worker then: idempotency keys, counts of refusals, accesses."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from infra.auth import access_log
from infra.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from infra.postgres.pool import Database, LedgerConnection

# An idempotency key is good for at least a day; one more covers a client's own retry schedule.
KEEP_IDEMPOTENCY_HOURS: Final = 48
KEEP_REFUSAL_COUNTS_DAYS: Final = 400
PURGE_EVERY_S: Final = 600.0
PURGE_ROWS: Final = 10_000
PURGE_PAUSE_S: Final = 0.5

_IDEMPOTENCY_KEYS: Final = """
    DELETE FROM commands WHERE (ledger_id, key) IN (
        SELECT ledger_id, key FROM commands
        WHERE recorded_at < now() - make_interval(hours => %s)
        ORDER BY recorded_at
        LIMIT %s
    )
"""

_REFUSAL_COUNTS: Final = """
    DELETE FROM refused_attempts WHERE (ledger_id, hour, reason, key_id) IN (
        SELECT ledger_id, hour, reason, key_id FROM refused_attempts
        WHERE hour < now() - make_interval(days => %s)
        LIMIT %s
    )
"""

log = logging.getLogger(__name__)


async def purging(database: Database) -> None:
    """Forget what has been kept long enough, again and again."""
    while True:
        more = await purge(database)
        # As long as there is more, a short pause is all: what a busy day leaves behind must not outgrow the purge.
        await asyncio.sleep(PURGE_PAUSE_S if more else PURGE_EVERY_S)


async def purge(database: Database, rows: int = PURGE_ROWS) -> bool:
    """Forget a bounded number of rows of each kind; what fails of one kind holds up no other.

    Returns:
        Whether there is more to forget.

    """
    more = False
    for name, forget in _KINDS.items():
        try:
            async with database.connection() as connection:
                more = await forget(connection, rows) == rows or more
        except Unavailable as error:
            log.warning("Old %s could not be deleted; this will be retried: %s", name, error.__cause__ or error)
    return more


async def _idempotency_keys(connection: LedgerConnection, rows: int) -> int:
    return (await connection.execute(_IDEMPOTENCY_KEYS, (KEEP_IDEMPOTENCY_HOURS, rows))).rowcount


async def _refusal_counts(connection: LedgerConnection, rows: int) -> int:
    return (await connection.execute(_REFUSAL_COUNTS, (KEEP_REFUSAL_COUNTS_DAYS, rows))).rowcount


_KINDS: Final[dict[str, Callable[[LedgerConnection, int], Awaitable[int]]]] = {
    "idempotency keys": _idempotency_keys,
    "counts of refusals": _refusal_counts,
    "accesses": access_log.purge,
}
