"""The routes that list permissions, shares, redemptions and campaigns: from their views, to whom they concern."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import APIRouter, Query
from starlette.responses import Response

from api.http.caller import Caller, allow
from api.http.cursors import cursor_in_time, link_next, place_in_time
from api.http.dependencies import Cursor
from api.http.responses import answer
from api.http.route import Route
from api.list_models import CampaignsAnswer, PermissionsAnswer, RedemptionsAnswer, SharesAnswer
from api.list_queries import CampaignsQuery, PermissionsQuery, RedemptionsQuery, SharesQuery
from projections import campaigns, codes, permissions, redemptions, shares
from projections.engine import view

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from datetime import datetime

    from projections.campaigns import CampaignRow
    from projections.code_facts import WithCodeFacts
    from projections.engine.paging import Keyset
    from projections.permissions import PermissionRow
    from projections.redemptions import AttemptRow
    from projections.shares import ShareRow

R = TypeVar("R")
Asked = PermissionsQuery | SharesQuery | RedemptionsQuery | CampaignsQuery

router = APIRouter(route_class=Route, tags=["Reads"])


@router.get("/v1/permissions", response_model=PermissionsAnswer, operation_id="listPermissions")
async def list_permissions(
    query: Annotated[PermissionsQuery, Query()],
    caller: Annotated[Caller, allow("creator", "operator", "auditor", "admin")],
) -> Response:
    """List creators by when their Ad Authorization was last switched; a creator's key sees its own."""

    async def page(cur: Cursor) -> list[PermissionRow]:
        return await permissions.search(
            cur,
            caller.ledger_id,
            limit=query.limit + 1,
            after=_after(query),
            enabled=query.enabled,
            creator_ids=_creators(caller, None),
            since=query.from_,
            until=query.to,
        )

    found, position = await caller.services.views.read(
        caller.ledger_id, page, view=permissions.NAME, at_least=query.at_least
    )
    return _listed(caller, query, "permissions", found, position, _permission, lambda row: (row.since, row.position))


@router.get("/v1/shares", response_model=SharesAnswer, operation_id="listShares")
async def list_shares(
    query: Annotated[SharesQuery, Query()],
    caller: Annotated[Caller, allow("creator", "brand", "operator", "auditor", "admin")],
) -> Response:
    """List who was given which code, over which channel and when; a creator's or brand's key sees its own."""
    caller.ask_by_names(creator_id=query.creator_id, brand_id=query.brand_id, advertiser_id=query.advertiser_id)
    ours = caller.key.subjects

    async def page(cur: Cursor) -> tuple[list[WithCodeFacts[ShareRow]], int]:
        upto = await view.position_reached(cur, caller.ledger_id, shares.NAME, codes.NAME)
        found = await shares.search(
            cur,
            caller.ledger_id,
            upto=upto,
            limit=query.limit + 1,
            after=_after(query),
            code_id=query.code_id,
            creator_ids=_creators(caller, query.creator_id),
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
        caller.ledger_id, page, view=shares.NAME, also=(codes.NAME,), at_least=query.at_least
    )
    return _listed(caller, query, "shares", found, upto, _share, lambda one: (one.row.shared_at, one.row.position))


@router.get("/v1/redemptions", response_model=RedemptionsAnswer, operation_id="listRedemptions")
async def list_redemptions(
    query: Annotated[RedemptionsQuery, Query()],
    caller: Annotated[Caller, allow("creator", "brand", "operator", "auditor", "admin")],
) -> Response:
    """List who entered which code, and who was turned away and why; a creator's or brand's key sees its own."""
    caller.ask_by_names(creator_id=query.creator_id, brand_id=None, advertiser_id=query.advertiser_id)

    async def page(cur: Cursor) -> tuple[list[WithCodeFacts[AttemptRow]], int]:
        upto = await view.position_reached(cur, caller.ledger_id, redemptions.NAME, codes.NAME)
        found = await redemptions.search(
            cur,
            caller.ledger_id,
            upto=upto,
            limit=query.limit + 1,
            after=_after(query),
            refused=query.refused,
            reason=query.reason,
            shared=query.shared,
            code_id=query.code_id,
            creator_ids=_creators(caller, query.creator_id),
            video_id=query.video_id,
            advertiser_id=query.advertiser_id,
            since=query.from_,
            until=query.to,
            visible_advertisers=caller.key.subjects.advertiser_ids if caller.role == "brand" else None,
        )
        return found, upto

    (found, upto), _ = await caller.services.views.read(
        caller.ledger_id, page, view=redemptions.NAME, also=(codes.NAME,), at_least=query.at_least
    )
    return _listed(caller, query, "redemptions", found, upto, _attempt, lambda one: (one.row.at, one.row.position))


