"""Which campaigns exist, and on which day does each stop, by its own end or by its code's?

Reads the events that begin a code, that move its window, and that launch or end its campaigns. Read by the list of
campaigns. A campaign stops at whichever comes first: its own end, an end by someone, the end of the code's window, or
the code's revocation. Every extension of the code moves that day, and one that is recorded late may undo a later end of
the window. So all campaigns of a code are rewritten when its window moves. Whether a campaign runs is computed when it
is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal
from uuid import UUID

from domain.campaign import undone
from domain.code import Code
from projections.engine import paging
from projections.engine.paging import Keyset, ListQuery
from projections.engine.table import Table
from projections.engine.view import View

if TYPE_CHECKING:
    from collections.abc import Collection

    from psycopg import AsyncCursor

    from domain.recorded import RecordedEvent

NAME: Final = "campaigns"
VERSION: Final = 2

# What stops a campaign: its code, because its window ends or it is revoked; or the campaign itself.
StopReason = Literal["code_end", "campaign_end"]


@dataclass(slots=True)
class CodeWithCampaigns:
    """A code, as far as its campaigns depend on it.

    `campaigns` has, by campaign id, the facts of its row: `position`, `advertiser_id`, `name`, `amount`, `currency`, in
    RFC 3339 `starts_at`, `ends_at`, `launched_at` and `ended_at`, and `cause`; `ended_at` and `cause` are None unless
    it was ended.
    """

    ledger_id: int
    code_id: UUID
    creator_id: str
    video_id: str
    expires_at: datetime
    campaigns: dict[str, Any]


@dataclass(frozen=True, slots=True)
class CampaignRow:
    """One campaign.

    Attributes:
        position: of its launch.
        stops_at: when it stops, or has stopped.
        stop_reason: what stops it: `code_end` or `campaign_end`.
        ended_at, cause: if an event ended it, when and why: `ended` (by someone), `code_expired` or `code_revoked`;
            None while it runs, and if it came to its own end.

    """

    ledger_id: int
    position: int
    code_id: UUID
    creator_id: str
    video_id: str
    campaign_id: str
    advertiser_id: str
    name: str | None
    amount: str
    currency: str
    starts_at: datetime
    ends_at: datetime
    expires_at: datetime
    launched_at: datetime
    ended_at: datetime | None
    cause: str | None
    stops_at: datetime
    stop_reason: str

    def running(self, moment: datetime) -> bool:
        """Tell whether it runs: from its launch, even if it starts later, until something stops it."""
        return self.ended_at is None and moment < self.stops_at


CODES: Final = Table(
    "campaigns",
    CodeWithCampaigns,
    key=("ledger_id", "code_id"),
    ddl="""
        CREATE TABLE {table} (
            ledger_id       int NOT NULL,
            code_id         uuid NOT NULL,
            creator_id      text NOT NULL,
            video_id        text NOT NULL,
            expires_at      timestamptz NOT NULL,
            campaigns       jsonb NOT NULL,
            PRIMARY KEY (ledger_id, code_id)
        )
    """,
)

CAMPAIGNS: Final = Table(
    "campaign_stops",
    CampaignRow,
    key=("ledger_id", "position"),
    ddl="""
        CREATE TABLE {table} (
            ledger_id       int NOT NULL,
            position        bigint NOT NULL,
            code_id         uuid NOT NULL,
            creator_id      text NOT NULL,
            video_id        text NOT NULL,
            campaign_id     text NOT NULL,
            advertiser_id   text NOT NULL,
            name            text,
            amount          text NOT NULL,
            currency        text NOT NULL,
            starts_at       timestamptz NOT NULL,
            ends_at         timestamptz NOT NULL,
            expires_at      timestamptz NOT NULL,
            launched_at     timestamptz NOT NULL,
            ended_at        timestamptz,
            cause           text,
            stops_at        timestamptz NOT NULL,
            stop_reason     text NOT NULL,
            PRIMARY KEY (ledger_id, position)
        )
    """,
    indexes=(
        "CREATE INDEX ON {table} (ledger_id, stops_at, position)",
        "CREATE INDEX ON {table} (ledger_id, stop_reason, stops_at, position)",
        "CREATE INDEX ON {table} (ledger_id, advertiser_id, stops_at, position)",
        "CREATE INDEX ON {table} (ledger_id, creator_id, stops_at, position)",
        "CREATE INDEX ON {table} (ledger_id, video_id, stops_at, position)",
        "CREATE INDEX ON {table} (ledger_id, code_id, stops_at, position)",
        "CREATE INDEX ON {table} (ledger_id, campaign_id, stops_at, position)",
    ),
)


def stop(
    ends_at: datetime, expires_at: datetime, ended_at: datetime | None, cause: str | None
) -> tuple[datetime, StopReason]:
    """Return when a campaign stops, and what stops it; if both end at the same moment, it is the campaign itself.

    Args:
        ends_at: its own end.
        expires_at: the end of its code's window.
        ended_at: when an event ended it, if one did.
        cause: why the event ended it: `ended`, `code_expired` or `code_revoked`.

    """
    if ended_at is not None:
        return ended_at, "campaign_end" if cause == "ended" else "code_end"
    return (expires_at, "code_end") if expires_at < ends_at else (ends_at, "campaign_end")


# Handlers, in the order of a code's life.


def generated(ledger_id: int, recorded: RecordedEvent, event: Code.Generated) -> CodeWithCampaigns:
    return CodeWithCampaigns(
        ledger_id=ledger_id,
        code_id=recorded.stream_id,
        creator_id=event.creator_id,
        video_id=event.video_id,
        expires_at=event.expires_at,
        campaigns={},
    )


def extended(row: CodeWithCampaigns, recorded: RecordedEvent, event: Code.Extended) -> list[CampaignRow]:
    row.expires_at = event.expires_at
    for known in row.campaigns.values():
        if undone(_moment(known["ended_at"]), known["cause"], recorded.effective_at):
            known |= {"ended_at": None, "cause": None}
    return [_campaign(row, campaign_id) for campaign_id in row.campaigns]


def campaign_launched(
    row: CodeWithCampaigns, recorded: RecordedEvent, event: Code.CampaignLaunched
) -> list[CampaignRow]:
    row.campaigns[event.campaign_id] = {
        "position": recorded.position,
        "advertiser_id": event.advertiser_id,
        "name": event.name,
        "amount": event.budget["amount"],
        "currency": event.budget["currency"],
        "starts_at": event.starts_at.isoformat(),
        "ends_at": event.ends_at.isoformat(),
        "launched_at": recorded.effective_at.isoformat(),
        "ended_at": None,
        "cause": None,
    }
    return [_campaign(row, event.campaign_id)]


def campaign_ended(row: CodeWithCampaigns, recorded: RecordedEvent, event: Code.CampaignEnded) -> list[CampaignRow]:
    row.campaigns[event.campaign_id] |= {"ended_at": recorded.effective_at.isoformat(), "cause": event.cause}
    return [_campaign(row, event.campaign_id)]


def _campaign(code: CodeWithCampaigns, campaign_id: str) -> CampaignRow:
    known = code.campaigns[campaign_id]
    ends_at, ended_at = datetime.fromisoformat(known["ends_at"]), _moment(known["ended_at"])
    stops_at, stop_reason = stop(ends_at, code.expires_at, ended_at, known["cause"])
    return CampaignRow(
        ledger_id=code.ledger_id,
        position=known["position"],
        code_id=code.code_id,
        creator_id=code.creator_id,
        video_id=code.video_id,
        campaign_id=campaign_id,
        advertiser_id=known["advertiser_id"],
        name=known["name"],
        amount=known["amount"],
        currency=known["currency"],
        starts_at=datetime.fromisoformat(known["starts_at"]),
        ends_at=ends_at,
        expires_at=code.expires_at,
        launched_at=datetime.fromisoformat(known["launched_at"]),
        ended_at=ended_at,
        cause=known["cause"],
        stops_at=stops_at,
        stop_reason=stop_reason,
    )


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


# Before a revocation or an expiry, each running campaign is ended by an event of its own, so neither is read here.
VIEW: Final = View(
    NAME,
    VERSION,
    CODES,
    row_of=lambda recorded: recorded.stream_id,
    creates={Code.Generated: generated},
    updates={
        Code.Extended: extended,
        Code.CampaignLaunched: campaign_launched,
        Code.CampaignEnded: campaign_ended,
    },
    secondary=[CAMPAIGNS],
)


async def search(
    cur: AsyncCursor[Any],
    ledger_id: int,
    *,
    now: datetime,
    limit: int,
    after: Keyset | None = None,
    descending: bool = False,
    running: bool | None = None,
    stop_reason: StopReason | None = None,
    stops_from: datetime | None = None,
    stops_before: datetime | None = None,
    code_id: UUID | None = None,
    creator_ids: Collection[str] | None = None,
    video_id: str | None = None,
    campaign_id: str | None = None,
    advertiser_id: str | None = None,
    visible_advertisers: Collection[str] | None = None,
) -> list[CampaignRow]:
    """Return the campaigns that pass every filter, the first to stop first.

    Args:
        cur: bound to the ledger; rows as tuples.
        ledger_id: the ledger.
        now: the moment at which it is decided which of them run.
        limit: maximum number of rows.
        after: `stops_at` and `position` of the last row of the page before.
        descending: the last to stop first.
        running: that run, or that have stopped.
        stop_reason: stopped by their code, or by their own end.
        stops_from: that stop, or stopped, at this moment or later.
        stops_before: that stop, or stopped, before this moment.
        code_id: on this code.
        creator_ids: on any of these creators' codes; an empty collection matches nothing.
        video_id: on any of this video's codes.
        campaign_id: with this id, on any code.
        advertiser_id: of this advertiser account.
        visible_advertisers: the accounts whose campaigns a brand's key may see. None: all campaigns.

    """
    query = ListQuery("campaign_stops", "stops_at", ledger_id, limit, after, descending)
    query.one_of({"creator_id": creator_ids})
    query.one_of({"advertiser_id": visible_advertisers})
    query.equal(
        stop_reason=stop_reason,
        code_id=code_id,
        video_id=video_id,
        campaign_id=campaign_id,
        advertiser_id=advertiser_id,
    )
    query.between(stops_from, stops_before)
    if running is not None:
        query.where("t.stops_at > %(now)s AND t.ended_at IS NULL" if running else "t.stops_at <= %(now)s", now=now)
    return await paging.fetch_page(cur, CAMPAIGNS, query)
