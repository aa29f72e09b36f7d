"""Codes: generated, extended, revoked, revealed, noted on, and read as they are or were at a time."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Annotated, Final, Self, cast
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from api.access_log import record_access
from api.code_answer import CodeAnswer, code_answer, code_content
from api.http import answer_fields as answered
from api.http import headers
from api.http.as_of import known_at, refuse_before_it_began, wait_for_log
from api.http.caller import ACTS_FOR_ALL, LIMITED_TO_SUBJECTS, Caller, allow
from api.http.command_context import creator_of, ending, handle_command, without_others
from api.http.denied_attempts import NOT_KNOWN_YET
from api.http.dependencies import current_codes_of
from api.http.fields import (
    LATER,
    MAX_PLATFORMS,
    PLATFORM_PATTERN,
    VIDEO_ID_EXACT,
    CaptionHash,
    CodeIdText,
    CreatorId,
    Moment,
    NewVideoId,
    Note,
    PastedVideoId,
    Position,
    Reason,
    RecordedSecret,
    SingleLine,
)
from api.http.guessing import guessing
from api.http.models import Answer, Body, Command, ImmediateCommand, absent
from api.http.problems import Problem, malformed_body
from api.http.query_params import AsOf, At, AtLeast, Limit, Number, QueryModel
from api.http.reads import note_read, reading
from api.http.responses import NO_STORE, answer, created_or_repeated, version_headers
from api.http.route import Operation, Route
from domain import commands
from domain.code import Code, effective_as_of, fold_code, replay_code
from domain.commands import Decision, Ledger
from domain.errors import REFUSALS, NotAllowed, Refused, Unknown
from domain.pasted import creator_name
from domain.rights import UsageRights
from domain.values import Sealed, When
from infra.auth.access_log import AccessSubject
from infra.ids import random_text_32, uuid7

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from domain.recorded import RecordedEvent
    from infra.eventstore.command_handler import CommandResult


# Any whole number is understood; which lengths are allowed is a rule of the ledger, not of the format.
MAX_DAYS = 2**31 - 1
Days = Annotated[int, Field(ge=-MAX_DAYS, le=MAX_DAYS, examples=[30])]
DEFAULT_DAYS: Final = 30


class Revoked(Body):
    """A revocation that is recorded together with the code."""

    effective_at: Annotated[Moment, Field(description="When the code was revoked.")]
    reason: Annotated[Reason, Field(description="Why the code was revoked.")]


Platform = Annotated[str, StringConstraints(pattern=PLATFORM_PATTERN), Field(examples=["tiktok"])]


class UsageRightsBody(Body):
    """Usage rights that a contract gives beside the code. What is left out is not stated."""

    until: Annotated[
        Moment | None,
        Field(description="When they end (excluded). Null if no end was agreed.", examples=[LATER]),
    ] = None
    platforms: Annotated[
        list[Platform] | None,
        Field(max_length=MAX_PLATFORMS, description="Where the video may be used.", examples=[["tiktok"]]),
    ] = None
    edits_allowed: Annotated[bool | None, Field(description="Whether the video may be edited.")] = None
    contract_reference: Annotated[
        Note | None,
        Field(
            description="Where the contract is, such as its number. It is stored encrypted.", examples=["C-2026-117"]
        ),
    ] = None

    def rights(self) -> UsageRights:
        """Return the rights, without the mark of the contract."""
        platforms = None if self.platforms is None else tuple(sorted(set(self.platforms)))
        return UsageRights(self.until, platforms, self.edits_allowed)

    def contract(self) -> Sealed | None:
        """Return the reference to the contract."""
        return None if self.contract_reference is None else Sealed(self.contract_reference)


class StateRights(UsageRightsBody, Command):
    """The usage rights. They take the place of those that were stated before."""


class GenerateCode(Command):
    model_config = ConfigDict(
        json_schema_extra={
            "not": {"required": ["days", "expires_at"]},
            "dependentSchemas": {"expires_at": {"required": ["secret"], "properties": {"secret": {"type": "string"}}}},
        }
    )

    creator_id: CreatorId
    video_id_exact: Annotated[bool, Field(description=VIDEO_ID_EXACT)] = False
    video_id: NewVideoId
    terms_version: Annotated[
        SingleLine | None,
        Field(
            max_length=128,
            description="The version of TikTok's advertising terms that the creator accepted.",
            examples=["2026-01"],
        ),
    ] = None
    days: Annotated[
        Days | None,
        Field(
            description="The length of the window in days: 7, 30, 60 or 365, unless configured otherwise. With a "
            "`secret`, any number of days up to ten years. Default: 30."
        ),
    ] = None
    starts_at: Annotated[
        Moment | None,
        Field(description="When the window starts. It can be in the past. Default: when the code is generated."),
    ] = None
    expires_at: Annotated[
        Moment | None,
        Field(
            description="Only with a `secret`, in place of `days`: the end of the window. Without `starts_at`, the "
            "start of the window is unknown.",
            examples=[LATER],
        ),
    ] = None
    caption_sha256: CaptionHash = None
    secret: Annotated[
        RecordedSecret | None,
        Field(description="The code that TikTok generated, as it was pasted. Default: a random code."),
    ] = None
    supersedes: Annotated[
        CodeIdText | None,
        Field(
            description="The code of the same creator and video that this one supersedes. It must be valid now. "
            "`If-Match` then names its version."
        ),
    ] = None
    usage_rights: Annotated[
        UsageRightsBody | None, Field(description="The usage rights that a contract gives beside the code.")
    ] = None
    revoked: Annotated[
        Revoked | None,
        Field(
            description="The code's revocation, if it was revoked before another code took the video that is already "
            "recorded. Only for keys with the role operator or admin."
        ),
    ] = None

    @model_validator(mode="after")
    def _one_window(self) -> Self:
        if self.expires_at is not None:
            if self.days is not None:
                raise PydanticCustomError("one_of", "Send either days or expires_at, not both.")
            if self.secret is None:
                raise PydanticCustomError(
                    "one_of", "Only a code whose secret is given can have an expires_at. Send days."
                )
        return self


class ExtendCode(Command):
    """Send exactly one of `days`, `add_days` and `expires_at`."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": ["days"], "properties": {"add_days": False, "expires_at": False}},
                {"required": ["add_days"], "properties": {"days": False, "expires_at": False}},
                {"required": ["expires_at"], "properties": {"days": False, "add_days": False}},
            ],
            "examples": [{"days": 60}],
        }
    )

    days: Annotated[
        Days | None,
        Field(description="The new length of the whole window in days, counted from its start.", examples=[60]),
    ] = None
    add_days: Annotated[
        Days | None,
        Field(description="The number of days by which the end moves, from what it is at that time.", examples=[30]),
    ] = None
    expires_at: Annotated[
        Moment | None,
        Field(
            description="The new end of the window, at most the longest allowed length from now. For a code that "
            "TikTok generated, at most ten years from now.",
            examples=[LATER],
        ),
    ] = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.days, self.add_days, self.expires_at).count(None) != 2:  # noqa: PLR2004 - all but one of three
            raise PydanticCustomError("one_of", "Send exactly one of days, add_days and expires_at.")
        return self


