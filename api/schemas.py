"""What requests carry: one model for each body, strict, with nothing unknown let through."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from api.http.fields import (
    AdvertiserId,
    Amount,
    BrandId,
    CampaignId,
    CreatorId,
    Currency,
    Id,
    Line,
    Moment,
    Name,
    Note,
    Position,
    Reason,
    Secret,
    Sha256,
    Targeting,
    VideoId,
)
from domain.values import Channel, Role
from infra.auth import api_keys
from infra.auth.api_keys import MAX_SUBJECTS, subjects_problem
from infra.auth.key_admin import MAX_OVERLAP_S

# Any whole number is understood; which lengths are allowed is a rule of the ledger, not of the format.
MAX_DAYS = 2**31 - 1
# A moment that lies ahead whenever the reference is read.
LATER = "2099-01-01T00:00:00Z"

CaptionHash = Annotated[Sha256 | None, Field(description="SHA-256 of the video's caption, in lowercase hexadecimal.")]
CreativeHash = Annotated[Sha256 | None, Field(description="SHA-256 of the video file, in lowercase hexadecimal.")]
Days = Annotated[int, Field(ge=-MAX_DAYS, le=MAX_DAYS, examples=[30])]


class Body(BaseModel):
    """A body: unknown fields are refused, types are not bent, and no error shows what was sent."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class Command(Body):
    """The body of a command."""

    effective_at: Annotated[
        Moment | None,
        Field(
            description=(
                "When this happened in the world, where that is earlier than now: to record late what happened "
                "before. For keys with the role operator or admin."
            )
        ),
    ] = None


class SetPermission(Command):
    enabled: Annotated[bool, Field(description="Whether the account's Ad Authorization is on.", examples=[True])]


class GenerateCode(Command):
    creator_id: CreatorId
    video_id: VideoId
    terms_version: Annotated[
        Line | None,
        Field(
            max_length=128,
            description="The version of TikTok's advertising terms that the creator accepted.",
            examples=["2026-01"],
        ),
    ] = None
    days: Annotated[
        Days, Field(description="The window's length in days: 7, 30, 60 or 365, unless set up otherwise.")
    ] = 30
    starts_at: Annotated[
        Moment | None,
        Field(description="When the window begins; may be past, for a code that was issued then. Absent: now."),
    ] = None
    caption_sha256: CaptionHash = None
    secret: Annotated[
        Secret | None,
        Field(description="The string that TikTok generated, kept exactly. Absent: a random one is made."),
    ] = None


