"""Authorizations: was this video authorized for this advertiser at this moment, and what proves it?"""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.responses import Response

from api.access_log import record_access
from api.http import answer_fields as answered
from api.http.as_of import known_at
from api.http.caller import Caller, allow
from api.http.fields import Id, Moment, VideoId
from api.http.media_types import JSON
from api.http.models import Answer
from api.http.query_params import AsOf, AtLeast, Exact, QueryModel
from api.http.responses import answer
from api.http.route import Operation, Route
from domain.authorization import Verdict, creators_of, verdict
from domain.code import Code
from domain.pasted import creator_name
from domain.recorded import RecordedEvent
from domain.summaries import verdict_summary
from domain.video import Video, replay_video
from infra.eventstore.authorization_evidence import Asked
from projections import codes

if TYPE_CHECKING:
    from infra.crypto.envelope import LedgerKeys
    from infra.eventstore.authorization_evidence import AuthorizationEvidence


class AuthorizationAnswer(Answer):
    """The answer to the authorization question: was this video authorized for this advertiser at this time?"""

    authorized: Annotated[bool, Field(description="Whether the video was authorized.")]
    reason: Annotated[
        Literal["authorized", "no_code", "not_redeemed", "not_started", "expired", "revoked", "rights_ended"],
        Field(description="The reason, based only on code, window, revocation, usage rights and redemption."),
    ]
    video_id: answered.VideoId
    advertiser_id: answered.AdvertiserId
    at: Annotated[answered.Moment, Field(description="The time that was asked about.")]
    as_of: Annotated[int, Field(ge=0, description="The position up to which the ledger was read.", examples=[42])]
    code_id: Annotated[UUID | None, Field(description="The code that the answer is based on.")]
    creator_id: Annotated[str | None, Field(description="The creator of this code.", examples=["ana.creates"])]
    starts_at: Annotated[answered.Moment | None, Field(description="The start of the code's window (included).")]
    start_stated: Annotated[
        bool | None,
        Field(
            description="Whether somebody stated the start of the window. If not, `starts_at` is the first time at "
            "which anything is known of the code."
        ),
    ]
    expires_at: Annotated[answered.Moment | None, Field(description="The end of the code's window (excluded).")]
    rights_until: Annotated[
        answered.Moment | None, Field(description="The end of the usage rights (excluded), if one was stated by then.")
    ]
    ends_at: Annotated[
        answered.Moment | None,
        Field(description="The effective end: the end of the window, the revocation or the end of the usage rights."),
    ]
    ends_by: Annotated[
        Literal["code", "rights"] | None,
        Field(description="What ends first: the code, by its window or a revocation, or the rights."),
    ]
    permission_enabled: Annotated[bool, Field(description="Whether the creator's Ad Authorization was on.")]
    shared: Annotated[
        bool | None,
        Field(
            description="Whether the code had been shared with the account when it redeemed it. Null if the code had "
            "been shared only with brands, and nobody had said whose the account was."
        ),
    ]
    evidence: Annotated[
        list[int], Field(description="The positions of the events that prove the answer.", examples=[[1, 2, 5]])
    ]
    evidence_recorded_at: Annotated[
        answered.Moment | None, Field(description="When the last of this evidence was recorded.")
    ]
    recorded_late: Annotated[
        bool | None, Field(description="Whether any of the evidence was recorded after the time that was asked about.")
    ]
    backdated: Annotated[
        bool | None,
        Field(description="Whether any of the evidence was recorded with an earlier `effective_at` of its caller."),
    ]
    summary: Annotated[str, Field(description="The answer in a few sentences.")]
    warnings: Annotated[
        list[str],
        Field(
            description="Warnings, one sentence each. They name creators only to keys that may read all these codes.",
            examples=[[]],
        ),
    ]