class RevokeCode(Command):
    reason: Annotated[Reason, Field(description="Why the code is revoked.")]
    force: Annotated[
        bool,
        Field(description="Revoke even if a campaign runs, and end it. Only for keys with the role operator or admin."),
    ] = False


class RevealCode(ImmediateCommand):
    reason: Annotated[Reason, Field(description="Why the secret is needed again.", examples=["The brand lost it"])]


class AttachSecret(Command):
    secret: Annotated[RecordedSecret, Field(description="The code that TikTok generated, as it was pasted.")]


class AddNote(Command):
    text: Annotated[
        Note, Field(description="The note. It is stored encrypted.", examples=["Position 12 named the wrong brand."])
    ]
    about_position: Annotated[
        Position | None, Field(description="The position of the event that the note is about.")
    ] = None


class GeneratedAnswer(CodeAnswer):
    secret: Annotated[
        str | None,
        Field(
            description="The secret that the brand enters. Null if the request was repeated with a key that is not "
            "allowed to reveal it.",
            examples=["#k9/Tz+example=="],
        ),
    ]


class RevealAnswer(CodeAnswer):
    secret: answered.Secret


class EntryCounts(Answer):
    """How many entries a code has that the caller may read."""

    shares: Annotated[int, Field(ge=0, description="How many shares.")]
    redemptions: Annotated[int, Field(ge=0, description="How many redemptions.")]
    campaigns: Annotated[int, Field(ge=0, description="How many campaigns.")]
    running: Annotated[int, Field(ge=0, description="How many of these campaigns run.")]