class ExtendCode(Command):
    """Exactly one of both."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": ["days"], "properties": {"expires_at": False}},
                {"required": ["expires_at"], "properties": {"days": False}},
            ],
            "examples": [{"days": 60}],
        }
    )

    days: Annotated[
        Days | None,
        Field(description="The whole window's length, counted from its start: 30 becomes 60.", examples=[60]),
    ] = None
    expires_at: Annotated[
        Moment | None,
        Field(description="The new end, at most the longest allowed length from now.", examples=[LATER]),
    ] = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.days is None) == (self.expires_at is None):
            raise PydanticCustomError("one_of", "Send days or expires_at, and only one of both.")
        return self


class ShareCode(Command):
    brand_id: BrandId
    channel: Annotated[Channel, Field(description="The way it was handed over.", examples=["dm"])]
    advertiser_id: Annotated[
        AdvertiserId | None, Field(description="The advertiser account that it is meant for.", examples=["adv-7001"])
    ] = None
    note: Annotated[Note | None, Field(description="A remark; stored encrypted.", examples=["For the spring sale"])] = (
        None
    )


class RevokeCode(Command):
    reason: Annotated[Reason, Field(description="Why the code is taken back.")]
    force: Annotated[
        bool,
        Field(description="Revoke although a campaign runs, which ends it. For keys with the role operator or admin."),
    ] = False


class RevealCode(Command):
    reason: Annotated[Reason, Field(description="Why the secret is needed again.", examples=["The brand lost it"])]


class AddNote(Command):
    text: Annotated[
        Note, Field(description="The remark; stored encrypted.", examples=["Position 12 named the wrong brand."])
    ]
    about_position: Annotated[Position | None, Field(description="The event that the remark is about.")] = None


class LookupCode(Body):
    secret: Secret


class RedeemCode(Command):
    secret: Secret
    advertiser_id: AdvertiserId


class Budget(Body):
    amount: Amount
    currency: Currency


class LaunchCampaign(Command):
    campaign_id: CampaignId
    advertiser_id: AdvertiserId
    budget: Annotated[
        Budget, Field(description="What may be spent.", examples=[{"amount": "500.00", "currency": "USD"}])
    ]
    starts_at: Annotated[Moment, Field(description="When the campaign begins, inside the code's window.")]
    ends_at: Annotated[Moment, Field(description="When it ends; where that is after the window, a warning says so.")]
    name: Annotated[Name | None, Field(description="What people call it.", examples=["Spring sale"])] = None
    targeting: Annotated[
        Targeting | None,
        Field(description="Whom the ad is shown to, in your own words: at most 16 KiB of JSON, 8 levels deep."),
    ] = None
    caption_sha256: CaptionHash = None
    creative_sha256: CreativeHash = None

    @field_validator("ends_at")
    @classmethod
    def _after_the_start(cls, ends_at: Moment, info: ValidationInfo) -> Moment:
        starts_at = info.data.get("starts_at")
        if starts_at is not None and ends_at <= starts_at:
            raise PydanticCustomError("order", "A campaign ends after it starts.")
        return ends_at


class EndCampaign(Command):
    reason: Annotated[Reason | None, Field(description="Why it was stopped.", examples=["Budget spent"])] = None


class Subjects(Body):
    creator_ids: Annotated[
        list[Id], Field(max_length=MAX_SUBJECTS, description="The creators it acts for.", examples=[["ana.creates"]])
    ] = []
    brand_ids: Annotated[
        list[Id], Field(max_length=MAX_SUBJECTS, description="The brands it acts for.", examples=[["acme"]])
    ] = []
    advertiser_ids: Annotated[
        list[Id],
        Field(max_length=MAX_SUBJECTS, description="The advertiser accounts it acts for.", examples=[["adv-7001"]]),
    ] = []

    def as_known(self) -> api_keys.Subjects:
        """Return them as keys have them."""
        return api_keys.Subjects(frozenset(self.creator_ids), frozenset(self.brand_ids), frozenset(self.advertiser_ids))


class CreateKey(Body):
    role: Annotated[Role, Field(description="What the key may.", examples=["creator"])]
    name: Annotated[Name | None, Field(description="What people call it.", examples=["The creator's app"])] = None
    subjects: Annotated[
        Subjects | None,
        Field(
            description="Whom it acts for: creators for a creator's key, brands and advertiser accounts for a brand's; "
            "the other roles act for everyone.",
            examples=[{"creator_ids": ["ana.creates"]}],
            validate_default=True,
        ),
    ] = None
    expires_at: Annotated[
        Moment | None, Field(description="When it stops working. Absent: never.", examples=[LATER])
    ] = None
    may_reveal: Annotated[
        bool,
        Field(
            description="Whether it may show secrets again, with a reason; for a creator's, operator's or "
            "administrator's key. Withhold it from whoever needs none."
        ),
    ] = True

    @field_validator("subjects")
    @classmethod
    def _subjects_of_the_role(cls, subjects: Subjects | None, info: ValidationInfo) -> Subjects | None:
        role, given = info.data.get("role"), subjects or Subjects()
        problem = None if role is None else subjects_problem(role, given.as_known())
        if problem is not None:
            raise PydanticCustomError("subjects", "{problem}", {"problem": problem})
        return subjects


class RotateKey(Body):
    overlap_seconds: Annotated[
        int,
        Field(
            ge=0,
            le=MAX_OVERLAP_S,
            description="How long the text that the key has now works beside the new one, 30 days at most.",
            examples=[3600],
        ),
    ]
