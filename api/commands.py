"""The routes that change something: each checks whom the caller acts for, decides, and answers what now stands."""

from __future__ import annotations

import secrets
from typing import Annotated, Final

from fastapi import APIRouter
from starlette.responses import Response

from api.answer_models import (
    CampaignAnswer,
    CodeAnswer,
    GeneratedAnswer,
    LookupAnswer,
    PermissionAnswer,
    RedemptionAnswer,
    RevealAnswer,
)
from api.http import headers
from api.http.caller import UNBOUND, Caller, allow
from api.http.command_context import Guarded, creator_of, execute, loaded, owned, policy_of
from api.http.dependencies import limits_of
from api.http.problems import Problem, malformed_body, too_many
from api.http.responses import NO_STORE, answer, code_answer, created_or_repeated, replayed, stands, warnings
from api.http.route import Route
from api.schemas import (
    AddNote,
    EndCampaign,
    ExtendCode,
    GenerateCode,
    LaunchCampaign,
    LookupCode,
    RedeemCode,
    RevealCode,
    RevokeCode,
    SetPermission,
    ShareCode,
)
from domain import commands
from domain.campaign import Campaign, Share
from domain.code import Code
from domain.commands import Decision, Ledger, When
from domain.creator import Creator
from domain.errors import NotAllowed, Refused, StaleVersion, Unknown
from domain.values import Sealed
from infra.ids import uuid7

# Bytes of randomness in a code that we generate ourselves.
SECRET_BYTES: Final = 32
# Refusals of a code that someone brings which tell whether its secret is known here, and leave no event.
_TELLING: Final = frozenset({"secret_exists", "live_code_exists"})

router = APIRouter(route_class=Route, tags=["Commands"])


@router.put("/v1/creators/{creator_id}/permission", response_model=PermissionAnswer, operation_id="setPermission")
async def set_permission(
    creator_id: str, body: SetPermission, caller: Annotated[Caller, allow("creator", "operator", "admin")]
) -> Response:
    """Switch a creator's account-level Ad Authorization on or off; live codes stay valid when it goes off."""
    headers.path_id(creator_id)
    caller.act_for_creator(creator_id)
    if_match = headers.if_match(caller.request)
    stream_id = uuid7()

    def unchanged(creator: Creator | None) -> None:
        version = 0 if creator is None else creator.version
        if if_match is not None and if_match != version:
            raise StaleVersion(version)

    async def decide(ledger: Ledger, when: When) -> Decision[Creator] | None:
        guarded = Guarded(ledger, creator=unchanged)
        return await commands.set_permission(guarded, creator_id, enabled=body.enabled, stream_id=stream_id, when=when)

    done = await execute(caller, body, creator_id, decide)
    creator, live_codes = done.aggregate, 0
    if done.creator_stream is not None:
        live_codes = await caller.services.aggregates.live_codes(
            caller.ledger_id, done.creator_stream, upto=done.position, at=done.recorded_at
        )
    version = 0 if creator is None else creator.version
    content = {
        "creator_id": creator_id,
        "enabled": creator is not None and creator.enabled,
        "live_codes": live_codes,
        "version": version,
        "position": done.position,
    }
    return answer(content, 200, {**stands(version, done.position), **replayed(done)})


