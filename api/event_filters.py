"""The filters by which events are listed, exported and streamed."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final, Self, cast

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PrivateAttr,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from api.http.fields import (
    NO_NUL,
    CreatorName,
    Id,
    Moment,
    VideoId,
    VideoIdPolicy,
    refuse_secret,
    usable_video_id,
    video_id_policy,
)
from api.http.problems import Problem, malformed_query
from api.http.query_params import MAX_Q_CHARACTERS, AnyPosition, CodeId, Exact, LedgerHistory, QueryModel, refuse_empty
from api.query_language import ParsedQuery, QueryError, parameter, parse
from domain.event_types import EVENT_TYPES
from projections.index_scan import Among, Between, Positions

if TYPE_CHECKING:
    from projections.index_scan import Condition


EventType = Annotated[
    str,
    BeforeValidator(parameter("type")),
    WithJsonSchema({"type": "string", "enum": list(EVENT_TYPES)}),
]
ActorFilter = Annotated[
    str,
    BeforeValidator(parameter("actor")),
    WithJsonSchema({"anyOf": [{"type": "string", "format": "uuid"}, {"type": "string", "enum": ["clock"]}]}),
]


MAX_POSITIONS: Final = 200
_POSITIONS: Final = re.compile(r"^[1-9][0-9]{0,17}(,[1-9][0-9]{0,17})*$")


def _positions(value: object) -> object:
    if not isinstance(value, str) or _POSITIONS.fullmatch(value) is None or value.count(",") >= MAX_POSITIONS:
        expected = f"Expected positions, at most {MAX_POSITIONS}, separated by commas, such as 1,4,9."
        raise PydanticCustomError("parameter", cast("Any", expected))
    return tuple(sorted({int(position) for position in value.split(",")}))


def _parsed(q: str, policy: VideoIdPolicy, *, exact: bool) -> ParsedQuery:
    try:
        return parse(q, partial(usable_video_id, policy=policy, exact=exact))
    except QueryError as error:
        if error.unusable is not None:
            context = {**error.unusable, "offset": error.offset}
            raise PydanticCustomError("unusable", cast("Any", error.problem), context) from None
        wrong = {"pointer": "/q", "problem": error.problem, "offset": error.offset}
        raise Problem("malformed_query", members={"errors": [wrong]}) from None


class Conditions(QueryModel):
    """Filters for events. An event must match all of them."""

    type: Annotated[
        EventType | None, Field(description="Only events of this type. Case is ignored.", examples=["Redeemed"])
    ] = None
    code_id: Annotated[CodeId | None, Field(description="Only events of this code.")] = None
    creator_id: Annotated[
        CreatorName | None, Field(description="Only events of this creator's permission and codes.")
    ] = None
    video_id_exact: Exact = None
    video_id: Annotated[VideoId | None, Field(description="Only events of this video's codes.")] = None
    advertiser_id: Annotated[Id | None, Field(description="Only events that name this advertiser account.")] = None
    actor: Annotated[
        ActorFilter | None, Field(description="Only events recorded with this key, given by id, or by `clock`.")
    ] = None
    from_: Annotated[Moment | None, Field(alias="from", description="Only events recorded at this time or later.")] = (
        None
    )
    to: Annotated[Moment | None, Field(description="Only events recorded before this time.")] = None
    q: Annotated[
        str | None,
        StringConstraints(min_length=1, max_length=MAX_Q_CHARACTERS, pattern=NO_NUL),
        AfterValidator(refuse_secret),
        Field(
            description="A query such as `type:Shared,Redeemed -channel:dm recorded:2026-01..2026-03 "
            "spring-sale`. The qualifiers are `actor`, `advertiser`, `brand`, `channel`, `code`, "
            "`creator`, `effective`, `key`, `late`, `note`, `position`, `reason`, `recorded`, `refused`, `source`, "
            "`terms`, `type` and `video`. `-` negates a term. Quotes keep words together. Other words are searched in "
            "the summary, ignoring case.",
            examples=["spring-sale"],
        ),
    ] = None

    _parsed_q: ParsedQuery | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _no_empty_range(self) -> Self:
        refuse_empty(self.from_, self.to)
        return self

    @field_validator("q")
    @classmethod
    def _a_query(cls, q: str | None, info: ValidationInfo) -> str | None:
        if q is not None:
            _parsed(q, video_id_policy(info.context), exact=info.data.get("video_id_exact") is True)
        return q

    def model_post_init(self, context: Any) -> None:
        """Keep what `q` means by the policy that it was validated with."""
        if self.q is not None:
            self._parsed_q = _parsed(self.q, video_id_policy(context), exact=self.video_id_exact is True)

    def parsed(self) -> ParsedQuery:
        """Return what the history is searched by, and what must be in the summaries."""
        equal: dict[Any, Any] = {
            "type": self.type,
            "code_id": self.code_id,
            "creator_id": self.creator_id,
            "video_id": self.video_id,
            "advertiser_id": self.advertiser_id,
            "actor": self.actor,
        }
        conditions: list[Condition] = [Among(field, (value,)) for field, value in equal.items() if value is not None]
        if self.from_ is not None or self.to is not None:
            conditions.append(Between("recorded_at", self.from_, self.to))
        if self._parsed_q is None:
            return ParsedQuery(tuple(conditions))
        return replace(self._parsed_q, conditions=(*conditions, *self._parsed_q.conditions))

    def parameters(self) -> dict[str, Any]:
        """Return what was asked, under the names of the parameters."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Filters(Conditions):
    """Which events are asked for: what they must be like, and where they lie."""

    after: Annotated[AnyPosition | None, Field(description="Only later positions.", examples=[0])] = None
    before: Annotated[AnyPosition | None, Field(description="Only earlier positions.")] = None
    history: LedgerHistory = None
    positions: Annotated[
        tuple[int, ...] | None,
        BeforeValidator(_positions),
        WithJsonSchema({"type": "string", "pattern": _POSITIONS.pattern}),
        Field(
            description=f"Only events at these positions, at most {MAX_POSITIONS}, separated by commas: all events of "
            "an answer's `evidence` in one request.",
            examples=["1,4,9"],
        ),
    ] = None

    def parsed(self) -> ParsedQuery:
        """Return the query, restricted to the given positions."""
        parsed = super().parsed()
        if self.positions is None:
            return parsed
        listed = Positions(tuple((position, position) for position in self.positions))
        return replace(parsed, conditions=(*parsed.conditions, listed))

    @model_validator(mode="after")
    def _no_reversed_range(self) -> Self:
        if self.after is not None and self.before is not None and self.after > self.before:
            raise malformed_query("before", "`before` must be greater than `after`: this range is empty.")
        return self
