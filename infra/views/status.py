"""The status of views: how far each has read, how far it is behind, and whether it has stopped.

A rebuild has a status of its own, under the view's name with `_next`. An event of one ledger stops a view for all of
them, but only that ledger sees which event it was and what was wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from psycopg import AsyncCursor

    from infra.postgres.pool import Database, LedgerConnection


@dataclass(frozen=True, slots=True)
class ViewStatus:
    """The status of a view in one ledger, or in all.

    Attributes:
        state: "following"; "failed" if it has stopped; "building" for shadow tables.
        rebuilds: how often it was rebuilt.
        position: the position that it has read; for all ledgers the sum, which is a number of events.
        behind_events: the number of events that it has not read yet.
        behind_s: seconds since the oldest of those was recorded; 0 if there is none.

    """

    view: str
    version: int
    state: str
    rebuilds: int
    position: int
    behind_events: int
    behind_s: float


@dataclass(frozen=True, slots=True)
class LedgerViewStatus(ViewStatus):
    """The status of a view in one ledger.

    `head` is the ledger's last position. `failed_position` and `error` tell what stopped the view, if an event of this
    ledger did.
    """

    head: int
    failed_position: int | None
    error: str | None


_IN_ALL_LEDGERS: Final = """
    SELECT view, version, state, rebuilds, "position", behind_events, behind_seconds
    FROM views_in_all_ledgers()
"""

# OFFSET 0 makes the position a column, which an index is used for (infra/postgres/roles.py says why).
_IN_ONE: Final = """
    SELECT v.view, v.version, v.state, v.rebuilds, coalesce(p.position, 0),
           greatest(h.position - coalesce(p.position, 0), 0),
           greatest(extract(epoch FROM clock_timestamp() - next.recorded_at), 0)::float8, h.position,
           CASE WHEN v.failed_ledger_id = %(ledger_id)s THEN v.failed_position END,
           CASE WHEN v.failed_ledger_id = %(ledger_id)s THEN v.error END
    FROM view_versions v
    CROSS JOIN (SELECT coalesce(max(e.position), 0) AS position FROM events e WHERE e.ledger_id = %(ledger_id)s) h
    LEFT JOIN view_positions p ON p.view = v.view AND p.version = v.version AND p.ledger_id = %(ledger_id)s
    CROSS JOIN LATERAL (SELECT coalesce(p.position, 0) + 1 AS position OFFSET 0) due
    CROSS JOIN LATERAL (
        SELECT (
            SELECT e.recorded_at FROM events e WHERE e.ledger_id = %(ledger_id)s AND e.position = due.position
        ) AS recorded_at
    ) next
    ORDER BY v.view
"""


async def status_in_all_ledgers(database: Database) -> list[ViewStatus]:
    """Return the status of each view in all ledgers together, by name; raises `Unavailable`."""

    async def query(connection: LedgerConnection) -> list[Any]:
        return await (await connection.execute(_IN_ALL_LEDGERS)).fetchall()

    return [ViewStatus(*row) for row in await database.read(None, query)]


async def status_in_ledger(database: Database, ledger_id: int) -> list[LedgerViewStatus]:
    """Return the status of each view in one ledger, by name; raises `Unavailable`."""

    async def query(connection: LedgerConnection) -> list[Any]:
        return await (await connection.execute(_IN_ONE, {"ledger_id": ledger_id})).fetchall()

    return [LedgerViewStatus(*row) for row in await database.read(ledger_id, query)]


async def is_read_only(cur: AsyncCursor[Any]) -> bool:
    """Return whether the database takes no writes: it is a standby, or was set to read-only."""
    await cur.execute("SELECT current_setting('transaction_read_only')")
    row = await cur.fetchone()
    return row is not None and row[0] == "on"
