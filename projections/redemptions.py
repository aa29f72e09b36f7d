"""Who redeemed a code, and who was refused, for which reason?

Reads redemptions and refusals that were recorded. Read by the list of redemptions. The same refusal is recorded once an
hour; its repeats, and attempts with an unknown secret, are not recorded here. The code's creator and video are joined
from the view of codes, so the list shows what both views have read.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from domain.code import Code
from projections import code_facts
from projections.engine.paging import Keyset, ListQuery
from projections.engine.table import Table
from projections.engine.view import View

if TYPE_CHECKING:
    from collections.abc import Collection

    from psycopg import AsyncCursor

    from domain.recorded import RecordedEvent
    from projections.code_facts import WithCodeFacts

NAME: Final = "redemptions"
VERSION: Final = 2


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One attempt to redeem, at an effective time.

    `refused` is the refusal's reason, None for a redemption; `shared_with_advertiser` is None for a refusal.
    """

    ledger_id: int
    position: int
    code_id: UUID
    creator_stream: UUID
    advertiser_id: str
    refused: str | None
    shared_with_advertiser: bool | None
    at: datetime
    recorded_at: datetime


REDEMPTIONS: Final = Table(
    "redemptions",
    AttemptRow,
    key=("ledger_id", "position"),
    ddl="""
        CREATE TABLE {table} (
            ledger_id               int NOT NULL,
            position                bigint NOT NULL,
            code_id                 uuid NOT NULL,
            creator_stream          uuid NOT NULL,
            advertiser_id           text NOT NULL,
            refused                 text,
            shared_with_advertiser  boolean,
            at                      timestamptz NOT NULL,
            recorded_at             timestamptz NOT NULL,
            PRIMARY KEY (ledger_id, position)
        )
    """,
    indexes=(
        "CREATE INDEX ON {table} (ledger_id, at, position)",
        "CREATE INDEX ON {table} (ledger_id, code_id, at, position)",
        "CREATE INDEX ON {table} (ledger_id, creator_stream, at, position)",
        "CREATE INDEX ON {table} (ledger_id, advertiser_id, at, position)",
        # Few refusals among many redemptions, or the reverse: either may be asked for alone.
        "CREATE INDEX ON {table} (ledger_id, at, position) WHERE refused IS NULL",
        "CREATE INDEX ON {table} (ledger_id, at, position) WHERE refused IS NOT NULL",
        "CREATE INDEX ON {table} (ledger_id, refused, at, position) WHERE refused IS NOT NULL",
    ),
)


def redeemed(ledger_id: int, recorded: RecordedEvent, event: Code.Redeemed) -> AttemptRow:
    return AttemptRow(
        ledger_id=ledger_id,
        position=recorded.position,
        code_id=recorded.stream_id,
        creator_stream=recorded.creator_stream,
        advertiser_id=event.advertiser_id,
        refused=None,
        shared_with_advertiser=event.shared_with_advertiser,
        at=recorded.effective_at,
        recorded_at=recorded.recorded_at,
    )


def refused(ledger_id: int, recorded: RecordedEvent, event: Code.RedemptionRefused) -> AttemptRow:
    return AttemptRow(
        ledger_id=ledger_id,
        position=recorded.position,
        code_id=recorded.stream_id,
        creator_stream=recorded.creator_stream,
        advertiser_id=event.advertiser_id,
        refused=event.reason,
        shared_with_advertiser=None,
        at=recorded.effective_at,
        recorded_at=recorded.recorded_at,
    )


VIEW: Final = View(
    NAME,
    VERSION,
    REDEMPTIONS,
    row_of=lambda recorded: recorded.position,
    creates={Code.Redeemed: redeemed, Code.RedemptionRefused: refused},
)


async def search(
    cur: AsyncCursor[Any],
    ledger_id: int,
    *,
    upto: int,
    limit: int,
    after: Keyset | None = None,
    refused: bool | None = None,
    reason: str | None = None,
    shared: bool | None = None,
    code_id: UUID | None = None,
    creator_ids: Collection[str] | None = None,
    video_id: str | None = None,
    advertiser_id: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    visible_advertisers: Collection[str] | None = None,
) -> list[WithCodeFacts[AttemptRow]]:
    """Return the attempts that pass every filter, the latest first.

    Args:
        cur: bound to the ledger; rows as tuples.
        ledger_id: the ledger.
        upto: the position that both this view and the view of codes have read: later attempts are left out.
        limit: maximum number of rows.
        after: `at` and `position` of the last row of the page before.
        refused: only refusals, or only redemptions.
        reason: refused for this reason.
        shared: redemptions by an account that the code was known to be shared with, or not.
        code_id: on this code.
        creator_ids: on any of these creators' codes; an empty collection matches nothing.
        video_id: on any of this video's codes.
        advertiser_id: by this advertiser account.
        since: at this moment or later, in effective time.
        until: before this moment.
        visible_advertisers: the accounts whose attempts a brand's key may see. None: all attempts.

    """
    query = ListQuery(NAME, "at", ledger_id, limit, after)
    await code_facts.require_video_and_creators(cur, query, video_id, creator_ids)
    query.one_of({"advertiser_id": visible_advertisers})
    query.equal(code_id=code_id, advertiser_id=advertiser_id, refused=reason, shared_with_advertiser=shared)
    query.between(since, until)
    if refused is not None:
        query.where("t.refused IS NOT NULL" if refused else "t.refused IS NULL")
    return await code_facts.fetch_page(cur, REDEMPTIONS, query, upto)
