"""What a code is used in: the shares that hand it over, and the campaigns that run on it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from domain.values import Channel


@dataclass(frozen=True, slots=True)
class Campaign:
    """An ad on a redeemed code, as it was launched; `ended_at` is set by `CampaignEnded` alone."""

    campaign_id: str
    advertiser_id: str
    amount: str
    currency: str
    starts_at: datetime
    ends_at: datetime
    name: str | None = None
    targeting: Any = None
    caption_sha256: str | None = None
    creative_sha256: str | None = None
    launched_at: datetime | None = None
    ended_at: datetime | None = None

    def same_as(self, other: Campaign) -> bool:
        """Tell whether both were launched with the same details, whatever became of them."""
        return replace(self, launched_at=None, ended_at=None) == replace(other, launched_at=None, ended_at=None)


@dataclass(frozen=True, slots=True)
class Share:
    """The code was handed to a brand over a channel; a note is compared by its fingerprint, its text is sealed."""

    brand_id: str
    channel: Channel
    advertiser_id: str | None = None
    note_fingerprint: str | None = None
