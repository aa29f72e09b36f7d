"""The view of permissions: each creator's switch as it stands."""

from __future__ import annotations

from datetime import timedelta

from projections import permissions
from projections.permissions import PermissionRow
from tests import given
from tests.given import CREATOR, NOW
from tests.projections.conftest import Cursor, Followed
from tests.projections.memory_log import MemoryLog


async def test_a_permission_stands_as_it_was_last_switched(follow: Followed, api: Cursor) -> None:
    story = given.after(given.permitted(), given.permission(creator_id="creator-2")).later(hours=1)
    story.when(given.permission(enabled=False))
    story.later(hours=1).when(given.permission(enabled=True))
    story.when(given.permission(enabled=False), effective_at=NOW + timedelta(minutes=90))
    first, other = story.ledger.events[:2]
    await follow(permissions.VIEW, MemoryLog(story))
    assert [await permissions.one(api, 1, creator) for creator in (CREATOR, "creator-2", "creator-3")] == [
        PermissionRow(1, CREATOR, first.stream_id, False, NOW + timedelta(minutes=90), 4, 5),
        PermissionRow(1, "creator-2", other.stream_id, True, NOW, 1, 2),
        None,
    ]


async def test_a_permission_of_another_ledger_is_unknown(follow: Followed, api: Cursor) -> None:
    await follow(permissions.VIEW, MemoryLog(given.unknown(), given.permitted()))
    assert await permissions.one(api, 1, CREATOR) is None
