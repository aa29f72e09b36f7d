"""Redemptions: a code looked up and entered by an advertiser account."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, Self
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from api.http import answer_fields as answered
from api.http import headers
from api.http.as_of import position_asked, upto
from api.http.caller import ACTS_FOR_ALL, Caller, allow
from api.http.command_context import handle_command, without_others
from api.http.cursors import encode_time
from api.http.dependencies import DatabaseCursor
from api.http.fields import VIDEO_ID_EXACT, AdvertiserId, CodeIdText, Secret, VideoId
from api.http.guessing import guessing
from api.http.models import Answer, Body, Command
from api.http.pagination import creators_asked, page_answer, page_of, place_after, same_query
from api.http.problems import malformed_query
from api.http.query_params import (
    LIMIT,
    AsOf,
    AtLeast,
    ByAdvertiser,
    ByCode,
    ByCreator,
    ByVideo,
    Exact,
    Flag,
    InTime,
    Limit,
    NextCursor,
)
from api.http.reads import note_read, reading
from api.http.responses import answer, command_headers, created_or_repeated, version_headers
from api.http.route import Operation, Route
from api.query_language import parameter
from domain import commands
from domain.advertiser import replay_advertiser
from domain.code import Code
from domain.commands import Decision, Ledger
from domain.errors import REFUSALS, NotAllowed, Refused, Unknown
from domain.values import Sealed, When
from infra.auth.access_log import AccessSubject
from projections import advertisers, codes, redemptions, shares
from projections.engine import checkpoints

if TYPE_CHECKING:
    from datetime import datetime

    from infra.eventstore.command_handler import CommandResult
    from projections.code_facts import WithCodeFacts
    from projections.redemptions import AttemptRow


ExpectedVideoId = Annotated[
    VideoId | None,
    Field(
        description="The video that the code is expected to be for: its id of 15 to 20 digits, or a link to the post. "
        "A code for another video is refused."
    ),
]


class LookupCode(Body):
    secret: Secret
    video_id_exact: Annotated[bool, Field(description=VIDEO_ID_EXACT)] = False
    expected_video_id: ExpectedVideoId = None


class RedeemCode(Command):
    """Send exactly one of `secret` and `code_id`."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": ["secret"], "properties": {"secret": {"type": "string"}, "code_id": {"type": "null"}}},
                {"required": ["code_id"], "properties": {"code_id": {"type": "string"}, "secret": {"type": "null"}}},
            ],
        }
    )

    secret: Annotated[
        Secret | None, Field(description="The authorization code as it was pasted; nothing if `code_id` names it.")
    ] = None
    code_id: Annotated[
        CodeIdText | None,
        Field(
            description="The code, in place of its secret, which may not be known here. Only for keys with the role "
            "operator or admin."
        ),
    ] = None
    advertiser_id: AdvertiserId
    video_id_exact: Annotated[bool, Field(description=VIDEO_ID_EXACT)] = False
    expected_video_id: ExpectedVideoId = None

    @model_validator(mode="after")
    def _one_code(self) -> Self:
        if (self.secret is None) == (self.code_id is None):
            raise PydanticCustomError("one_of", "Send exactly one of secret and code_id.")
        return self


class LookupAnswer(Answer):
    code_id: answered.CodeId
    masked: answered.Masked
    creator_id: answered.CreatorId
    video_id: answered.VideoId
    starts_at: answered.StartsAt
    expires_at: answered.ExpiresAt
    start_stated: answered.StartStated
    state: answered.CodeState
    live: answered.Live


class RedemptionAnswer(LookupAnswer):
    advertiser_id: answered.AdvertiserId
    shared_with_advertiser: Annotated[
        bool | None,
        Field(
            description="Whether a share names this account, or the brand that it was of when it redeemed the code. "
            "Null if shares name only brands, and it is not known whose the account was."
        ),
    ]
    version: answered.Version
    position: answered.Position


class RedemptionInList(Answer):
    code_id: answered.CodeId
    creator_id: answered.CreatorId
    video_id: answered.VideoId
    advertiser_id: answered.AdvertiserId
    refused: Annotated[bool, Field(description="Whether the attempt was refused.")]
    reason: Annotated[str | None, Field(description="Why the attempt was refused.", examples=["code_expired"])]
    shared_with_advertiser: Annotated[
        bool | None,
        Field(
            description="Whether the code had been shared with the account by then. Null if it had been shared only "
            "with brands and nobody had said whose the account was, or if the attempt was refused."
        ),
    ]
    attempted_at: Annotated[answered.Moment, Field(description="The effective time.")]
    recorded_at: answered.RecordedAt
    position: answered.EventPosition