@router.post("/v1/codes", status_code=201, response_model=GeneratedAnswer, operation_id="generateCode")
async def generate_code(
    body: GenerateCode, caller: Annotated[Caller, allow("creator", "operator", "admin")]
) -> Response:
    """Generate a code for a video, or record one that TikTok generated; its secret is in this answer and in reveals."""
    caller.act_for_creator(body.creator_id)
    # Whoever may read every code has nothing to guess.
    guessing = body.secret is not None and caller.role not in UNBOUND
    if guessing:
        _refuse_guessing(caller)
    if b"if-match" in headers.of(caller.request):
        raise Problem("malformed_header", "If-Match speaks of a code, and there is none yet.")
    code_id = uuid7()
    secret = Sealed(body.secret or "#" + secrets.token_urlsafe(SECRET_BYTES))
    policy = policy_of(caller)

    async def decide(ledger: Ledger, when: When) -> Decision[Code]:
        return await commands.generate(
            ledger,
            policy,
            code_id=code_id,
            creator_id=body.creator_id,
            video_id=body.video_id,
            terms_version=body.terms_version,
            days=body.days,
            starts_at=body.starts_at,
            secret=secret,
            caption_sha256=body.caption_sha256,
            when=when,
        )

    try:
        done = await execute(caller, body, body.creator_id, decide)
    except Refused as refusal:
        if guessing and refusal.code in _TELLING:
            _count_guess(caller)
        raise
    assert done.aggregate is not None  # noqa: S101 - a code that was generated is there
    if done.replayed:
        secret = await caller.services.aggregates.secret(caller.ledger_id, done.aggregate.id)
    location = {"Location": f"/v1/codes/{done.aggregate.id}"}
    return code_answer(done, caller, 201, NO_STORE | location, secret=secret)


@router.post("/v1/codes/{code_id}/extensions", status_code=201, response_model=CodeAnswer, operation_id="extendCode")
async def extend_code(
    code_id: str, body: ExtendCode, caller: Annotated[Caller, allow("creator", "operator", "admin")]
) -> Response:
    """Move the end of a code's window to a later moment, before or after it was shared, and after it expired too."""
    code, if_match, policy = headers.path_uuid(code_id, "code"), headers.if_match(caller.request), policy_of(caller)

    async def decide(ledger: Ledger, when: When) -> Decision[Code]:
        return await commands.extend(
            owned(ledger, caller),
            policy,
            code,
            days=body.days,
            expires_at=body.expires_at,
            if_match=if_match,
            when=when,
        )

    done = await execute(caller, body, await creator_of(caller, code), decide)
    return code_answer(done, caller, 201)


@router.post("/v1/codes/{code_id}/shares", status_code=201, response_model=CodeAnswer, operation_id="shareCode")
async def share_code(
    code_id: str, body: ShareCode, caller: Annotated[Caller, allow("creator", "operator", "admin")]
) -> Response:
    """Record that a code was handed to a brand, and over which channel; the same again answers 200."""
    code, if_match = headers.path_uuid(code_id, "code"), headers.if_match(caller.request)
    note = None if body.note is None else Sealed(body.note)

    async def decide(ledger: Ledger, when: When) -> Decision[Code]:
        share = Share(body.brand_id, body.channel, body.advertiser_id, None)
        return await commands.share(owned(ledger, caller), code, share, note, if_match=if_match, when=when)

    done = await execute(caller, body, await creator_of(caller, code), decide)
    return code_answer(done, caller, created_or_repeated(done))


@router.post("/v1/codes/lookup", response_model=LookupAnswer, operation_id="lookupCode")
async def lookup_code(body: LookupCode, caller: Annotated[Caller, allow("brand", "operator", "admin")]) -> Response:
    """Tell what a code covers before it is redeemed; nothing is recorded, and guessing is limited as in redeeming."""
    headers.idempotency_key(caller.request)
    _refuse_guessing(caller)
    session = await caller.services.aggregates.repository(caller.ledger_id)
    code = await session.code_by_secret(Sealed(body.secret))
    if code is None:
        raise _guessed(caller)
    now = caller.services.now()
    content = {
        "code_id": code.id,
        "masked": code.masked,
        "creator_id": code.creator_id,
        "video_id": code.video_id,
        "starts_at": code.window.starts_at,
        "expires_at": code.window.expires_at,
        "state": code.state(now),
        "live": code.live(now),
    }
    return answer(content, 200, stands(code.command_version, session.loaded[code.id].position))


