"""Campaigns: ads on a redeemed code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from fastapi import APIRouter, Query
from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from api.code_answer import BudgetEntry, CodeAnswer, code_answer
from api.http import answer_fields as answered
from api.http import headers
from api.http.as_of import wait_for_log
from api.http.caller import Caller, allow
from api.http.command_context import ending, handle_command, load_code
from api.http.cursors import decode, encode, encode_time
from api.http.dependencies import DatabaseCursor
from api.http.fields import (
    AdvertiserId,
    Amount,
    CampaignId,
    CaptionHash,
    Currency,
    Id,
    Moment,
    Name,
    Reason,
    Sha256,
    Targeting,
)
from api.http.models import Answer, Body, Command
from api.http.pagination import Page, creators_asked, page_answer, page_of, place_after, same_query
from api.http.problems import malformed_query
from api.http.query_params import (
    LIMIT,
    AsOf,
    At,
    AtLeast,
    ByAdvertiser,
    ByCode,
    ByCreator,
    ByVideo,
    Exact,
    Flag,
    Limit,
    NextCursor,
    QueryModel,
    refuse_empty,
)
from api.http.responses import created_or_repeated
from api.http.route import Operation, Route
from api.past_campaigns import PastCampaignFilters, past_campaigns
from api.past_codes import moment_of
from domain import commands
from domain.campaign import Campaign, StopReason
from domain.code import Code
from domain.commands import Decision, Ledger
from domain.errors import Refused, Unknown
from domain.values import When
from projections import campaigns

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from projections.campaigns import CampaignRow


CreativeHash = Annotated[Sha256 | None, Field(description="The SHA-256 of the video file, in lowercase hexadecimal.")]


class Budget(Body):
    amount: Amount
    currency: Currency


class Ended(Body):
    """An end that is recorded together with the launch."""

    effective_at: Annotated[Moment, Field(description="When the campaign was ended.")]
    reason: Annotated[Reason | None, Field(description="Why it was ended.", examples=["Budget spent"])] = None


class LaunchCampaign(Command):
    campaign_id: CampaignId
    advertiser_id: AdvertiserId
    budget: Annotated[Budget, Field(description="The budget.", examples=[{"amount": "500.00", "currency": "USD"}])]
    starts_at: Annotated[Moment, Field(description="When the campaign starts, inside the code's window.")]
    ends_at: Annotated[
        Moment,
        Field(description="When the campaign ends. If this is after the code's window, the response has a warning."),
    ]
    name: Annotated[Name | None, Field(description="A name for people.", examples=["Spring sale"])] = None
    targeting: Annotated[
        Targeting | None,
        Field(description="The targeting of the ad, as any JSON of at most 16 KiB and 8 levels."),
    ] = None
    caption_sha256: CaptionHash = None
    creative_sha256: CreativeHash = None
    ended: Annotated[
        Ended | None,
        Field(
            description="The campaign's end, if it ended before another campaign with another creative began that is "
            "already recorded. Only for keys with the role operator or admin."
        ),
    ] = None

    @field_validator("ends_at")
    @classmethod
    def _after_the_start(cls, ends_at: Moment, info: ValidationInfo) -> Moment:
        starts_at = info.data.get("starts_at")
        if starts_at is not None and ends_at <= starts_at:
            raise PydanticCustomError("order", "A campaign must end after it starts.")
        return ends_at


class EndCampaign(Command):
    reason: Annotated[Reason | None, Field(description="Why the campaign was ended.", examples=["Budget spent"])] = None


class CampaignInList(Answer):
    campaign_id: Annotated[str, Field(description="The campaign.", examples=["spring-sale"])]
    code_id: answered.CodeId
    creator_id: answered.CreatorId
    video_id: answered.VideoId
    advertiser_id: answered.AdvertiserId
    name: Annotated[str | None, Field(description="A name for people.")]
    budget: Annotated[BudgetEntry, Field(description="The budget.")]
    starts_at: Annotated[answered.Moment, Field(description="When it starts.")]
    ends_at: Annotated[answered.Moment, Field(description="The planned end.")]
    expires_at: Annotated[answered.Moment, Field(description="The end of the code's window (excluded).")]
    launched_at: Annotated[answered.Moment, Field(description="The effective time of the launch.")]
    running: Annotated[
        bool, Field(description="Whether it runs: launched, even if only scheduled, and not stopped yet.")
    ]
    stops_at: Annotated[answered.Moment, Field(description="When it stops or stopped.")]
    stop_reason: answered.StopReason
    ended_at: Annotated[answered.Moment | None, Field(description="When it was ended before its planned end.")]
    ended_by: Annotated[
        Literal["ended", "code_expired", "code_revoked"] | None, Field(description="The recorded cause of that.")
    ]
    position: Annotated[answered.EventPosition, Field(description="The position of the event that launched it.")]


class CampaignsAnswer(Answer):
    campaigns: Annotated[list[CampaignInList], Field(description="Sorted by the time at which they stop.")]
    next: answered.Next
    position: answered.ReadUpto


class CampaignsFilters(QueryModel):
    """Which campaigns are listed, and in which order."""

    running: Annotated[Flag | None, Field(description="Only campaigns that run, or only those that have stopped.")] = (
        None
    )
    stop_reason: Annotated[
        StopReason | None,
        Field(description="Only campaigns stopped by their code, by the usage rights, or by their own end."),
    ] = None
    stops_from: Annotated[Moment | None, Field(description="Only campaigns that stop at this time or later.")] = None
    stops_before: Annotated[Moment | None, Field(description="Only campaigns that stop before this time.")] = None
    order: Annotated[Literal["asc", "desc"], Field(description="The order, by the time at which they stop.")] = "asc"
    campaign_id: Annotated[Id | None, Field(description="Only with this name.", examples=["spring-sale"])] = None
    advertiser_id: ByAdvertiser = None
    creator_id: ByCreator = None
    video_id_exact: Exact = None
    video_id: ByVideo = None
    code_id: ByCode = None

    as_of: AsOf = None
    at: At = None

    @property
    def as_it_was(self) -> bool:
        """Whether the list is asked for as of an earlier moment."""
        return self.as_of is not None or self.at is not None

    @model_validator(mode="after")
    def _last_first_of_what_was(self) -> Self:
        if self.as_it_was and "order" in self.model_fields_set:
            raise malformed_query(
                "order",
                "A list as of an earlier moment has the campaign first that was recorded last. Leave this out, or "
                "`as_of` and `at`.",
            )
        return self

    @model_validator(mode="after")
    def _no_empty_range(self) -> Self:
        refuse_empty(self.stops_from, self.stops_before, "stops_from", "stops_before")
        return self


class CampaignsQuery(CampaignsFilters):
    limit: Limit = LIMIT
    cursor: NextCursor = None
    at_least: AtLeast = None


router = APIRouter(route_class=Route)


@router.post(
    "/v1/codes/{code_id}/campaigns",
    status_code=201,
    response_model=CodeAnswer,
    tags=["Commands"],
    operation_id="launchCampaign",
)
@Operation(
    request_headers=("If-Match",),
    repeats=True,
    example={
        "campaign_id": "spring-sale",
        "advertiser_id": "adv-7001",
        "budget": {"amount": "500.00", "currency": "USD"},
        "starts_at": "2026-03-02T00:00:00Z",
        "ends_at": "2026-03-20T00:00:00Z",
        "targeting": {"countries": ["US", "CA"], "age_min": 18},
    },
)
async def launch_campaign(
    code_id: str, body: LaunchCampaign, caller: Annotated[Caller, allow("brand", "operator", "admin")]
) -> Response:
    """Record a campaign on a redeemed code. If it ends after the code's window, the response has a warning."""
    caller.act_for_advertiser(body.advertiser_id)
    code, if_match = headers.path_uuid(code_id, "code"), headers.if_match(caller.request)
    ended = ending(caller, "ended", body.ended)
    campaign = Campaign(
        campaign_id=body.campaign_id,
        advertiser_id=body.advertiser_id,
        amount=body.budget.amount,
        currency=body.budget.currency,
        starts_at=body.starts_at,
        ends_at=body.ends_at,
        name=body.name,
        targeting=body.targeting,
        caption_sha256=body.caption_sha256,
        creative_sha256=body.creative_sha256,
    )

    async def decide(ledger: Ledger, when: When) -> Decision[Code]:
        return await commands.launch(
            ledger, code, campaign, ended=ended, if_match=if_match, authorize=caller.read_code, when=when
        )

    try:
        result = await handle_command(caller, body, body.advertiser_id, decide)
    except Refused as refusal:
        raise await _without_others(refusal, caller, code) from None
    assert result.aggregate is not None  # noqa: S101 - a code with a campaign is there
    return code_answer(
        result,
        caller,
        created_or_repeated(result),
        warnings=_warnings(result.aggregate, body.campaign_id, result.recorded_at),
    )


