"""Shares and campaigns of a code."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from domain.values import Channel


@dataclass(frozen=True, slots=True)
class Campaign:
    """A campaign on a redeemed code, as it was launched, and its recorded end, if there is a valid one.

    `ended_by` is `ended` (by somebody), `code_expired` or `code_revoked`.
    """

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
    ended_by: str | None = None

    def same_as(self, other: Campaign) -> bool:
        """Tell whether both were launched with the same details, whatever happened to them later."""
        return self._as_launched() == other._as_launched()

    def _as_launched(self) -> Campaign:
        return replace(self, launched_at=None, ended_at=None, ended_by=None)


def undone(ended_at: datetime | None, cause: str | None, extended_at: datetime) -> bool:
    """Tell whether a recorded end of a campaign did not happen, because its code's window was extended before it.

    The extension was recorded after that end and took effect before it, so the window had not ended.
    """
    return cause == "code_expired" and ended_at is not None and extended_at < ended_at


@dataclass(frozen=True, slots=True)
class Share:
    """A share of the code with a brand over a channel. A note is compared by its fingerprint. Its text is sealed."""

    brand_id: str
    channel: Channel
    advertiser_id: str | None = None
    note_fingerprint: str | None = None