class CodeReadAnswer(CodeAnswer):
    as_of: Annotated[int, Field(ge=0, description="The position up to which the ledger was read.", examples=[42])]
    counts: Annotated[
        EntryCounts, Field(description="How many shares, redemptions and campaigns there are, if `entries` was given.")
    ] = Field(default_factory=absent)


class CodeQuery(QueryModel):
    as_of: AsOf = None
    at: At = None
    version: Annotated[Number | None, Field(description="As it was at this version.", examples=[2])] = None
    entries: Annotated[
        Limit | None,
        Field(
            description="At most so many shares, redemptions and campaigns each, the oldest. Adds `counts`: how many "
            "there are.",
            examples=[20],
        ),
    ] = None
    at_least: AtLeast = None


# Refusals of a code that someone brings which disclose whether its secret is known here: those from the one that asks.
_TELLING: Final = frozenset(REFUSALS["generate"][REFUSALS["generate"].index("secret_exists") :])

# What leads on from a new code.
_BY_ID: Final = {"code_id": "$response.body#/code_id"}
_BY_SECRET: Final = {"secret": "$response.body#/secret"}
_LINKS: Final = {
    **{
        name: {"operationId": name, "parameters": _BY_ID}
        for name in (
            "addNote",
            "attachSecret",
            "extendCode",
            "launchCampaign",
            "readCode",
            "readHistory",
            "revealCode",
            "revokeCode",
            "shareCode",
            "stateUsageRights",
        )
    },
    **{name: {"operationId": name, "requestBody": _BY_SECRET} for name in ("lookupCode", "redeemCode")},
}

router = APIRouter(route_class=Route)


@router.post(
    "/v1/codes", status_code=201, response_model=GeneratedAnswer, tags=["Commands"], operation_id="generateCode"
)
@Operation(
    # If-Match, which only goes with `supersedes`, is described there.
    answer_headers=("Location", "Cache-Control"),
    refusals=(404, 412),
    links=_LINKS,
    example={"creator_id": "ana.creates", "video_id": "7312345678901234567", "terms_version": "2026-01"},
)
async def generate_code(
    body: GenerateCode, caller: Annotated[Caller, allow("creator", "operator", "admin")]
) -> Response:
    """Generate a code, or record one that TikTok generated. Only this response and reveals contain the secret.

    A code can supersede another one of the same creator and video: no new account can redeem that one any more, and
    what runs on it keeps running.

    A repeated request with the same `Idempotency-Key` returns the secret again only if the key is allowed to reveal it
    now, and the access log records it.
    """
    caller.act_for_creator(body.creator_id)
    supersedes = None if body.supersedes is None else UUID(body.supersedes)
    if_match = headers.if_match(caller.request)
    if supersedes is None and b"if-match" in headers.of(caller.request):
        raise Problem("malformed_header", "If-Match needs an existing code. This request supersedes none.")
    revoked = ending(caller, "revoked", body.revoked)
    code_id = uuid7()
    secret = Sealed(body.secret or f"#{random_text_32()}")
    policy = caller.services.policy
    others: list[Code] = []

    async def decide(ledger: Ledger, when: When) -> Decision[Code]:
        decision = await commands.generate(
            ledger,
            policy,
            code_id=code_id,
            creator_id=body.creator_id,
            video_id=str(body.video_id),
            terms_version=body.terms_version,
            days=DEFAULT_DAYS if body.days is None else body.days,
            starts_at=body.starts_at,
            expires_at=body.expires_at,
            secret=secret,
            secret_given=body.secret is not None,
            caption_sha256=body.caption_sha256,
            rights=None if body.usage_rights is None else body.usage_rights.rights(),
            contract_reference=None if body.usage_rights is None else body.usage_rights.contract(),
            revoked=revoked,
            supersedes=supersedes,
            if_match=if_match,
            authorize=caller.change_code,
            when=when,
        )
        others[:] = [read for read in decision.also_read if isinstance(read, Code)]
        return decision

    subject = creator_name(body.creator_id)
    try:
        if body.secret is None:
            result = await handle_command(caller, body, subject, decide)
        else:
            result = await _brought(caller, body, subject, secret, decide)
    except Refused as refusal:
        raise await without_others(refusal, caller) from None
    assert result.aggregate is not None  # noqa: S101 - a code that was generated is there
    location = {"Location": f"/v1/codes/{result.aggregate.id}"}
    shown = await _shown_again(result.aggregate, caller) if result.replayed else secret
    before = await _before(result, caller) if result.replayed else others
    warnings = _whose_video(body, caller, before)
    return code_answer(result, caller, 201, NO_STORE | location, warnings=warnings, secret=shown)


