"""Parts of shadow tables, which processes of their own fill at the same time: each has the rows of some of the streams.

All events that change a row are of one stream, so no two processes write the same row; only counts are added to by all.
Each part has checkpoints of its own, which its process moves together with the rows, as a view's. So no event is lost
or applied twice, whichever process is killed. Once all parts are at the same positions, the shadow tables are there,
too, and the parts are no more. Their state is that of the shadow tables.

Every function works in the caller's transaction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from projections.engine.array_columns import Bigints
from projections.engine.checkpoints import CheckpointConflict
from projections.engine.view import SHADOW_SUFFIX

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from psycopg import AsyncCursor


class Part(NamedTuple):
    """One of so many parts, from 1."""

    number: int
    parts: int

    def name(self, view: str) -> str:
        """Return its name in the durable tables, such as `codes_1_of_2_next`."""
        return f"{view}_{self.number}_of_{self.parts}{SHADOW_SUFFIX}"


_NAMES: Final = f"^%s_[0-9]+_of_[0-9]+{SHADOW_SUFFIX}$"

_BEGIN: Final = """
INSERT INTO view_positions (view, version, ledger_id, position)
SELECT part.view, %(version)s, part_of.ledger_id, coalesce(p.position, 0)
FROM unnest(%(parts)s::text[]) AS part (view)
CROSS JOIN unnest(%(ledgers)b) AS part_of (ledger_id)
LEFT JOIN view_positions p ON p.view = %(view)s AND p.version = %(version)s AND p.ledger_id = part_of.ledger_id
"""

_LOAD: Final = """
SELECT view, ledger_id, position
FROM view_positions
WHERE view ~ %s
AND version = %s
ORDER BY view, ledger_id
FOR UPDATE
"""

_JOIN: Final = """
INSERT INTO view_positions (view, version, ledger_id, position, recorded_at)
SELECT %(view)s, version, ledger_id, position, max(recorded_at)
FROM view_positions
WHERE view ~ %(parts)s
AND version = %(version)s
GROUP BY version, ledger_id, position
ON CONFLICT (view, version, ledger_id) DO UPDATE
SET position = excluded.position, recorded_at = coalesce(excluded.recorded_at, view_positions.recorded_at)
"""

_DROP: Final = "DELETE FROM view_positions WHERE view ~ %s"


async def begin(cur: AsyncCursor[Any], view: str, version: int, parts: int, ledgers: Iterable[int]) -> None:
    """Let parts begin where the shadow tables are, in these ledgers."""
    names = [Part(number, parts).name(view) for number in range(1, parts + 1)]
    begun = {"view": view + SHADOW_SUFFIX, "version": version, "parts": names, "ledgers": Bigints(list(ledgers))}
    await cur.execute(_BEGIN, begun)


async def load(cur: AsyncCursor[Any], view: str, version: int) -> Mapping[str, Mapping[int, int]]:
    """Return the positions of each part that has begun, which stay there until the transaction ends."""
    await cur.execute(_LOAD, (_NAMES % view, version))
    reached: dict[str, dict[int, int]] = {}
    for name, ledger_id, position in await cur.fetchall():
        reached.setdefault(name, {})[ledger_id] = position
    return reached


async def join(cur: AsyncCursor[Any], view: str, version: int) -> None:
    """Move the shadow tables to the positions of their parts.

    Raises:
        CheckpointConflict: the parts are not all at the same positions.

    """
    first, *others = (await load(cur, view, version)).values()
    if any(other != first for other in others):
        raise CheckpointConflict
    await cur.execute(_JOIN, {"view": view + SHADOW_SUFFIX, "version": version, "parts": _NAMES % view})
    await drop(cur, view)


async def drop(cur: AsyncCursor[Any], view: str) -> None:
    """Delete the checkpoints of all parts, in whatever version."""
    await cur.execute(_DROP, (_NAMES % view,))
