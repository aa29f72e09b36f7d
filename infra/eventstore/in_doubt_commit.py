"""In-doubt commits: how to find out whether a commit whose connection was lost took place.

The old session is ended first, because until then it may still commit; then its events are looked for. What is found
counts only once a failover can no longer lose it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from infra.eventstore.append import EventRow
    from infra.postgres.pool import LedgerConnection
    from infra.postgres.session_tokens import SessionTokens

# The process id of a session and its start: by now, the same id may belong to another session.
Backend = tuple[int, "datetime"]

# How often a session that waits for a standby is looked at.
ENDED_POLL_S: Final = 0.05

# A session that waits for a standby has committed, and would show that if it were ended before the standby has it. It
# ends by itself afterwards, since nobody is left to answer.
_END: Final = """
    SELECT CASE WHEN wait_event = 'SyncRep' THEN false ELSE pg_terminate_backend(pid, 1000) END
    FROM pg_stat_activity
    WHERE pid = %s AND backend_start = %s
"""


async def own_backend(connection: LedgerConnection) -> Backend | None:
    """Return the process id of a session and when it started."""
    # Only the role that logged in can see the start of a session and end it, not a role that was set later.
    await connection.execute("SET ROLE NONE")
    cursor = await connection.execute("SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()")
    backend = await cursor.fetchone()
    await connection.execute("RESET ROLE")
    return backend


async def end_session(connection: LedgerConnection, lost: Backend | None) -> None:
    """End a lost session, and wait until it is gone. One that waits for a standby is waited for."""
    if lost is None:
        return
    await connection.execute("SET ROLE NONE")
    while (found := await (await connection.execute(_END, lost)).fetchone()) is not None:
        if not found[0]:
            await asyncio.sleep(ENDED_POLL_S)
    await connection.execute("RESET ROLE")


async def recorded(
    connection: LedgerConnection, ledger_id: int, events: Sequence[EventRow], tokens: SessionTokens
) -> tuple[int, int, datetime] | None:
    """Look for events by stream, version and id; return their first and last position and their time, or None."""
    await connection.bind(ledger_id, tokens)
    found = []
    for event in events:
        cursor = await connection.execute(
            "SELECT position, recorded_at FROM events"
            " WHERE ledger_id = %s AND stream_id = %s AND version = %s AND event_id = %s",
            (ledger_id, event.stream_id, event.version, event.event_id),
        )
        row = await cursor.fetchone()
        if row is None:
            return None
        found.append(row)
    return (found[0][0], found[-1][0], found[-1][1]) if found else None
