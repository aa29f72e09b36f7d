"""The fields that many answers have, each with its description and an example."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from pydantic import Field, WithJsonSchema

from api.http.fields import MOMENT_SCHEMA, State

_MOMENT = {name: value for name, value in MOMENT_SCHEMA.items() if name != "pattern"}
Moment = Annotated[str, WithJsonSchema(_MOMENT)]
Version = Annotated[int, Field(ge=0, description="What ETag and If-Match speak of.", examples=[3])]
Position = Annotated[int, Field(ge=0, description="A place in the ledger.", examples=[42])]
CodeId = Annotated[UUID, Field(description="The code.", examples=["0199b2f0-7c1e-7a11-8f0e-3a5c7d9e1b20"])]
CreatorId = Annotated[str, Field(description="The creator's TikTok account.", examples=["ana.creates"])]
VideoId = Annotated[str, Field(description="The one video that the code is for.", examples=["7312345678901234567"])]
AdvertiserId = Annotated[str, Field(description="The advertiser account.", examples=["adv-7001"])]
BrandId = Annotated[str, Field(description="The brand.", examples=["acme"])]
Masked = Annotated[str, Field(description="What may be shown of the secret.", examples=["…Zx9A"])]
Secret = Annotated[str, Field(description="The secret, as it goes to the brand.", examples=["#k9/Tz+example=="])]
CodeState = Annotated[State, Field(description="Where the code stands by the clock.", examples=["redeemed"])]
Live = Annotated[bool, Field(description="Not revoked, and inside the window now.")]
StartsAt = Annotated[Moment, Field(description="The window's first moment.")]
ExpiresAt = Annotated[Moment, Field(description="The first moment after the window.")]
Hash = Annotated[str | None, Field(description="SHA-256 in lowercase hexadecimal, where one was recorded.")]
Next = Annotated[str | None, Field(description="The cursor of the next page; null on the last.")]
ReadUpto = Annotated[Position, Field(description="The position up to which the list has read the ledger.")]
RecordedAt = Annotated[Moment, Field(description="When the ledger learned it.")]
EventPosition = Annotated[int, Field(ge=1, description="The event's place in the ledger.", examples=[42])]
Count = Annotated[int, Field(ge=0)]
