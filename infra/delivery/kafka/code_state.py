"""Each code's current state for the compacted topic: folded from the log as it is published, the secret masked.

The state is a code as its events made it, no clock: whoever reads it compares `expires_at` with the time. The newest
entries of each list are shown and all are counted, so that no state outgrows a message.
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

# Codes remembered, so that a page of events does not read the whole stream of each code again.
REMEMBERED_MAX: Final = 10_000
# The newest shares, redemptions and campaigns that a state shows; with 64 KiB of names at the very most.
ENTRIES_MAX: Final = 100


class CodeStates:
    """The codes of a log as they stand at the last event taken in."""

    def __init__(self, read: Callable[[int, Mapping[UUID, int]], Mapping[UUID, Sequence[RecordedEvent]]]) -> None:
        """Take what reads streams of a ledger: for each, the events before a version."""
        self._read = read
        self._codes: OrderedDict[UUID, Code] = OrderedDict()

    def apply(self, ledger_id: int, page: Sequence[RecordedEvent], newest: AbstractSet[int]) -> list[RecordedEvent]:
        """Fold a ledger's next events; return the newest event of each code that has none further on in the log.

        A code that changes again further on is told about then: a reader who comes late is spared what no longer holds.

        Args:
            ledger_id: the ledger.
            page: its next events, in order.
            newest: the positions among them that are the last of their streams.

        """
        ours = [recorded for recorded in page if isinstance(recorded.event, Code.Event)]
        begun = {recorded.stream_id for recorded in ours if recorded.stream_version == 1}
        told = [recorded for recorded in ours if recorded.position in newest]
        missing = {
            recorded.stream_id: recorded.stream_version
            for recorded in told
            if recorded.stream_id not in self._codes and recorded.stream_id not in begun
        }
        if missing:
            for stream_id, stream in self._read(ledger_id, missing).items():
                self._codes[stream_id] = replay_code(stream)
        for recorded in ours:
            stream_id = recorded.stream_id
            code = self._codes.get(stream_id)
            # What was just read is there up to its newest event; what nobody asks for yet is not built up.
            if recorded.stream_version == 1 or (code and recorded.stream_version > code.version):
                self._codes[stream_id] = cast("Code", recorded.event.mutate(code))
                self._codes.move_to_end(stream_id)
        return told

    def content(self, ledger_name: str, recorded: RecordedEvent) -> bytes:
        """Return a code's state as JSON, as it stands after the last event taken in, which is given."""
        return orjson.dumps(
            state_content(self._codes[recorded.stream_id], ledger_name, recorded), option=orjson.OPT_UTC_Z
        )

    def forget(self) -> None:
        """Let go of the codes that were longest untouched, beyond those that are remembered."""
        while len(self._codes) > REMEMBERED_MAX:
            self._codes.popitem(last=False)


def state_content(code: Code, ledger_name: str, recorded: RecordedEvent) -> dict[str, Any]:
    """Return a code as it stands after an event, under the names that answers have."""
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
        "campaign_count": len(code.campaigns),
        "campaigns": [_campaign(campaign, code) for _, campaign in _newest(code.campaigns)],
        "version": code.command_version,
        "stream_version": recorded.stream_version,
        "position": recorded.position,
        "recorded_at": recorded.recorded_at,
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
