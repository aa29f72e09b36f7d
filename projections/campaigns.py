"""Which campaigns exist, and on which day does each stop, by its own end, its code's, or that of the rights?

Reads the events that begin a code, move its window or revoke it, and that launch or end its campaigns. Read by the list
of campaigns. A campaign stops at whichever comes first: its own end, an end by someone, the end of the code's window,
the code's revocation, or the end of the usage rights. Every extension of the code moves that day, and one that is
recorded late can undo an end of the window. So all campaigns of a code are rewritten when its window moves, its rights
are stated, or it is revoked. Whether a campaign runs is computed when it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from psycopg import sql

from domain import periods
from domain.campaign import STOP_REASONS, CampaignStop, StopReason, first_stop
from domain.code import Code
from domain.periods import Extension, Period, first_period, lapse_after
from domain.rights import Statement, UsageRights, ended_after
from domain.values import Window
from projections.engine import paging
from projections.engine.paging import Keyset, ListQuery
from projections.engine.table import Table
from projections.engine.view import View

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from psycopg import AsyncCursor

    from domain.recorded import RecordedEvent

NAME: Final = "campaigns"
_CUT: Final[tuple[StopReason, ...]] = ("code_end", "rights_end")
VERSION: Final = 4


@dataclass(slots=True)
class CodeWithCampaigns:
    """A code, as far as its campaigns depend on it.

    `open_in` has under `periods` those in which its window was open, in their order: start, end, and the effective time
    of the extension that set the end, all in RFC 3339. Under `rights` it has the statements of usage rights, in the
    order in which they took effect: when, and their end or None.

    `campaigns` has, by campaign id, the facts of its row: `position`, `advertiser_id`, `name`, `amount`, `currency`, in
    RFC 3339 `starts_at`, `ends_at` and `launched_at`, and under `ends` when it was recorded to have ended, by cause.
    """

    ledger_id: int
    code_id: UUID
    creator_id: str
    video_id: str
    open_in: dict[str, Any]
    revoked_at: datetime | None
    campaigns: dict[str, Any]


@dataclass(frozen=True, slots=True)
class CampaignRow:
    """One campaign.

    Attributes:
        position: of its launch.
        stops_at: when it stops, or has stopped.
        stop_reason: what stops it: `code_end`, `rights_end` or `campaign_end`.
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
        """Return whether it runs: from its launch, even if it starts later, until something stops it."""
        return self.ended_at is None and moment < self.stops_at