class AuthorizationQuery(QueryModel):
    video_id_exact: Exact = None
    video_id: Annotated[VideoId, Field(description="The video.")]
    advertiser_id: Annotated[Id, Field(description="The advertiser account that ran the ad.", examples=["adv-7001"])]
    at: Annotated[
        Moment | None, Field(description="The time at which the ad ran. Default: now, or the time of `as_of`.")
    ] = None
    as_of: AsOf = None
    at_least: AtLeast = None


router = APIRouter(route_class=Route, tags=["Reads"])


@router.get("/v1/authorizations", response_model=AuthorizationAnswer, operation_id="askAuthorization")
@Operation(trace="recorded", answer_headers=("Ledger-Position",))
async def ask_authorization(
    query: Annotated[AuthorizationQuery, Query()],
    caller: Annotated[Caller, allow("brand", "operator", "auditor", "admin")],
) -> Response:
    """Answer the authorization question: was this video authorized for this advertiser at this time, and why?"""
    caller.act_for_advertiser(query.advertiser_id)
    clock = caller.services.now()
    as_of, at_least = None, query.at_least or 0
    if query.as_of is not None:
        as_of, clock = await known_at(caller, query.as_of, clock)
        at_least = max(as_of, at_least)
    # What was asked is recorded while the answer is looked up; neither is given without the other.
    evidence, _ = await asyncio.gather(
        _evidence(caller, query, at_least),
        record_access(caller, query.model_dump(mode="json", exclude_none=True), rows=1, format=JSON),
    )
    # What the view has not read yet is left out of the log too: the answer is that of one position, and stays so.
    as_of = evidence.position if as_of is None else as_of
    at = query.at or _now(evidence, as_of, clock)
    found = authorization_verdict(evidence, as_of, query.advertiser_id, at, functools.partial(may_read, caller))
    content = verdict_content(found, query.video_id, query.advertiser_id, at, as_of)
    return answer(content, 200, {"Ledger-Position": str(as_of)})


def may_read(caller: Caller, stream: Sequence[RecordedEvent]) -> bool:
    """Return whether the caller may read a code: of others' codes a brand sees only the reason."""
    if caller.role != "brand":
        return True
    concerned = [r.event for r in stream if isinstance(r.event, Code.Shared | Code.Redeemed)]
    return caller.is_party_to(
        (event.brand_id for event in concerned if isinstance(event, Code.Shared)),
        (event.advertiser_id for event in concerned),
    )


async def _evidence(caller: Caller, query: AuthorizationQuery, at_least: int) -> AuthorizationEvidence:
    """Read the evidence, after waiting for the view of codes if it has not read so far."""
    views = caller.services.views
    keys = await caller.services.aggregates.keyring.ledger(caller.ledger_id)
    asked = about(keys, query.video_id, query.advertiser_id)
    evidence = await views.evidence.of(caller.ledger_id, asked)
    if evidence.position < at_least:
        await views.wait(caller.ledger_id, codes.NAME, at_least)
        evidence = await views.evidence.of(caller.ledger_id, asked)
    return evidence


def about(keys: LedgerKeys, video_id: str, advertiser_id: str) -> Asked:
    """Return what evidence is read about; accounts are claimed by the ledger's keyed hash of their ids."""
    return Asked(video_id, advertiser_id, keys.claim("advertiser", advertiser_id), keys.claim("binding", video_id))


def binding_of(keys: LedgerKeys, video_id: str) -> Asked:
    """Return what is read to know whose a video is, without regard to any account."""
    return Asked(video_id, "", b"", keys.claim("binding", video_id))


def binding_at(evidence: AuthorizationEvidence, as_of: int) -> Video | None:
    """Return a video as far as it was bound at a position; None if nobody had ever bound it."""
    stream = [r for r in evidence.binding if r.position <= as_of]
    return replay_video(stream) if stream else None


def _now(evidence: AuthorizationEvidence, as_of: int, clock: datetime) -> datetime:
    """Return the moment of a question that names none.

    What is recorded has happened, though the database's clock may be ahead of ours.
    """
    streams = itertools.chain(evidence.codes.values(), evidence.permissions.values(), [evidence.advertiser])
    return max([clock, *(r.recorded_at for stream in streams for r in stream if r.position <= as_of)])


