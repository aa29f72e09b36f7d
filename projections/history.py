"""Which events concern this code, creator, video, advertiser or actor, and when were they recorded?

Reads every event. Read by the audit trail and a code's history: both search here for positions and read the events
themselves from the log.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from psycopg import sql

from domain.code import Code
from domain.creator import Creator
from projections.table import Table
from projections.view import View

if TYPE_CHECKING:
    from psycopg import AsyncCursor

    from domain.recorded import Event, Recorded

NAME: Final = "history"
VERSION: Final = 1


@dataclass(slots=True)
class EntryRow:
    """One event, by what it may be searched for.

    `creator_id` and `video_id` stand where the event itself names them. The other events of a creator or of a video's
    codes are found by `creator_stream` and `code_id`: the same ids again would double the largest index there is.
    `code_id` is None for events of a permission; `actor` is a key's id, or "clock".
    """

    ledger_id: int
    position: int
    type: str
    code_id: UUID | None
    creator_stream: UUID
    creator_id: str | None
    video_id: str | None
    brand_id: str | None
    advertiser_id: str | None
    actor: str
    recorded_at: datetime
    effective_at: datetime


HISTORY: Final = Table(
    "history",
    EntryRow,
    key=("ledger_id", "position"),
    ddl="""
        CREATE TABLE {table} (
            ledger_id           int NOT NULL,
            position            bigint NOT NULL,
            type                text NOT NULL,
            code_id             uuid,
            creator_stream      uuid NOT NULL,
            creator_id          text,
            video_id            text,
            brand_id            text,
            advertiser_id       text,
            actor               text NOT NULL,
            recorded_at         timestamptz NOT NULL,
            effective_at        timestamptz NOT NULL,
            PRIMARY KEY (ledger_id, position)
        )
    """,
    indexes=(
        "CREATE INDEX ON {table} (ledger_id, code_id, position)",
        "CREATE INDEX ON {table} (ledger_id, creator_stream, position)",
        "CREATE INDEX ON {table} (ledger_id, creator_id) WHERE type = 'PermissionEnabled'",
        "CREATE INDEX ON {table} (ledger_id, video_id) WHERE type = 'CodeGenerated'",
        "CREATE INDEX ON {table} (ledger_id, advertiser_id, position) WHERE advertiser_id IS NOT NULL",
        "CREATE INDEX ON {table} (ledger_id, actor, position)",
        "CREATE INDEX ON {table} (ledger_id, type, position)",
        # recorded_at never decreases with position, so this one turns a time into a position.
        "CREATE INDEX ON {table} (ledger_id, recorded_at, position)",
    ),
)


def entered(ledger_id: int, recorded: Recorded, event: Event) -> EntryRow:
    named = vars(event).get
    return EntryRow(
        ledger_id=ledger_id,
        position=recorded.position,
        type=recorded.type,
        code_id=recorded.stream_id if isinstance(event, Code.Event) else None,
        creator_stream=recorded.creator_stream,
        creator_id=named("creator_id"),
        video_id=named("video_id"),
        brand_id=named("brand_id"),
        advertiser_id=named("advertiser_id"),
        actor=recorded.actor.key_id,
        recorded_at=recorded.recorded_at,
        effective_at=recorded.effective_at,
    )


VIEW: Final = View(
    NAME,
    VERSION,
    HISTORY,
    row_of=lambda recorded: recorded.position,
    begins={Creator.Event: entered, Code.Event: entered},
)


_SEARCH: Final = sql.SQL("""
    SELECT h.position
    FROM views.history h
    WHERE h.ledger_id = %(ledger_id)s
    {filters}
    ORDER BY h.position {direction}
    LIMIT %(limit)s
""")

# A single creator is compared by equality, for its events then come from the index in order.
_OF_CREATOR: Final = sql.SQL("""
    AND h.creator_stream = (
        SELECT creator_stream
        FROM views.history
        WHERE ledger_id = %(ledger_id)s
        AND creator_id = %(creator_id)s
        AND type = 'PermissionEnabled'
        LIMIT 1
    )
