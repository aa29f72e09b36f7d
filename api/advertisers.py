"""Advertiser accounts: which brand each is of, as somebody stated it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.responses import Response

from api.http import answer_fields as answered
from api.http import headers
from api.http.as_of import upto, wait_for_log
from api.http.caller import Caller, allow
from api.http.command_context import handle_command
from api.http.fields import BrandId
from api.http.models import Answer, Command
from api.http.query_params import AtLeast, QueryModel
from api.http.responses import answer, command_headers, version_headers
from api.http.route import Operation, Route
from domain import commands
from domain.advertiser import Advertiser, replay_advertiser
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


class AdvertiserReadAnswer(Answer):
    advertiser_id: answered.AdvertiserId
    brand_id: Annotated[
        str | None,
        Field(description="The brand, by all that is known. Null if nobody has stated it.", examples=["acme"]),
    ]
    version: Annotated[int, Field(ge=0, description="The number of statements about this account.", examples=[1])]
    position: Annotated[int, Field(ge=0, description="The position of the last statement, or 0.", examples=[42])]
    as_of: Annotated[int, Field(ge=0, description="The position up to which the ledger was read.", examples=[42])]


class AdvertiserQuery(QueryModel):
    at_least: AtLeast = None


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


@router.get(
    "/v1/advertisers/{advertiser_id}",
    response_model=AdvertiserReadAnswer,
    tags=["Reads"],
    operation_id="readAdvertiser",
)
@Operation(answer_headers=("ETag", "Ledger-Position"))
async def read_advertiser(
    advertiser_id: str,
    query: Annotated[AdvertiserQuery, Query()],
    caller: Annotated[Caller, allow("operator", "auditor", "admin")],
) -> Response:
    """Read which brand an advertiser account is of, as it was stated."""
    headers.path_id(advertiser_id)
    services = caller.services
    await wait_for_log(caller, query.at_least)
    as_of = await services.events.head(caller.ledger_id)
    stream = upto(await services.aggregates.advertiser_stream(caller.ledger_id, advertiser_id), as_of)
    version = len(stream)
    content = {
        "advertiser_id": advertiser_id,
        "brand_id": replay_advertiser(stream).brand_id if stream else None,
        "version": version,
        "position": stream[-1].position if stream else 0,
        "as_of": as_of,
    }
    return answer(content, 200, version_headers(version, as_of))
