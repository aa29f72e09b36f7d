"""Skipped events: only what stopped a view, recorded with who skipped it and why."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any
from uuid import UUID

import psycopg
import pytest

from domain.code import Code
from domain.recorded import RecordedEvent
from projections import VIEWS, codes, event_index
from projections.engine import checkpoints, rebuild, skipped_events
from projections.engine.projector import Connect, PoisonEvent
from projections.engine.skipped_events import NO_SKIPS, NotStoppedThere, SkippedEvent, SkipRules
from projections.engine.view import SHADOW_SUFFIX, View
from tests import given
from tests.conftest import TestDatabase
from tests.given import Story
from tests.infra.session_tokens import bound_to
from tests.projections.conftest import Cursor
from tests.projections.engine.runners import failed, follows, poisoned_by, reads, runner_of, running, state
from tests.projections.memory_log import MemoryLog, positions, rows, until

# The code is shared, redeemed and revoked; the view of codes stops before it is shared.
BROKEN: View[Any] = poisoned_by(Code.Shared)
NEWER = replace(BROKEN, version=codes.VERSION + 1)
SHARED = (1, 3)


def log_with_a_share() -> MemoryLog:
    return MemoryLog(given.revoked())


async def skip(connect: Connect, view: View[Any], ledger_id: int, position: int, stream_id: UUID | None = None) -> None:
    async with await connect() as connection, connection.transaction():
        cur = connection.cursor()
        await skipped_events.record_skip(
            cur, view, ledger_id, position, "nobody asks for that share", "ada", stream_id=stream_id
        )


async def test_a_view_that_skips_what_stopped_it_goes_on_and_says_so(connect: Connect, worker: Cursor) -> None:
    log = log_with_a_share()
    async with running(runner_of(BROKEN, log, connect)):
        await until(lambda: failed(worker, "codes"))
        assert await positions(worker, "codes") == {1: 2}
        await skip(connect, BROKEN, *SHARED)
        await until(lambda: reads(worker, "codes", log.heads))
        await until(lambda: follows(worker, "codes"))
    (row,) = await codes.CODES.load(worker, [(1, given.CODE)])
    assert (row.position, row.was_shared, row.was_redeemed) == (5, False, True)
    assert [
        (s.ledger_id, s.view, s.version, s.position, s.reason, s.skipped_by, s.error) for s in await all_of(worker)
    ] == [
        (
            1,
            "codes",
            codes.VERSION,
            3,
            "nobody asks for that share",
            "ada",
            "ZeroDivisionError: a mistake in a handler",
        )
    ]


async def test_a_skip_of_what_begins_a_code_may_cover_its_later_events_and_those_of_no_other_code(
    connect: Connect, worker: Cursor
) -> None:
    view, story = without_a_beginning(), two_codes()
    log = MemoryLog(story)
    async with running(runner_of(view, log, connect, page_events=2)):
        await until(lambda: failed(worker, "codes"))
        assert await state(worker, "codes") == ("failed", 1, 2)
        await skip(connect, view, 1, 2, given.CODE)
        await until(lambda: reads(worker, "codes", log.heads))
        await until(lambda: follows(worker, "codes"))
        story.when(given.share(brand_id="brand-2"))
        story.when(given.share(given.OTHER_CODE, brand_id="brand-2"))
        await until(lambda: reads(worker, "codes", log.heads))
    assert await state(worker, "codes") == ("following", None, None)
    live = await rows(worker, view)
    assert [(row.code_id, len(row.brand_ids)) for row in await both(worker)] == [(given.OTHER_CODE, 2)]
    assert [(s.position, s.stream_id) for s in await all_of(worker)] == [(2, given.CODE)]
    await rebuild.rebuild(view, log, connect, page_events=2)
    assert await rows(worker, view) == live


async def test_a_skip_of_what_begins_a_code_alone_stops_the_view_at_its_next_event_where_it_may_cover_the_rest(
    connect: Connect, worker: Cursor
) -> None:
    view = without_a_beginning()
    log = MemoryLog(two_codes())
    async with running(runner_of(view, log, connect)):
        await until(lambda: stopped_at(worker, "codes", 2))
        await skip(connect, view, 1, 2)
        await until(lambda: stopped_at(worker, "codes", 3))
        await skip(connect, view, 1, 3, given.CODE)
        await until(lambda: reads(worker, "codes", log.heads))
    assert [(row.code_id, len(row.brand_ids)) for row in await both(worker)] == [(given.OTHER_CODE, 1)]


async def test_of_two_skips_that_cover_the_same_code_the_earlier_counts(connect: Connect, worker: Cursor) -> None:
    async with running(runner_of(BROKEN, log_with_a_share(), connect)):
        await until(lambda: failed(worker, "codes"))
        await skip(connect, BROKEN, *SHARED, given.CODE)
    for position in (9, 2, 5):
        await worker.execute(
            """
            INSERT INTO view_skips (ledger_id, view, version, position, stream_id, error, reason, skipped_by)
            VALUES (1, 'codes', %s, %s, %s, 'it', 'why', 'ada')
            """,
            (codes.VERSION, position, given.OTHER_CODE),
        )
    assert await skipped_events.load_skip_rules(worker, "codes", codes.VERSION) == SkipRules(
        frozenset({(1, 2), (1, 3), (1, 5), (1, 9)}), {(1, given.CODE): 3, (1, given.OTHER_CODE): 2}
    )


def without_a_beginning() -> View[Any]:
    """The view of codes, in which one code's beginning raises an error."""

    def handler(ledger_id: int, recorded: RecordedEvent, event: Any) -> Any:
        if recorded.stream_id == given.CODE:
            raise ZeroDivisionError("a mistake in a handler")
        return codes.VIEW.creates[Code.Generated](ledger_id, recorded, event)

    return replace(codes.VIEW, creates={**codes.VIEW.creates, Code.Generated: handler})


