"""Checkpoints: how far each view has read each ledger, moved by compare-and-set, and the state of each view.

Every function works in the caller's transaction, and on the view's name in the durable tables: `codes` for the tables
that are read, `codes_next` for shadow tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import psycopg

from projections.engine.advisory_locks import AdvisoryLock
from projections.engine.array_columns import Bigints, Times
from projections.engine.page import EventPage, PositionGap
from projections.engine.view import SHADOW_SUFFIX

if TYPE_CHECKING:
    from psycopg import AsyncCursor

ERROR_CHARACTERS_MAX: Final = 500


@dataclass(frozen=True, slots=True)
class ViewState:
    """The state of a view; `failed_ledger_id` and `failed_position` name the event that stopped it, if one did.

    `state` is "following" or "failed"; or "building" for shadow tables, whose name is the view's + `SHADOW_SUFFIX`.
    """

    view: str
    version: int
    state: str
    error: str | None
    failed_ledger_id: int | None
    failed_position: int | None
    changed_at: datetime

    @property
    def stopped(self) -> bool:
        """Whether reads of the view fall behind: a rebuild that failed leaves the view's own tables as they are."""
        return self.state == "failed" and not self.view.endswith(SHADOW_SUFFIX)


class CheckpointConflict(Exception):
    """Another process has moved this checkpoint: another leader, or a rebuild that replaced the view."""


# How `advance` fails if the checkpoint has moved; no other statement of a page divides.
CONFLICT_ERROR: Final = psycopg.errors.DivisionByZero

_LEAD: Final = "SELECT pg_try_advisory_lock(%s, hashtext(%s))"

_STATES: Final = """
SELECT view, version, state, error, failed_ledger_id, failed_position, changed_at
FROM view_versions
"""
_STATE: Final = _STATES + "WHERE view = %s"

_STOPPED: Final = """
SELECT
FROM view_versions
WHERE view = %s
AND state = 'failed'
"""

_REACHED: Final = """
SELECT coalesce(min(coalesce(p.position, 0)), 0)
FROM unnest(%s::text[]) AS x (view)
LEFT JOIN view_positions p ON p.view = x.view AND p.ledger_id = %s
"""

_POSITIONS: Final = """
SELECT ledger_id, position
FROM view_positions
WHERE view = %s
AND version = %s
"""

# Keeps the view from adding a checkpoint for a ledger that it has read nothing of.
_LOCK_VIEW: Final = "SELECT FROM view_versions WHERE view = %s FOR UPDATE"
# In the order in which a page moves them.
_LOCK_POSITIONS: Final = _POSITIONS + "ORDER BY ledger_id FOR UPDATE"

# Adds nothing if another version has replaced the view: there is then nothing to advance.
_ADD_LEDGERS: Final = """
INSERT INTO view_positions (view, version, ledger_id, position)
SELECT v.view, v.version, x.ledger_id, 0
FROM (SELECT view, version FROM view_versions WHERE view = %s AND version = %s FOR SHARE) v
CROSS JOIN unnest(%b) AS x (ledger_id)
ON CONFLICT DO NOTHING
"""

# It fails if a position has changed: the statements sent along with it are then not executed.
_ADVANCE: Final = """
WITH moved AS (
    UPDATE view_positions p
    SET position = x.new_position, recorded_at = coalesce(x.recorded_at, p.recorded_at)
    FROM unnest(%b, %b, %b, %b) AS x (ledger_id, old_position, new_position, recorded_at)
    WHERE p.view = %s
    AND p.version = %s
    AND p.ledger_id = x.ledger_id
    AND p.position = x.old_position
    RETURNING 1
)
SELECT 1 / (count(*) = %s)::int
FROM moved
"""

_START: Final = """
INSERT INTO view_versions (view, version, state)
VALUES (%s, %s, %s)
"""

_FAIL: Final = """
UPDATE view_versions
SET state = 'failed', error = %s, failed_ledger_id = %s, failed_position = %s, changed_at = now()
WHERE view = %s
"""

# Only once the view has read past the event that stopped it.
_RECOVER: Final = """
UPDATE view_versions v
SET state = %s, error = NULL, failed_ledger_id = NULL, failed_position = NULL, changed_at = now()
FROM view_positions p
WHERE v.view = %s
AND v.state = 'failed'
AND p.view = v.view
AND p.version = v.version
AND p.ledger_id = v.failed_ledger_id
AND p.position >= v.failed_position
"""


async def try_to_lead(cur: AsyncCursor[Any], name: str) -> bool:
    """Try to become the leader of a view until this session ends; the same session may ask again."""
    await cur.execute(_LEAD, (AdvisoryLock.VIEW_LEADER, name))
    row = await cur.fetchone()
    return bool(row and row[0])


