"""Retention: the worker deletes idempotency keys, counts of refusals, accesses and imports after their time."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from infra.auth import access_log, console_sessions, stream_tokens
from infra.errors import Unavailable
from infra.imports import runs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from infra.postgres.pool import Database, LedgerConnection

# Clients may rely on an idempotency key for a day; the second day covers their own retry schedules.
KEEP_IDEMPOTENCY_HOURS: Final = 48
KEEP_REFUSAL_COUNTS_DAYS: Final = 400
PURGE_EVERY_S: Final = 600.0
PURGE_ROWS: Final = 10_000
PURGE_PAUSE_S: Final = 0.5
# Each with its report, which may have hundreds of pieces.
PURGE_IMPORTS: Final = 100

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
    """Delete old rows until cancelled."""
    while True:
        more = await purge(database)
        # While there is more to delete, the pause is short: the rows of a busy day must not outgrow the purge.
        await asyncio.sleep(PURGE_PAUSE_S if more else PURGE_EVERY_S)


async def purge(database: Database, rows: int = PURGE_ROWS) -> bool:
    """Delete at most `rows` old rows of each kind. A kind that fails does not hold up the others.

    Returns:
        Whether there may be more to delete.

    """
    more = False
    for name, delete in _KINDS.items():
        try:
            async with database.connection() as connection:
                more = await delete(connection, rows) == rows or more
        except Unavailable as error:
            log.warning("Old %s could not be deleted; this will be retried: %s", name, error.__cause__ or error)
    return more


async def _idempotency_keys(connection: LedgerConnection, rows: int) -> int:
    return (await connection.execute(_IDEMPOTENCY_KEYS, (KEEP_IDEMPOTENCY_HOURS, rows))).rowcount


async def _refusal_counts(connection: LedgerConnection, rows: int) -> int:
    return (await connection.execute(_REFUSAL_COUNTS, (KEEP_REFUSAL_COUNTS_DAYS, rows))).rowcount


async def _stream_tokens(connection: LedgerConnection, rows: int) -> int:
    return (await connection.execute(stream_tokens.PURGE, (stream_tokens.KEEP_UNUSED_DAYS, rows))).rowcount


async def _console_sessions(connection: LedgerConnection, rows: int) -> int:
    return (await connection.execute(console_sessions.PURGE, (console_sessions.KEEP_ENDED_DAYS, rows))).rowcount


async def _imports(connection: LedgerConnection, rows: int) -> int:
    return await runs.purge(connection, min(rows, PURGE_IMPORTS))


_KINDS: Final[dict[str, Callable[[LedgerConnection, int], Awaitable[int]]]] = {
    "idempotency keys": _idempotency_keys,
    "counts of refusals": _refusal_counts,
    "accesses": access_log.purge,
    "stream tokens": _stream_tokens,
    "sessions of the console": _console_sessions,
    "imports": _imports,
}