async def _brought(
    caller: Caller,
    body: GenerateCode,
    subject: str,
    secret: Sealed,
    decide: Callable[[Ledger, When], Awaitable[Decision[Code]]],
) -> CommandResult[Code]:
    """Record a code that someone brings, who learns whether it is recorded, also by recording it."""
    with guessing(caller, secret) as guess:
        try:
            result = await handle_command(caller, body, subject, decide)
        except Refused as refusal:
            if refusal.code in _TELLING:
                guess.miss()
            raise
        guess.miss()
        return result


async def _before(result: CommandResult[Code], caller: Caller) -> list[Code]:
    """Return the codes that the video had before a new one; a repeated request decides nothing, and loads them."""
    code = result.aggregate
    assert code is not None  # noqa: S101 - as above
    ledger = await caller.services.aggregates.repository(caller.ledger_id)
    return list(itertools.takewhile(lambda one: one.id != code.id, (await ledger.of_video(code.video_id)).codes))


def _whose_video(body: GenerateCode, caller: Caller, others: list[Code]) -> list[str]:
    """Return a sentence for each reason to doubt that the video is the creator's."""
    linked = body.video_id.creator if isinstance(body.video_id, PastedVideoId) else None
    if linked is None and not others:
        return []
    ours, warnings = creator_name(body.creator_id), []
    if linked not in {None, ours}:
        warnings.append(f"The link names @{linked}, but the code is for {body.creator_id}. Check whose video it is.")
    creators = {creator_name(code.creator_id): code.creator_id for code in others}
    creators.pop(ours, None)
    if creators:
        names = f": {', '.join(sorted(creators.values()))}" if caller.role in ACTS_FOR_ALL else ""
        warnings.append(f"Codes of this video are recorded from other creators too{names}. Check whose video it is.")
    return warnings


async def _shown_again(code: Code, caller: Caller) -> Sealed | None:
    """Return a code's secret for a repeated request, if the caller may be given it now, and record that it was."""
    shown = caller.key.reveals
    secret = await caller.services.aggregates.secret(caller.ledger_id, code.id) if shown else None
    parameters = {"code_id": str(code.id), "replayed": True, "secret": "shown" if shown else "withheld"}
    await record_access(caller, parameters, rows=1, format="application/json")
    return secret


@router.post(
    "/v1/codes/{code_id}/secret",
    status_code=201,
    response_model=CodeAnswer,
    tags=["Commands"],
    operation_id="attachSecret",
)
@Operation(request_headers=("If-Match",), repeats=True, example={"secret": "#k9/Tz+example+of+a+spark+ad+code=="})
async def attach_secret(
    code_id: str, body: AttachSecret, caller: Annotated[Caller, allow("creator", "operator", "admin")]
) -> Response:
    """Attach the secret of a code that was recorded without it. This is possible once, and cannot be undone."""
    code, if_match, secret = headers.path_uuid(code_id, "code"), headers.if_match(caller.request), Sealed(body.secret)

    async def decide(ledger: Ledger, when: When) -> Decision[Code]:
        return await commands.attach_secret(
            ledger, code, secret, if_match=if_match, authorize=caller.change_code, when=when
        )

    subject = await creator_of(caller, code)
    # Who brings a secret learns whether it is recorded, also by recording it.
    with guessing(caller, secret) as guess:
        try:
            result = await handle_command(caller, body, subject, decide)
        except Refused as refusal:
            if refusal.code == "secret_exists":
                guess.miss()
            raise await without_others(refusal, caller) from None
        guess.miss()
    return code_answer(result, caller, created_or_repeated(result))


@router.post(
    "/v1/codes/{code_id}/extensions",
    status_code=201,
    response_model=CodeAnswer,
    tags=["Commands"],
    operation_id="extendCode",
)
@Operation(request_headers=("If-Match",), example={"days": 60})
async def extend_code(
    code_id: str, body: ExtendCode, caller: Annotated[Caller, allow("creator", "operator", "admin")]
) -> Response:
    """Move the end of a code's window to a later time. This is possible before and after sharing, and after expiry."""
    code, if_match, policy = (
        headers.path_uuid(code_id, "code"),
        headers.if_match(caller.request),
        caller.services.policy,
    )

    async def decide(ledger: Ledger, when: When) -> Decision[Code]:
        return await commands.extend(
            ledger,
            policy,
            code,
            days=body.days,
            add_days=body.add_days,
            expires_at=body.expires_at,
            if_match=if_match,
            authorize=caller.change_code,
            when=when,
        )

    try:
        result = await handle_command(caller, body, await creator_of(caller, code), decide)
    except Refused as refusal:
        raise await without_others(refusal, caller) from None
    return code_answer(result, caller, 201)


