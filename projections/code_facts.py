"""Facts of a code, its creator and its video, joined to the rows of other views.

Rows of shares and redemptions name their code and its creator's stream; only the view of codes has the ids of creator
and video. Views do not read the log at the same pace, so a join shows what both views have read.
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
    """A row about a code, with the code's creator and video, and what else was computed for it."""

    row: R
    creator_id: str
    video_id: str
    more: Any = None


_WITH_CODE: Final = sql.SQL("""
    SELECT {columns}, c.creator_id, c.video_id, {more}
    FROM ({page}) t
    JOIN views.codes c ON c.ledger_id = t.ledger_id AND c.code_id = t.code_id
    ORDER BY t.{moment} {direction}, t.position {direction}
""")

# Rows of a code that the view of codes skips must not count towards a page. OFFSET 0 makes the planner look up row by
# row.
_CODE_EXISTS: Final = """
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


_NOTHING_MORE: Final = sql.SQL("NULL")


async def require_video_and_creators(
    cur: AsyncCursor[Any], query: ListQuery, video_id: str | None, creator_ids: Collection[str] | None
) -> None:
    """Require that a row is about a code of this video, and of any of these creators; None requires nothing."""
    if video_id is not None:
        query.one_of({"code_id": await codes.of_video(cur, query.ledger_id, video_id)})
    if creator_ids is not None:
        await cur.execute(_STREAMS, {"ledger_id": query.ledger_id, "creator_ids": list(creator_ids)})
        query.one_of({"creator_stream": [row[0] for row in await cur.fetchall()]})


async def fetch_page(
    cur: AsyncCursor[Any], table: Table[R], query: ListQuery, upto: int, more: sql.SQL = _NOTHING_MORE
) -> list[WithCodeFacts[R]]:
    """Return the rows of a page, each with the facts of its code.

    `upto` is the position that all views have read: rows of later events are left out. `more` is an expression that is
    computed of each row `t`.
    """
    if query.matches_nothing:
        return []
    query.where("t.position <= %(upto)s", upto=upto)
    query.where(_CODE_EXISTS)
    joined = _WITH_CODE.format(columns=table.select(), more=more, page=query.statement(), **query.order())
    return [WithCodeFacts(row, *facts) for row, facts in await table.fetch_with(cur, joined, query.parameters())]
