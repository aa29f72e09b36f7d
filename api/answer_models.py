"""What answers look like, for the API reference; `answers` builds them, and the tests hold the two together."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from api.http.fields import MOMENT_SCHEMA, State
from domain.values import Channel, Role, Source

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


def absent() -> Any:
    """Stand for a field that some answers have and others lack; it is never null."""


class Answer(BaseModel):
    """An answer: every field is always there."""

    model_config = ConfigDict(extra="forbid")


class PermissionAnswer(Answer):
    creator_id: CreatorId
    enabled: Annotated[bool, Field(description="Whether the account's Ad Authorization is on.")]
    live_codes: Annotated[int, Field(ge=0, description="Codes of the creator that are live.", examples=[2])]
    version: Version
    position: Position


class ShareEntry(Answer):
    brand_id: BrandId
    channel: Annotated[Channel, Field(description="The way it was handed over.")]
    advertiser_id: Annotated[
        str | None, Field(description="The advertiser account it was meant for, if one was named.")
    ]
    shared_at: Annotated[Moment, Field(description="When, in effective time.")]


class RedemptionEntry(Answer):
    advertiser_id: AdvertiserId
    redeemed_at: Annotated[Moment, Field(description="When, in effective time.")]


class BudgetEntry(Answer):
    amount: Annotated[str, Field(description="A decimal number.", examples=["500.00"])]
    currency: Annotated[str, Field(description="ISO 4217.", examples=["USD"])]


class CampaignEntry(Answer):
    campaign_id: Annotated[str, Field(description="The campaign.", examples=["spring-sale"])]
    advertiser_id: AdvertiserId
    name: Annotated[str | None, Field(description="What people call it.")]
    budget: Annotated[BudgetEntry, Field(description="What may be spent.")]
    targeting: Annotated[dict[str, Any] | None, Field(description="As it was sent.")]
    starts_at: Annotated[Moment, Field(description="When it begins.")]
    ends_at: Annotated[Moment, Field(description="When it was meant to end.")]
    launched_at: Annotated[Moment, Field(description="When the launch was recorded, in effective time.")]
    ended_at: Annotated[Moment | None, Field(description="When somebody or something ended it.")]
    stops_at: Annotated[Moment, Field(description="When it stops, at its own end or the window's, or has stopped.")]
    running: Annotated[bool, Field(description="From launch until ended, its end, or the window's.")]


class CodeAnswer(Answer):
    """A code as it stands. A brand's key sees its own shares, redemptions and campaigns alone."""

    code_id: CodeId
    masked: Masked
    creator_id: CreatorId
    video_id: VideoId
    terms_version: Annotated[str, Field(description="The advertising terms that were accepted.", examples=["2026-01"])]
    generated_at: Annotated[Moment, Field(description="When, in effective time.")]
    starts_at: StartsAt
    expires_at: ExpiresAt
    revoked_at: Annotated[Moment | None, Field(description="When it was taken back.")]
    state: CodeState
    live: Live
    caption_sha256: Hash
    creative_sha256: Hash
    shares: Annotated[list[ShareEntry], Field(description="To whom it was handed, oldest first.")]
    redemptions: Annotated[list[RedemptionEntry], Field(description="By whom it was redeemed, oldest first.")]
    campaigns: Annotated[list[CampaignEntry], Field(description="What was launched on it, oldest first.")]
    version: Version
    position: Annotated[Position, Field(description="Of the code's last event.")]


class GeneratedAnswer(CodeAnswer):
    secret: Secret


class RevealAnswer(CodeAnswer):
    secret: Secret


class CampaignAnswer(CodeAnswer):
    warnings: Annotated[
        list[str],
        Field(
            description="A sentence for each thing to know.",
            examples=[["The campaign will stop on 2026-03-31 at 12:00 UTC, when the code's window ends."]],
        ),
    ]


class CodeReadAnswer(CodeAnswer):
    as_of: Annotated[int, Field(ge=0, description="The position up to which the ledger was read.", examples=[42])]


class LookupAnswer(Answer):
    code_id: CodeId
    masked: Masked
    creator_id: CreatorId
    video_id: VideoId
    starts_at: StartsAt
    expires_at: ExpiresAt
    state: CodeState
    live: Live


class RedemptionAnswer(LookupAnswer):
    advertiser_id: AdvertiserId
    shared_with_advertiser: Annotated[
        bool, Field(description="Whether a recorded share named this account or a brand of the key.")
    ]
    version: Version
    position: Position


