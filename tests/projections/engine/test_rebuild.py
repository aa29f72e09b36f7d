"""Rebuilds: the same rows as live, resumed when killed, swapped in while reads and events go on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from random import Random
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import given as for_all
from hypothesis import strategies as st
from psycopg.sql import SQL

from domain.code import Code
from domain.errors import Refused, Unknown
from domain.recorded import RecordedEvent
from projections import VIEWS, codes, event_index, permissions
from projections.engine import checkpoints, rebuild
from projections.engine.page import EventPage
from projections.engine.projector import Connect, PoisonEvent, Projector
from projections.engine.rebuild import RebuildInProgress
from projections.engine.runner import Runner
from projections.engine.table import Table
from projections.engine.view import SHADOW_SUFFIX, View
from projections.event_index import EventIndexRow
from tests import given
from tests.domain.test_late_paperwork import late
from tests.given import CODE, NOW, Story
from tests.late_paperwork import DAY, VIDEOS, happenings
from tests.projections.conftest import Cursor, Followed
from tests.projections.memory_log import MemoryLog, code_row, happening, positions, rows, until

pytestmark = pytest.mark.long("every view is rebuilt from random ledgers")


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@for_all(
    seeds=st.lists(st.integers(0, 10**6), min_size=1, max_size=3),
    live_page=st.integers(1, 20),
    rebuild_page=st.integers(1, 100),
    fill_events=st.integers(1, 200),
)
async def test_rebuilt_rows_are_the_live_rows(
    view: View[Any],
    connect: Connect,
    worker: Cursor,
    seeds: list[int],
    live_page: int,
    rebuild_page: int,
    fill_events: int,
) -> None:
    log = MemoryLog(*(happening(seed, 50) for seed in seeds), backlog(seeds[0]))
    async with await connect() as connection:
        live = Projector(view, connection)
        await live.create(indexes=True)
        await live.find()
        await live.apply_all(log, live_page)
    before = await rows(worker, view)
    await rebuild.rebuild(view, log, connect, page_events=rebuild_page, fill_events=fill_events)
    assert await rows(worker, view) == before
    assert await positions(worker, view.name) == log.heads
    for table in view.tables:
        await table.drop(worker)
    await checkpoints.delete(worker, [view.name])


def backlog(seed: int) -> Story:
    """A ledger in which most was recorded late and in any order, and then a creator was erased."""
    facts = happenings(Random(seed), 15)
    story = late(facts, facts[-1].at + 20 * DAY, Random(seed))
    for command in (given.rights(code_id=UUID(int=1)), given.bind(video_id=VIDEOS[0]), given.erase(creator_id="ana")):
        with suppress(Refused, Unknown):
            story.when(command)
    return story


async def test_a_rebuilt_table_has_all_that_the_old_one_had(connect: Connect, worker: Cursor, follow: Followed) -> None:
    log = MemoryLog(given.redeemed())
    for view in VIEWS:
        await follow(view, log)
    before = await structure(worker)
    assert len(before) == sum(len(view.tables) for view in VIEWS)
    for view in VIEWS * 2:
        await rebuild.rebuild(view, log, connect)
        assert await structure(worker) == before
        assert await checkpoints.load_state(worker, view.name + SHADOW_SUFFIX) is None


async def structure(cur: Cursor) -> list[Any]:
    """Columns, indexes, policies and rights of every table in schema views, without the names of indexes."""
    await cur.execute("""
        SELECT
            c.relname, c.reloptions, c.relrowsecurity, c.relforcerowsecurity, c.relacl::text,
            ARRAY(SELECT a.attname || format_type(a.atttypid, a.atttypmod) || a.attnotnull FROM pg_attribute a
                  WHERE a.attrelid = c.oid AND a.attnum > 0 ORDER BY a.attnum),
            ARRAY(SELECT regexp_replace(pg_get_indexdef(i.indexrelid), 'INDEX .* ON', 'INDEX ON') FROM pg_index i
                  WHERE i.indrelid = c.oid ORDER BY 1),
            ARRAY(SELECT p.polname || p.polroles::text FROM pg_policy p WHERE p.polrelid = c.oid ORDER BY 1)
        FROM pg_class c
        WHERE c.relnamespace = 'views'::regnamespace AND c.relkind = 'r'
        ORDER BY c.relname
    """)
    return await cur.fetchall()


class Interrupted(Exception):
    pass


class Interrupting(MemoryLog):
    """A log that does something as each page is read."""

    def __init__(self, log: MemoryLog, meanwhile: Any) -> None:
        super().__init__()
        self.ledgers = log.ledgers
        self.meanwhile = meanwhile

    async def after(self, positions: Mapping[int, int], limit: int) -> EventPage:
        page = await super().after(positions, limit)
        await self.meanwhile(self.pages)
        return page


async def test_a_rebuild_that_was_killed_resumes(connect: Connect, worker: Cursor, follow: Followed) -> None:
    log = MemoryLog(happening(1, 80), happening(2, 80))
    await follow(codes.VIEW, log)
    whole = await rows(worker, codes.VIEW)

    async def die(pages: int) -> None:
        if pages == 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        await rebuild.rebuild(codes.VIEW, Interrupting(log, die), connect, page_events=10)
    # Of three pages read, two or three were written when the fourth could not be read.
    left = sum((await positions(worker, "codes" + SHADOW_SUFFIX)).values())
    assert left in {20, 30}
    assert await rows(worker, codes.VIEW) == whole, "the old rows are read meanwhile"
    done = await rebuild.rebuild(codes.VIEW, log, connect, page_events=10)
    assert done.events == sum(log.heads.values()) - left
    assert await rows(worker, codes.VIEW) == whole


@pytest.mark.parametrize("another_version", [False, True])
async def test_a_rebuild_starts_over_if_it_is_told_to_or_the_view_has_changed(
    another_version: bool, connect: Connect, worker: Cursor, follow: Followed
) -> None:
    log = MemoryLog(given.redeemed())
    await follow(codes.VIEW, log)

    async def die(pages: int) -> None:
        if pages == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        await rebuild.rebuild(codes.VIEW, Interrupting(log, die), connect, page_events=1)
    changed = replace(codes.VIEW, version=codes.VERSION + 1) if another_version else codes.VIEW
    done = await rebuild.rebuild(changed, log, connect, resume=another_version)
    assert done.events == 4
    view_state = await checkpoints.load_state(worker, "codes")
    assert view_state is not None
    assert view_state.version == changed.version


async def test_reads_see_every_code_throughout_a_rebuild(connect: Connect, api: Cursor, follow: Followed) -> None:
    log = MemoryLog(given.redeemed())
    await follow(codes.VIEW, log)
    whole, seen = await codes.search(api, 1, now=NOW, limit=10), []

    async def read(_: int) -> None:
        seen.append(await codes.search(api, 1, now=NOW, limit=10))

    done = await rebuild.rebuild(codes.VIEW, Interrupting(log, read), connect, page_events=1)
    await read(0)
    assert done.events == 4
    assert seen == [whole] * len(seen)
    assert len(seen) >= 5


async def test_a_rebuild_under_a_living_runner_and_a_growing_log_never_takes_a_reader_back(
    connect: Connect, worker: Cursor, api: Cursor, follow: Followed
) -> None:
    story = happening(5, 60)
    log, wake = MemoryLog(story), asyncio.Event()
    runner = asyncio.create_task(Runner(codes.VIEW, log, connect, wake, poll_s=0.02, page_events=10).run())
    await until(lambda: begun(worker))
    read: list[int] = []

    async def grow(_: int) -> None:
        story.when(given.reveal(next(iter(codes_of(story)))))
        wake.set()
        await api.execute("SELECT position FROM view_positions WHERE view = 'codes'")
        read.extend(position for (position,) in await api.fetchall())

    growing = Interrupting(log, grow)
    for _ in range(3):
        # The log grows with every page that is read of it, so this only ends if the switch cuts the race short.
        await asyncio.wait_for(rebuild.rebuild(codes.VIEW, Bounded(growing, 40), connect, page_events=10), 10)
        await grow(0)
    await until(lambda: caught_up(worker, log))
    runner.cancel()
    with suppress(asyncio.CancelledError):
        await runner
    assert read == sorted(read)
    switched = await rows(worker, codes.VIEW)
    for table in codes.VIEW.tables:
        await table.drop(worker)
    await checkpoints.delete(worker, ["codes"])
    await follow(codes.VIEW, log)
    assert switched == await rows(worker, codes.VIEW)


class Bounded(MemoryLog):
    """A log that stops growing after so many pages."""

    def __init__(self, log: Interrupting, pages: int) -> None:
        super().__init__()
        self.log = log
        self.left = pages

    async def after(self, positions: Mapping[int, int], limit: int) -> EventPage:
        self.left -= 1
        return await (self.log.after if self.left > 0 else super(Interrupting, self.log).after)(positions, limit)


def codes_of(story: given.Story) -> list[Any]:
    return [id_ for id_, stream in story.ledger.streams.items() if isinstance(stream[0].event, Code.Generated)]


async def begun(cur: Cursor) -> bool:
    return bool(await positions(cur, "codes"))


async def caught_up(cur: Cursor, log: MemoryLog) -> bool:
    return await positions(cur, "codes") == log.heads


async def test_a_long_read_of_the_old_rows_delays_the_swap_and_blocks_no_other_read(
    connect: Connect, worker: Cursor, api: Cursor, follow: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuild, "SWAP_WAIT_MS", 50)
    monkeypatch.setattr(rebuild, "SWAP_PAUSE_S", 0.05)
    log = MemoryLog(given.redeemed())
    await follow(codes.VIEW, log)
    async with await connect() as long:
        await long.execute("BEGIN")
        await long.execute("SELECT FROM views.codes")
        rebuilding = asyncio.create_task(rebuild.rebuild(codes.VIEW, log, connect))
        await until(lambda: waits_for_a_lock(worker))
        assert await code_row(api, 1, CODE) is not None
        assert not rebuilding.done()
        await long.execute("COMMIT")
        await rebuilding
    assert await code_row(api, 1, CODE) is not None


async def waits_for_a_lock(cur: Cursor) -> bool:
    await cur.execute(
        "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        " AND query LIKE 'DROP TABLE%%'"
    )
    return await cur.fetchone() is not None


async def test_a_swap_that_never_gets_its_lock_gives_up_and_leaves_the_old_rows(
    connect: Connect, worker: Cursor, follow: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuild, "SWAP_WAIT_MS", 10)
    monkeypatch.setattr(rebuild, "SWAP_PAUSE_S", 0.001)
    monkeypatch.setattr(rebuild, "SWAP_ATTEMPTS_MAX", 2)
    log = MemoryLog(given.redeemed())
    await follow(codes.VIEW, log)
    async with await connect() as long:
        await long.execute("BEGIN")
        await long.execute("SELECT FROM views.codes")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            await rebuild.rebuild(codes.VIEW, log, connect)
        await long.execute("COMMIT")
    assert await positions(worker, "codes") == {1: 4}
    assert (await rebuild.rebuild(codes.VIEW, log, connect)).events == 0, "all was filled already"


async def test_a_poison_event_fails_the_rebuild_and_leaves_the_old_rows(
    connect: Connect, worker: Cursor, follow: Followed
) -> None:
    log = MemoryLog(given.revoked())
    await follow(codes.VIEW, log)
    before = await rows(worker, codes.VIEW)

    def broken(*_: Any) -> None:
        raise ZeroDivisionError("a mistake in a handler")

    broken_view = replace(codes.VIEW, updates={**codes.VIEW.updates, Code.Revoked: broken})
    with pytest.raises(PoisonEvent, match="View codes_next stops before event 5 of ledger 1: ZeroDivisionError"):
        await rebuild.rebuild(broken_view, log, connect)
    assert await rows(worker, codes.VIEW) == before


async def test_a_view_is_rebuilt_by_one_at_a_time(connect: Connect, follow: Followed) -> None:
    log = MemoryLog(given.redeemed())
    await follow(codes.VIEW, log)
    refused = []

    async def again(pages: int) -> None:
        if pages == 1:
            try:
                await rebuild.rebuild(codes.VIEW, log, connect)
            except RebuildInProgress as busy:
                refused.append(str(busy))

    await rebuild.rebuild(codes.VIEW, Interrupting(log, again), connect)
    assert refused == ["View codes is already being rebuilt by another process."]


@dataclass(slots=True)
class LongerRow(EventIndexRow):
    """History as a later version of the program may have it."""

    said_by: str


def longer(ledger_id: int, recorded: RecordedEvent, event: Any) -> LongerRow:
    known = event_index.indexed(ledger_id, recorded, event)
    columns: dict[str, Any] = {column: getattr(known, column) for column in event_index.EVENT_INDEX.columns}
    return LongerRow(**columns, said_by=recorded.source)


async def test_a_program_with_a_new_version_of_a_view_rebuilds_it_by_itself(
    connect: Connect, worker: Cursor, api: Cursor, follow: Followed
) -> None:
    log = MemoryLog(given.redeemed())
    await follow(event_index.VIEW, log)
    table = Table(
        "history",
        LongerRow,
        key=event_index.EVENT_INDEX.key,
        ddl="CREATE TABLE {table} (LIKE views.history INCLUDING ALL, said_by text NOT NULL)",
    )
    newer = View(
        "history",
        event_index.VERSION + 1,
        table,
        event_index.VIEW.row_of,
        creates=dict.fromkeys(event_index.VIEW.creates, longer),
    )
    runner = asyncio.create_task(Runner(newer, log, connect, asyncio.Event(), poll_s=0.02).run())
    await until(lambda: at_version(worker, event_index.VERSION + 1))
    runner.cancel()
    with suppress(asyncio.CancelledError):
        await runner
    await worker.execute("SELECT said_by FROM views.history ORDER BY position")
    assert await worker.fetchall() == [("operator",)] * 4
    known = SQL("SELECT {columns} FROM views.history t ORDER BY t.position").format(
        columns=event_index.EVENT_INDEX.select()
    )
    found = [row.position for row in await event_index.EVENT_INDEX.fetch(api, known, {})]
    assert found == [1, 2, 3, 4], "a program that knows less still reads it"


async def at_version(cur: Cursor, version: int) -> bool:
    view_state = await checkpoints.load_state(cur, "history")
    return view_state is not None and view_state.version == version


class HeldBack(MemoryLog):
    """Shows a ledger's last event only once it has said at the switch that there is no more."""

    switching = shown_all = False

    async def after(self, positions: Mapping[int, int], limit: int) -> EventPage:
        page = await super().after(positions, limit)
        if self.shown_all:
            return page
        shown = EventPage.of([(i, recorded) for i, recorded in page.events if recorded.position < self.heads[i]])
        self.shown_all = self.switching and not shown.spans
        return shown

    def told(self, told: rebuild.RebuildProgress) -> None:
        if told.phase == "switching":
            self.switching = True


