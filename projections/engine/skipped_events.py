"""Events that a view skips because it cannot apply them, each recorded with who decided it and why.

A view stops before an event that it cannot apply. It goes on when a new program can apply it, or when an operator skips
the event. Only the event that stopped the view can be skipped, so nothing is skipped unseen. A skip belongs to one
version of the view: rebuilt, the same version skips the same events and has the same rows; a new version, which is how
a view is mended, applies them.

If a skipped event would have created a row, each later event of the same code or creator would stop the view again. So
a skip may cover those too.
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
    """The view has not stopped before this event, so the event cannot be skipped."""


@dataclass(frozen=True, slots=True)
class SkippedEvent:
    """An event that a version of a view skips; `error` is the error that the view stopped with.

    `stream_id` is the code or creator whose later events are skipped too; None if only this event is.
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
        events: ledger and position of each event that stopped the view.
        streams: for a ledger and stream, the position from which all its events are skipped.

    """

    events: frozenset[tuple[int, int]]
    streams: Mapping[tuple[int, UUID], int]


NO_SKIPS: Final = SkipRules(frozenset(), {})


async def load_skip_rules(cur: AsyncCursor[Any], view: str, version: int) -> SkipRules:
    """Return what this version of a view skips."""
    await cur.execute(_SKIPPED, (view, version))
    rows = await cur.fetchall()
    # The earliest position comes last: it is the one that the dictionary keeps.
    whole_streams = sorted((row for row in rows if row[2] is not None), reverse=True)
    return SkipRules(
        frozenset((ledger_id, position) for ledger_id, position, _ in rows),
        {(ledger_id, stream_id): position for ledger_id, position, stream_id in whole_streams},
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
    """Record, in the caller's transaction, that a view skips the event that stopped it; doing so again changes nothing.

    The view goes on once its worker looks again. An event that stopped a rebuild is skipped in the same way.

    Args:
        cur: sees every ledger.
        view: the view, in the version that stopped.
        ledger_id: the event's ledger.
        position: its position.
        reason: why it may be skipped.
        by: who decided it.
        stream_id: the event's code or creator, to skip all its later events too.

    Raises:
        NotStoppedThere: the view has not stopped, or not before this event.

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
    """Return skipped events, the one skipped first at the front."""
    await cur.execute(_ALL, (limit,))
    return [SkippedEvent(*row) for row in await cur.fetchall()]
