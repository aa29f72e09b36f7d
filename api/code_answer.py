"""A code as answers show it: to a brand, only its own shares, redemptions and campaigns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

from pydantic import Field
from starlette.responses import Response

from api.http import answer_fields as answered
from api.http.models import Answer
from api.http.responses import answer, command_headers
from domain.campaign import STOP_REASONS
from domain.values import Channel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from api.http.caller import Caller
    from domain.campaign import Campaign
    from domain.code import Code
    from domain.values import Window
    from infra.eventstore.command_handler import CommandResult
    from projections.codes import CodeRow


class ShareEntry(Answer):
    brand_id: answered.BrandId
    channel: Annotated[Channel, Field(description="The channel over which it was shared.")]
    advertiser_id: Annotated[
        str | None, Field(description="The advertiser account it was shared with, if one was named.")
    ]
    shared_at: Annotated[answered.Moment, Field(description="The effective time.")]


class RedemptionEntry(Answer):
    advertiser_id: answered.AdvertiserId
    redeemed_at: Annotated[answered.Moment, Field(description="The effective time.")]


class BudgetEntry(Answer):
    amount: Annotated[str, Field(description="A decimal number as a string.", examples=["500.00"])]
    currency: Annotated[str, Field(description="ISO 4217.", examples=["USD"])]


class CampaignEntry(Answer):
    campaign_id: Annotated[str, Field(description="The campaign.", examples=["spring-sale"])]
    advertiser_id: answered.AdvertiserId
    name: Annotated[str | None, Field(description="A name for people.")]
    budget: Annotated[BudgetEntry, Field(description="The budget.")]
    targeting: Annotated[dict[str, Any] | None, Field(description="As it was sent.")]
    starts_at: Annotated[answered.Moment, Field(description="When it starts.")]
    ends_at: Annotated[answered.Moment, Field(description="The planned end.")]
    launched_at: Annotated[answered.Moment, Field(description="The effective time of the launch.")]
    ended_at: Annotated[answered.Moment | None, Field(description="When it was ended, if it was.")]
    stops_at: Annotated[
        answered.Moment,
        Field(
            description="When it stops or stopped: at its planned end, the end of the window or of the rights, or when "
            "it was ended."
        ),
    ]
    stop_reason: answered.StopReason
    running: Annotated[bool, Field(description="Whether it runs: launched and not stopped yet.")]


class UsageRightsEntry(Answer):
    """Usage rights as they were stated last. The reference to the contract is in the history, with the notes."""

    until: Annotated[answered.Moment | None, Field(description="When they end (excluded). Null if no end was agreed.")]
    platforms: Annotated[
        list[str] | None,
        Field(description="Where the video may be used. Null if nothing was stated.", examples=[["tiktok"]]),
    ]
    edits_allowed: Annotated[
        bool | None, Field(description="Whether the video may be edited. Null if nothing was stated.")
    ]
    stated_at: Annotated[answered.Moment, Field(description="The effective time of the statement.")]


class CodeSummary(Answer):
    """What every answer about a code has."""

    code_id: answered.CodeId
    masked: answered.Masked
    creator_id: answered.CreatorId
    video_id: answered.VideoId
    terms_version: Annotated[
        str, Field(description="The version of the advertising terms that the creator accepted.", examples=["2026-01"])
    ]
    generated_at: Annotated[answered.Moment, Field(description="The effective time.")]
    starts_at: answered.StartsAt
    expires_at: answered.ExpiresAt
    start_stated: answered.StartStated
    usage_rights: Annotated[
        UsageRightsEntry | None, Field(description="The usage rights beside the code. Null if nobody stated any.")
    ]
    ends_at: answered.EndsAt
    ends_by: answered.EndsBy
    supersedes: Annotated[UUID | None, Field(description="The code that this one superseded.")]
    superseded_by: Annotated[UUID | None, Field(description="The code that supersedes this one.")]
    superseded_at: Annotated[answered.Moment | None, Field(description="From when on it is superseded.")]
    revoked_at: Annotated[answered.Moment | None, Field(description="When it was revoked.")]
    state: answered.CodeState
    live: answered.Live


class CodeAnswer(CodeSummary):
    """A code as it is now. A brand's key sees only its own shares, redemptions and campaigns."""

    caption_sha256: answered.Hash
    creative_sha256: answered.Hash
    shares: Annotated[list[ShareEntry], Field(description="The shares, oldest first.")]
    redemptions: Annotated[list[RedemptionEntry], Field(description="The redemptions, oldest first.")]
    campaigns: Annotated[list[CampaignEntry], Field(description="The campaigns, oldest first.")]
    warnings: Annotated[
        list[str],
        Field(
            description="Warnings, one sentence each. Keys of brands get only those about their own campaigns.",
            examples=[["The campaign will stop on 2026-03-31 at 12:00 UTC, when the code's window ends."]],
        ),
    ]
    version: answered.Version
    position: Annotated[answered.Position, Field(description="The position of the code's last event.")]


