"""The view of history: every event once, found by all that it concerns, in both directions."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from domain.recorded import Recorded
from domain.values import Actor
from projections import history
from projections.history import EntryRow
from tests import given
from tests.given import ADVERTISER, BRAND, CODE, CREATOR, NOW, OTHER_CODE, OTHER_SECRET, VIDEO, Story
from tests.projections.conftest import Cursor, Followed
from tests.projections.memory_log import MemoryLog

DAY = timedelta(days=1)


def entry(recorded: Recorded, **named: Any) -> tuple[Any, ...]:
    """What an event's row holds, given what the event names."""
    row = EntryRow(
        ledger_id=1,
        position=recorded.position,
        type=recorded.type,
        code_id=named.get("code_id"),
        creator_stream=recorded.creator_stream,
        creator_id=named.get("creator_id"),
        video_id=named.get("video_id"),
        brand_id=named.get("brand_id"),
        advertiser_id=named.get("advertiser_id"),
        actor="key-1",
        recorded_at=recorded.recorded_at,
        effective_at=recorded.effective_at,
    )
    return tuple(getattr(row, column) for column in history.HISTORY.columns)


async def test_every_event_leaves_a_row_with_what_it_names(follow: Followed, worker: Cursor) -> None:
    story = given.permission_off().later(hours=1)
    story.when(given.revoke(), effective_at=NOW)
    await follow(history.VIEW, MemoryLog(story))
    await worker.execute("SELECT * FROM views.history ORDER BY position")
    on, generated, shared, redeemed, off, revoked = story.ledger.events
    assert await worker.fetchall() == [
        entry(on, creator_id=CREATOR),
        entry(generated, code_id=CODE, creator_id=CREATOR, video_id=VIDEO),
        entry(shared, code_id=CODE, brand_id=BRAND, advertiser_id=ADVERTISER),
        entry(redeemed, code_id=CODE, advertiser_id=ADVERTISER),
        entry(off, creator_id=CREATOR),
        entry(revoked, code_id=CODE),
    ]
    assert revoked.effective_at == NOW != revoked.recorded_at


def told() -> Story:
    """Two creators with a code each on two videos, a day between events, and a second key.

    1 on(creator-1) 2 generated 3 shared 4 redeemed 5 on(creator-2) 6 generated 7 shared 8 redeemed 9 revoked(the first)
    """
    story = given.unknown()
    other = Actor(key_id="key-2", role="operator")
    for command, actor in (
        (given.permission(), given.OPERATOR),
        (given.generate(), given.OPERATOR),
        (given.share(), given.OPERATOR),
        (given.redeem(), given.OPERATOR),
        (given.permission(creator_id="creator-2"), other),
        (given.generate(OTHER_CODE, creator_id="creator-2", video_id="video-2", secret=OTHER_SECRET), other),
        (given.share(OTHER_CODE, brand_id="brand-2", advertiser_id=ADVERTISER), other),
        (given.redeem(OTHER_SECRET, advertiser_id="advertiser-2"), other),
        (given.revoke(), other),
    ):
        story.when(command, actor=actor)
        story.later(days=1)
    return story


FILTERS: list[tuple[dict[str, Any], list[int]]] = [
    ({}, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
    ({"code_id": CODE}, [2, 3, 4, 9]),
    ({"creator_ids": [CREATOR]}, [1, 2, 3, 4, 9]),
    ({"creator_ids": ["creator-2"]}, [5, 6, 7, 8]),
    ({"creator_ids": [CREATOR, "creator-2"], "type": "Shared"}, [3, 7]),
    ({"creator_ids": ["nobody"]}, []),
    ({"creator_ids": []}, []),
    ({"video_id": "video-2"}, [6, 7, 8]),
    ({"video_id": "video-3"}, []),
    ({"advertiser_id": ADVERTISER}, [3, 4, 7]),
    ({"actor": "key-2"}, [5, 6, 7, 8, 9]),
    ({"type": "Redeemed"}, [4, 8]),
    ({"type": "Redeemed", "actor": "key-2"}, [8]),
    ({"recorded_from": NOW + 3 * DAY}, [4, 5, 6, 7, 8, 9]),
    ({"recorded_before": NOW + 3 * DAY}, [1, 2, 3]),
    ({"recorded_from": NOW + 2 * DAY, "recorded_before": NOW + 5 * DAY}, [3, 4, 5]),
    ({"recorded_from": NOW + 90 * DAY}, []),
    ({"recorded_before": NOW}, []),
    ({"after": 3, "before": 7}, [4, 5, 6]),
    ({"code_id": CODE, "after": 3}, [4, 9]),
]


async def test_events_are_found_in_both_directions_by_every_filter(follow: Followed, api: Cursor) -> None:
    await follow(history.VIEW, MemoryLog(told()))

    async def found(*, descending: bool) -> list[tuple[dict[str, Any], list[int]]]:
        return [
            (filters, await history.search(api, 1, limit=100, descending=descending, **filters))
            for filters, _ in FILTERS
        ]

    assert await found(descending=False) == FILTERS
    assert await found(descending=True) == [(filters, expected[::-1]) for filters, expected in FILTERS]


async def test_pages_of_positions_together_are_the_whole(follow: Followed, api: Cursor) -> None:
    await follow(history.VIEW, MemoryLog(told()))
    onwards = [await history.search(api, 1, limit=2, after=after, creator_ids=[CREATOR]) for after in (0, 2, 4, 9)]
    back = [
        await history.search(api, 1, limit=2, before=before, descending=True, creator_ids=[CREATOR])
        for before in (None, 4, 2, 1)
    ]
    assert onwards == [[1, 2], [3, 4], [9], []]
    assert back == [[9, 4], [3, 2], [1], []]


async def test_another_ledgers_history_is_hidden(follow: Followed, api: Cursor) -> None:
    await follow(history.VIEW, MemoryLog(given.permitted(), told()))
    assert await history.search(api, 1, limit=100) == [1]
    assert await history.search(api, 2, limit=100) == []
