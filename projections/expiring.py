"""Which code expires when, and of which has the clock something to record: its expiry, or that it approaches?

Reads the events that set or end a code's window, and the reminders of its end. Read by the expiry clock (`first_due`
and `due`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID

from domain.code import Code
from domain.reminders import reminders
from domain.values import Window
from projections.engine.array_columns import Bigints, Times, Uuids
from projections.engine.table import Table
from projections.engine.view import View

if TYPE_CHECKING:
    from psycopg import AsyncCursor

    from domain.recorded import RecordedEvent

NAME: Final = "expiring"
VERSION: Final = 2


@dataclass(slots=True)
class ExpiringRow:
    """One code's end: `open` until it is revoked or the expiry at `expires_at` is recorded; extending opens it again.

    Attributes:
        set_at: the effective time of what set this end.
        reminded_days: the days of the last reminder of this end, None before the first.
        due_at: when the clock has to record something next, a reminder or the expiry, while it is open.
        position: that of the last event that this view read of the code.

    """

    ledger_id: int
    code_id: UUID
    creator_id: str
    video_id: str
    starts_at: datetime
    expires_at: datetime
    set_at: datetime
    reminded_days: int | None
    due_at: datetime
    open: bool
    position: int


class Due(NamedTuple):
    """A code of which something is to be recorded since a moment; by that moment, then by code, they are in order."""

    due_at: datetime
    code_id: UUID


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
            starts_at           timestamptz NOT NULL,
            expires_at          timestamptz NOT NULL,
            set_at              timestamptz NOT NULL,
            reminded_days       int,
            due_at              timestamptz NOT NULL,
            open                boolean NOT NULL,
            position            bigint NOT NULL,
            PRIMARY KEY (ledger_id, code_id)
        )
    """,
    indexes=("CREATE INDEX ON {table} (ledger_id, due_at, code_id) WHERE open",),
)


def generated(ledger_id: int, recorded: RecordedEvent, event: Code.Generated) -> ExpiringRow:
    row = ExpiringRow(
        ledger_id=ledger_id,
        code_id=recorded.stream_id,
        creator_id=event.creator_id,
        video_id=event.video_id,
        starts_at=event.starts_at,
        expires_at=event.expires_at,
        set_at=recorded.effective_at,
        reminded_days=None,
        due_at=event.expires_at,
        open=True,
        position=recorded.position,
    )
    _date(row)
    return row


def extended(row: ExpiringRow, recorded: RecordedEvent, event: Code.Extended) -> None:
    row.expires_at = event.expires_at
    row.set_at = recorded.effective_at
    row.reminded_days = None
    row.open = True
    row.position = recorded.position
    _date(row)


def reminded(row: ExpiringRow, recorded: RecordedEvent, event: Code.ExpiryApproaching) -> None:
    row.reminded_days = event.days_left
    row.position = recorded.position
    _date(row)


def closed(row: ExpiringRow, recorded: RecordedEvent, _event: Code.Revoked | Code.Expired) -> None:
    row.open = False
    row.position = recorded.position


def _date(row: ExpiringRow) -> None:
    """Set when something is due next, by the rule that `Code.reminder_due` follows."""
    ahead = reminders(Window(row.starts_at, row.expires_at), row.set_at, row.reminded_days)
    row.due_at = ahead[0].at if ahead else row.expires_at


VIEW: Final = View(
    NAME,
    VERSION,
    EXPIRING,
    row_of=lambda recorded: recorded.stream_id,
    creates={Code.Generated: generated},
    updates={
        Code.Extended: extended,
        Code.ExpiryApproaching: reminded,
        Code.Revoked: closed,
        Code.Expired: closed,
    },
)


# For each ledger one look into the index, however many ledgers and codes there are.
_FIRST_DUE: Final = """
    SELECT l.ledger_id, d.due_at
    FROM ledgers l
    LEFT JOIN unnest(%b, %b, %b) AS passed (ledger_id, due_at, code_id) ON passed.ledger_id = l.ledger_id
    CROSS JOIN LATERAL (
        SELECT t.due_at
        FROM views.expiring t
        WHERE t.ledger_id = l.ledger_id
        AND t.open
        AND (t.due_at, t.code_id) > (coalesce(passed.due_at, '-infinity'), coalesce(passed.code_id, %b))
        ORDER BY t.due_at, t.code_id
        LIMIT 1
    ) d
    ORDER BY d.due_at, l.ledger_id
"""

_DUE: Final = """
    SELECT due_at, code_id
    FROM views.expiring
    WHERE ledger_id = %b
    AND open
    AND (due_at, code_id) > (%b, %b)
    AND due_at <= %b
    ORDER BY due_at, code_id
    LIMIT %b
"""

# Before anything that is due.
BEGINNING: Final = Due(datetime(1, 1, 1, tzinfo=UTC), UUID(int=0))


async def first_due(cur: AsyncCursor[Any], passed: Mapping[int, Due]) -> dict[int, datetime]:
    """Return by ledger when something is due next, past or ahead, the earliest first; no ledger without open codes.

    The cursor must see every ledger and answer in binary: this is the clock's question, asked as the worker. What a
    ledger has up to and with its entry in `passed` is left out.
    """
    due_ats, code_ids = [due.due_at for due in passed.values()], [due.code_id for due in passed.values()]
    parameters = (Bigints(list(passed)), Times(due_ats), Uuids(code_ids), BEGINNING.code_id)
    await cur.execute(_FIRST_DUE, parameters, prepare=True)
    return dict(await cur.fetchall())


async def due(cur: AsyncCursor[Any], ledger_id: int, now: datetime, limit: int, *, after: Due = BEGINNING) -> list[Due]:
    """Return codes of a ledger of which something is to be recorded, the longest due first; `after` the page before."""
    await cur.execute(_DUE, (ledger_id, *after, now, limit), prepare=True)
    return [Due(*row) for row in await cur.fetchall()]
