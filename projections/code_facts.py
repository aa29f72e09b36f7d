"""Whose code is it, and of which video? Rows about codes, read together with the view of codes, which knows.

A row of another view names its code and its creator's stream; the names that people know stand in the view of codes
alone. Views do not read at the same pace: what is asked for together is answered as far as both have come.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from psycopg import sql

from projections import codes

if TYPE_CHECKING:
    from psycopg import AsyncCursor

    from projections.engine.paging import ListQuery
    from projections.engine.table import Table

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class WithCodeFacts(Generic[R]):
    """A row about a code, with whose code that is and of which video."""

    row: R
    creator_id: str
    video_id: str


_WITH_CODE: Final = sql.SQL("""
    SELECT {columns}, c.creator_id, c.video_id
    FROM ({page}) t
    JOIN views.codes c ON c.ledger_id = t.ledger_id AND c.code_id = t.code_id
    ORDER BY t.{moment} {direction}, t.position {direction}
""")

# A code that the view was told to skip takes no place on a page. OFFSET 0 keeps it one look-up a row, whatever the
# planner believes.
_KNOWN: Final = """
    EXISTS (SELECT FROM views.codes c WHERE c.ledger_id = t.ledger_id AND c.code_id = t.code_id OFFSET 0)
"""

_STREAMS: Final = """
    SELECT s.creator_stream
    FROM unnest(%(creator_ids)s::text[]) AS x (creator_id)
    CROSS JOIN LATERAL (
        SELECT c.creator_stream
        FROM views.codes c
        WHERE c.ledger_id = %(ledger_id)s
        AND c.creator_id = x.creator_id
        LIMIT 1
    ) s
"""


async def require_video_and_creators(
    cur: AsyncCursor[Any], asked: ListQuery, video_id: str | None, creator_ids: Collection[str] | None
) -> None:
    """Demand that a row is about a code of this video, and of any of these creators; None is no demand."""
    if video_id is not None:
        asked.one_of({"code_id": await codes.of_video(cur, asked.ledger_id, video_id)})
    if creator_ids is not None:
        await cur.execute(_STREAMS, {"ledger_id": asked.ledger_id, "creator_ids": list(creator_ids)})
        asked.one_of({"creator_stream": [row[0] for row in await cur.fetchall()]})


async def page(cur: AsyncCursor[Any], table: Table[R], asked: ListQuery, upto: int) -> list[WithCodeFacts[R]]:
    """Return the page that is asked for, with what the view of codes knows.

    `upto` is the position that both views have read: rows of later events are left out.
    """
    if asked.impossible:
        return []
    asked.where("t.position <= %(upto)s", upto=upto)
    asked.where(_KNOWN)
    query = _WITH_CODE.format(columns=table.select(), page=asked.query(), **asked.order())
    return [WithCodeFacts(row, *more) for row, more in await table.fetch_with(cur, query, asked.parameters())]
