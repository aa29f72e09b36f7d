"""What the lists of shares, redemptions and campaigns, histories and the statistics look like."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from api.answer_models import (
    AdvertiserId,
    Answer,
    BrandId,
    BudgetEntry,
    CodeId,
    CreatorId,
    EventAnswer,
    Moment,
    Position,
    Version,
    VideoId,
    absent,
)
from api.http.fields import State
from domain.values import Channel

Next = Annotated[str | None, Field(description="The cursor of the next page; null on the last.")]
ReadUpto = Annotated[Position, Field(description="The position up to which the list has read the ledger.")]
RecordedAt = Annotated[Moment, Field(description="When the ledger learned it.")]
EventPosition = Annotated[int, Field(ge=1, description="The event's place in the ledger.", examples=[42])]
Count = Annotated[int, Field(ge=0)]


class PermissionInList(Answer):
    creator_id: CreatorId
    enabled: Annotated[bool, Field(description="Whether the account's Ad Authorization is on.")]
    since: Annotated[Moment, Field(description="When it was last switched, in effective time.")]
    version: Version
    position: Annotated[EventPosition, Field(description="Of the event that switched it last.")]


class PermissionsAnswer(Answer):
    permissions: Annotated[list[PermissionInList], Field(description="The one switched last first.")]
    next: Next
    position: ReadUpto


class ShareInList(Answer):
    code_id: CodeId
    creator_id: CreatorId
    video_id: VideoId
    brand_id: BrandId
    advertiser_id: Annotated[str | None, Field(description="The account it was meant for, if one was named.")]
    channel: Annotated[Channel, Field(description="The way it was handed over.")]
    shared_at: Annotated[Moment, Field(description="When, in effective time.")]
    recorded_at: RecordedAt
    position: EventPosition


class SharesAnswer(Answer):
    shares: Annotated[list[ShareInList], Field(description="The latest first, in effective time.")]
    next: Next
    position: ReadUpto


class RedemptionInList(Answer):
    code_id: CodeId
    creator_id: CreatorId
    video_id: VideoId
    advertiser_id: AdvertiserId
    refused: Annotated[bool, Field(description="Whether it was turned away.")]
    reason: Annotated[str | None, Field(description="Why it was turned away.", examples=["code_expired"])]
    shared_with_advertiser: Annotated[
        bool | None, Field(description="Whether a recorded share named it then; null where it was turned away.")
    ]
    attempted_at: Annotated[Moment, Field(description="When, in effective time.")]
    recorded_at: RecordedAt
    position: EventPosition


class RedemptionsAnswer(Answer):
    redemptions: Annotated[list[RedemptionInList], Field(description="The latest first, in effective time.")]
    next: Next
    position: ReadUpto


class CampaignInList(Answer):
    campaign_id: Annotated[str, Field(description="The campaign.", examples=["spring-sale"])]
    code_id: CodeId
    creator_id: CreatorId
    video_id: VideoId
    advertiser_id: AdvertiserId
    name: Annotated[str | None, Field(description="What people call it.")]
    budget: Annotated[BudgetEntry, Field(description="What may be spent.")]
    starts_at: Annotated[Moment, Field(description="When it begins.")]
    ends_at: Annotated[Moment, Field(description="When it was meant to end.")]
    expires_at: Annotated[Moment, Field(description="When its code's window ends.")]
    launched_at: Annotated[Moment, Field(description="When it was launched, in effective time.")]
    running: Annotated[bool, Field(description="From launch, even if scheduled, until something stops it.")]
    stops_at: Annotated[Moment, Field(description="When it will stop, or has stopped.")]
    stop_reason: Annotated[
        Literal["code_end", "campaign_end"],
        Field(description="By what: its code, whose window ends or which was revoked, or its own end."),
    ]
    ended_at: Annotated[Moment | None, Field(description="When somebody or something ended it before its own end.")]
    ended_by: Annotated[
        Literal["ended", "code_expired", "code_revoked"] | None, Field(description="By what that was, as recorded.")
    ]
    position: Annotated[EventPosition, Field(description="Of the event that launched it.")]


class CampaignsAnswer(Answer):
    campaigns: Annotated[list[CampaignInList], Field(description="By when they stop.")]
    next: Next
    position: ReadUpto


class ChangeEntry(Answer):
    field: Annotated[
        str, Field(description="What changed, by the name that answers have for it.", examples=["expires_at"])
    ]
    before: Annotated[Any, WithJsonSchema({}), Field(description="Its value before the event; null for none.")]
    after: Annotated[Any, WithJsonSchema({}), Field(description="Its value after the event.")]


class EventWithChanges(EventAnswer):
    """One event, with what it changed."""

    changes: Annotated[
        list[ChangeEntry], Field(description="Each value before and after; empty where it only adds to the record.")
    ]
    erased: Annotated[
        Literal[True],
        Field(description="There where a note was, and its creator was erased: nobody can read it any more."),
    ] = Field(default_factory=absent)


class HistoryAnswer(Answer):
    events: Annotated[list[EventWithChanges], Field(description="Oldest first, in the order of recording.")]
    next: Next


class DurationEntry(Answer):
    count: Annotated[Count, Field(description="Codes that were redeemed for the first time.")]
    median_seconds: Annotated[
        float | None, Field(description="Half of them took no longer; told from the buckets, hence to their width.")
    ]
    buckets: Annotated[
        dict[str, int],
        Field(
            description="How many, by an upper bound in seconds that each lies below; `longer` has none.",
            examples=[{"3600": 12, "86400": 3}],
        ),
    ]


class CampaignFigures(Answer):
    launched: Annotated[Count, Field(description="Launched on this day.")]
    stopped: Annotated[
        dict[str, int],
        Field(
            description=(
                "That stop on this day, by `campaign_end`, by `window_end` (the code's window ends before the "
                "campaign's own end) or by `revocation`."
            ),
            examples=[{"campaign_end": 4, "window_end": 1}],
        ),
    ]


class DayEntry(Answer):
    day: Annotated[str, WithJsonSchema({"type": "string", "format": "date"}), Field(description="The day, in UTC.")]
    codes: Annotated[
        dict[State, int],
        Field(
            description=(
                "Codes by state as the day ended; today's as of now, and those of days ahead if nothing more happens."
            )
        ),
    ]
    issued: Annotated[Count, Field(description="Codes that began.")]
    windows_ended: Annotated[Count, Field(description="Windows that end on this day.")]
    shares: Annotated[Count, Field(description="Shares.")]
    redemptions: Annotated[Count, Field(description="Redemptions.")]
    issue_to_redemption: Annotated[DurationEntry, Field(description="How long codes took from issue to redemption.")]
    refusals: Annotated[
        dict[str, int],
        Field(description="Redemptions refused and recorded, by reason.", examples=[{"code_expired": 2}]),
    ]
    refused_attempts: Annotated[
        dict[str, int],
        Field(
            description="Attempts that were counted and not recorded, by reason: unknown codes, repeats in an hour.",
            examples=[{"code_unknown": 7}],
        ),
    ]
    campaigns: Annotated[CampaignFigures, Field(description="Campaigns launched and stopped.")]


class DaysAnswer(Answer):
    days: Annotated[list[DayEntry], Field(description="Every day of the range, oldest first.")]
    position: ReadUpto
