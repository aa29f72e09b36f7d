"""The fields that many answers have, each with its description and an example."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field, WithJsonSchema

from api.http.fields import MOMENT_SCHEMA
from domain.values import State

_MOMENT = {name: value for name, value in MOMENT_SCHEMA.items() if name != "pattern"}
Moment = Annotated[str, WithJsonSchema(_MOMENT)]
Version = Annotated[int, Field(ge=0, description="The code's version, as in ETag and If-Match.", examples=[3])]
Position = Annotated[int, Field(ge=0, description="A position in the ledger.", examples=[42])]
CodeId = Annotated[UUID, Field(description="The code.", examples=["0199b2f0-7c1e-7a11-8f0e-3a5c7d9e1b20"])]
CreatorId = Annotated[str, Field(description="The creator's TikTok account.", examples=["ana.creates"])]
VideoId = Annotated[str, Field(description="The video that the code is for.", examples=["7312345678901234567"])]
AdvertiserId = Annotated[str, Field(description="The advertiser account.", examples=["adv-7001"])]
BrandId = Annotated[str, Field(description="The brand.", examples=["acme"])]
Masked = Annotated[
    str | None,
    Field(
        description="The masked secret: its last characters. Null if the code was recorded without its secret.",
        examples=["…Zx9A"],
    ),
]
Secret = Annotated[str, Field(description="The secret that the brand enters.", examples=["#k9/Tz+example=="])]
CodeState = Annotated[State, Field(description="The state of the code now.", examples=["redeemed"])]
Live = Annotated[bool, Field(description="Whether the code is not revoked and now is inside its window.")]
StartsAt = Annotated[Moment, Field(description="The start of the window (included).")]
StartStated = Annotated[
    bool,
    Field(
        description="Whether somebody stated when the window starts. If false, `starts_at` is the earliest time of "
        "which anything about the code is known."
    ),
]
ExpiresAt = Annotated[Moment, Field(description="The end of the window (excluded).")]
EndsAt = Annotated[
    Moment,
    Field(description="The effective end: the end of the window, the revocation or the end of the usage rights."),
]
EndsBy = Annotated[
    Literal["code", "rights"],
    Field(description="What ends first: the code, by its window or a revocation, or the rights."),
]
StopReason = Annotated[
    Literal["code_end", "rights_end", "campaign_end"],
    Field(
        description="What stops it: `code_end` (its code expires or is revoked), `rights_end` (the usage rights end) "
        "or `campaign_end` (its own end)."
    ),
]
Hash = Annotated[str | None, Field(description="The SHA-256 in lowercase hexadecimal, if one was recorded.")]
Next = Annotated[str | None, Field(description="The cursor of the next page, or null on the last page.")]
ReadUpto = Annotated[Position, Field(description="The position up to which the list covers the ledger.")]
RecordedAt = Annotated[Moment, Field(description="When the ledger recorded it.")]
EventPosition = Annotated[int, Field(ge=1, description="The event's position in the ledger.", examples=[42])]
Count = Annotated[int, Field(ge=0)]