@router.get("/v1/campaigns", response_model=CampaignsAnswer, operation_id="listCampaigns")
async def list_campaigns(
    query: Annotated[CampaignsQuery, Query()],
    caller: Annotated[Caller, allow("creator", "brand", "operator", "auditor", "admin")],
) -> Response:
    """List campaigns by the day each will stop, and by what; a creator's or brand's key sees its own."""
    caller.ask_by_names(creator_id=query.creator_id, brand_id=None, advertiser_id=query.advertiser_id)
    now = caller.services.now()

    async def page(cur: Cursor) -> list[CampaignRow]:
        return await campaigns.search(
            cur,
            caller.ledger_id,
            now=now,
            limit=query.limit + 1,
            after=_after(query),
            descending=query.order == "desc",
            running=query.running,
            stop_reason=query.stop_reason,
            stops_from=query.stops_from,
            stops_before=query.stops_before,
            code_id=query.code_id,
            creator_ids=_creators(caller, query.creator_id),
            video_id=query.video_id,
            campaign_id=query.campaign_id,
            advertiser_id=query.advertiser_id,
            visible_advertisers=caller.key.subjects.advertiser_ids if caller.role == "brand" else None,
        )

    found, position = await caller.services.views.read(
        caller.ledger_id, page, view=campaigns.NAME, at_least=query.at_least
    )
    return _listed(
        caller, query, "campaigns", found, position, lambda row: _campaign(row, now), lambda r: (r.stops_at, r.position)
    )


def _creators(caller: Caller, creator_id: str | None) -> Collection[str] | None:
    """Return the creators whose codes are asked for: the one that is named, or those that the key acts for."""
    if creator_id is not None:
        return {creator_id}
    return caller.key.subjects.creator_ids if caller.role == "creator" else None


def _same(query: Asked) -> dict[str, Any]:
    """Return what must be the same for the next page."""
    return query.model_dump(exclude={"cursor", "limit", "at_least"})


def _after(query: Asked) -> Keyset | None:
    return None if query.cursor is None else place_in_time(query.cursor, _same(query))


def _listed(
    caller: Caller,
    query: Asked,
    name: str,
    found: Sequence[R],
    position: int,
    content: Callable[[R], dict[str, Any]],
    place: Callable[[R], Keyset],
) -> Response:
    """Answer a page: one more than it holds was looked for, which tells whether another follows."""
    following = None
    if len(found) > query.limit:
        found = found[: query.limit]
        following = cursor_in_time(*place(found[-1]), _same(query))
    link = {} if following is None else link_next(caller.request, cursor=following)
    contents = {name: [content(one) for one in found], "next": following, "position": position}
    return answer(contents, 200, {"Ledger-Position": str(position), **link})


def _permission(row: PermissionRow) -> dict[str, Any]:
    return {
        "creator_id": row.creator_id,
        "enabled": row.enabled,
        "since": row.since,
        "version": row.version,
        "position": row.position,
    }


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


def _attempt(one: WithCodeFacts[AttemptRow]) -> dict[str, Any]:
    row = one.row
    return {
        "code_id": row.code_id,
        "creator_id": one.creator_id,
        "video_id": one.video_id,
        "advertiser_id": row.advertiser_id,
        "refused": row.refused is not None,
        "reason": row.refused,
        "shared_with_advertiser": row.shared_with_advertiser,
        "attempted_at": row.at,
        "recorded_at": row.recorded_at,
        "position": row.position,
    }


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