@router.post("/v1/codes/{code_id}/revocation", response_model=CodeAnswer, tags=["Commands"], operation_id="revokeCode")
@Operation(request_headers=("If-Match",), example={"reason": "Shared with the wrong brand"})
async def revoke_code(
    code_id: str, body: RevokeCode, caller: Annotated[Caller, allow("creator", "operator", "admin")]
) -> Response:
    """Revoke a code permanently, which also switches off the Ad Authorization of its video."""
    if body.force and caller.role not in ACTS_FOR_ALL:
        raise NotAllowed("Only keys with the role operator or admin can force a revocation.")
    code, if_match = headers.path_uuid(code_id, "code"), headers.if_match(caller.request)

    async def decide(ledger: Ledger, when: When) -> Decision[Code]:
        return await commands.revoke(
            ledger, code, body.reason, force=body.force, if_match=if_match, authorize=caller.change_code, when=when
        )

    result = await handle_command(caller, body, await creator_of(caller, code), decide)
    return code_answer(result, caller, 200)


@router.post("/v1/codes/{code_id}/reveals", response_model=RevealAnswer, tags=["Commands"], operation_id="revealCode")
@Operation(
    request_headers=("If-Match",),
    answer_headers=("Cache-Control",),
    replays=False,
    example={"reason": "The brand lost it"},
)
async def reveal_code(
    code_id: str, body: RevealCode, caller: Annotated[Caller, allow("creator", "operator", "admin")]
) -> Response:
    """Reveal a code's secret again, and record who asked and why. A reveal is never answered from an earlier request.

    The key's `may_reveal` must be true.
    """
    if not caller.key.reveals:
        raise NotAllowed("This key is not allowed to reveal secrets: its `may_reveal` is false.")
    code, if_match = headers.path_uuid(code_id, "code"), headers.if_match(caller.request)

    async def decide(ledger: Ledger, when: When) -> Decision[Code]:
        return await commands.reveal(
            ledger, code, body.reason, if_match=if_match, authorize=caller.change_code, when=when
        )

    result = await handle_command(caller, body, await creator_of(caller, code), decide, once=False)
    secret = await caller.services.aggregates.secret(caller.ledger_id, code)
    return code_answer(result, caller, 200, NO_STORE, secret=secret)


@router.post(
    "/v1/codes/{code_id}/notes", status_code=201, response_model=CodeAnswer, tags=["Commands"], operation_id="addNote"
)
@Operation(request_headers=("If-Match",), repeats=True, example={"text": "Position 12 named the wrong brand."})
async def add_note(
    code_id: str, body: AddNote, caller: Annotated[Caller, allow("creator", "operator", "admin")]
) -> Response:
    """Add a note to a code, optionally about one of its events. Notes are how mistakes in the log are corrected."""
    code, if_match = headers.path_uuid(code_id, "code"), headers.if_match(caller.request)
    if body.about_position is not None:
        head = await caller.services.events.head(caller.ledger_id)
        if body.about_position > head:
            raise malformed_body("/about_position", "This ledger has no event at this position yet.")

    async def decide(ledger: Ledger, when: When) -> Decision[Code]:
        return await commands.add_note(
            ledger,
            code,
            Sealed(body.text),
            body.about_position,
            if_match=if_match,
            authorize=caller.change_code,
            when=when,
        )

    result = await handle_command(caller, body, await creator_of(caller, code), decide)
    return code_answer(result, caller, created_or_repeated(result))