@router.post("/v1/redemptions", status_code=201, response_model=RedemptionAnswer, operation_id="redeemCode")
async def redeem_code(body: RedeemCode, caller: Annotated[Caller, allow("brand", "operator", "admin")]) -> Response:
    """Record that an advertiser account entered a code; the same account again answers 200."""
    caller.act_for_advertiser(body.advertiser_id)
    if_match = headers.if_match(caller.request)
    _refuse_guessing(caller)
    secret, brand_ids = Sealed(body.secret), caller.key.subjects.brand_ids

    def unchanged(code: Code) -> None:
        if if_match is not None and if_match != code.command_version:
            raise StaleVersion(code.command_version)

    async def decide(ledger: Ledger, when: When) -> Decision[Code]:
        return await commands.redeem(Guarded(ledger, unchanged), secret, body.advertiser_id, brand_ids, when=when)

    try:
        done = await execute(caller, body, body.advertiser_id, decide)
    except Unknown:
        raise _guessed(caller) from None
    code = done.aggregate
    assert code is not None  # noqa: S101 - a code that was redeemed is there
    content = {
        "code_id": code.id,
        "masked": code.masked,
        "creator_id": code.creator_id,
        "video_id": code.video_id,
        "advertiser_id": body.advertiser_id,
        "starts_at": code.window.starts_at,
        "expires_at": code.window.expires_at,
        "state": code.state(done.recorded_at),
        "live": code.live(done.recorded_at),
        "shared_with_advertiser": body.advertiser_id in code.redeemed_as_shared,
        "version": code.command_version,
        "position": done.position,
    }
    return answer(content, created_or_repeated(done), {**stands(code.command_version, done.position), **replayed(done)})


@router.post(
    "/v1/codes/{code_id}/campaigns", status_code=201, response_model=CampaignAnswer, operation_id="launchCampaign"
)
async def launch_campaign(
    code_id: str, body: LaunchCampaign, caller: Annotated[Caller, allow("brand", "operator", "admin")]
) -> Response:
    """Record an ad on a redeemed code; one that would outlive the window is accepted with a warning."""
    caller.act_for_advertiser(body.advertiser_id)
    code, if_match = headers.path_uuid(code_id, "code"), headers.if_match(caller.request)
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
        found: list[Code] = []

        def ours(code: Code) -> None:
            # Before any rule: what a rule says of a code is for those alone who may read it.
            caller.read_code(code)
            found.append(code)

        try:
            return await commands.launch(Guarded(ledger, ours), code, campaign, if_match=if_match, when=when)
        except Refused as refusal:
            raise _without_others(refusal, caller, found) from None

    done = await execute(caller, body, body.advertiser_id, decide)
    assert done.aggregate is not None  # noqa: S101 - a code with a campaign is there
    told = warnings(done.aggregate, body.campaign_id)
    return code_answer(done, caller, created_or_repeated(done), warnings=told)


@router.post("/v1/codes/{code_id}/campaigns/{campaign_id}/end", response_model=CodeAnswer, operation_id="endCampaign")
async def end_campaign(
    code_id: str,
    campaign_id: str,
    caller: Annotated[Caller, allow("brand", "operator", "admin")],
    body: EndCampaign | None = None,
) -> Response:
    """Record that a campaign was stopped; one that no longer runs stays as it is."""
    code, if_match = headers.path_uuid(code_id, "code"), headers.if_match(caller.request)
    body = body or EndCampaign()

    def ours(found: Code) -> None:
        caller.read_code(found)
        campaign = found.campaigns.get(campaign_id)
        if campaign is not None and caller.role == "brand" and not caller.names_us((), (campaign.advertiser_id,)):
            # As one that is not there: whether others run campaigns is theirs to tell.
            raise Unknown("campaign")

    async def decide(ledger: Ledger, when: When) -> Decision[Code]:
        guarded = Guarded(ledger, ours)
        return await commands.end_campaign(guarded, code, campaign_id, body.reason, if_match=if_match, when=when)

    accounts = caller.key.subjects.advertiser_ids
    subject = next(iter(accounts), None)
    if len(accounts) > 1:
        campaign = (await loaded(caller, code)).campaigns.get(campaign_id)
        subject = None if campaign is None else campaign.advertiser_id
    return code_answer(await execute(caller, body, subject, decide), caller, 200)


