"""Who redeemed a code, and who was refused, for which reason?

Reads redemptions and refusals that were recorded. Read by the list of redemptions. The same refusal is recorded once an
hour; its repeats, and attempts with an unknown secret, are not recorded here. A redemption that is recorded again,
because it was earlier than was known, replaces the one before.

The code's creator and video are joined from the view of codes. Whether the code was shared with the account is found in
the views of shares and of advertisers, by the time of the redemption: both may be recorded later than it. So the list
shows what all four views have read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from psycopg import sql

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
VERSION: Final = 5


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One record of an attempt to redeem, at an effective time.

    A redemption that is recorded again, because it was earlier, has a row for each record: lists as of an earlier
    position show the other.

    Attributes:
        attempt: what identifies it: the code and the account of a redemption, the position of a refusal.
        refused: the refusal's reason; None for a redemption.
        shared_with_advertiser: whether the code had been shared with the account by then, None if that is not known:
            in the table, by what was known when it was recorded; in lists, by what is known now. None for a refusal.

    """

    ledger_id: int
    attempt: str
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
            attempt                 text NOT NULL,
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
        "CREATE INDEX ON {table} (ledger_id, attempt, position) WHERE refused IS NULL",
        "CREATE INDEX ON {table} (ledger_id, at, position)",
        "CREATE INDEX ON {table} (ledger_id, code_id, at, position)",
        "CREATE INDEX ON {table} (ledger_id, creator_stream, at, position)",
        "CREATE INDEX ON {table} (ledger_id, advertiser_id, at, position)",
        # Few refusals among many redemptions, or the reverse: a list may show only one of them.
        "CREATE INDEX ON {table} (ledger_id, at, position) WHERE refused IS NULL",
        "CREATE INDEX ON {table} (ledger_id, at, position) WHERE refused IS NOT NULL",
        "CREATE INDEX ON {table} (ledger_id, refused, at, position) WHERE refused IS NOT NULL",
        # Nearly all that were never shared with who redeemed them are among these.
        "CREATE INDEX ON {table} (ledger_id, at, position) WHERE refused IS NULL AND shared_with_advertiser IS FALSE",
        # The others of these are, once it was said whose the account was.
        """
        CREATE INDEX ON {table} (ledger_id, advertiser_id, at, position)
        WHERE refused IS NULL AND shared_with_advertiser IS NULL
        """,
    ),
)


def attempt(recorded: RecordedEvent) -> str:
    """Return what identifies an attempt."""
    event = recorded.event
    return f"{recorded.stream_id} {event.advertiser_id}" if isinstance(event, Code.Redeemed) else str(recorded.position)


def redeemed(ledger_id: int, recorded: RecordedEvent, event: Code.Redeemed) -> AttemptRow:
    return AttemptRow(
        ledger_id=ledger_id,
        attempt=attempt(recorded),
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
        attempt=attempt(recorded),
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


# As `Code.was_shared_with` says, by the time of a redemption `t`. Of an account of which nobody had said whose it is, a
# share only with brands says nothing.
_MADE: Final = """
    s.ledger_id = t.ledger_id AND s.code_id = t.code_id AND s.shared_at <= t.at AND s.position <= %(upto)s
"""
_SHARED: Final = f"""
    CASE WHEN t.refused IS NOT NULL THEN NULL WHEN t.shared_with_advertiser THEN true ELSE (
        SELECT CASE
            WHEN EXISTS (SELECT FROM views.shares s WHERE {_MADE} AND s.advertiser_id = t.advertiser_id) THEN true
            WHEN o.brand_id IS NOT NULL
            THEN EXISTS (SELECT FROM views.shares s WHERE {_MADE} AND s.brand_id = o.brand_id)
            WHEN EXISTS (SELECT FROM views.shares s WHERE {_MADE} AND s.advertiser_id IS NULL) THEN NULL
            ELSE false
        END
        FROM (
            SELECT (
                SELECT a.brand_id
                FROM views.advertisers a
                WHERE a.ledger_id = t.ledger_id
                AND a.advertiser_id = t.advertiser_id
                AND a.since <= t.at
                AND a.position <= %(upto)s
                ORDER BY a.since DESC, a.position DESC
                LIMIT 1
            ) AS brand_id
            OFFSET 0
        ) o
    ) END
"""  # noqa: S608 - a constant is inserted
# Where it was not known when a code was redeemed, only what was said of the account can make it known that it was not.
_NOT_SHARED: Final = (
    f"t.refused IS NULL AND t.shared_with_advertiser IS FALSE AND NOT ({_SHARED})",
    f"""
    t.refused IS NULL AND t.shared_with_advertiser IS NULL AND NOT ({_SHARED})
    AND t.advertiser_id = ANY (ARRAY(
        SELECT a.advertiser_id FROM views.advertisers a WHERE a.ledger_id = %(ledger_id)s AND a.position <= %(upto)s
    ))
    """,  # noqa: S608 - a constant is inserted
)


# The last record of a redemption counts. OFFSET 0 makes the planner look up row by row.
_LAST_RECORD: Final = """
    (t.refused IS NOT NULL OR NOT EXISTS (
        SELECT FROM views.redemptions l
        WHERE l.ledger_id = t.ledger_id
        AND l.attempt = t.attempt
        AND l.refused IS NULL
        AND l.position > t.position
        AND l.position <= %(upto)s
        OFFSET 0
    ))
"""


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
        upto: a position that this view and those of codes, shares and advertisers have read: what was recorded later
            is left out.
        limit: maximum number of rows.
        after: `at` and `position` of the last row of the page before.
        refused: only refusals, or only redemptions.
        reason: refused for this reason.
        shared: redemptions by an account that the code is known to have been shared with, or not.
        code_id: on this code.
        creator_ids: on any of these creators' codes; an empty collection matches nothing.
        video_id: on any of this video's codes.
        advertiser_id: by this advertiser account.
        since: at this moment or later, in effective time.
        until: before this moment.
        visible_advertisers: the accounts whose attempts a brand's key may see. None: all attempts.

    """
    found: list[WithCodeFacts[AttemptRow]] = []
    # What no index has in one order is read in parts, of which each has its own.
    for part in _NOT_SHARED if shared is False else (_SHARED if shared else None,):
        query = ListQuery(NAME, "at", ledger_id, limit, after)
        await code_facts.require_video_and_creators(cur, query, video_id, creator_ids)
        query.one_of({"advertiser_id": visible_advertisers})
        query.equal(code_id=code_id, advertiser_id=advertiser_id, refused=reason)
        query.between(since, until)
        query.where(_LAST_RECORD)
        if refused is not None:
            query.where("t.refused IS NOT NULL" if refused else "t.refused IS NULL")
        if part is not None:
            query.where(part)
        found += await code_facts.fetch_page(cur, REDEMPTIONS, query, upto, more=sql.SQL(_SHARED))
    found = sorted(found, key=lambda one: (one.row.at, one.row.position), reverse=True)[:limit]
    return [replace(one, row=replace(one.row, shared_with_advertiser=one.more), more=None) for one in found]
