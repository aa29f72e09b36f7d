"""Events that a view was told to skip, because it cannot take them in: written down, with who said so and why.

A view stops before what it cannot take in, and stays there until a program that can take it in follows the view, or
until somebody says that it is to be left out. Only the very event that stopped it can be skipped, so nobody skips what
nobody has looked at. A skip belongs to the version of the view: filled anew, the same version skips the same events,
and has the same rows; a new version takes them in again, for that is how a view is mended.

Where what is skipped begins a row, each later event would find none to change, and stop the view again. So a skip may
cover all later events of the same code or creator, where that is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from projections.engine.view import SHADOW_SUFFIX

if TYPE_CHECKING:
    from psycopg import AsyncCursor

    from projections.engine.view import View

_SKIPPED: Final = """
SELECT ledger_id, position, stream_id
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
INSERT INTO view_skips (ledger_id, view, version, position, stream_id, error, reason, skipped_by)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT DO NOTHING
"""

_ALL: Final = """
SELECT ledger_id, view, version, position, stream_id, error, reason, skipped_by, skipped_at
FROM view_skips
ORDER BY skipped_at, ledger_id, position
LIMIT %s
"""


class NotStoppedThere(LookupError):
    """The view has not stopped before this event, so there is nothing to skip."""


@dataclass(frozen=True, slots=True)
class SkippedEvent:
    """One event that a version of a view was told to skip; `error` is what the view stopped with.

    `stream_id` is that of the code or creator whose later events it skips too; None where it is this event alone.
    """

    ledger_id: int
    view: str
    version: int
    position: int
    stream_id: UUID | None
    error: str
    reason: str
    skipped_by: str
    skipped_at: datetime


@dataclass(frozen=True, slots=True)
class SkipRules:
    """What a version of a view skips.

    Attributes:
        places: ledger and position of each event that stopped it.
        streams: ledger and stream of which it skips the later events too, and from which position on.

    """

    events: frozenset[tuple[int, int]]
    streams: Mapping[tuple[int, UUID], int]


NO_SKIPS: Final = SkipRules(frozenset(), {})


async def load_skip_rules(cur: AsyncCursor[Any], view: str, version: int) -> SkipRules:
    """Return what this version of a view skips."""
    await cur.execute(_SKIPPED, (view, version))
    found = await cur.fetchall()
    # The earliest last, for it is the one that counts.
    rest = sorted((row for row in found if row[2] is not None), reverse=True)
    return SkipRules(
        frozenset((ledger_id, position) for ledger_id, position, _ in found),
        {(ledger_id, stream_id): position for ledger_id, position, stream_id in rest},
    )


async def record_skip(
    cur: AsyncCursor[Any],
    view: View[Any],
    ledger_id: int,
    position: int,
    reason: str,
    by: str,
    *,
    stream_id: UUID | None = None,
) -> None:
    """Write down that the event which stopped a view is skipped, in the caller's transaction; again is the same.

    The view goes on once its worker looks again. What stopped a rebuild is skipped in the same way.

    Args:
        cur: sees every ledger.
        view: the view, in the version that stopped.
        ledger_id: the event's ledger.
        position: its position.
        reason: why it may be left out.
        by: who says so.
        stream_id: of the event's code or creator, where all that the ledger has of it later is skipped too.

    Raises:
        NotStoppedThere: something else stopped it, or nothing.

    """
    await cur.execute(_STOPPED, ([view.name, view.name + SHADOW_SUFFIX], view.version))
    stops = {(of_ledger, at): error for of_ledger, at, error in await cur.fetchall()}
    error = stops.get((ledger_id, position))
    if error is None:
        where = " and ".join(f"before event {at} of ledger {of_ledger}" for of_ledger, at in stops)
        raise NotStoppedThere(
            f"View {view.name} has stopped {where}. Only the event that stopped it can be skipped."
            if stops
            else f"View {view.name} has not stopped, so there is nothing to skip."
        )
    await cur.execute(_RECORD, (ledger_id, view.name, view.version, position, stream_id, error, reason, by))


async def list_skipped(cur: AsyncCursor[Any], limit: int) -> list[SkippedEvent]:
    """Return what was skipped, the first first."""
    await cur.execute(_ALL, (limit,))
    return [SkippedEvent(*row) for row in await cur.fetchall()]