@router.post(
    "/v1/codes/{code_id}/campaigns/{campaign_id}/end",
    response_model=CodeAnswer,
    tags=["Commands"],
    operation_id="endCampaign",
)
@Operation(request_headers=("If-Match",), example={"reason": "Budget spent"})
async def end_campaign(
    code_id: str,
    campaign_id: str,
    caller: Annotated[Caller, allow("brand", "operator", "admin")],
    body: EndCampaign | None = None,
) -> Response:
    """Record the end of a campaign. A campaign that no longer runs is not changed."""
    code, if_match = headers.path_uuid(code_id, "code"), headers.if_match(caller.request)
    body = body or EndCampaign()

    def authorize(found: Code) -> None:
        caller.read_code(found)
        campaign = found.campaigns.get(campaign_id)
        if campaign is not None and caller.role == "brand" and not caller.is_party_to((), (campaign.advertiser_id,)):
            # As one that is not there: whether others run campaigns is not for the caller to know.
            raise Unknown("campaign")

    async def decide(ledger: Ledger, when: When) -> Decision[Code]:
        return await commands.end_campaign(
            ledger, code, campaign_id, body.reason, if_match=if_match, authorize=authorize, when=when
        )

    accounts = caller.key.subjects.advertiser_ids
    subject = next(iter(accounts), None)
    if len(accounts) > 1:
        campaign = (await load_code(caller, code)).campaigns.get(campaign_id)
        subject = None if campaign is None else campaign.advertiser_id
    return code_answer(await handle_command(caller, body, subject, decide), caller, 200)