def verdict_content(found: Verdict, video_id: str, advertiser_id: str, at: datetime, as_of: int) -> dict[str, Any]:
    """Return the answer to the question, with what was asked.

    A caller who may not read the code does not see its evidence.
    """
    told = found.code_id is not None or found.reason == "no_code"
    end = found.end
    return {
        "video_id": video_id,
        "advertiser_id": advertiser_id,
        "at": at,
        "as_of": as_of,
        "authorized": found.authorized,
        "reason": found.reason,
        "code_id": found.code_id,
        "creator_id": found.creator_id,
        "starts_at": found.starts_at,
        "start_stated": None if found.code_id is None else found.start_stated,
        "expires_at": found.expires_at,
        "rights_until": found.rights_until,
        "ends_at": None if end is None else end.at,
        "ends_by": None if end is None else end.by,
        "permission_enabled": found.permission_enabled,
        "shared": found.shared,
        "evidence": found.evidence,
        "evidence_recorded_at": found.evidence_recorded_at,
        "recorded_late": found.recorded_late if told else None,
        "backdated": found.backdated if told else None,
        "summary": verdict_summary(found, video_id, advertiser_id, at),
        "warnings": found.warnings,
    }


def all_codes(_: Sequence[RecordedEvent]) -> bool:
    """Leave no code out."""
    return True


# Returns whether the asker may read a code, by its events.
Readable = Callable[[Sequence[RecordedEvent]], bool]


def authorization_verdict(
    evidence: AuthorizationEvidence, as_of: int, advertiser_id: str, at: datetime, readable: Readable = all_codes
) -> Verdict:
    """Answer the question from what is known as far as a position; which code it is, only to those who may read it."""
    codes = [[r for r in stream if r.position <= as_of] for stream in evidence.codes.values()]
    known = [stream for stream in codes if stream]
    creators = {stream[0].creator_stream for stream in known}
    permissions = {
        creator: [r for r in evidence.permissions.get(creator, ()) if r.position <= as_of] for creator in creators
    }
    advertiser = [r for r in evidence.advertiser if r.position <= as_of]
    found = verdict(known, permissions, advertiser_id, at, advertiser)
    told = found.code_id is None or readable(evidence.codes[found.code_id])
    video, answers_by = binding_at(evidence, as_of), found.creator_id if told else None
    found = replace(found, warnings=_warnings(evidence, known, readable, video, answers_by))
    if told:
        return found
    return replace(found, code_id=None, starts_at=None, expires_at=None, rights_until=None, evidence=(), events=())


def _warnings(
    evidence: AuthorizationEvidence,
    known: Sequence[Sequence[RecordedEvent]],
    readable: Readable,
    video: Video | None,
    answers_by: str | None,
) -> tuple[str, ...]:
    """Return a sentence if codes of several creators are known, or of others than the one whose video it is.

    Creators are named only to who may read all these codes.
    """
    creators = creators_of(known)
    bound = None if video is None else video.creator_id
    if bound is None and len(creators) < 2:  # noqa: PLR2004 - several
        return ()
    all_readable = all(readable(evidence.codes[stream[0].stream_id]) for stream in known)
    if bound is not None:
        others = [creator for creator in creators if creator_name(creator) != creator_name(bound)]
        if not others:
            return ()
        to, from_others = ("", "") if not all_readable else (f", {bound}", f": {', '.join(others)}")
        said = f"An operator bound this video to its creator{to}. Codes of other creators are recorded{from_others}."
        based = answers_by is not None and creator_name(answers_by) != creator_name(bound)
        return (said, "This answer is based on a code of another creator.") if based else (said,)
    names = f": {', '.join(creators)}" if all_readable else ""
    return (f"Codes of this video are recorded from different creators{names}. Check whose video it is.",)
