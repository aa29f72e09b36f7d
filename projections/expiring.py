"""When does each code expire, and for which codes is an expiry or a reminder due to be recorded?

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
VERSION: Final = 3


@dataclass(slots=True)
class ExpiringRow:
    """One code's end: `open` until it is revoked or the expiry at `expires_at` is recorded; an extension reopens it.

    Attributes:
        set_at: the effective time of the event that set this end.
        extended: whether that was an extension.
        reminded_days: the days of the last reminder of this end; None before the first.
        due_at: while it is open, when the next reminder or the expiry is due to be recorded.
        position: of the last event of the code that this view read.

    """

    ledger_id: int
    code_id: UUID
    creator_id: str
    video_id: str
    starts_at: datetime
    expires_at: datetime
    set_at: datetime
    extended: bool
    reminded_days: int | None
    due_at: datetime
    open: bool
    revoked: bool
    position: int


class Due(NamedTuple):
    """A code with a reminder or an expiry that is due; ordered by the moment it is due, then by code."""

    due_at: datetime
    code_id: UUID


EXPIRING: Final = Table(
    "expiring",
    ExpiringRow,
    key=("ledger_id", "code_id"),
    fixed=(
        "creator_id",
        "video_id",
        "starts_at",
    ),
    ddl="""
        CREATE TABLE {table} (
            ledger_id           int NOT NULL,
            code_id             uuid NOT NULL,
            creator_id          text NOT NULL,
            video_id            text NOT NULL,
            starts_at           timestamptz NOT NULL,
            expires_at          timestamptz NOT NULL,
            set_at              timestamptz NOT NULL,
            extended            boolean NOT NULL,
            reminded_days       int,
            due_at              timestamptz NOT NULL,
            open                boolean NOT NULL,
            revoked             boolean NOT NULL,
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
        starts_at=event.starts_at if event.start_stated else recorded.effective_at,
        expires_at=event.expires_at,
        set_at=recorded.effective_at,
        extended=False,
        reminded_days=None,
        due_at=event.expires_at,
        open=True,
        revoked=False,
        position=recorded.position,
    )
    _set_due(row)
    return row


def extended(row: ExpiringRow, recorded: RecordedEvent, event: Code.Extended) -> None:
    row.position = recorded.position
    if row.extended and recorded.effective_at < row.set_at:
        return  # an extension that took effect later set the end
    row.expires_at = event.expires_at
    row.set_at, row.extended = recorded.effective_at, True
    row.reminded_days = None
    row.open = not row.revoked
    _set_due(row)


def reminded(row: ExpiringRow, recorded: RecordedEvent, event: Code.ExpiryApproaching) -> None:
    row.reminded_days = event.days_left
    row.position = recorded.position
    _set_due(row)


def expired(row: ExpiringRow, recorded: RecordedEvent, event: Code.Expired) -> None:
    row.position = recorded.position
    if event.expires_at == row.expires_at:  # an earlier end is of a period before this one
        row.open = False


def revoked(row: ExpiringRow, recorded: RecordedEvent, _event: Code.Revoked) -> None:
    row.open, row.revoked = False, True
    row.position = recorded.position


def _set_due(row: ExpiringRow) -> None:
    """Set when a reminder or the expiry is due next, by the same rule as `Code.reminder_due`."""
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
        Code.Expired: expired,
        Code.Revoked: revoked,
    },
)


# One index look-up for each ledger, however many codes it has.
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
    """Return, by ledger, when something is due next, in the past or ahead, the earliest first.

    Ledgers without open codes are left out, and in each ledger all that is due up to its entry in `passed`, included.
    The cursor must be a worker's, which sees every ledger, with answers in binary.
    """
    due_ats, code_ids = [due.due_at for due in passed.values()], [due.code_id for due in passed.values()]
    parameters = (Bigints(list(passed)), Times(due_ats), Uuids(code_ids), BEGINNING.code_id)
    await cur.execute(_FIRST_DUE, parameters, prepare=True)
    return dict(await cur.fetchall())


async def due(cur: AsyncCursor[Any], ledger_id: int, now: datetime, limit: int, *, after: Due = BEGINNING) -> list[Due]:
    """Return codes of a ledger for which something is due, the longest due first; `after` ends the page before."""
    await cur.execute(_DUE, (ledger_id, *after, now, limit), prepare=True)
    return [Due(*row) for row in await cur.fetchall()]
