"""Each code's current state for the compacted topic: folded from the log as it is published, with the secret masked.

The state depends only on events, not on the time: readers compare `expires_at` with their clock. Lists contain their
newest entries only, and counts count all of them, so that a state always fits into a record; `truncated` says whether
entries were left out. A code never ceases to be, so its record is never deleted: the codes of an erased creator get one
more, which says so.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final, cast

import orjson

from domain.code import Code, replay_code

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from collections.abc import Set as AbstractSet
    from uuid import UUID

    from domain.campaign import Campaign
    from domain.recorded import RecordedEvent

# Codes that are kept in memory, so that their streams are not read again with each page.
CACHED_MAX: Final = 10_000
# The newest shares, redemptions and campaigns of a state. Their names take 64 KiB at most.
ENTRIES_MAX: Final = 100


class CodeStates:
    """The codes of a log as of the last event that was applied."""

    def __init__(self, read: Callable[[int, Mapping[UUID, int]], Mapping[UUID, Sequence[RecordedEvent]]]) -> None:
        """Take a function that reads streams of a ledger: for each, the events before a version."""
        self._read = read
        self._codes: OrderedDict[UUID, Code] = OrderedDict()

    def apply(self, ledger_id: int, page: Sequence[RecordedEvent], newest: AbstractSet[int]) -> list[RecordedEvent]:
        """Fold a ledger's next events; return the events after which a code's state is to be published.

        These are the events that are the newest of their codes. A code that changes again further on in the log is
        published then, so that a reader who is behind does not receive outdated states.

        Args:
            ledger_id: the ledger.
            page: its next events, in order.
            newest: the positions among them that are the newest of their streams.

        """
        of_codes = [recorded for recorded in page if isinstance(recorded.event, Code.Event)]
        created = {recorded.stream_id for recorded in of_codes if recorded.stream_version == 1}
        published = [recorded for recorded in of_codes if recorded.position in newest]
        missing = {
            recorded.stream_id: recorded.stream_version
            for recorded in published
            if recorded.stream_id not in self._codes and recorded.stream_id not in created
        }
        if missing:
            for stream_id, stream in self._read(ledger_id, missing).items():
                self._codes[stream_id] = replay_code(stream)
        for recorded in of_codes:
            stream_id = recorded.stream_id
            code = self._codes.get(stream_id)
            # A stream that was just read is up to date already. A code that is not published yet is not folded.
            if recorded.stream_version == 1 or (code and recorded.stream_version > code.version):
                self._codes[stream_id] = cast("Code", recorded.event.mutate(code))
                self._codes.move_to_end(stream_id)
        return published

    def content(self, ledger_name: str, recorded: RecordedEvent, *, creator_erased: bool) -> bytes:
        """Return the JSON of a code's state after its last event, which is given."""
        return state_json(self._codes[recorded.stream_id], ledger_name, recorded, creator_erased=creator_erased)

    def evict(self) -> None:
        """Drop the codes that were not used for the longest time, beyond the limit of the cache."""
        while len(self._codes) > CACHED_MAX:
            self._codes.popitem(last=False)


def state_json(code: Code, ledger_name: str, recorded: RecordedEvent, *, creator_erased: bool) -> bytes:
    """Return the JSON of a code's state after an event."""
    return orjson.dumps(
        state_content(code, ledger_name, recorded, creator_erased=creator_erased), option=orjson.OPT_UTC_Z
    )


def state_content(
    code: Code, ledger_name: str, recorded: RecordedEvent, *, creator_erased: bool = False
) -> dict[str, Any]:
    """Return a code after an event, with the field names of the API."""
    campaigns, end = code.campaigns, code.effective_end
    return {
        "ledger": ledger_name,
        "code_id": code.id,
        "masked": code.masked,
        "creator_id": code.creator_id,
        "video_id": code.video_id,
        "terms_version": code.terms_version,
        "generated_at": code.generated_at,
        "starts_at": code.window.starts_at,
        "expires_at": code.window.expires_at,
        "usage_rights": _rights(code),
        "ends_at": end.at,
        "ends_by": end.by,
        "revoked_at": code.revoked_at,
        "state": code.state(recorded.recorded_at),
        "caption_sha256": code.caption_sha256,
        "creative_sha256": code.creative_sha256,
        "share_count": len(code.shares),
        "shares": [
            {
                "brand_id": share.brand_id,
                "channel": share.channel,
                "advertiser_id": share.advertiser_id,
                "shared_at": shared_at,
            }
            for share, shared_at in _newest(code.shares)
        ],
        "redemption_count": len(code.redemptions),
        "redemptions": [
            {"advertiser_id": advertiser_id, "redeemed_at": redeemed_at}
            for advertiser_id, redeemed_at in _newest(code.redemptions)
        ],
        "campaign_count": len(campaigns),
        "campaigns": [_campaign(campaign, code) for _, campaign in _newest(campaigns)],
        "truncated": max(len(code.shares), len(code.redemptions), len(campaigns)) > ENTRIES_MAX,
        "erased": creator_erased,
        "version": code.command_version,
        "stream_version": recorded.stream_version,
        "position": recorded.position,
        "recorded_at": recorded.recorded_at,
    }


def _rights(code: Code) -> dict[str, Any] | None:
    """Return the usage rights of a code, without the contract; None if nobody stated any."""
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


def _newest(entries: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    listed = list(entries.items())
    return listed[-ENTRIES_MAX:]


def _campaign(campaign: Campaign, code: Code) -> dict[str, Any]:
    return {
        "campaign_id": campaign.campaign_id,
        "advertiser_id": campaign.advertiser_id,
        "budget": {"amount": campaign.amount, "currency": campaign.currency},
        "starts_at": campaign.starts_at,
        "ends_at": campaign.ends_at,
        "stops_at": code.stops_at(campaign),
        "launched_at": campaign.launched_at,
        "ended_at": campaign.ended_at,
    }
