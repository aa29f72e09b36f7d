"""The event index: every event once, with what it may be searched by."""

from __future__ import annotations

from typing import Any

from domain.recorded import RecordedEvent
from projections import event_index
from projections.event_index import EventIndexRow
from tests import given
from tests.given import ADVERTISER, BRAND, CODE, CREATOR, NOW, VIDEO
from tests.projections.conftest import Cursor, Followed
from tests.projections.memory_log import MemoryLog


def entry(recorded: RecordedEvent, **named: Any) -> tuple[Any, ...]:
    """What an event's row holds, given what the event names."""
    row = EventIndexRow(
        ledger_id=1,
        position=recorded.position,
        type=recorded.type,
        code_id=named.get("code_id"),
        creator_stream=recorded.creator_stream,
        creator_id=named.get("creator_id"),
        video_id=named.get("video_id"),
        brand_id=named.get("brand_id"),
        advertiser_id=named.get("advertiser_id"),
        channel=named.get("channel"),
        refused=named.get("refused"),
        actor="key-1",
        source="operator",
        recorded_at=recorded.recorded_at,
        effective_at=recorded.effective_at,
        late=named.get("late", False),
        causation_id=recorded.causation_id,
    )
    return tuple(getattr(row, column) for column in event_index.EVENT_INDEX.columns)


async def test_every_event_leaves_a_row_with_what_it_names(follow: Followed, worker: Cursor) -> None:
    story = given.permission_off().later(hours=2)
    story.when(given.revoke(), effective_at=NOW)
    assert story.outcome(given.redeem()) == "RedemptionRefused code_revoked"
    await follow(event_index.VIEW, MemoryLog(story))
    await worker.execute("SELECT * FROM views.history ORDER BY position")
    on, generated, shared, redeemed, off, revoked, refused = story.ledger.events
    assert await worker.fetchall() == [
        entry(on, creator_id=CREATOR),
        entry(generated, code_id=CODE, creator_id=CREATOR, video_id=VIDEO),
        entry(shared, code_id=CODE, brand_id=BRAND, advertiser_id=ADVERTISER, channel="dm"),
        entry(redeemed, code_id=CODE, advertiser_id=ADVERTISER),
        entry(off, creator_id=CREATOR),
        entry(revoked, code_id=CODE, late=True),
        entry(refused, code_id=CODE, advertiser_id=ADVERTISER, refused="code_revoked"),
    ]
    assert revoked.effective_at == NOW != revoked.recorded_at
