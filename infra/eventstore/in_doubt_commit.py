"""What became of a commit whose connection was lost: end the old session first, then look."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from infra.eventstore.append import EventRow
    from infra.postgres.pool import LedgerConnection

# A process id alone may name another session by now.
Backend = tuple[int, "datetime"]


async def own_backend(connection: LedgerConnection) -> Backend | None:
    """Return the process id of a session and when it began."""
    # Only whoever logged in is shown when the session began, and may end it: not a role it took on.
    await connection.execute("SET ROLE NONE")
    cursor = await connection.execute("SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()")
    backend = await cursor.fetchone()
    await connection.execute("RESET ROLE")
    return backend


async def end_session(connection: LedgerConnection, lost: Backend | None) -> None:
    """End a lost session, and wait until it is gone: until then it may commit."""
    if lost is None:
        return
    await connection.execute("SET ROLE NONE")
    gone = False
    while not gone:
        cursor = await connection.execute(
            "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity WHERE pid = %s AND backend_start = %s", lost
        )
        gone = await cursor.fetchone() is None
    await connection.execute("RESET ROLE")


async def recorded(
    connection: LedgerConnection, ledger_id: int, events: Sequence[EventRow]
) -> tuple[int, int, datetime] | None:
    """Look for events by stream, version and event id; return first and last position, and when, if they are there."""
    await connection.bind(ledger_id)
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