@router.put(
    "/v1/codes/{code_id}/usage-rights", response_model=CodeAnswer, tags=["Commands"], operation_id="stateUsageRights"
)
@Operation(request_headers=("If-Match",), example={"until": LATER, "platforms": ["tiktok"], "edits_allowed": False})
async def state_usage_rights(
    code_id: str, body: StateRights, caller: Annotated[Caller, allow("creator", "operator", "admin")]
) -> Response:
    """State the usage rights that a contract gives beside a code, in place of what was stated before.

    Rights change no state of the code and refuse nothing. When they end, the authorization question answers no
    (`rights_ended`), and campaigns stop. Repeating it changes nothing.
    """
    code, if_match = headers.path_uuid(code_id, "code"), headers.if_match(caller.request)

    async def decide(ledger: Ledger, when: When) -> Decision[Code]:
        return await commands.state_rights(
            ledger,
            code,
            body.rights(),
            body.contract(),
            if_match=if_match,
            authorize=caller.change_code,
            when=when,
        )

    result = await handle_command(caller, body, await creator_of(caller, code), decide)
    return code_answer(result, caller, 200)


@router.get("/v1/codes/{code_id}", response_model=CodeReadAnswer, tags=["Reads"], operation_id="readCode")
@Operation(answer_headers=("ETag", "Ledger-Position"))
async def read_code(
    code_id: str,
    query: Annotated[CodeQuery, Query()],
    caller: Annotated[Caller, allow("creator", "brand", "operator", "auditor", "admin")],
) -> Response:
    """Read a code as it is now, as it was at a version, as the ledger knew it then, or as it was true then."""
    if query.at_least is not None:
        await wait_for_log(caller, query.at_least)
    found = headers.path_uuid(code_id, "code")
    if query.as_of is None and query.version is None and query.at is None:
        code, position = await current_code(caller, found)
        clock, as_of = caller.services.now(), max(position, query.at_least or 0)
    else:
        code, clock, position, as_of = await _as_it_was(caller, found, query)
    reading(caller, subject=subject_of_code(code))
    content = code_content(code, caller, now=clock, position=position, entries=query.entries) | {"as_of": as_of}
    return answer(content, 200, version_headers(code.command_version, as_of))


async def current_code(caller: Caller, code_id: UUID) -> tuple[Code, int]:
    """Return a code that the caller may read as it is now, and the position of its last event."""
    found = await current_codes_of(caller.request.scope).find(caller.ledger_id, code_id)
    if found is None:
        raise Unknown("code")
    code = cast("Code", found.aggregate)
    if caller.role in LIMITED_TO_SUBJECTS:
        caller.read_code(code)
    return code, found.position


async def _as_it_was(caller: Caller, code_id: UUID, query: CodeQuery) -> tuple[Code, datetime, int, int]:
    """Return a code as a query asks, the clock of its state, its last position, and how far the ledger was read."""
    aggregates = caller.services.aggregates
    if caller.role in LIMITED_TO_SUBJECTS:
        await current_code(caller, code_id)
    elif not await aggregates.code_part(caller.ledger_id, code_id, after=0, count=1):
        raise Unknown("code")
    clock = now = caller.services.now()
    upto = None
    if query.as_of is not None:
        upto, clock = await known_at(caller, query.as_of, now)
    stream = await aggregates.code_stream(caller.ledger_id, code_id, upto=upto)
    if not stream:
        code, _ = await current_code(caller, code_id)
        # It is said that the ledger did not know the code yet, which is a read of it.
        reading(caller, subject=subject_of_code(code))
        note_read(caller, query)
        raise not_known_yet(caller)
    as_of = max(stream[-1].position, query.at_least or 0) if upto is None else upto
    if query.version is not None:
        if query.version > stream[-1].stream_version:
            raise Problem("version_unknown")
        stream = stream[: query.version]
        clock = stream[-1].recorded_at
    if query.at is None:
        code = replay_code(stream)
    else:
        refuse_before_it_began(stream, query.at)
        stream, clock = effective_as_of(stream, query.at), query.at
        code = fold_code(stream)
    return code, clock, stream[-1].position, as_of


def subject_of_code(code: Code) -> AccessSubject:
    """Return what a read of a code is entered under."""
    return AccessSubject(code.id, code.creator_id, code.video_id)


def not_known_yet(caller: Caller) -> Unknown:
    """Return the refusal of a code that the caller may read, for a time by which the ledger did not know it."""
    caller.request.scope[NOT_KNOWN_YET] = True
    return Unknown("code")


async def stream_of(caller: Caller, code_id: UUID) -> list[RecordedEvent]:
    """Load the events of a code that the caller may read."""
    stream = await caller.services.aggregates.code_stream(caller.ledger_id, code_id)
    if not stream:
        raise Unknown("code")
    if caller.role in LIMITED_TO_SUBJECTS:
        caller.read_code(replay_code(stream))
    return stream
