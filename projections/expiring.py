"""Which code expires when, and which end has come without being recorded?

Reads the events that set or end a code's window. Read by the expiry clock (`due`, over all ledgers), by the list of
expiries ahead and by the statistics.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID

from psycopg import sql

from domain.code import Code
from projections.table import Table
from projections.view import View

if TYPE_CHECKING:
    from psycopg import AsyncCursor

    from domain.recorded import Recorded

NAME: Final = "expiring"
VERSION: Final = 1


@dataclass(slots=True)
class ExpiringRow:
    """One code's end: `open` until it is revoked or the expiry at `expires_at` is recorded; extending opens it again.

    `position` is that of the last event that this view read of the code.
    """

    ledger_id: int
    code_id: UUID
    creator_id: str
    video_id: str
    expires_at: datetime
    open: bool
    position: int


class Due(NamedTuple):
    """A code whose window is over and whose expiry nobody recorded yet."""

    ledger_id: int
    code_id: UUID
    expires_at: datetime


EXPIRING: Final = Table(
    "expiring",
    ExpiringRow,
    key=("ledger_id", "code_id"),
    ddl="""
        CREATE TABLE {table} (
            ledger_id           int NOT NULL,
            code_id             uuid NOT NULL,
            creator_id          text NOT NULL,
            video_id            text NOT NULL,
            expires_at          timestamptz NOT NULL,
            open                boolean NOT NULL,
            position            bigint NOT NULL,
            PRIMARY KEY (ledger_id, code_id)
        )
    """,
    indexes=(
        # The clock asks for what is due in any ledger; everybody else asks within one.
        "CREATE INDEX ON {table} (expires_at) WHERE open",
        "CREATE INDEX ON {table} (ledger_id, expires_at, code_id) WHERE open",
    ),
)


def generated(ledger_id: int, recorded: Recorded, event: Code.Generated) -> ExpiringRow:
    return ExpiringRow(
        ledger_id=ledger_id,
        code_id=recorded.stream_id,
        creator_id=event.creator_id,
        video_id=event.video_id,
        expires_at=event.expires_at,
        open=True,
        position=recorded.position,
    )


def extended(row: ExpiringRow, recorded: Recorded, event: Code.Extended) -> None:
    row.expires_at = event.expires_at
    row.open = True
    row.position = recorded.position


def closed(row: ExpiringRow, recorded: Recorded, _event: Code.Revoked | Code.Expired) -> None:
    row.open = False
    row.position = recorded.position


VIEW: Final = View(
    NAME,
    VERSION,
    EXPIRING,
    row_of=lambda recorded: recorded.stream_id,
    begins={Code.Generated: generated},
    changes={Code.Extended: extended, Code.Revoked: closed, Code.Expired: closed},
)


_DUE: Final = """
    SELECT ledger_id, code_id, expires_at
    FROM views.expiring
    WHERE open
    AND expires_at <= %s
    ORDER BY expires_at
    LIMIT %s
"""

_NEXT_END: Final = """
    SELECT min(expires_at)
    FROM views.expiring
    WHERE open
"""

_AHEAD: Final = sql.SQL("""
    SELECT {columns}
    FROM views.expiring t
    WHERE t.ledger_id = %(ledger_id)s
    AND t.open
    AND (t.expires_at, t.code_id) > (%(after_time)s, %(after_code)s)
    AND t.expires_at < %(until)s
    ORDER BY t.expires_at, t.code_id
    LIMIT %(limit)s
""").format(columns=EXPIRING.select())

_COUNT_AHEAD: Final = """
    SELECT count(*)
    FROM views.expiring
    WHERE ledger_id = %s
    AND open
    AND expires_at > %s
    AND expires_at < %s
"""

_LAST_UUID: Final = UUID(int=2**128 - 1)


async def due(cur: AsyncCursor[Any], now: datetime, limit: int) -> list[Due]:
    """Return codes of all ledgers whose end has come and is not recorded yet, the longest overdue first.

    The cursor must see every ledger: this is the clock's question, asked as the worker.
    """
    await cur.execute(_DUE, (now, limit))
    return [Due(*row) for row in await cur.fetchall()]


async def next_end(cur: AsyncCursor[Any]) -> datetime | None:
    """Return the earliest end, past or ahead, that is not recorded yet in any ledger; None where no code is open."""
    await cur.execute(_NEXT_END)
    row = await cur.fetchone()
    return row[0] if row else None


async def ahead(
    cur: AsyncCursor[Any],
    ledger_id: int,
    *,
    now: datetime,
    until: datetime,
    limit: int,
    after: tuple[datetime, UUID] | None = None,
) -> list[ExpiringRow]:
    """Return the open codes that expire after `now` and before `until`, the soonest first.

    `after` is `(expires_at, code_id)` of the last row of the page before.
    """
    after_time, after_code = after or (now, _LAST_UUID)
    return await EXPIRING.fetch(
        cur,
        _AHEAD,
        {"ledger_id": ledger_id, "after_time": after_time, "after_code": after_code, "until": until, "limit": limit},
    )


async def count_ahead(cur: AsyncCursor[Any], ledger_id: int, *, now: datetime, until: datetime) -> int:
    """Return how many open codes expire after `now` and before `until`."""
    await cur.execute(_COUNT_AHEAD, (ledger_id, now, until))
    row = await cur.fetchone()
    return int(row[0]) if row else 0
