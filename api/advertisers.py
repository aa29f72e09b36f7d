"""Advertiser accounts: which brand each is of, as somebody stated it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from api.http import answer_fields as answered
from api.http import headers
from api.http.caller import Caller, allow
from api.http.command_context import handle_command
from api.http.fields import BrandId
from api.http.models import Answer, Command
from api.http.responses import answer, command_headers
from api.http.route import Operation, Route
from domain import commands
from domain.advertiser import Advertiser
from domain.commands import Decision, Ledger
from domain.values import When
from infra.ids import uuid7


class NameAdvertiser(Command):
    brand_id: BrandId


class AdvertiserAnswer(Answer):
    advertiser_id: answered.AdvertiserId
    brand_id: Annotated[str, Field(description="The brand, by all that is known.", examples=["acme"])]
    version: Annotated[int, Field(ge=1, description="The number of statements about this account.", examples=[1])]
    position: answered.Position


router = APIRouter(route_class=Route)


@router.put(
    "/v1/advertisers/{advertiser_id}",
    response_model=AdvertiserAnswer,
    tags=["Commands"],
    operation_id="nameAdvertiser",
)
@Operation(request_headers=("If-Match",), example={"brand_id": "acme"})
async def name_advertiser(
    advertiser_id: str, body: NameAdvertiser, caller: Annotated[Caller, allow("operator", "admin")]
) -> Response:
    """Record which brand an advertiser account is of, and with `effective_at` since when.

    Codes that were shared with this brand from then on were shared with the account. Repeating it changes nothing.
    """
    headers.path_id(advertiser_id)
    if_match = headers.if_match(caller.request)
    stream_id = uuid7()

    async def decide(ledger: Ledger, when: When) -> Decision[Advertiser]:
        return await commands.name_advertiser(
            ledger, advertiser_id, body.brand_id, stream_id=stream_id, if_match=if_match, when=when
        )

    result = await handle_command(caller, body, advertiser_id, decide)
    advertiser = result.aggregate
    assert advertiser is not None  # noqa: S101 - an account that was named is there
    content = {
        "advertiser_id": advertiser.advertiser_id,
        "brand_id": advertiser.brand_id,
        "version": advertiser.version,
        "position": result.position,
    }
    return answer(content, 200, command_headers(result, advertiser.version))
