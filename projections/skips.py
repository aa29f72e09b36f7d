"""Events that a view was told to skip, because it cannot take them in: written down, with who said so and why.

A view stops before what it cannot take in, and stays there until a program that can take it in follows the view, or
until somebody says that it is to be left out. Only the very event that stopped it can be skipped, so nobody skips what
nobody has looked at. A skip belongs to the version of the view: filled anew, the same version skips the same events,
and has the same rows; a new version takes them in again, for that is how a view is mended.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from projections.view import NEXT

if TYPE_CHECKING:
    from psycopg import AsyncCursor

    from projections.view import View

_SKIPPED: Final = """
SELECT ledger_id, position
FROM view_skips
WHERE view = %s
AND version = %s
"""

_STOPPED: Final = """
SELECT failed_ledger_id, failed_position, error
FROM view_versions
WHERE view = ANY (%s)
AND version = %s
AND state = 'failed'
ORDER BY view
FOR UPDATE
"""

_RECORD: Final = """
INSERT INTO view_skips (ledger_id, view, version, position, error, reason, skipped_by)
VALUES (%s, %s, %s, %s, %s, %s, %s)
ON CONFLICT DO NOTHING
"""

_ALL: Final = """
SELECT ledger_id, view, version, position, error, reason, skipped_by, skipped_at
FROM view_skips
ORDER BY skipped_at, ledger_id, position
LIMIT %s
"""


class NotStoppedThere(LookupError):
    """The view has not stopped before this event, so there is nothing to skip."""


@dataclass(frozen=True, slots=True)
class Skip:
    """One event that a version of a view was told to skip; `error` is what the view stopped with."""

    ledger_id: int
    view: str
    version: int
    position: int
    error: str
    reason: str
    skipped_by: str
    skipped_at: datetime


async def skipped(cur: AsyncCursor[Any], view: str, version: int) -> frozenset[tuple[int, int]]:
    """Return ledger and position of what this version of a view skips."""
    await cur.execute(_SKIPPED, (view, version))
    return frozenset(await cur.fetchall())


async def skip(cur: AsyncCursor[Any], view: View[Any], ledger_id: int, position: int, reason: str, by: str) -> None:
    """Write down that the event which stopped a view is skipped, in the caller's transaction; again is the same.

    The view goes on once its worker looks again. What stopped a rebuild is skipped in the same way.

    Args:
        cur: sees every ledger.
        view: the view, in the version that stopped.
        ledger_id: the event's ledger.
        position: its position.
        reason: why it may be left out.
        by: who says so.

    Raises:
        NotStoppedThere: something else stopped it, or nothing.

    """
    await cur.execute(_STOPPED, ([view.name, view.name + NEXT], view.version))
    stops = {(of_ledger, at): error for of_ledger, at, error in await cur.fetchall()}
    error = stops.get((ledger_id, position))
    if error is None:
        where = " and ".join(f"before event {at} of ledger {of_ledger}" for of_ledger, at in stops)
        raise NotStoppedThere(
            f"View {view.name} has stopped {where}: nothing else can be skipped."
            if stops
            else f"View {view.name} has not stopped: nothing can be skipped."
        )
    await cur.execute(_RECORD, (ledger_id, view.name, view.version, position, error, reason, by))


async def skips(cur: AsyncCursor[Any], limit: int) -> list[Skip]:
    """Return what was skipped, the first first."""
    await cur.execute(_ALL, (limit,))
    return [Skip(*row) for row in await cur.fetchall()]