async def load_state(cur: AsyncCursor[Any], name: str) -> ViewState | None:
    """Return the state of a view; None if it never began."""
    await cur.execute(_STATE, (name,))
    row = await cur.fetchone()
    return ViewState(*row) if row else None


async def load_states(cur: AsyncCursor[Any]) -> list[ViewState]:
    """Return the state of every view, by name."""
    await cur.execute(_STATES + "ORDER BY view")
    return [ViewState(*row) for row in await cur.fetchall()]


async def has_stopped(cur: AsyncCursor[Any], view: str) -> bool:
    """Return whether a view has stopped before an event that it cannot apply."""
    await cur.execute(_STOPPED, (view,))
    return await cur.fetchone() is not None


async def position_reached(cur: AsyncCursor[Any], ledger_id: int, *views: str) -> int:
    """Return the position up to which all these views have read a ledger; 0 if one has not begun.

    Ask before reading rows: the rows are then at least as new as the answer says.
    """
    await cur.execute(_REACHED, (list(views), ledger_id))
    row = await cur.fetchone()
    return int(row[0]) if row else 0


async def record_start(cur: AsyncCursor[Any], name: str, version: int, state: str) -> None:
    """Record that a view begins, having read nothing."""
    await cur.execute(_START, (name, version, state))


async def load_positions(cur: AsyncCursor[Any], name: str, version: int, *, lock: bool = False) -> dict[int, int]:
    """Return how far a view has read each ledger; `lock` keeps it there until the transaction ends."""
    if lock:
        await cur.execute(_LOCK_VIEW, (name,))
    await cur.execute(_LOCK_POSITIONS if lock else _POSITIONS, (name, version))
    return dict(await cur.fetchall())


def positions_after(old: Mapping[int, int], page: EventPage) -> dict[int, int]:
    """Return the positions after a page.

    Raises:
        PositionGap: an event of the page does not follow what was read before.

    """
    for ledger_id, span in page.spans.items():
        before = old.get(ledger_id, 0)
        if span.first != before + 1:
            raise PositionGap(f"Event {span.first} of ledger {ledger_id} was read after {before}.")
    return {**old, **{ledger_id: span.last for ledger_id, span in page.spans.items()}}


async def advance(cur: AsyncCursor[Any], name: str, version: int, old: Mapping[int, int], page: EventPage) -> None:
    """Move a view from the positions that a page was read from to the positions after it.

    Raises:
        CONFLICT_ERROR: the view is no longer at the old positions; in a pipeline the error comes later.

    """
    spans = page.spans
    new_ledgers = [ledger_id for ledger_id in spans if ledger_id not in old]
    if new_ledgers:
        await cur.execute(_ADD_LEDGERS, (name, version, Bigints(new_ledgers)))
    parameters = (
        Bigints(list(spans)),
        Bigints([span.first - 1 for span in spans.values()]),
        Bigints([span.last for span in spans.values()]),
        Times([span.recorded_at for span in spans.values()]),
    )
    await cur.execute(_ADVANCE, (*parameters, name, version, len(spans)))


async def record_failure(cur: AsyncCursor[Any], name: str, at: tuple[int, int], error: str) -> None:
    """Record the event, as ledger and position, that a view stopped before, and why."""
    await cur.execute(_FAIL, (error[:ERROR_CHARACTERS_MAX], *at, name))


async def record_recovery(cur: AsyncCursor[Any], name: str, state: str) -> bool:
    """Set a stopped view to `state` if it has read past the event that stopped it, and return whether it has."""
    await cur.execute(_RECOVER, (state, name))
    return cur.rowcount > 0


async def delete(cur: AsyncCursor[Any], names: Iterable[str]) -> None:
    """Delete the checkpoints and the state of these views."""
    for name in names:
        await cur.execute("DELETE FROM view_positions WHERE view = %s", (name,))
        await cur.execute("DELETE FROM view_versions WHERE view = %s", (name,))


async def swap_in(cur: AsyncCursor[Any], name: str, successor: str) -> None:
    """Replace a view's checkpoints and state with those of a successor: shadow tables that were swapped in."""
    await cur.execute("SELECT rebuilds FROM view_versions WHERE view = %s", (name,))
    row = await cur.fetchone()
    await delete(cur, [name])
    await cur.execute("UPDATE view_positions SET view = %s WHERE view = %s", (name, successor))
    await cur.execute(
        "UPDATE view_versions SET view = %s, state = 'following', rebuilds = %s, changed_at = now() WHERE view = %s",
        (name, (row[0] if row else 0) + 1, successor),
    )