@router.post("/v1/codes/{code_id}/revocation", response_model=CodeAnswer, operation_id="revokeCode")
async def revoke_code(
    code_id: str, body: RevokeCode, caller: Annotated[Caller, allow("creator", "operator", "admin")]
) -> Response:
    """Take a code back for good, and switch its video's own Ad Authorization off with it."""
    if body.force and caller.role not in UNBOUND:
        raise NotAllowed("Only keys with the role operator or admin force a revocation.")
    code, if_match = headers.path_uuid(code_id, "code"), headers.if_match(caller.request)

    async def decide(ledger: Ledger, when: When) -> Decision[Code]:
        return await commands.revoke(
            owned(ledger, caller), code, body.reason, force=body.force, if_match=if_match, when=when
        )

    done = await execute(caller, body, await creator_of(caller, code), decide)
    return code_answer(done, caller, 200)


@router.post("/v1/codes/{code_id}/reveals", response_model=RevealAnswer, operation_id="revealCode")
async def reveal_code(
    code_id: str, body: RevealCode, caller: Annotated[Caller, allow("creator", "operator", "admin")]
) -> Response:
    """Show a code's secret again, and record who asked and why; never answered from an earlier request.

    For keys from which that was not withheld.
    """
    if not caller.key.reveals:
        raise NotAllowed("This key may not show secrets; `may_reveal` was withheld from it.")
    code, if_match = headers.path_uuid(code_id, "code"), headers.if_match(caller.request)

    async def decide(ledger: Ledger, when: When) -> Decision[Code]:
        return await commands.reveal(owned(ledger, caller), code, body.reason, if_match=if_match, when=when)

    done = await execute(caller, body, await creator_of(caller, code), decide, once=False)
    secret = await caller.services.aggregates.secret(caller.ledger_id, code)
    return code_answer(done, caller, 200, NO_STORE, secret=secret)


@router.post("/v1/codes/{code_id}/notes", status_code=201, response_model=CodeAnswer, operation_id="addNote")
async def add_note(
    code_id: str, body: AddNote, caller: Annotated[Caller, allow("creator", "operator", "admin")]
) -> Response:
    """Add a remark to a code, perhaps about one of its events: how a mistake is corrected in a log nobody edits."""
    code, if_match = headers.path_uuid(code_id, "code"), headers.if_match(caller.request)
    if body.about_position is not None:
        head = await caller.services.events.head(caller.ledger_id)
        if body.about_position > head:
            raise malformed_body("/about_position", "There is no event at this position yet.")

    async def decide(ledger: Ledger, when: When) -> Decision[Code]:
        return await commands.add_note(
            owned(ledger, caller), code, Sealed(body.text), body.about_position, if_match=if_match, when=when
        )

    done = await execute(caller, body, await creator_of(caller, code), decide)
    return code_answer(done, caller, created_or_repeated(done))


def _without_others(refusal: Refused, caller: Caller, found: list[Code]) -> Refused:
    """Return a refusal that names no campaign of another advertiser to a brand."""
    campaigns = found[0].campaigns if found and caller.role == "brand" else {}
    conflict = campaigns.get(refusal.conflict_id or "")
    if conflict is None or caller.names_us((), (conflict.advertiser_id,)):
        return refusal
    return Refused(refusal.code, refusal.detail)


def _refuse_guessing(caller: Caller) -> None:
    limit = limits_of(caller.request.scope).unknown_codes
    wait_s = limit.wait_s(caller.key.key_id)
    if wait_s > 0:
        raise too_many("too_many_unknown_codes", wait_s, limit.policy)


def _guessed(caller: Caller) -> Unknown:
    """Count an attempt at a code that nobody generated against the key; `denied_attempts` counts it for statistics."""
    _count_guess(caller)
    return Unknown("code")


def _count_guess(caller: Caller) -> None:
    limits_of(caller.request.scope).unknown_codes.take(caller.key.key_id)