@router.get("/v1/campaigns", response_model=CampaignsAnswer, tags=["Reads"], operation_id="listCampaigns")
@Operation(answer_headers=("Ledger-Position",))
async def list_campaigns(
    query: Annotated[CampaignsQuery, Query()],
    caller: Annotated[Caller, allow("creator", "brand", "operator", "auditor", "admin")],
) -> Response:
    """List campaigns by the time at which they stop, and what stops them. Keys of creators and brands see their own.

    With `as_of`, list the campaigns as the ledger knew them then, and with `at`, as they were true then, the one that
    was recorded last first. Such a page can have fewer entries than `limit` and still have a `next`.
    """
    if query.as_it_was:
        return await _list_as_it_was(query, caller)
    caller.check_filters(creator_id=query.creator_id, brand_id=None, advertiser_id=query.advertiser_id)
    now = caller.services.now()

    creator_ids = await creators_asked(caller, query.creator_id)

    async def page(cur: DatabaseCursor) -> list[CampaignRow]:
        return await campaigns.search(
            cur,
            caller.ledger_id,
            now=now,
            limit=query.limit + 1,
            after=place_after(query),
            descending=query.order == "desc",
            running=query.running,
            stop_reason=query.stop_reason,
            stops_from=query.stops_from,
            stops_before=query.stops_before,
            code_id=query.code_id,
            creator_ids=creator_ids,
            video_id=query.video_id,
            campaign_id=query.campaign_id,
            advertiser_id=query.advertiser_id,
            visible_advertisers=caller.key.subjects.advertiser_ids if caller.role == "brand" else None,
        )

    found, position = await caller.services.views.read(
        caller.ledger_id, page, view=campaigns.NAME, at_least=query.at_least
    )
    page_found = page_of(found, query.limit, lambda row: encode_time(row.stops_at, row.position, same_query(query)))
    return page_answer(caller, "campaigns", page_found, lambda row: _campaign(row, now), position)


