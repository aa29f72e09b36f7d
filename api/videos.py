"""Videos: to which creator an operator has bound each, so that no other creator can have codes for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.responses import Response

from api.authorizations import binding_at, binding_of
from api.http import answer_fields as answered
from api.http import headers
from api.http.caller import Caller, allow
from api.http.command_context import handle_command
from api.http.fields import VIDEO_ID_EXACT, CreatorId
from api.http.models import Answer, ImmediateCommand
from api.http.query_params import AtLeast, QueryModel
from api.http.responses import answer, command_headers, version_headers
from api.http.route import Operation, Route
from domain import commands
from domain.authorization import creators_of
from domain.commands import Decision, Ledger
from domain.pasted import creator_name
from domain.values import When
from domain.video import Video
from infra.ids import uuid7
from projections import codes

if TYPE_CHECKING:
    from collections.abc import Iterable


class BindVideo(ImmediateCommand):
    creator_id: Annotated[CreatorId | None, Field(description="The creator whose video it is. Null lifts the binding.")]
    video_id_exact: Annotated[bool, Field(description=VIDEO_ID_EXACT)] = False


_Bound = Annotated[
    str | None,
    Field(
        description="The creator to whom the video is bound. Null if it is bound to nobody.", examples=["ana.creates"]
    ),
]
_OtherCreators = Annotated[
    list[str],
    Field(
        description="Creators, other than this one, with codes for the video. These codes stay as they are: revoke "
        "those that should not be there.",
        examples=[["ben.creates"]],
    ),
]


class VideoAnswer(Answer):
    video_id: answered.VideoId
    creator_id: _Bound
    other_creators: _OtherCreators
    version: Annotated[int, Field(ge=0, description="The number of changes of the binding.", examples=[1])]
    position: Annotated[int, Field(ge=0, description="The position of the last change, or 0.", examples=[42])]


class VideoReadAnswer(VideoAnswer):
    as_of: Annotated[int, Field(ge=0, description="The position up to which the ledger was read.", examples=[42])]


class VideoQuery(QueryModel):
    at_least: AtLeast = None


router = APIRouter(route_class=Route)


@router.put("/v1/videos/{video_id}", response_model=VideoAnswer, tags=["Commands"], operation_id="bindVideo")
@Operation(request_headers=("If-Match",), example={"creator_id": "ana.creates"})
async def bind_video(video_id: str, body: BindVideo, caller: Annotated[Caller, allow("operator", "admin")]) -> Response:
    """Bind a video to its creator, change that, or lift it. Only for that creator can codes then be generated for it.

    Codes of other creators that are recorded already stay as they are, but cannot be extended any more. Repeating it
    changes nothing.
    """
    video_id = headers.path_video(video_id, caller.services.settings.video_ids, exact=body.video_id_exact)
    if_match = headers.if_match(caller.request)
    stream_id = uuid7()

    async def decide(ledger: Ledger, when: When) -> Decision[Video] | None:
        return await commands.bind_video(
            ledger, video_id, body.creator_id, stream_id=stream_id, if_match=if_match, when=when
        )

    result = await handle_command(caller, body, video_id, decide)
    video = result.aggregate
    ledger = await caller.services.aggregates.repository(caller.ledger_id)
    of_video = await ledger.of_video(video_id)
    content = _content(
        video_id, None if video is None else video.creator_id, (code.creator_id for code in of_video.codes)
    )
    version = 0 if video is None else video.version
    return answer(content | {"version": version, "position": result.position}, 200, command_headers(result, version))


@router.get("/v1/videos/{video_id}", response_model=VideoReadAnswer, tags=["Reads"], operation_id="readVideo")
@Operation(answer_headers=("ETag", "Ledger-Position"))
async def read_video(
    video_id: str,
    query: Annotated[VideoQuery, Query()],
    caller: Annotated[Caller, allow("operator", "auditor", "admin")],
) -> Response:
    """Read to which creator a video is bound, and which other creators have codes for it."""
    headers.path_id(video_id)
    services = caller.services
    keys = await services.aggregates.keyring.ledger(caller.ledger_id)
    if query.at_least is not None:
        await services.views.wait(caller.ledger_id, codes.NAME, query.at_least)
    evidence = await services.views.evidence.of(caller.ledger_id, binding_of(keys, video_id))
    as_of = evidence.position
    streams = [[r for r in stream if r.position <= as_of] for stream in evidence.codes.values()]
    binding = [r for r in evidence.binding if r.position <= as_of]
    bound = binding_at(evidence, as_of)
    content = _content(video_id, None if bound is None else bound.creator_id, creators_of([s for s in streams if s]))
    position = binding[-1].position if binding else 0
    more = {"version": len(binding), "position": position, "as_of": as_of}
    return answer(content | more, 200, version_headers(len(binding), as_of))


def _content(video_id: str, bound: str | None, creators: Iterable[str]) -> dict[str, Any]:
    by_name = {creator_name(creator_id): creator_id for creator_id in creators}
    if bound is not None:
        by_name.pop(creator_name(bound), None)
    return {"video_id": video_id, "creator_id": bound, "other_creators": sorted(by_name.values())}
