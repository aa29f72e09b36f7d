"""Shares: a code handed to a brand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.responses import Response

from api.code_answer import CodeAnswer, code_answer
from api.http import answer_fields as answered
from api.http import headers
from api.http.as_of import position_asked
from api.http.caller import Caller, allow
from api.http.command_context import creator_of, handle_command
from api.http.cursors import encode_time
from api.http.dependencies import DatabaseCursor
from api.http.fields import AdvertiserId, BrandId, Id, Note
from api.http.models import Answer, Command
from api.http.pagination import creators_asked, page_answer, page_of, place_after, same_query
from api.http.query_params import (
    LIMIT,
    AsOf,
    AtLeast,
    ByAdvertiser,
    ByCode,
    ByCreator,
    ByVideo,
    Exact,
    InTime,
    Limit,
    NextCursor,
)
from api.http.responses import created_or_repeated
from api.http.route import Operation, Route
from domain import commands
from domain.campaign import Share
from domain.code import Code
from domain.commands import Decision, Ledger
from domain.values import Channel, Sealed, When
from projections import codes, shares
from projections.engine import checkpoints

if TYPE_CHECKING:
    from projections.code_facts import WithCodeFacts
    from projections.shares import ShareRow


class ShareCode(Command):
    brand_id: BrandId
    channel: Annotated[Channel, Field(description="The channel over which it was shared.", examples=["dm"])]
    advertiser_id: Annotated[
        AdvertiserId | None, Field(description="The advertiser account that it is shared with.", examples=["adv-7001"])
    ] = None
    note: Annotated[
        Note | None, Field(description="A note. It is stored encrypted.", examples=["For the spring sale"])
    ] = None


class ShareInList(Answer):
    code_id: answered.CodeId
    creator_id: answered.CreatorId
    video_id: answered.VideoId
    brand_id: answered.BrandId
    advertiser_id: Annotated[
        str | None, Field(description="The advertiser account it was shared with, if one was named.")
    ]
    channel: Annotated[Channel, Field(description="The channel over which it was shared.")]
    shared_at: Annotated[answered.Moment, Field(description="The effective time.")]
    recorded_at: answered.RecordedAt
    position: answered.EventPosition


class SharesAnswer(Answer):
    shares: Annotated[list[ShareInList], Field(description="Sorted by effective time, the latest first.")]
    next: answered.Next
    position: answered.ReadUpto


class SharesFilters(InTime):
    """Which shares are listed."""

    brand_id: Annotated[Id | None, Field(description="Only with this brand.", examples=["acme"])] = None
    advertiser_id: ByAdvertiser = None
    creator_id: ByCreator = None
    video_id_exact: Exact = None
    video_id: ByVideo = None
    code_id: ByCode = None
    channel: Annotated[Channel | None, Field(description="Only over this channel.", examples=["dm"])] = None
    as_of: AsOf = None


class SharesQuery(SharesFilters):
    limit: Limit = LIMIT
    cursor: NextCursor = None
    at_least: AtLeast = None


router = APIRouter(route_class=Route)


@router.post(
    "/v1/codes/{code_id}/shares",
    status_code=201,
    response_model=CodeAnswer,
    tags=["Commands"],
    operation_id="shareCode",
)
@Operation(
    request_headers=("If-Match",),
    repeats=True,
    example={"brand_id": "acme", "channel": "dm", "advertiser_id": "adv-7001"},
)
async def share_code(
    code_id: str, body: ShareCode, caller: Annotated[Caller, allow("creator", "operator", "admin")]
) -> Response:
    """Record that a code was shared with a brand over a channel. Repeating the same share returns 200."""
    code, if_match = headers.path_uuid(code_id, "code"), headers.if_match(caller.request)
    note = None if body.note is None else Sealed(body.note)

    async def decide(ledger: Ledger, when: When) -> Decision[Code]:
        share = Share(body.brand_id, body.channel, body.advertiser_id, None)
        return await commands.share(
            ledger, code, share, note, if_match=if_match, authorize=caller.change_code, when=when
        )

    result = await handle_command(caller, body, await creator_of(caller, code), decide)
    return code_answer(result, caller, created_or_repeated(result))


@router.get("/v1/shares", response_model=SharesAnswer, tags=["Reads"], operation_id="listShares")
@Operation(answer_headers=("Ledger-Position",))
async def list_shares(
    query: Annotated[SharesQuery, Query()],
    caller: Annotated[Caller, allow("creator", "brand", "operator", "auditor", "admin")],
) -> Response:
    """List which code was shared with whom, over which channel and when. Keys of creators and brands see their own."""
    caller.check_filters(creator_id=query.creator_id, brand_id=query.brand_id, advertiser_id=query.advertiser_id)
    ours = caller.key.subjects

    creator_ids = await creators_asked(caller, query.creator_id)

    last, at_least = await position_asked(caller, query.as_of, query.at_least)

    async def page(cur: DatabaseCursor) -> tuple[list[WithCodeFacts[ShareRow]], int]:
        reached = await checkpoints.position_reached(cur, caller.ledger_id, shares.NAME, codes.NAME)
        upto = min(reached, last)
        found = await shares.search(
            cur,
            caller.ledger_id,
            upto=upto,
            limit=query.limit + 1,
            after=place_after(query),
            code_id=query.code_id,
            creator_ids=creator_ids,
            video_id=query.video_id,
            brand_id=query.brand_id,
            advertiser_id=query.advertiser_id,
            channel=query.channel,
            since=query.from_,
            until=query.to,
            visible_brands=ours.brand_ids if caller.role == "brand" else None,
            visible_advertisers=ours.advertiser_ids if caller.role == "brand" else None,
        )
        return found, upto

    (found, upto), _ = await caller.services.views.read(
        caller.ledger_id, page, view=shares.NAME, also=(codes.NAME,), at_least=at_least
    )
    page_found = page_of(
        found, query.limit, lambda one: encode_time(one.row.shared_at, one.row.position, same_query(query))
    )
    return page_answer(caller, "shares", page_found, _share, upto)


def _share(one: WithCodeFacts[ShareRow]) -> dict[str, Any]:
    row = one.row
    return {
        "code_id": row.code_id,
        "creator_id": one.creator_id,
        "video_id": one.video_id,
        "brand_id": row.brand_id,
        "advertiser_id": row.advertiser_id,
        "channel": row.channel,
        "shared_at": row.shared_at,
        "recorded_at": row.recorded_at,
        "position": row.position,
    }
