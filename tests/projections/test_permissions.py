"""The view of permissions: each creator's switch."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from psycopg.sql import SQL

from projections import permissions
from projections.engine.paging import ListQuery
from projections.permissions import PermissionRow
from tests import given
from tests.given import CREATOR, NOW
from tests.projections.conftest import Cursor, Followed
from tests.projections.memory_log import MemoryLog

HOUR = timedelta(hours=1)


async def test_a_permission_is_as_the_switch_left_it_that_took_effect_last(follow: Followed, api: Cursor) -> None:
    story = given.after(given.permitted(), given.permission(creator_id="creator-2")).later(hours=1)
    story.when(given.permission(enabled=False))
    story.later(hours=1).when(given.permission(enabled=True))
    story.when(given.permission(enabled=False), effective_at=NOW + timedelta(minutes=90))
    first, other = story.ledger.events[:2]
    switches = {(NOW + hours * HOUR).isoformat(): on for hours, on in ((0, True), (1, False), (1.5, False), (2, True))}
    await follow(permissions.VIEW, MemoryLog(story))
    assert [await permissions.one(api, 1, creator) for creator in (CREATOR, "creator-2", "creator-3")] == [
        PermissionRow(1, CREATOR, first.stream_id, True, NOW + 2 * HOUR, switches, 4, 5),
        PermissionRow(1, "creator-2", other.stream_id, True, NOW, {NOW.isoformat(): True}, 1, 2),
        None,
    ]


async def test_a_permission_is_set_since_the_first_of_the_switches_that_set_it_so(
    follow: Followed, api: Cursor
) -> None:
    story = given.permitted().later(hours=9)
    for hours, enabled in ((7, True), (3, False), (5, True), (4, False)):
        story.when(given.permission(enabled=enabled), effective_at=NOW + hours * HOUR)
    await follow(permissions.VIEW, MemoryLog(story))
    found = await permissions.one(api, 1, CREATOR)
    assert found is not None
    assert (found.enabled, found.since) == (True, NOW + 5 * HOUR)


async def test_a_permission_of_another_ledger_is_unknown(follow: Followed, api: Cursor) -> None:
    await follow(permissions.VIEW, MemoryLog(given.unknown(), given.permitted()))
    assert await permissions.one(api, 1, CREATOR) is None


async def test_permissions_are_found_by_every_filter_the_last_switched_first(follow: Followed, api: Cursor) -> None:
    story = given.after(given.permitted(), given.permission(creator_id="creator-2")).later(hours=1)
    story.when(given.permission(creator_id="creator-3"))
    story.later(hours=1).when(given.permission(enabled=False), effective_at=NOW + timedelta(minutes=30))
    await follow(permissions.VIEW, MemoryLog(story))

    async def found(**asked: Any) -> list[str]:
        return [row.creator_id for row in await permissions.search(api, 1, **{"limit": 10, **asked})]

    assert await found() == ["creator-3", CREATOR, "creator-2"]
    assert await found(enabled=True) == ["creator-3", "creator-2"]
    assert await found(enabled=False) == [CREATOR]
    assert await found(creator_ids=["creator-2", "nobody"]) == ["creator-2"]
    assert await found(creator_ids=[]) == []
    assert await found(since=NOW + timedelta(minutes=30)) == ["creator-3", CREATOR]
    assert await found(until=NOW + timedelta(minutes=30)) == ["creator-2"]
    (first,) = await permissions.search(api, 1, limit=1)
    assert await found(after=(first.since, first.position)) == [CREATOR, "creator-2"]


async def test_the_few_permissions_that_are_off_are_found_without_reading_the_others(
    follow: Followed, api: Cursor, worker: Cursor
) -> None:
    await follow(permissions.VIEW, MemoryLog(given.permitted()))
    await worker.execute(
        """
        INSERT INTO views.permissions
        SELECT ledger_id, 'creator-' || n, creator_stream, true, since, switches, version, n
        FROM views.permissions, generate_series(100, 5100) n
        """
    )
    await worker.execute("ANALYZE views.permissions")
    asked = ListQuery(permissions.NAME, "since", 1, 10)
    asked.equal(enabled=False)
    await api.execute("SET enable_seqscan = off")
    await api.execute(SQL("EXPLAIN (ANALYZE) ") + asked.statement(), asked.parameters())
    plan = "\n".join(line for (line,) in await api.fetchall())
    assert "Rows Removed by Filter" not in plan
    assert "enabled = false" in plan