class CodeInList(Answer):
    code_id: CodeId
    masked: Masked
    creator_id: CreatorId
    video_id: VideoId
    terms_version: Annotated[str, Field(description="The advertising terms that were accepted.")]
    generated_at: Annotated[Moment, Field(description="When, in effective time.")]
    starts_at: StartsAt
    expires_at: ExpiresAt
    revoked_at: Annotated[Moment | None, Field(description="When it was taken back.")]
    state: CodeState
    live: Live
    brand_ids: Annotated[list[str], Field(description="The brands it was shared with.")]
    advertiser_ids: Annotated[list[str], Field(description="The accounts it was shared with or redeemed by.")]
    version: Version
    position: Annotated[Position, Field(description="Of the code's last event.")]


class CodesAnswer(Answer):
    codes: Annotated[list[CodeInList], Field(description="Newest first.")]
    next: Annotated[str | None, Field(description="The cursor of the next page; null on the last.")]
    position: Annotated[Position, Field(description="The position up to which the list has read the ledger.")]


class PermissionReadAnswer(PermissionAnswer):
    as_of: Annotated[int, Field(ge=0, description="The position up to which the ledger was read.", examples=[42])]


class ActorEntry(Answer):
    key_id: Annotated[str, Field(description="The API key, or `clock`.")]
    key_name: Annotated[str | None, Field(description="What people call the key.")]
    role: Annotated[Role | Literal["clock"], Field(description="In which role it acted.")]
    subject: Annotated[str | None, Field(description="The creator or advertiser account it acted for.")]


