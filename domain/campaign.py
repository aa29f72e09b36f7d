"""Shares and campaigns of a code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple

from domain.values import Channel

# What stops a campaign: its code, because its window ends or it is revoked; the usage rights; or the campaign itself.
StopReason = Literal["code_end", "rights_end", "campaign_end"]
EndedBy = Literal["campaign_end", "ended", "code_expired", "code_revoked", "rights_ended"]


STOP_REASONS: Final[Mapping[EndedBy, StopReason]] = {
    "campaign_end": "campaign_end",
    "ended": "campaign_end",
    "code_expired": "code_end",
    "code_revoked": "code_end",
    "rights_ended": "rights_end",
}


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
        """Return whether both were launched with the same details, whatever happened to them later."""
        return self._as_launched() == other._as_launched()

    def _as_launched(self) -> Campaign:
        return replace(self, amount=two_decimals(self.amount), launched_at=None, ended_at=None, ended_by=None)


def two_decimals(amount: str) -> str:
    """Return an amount in the one form in which it is recorded: `5`, `5.0` and `5.00` are the same."""
    whole, _, decimals = amount.partition(".")
    return f"{whole}.{decimals:0<2}"


class CampaignStop(NamedTuple):
    """When a campaign stops or stopped, and what stops it: its own end, somebody, or the end of its code or rights."""

    at: datetime
    by: EndedBy


def first_stop(
    ends_at: datetime,
    *,
    ended_at: datetime | None = None,
    lapses_at: datetime | None = None,
    revoked_at: datetime | None = None,
    rights_end_at: datetime | None = None,
) -> CampaignStop:
    """Return what stops a campaign first; at the same time, the first of these.

    Args:
        ends_at: its own end.
        ended_at: when somebody ended it.
        lapses_at: the first end of its code's window after its launch.
        revoked_at: when its code was revoked, or its launch if that was later.
        rights_end_at: the first time after its launch at which the usage rights had ended.

    """
    moments: dict[EndedBy, datetime | None] = {
        "campaign_end": ends_at,
        "ended": ended_at,
        "code_expired": lapses_at,
        "code_revoked": revoked_at,
        "rights_ended": rights_end_at,
    }
    known = {by: moment for by, moment in moments.items() if moment is not None}
    first = min(known, key=known.__getitem__)
    return CampaignStop(known[first], first)


@dataclass(frozen=True, slots=True)
class Share:
    """A share of the code with a brand over a channel. A note is compared by its fingerprint. Its text is sealed."""

    brand_id: str
    channel: Channel
    advertiser_id: str | None = None
    note_fingerprint: str | None = None