""")

_OF_CREATORS: Final = sql.SQL("""
    AND h.creator_stream = ANY (ARRAY(
        SELECT creator_stream
        FROM views.history
        WHERE ledger_id = %(ledger_id)s
        AND creator_id = ANY (%(creator_ids)s)
        AND type = 'PermissionEnabled'
    ))
""")

_OF_VIDEO: Final = sql.SQL("""
    AND h.code_id = ANY (ARRAY(
        SELECT code_id
        FROM views.history
        WHERE ledger_id = %(ledger_id)s
        AND video_id = %(video_id)s
        AND type = 'CodeGenerated'
    ))
""")

_FROM: Final = sql.SQL("""
    AND h.position >= (
        SELECT position
        FROM views.history
        WHERE ledger_id = %(ledger_id)s
        AND recorded_at >= %(recorded_from)s
        ORDER BY recorded_at, position
        LIMIT 1
    )
""")

_BEFORE: Final = sql.SQL("""
    AND h.position <= (
        SELECT position
        FROM views.history
        WHERE ledger_id = %(ledger_id)s
        AND recorded_at < %(recorded_before)s
        ORDER BY recorded_at DESC, position DESC
        LIMIT 1
    )
""")


async def search(
    cur: AsyncCursor[Any],
    ledger_id: int,
    *,
    limit: int,
    after: int | None = None,
    before: int | None = None,
    descending: bool = False,
    code_id: UUID | None = None,
    creator_ids: Collection[str] | None = None,
    video_id: str | None = None,
    advertiser_id: str | None = None,
    actor: str | None = None,
    type: str | None = None,
    recorded_from: datetime | None = None,
    recorded_before: datetime | None = None,
) -> list[int]:
    """Return the positions of the events that pass every filter given, in the order asked for.

    Args:
        cur: bound to the ledger; rows as tuples.
        ledger_id: the ledger.
        limit: positions at most.
        after: only later positions.
        before: only earlier positions.
        descending: newest first.
        code_id: events of this code.
        creator_ids: events of these creators' permissions and of all their codes; an empty collection matches none.
        video_id: events of every code of this video.
        advertiser_id: events that name this advertiser account.
        actor: events recorded by this key: its id as text, "clock" for the clock.
        type: events of this wire name.
        recorded_from: recorded at this moment or later.
        recorded_before: recorded before this moment.

    """
    one_creator = next(iter(creator_ids)) if creator_ids is not None and len(creator_ids) == 1 else None
    filters: list[tuple[sql.SQL, str, Any]] = [
        (sql.SQL("AND h.position > %(after)s"), "after", after),
        (sql.SQL("AND h.position < %(before)s"), "before", before),
        (sql.SQL("AND h.code_id = %(code_id)s"), "code_id", code_id),
        (_OF_CREATOR, "creator_id", one_creator),
        (_OF_CREATORS, "creator_ids", None if creator_ids is None or one_creator else list(creator_ids)),
        (_OF_VIDEO, "video_id", video_id),
        (sql.SQL("AND h.advertiser_id = %(advertiser_id)s"), "advertiser_id", advertiser_id),
        (sql.SQL("AND h.actor = %(actor)s"), "actor", actor),
        (sql.SQL("AND h.type = %(type)s"), "type", type),
        (_FROM, "recorded_from", recorded_from),
        (_BEFORE, "recorded_before", recorded_before),
    ]
    asked = [(clause, name, value) for clause, name, value in filters if value is not None]
    query = _SEARCH.format(
        filters=sql.SQL(" ").join(clause for clause, _, _ in asked),
        direction=sql.SQL("DESC" if descending else "ASC"),
    )
    await cur.execute(query, {"ledger_id": ledger_id, "limit": limit, **{name: value for _, name, value in asked}})
    return [row[0] for row in await cur.fetchall()]
