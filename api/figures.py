"""Figures by creator, brand, advertiser account, video or month, and the planned spend on codes that end soon."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from fastapi import APIRouter, Query
from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from api.http import answer_fields as answered
from api.http.caller import Caller, allow
from api.http.cursors import decode_text, encode_text
from api.http.dependencies import DatabaseCursor
from api.http.fields import CreatorName, Id, VideoId
from api.http.models import Answer
from api.http.pagination import creators_asked, page_answer, page_of, same_query
from api.http.problems import Problem, malformed_query
from api.http.query_params import LIMIT, AtLeast, Exact, Limit, NextCursor, QueryModel, whole_number
from api.http.route import Operation, Route
from domain.errors import NotAllowed
from domain.pasted import FIRST_YEAR, LAST_YEAR
from projections import advertisers, campaigns, figure_sums, figures
from projections.figure_sums import Months, Whose
from projections.figures import month_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from projections.figure_sums import AtRisk, Figures

By = Literal["creator", "brand", "advertiser", "video", "month"]
Party = Literal["creator", "brand", "advertiser", "video"]

Count = answered.Count
MaybeCount = Annotated[int, Field(ge=0)]
PlannedSpend = Annotated[
    dict[str, str],
    Field(description="The budgets of campaigns, added up by currency.", examples=[{"USD": "500.00"}]),
]


class Sums(Answer):
    """Sums of figures. Those of codes themselves are null for brands and accounts, because no code is theirs alone."""

    issued: Annotated[MaybeCount | None, Field(description="Codes that began.")]
    recorded: Annotated[
        MaybeCount | None, Field(description="Of these, codes that TikTok generated and that were recorded here.")
    ]
    extended: Annotated[MaybeCount | None, Field(description="Extensions.")]
    revoked: Annotated[MaybeCount | None, Field(description="Codes revoked.")]
    windows_ended: Annotated[MaybeCount | None, Field(description="Windows that ended, or will end.")]
    reveals: Annotated[MaybeCount | None, Field(description="Secrets shown again.")]
    shares: Annotated[Count, Field(description="Shares.")]
    codes_shared: Annotated[Count, Field(description="Codes shared for the first time, of a brand: with it.")]
    redemptions: Annotated[Count, Field(description="Redemptions.")]
    codes_redeemed: Annotated[Count, Field(description="Codes redeemed for the first time, of an account: by it.")]
    mean_seconds_to_redemption: Annotated[
        float | None, Field(description="The mean time from the issue of a code to that, in seconds.")
    ]
    refusals: Annotated[Count, Field(description="Recorded refused redemptions.")]
    campaigns: Annotated[Count, Field(description="Campaigns launched.")]
    campaigns_beyond_code: Annotated[
        Count,
        Field(
            description="Of these, campaigns that the end of their code's window or its revocation stops before their "
            "own end."
        ),
    ]
    planned_spend: PlannedSpend
    recorded_late: Annotated[Count, Field(description="Facts recorded more than a day after they took effect.")]
    recorded_30_days_late: Annotated[
        Count, Field(description="Facts recorded more than 30 days after they took effect.")
    ]


class Keyed(Answer):
    key: Annotated[str, Field(description="Whose figures: the id, or the month.", examples=["ana.creates", "2026-03"])]


class FigureEntry(Sums, Keyed):  # in this order the key is the first column of an export
    pass


class FiguresAnswer(Answer):
    figures: Annotated[list[FigureEntry], Field(description="By key, or by `sort` with the most first.")]
    totals: Annotated[Sums, Field(description="The sums of all that is asked for: of the ledger, if nobody is named.")]
    next: answered.Next
    position: answered.ReadUpto


class RiskSums(Answer):
    campaigns: Annotated[Count, Field(description="Running campaigns that their code stops.")]
    planned_spend: PlannedSpend


class RiskEntry(RiskSums):
    key: Annotated[str, Field(description="The id of the party.", examples=["ana.creates"])]
    first_stops_at: Annotated[answered.Moment, Field(description="When the first of these campaigns stops.")]


class RiskAnswer(Answer):
    spend_at_risk: Annotated[list[RiskEntry], Field(description="The soonest to stop first.")]
    totals: Annotated[RiskSums, Field(description="The sums over all pages.")]
    next: answered.Next
    position: answered.ReadUpto


MAX_MONTHS: Final = 120
MAX_DAYS_AHEAD: Final = 400
# The months that are shown if none is asked for: a year.
SHOWN_MONTHS: Final = 12
DAYS_AHEAD: Final = 30
_MONTH: Final = re.compile(r"[0-9]{4}-(0[1-9]|1[0-2])")

# By the name in an answer: the figure that is summed.
NAMES: Final[Mapping[str, str]] = {
    "issued": "issued",
    "recorded": "recorded",
    "extended": "extended",
    "revoked": "revoked",
    "windows_ended": "ended",
    "reveals": "reveals",
    "shares": "shares",
    "codes_shared": "codes_shared",
    "redemptions": "redemptions",
    "codes_redeemed": "codes_redeemed",
    "refusals": "refused",
    "campaigns": "launched",
    "campaigns_beyond_code": "beyond",
    "recorded_late": "late",
    "recorded_30_days_late": "very_late",
}
Sort = Literal[
    "key",
    "issued",
    "recorded",
    "extended",
    "revoked",
    "windows_ended",
    "reveals",
    "shares",
    "codes_shared",
    "redemptions",
    "codes_redeemed",
    "refusals",
    "campaigns",
    "campaigns_beyond_code",
    "recorded_late",
    "recorded_30_days_late",
]
# Those of codes themselves.
OF_CODES: Final = frozenset({"issued", "recorded", "extended", "revoked", "windows_ended", "reveals"})
# By what keys of a role see their own figures.
OF_ROLE: Final[Mapping[str, frozenset[str]]] = {
    "creator": frozenset({"creator", "video", "month"}),
    "brand": frozenset({"brand", "advertiser", "month"}),
}


def _utc_month(value: object) -> datetime:
    """Read a month, and return its beginning in UTC."""
    if not isinstance(value, str) or _MONTH.fullmatch(value) is None or not FIRST_YEAR <= int(value[:4]) <= LAST_YEAR:
        raise PydanticCustomError(
            "month", f"Expected a month such as 2026-03, in the years {FIRST_YEAR} to {LAST_YEAR}."
        )
    return datetime(int(value[:4]), int(value[5:]), 1, tzinfo=UTC)


UtcMonth = Annotated[datetime, BeforeValidator(_utc_month), WithJsonSchema({"type": "string", "examples": ["2026-03"]})]


class PartyFilters(QueryModel):
    """Whose figures are asked for."""

    creator_id: Annotated[CreatorName | None, Field(description="Only of this creator's codes.")] = None
    video_id_exact: Exact = None
    video_id: Annotated[VideoId | None, Field(description="Only of this video's codes.")] = None
    brand_id: Annotated[Id | None, Field(description="Only of this brand.", examples=["acme"])] = None
    advertiser_id: Annotated[
        Id | None, Field(description="Only of this advertiser account.", examples=["adv-7001"])
    ] = None

    @property
    def named(self) -> dict[str, str]:
        """The parties that are named, by what they are."""
        named = {
            "creator": self.creator_id,
            "video": self.video_id,
            "brand": self.brand_id,
            "advertiser": self.advertiser_id,
        }
        return {party: name for party, name in named.items() if name is not None}


class FiguresFilters(PartyFilters):
    by: Annotated[By, Field(description="What each entry is about.")] = "month"
    from_: Annotated[
        UtcMonth | None, Field(alias="from", description="The first month, in UTC. Default: eleven before `to`.")
    ] = None
    to: Annotated[UtcMonth | None, Field(description="The last month, in UTC. Default: the present one.")] = None
    sort: Annotated[
        Sort,
        Field(
            description="The order: by `key`, or by a figure with the most first. Videos are sorted by a figure only "
            "with `creator_id`."
        ),
    ] = "key"

    @model_validator(mode="after")
    def _no_figures_of_two_parties(self) -> Self:
        ways = {self.by, *({"creator"} if self.by == "video" else ())}
        for party in self.named:
            if self.by == "month" and len(self.named) > 1:
                raise malformed_query(f"{party}_id", "Name one party: sums are kept for each, not for two together.")
            if self.by != "month" and party not in ways:
                raise malformed_query(
                    f"{party}_id",
                    f"Figures by {self.by} cannot be those of one {party}. Leave this out, or `by=month`.",
                )
        return self

    @model_validator(mode="after")
    def _no_order_of_what_has_one(self) -> Self:
        if self.by == "month" and self.sort != "key":
            raise malformed_query("sort", "Months are in their order. Leave this out.")
        if self.by == "video" and self.sort != "key" and self.creator_id is None and self.video_id is None:
            raise malformed_query("sort", "Videos are sorted by a figure only with `creator_id`. Send that as well.")
        if self.by in {"brand", "advertiser"} and self.sort in OF_CODES:
            raise malformed_query("sort", "Brands and accounts have no such figure, because no code is theirs alone.")
        return self


class FiguresQuery(FiguresFilters):
    limit: Limit = LIMIT
    cursor: NextCursor = None
    at_least: AtLeast = None


class RiskFilters(PartyFilters):
    by: Annotated[
        Party | None, Field(description="What each entry is about. Default: creator, for keys of brands brand.")
    ] = None
    within_days: Annotated[
        int,
        BeforeValidator(whole_number),
        Field(ge=1, le=MAX_DAYS_AHEAD, description="Codes that end within this number of days.", examples=[30]),
    ] = DAYS_AHEAD


class RiskQuery(RiskFilters):
    limit: Limit = LIMIT
    cursor: NextCursor = None
    at_least: AtLeast = None


router = APIRouter(route_class=Route, tags=["Reads"])


@router.get("/v1/stats/figures", response_model=FiguresAnswer, operation_id="listFigures")
@Operation(answer_headers=("Ledger-Position",))
async def list_figures(
    query: Annotated[FiguresQuery, Query()],
    caller: Annotated[Caller, allow("creator", "brand", "operator", "auditor", "admin")],
) -> Response:
    """Sum up what happened in a range of months, by creator, brand, advertiser account, video or month.

    In effective time, by what is known now. Keys of creators see figures of their codes, by creator, video or month.
    Keys of brands see those of their shares and accounts, by brand, advertiser or month.
    """
    months = _months(query, caller.services.now())
    whose, of_all = await _whose(query, caller)
    scope = same_query(query)
    sort = None if query.sort == "key" else NAMES[query.sort]
    after = None if query.cursor is None else _place(query.cursor, scope)

    async def sums(cur: DatabaseCursor) -> tuple[list[Figures], Figures]:
        totals = await figure_sums.in_all(cur, caller.ledger_id, of_all, months)
        if query.by == "month":
            return await figure_sums.by_month(cur, caller.ledger_id, whose, months), totals
        found = await figure_sums.by_party(
            cur, caller.ledger_id, whose, months, limit=query.limit + 1, sort=sort, after=after
        )
        return found, totals

    (found, totals), position = await caller.services.views.read(
        caller.ledger_id, sums, view=figures.NAME, also=_also(whose), at_least=query.at_least
    )

    def cursor(entry: Figures) -> str:
        return encode_text(f"{0 if sort is None else entry.counts[sort]} {entry.key}", scope)

    page = page_of(found, MAX_MONTHS if query.by == "month" else query.limit, cursor)
    return page_answer(
        caller,
        "figures",
        page,
        lambda entry: {"key": entry.key, **_sums(entry, whose)},
        position,
        more={"totals": _sums(totals, of_all)},
    )


@router.get("/v1/stats/spend-at-risk", response_model=RiskAnswer, operation_id="listSpendAtRisk")
@Operation(answer_headers=("Ledger-Position",))
async def list_spend_at_risk(
    query: Annotated[RiskQuery, Query()],
    caller: Annotated[Caller, allow("creator", "brand", "operator", "auditor", "admin")],
) -> Response:
    """Sum up the budgets of running campaigns that will stop soon because their code's window ends before they do.

    Budgets are whole: the ledger does not know how much of one is spent. The campaigns themselves are listed by
    `GET /v1/campaigns?running=true&stop_reason=code_end&stops_before=`. Keys of creators and brands see their own.
    """
    by: Party = query.by or ("brand" if caller.role == "brand" else "creator")
    _refuse_others(by, caller)
    _check_named(query, caller)
    now = caller.services.now()
    scope = same_query(query)
    asked = _Asked(
        until=now + timedelta(days=query.within_days),
        ids={"brand": _brands(query, caller), "video": _one(query.video_id)}.get(by),
        creator_ids=await creators_asked(caller, query.creator_id),
        accounts=_accounts(query, caller),
    )
    if query.brand_id is not None and by != "brand":
        raise malformed_query("brand_id", "This can be sent only with `by=brand`.")
    if query.video_id is not None and by != "video":
        raise malformed_query("video_id", "This can be sent only with `by=video`.")
    after = None
    if query.cursor is not None:
        at, _, key = decode_text(query.cursor, scope).partition(" ")
        after = (_moment(at), key)

    async def sums(cur: DatabaseCursor) -> tuple[list[AtRisk], list[AtRisk]]:
        totals = await _at_risk(cur, caller.ledger_id, by, asked, now=now, limit=1, together=True)
        found = await _at_risk(cur, caller.ledger_id, by, asked, now=now, limit=query.limit + 1, after=after)
        return found, totals

    (found, totals), position = await caller.services.views.read(
        caller.ledger_id,
        sums,
        view=campaigns.NAME,
        also=(advertisers.NAME,) if by == "brand" else (),
        at_least=query.at_least,
    )
    page = page_of(
        found, query.limit, lambda entry: encode_text(f"{entry.first_stops_at.isoformat()} {entry.key}", scope)
    )
    nothing = {"campaigns": 0, "planned_spend": {}}
    return page_answer(
        caller,
        "spend_at_risk",
        page,
        lambda entry: {"key": entry.key, "first_stops_at": entry.first_stops_at, **_risk(entry)},
        position,
        more={"totals": _risk(totals[0]) if totals else nothing},
    )


@dataclass(frozen=True, slots=True)
class _Asked:
    """Which spend at risk is asked for."""

    until: datetime
    ids: Collection[str] | None
    creator_ids: Collection[str] | None
    accounts: Collection[str] | None


async def _at_risk(
    cur: DatabaseCursor,
    ledger_id: int,
    by: Party,
    asked: _Asked,
    *,
    now: datetime,
    limit: int,
    after: tuple[datetime, str] | None = None,
    together: bool = False,
) -> list[AtRisk]:
    return await figure_sums.at_risk(
        cur,
        ledger_id,
        by,
        now=now,
        until=asked.until,
        limit=limit,
        ids=asked.ids,
        creator_ids=asked.creator_ids,
        accounts=asked.accounts,
        after=after,
        together=together,
    )


def _months(query: FiguresFilters, now: datetime) -> Months:
    """Return the months that are asked for.

    Raises:
        Problem: there are none, or too many.

    """
    last = query.to or month_of(now)
    number = last.year * 12 + last.month - 1
    ago = number - SHOWN_MONTHS + 1
    first = query.from_ or datetime(ago // 12, ago % 12 + 1, 1, tzinfo=UTC)
    count = number - (first.year * 12 + first.month - 1) + 1
    if count <= 0:
        raise malformed_query("to" if query.to is not None else "from", "`to` is before `from`: this range is empty.")
    if count > MAX_MONTHS:
        raise malformed_query("to", f"The range has more than {MAX_MONTHS} months.")
    return Months(first, datetime((number + 1) // 12, (number + 1) % 12 + 1, 1, tzinfo=UTC))


def _refuse_others(by: By, caller: Caller) -> None:
    """Raise `NotAllowed` where a key of this role sees no figures by this."""
    ours = OF_ROLE.get(caller.role)
    if ours is not None and by not in ours:
        raise NotAllowed(f"A key with the role {caller.role} sees figures by {', '.join(sorted(ours))}.")


def _check_named(query: PartyFilters, caller: Caller) -> None:
    """Raise `NotAllowed` where a filter names others."""
    caller.check_filters(creator_id=query.creator_id, brand_id=query.brand_id, advertiser_id=query.advertiser_id)
    of_creators = query.creator_id is not None or query.video_id is not None
    of_brands = query.brand_id is not None or query.advertiser_id is not None
    if (caller.role == "brand" and of_creators) or (caller.role == "creator" and of_brands):
        raise NotAllowed("This key does not see figures of others.")


async def _whose(query: FiguresFilters, caller: Caller) -> tuple[Whose, Whose]:
    """Return whose figures are asked for, and whose sum is that of all of them."""
    _refuse_others(query.by, caller)
    _check_named(query, caller)
    creator_ids = await creators_asked(caller, query.creator_id)
    named = next(iter(query.named), None) if query.by == "month" else query.by
    match named:
        case "creator":
            whose = Whose("creator", ids=creator_ids)
        case "video":
            whose = Whose("video", ids=_one(query.video_id), creator_ids=creator_ids)
        case "brand":
            whose = Whose("brand", ids=_brands(query, caller), accounts=_accounts(query, caller))
        case "advertiser":
            whose = Whose("advertiser", ids=_accounts(query, caller))
        case _ if caller.role == "creator":
            whose = Whose("creator", ids=creator_ids)
        case _ if caller.role == "brand":
            ours = caller.key.subjects
            whose = Whose("brand", ids=ours.brand_ids, accounts=ours.advertiser_ids, owned=False)
        case _:
            whose = Whose()
    # Where nobody is named, the sums over all parties are those of the ledger. It has sums of its own, and so have
    # creators for their videos.
    if whose.by == "video" and whose.ids is None:
        return whose, Whose() if creator_ids is None else Whose("creator", ids=creator_ids)
    if whose.by is not None and whose.ids is None and whose.accounts is None and creator_ids is None:
        return whose, Whose()
    return whose, replace(whose)


def _one(name: str | None) -> Collection[str] | None:
    return None if name is None else {name}


def _brands(query: PartyFilters, caller: Caller) -> Collection[str] | None:
    if query.brand_id is None and caller.role == "brand":
        return caller.key.subjects.brand_ids
    return _one(query.brand_id)


def _accounts(query: PartyFilters, caller: Caller) -> Collection[str] | None:
    if query.advertiser_id is None and caller.role == "brand":
        return caller.key.subjects.advertiser_ids
    return _one(query.advertiser_id)


def _also(whose: Whose) -> tuple[str, ...]:
    return (advertisers.NAME,) if whose.by == "brand" else ()


def _place(cursor: str, scope: object) -> tuple[int, str]:
    count, _, key = decode_text(cursor, scope).partition(" ")
    if not count.isdecimal() or len(count) > 18:  # noqa: PLR2004 - digits that a bigint can have
        raise Problem("malformed_cursor")
    return int(count), key


def _moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise Problem("malformed_cursor") from None


def _sums(found: Figures, whose: Whose) -> dict[str, Any]:
    hidden = OF_CODES if whose.by in {"brand", "advertiser"} else frozenset()
    redeemed = found.counts["codes_redeemed"]
    return {
        **{name: None if name in hidden else found.counts[figure] for name, figure in NAMES.items()},
        "mean_seconds_to_redemption": found.counts["redeemed_after_s"] / redeemed if redeemed else None,
        "planned_spend": {
            currency: f"{hundredths // 100}.{hundredths % 100:02}"
            for currency, hundredths in sorted(found.spend.items())
        },
    }


def _risk(found: AtRisk) -> dict[str, Any]:
    return {"campaigns": found.campaigns, "planned_spend": dict(sorted(found.spend.items()))}
