"""The list of campaigns as it was: as the ledger knew it at a position or a time, or as it was true at a moment.

Like the list of codes as it was: which campaigns there were by then, a view tells, and how each was is read from the
stream of its code. The campaign that was recorded last comes first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from api.past_codes import code_as_it_was
from domain.campaign import STOP_REASONS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from api.http.caller import Caller
    from api.past_codes import Moment
    from domain.campaign import StopReason
    from domain.code import Code
    from projections.campaigns import CampaignRow

# Campaigns that are read at a time, and at most for one page.
CAMPAIGNS_AT_ONCE: Final = 100
MAX_CAMPAIGNS_READ: Final = 1_000


@dataclass(frozen=True, slots=True)
class PastCampaignFilters:
    """What a campaign must have been to be in the list; None for anything."""

    running: bool | None = None
    stop_reason: StopReason | None = None
    stops_from: datetime | None = None
    stops_before: datetime | None = None

    def passes(self, row: CampaignRow, clock: datetime) -> bool:
        """Return whether a campaign was that."""
        return (
            (self.running is None or row.running(clock) == self.running)
            and (self.stop_reason is None or row.stop_reason == self.stop_reason)
            and (self.stops_from is None or row.stops_at >= self.stops_from)
            and (self.stops_before is None or row.stops_at < self.stops_before)
        )


async def past_campaigns(
    caller: Caller,
    moment: Moment,
    filters: PastCampaignFilters,
    candidates: Callable[[int, int], Awaitable[list[CampaignRow]]],
    *,
    after_key: int | None,
    limit: int,
) -> tuple[list[CampaignRow], int | None]:
    """Return the campaigns that pass the filters, as they were, and the place after which the next page begins.

    Args:
        caller: who asks.
        moment: as of when.
        filters: what the campaigns must have been.
        candidates: reads campaigns as they are now: so many, those that were recorded before a position, the last
            first.
        after_key: the place after which the page begins.
        limit: how many campaigns at most.

    """
    key = moment.position + 1 if after_key is None else min(moment.position + 1, after_key)
    found: list[CampaignRow] = []
    read = 0
    while read < MAX_CAMPAIGNS_READ:
        rows = await candidates(key, CAMPAIGNS_AT_ONCE)
        streams = await caller.services.events.streams(caller.ledger_id, list({row.code_id for row in rows}))
        built: dict[Any, Code | None] = {}
        for row in rows:
            key, read = row.position, read + 1
            if row.code_id not in built:
                past = code_as_it_was(streams.get(row.code_id, []), moment)
                built[row.code_id] = None if past is None else past[0]
            campaign = _as_it_was(row, built[row.code_id])
            if campaign is not None and filters.passes(campaign, moment.clock):
                found.append(campaign)
                if len(found) == limit:
                    return found, key
        if len(rows) < CAMPAIGNS_AT_ONCE:
            return found, None
    return found, key


def _as_it_was(row: CampaignRow, code: Code | None) -> CampaignRow | None:
    """Return a campaign as it was; None if it was not there yet."""
    if code is None or row.campaign_id not in code.launches:
        return None
    campaign = code.campaigns[row.campaign_id]
    stop = code.stop(campaign)
    assert campaign.launched_at is not None  # noqa: S101 - it was launched
    return type(row)(
        ledger_id=row.ledger_id,
        position=row.position,
        code_id=row.code_id,
        creator_id=row.creator_id,
        video_id=row.video_id,
        campaign_id=row.campaign_id,
        advertiser_id=campaign.advertiser_id,
        name=campaign.name,
        amount=campaign.amount,
        currency=campaign.currency,
        starts_at=campaign.starts_at,
        ends_at=campaign.ends_at,
        expires_at=code.window.expires_at,
        launched_at=campaign.launched_at,
        ended_at=campaign.ended_at,
        cause=campaign.ended_by,
        stops_at=stop.at,
        stop_reason=STOP_REASONS[stop.by],
    )