CODES: Final = Table(
    "campaigns",
    CodeWithCampaigns,
    key=("ledger_id", "code_id"),
    fixed=(
        "creator_id",
        "video_id",
    ),
    ddl="""
        CREATE TABLE {table} (
            ledger_id       int NOT NULL,
            code_id         uuid NOT NULL,
            creator_id      text NOT NULL,
            video_id        text NOT NULL,
            open_in         jsonb NOT NULL,
            revoked_at      timestamptz,
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


def campaign_stop(
    ends_at: datetime,
    launched_at: datetime,
    ended_at: datetime | None,
    ended_with_code_at: datetime | None,
    *,
    open_in: Sequence[Period],
    revoked_at: datetime | None,
    rights: Sequence[Statement] = (),
) -> CampaignStop:
    """Return when a campaign stops, and what stops it, as `Code.stop` does.

    Args:
        ends_at: when it was meant to end.
        launched_at: when it was launched.
        ended_at: when somebody ended it, if somebody did.
        ended_with_code_at: when an event said that a revocation of the code ended it.
        open_in: the periods in which its code's window was open.
        revoked_at: when its code was revoked.
        rights: the statements of usage rights, in the order in which they took effect.

    """
    revocations = [] if revoked_at is None else [max(launched_at, revoked_at)]
    revocations += [] if ended_with_code_at is None else [ended_with_code_at]
    return first_stop(
        ends_at,
        ended_at=ended_at,
        lapses_at=lapse_after(open_in, launched_at),
        revoked_at=min(revocations, default=None),
        rights_end_at=ended_after(rights, launched_at) if rights else None,
    )


def with_statement(known: Sequence[Any], recorded: RecordedEvent, event: Code.RightsStated) -> list[Any]:
    """Return statements of usage rights, as views keep them, with one more: when it took effect, and its end."""
    until = None if event.rights_end_at is None else event.rights_end_at.isoformat()
    # Of the same time, the last recorded counts.
    return sorted(
        [*known, [recorded.effective_at.isoformat(), until]], key=lambda stated: datetime.fromisoformat(stated[0])
    )


def statements(known: Sequence[Any]) -> list[Statement]:
    """Return statements of usage rights from what views keep of them."""
    return [
        Statement(datetime.fromisoformat(at), UsageRights(None if until is None else datetime.fromisoformat(until)))
        for at, until in known
    ]


# Handlers, in the order of a code's life.


def generated(ledger_id: int, recorded: RecordedEvent, event: Code.Generated) -> CodeWithCampaigns:
    starts_at = event.starts_at if event.start_stated else recorded.effective_at
    return CodeWithCampaigns(
        ledger_id=ledger_id,
        code_id=recorded.stream_id,
        creator_id=event.creator_id,
        video_id=event.video_id,
        open_in=_stored([first_period(Window(starts_at, event.expires_at))]),
        revoked_at=None,
        campaigns={},
    )


def extended(row: CodeWithCampaigns, recorded: RecordedEvent, event: Code.Extended) -> list[CampaignRow]:
    extension = Extension(recorded.effective_at, event.expires_at)
    row.open_in = {**row.open_in, **_stored(periods.extended(_periods(row), extension))}
    return [_campaign(row, campaign_id) for campaign_id in row.campaigns]


def rights_stated(row: CodeWithCampaigns, recorded: RecordedEvent, event: Code.RightsStated) -> list[CampaignRow]:
    row.open_in = {**row.open_in, "rights": with_statement(row.open_in.get("rights", ()), recorded, event)}
    return [_campaign(row, campaign_id) for campaign_id in row.campaigns]


def campaign_launched(
    row: CodeWithCampaigns, recorded: RecordedEvent, event: Code.CampaignLaunched
) -> list[CampaignRow]:
    known = row.campaigns.get(event.campaign_id, {"position": recorded.position, "ends": {}})
    row.campaigns[event.campaign_id] = known | {
        "advertiser_id": event.advertiser_id,
        "name": event.name,
        "amount": event.budget["amount"],
        "currency": event.budget["currency"],
        "starts_at": event.starts_at.isoformat(),
        "ends_at": event.ends_at.isoformat(),
        "launched_at": recorded.effective_at.isoformat(),
    }
    return [_campaign(row, event.campaign_id)]


def campaign_ended(row: CodeWithCampaigns, recorded: RecordedEvent, event: Code.CampaignEnded) -> list[CampaignRow]:
    known = row.campaigns[event.campaign_id]
    known["ends"] = {**known["ends"], event.cause: recorded.effective_at.isoformat()}
    return [_campaign(row, event.campaign_id)]


def revoked(row: CodeWithCampaigns, recorded: RecordedEvent, _event: Code.Revoked) -> list[CampaignRow]:
    row.revoked_at = min(recorded.effective_at, row.revoked_at or recorded.effective_at)
    return [_campaign(row, campaign_id) for campaign_id in row.campaigns]


def _campaign(code: CodeWithCampaigns, campaign_id: str) -> CampaignRow:
    known = code.campaigns[campaign_id]
    ends_at, launched_at = datetime.fromisoformat(known["ends_at"]), datetime.fromisoformat(known["launched_at"])
    ends = {cause: datetime.fromisoformat(moment) for cause, moment in known["ends"].items()}
    open_in = _periods(code)
    stop = campaign_stop(
        ends_at,
        launched_at,
        ends.get("ended"),
        ends.get("code_revoked"),
        open_in=open_in,
        revoked_at=code.revoked_at,
        rights=statements(code.open_in.get("rights", ())),
    )
    recorded = ends.get(stop.by) == stop.at
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
        expires_at=open_in[-1].expires_at,
        launched_at=launched_at,
        ended_at=stop.at if recorded else None,
        cause=stop.by if recorded else None,
        stops_at=stop.at,
        stop_reason=STOP_REASONS[stop.by],
    )


def _periods(code: CodeWithCampaigns) -> list[Period]:
    return [Period(*map(datetime.fromisoformat, period)) for period in code.open_in["periods"]]


def _stored(open_in: Sequence[Period]) -> dict[str, Any]:
    return {"periods": [[moment.isoformat() for moment in period] for period in open_in]}


VIEW: Final = View(
    NAME,
    VERSION,
    CODES,
    row_of=lambda recorded: recorded.stream_id,
    creates={Code.Generated: generated},
    updates={
        Code.Extended: extended,
        Code.RightsStated: rights_stated,
        Code.CampaignLaunched: campaign_launched,
        Code.CampaignEnded: campaign_ended,
        Code.Revoked: revoked,
    },
    secondary=[CAMPAIGNS],
)


_NEWEST: Final = sql.SQL("""
    SELECT {columns}
    FROM views.campaign_stops t
    WHERE t.ledger_id = %(ledger_id)s
    AND t.position < %(before)s
    {filters}
    ORDER BY t.position DESC
    LIMIT %(limit)s
""")


async def newest(
    cur: AsyncCursor[Any],
    ledger_id: int,
    *,
    before: int,
    limit: int,
    creator_ids: Collection[str] | None = None,
    advertiser_ids: Collection[str] | None = None,
    **equal: Any,
) -> list[CampaignRow]:
    """Return campaigns, those that were recorded last first, whatever became of them.

    Args:
        cur: bound to the ledger; rows as tuples.
        ledger_id: the ledger.
        before: the position of the last row of the page before.
        limit: maximum number of rows.
        creator_ids: on any of these creators' codes; an empty collection matches nothing.
        advertiser_ids: of any of these accounts; an empty collection matches nothing.
        equal: values of columns; None requires nothing.

    """
    given = {name: value for name, value in equal.items() if value is not None}
    filters = [sql.SQL("AND t.{} = {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in given]
    parameters: dict[str, Any] = {"ledger_id": ledger_id, "before": before, "limit": limit, **given}
    for column, ids in (("creator_id", creator_ids), ("advertiser_id", advertiser_ids)):
        if ids is not None:
            name = f"{column}s"
            any_of = sql.SQL("AND t.{} = ANY ({}::text[])")
            filters.append(any_of.format(sql.Identifier(column), sql.Placeholder(name)))
            parameters[name] = list(ids)
    query = _NEWEST.format(columns=CAMPAIGNS.select(), filters=sql.SQL(" ").join(filters))
    return await CAMPAIGNS.fetch(cur, query, parameters)


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
    is_cut: bool = False,
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
        stop_reason: stopped by their code, by the end of its usage rights, or by their own end.
        is_cut: only those that something else than their own end stops.
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
    if is_cut:
        query.one_of({"stop_reason": _CUT})
    query.between(stops_from, stops_before)
    if running is not None:
        query.where("t.stops_at > %(now)s AND t.ended_at IS NULL" if running else "t.stops_at <= %(now)s", now=now)
    return await paging.fetch_page(cur, CAMPAIGNS, query)