class RedemptionsAnswer(Answer):
    redemptions: Annotated[list[RedemptionInList], Field(description="Sorted by effective time, the latest first.")]
    next: answered.Next
    position: answered.ReadUpto


RefusedFor = Annotated[
    str,
    BeforeValidator(parameter("refused")),
    WithJsonSchema({"type": "string", "enum": list(REFUSALS["redeem"])}),
]


class RedemptionsFilters(InTime):
    """Which redemptions and refused attempts are listed."""

    refused: Annotated[Flag | None, Field(description="Only refused attempts, or only successful redemptions.")] = None
    reason: Annotated[
        RefusedFor | None, Field(description="Only attempts refused for this reason.", examples=["code_expired"])
    ] = None
    shared: Annotated[
        Flag | None,
        Field(
            description="Only redemptions by accounts that the code had been shared with, or only by others. If that "
            "is not known, a redemption is in neither list."
        ),
    ] = None
    advertiser_id: ByAdvertiser = None
    creator_id: ByCreator = None
    video_id_exact: Exact = None
    video_id: ByVideo = None
    code_id: ByCode = None
    as_of: AsOf = None

    @model_validator(mode="after")
    def _no_refused_redemptions(self) -> Self:
        if self.refused is False and self.reason is not None:
            raise malformed_query("reason", "Only refused attempts have a reason. Leave out `refused=false`.")
        if self.shared is not None and (self.refused or self.reason is not None):
            raise malformed_query(
                "shared",
                "Only successful redemptions have this. It cannot be combined with filters for refused attempts.",
            )
        return self


class RedemptionsQuery(RedemptionsFilters):
    limit: Limit = LIMIT
    cursor: NextCursor = None
    at_least: AtLeast = None


# The views that the list of redemptions is joined with.
_JOINED: Final = (codes.NAME, shares.NAME, advertisers.NAME)

router = APIRouter(route_class=Route)


@router.post("/v1/codes/lookup", response_model=LookupAnswer, tags=["Commands"], operation_id="lookupCode")
@Operation(
    answer_headers=("ETag", "Ledger-Position"),
    refusals=(404, 409),
    trace="noted",
    example={"secret": "#k9/Tz+example+of+a+spark+ad+code=="},
)
async def lookup_code(body: LookupCode, caller: Annotated[Caller, allow("brand", "operator", "admin")]) -> Response:
    """Show what a code covers before it is redeemed. Only the access log learns of it. Unknown codes are limited."""
    headers.idempotency_key(caller.request)
    with guessing(caller, body.secret) as guess:
        session = await caller.services.aggregates.repository(caller.ledger_id)
        code = await session.code_by_secret(Sealed(body.secret))
        if code is None:
            raise guess.unknown()
    reading(caller, subject=AccessSubject(code.id, code.creator_id, code.video_id))
    try:
        code.refuse_other_video(body.expected_video_id)
    except Refused:
        # The refusal discloses that there is such a code.
        note_read(caller, None)
        raise
    content = _covered(code, caller.services.now())
    return answer(content, 200, version_headers(code.command_version, session.loaded[code.id.int].position))