def two_codes() -> Story:
    """A code that is shared and redeemed, then another that is shared."""
    other = given.generate(given.OTHER_CODE, video_id="video-2", secret=given.OTHER_SECRET)
    return given.after(given.redeemed(), other, given.share(given.OTHER_CODE))


async def both(cur: Cursor) -> list[Any]:
    return list(await codes.CODES.load(cur, [(1, given.CODE), (1, given.OTHER_CODE)]))


async def all_of(cur: Cursor) -> list[SkippedEvent]:
    return await skipped_events.list_skipped(cur, 100)


@pytest.mark.parametrize("place", [(1, 2), (1, 4), (2, 3)])
async def test_nothing_but_what_stopped_a_view_can_be_skipped(
    connect: Connect, worker: Cursor, place: tuple[int, int]
) -> None:
    async with running(runner_of(BROKEN, log_with_a_share(), connect)):
        await until(lambda: failed(worker, "codes"))
        with pytest.raises(NotStoppedThere, match=r"View codes has stopped before event 3 of ledger 1\. Only"):
            await skip(connect, BROKEN, *place)
    assert await all_of(worker) == []


async def test_of_a_view_that_has_not_stopped_nothing_can_be_skipped(connect: Connect, worker: Cursor) -> None:
    log = log_with_a_share()
    async with running(runner_of(codes.VIEW, log, connect)):
        await until(lambda: reads(worker, "codes", log.heads))
        with pytest.raises(NotStoppedThere, match="View codes has not stopped"):
            await skip(connect, codes.VIEW, *SHARED)


async def test_another_version_of_the_program_cannot_skip_for_the_one_that_stopped(
    connect: Connect, worker: Cursor
) -> None:
    async with running(runner_of(BROKEN, log_with_a_share(), connect)):
        await until(lambda: failed(worker, "codes"))
        with pytest.raises(NotStoppedThere):
            await skip(connect, NEWER, *SHARED)


async def test_an_event_that_cannot_be_read_can_be_skipped_too(connect: Connect, worker: Cursor) -> None:
    log = log_with_a_share()
    log.unreadable.add(SHARED)
    async with running(runner_of(event_index.VIEW, log, connect)):
        await until(lambda: failed(worker, "history"))
        await skip(connect, event_index.VIEW, *SHARED)
        await until(lambda: reads(worker, "history", log.heads))
    found = await rows(worker, event_index.VIEW)
    assert [row[1] for row in found["history"]] == [1, 2, 4, 5]


