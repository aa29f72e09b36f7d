"""What is answered: how a code, a permission and a key look from outside, and the bytes that are sent.

Answers are built from plain values and never validated on the way out; the models in `answer_models` describe them,
and the tests hold the two together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson
from starlette.responses import Response

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from api.http.caller import Caller
    from domain.authorization import Verdict
    from domain.campaign import Campaign
    from domain.code import Code
    from infra.auth.api_keys import ApiKey
    from infra.eventstore.command_handler import CommandResult
    from projections.codes import CodeRow

NO_STORE: Final = {"Cache-Control": "no-store"}


def answer(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return JSON: times in UTC with Z, ids as text."""
    return Response(orjson.dumps(content, option=orjson.OPT_UTC_Z), status, headers, "application/json")


def stands(version: int, position: int) -> dict[str, str]:
    """Return the headers that say which version an answer shows, and how far into the ledger it has read."""
    return {"ETag": f'"{version}"', "Ledger-Position": str(position)}


def replayed(done: CommandResult[Any]) -> dict[str, str]:
    """Return the header that says that an answer is the first one, told again."""
    return {"Idempotent-Replayed": "true"} if done.replayed else {}


def created_or_repeated(done: CommandResult[Any]) -> int:
    """Return 201 where the command recorded something, also when that is told again, and 200 for a repeat."""
    return 201 if done.appended or done.replayed else 200


def code_content(code: Code, caller: Caller, *, now: datetime, position: int) -> dict[str, Any]:
    """Return a code as the caller may see it: a brand sees its own shares, redemptions and campaigns alone."""
    ours = caller.names_us if caller.role == "brand" else _everyone
    return {
        "code_id": code.id,
        "masked": code.masked,
        "creator_id": code.creator_id,
        "video_id": code.video_id,
        "terms_version": code.terms_version,
        "generated_at": code.generated_at,
        "starts_at": code.window.starts_at,
        "expires_at": code.window.expires_at,
        "revoked_at": code.revoked_at,
        "state": code.state(now),
        "live": code.live(now),
        "caption_sha256": code.caption_sha256,
        "creative_sha256": code.creative_sha256,
        "shares": [
            {
                "brand_id": share.brand_id,
                "channel": share.channel,
                "advertiser_id": share.advertiser_id,
                "shared_at": shared_at,
            }
            for share, shared_at in code.shares.items()
            if ours((share.brand_id,), (share.advertiser_id,))
        ],
        "redemptions": [
            {"advertiser_id": advertiser_id, "redeemed_at": redeemed_at}
            for advertiser_id, redeemed_at in code.redemptions.items()
            if ours((), (advertiser_id,))
        ],
        "campaigns": [
            _campaign(campaign, code, now)
            for campaign in code.campaigns.values()
            if ours((), (campaign.advertiser_id,))
        ],
        "version": code.command_version,
        "position": position,
    }


def row_content(row: CodeRow, caller: Caller, *, now: datetime) -> dict[str, Any]:
    """Return a code as the list shows it, to a brand with its own names alone."""
    brand_ids, advertiser_ids = row.brand_ids, row.advertiser_ids
    if caller.role == "brand":
        brand_ids = brand_ids & caller.key.subjects.brand_ids
        advertiser_ids = advertiser_ids & caller.key.subjects.advertiser_ids
    return {
        "code_id": row.code_id,
        "masked": row.masked,
        "creator_id": row.creator_id,
        "video_id": row.video_id,
        "terms_version": row.terms_version,
        "generated_at": row.generated_at,
        "starts_at": row.starts_at,
        "expires_at": row.expires_at,
        "revoked_at": row.revoked_at,
        "state": row.state(now),
        "live": row.live(now),
        "brand_ids": sorted(brand_ids),
        "advertiser_ids": sorted(advertiser_ids),
        "version": row.version,
        "position": row.position,
    }


def verdict_content(told: Verdict) -> dict[str, Any]:
    """Return the answer to the question, without what was asked."""
    return {
        "authorized": told.authorized,
        "reason": told.reason,
        "code_id": told.code_id,
        "starts_at": told.starts_at,
        "expires_at": told.expires_at,
        "permission_enabled": told.permission_enabled,
        "shared": told.shared,
        "evidence": told.evidence,
    }


def code_answer(
    done: CommandResult[Code], caller: Caller, status: int, headers: Mapping[str, str] | None = None, **more: Any
) -> Response:
    """Answer a command on a code with the code as it then stood."""
    code = done.aggregate
    assert code is not None  # noqa: S101 - only an unknown creator has no aggregate
    content = code_content(code, caller, now=done.recorded_at, position=done.position) | more
    return answer(content, status, {**stands(code.command_version, done.position), **replayed(done), **(headers or {})})


def warnings(code: Code, campaign_id: str) -> list[str]:
    """Return a sentence for each thing that whoever launched a campaign should know."""
    campaign = code.campaigns[campaign_id]
    stops_at = code.stops_at(campaign)
    if stops_at >= campaign.ends_at:
        return []
    return [
        f"The campaign will stop on {stops_at:%Y-%m-%d at %H:%M} UTC, when the code's window ends, before its own end."
    ]


def key_content(key: ApiKey) -> dict[str, Any]:
    """Return what may be known of a key: everything but its text."""
    return {
        "key_id": key.key_id,
        "ledger": key.ledger_name,
        "role": key.role,
        "name": key.name,
        "subjects": {
            "creator_ids": sorted(key.subjects.creator_ids),
            "brand_ids": sorted(key.subjects.brand_ids),
            "advertiser_ids": sorted(key.subjects.advertiser_ids),
        },
        "may_reveal": key.reveals,
        "kind": key.kind,
        "subject": key.subject,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "last_used_at": key.last_used_at,
        "overlap_ends_at": key.overlap_ends_at,
    }


def _everyone(_brand_ids: object, _advertiser_ids: object) -> bool:
    return True


def _campaign(campaign: Campaign, code: Code, now: datetime) -> dict[str, Any]:
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
        "stops_at": code.stops_at(campaign),
        "running": campaign in code.running(now),
    }
