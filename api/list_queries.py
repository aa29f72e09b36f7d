"""What the lists of shares, redemptions, campaigns, histories and keys, and the statistics, take in their query."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time
from typing import Annotated, Final, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from api.http.fields import FIRST_YEAR, LAST_YEAR, Id, Moment
from api.http.problems import malformed_query
from api.http.query_params import (
    LIMIT,
    MAX_CURSOR_CHARACTERS,
    MAX_LIMIT,
    AsOf,
    At,
    AtLeast,
    CodeId,
    Limit,
    Query,
    Size,
    refuse_empty,
)
from api.query_language import parameter
from domain.errors import REFUSALS
from domain.values import Channel

MAX_STATISTICS_DAYS: Final = 400

_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")

Cursor = Annotated[
    str | None,
    StringConstraints(max_length=MAX_CURSOR_CHARACTERS),
    Field(description="`next` of the page before, for the same filters."),
]
# Until there were pages these were whole: a page that is not asked for by size is as long as one can be.
LongLimit = Annotated[Size, Field(description="Entries a page, at most.", examples=[LIMIT])]
OfCreator = Annotated[Id | None, Field(description="Of this creator's codes alone.", examples=["ana.creates"])]
OfVideo = Annotated[Id | None, Field(description="Of this video's codes alone.", examples=["7312345678901234567"])]
OfCode = Annotated[CodeId | None, Field(description="Of this code alone.")]
OfAdvertiser = Annotated[Id | None, Field(description="Of this advertiser account alone.", examples=["adv-7001"])]
From = Annotated[Moment | None, Field(alias="from", description="At this moment or later, in effective time.")]
To = Annotated[Moment | None, Field(description="Before this moment, in effective time.")]


def _day(value: object) -> datetime:
    """Read a day as RFC 3339 has it, and return its beginning in UTC."""
    try:
        day = date.fromisoformat(value) if isinstance(value, str) and _DAY.fullmatch(value) else None
    except ValueError:  # a day that does not exist
        day = None
    if day is None or not FIRST_YEAR <= day.year <= LAST_YEAR:
        raise PydanticCustomError(
            "day", f"This is not a day such as 2026-03-01, in the years {FIRST_YEAR} to {LAST_YEAR}."
        )
    return datetime.combine(day, time(), UTC)


def _flag(value: object) -> object:
    if value not in {"true", "false"}:
        raise PydanticCustomError("flag", "This is neither true nor false.")
    return value == "true"


Flag = Annotated[bool, BeforeValidator(_flag), WithJsonSchema({"type": "boolean"})]


Day = Annotated[
    datetime,
    BeforeValidator(_day),
    WithJsonSchema({"type": "string", "format": "date", "examples": ["2026-03-01"]}),
]

RefusedFor = Annotated[
    str,
    BeforeValidator(parameter("refused")),
    WithJsonSchema({"type": "string", "enum": list(REFUSALS["redeem"])}),
]


class InTime(Query):
    """A query whose entries lie between two moments."""

    from_: From = None
    to: To = None

    @model_validator(mode="after")
    def _no_empty_range(self) -> Self:
        refuse_empty(self.from_, self.to)
        return self


class PermissionsQuery(InTime):
    enabled: Annotated[Flag | None, Field(description="Those that are on, or those that are off.")] = None
    limit: Limit = LIMIT
    cursor: Cursor = None
    at_least: AtLeast = None


class SharesQuery(InTime):
    brand_id: Annotated[Id | None, Field(description="With this brand alone.", examples=["acme"])] = None
    advertiser_id: OfAdvertiser = None
    creator_id: OfCreator = None
    video_id: OfVideo = None
    code_id: OfCode = None
    channel: Annotated[Channel | None, Field(description="Over this channel alone.", examples=["dm"])] = None
    limit: Limit = LIMIT
    cursor: Cursor = None
    at_least: AtLeast = None


class RedemptionsQuery(InTime):
    refused: Annotated[Flag | None, Field(description="Refused attempts alone, or redemptions alone.")] = None
    reason: Annotated[RefusedFor | None, Field(description="Refused for this reason.", examples=["code_expired"])] = (
        None
    )
    shared: Annotated[
        Flag | None,
        Field(description="Redemptions by accounts that the code was, or was not, known to be shared with."),
    ] = None
    advertiser_id: OfAdvertiser = None
    creator_id: OfCreator = None
    video_id: OfVideo = None
    code_id: OfCode = None
    limit: Limit = LIMIT
    cursor: Cursor = None
    at_least: AtLeast = None

    @model_validator(mode="after")
    def _no_refused_redemptions(self) -> Self:
        if self.refused is False and self.reason is not None:
            raise malformed_query("reason", "A redemption was not refused: no attempt has this and `refused=false`.")
        if self.shared is not None and (self.refused or self.reason is not None):
            raise malformed_query("shared", "This tells redemptions apart: no attempt that was refused has it.")
        return self


class CampaignsQuery(Query):
    running: Annotated[Flag | None, Field(description="Those that run, or those that have stopped.")] = None
    stop_reason: Annotated[
        Literal["code_end", "campaign_end"] | None, Field(description="Stopped by their code, or by their own end.")
    ] = None
    stops_from: Annotated[Moment | None, Field(description="That stop, or stopped, at this moment or later.")] = None
    stops_before: Annotated[Moment | None, Field(description="That stop, or stopped, before this moment.")] = None
    order: Annotated[Literal["asc", "desc"], Field(description="The soonest or the last to stop first.")] = "asc"
    campaign_id: Annotated[Id | None, Field(description="Of this name alone.", examples=["spring-sale"])] = None
    advertiser_id: OfAdvertiser = None
    creator_id: OfCreator = None
    video_id: OfVideo = None
    code_id: OfCode = None
    limit: Limit = LIMIT
    cursor: Cursor = None
    at_least: AtLeast = None

    @model_validator(mode="after")
    def _no_empty_range(self) -> Self:
        refuse_empty(self.stops_from, self.stops_before, "stops_from", "stops_before")
        return self


class HistoryQuery(Query):
    as_of: AsOf = None
    at: At = None
    limit: LongLimit = MAX_LIMIT
    cursor: Cursor = None
    at_least: AtLeast = None


class KeysQuery(Query):
    limit: LongLimit = MAX_LIMIT
    cursor: Cursor = None


class StatsQuery(Query):
    at_least: AtLeast = None


class DaysQuery(Query):
    from_: Annotated[Day | None, Field(alias="from", description="The first day, in UTC. Absent: 30 days ago.")] = None
    to: Annotated[Day | None, Field(description="The last day, in UTC. Absent: today.")] = None
    at_least: AtLeast = None
