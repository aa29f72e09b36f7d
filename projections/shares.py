"""With whom was which code shared, over which channel, and when?

Reads every share. Read by the list of shares, and by the list of redemptions. A share that is recorded again, because
it was earlier than was known, replaces the one before. The code's creator and video are joined from the view of codes,
so the list shows what both views have read.
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

NAME: Final = "shares"
VERSION: Final = 4


@dataclass(frozen=True, slots=True)
class ShareRow:
    """One record of a share of a code with a brand, perhaps for one of its advertiser accounts.

    `share` is what identifies it; `shared_at` is the effective time; `position` is the event's. A share that is
    recorded again, because it was earlier, has a row for each record: lists as of an earlier position show the other.
    """

    ledger_id: int
    share: str
    position: int
    code_id: UUID
    creator_stream: UUID
    brand_id: str
    advertiser_id: str | None
    channel: str
    shared_at: datetime
    recorded_at: datetime


SHARES: Final = Table(
    "shares",
    ShareRow,
    key=("ledger_id", "position"),
    ddl="""
        CREATE TABLE {table} (
            ledger_id       int NOT NULL,
            share           text NOT NULL,
            position        bigint NOT NULL,
            code_id         uuid NOT NULL,
            creator_stream  uuid NOT NULL,
            brand_id        text NOT NULL,
            advertiser_id   text,
            channel         text NOT NULL,
            shared_at       timestamptz NOT NULL,
            recorded_at     timestamptz NOT NULL,
            PRIMARY KEY (ledger_id, position)
        )
    """,
    indexes=(
        "CREATE INDEX ON {table} (ledger_id, share, position)",
        "CREATE INDEX ON {table} (ledger_id, shared_at, position)",
        "CREATE INDEX ON {table} (ledger_id, code_id, shared_at, position)",
        "CREATE INDEX ON {table} (ledger_id, creator_stream, shared_at, position)",
        "CREATE INDEX ON {table} (ledger_id, brand_id, shared_at, position)",
        "CREATE INDEX ON {table} (ledger_id, advertiser_id, shared_at, position) WHERE advertiser_id IS NOT NULL",
        "CREATE INDEX ON {table} (ledger_id, channel, shared_at, position)",
        # Whether a code that was shared thousands of times was shared with an account.
        "CREATE INDEX ON {table} (ledger_id, code_id, advertiser_id) WHERE advertiser_id IS NOT NULL",
    ),
)


def share(event: Code.Shared, code_id: UUID) -> str:
    """Return what identifies a share, as `domain.campaign.Share` does."""
    said = (event.brand_id, event.channel, event.advertiser_id, event.note_fingerprint)
    return " ".join([str(code_id), *(one or "" for one in said)])  # no id has a blank


def shared(ledger_id: int, recorded: RecordedEvent, event: Code.Shared) -> ShareRow:
    return ShareRow(
        ledger_id=ledger_id,
        share=share(event, recorded.stream_id),
        position=recorded.position,
        code_id=recorded.stream_id,
        creator_stream=recorded.creator_stream,
        brand_id=event.brand_id,
        advertiser_id=event.advertiser_id,
        channel=event.channel,
        shared_at=recorded.effective_at,
        recorded_at=recorded.recorded_at,
    )


VIEW: Final = View(
    NAME,
    VERSION,
    SHARES,
    row_of=lambda recorded: recorded.position,
    creates={Code.Shared: shared},
)


# The last record of a share counts. OFFSET 0 makes the planner look up row by row.
_LAST_RECORD: Final = """
    NOT EXISTS (
        SELECT FROM views.shares l
        WHERE l.ledger_id = t.ledger_id
        AND l.share = t.share
        AND l.position > t.position
        AND l.position <= %(upto)s
        OFFSET 0
    )
"""


async def search(
    cur: AsyncCursor[Any],
    ledger_id: int,
    *,
    upto: int,
    limit: int,
    after: Keyset | None = None,
    code_id: UUID | None = None,
    creator_ids: Collection[str] | None = None,
    video_id: str | None = None,
    brand_id: str | None = None,
    advertiser_id: str | None = None,
    channel: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    visible_brands: Collection[str] | None = None,
    visible_advertisers: Collection[str] | None = None,
) -> list[WithCodeFacts[ShareRow]]:
    """Return the shares that pass every filter, the latest first.

    Args:
        cur: bound to the ledger; rows as tuples.
        ledger_id: the ledger.
        upto: a position that both this view and the view of codes have read: what was recorded later is left out.
        limit: maximum number of rows.
        after: `shared_at` and `position` of the last row of the page before.
        code_id: of this code.
        creator_ids: of any of these creators' codes; an empty collection matches nothing.
        video_id: of any of this video's codes.
        brand_id: with this brand.
        advertiser_id: for this advertiser account.
        channel: over this channel.
        since: shared at this moment or later.
        until: shared before this moment.
        visible_brands: with `visible_advertisers`, the shares that a brand's key may see: those that name any of these
            brands or accounts. Both None: all shares.
        visible_advertisers: see `visible_brands`.

    """
    query = ListQuery(NAME, "shared_at", ledger_id, limit, after)
    await code_facts.require_video_and_creators(cur, query, video_id, creator_ids)
    query.one_of({"brand_id": visible_brands, "advertiser_id": visible_advertisers})
    query.equal(code_id=code_id, brand_id=brand_id, advertiser_id=advertiser_id, channel=channel)
    query.between(since, until)
    query.where(_LAST_RECORD)
    return await code_facts.fetch_page(cur, SHARES, query, upto)
