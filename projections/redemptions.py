"""Who entered a code, and who was turned away, why?

Reads redemptions and recorded refusals. Read by a code's page and by the statistics. The same refusal is recorded
once an hour; repeats within it are counted elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from psycopg import sql

from domain.code import Code
from projections.table import Table
from projections.view import View

if TYPE_CHECKING:
    from psycopg import AsyncCursor

    from domain.recorded import Recorded

NAME: Final = "redemptions"
VERSION: Final = 1


@dataclass(slots=True)
class AttemptRow:
    """One attempt to redeem, at an effective time.

    `refused` is the refusal's reason, None for a redemption; `shared_with_advertiser` is None for a refusal.
    """

    ledger_id: int
    position: int
    code_id: UUID
    advertiser_id: str
    refused: str | None
    shared_with_advertiser: bool | None
    at: datetime


@dataclass(frozen=True, slots=True)
class Refusals:
    """How often a code refused an advertiser for a reason, in the hour (UTC) that begins at `hour`."""

    hour: datetime
    code_id: UUID
    advertiser_id: str
    reason: str
    count: int


REDEMPTIONS: Final = Table(
    "redemptions",
    AttemptRow,
    key=("ledger_id", "position"),
    ddl="""
        CREATE TABLE {table} (
            ledger_id               int NOT NULL,
            position                bigint NOT NULL,
            code_id                 uuid NOT NULL,
            advertiser_id           text NOT NULL,
            refused                 text,
            shared_with_advertiser  boolean,
            at                      timestamptz NOT NULL,
            PRIMARY KEY (ledger_id, position)
        )
    """,
    indexes=(
        "CREATE INDEX ON {table} (ledger_id, code_id, position)",
        "CREATE INDEX ON {table} (ledger_id, at) WHERE refused IS NULL",
        "CREATE INDEX ON {table} (ledger_id, at) WHERE refused IS NOT NULL",
        "CREATE INDEX ON {table} (ledger_id, advertiser_id, at) WHERE refused IS NOT NULL",
    ),
)


def redeemed(ledger_id: int, recorded: Recorded, event: Code.Redeemed) -> AttemptRow:
    return AttemptRow(
        ledger_id=ledger_id,
        position=recorded.position,
        code_id=recorded.stream_id,
        advertiser_id=event.advertiser_id,
        refused=None,
        shared_with_advertiser=event.shared_with_advertiser,
        at=recorded.effective_at,
    )


def refused(ledger_id: int, recorded: Recorded, event: Code.RedemptionRefused) -> AttemptRow:
    return AttemptRow(
        ledger_id=ledger_id,
        position=recorded.position,
        code_id=recorded.stream_id,
        advertiser_id=event.advertiser_id,
        refused=event.reason,
        shared_with_advertiser=None,
        at=recorded.effective_at,
    )


VIEW: Final = View(
    NAME,
    VERSION,
    REDEMPTIONS,
    row_of=lambda recorded: recorded.position,
    begins={Code.Redeemed: redeemed, Code.RedemptionRefused: refused},
)


_OF_CODE: Final = sql.SQL("""
    SELECT {columns}
    FROM views.redemptions t
    WHERE t.ledger_id = %(ledger_id)s
    AND t.code_id = %(code_id)s
    ORDER BY t.position
    LIMIT %(limit)s
""").format(columns=REDEMPTIONS.select())

_REFUSALS: Final = sql.SQL("""
    SELECT date_trunc('hour', at, 'UTC'), code_id, advertiser_id, refused, count(*)
    FROM views.redemptions
    WHERE ledger_id = %(ledger_id)s
    AND refused IS NOT NULL
    {filters}
    GROUP BY 1, 2, 3, 4
    ORDER BY 1 DESC, 2, 3, 4
    LIMIT %(limit)s
""")

_BY_REASON: Final = sql.SQL("""
    SELECT refused, count(*)
    FROM views.redemptions
    WHERE ledger_id = %(ledger_id)s
    AND refused IS NOT NULL
    {filters}
    GROUP BY 1
    ORDER BY 1
""")

_COUNT: Final = sql.SQL("""
    SELECT count(*)
    FROM views.redemptions
    WHERE ledger_id = %(ledger_id)s
    AND refused IS NULL
    {filters}
""")

_FILTERS: Final[dict[str, sql.SQL]] = {
    "code_id": sql.SQL("AND code_id = %(code_id)s"),
    "advertiser_id": sql.SQL("AND advertiser_id = %(advertiser_id)s"),
    "since": sql.SQL("AND at >= %(since)s"),
    "until": sql.SQL("AND at < %(until)s"),
}


async def of_code(cur: AsyncCursor[Any], ledger_id: int, code_id: UUID, *, limit: int = 1000) -> list[AttemptRow]:
    """Return the recorded attempts on a code, oldest first."""
    return await REDEMPTIONS.fetch(cur, _OF_CODE, {"ledger_id": ledger_id, "code_id": code_id, "limit": limit})


async def refusals(
    cur: AsyncCursor[Any],
    ledger_id: int,
    *,
    limit: int,
    code_id: UUID | None = None,
    advertiser_id: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> list[Refusals]:
    """Return recorded refusals by hour, newest first, whose effective time lies from `since` until before `until`."""
    asked = {"code_id": code_id, "advertiser_id": advertiser_id, "since": since, "until": until}
    rows = await _ask(cur, _REFUSALS, {"ledger_id": ledger_id, "limit": limit}, asked)
    return [Refusals(*row) for row in rows]


async def count_by_reason(
    cur: AsyncCursor[Any], ledger_id: int, *, since: datetime | None = None, until: datetime | None = None
) -> dict[str, int]:
    """Return how many refusals were recorded for each reason; `since` and `until` as in `refusals`."""
    return dict(await _ask(cur, _BY_REASON, {"ledger_id": ledger_id}, {"since": since, "until": until}))


async def count(
    cur: AsyncCursor[Any], ledger_id: int, *, since: datetime | None = None, until: datetime | None = None
) -> int:
    """Return how many redemptions were recorded; `since` and `until` as in `refusals`."""
    rows = await _ask(cur, _COUNT, {"ledger_id": ledger_id}, {"since": since, "until": until})
    return int(rows[0][0])


async def _ask(cur: AsyncCursor[Any], query: sql.SQL, always: dict[str, Any], asked: dict[str, Any]) -> list[Any]:
    given = {name: value for name, value in asked.items() if value is not None}
    filters = sql.SQL(" ").join(_FILTERS[name] for name in given)
    await cur.execute(query.format(filters=filters), {**always, **given})
    return await cur.fetchall()