class EventAnswer(BaseModel):
    """One event; `code_id` stands in those of codes, `creator_id` in those of permissions."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"oneOf": [{"required": ["code_id"]}, {"required": ["creator_id"]}]}
    )

    position: Annotated[int, Field(ge=1, description="Its place in the ledger.", examples=[42])]
    event_id: Annotated[UUID, Field(description="The event.")]
    type: Annotated[str, Field(description="What happened.", examples=["CodeGenerated"])]
    type_version: Annotated[int, Field(ge=1, description="The version of its format.")]
    code_id: CodeId = Field(default_factory=absent)
    creator_id: CreatorId = Field(default_factory=absent)
    stream_version: Annotated[int, Field(ge=1, description="Its number in the code's or creator's own stream.")]
    recorded_at: Annotated[Moment, Field(description="When the ledger learned it.")]
    effective_at: Annotated[Moment, Field(description="When it was true in the world.")]
    actor: Annotated[ActorEntry, Field(description="Who did it.")]
    source: Annotated[Source, Field(description="Who says so.")]
    correlation_id: Annotated[str | None, Field(description="The larger undertaking it belongs to.")]
    causation_id: Annotated[UUID | None, Field(description="The event it follows from.")]
    summary: Annotated[str, Field(description="What happened, in a sentence.")]
    body: Annotated[dict[str, Any], Field(description="The facts, under the names they have in requests.")]


class AuthorizationAnswer(Answer):
    """The question: was this video authorized for this advertiser at this moment?"""

    authorized: Annotated[bool, Field(description="Yes or no.")]
    reason: Annotated[
        Literal["authorized", "no_code", "not_redeemed", "not_started", "expired", "revoked"],
        Field(description="Why, by code, window, revocation and redemption alone."),
    ]
    video_id: VideoId
    advertiser_id: AdvertiserId
    at: Annotated[Moment, Field(description="The moment that was asked about.")]
    as_of: Annotated[int, Field(ge=0, description="The position up to which the ledger was read.", examples=[42])]
    code_id: Annotated[UUID | None, Field(description="The code that decides.")]
    starts_at: Annotated[Moment | None, Field(description="Its window's first moment.")]
    expires_at: Annotated[Moment | None, Field(description="The first moment after its window.")]
    permission_enabled: Annotated[bool, Field(description="Whether the creator's Ad Authorization was on.")]
    shared: Annotated[bool, Field(description="Whether the code was shared with the advertiser.")]
    evidence: Annotated[list[int], Field(description="The positions that prove it.", examples=[[1, 2, 5]])]


class ViewEntry(Answer):
    view: Annotated[str, Field(description="The view.")]
    state: Annotated[str, Field(description="following, building or failed.")]
    position: Annotated[int, Field(ge=0, description="How far it has read this ledger.")]
    lag: Annotated[int, Field(ge=0, description="Events it has not read yet.")]
    lag_seconds: Annotated[float, Field(ge=0, description="Since the oldest of those was recorded.")]
    error: Annotated[str | None, Field(description="What stopped it, where that was an event of this ledger.")]
    stopped_before: Annotated[int | None, Field(description="The position of that event.")]


class SubscriberEntry(Answer):
    subscriber: Annotated[str, Field(description="`kafka`, where it is published there; `webhook` and its id.")]
    state: Annotated[str, Field(description="publishing, retrying, or stopped until a person acts.")]
    position: Annotated[int, Field(ge=0, description="How far the ledger was handed over.")]
    lag: Annotated[int, Field(ge=0, description="Events that were not yet.")]
    lag_seconds: Annotated[float, Field(ge=0, description="Since the oldest of those was recorded.")]
    errors: Annotated[int, Field(ge=0, description="Attempts that failed.")]


class StatsAnswer(Answer):
    position: Annotated[Position, Field(description="The ledger's last position.")]
    codes: Annotated[dict[State, int], Field(description="Codes by state.")]
    expiring: Annotated[dict[str, int], Field(description="Codes that expire within so many days.")]
    redemptions: Annotated[int, Field(ge=0, description="Redemptions recorded.")]
    refusals: Annotated[dict[str, int], Field(description="Redemptions refused and recorded, by reason.")]
    refused_attempts: Annotated[
        dict[str, int],
        Field(description="Attempts of the last 24 hours that were counted and not recorded, by reason."),
    ]
    views: Annotated[list[ViewEntry], Field(description="How far each view has read.")]
    subscribers: Annotated[list[SubscriberEntry], Field(description="How far the ledger was handed to subscribers.")]


class SubjectsEntry(Answer):
    creator_ids: list[str]
    brand_ids: list[str]
    advertiser_ids: list[str]


class KeyEntry(Answer):
    key_id: Annotated[UUID, Field(description="The key's id; never the key.")]
    ledger: Annotated[str, Field(description="The ledger it opens.", examples=["main"])]
    role: Annotated[Role, Field(description="What it may.")]
    name: Annotated[str | None, Field(description="What people call it.")]
    subjects: Annotated[SubjectsEntry, Field(description="Whom it acts for.")]
    may_reveal: Annotated[bool, Field(description="Whether it shows secrets again, with a reason.")]
    created_at: Annotated[Moment, Field(description="When it was made.")]
    expires_at: Annotated[Moment | None, Field(description="When it stops working.")]
    revoked_at: Annotated[Moment | None, Field(description="When it was revoked.")]
    kind: Annotated[
        Literal["key", "token"],
        Field(description="A key that is presented itself, or what stands for the bearer of an issuer's tokens."),
    ]
    subject: Annotated[str | None, Field(description="What the issuer calls the bearer; null for a key.")]
    last_used_at: Annotated[Moment | None, Field(description="When it was last used, to the minute.")]
    overlap_ends_at: Annotated[
        Moment | None,
        Field(description="Until when the text before the last rotation works too; null once it does not."),
    ]


class KeyAnswer(KeyEntry):
    key: Annotated[str, Field(description="The key itself, shown this once.", examples=["slk_…"])]


class KeysAnswer(Answer):
    keys: Annotated[list[KeyEntry], Field(description="Newest first, revoked ones included.")]
    next: Annotated[str | None, Field(description="The cursor of the next page; null on the last.")]


class HealthAnswer(Answer):
    status: Annotated[Literal["alive", "ready", "degraded"], Field(description="How the service is.")]
    stopped: Annotated[list[str], Field(description="The views that have stopped.")] = []


class FieldProblem(Answer):
    pointer: Annotated[str, Field(description="A JSON Pointer to the field; empty for the whole.", examples=["/days"])]
    problem: Annotated[str, Field(description="What is wrong with it.", examples=["This is required."])]
    offset: Annotated[int, Field(ge=0, description="At which character of the text it goes wrong, from 0.")] = Field(
        default_factory=absent
    )


class Problem(BaseModel):
    """What is answered where something is refused (RFC 9457)."""

    model_config = ConfigDict(extra="forbid")

    type: Annotated[str, Field(description="Where this kind of problem is explained.", examples=["/docs#code_expired"])]
    title: Annotated[str, Field(description="Its short name.", examples=["Code expired"])]
    status: Annotated[int, Field(description="The HTTP status.", examples=[409])]
    detail: Annotated[str, Field(description="What happened, why, and what to do about it.")]
    code: Annotated[str, Field(description="A stable name to decide by.", examples=["code_expired"])]
    retryable: Annotated[bool, Field(description="Whether the same request may succeed later.")]
    request_id: Annotated[str, Field(description="Names this request in our logs.")]
    errors: Annotated[list[FieldProblem], Field(description="Where and why, for malformed input.")] = Field(
        default_factory=absent
    )
    conflict_id: Annotated[str, Field(description="What stands in the way.")] = Field(default_factory=absent)
    current_version: Annotated[int, Field(description="The version that stands, where If-Match named another.")] = (
        Field(default_factory=absent)
    )