async def test_an_event_that_replaces_a_row_may_come_during_the_swap(
    connect: Connect, worker: Cursor, follow: Followed
) -> None:
    story = given.permitted()
    story.when(given.permission(enabled=False))
    await follow(permissions.VIEW, MemoryLog(story))
    before = await rows(worker, permissions.VIEW)
    log = HeldBack(story)
    await rebuild.rebuild(permissions.VIEW, log, connect, log.told)
    assert await rows(worker, permissions.VIEW) == before


async def test_a_view_adds_no_ledger_while_another_version_replaces_it(connect: Connect, follow: Followed) -> None:
    story = given.permitted()
    await follow(permissions.VIEW, MemoryLog(story))
    second = EventPage.of([(2, recorded) for recorded in story.ledger.events])
    place = (permissions.NAME, permissions.VERSION)
    async with await connect() as switching, await connect() as live:
        await live.execute("SET lock_timeout = 200")
        async with switching.transaction():
            assert await checkpoints.load_positions(switching.cursor(), *place, lock=True) == {1: 1}
            with pytest.raises(psycopg.errors.LockNotAvailable):
                await checkpoints.advance(live.cursor(binary=True), *place, {1: 1}, second)
            await switching.execute("UPDATE view_versions SET version = version + 1 WHERE view = %s", place[:1])
        with pytest.raises(checkpoints.CONFLICT_ERROR):
            await checkpoints.advance(live.cursor(binary=True), *place, {1: 1}, second)
        assert await checkpoints.load_positions(live.cursor(), *place) == {1: 1}