@router.post(
    "/v1/redemptions", status_code=201, response_model=RedemptionAnswer, tags=["Commands"], operation_id="redeemCode"
)
@Operation(
    request_headers=("If-Match",),
    refusals=(404,),
    repeats=True,
    example={"secret": "#k9/Tz+example+of+a+spark+ad+code==", "advertiser_id": "adv-7001"},
)
async def redeem_code(body: RedeemCode, caller: Annotated[Caller, allow("brand", "operator", "admin")]) -> Response:
    """Record that an advertiser account entered a code. Repeating it for the same account returns 200."""
    caller.act_for_advertiser(body.advertiser_id)
    if body.code_id is not None and caller.role not in ACTS_FOR_ALL:
        raise NotAllowed("Only keys with the role operator or admin can name a code by its id. Send its secret.")
    if_match = headers.if_match(caller.request)
    secret = None if body.secret is None else Sealed(body.secret)
    code_id = None if body.code_id is None else UUID(body.code_id)
    brand_ids = caller.key.subjects.brand_ids

    async def decide(ledger: Ledger, when: When) -> Decision[Code]:
        return await commands.redeem(
            ledger,
            secret,
            body.advertiser_id,
            brand_ids,
            code_id=code_id,
            expected_video_id=body.expected_video_id,
            if_match=if_match,
            when=when,
        )

    with guessing(caller, secret or "") as guess:
        try:
            result = await handle_command(caller, body, body.advertiser_id, decide)
        except Unknown:
            if secret is None:
                raise
            raise guess.unknown() from None
        except Refused as refusal:
            raise await without_others(refusal, caller) from None
    code = result.aggregate
    assert code is not None  # noqa: S101 - a code that was redeemed is there
    content = {
        **_covered(code, result.recorded_at),
        "advertiser_id": body.advertiser_id,
        "shared_with_advertiser": await _shared(caller, code, body.advertiser_id, result),
        "version": code.command_version,
        "position": result.position,
    }
    return answer(
        content,
        created_or_repeated(result),
        command_headers(result, code.command_version),
    )


@router.get("/v1/redemptions", response_model=RedemptionsAnswer, tags=["Reads"], operation_id="listRedemptions")
@Operation(answer_headers=("Ledger-Position",))
async def list_redemptions(
    query: Annotated[RedemptionsQuery, Query()],
    caller: Annotated[Caller, allow("creator", "brand", "operator", "auditor", "admin")],
) -> Response:
    """List redemptions and refused attempts with their reasons. Keys of creators and brands see their own."""
    caller.check_filters(creator_id=query.creator_id, brand_id=None, advertiser_id=query.advertiser_id)

    creator_ids = await creators_asked(caller, query.creator_id)

    last, at_least = await position_asked(caller, query.as_of, query.at_least)

    async def page(cur: DatabaseCursor) -> tuple[list[WithCodeFacts[AttemptRow]], int]:
        reached = await checkpoints.position_reached(cur, caller.ledger_id, redemptions.NAME, *_JOINED)
        upto = min(reached, last)
        found = await redemptions.search(
            cur,
            caller.ledger_id,
            upto=upto,
            limit=query.limit + 1,
            after=place_after(query),
            refused=query.refused,
            reason=query.reason,
            shared=query.shared,
            code_id=query.code_id,
            creator_ids=creator_ids,
            video_id=query.video_id,
            advertiser_id=query.advertiser_id,
            since=query.from_,
            until=query.to,
            visible_advertisers=caller.key.subjects.advertiser_ids if caller.role == "brand" else None,
        )
        return found, upto

    (found, upto), _ = await caller.services.views.read(
        caller.ledger_id, page, view=redemptions.NAME, also=_JOINED, at_least=at_least
    )
    page_found = page_of(found, query.limit, lambda one: encode_time(one.row.at, one.row.position, same_query(query)))
    return page_answer(caller, "redemptions", page_found, _attempt, upto)


async def _shared(caller: Caller, code: Code, advertiser_id: str, result: CommandResult[Code]) -> bool | None:
    """Return whether the code was shared with the account that redeemed it; a replay repeats the first answer."""
    shared = code.was_shared_when_redeemed(advertiser_id, frozenset())
    if shared or not code.shares:
        return shared
    stream = await caller.services.aggregates.advertiser_stream(caller.ledger_id, advertiser_id)
    if result.replayed:
        stream = upto(stream, result.position)
    brand_id = replay_advertiser(stream).brand_by(code.redemptions[advertiser_id]) if stream else None
    return shared if brand_id is None else code.was_shared_when_redeemed(advertiser_id, frozenset({brand_id}))


def _covered(code: Code, now: datetime) -> dict[str, Any]:
    """Return what a code covers, for a caller who knows its secret."""
    return {
        "code_id": code.id,
        "masked": code.masked,
        "creator_id": code.creator_id,
        "video_id": code.video_id,
        "starts_at": code.window.starts_at,
        "expires_at": code.window.expires_at,
        "start_stated": code.start_stated,
        "state": code.state(now),
        "live": code.live(now),
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
