"""What the reads of the trail answer, for the API reference; the tests hold it together with what is answered."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field

from api.answer_models import Answer, EventAnswer, Moment, absent
from domain.values import Role


class EventsAnswer(Answer):
    events: Annotated[list[EventAnswer], Field(description="In the order asked for.")]
    next: Annotated[
        int | None,
        Field(
            description="What `after` (with order=desc: `before`) is for the next page; null where there is none yet."
        ),
    ]
    next_cursor: Annotated[str | None, Field(description="What `cursor` is for the next page; null as `next` is.")]
    prev_cursor: Annotated[str | None, Field(description="What `cursor` is for the page before; null on the first.")]
    complete: Annotated[
        bool,
        Field(
            description="False where the search gave up before the page was full, for it had looked through enough: "
            "`next` goes on from there; or where what it searches no longer follows the log."
        ),
    ]
    looked_through: Annotated[
        int, Field(ge=0, description="How many events were looked at for this page.", examples=[100])
    ]
    total: Annotated[
        int, Field(ge=0, description="About how many events there are in all, where that was asked for.")
    ] = Field(default_factory=absent)


class AccessActor(Answer):
    key_id: Annotated[UUID | None, Field(description="The API key; null for who uses the command line.")]
    key_name: Annotated[str | None, Field(description="What people call the key.")]
    role: Annotated[Role | Literal["machine"], Field(description="In which role it read.")]


class AccessEntry(Answer):
    access_id: Annotated[UUID, Field(description="The access.")]
    at: Annotated[Moment, Field(description="When it was asked for.")]
    actor: Annotated[AccessActor, Field(description="Who asked.")]
    route: Annotated[str, Field(description="What for.", examples=["GET /v1/events"])]
    query: Annotated[dict[str, Any], Field(description="With which parameters.")]
    format: Annotated[str, Field(description="The media type of the answer.", examples=["text/csv"])]
    reads: Annotated[int, Field(ge=1, description="How many reads of an hour this is, for a subscriber's; else 1.")]
    rows: Annotated[int, Field(ge=0, description="How many events, or questions, were answered.")]
    complete: Annotated[
        bool | None,
        Field(description="Whether all that was asked for was handed out; null while that is under way, or unknown."),
    ]
    ended_at: Annotated[Moment | None, Field(description="When the answer had ended.")]
    request_id: Annotated[str | None, Field(description="Names the request in our logs.")]
    refused: Annotated[
        str | None, Field(description="Why it was refused; null for what was answered.", examples=["not_allowed"])
    ]
    address: Annotated[str | None, Field(description="Where a refused attempt came from; null but for admins.")]
    user_agent: Annotated[str | None, Field(description="What it called itself; null but for admins.")]
    path: Annotated[str | None, Field(description="The id in its path, where there was one; null but for admins.")]


class AccessesAnswer(Answer):
    accesses: Annotated[list[AccessEntry], Field(description="Newest first.")]
    next_cursor: Annotated[str | None, Field(description="What `cursor` is for the next page; null on the last.")]
    prev_cursor: Annotated[str | None, Field(description="What `cursor` is for the page before; null on the first.")]