async def test_rebuilt_the_same_version_skips_the_same_events_and_a_new_version_applies_them(
    connect: Connect, worker: Cursor
) -> None:
    log = log_with_a_share()
    async with running(runner_of(BROKEN, log, connect)):
        await until(lambda: failed(worker, "codes"))
        await skip(connect, BROKEN, *SHARED)
        await until(lambda: reads(worker, "codes", log.heads))
    live = await rows(worker, BROKEN)
    await rebuild.rebuild(BROKEN, log, connect, page_events=2)
    assert await rows(worker, BROKEN) == live
    assert await positions(worker, "codes") == log.heads

    mended = replace(codes.VIEW, version=codes.VERSION + 1)
    await rebuild.rebuild(mended, log, connect)
    assert [row.was_shared for row in await codes.CODES.load(worker, [(1, given.CODE)])] == [True]
    assert await skipped_events.load_skip_rules(worker, "codes", mended.version) == NO_SKIPS


async def test_what_stops_a_rebuild_can_be_skipped_and_the_old_rows_are_followed_meanwhile(
    connect: Connect, worker: Cursor
) -> None:
    log = log_with_a_share()
    async with running(runner_of(codes.VIEW, log, connect)):
        await until(lambda: reads(worker, "codes", log.heads))
        with pytest.raises(PoisonEvent, match="View codes_next stops before event 3 of ledger 1"):
            await rebuild.rebuild(NEWER, log, connect)
        assert await state(worker, "codes" + SHADOW_SUFFIX) == ("failed", *SHARED)
        assert await state(worker, "codes") == ("following", None, None)
        await skip(connect, NEWER, *SHARED)
        await rebuild.rebuild(NEWER, log, connect)
    view_state = await checkpoints.load_state(worker, "codes")
    assert view_state is not None
    assert (view_state.version, view_state.state, view_state.error) == (NEWER.version, "following", None)


async def test_a_worker_whose_new_version_stopped_goes_on_with_it_once_that_is_skipped(
    connect: Connect, worker: Cursor
) -> None:
    log = log_with_a_share()
    async with running(runner_of(codes.VIEW, log, connect)):
        await until(lambda: reads(worker, "codes", log.heads))
    async with running(runner_of(NEWER, log, connect)):
        await until(lambda: failed(worker, "codes"))
        await skip(connect, NEWER, *SHARED)
        await until(lambda: at_version(worker, NEWER.version))
    assert await state(worker, "codes") == ("following", None, None)


async def at_version(cur: Cursor, version: int) -> bool:
    view_state = await checkpoints.load_state(cur, "codes")
    return view_state is not None and (view_state.version, view_state.state) == (version, "following")


async def test_skips_are_never_changed_and_seen_by_their_ledger_alone(
    database: TestDatabase, connect: Connect, worker: Cursor, api: Cursor
) -> None:
    async with running(runner_of(BROKEN, log_with_a_share(), connect)):
        await until(lambda: failed(worker, "codes"))
        await skip(connect, BROKEN, *SHARED)
        await skip(connect, BROKEN, *SHARED)
    for statement in (b"UPDATE view_skips SET reason = 'x'", b"DELETE FROM view_skips", b"TRUNCATE view_skips"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await worker.execute(statement)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        await api.execute("INSERT INTO view_skips SELECT * FROM view_skips")
    assert [found.position for found in await all_of(api)] == [3], "once, however often it was said"
    await api.execute("SELECT set_config('sparkledger.ledger', %s, false)", (bound_to(database, 2),))
    assert await all_of(api) == []


async def test_every_view_can_be_told_to_skip(connect: Connect, worker: Cursor) -> None:
    log = log_with_a_share()
    log.unreadable.add((1, 2))
    log.unreadable.add((1, 3))
    del log.ledgers[1][3:]
    async with running(*(runner_of(view, log, connect) for view in VIEWS)):
        for position in (2, 3):
            for view in VIEWS:
                await until(lambda view=view, position=position: stopped_at(worker, view.name, position))  # type: ignore[misc]
            await asyncio.gather(*(skip(connect, view, 1, position) for view in VIEWS))
        for view in VIEWS:
            await until(lambda view=view: reads(worker, view.name, {1: 3}))  # type: ignore[misc]


async def stopped_at(cur: Cursor, name: str, position: int) -> bool:
    return await state(cur, name) == ("failed", 1, position)