async def _list_as_it_was(query: CampaignsQuery, caller: Caller) -> Response:
    scope = same_query(query)
    caller.check_filters(creator_id=query.creator_id, brand_id=None, advertiser_id=query.advertiser_id)
    creator_ids = await creators_asked(caller, query.creator_id)
    accounts = caller.key.subjects.advertiser_ids if caller.role == "brand" else None
    if query.advertiser_id is not None:
        accounts = frozenset({query.advertiser_id})
    await wait_for_log(caller, query.at_least)
    moment = await moment_of(caller, query.as_of, query.at)

    async def candidates(before: int, count: int) -> list[CampaignRow]:
        async def page(cur: DatabaseCursor) -> list[CampaignRow]:
            return await campaigns.newest(
                cur,
                caller.ledger_id,
                before=before,
                limit=count,
                creator_ids=creator_ids,
                advertiser_ids=accounts,
                code_id=query.code_id,
                video_id=query.video_id,
                campaign_id=query.campaign_id,
            )

        rows, _ = await caller.services.views.read(
            caller.ledger_id, page, view=campaigns.NAME, at_least=moment.position
        )
        return rows

    filters = PastCampaignFilters(query.running, query.stop_reason, query.stops_from, query.stops_before)
    after_key = None if query.cursor is None else decode(query.cursor, scope)
    found, following = await past_campaigns(caller, moment, filters, candidates, after_key=after_key, limit=query.limit)
    page_found = Page(found, None if following is None else encode(following, scope))
    return page_answer(caller, "campaigns", page_found, lambda row: _campaign(row, moment.clock), moment.position)


async def _without_others(refusal: Refused, caller: Caller, code_id: UUID) -> Refused:
    """Return a refusal that names no campaign of another advertiser to a brand."""
    if refusal.conflict_id is None or caller.role != "brand":
        return refusal
    conflict = (await load_code(caller, code_id)).campaigns.get(refusal.conflict_id)
    if conflict is None or caller.is_party_to((), (conflict.advertiser_id,)):
        return refusal
    return Refused(refusal.code, refusal.detail)


def _warnings(code: Code, campaign_id: str, now: datetime) -> list[str]:
    """Return a sentence for each thing that the caller should know about a campaign that it launched."""
    stops_at, by = code.stop(code.launches[campaign_id])
    over = stops_at <= now
    why = {
        "code_expired": "when the code's window ended" if over else "when the code's window ends",
        "code_revoked": "when the code was revoked",
        "rights_ended": "when the usage rights ended" if over else "when the usage rights end",
    }.get(by)
    if why is None:
        return []
    stops = "stopped" if over else "will stop"
    return [f"The campaign {stops} on {stops_at:%Y-%m-%d at %H:%M} UTC, {why}, before its own end."]


def _campaign(row: CampaignRow, now: datetime) -> dict[str, Any]:
    return {
        "campaign_id": row.campaign_id,
        "code_id": row.code_id,
        "creator_id": row.creator_id,
        "video_id": row.video_id,
        "advertiser_id": row.advertiser_id,
        "name": row.name,
        "budget": {"amount": row.amount, "currency": row.currency},
        "starts_at": row.starts_at,
        "ends_at": row.ends_at,
        "expires_at": row.expires_at,
        "launched_at": row.launched_at,
        "running": row.running(now),
        "stops_at": row.stops_at,
        "stop_reason": row.stop_reason,
        "ended_at": row.ended_at,
        "ended_by": row.cause,
        "position": row.position,
    }