def code_answer(
    result: CommandResult[Code],
    caller: Caller,
    status: int,
    headers: Mapping[str, str] | None = None,
    *,
    warnings: Sequence[str] = (),
    **more: Any,
) -> Response:
    """Answer a command on a code with the code after it, and with what the command warns of."""
    code = result.aggregate
    assert code is not None  # noqa: S101 - only an unknown creator has no aggregate
    content = code_content(code, caller, now=result.recorded_at, position=result.position)
    content.update(more)
    content["warnings"] += warnings
    sent = command_headers(result, code.command_version)
    if headers is not None:
        sent.update(headers)
    return answer(content, status, sent)


def code_summary(code: Code | CodeRow, code_id: UUID, window: Window, now: datetime, *, whole: bool) -> dict[str, Any]:
    """Return what every answer about a code has, in the order of `CodeSummary`; a brand sees not the `whole` of it."""
    end = code.effective_end
    return {
        "code_id": code_id,
        "masked": code.masked,
        "creator_id": code.creator_id,
        "video_id": code.video_id,
        "terms_version": code.terms_version,
        "generated_at": code.generated_at,
        "starts_at": window.starts_at,
        "expires_at": window.expires_at,
        "start_stated": code.start_stated,
        "usage_rights": _rights(code),
        "ends_at": end.at,
        "ends_by": end.by,
        "supersedes": code.supersedes if whole else None,
        "superseded_by": code.superseded_by if whole else None,
        "superseded_at": code.superseded_at,
        "revoked_at": code.revoked_at,
        "state": code.state(now),
        "live": code.live(now),
    }


def _rights(code: Code | CodeRow) -> dict[str, Any] | None:
    stated = code.usage_rights
    if stated is None:
        return None
    rights = stated.rights
    return {
        "until": rights.until,
        "platforms": rights.platforms,
        "edits_allowed": rights.edits_allowed,
        "stated_at": stated.at,
    }


def code_content(
    code: Code, caller: Caller, *, now: datetime, position: int, entries: int | None = None
) -> dict[str, Any]:
    """Return a code as the caller may see it: a brand sees only its own shares, redemptions and campaigns.

    Args:
        code: the code.
        caller: who sees it.
        now: the moment of its state.
        position: that of its last event.
        entries: at most so many of the shares, redemptions and campaigns each, with `counts` of all; None is all of
            them, without counts.

    """
    whole = caller.key.role != "brand"
    running: set[str] = set()
    campaigns: list[Campaign] = []
    if code.launches:
        running = {campaign.campaign_id for campaign in code.running(now)}  # computed from all facts, so once
        campaigns = list(code.campaigns.values())
    shares, redemptions = list(code.shares.items()), list(code.redemptions.items())
    if not whole:
        ours = caller.is_party_to
        shares = [one for one in shares if ours((one[0].brand_id,), (one[0].advertiser_id,))]
        redemptions = [one for one in redemptions if ours((), (one[0],))]
        campaigns = [campaign for campaign in campaigns if ours((), (campaign.advertiser_id,))]
    content = {
        **code_summary(code, code.id, code.window, now, whole=whole),
        "caption_sha256": code.caption_sha256,
        "creative_sha256": code.creative_sha256,
        "shares": [
            {
                "brand_id": share.brand_id,
                "channel": share.channel,
                "advertiser_id": share.advertiser_id,
                "shared_at": shared_at,
            }
            for share, shared_at in shares[:entries]
        ],
        "redemptions": [
            {"advertiser_id": advertiser_id, "redeemed_at": redeemed_at}
            for advertiser_id, redeemed_at in redemptions[:entries]
        ],
        "campaigns": [
            _campaign(campaign, code, running=campaign.campaign_id in running) for campaign in campaigns[:entries]
        ],
        "warnings": _warnings(code) if whole else [],
        "version": code.command_version,
        "position": position,
    }
    if entries is not None:
        content["counts"] = {
            "shares": len(shares),
            "redemptions": len(redemptions),
            "campaigns": len(campaigns),
            "running": sum(campaign.campaign_id in running for campaign in campaigns),
        }
    return content


def _warnings(code: Code) -> list[str]:
    """Return a sentence for each thing that anyone who reads the whole code should know."""
    count = code.recorded_after_revocation
    if count == 0:
        return []
    kinds = "shares, redemptions, campaigns, extensions or supersessions"
    facts = f"{count} {kinds} are" if count > 1 else "1 share, redemption, campaign, extension or supersession is"
    return [f"{facts} recorded as of the revocation or later. They stay in the history, and authorize nothing."]


def _campaign(campaign: Campaign, code: Code, *, running: bool) -> dict[str, Any]:
    stop = code.stop(campaign)
    return {
        "campaign_id": campaign.campaign_id,
        "advertiser_id": campaign.advertiser_id,
        "name": campaign.name,
        "budget": {"amount": campaign.amount, "currency": campaign.currency},
        "targeting": campaign.targeting,
        "starts_at": campaign.starts_at,
        "ends_at": campaign.ends_at,
        "launched_at": campaign.launched_at,
        "ended_at": campaign.ended_at,
        "stops_at": stop.at,
        "stop_reason": STOP_REASONS[stop.by],
        "running": running,
    }
