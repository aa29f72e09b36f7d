"""The runner: woken, across ledgers, stopped by a poison event, killed at any moment, one leader at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from random import Random
from typing import Any

import psycopg
import pytest

from domain.code import Code
from projections import VIEWS, codes, event_index, shares, statistics
from projections.engine import checkpoints, shared_reader
from projections.engine.checkpoints import CheckpointConflict, ViewState
from projections.engine.page import EventPage, PositionGap
from projections.engine.projector import Connect, Projector
from projections.engine.runner import Runner, ViewBehind, ViewStopped, create_missing, wait_for_position
from projections.engine.shared_reader import SharedLog
from projections.engine.table import Statement
from projections.engine.view import View
from tests import given
from tests.given import CODE, NOW
from tests.projections.conftest import Cursor, Followed
from tests.projections.engine.runners import (
    NEVER_S,
    all_read,
    failed,
    follows,
    poisoned_by,
    reads,
    runner_of,
    running,
    state,
)
from tests.projections.memory_log import MemoryLog, code_row, happening, positions, rows, until

# Following


async def test_a_page_spans_ledgers_and_every_view_follows(connect: Connect, worker: Cursor) -> None:
    log = MemoryLog(given.redeemed(), given.unknown(), given.revoked(), given.permitted())
    async with running(*(runner_of(view, log, connect, poll_s=NEVER_S) for view in VIEWS)):
        await until(lambda: all_read(worker, VIEWS, {1: 4, 3: 5, 4: 1}))
    assert log.pages <= 2 * len(VIEWS), "all of it fits one page a view, and the next one is empty"
    assert await state(worker, "codes") == ("following", None, None)


async def test_a_runner_is_woken_by_its_event(connect: Connect, worker: Cursor) -> None:
    story, wake = given.shared(), asyncio.Event()
    log = MemoryLog(story)
    async with running(runner_of(codes.VIEW, log, connect, wake, poll_s=NEVER_S)):
        await until(lambda: reads(worker, "codes", {1: 3}))
        story.when(given.redeem())
        wake.set()
        await until(lambda: reads(worker, "codes", {1: 4}))


async def test_a_runner_that_nothing_wakes_polls(connect: Connect, worker: Cursor) -> None:
    story = given.shared()
    async with running(runner_of(codes.VIEW, MemoryLog(story), connect)):
        await until(lambda: reads(worker, "codes", {1: 3}))
        story.when(given.redeem())
        await until(lambda: reads(worker, "codes", {1: 4}))


async def test_a_log_read_with_an_event_left_out_moves_no_view(connect: Connect, worker: Cursor) -> None:
    log = MemoryLog(given.redeemed())
    del log.ledgers[1][1]
    async with await connect() as connection:
        projector = Projector(codes.VIEW, connection)
        await projector.create(indexes=True)
        with pytest.raises(PositionGap, match="Event 3 of ledger 1 was read after 1"):
            await projector.apply_all(log, 100)
    assert await positions(worker, "codes") == {}


# Stopping


async def test_a_poison_event_stops_only_its_view_which_says_which_event(
    connect: Connect, worker: Cursor, follow: Followed, caplog: pytest.LogCaptureFixture
) -> None:
    log = MemoryLog(given.redeemed(), given.after(given.revoked(), given.reveal()))
    views = [poisoned_by(Code.Revoked) if view is codes.VIEW else view for view in VIEWS]
    async with running(*(runner_of(view, log, connect) for view in views)):
        await until(lambda: failed(worker, "codes"))
        await until(lambda: all_read(worker, [view for view in VIEWS if view is not codes.VIEW], log.heads))
    assert await state(worker, "codes") == ("failed", 2, 5)
    assert await positions(worker, "codes") == {1: 4, 2: 4}, "all events before it are applied"
    statuses = {status.view: status for status in await checkpoints.load_states(worker)}
    assert statuses["codes"].error == "ZeroDivisionError: a mistake in a handler"
    assert {name: status.state for name, status in statuses.items() if name != "codes"} == dict.fromkeys(
        {view.name for view in VIEWS} - {"codes"}, "following"
    )
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == [
        "View codes has stopped. View codes stops before event 5 of ledger 2: ZeroDivisionError: a mistake in a handler"
    ]


async def test_a_stopped_view_goes_on_once_its_handler_is_mended(connect: Connect, worker: Cursor) -> None:
    log = MemoryLog(given.revoked())
    async with running(runner_of(poisoned_by(Code.Revoked), log, connect)):
        await until(lambda: failed(worker, "codes"))
        async with running(runner_of(codes.VIEW, log, connect)):
            await until(lambda: reads(worker, "codes", {1: 5}))
            # That it has recovered is recorded after the page.
            await until(lambda: follows(worker, "codes"))


async def test_an_event_that_cannot_be_read_stops_a_view_before_it(connect: Connect, worker: Cursor) -> None:
    log = MemoryLog(given.revoked())
    log.unreadable.add((1, 3))
    async with running(runner_of(event_index.VIEW, log, connect)):
        await until(lambda: failed(worker, "history"))
    assert await state(worker, "history") == ("failed", 1, 3)
    assert await positions(worker, "history") == {1: 2}


async def test_a_row_that_the_database_refuses_is_found_in_its_page(connect: Connect, worker: Cursor) -> None:
    story = given.shared()
    log = MemoryLog(story)
    bad = story.ledger.events[2]
    log.ledgers[1][2] = bad._replace(event=replace(bad.event, brand_id="no text holds a \x00"))  # type: ignore[call-arg]
    async with running(runner_of(event_index.VIEW, log, connect)):
        await until(lambda: failed(worker, "history"))
    assert await state(worker, "history") == ("failed", 1, 3)
    assert await positions(worker, "history") == {1: 2}


async def test_a_row_too_long_for_an_index_stops_the_view_at_its_event(connect: Connect, worker: Cursor) -> None:
    story = given.shared()
    log = MemoryLog(story)
    bad = story.ledger.events[2]
    incompressible = Random(1).randbytes(10_000).hex()
    log.ledgers[1][2] = bad._replace(event=replace(bad.event, brand_id=incompressible))  # type: ignore[call-arg]
    async with running(runner_of(shares.VIEW, log, connect)):
        await until(lambda: failed(worker, "shares"))
    assert await state(worker, "shares") == ("failed", 1, 3)
    assert await positions(worker, "shares") == {1: 2}
    (view_state,) = await checkpoints.load_states(worker)
    assert (view_state.error or "").startswith("ProgramLimitExceeded: index row")


@pytest.mark.parametrize(
    "error",
    [
        psycopg.errors.ProgramLimitExceeded("a row too long"),
        psycopg.errors.StatementTooComplex("too deep"),
        psycopg.OperationalError("more parameters than fit a message"),
        psycopg.InterfaceError("a value of no known type"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_an_error_of_the_database_that_recurs_for_the_same_event_stops_the_view(
    connect: Connect, worker: Cursor, error: Exception
) -> None:
    async with running(runner_of(raising(lambda: error), MemoryLog(given.revoked()), connect)):
        await until(lambda: failed(worker, "codes"))
    assert await state(worker, "codes") == ("failed", 1, 3)
    assert await positions(worker, "codes") == {1: 2}, "the events before it are applied"


@pytest.mark.parametrize(
    "kind",
    [
        psycopg.errors.ConnectionFailure,
        psycopg.errors.DeadlockDetected,
        psycopg.errors.DiskFull,
        psycopg.errors.LockNotAvailable,
        psycopg.errors.QueryCanceled,
        psycopg.errors.IoError,
    ],
    ids=lambda kind: kind.__name__,
)
async def test_a_transient_error_is_retried_and_stops_nothing(
    connect: Connect, worker: Cursor, caplog: pytest.LogCaptureFixture, kind: type[psycopg.Error]
) -> None:
    errors = iter([kind("not now"), kind("not now")])
    log = MemoryLog(given.revoked())
    async with running(runner_of(raising(lambda: next(errors, None)), log, connect)):
        await until(lambda: reads(worker, "codes", log.heads))
    assert next(errors, None) is None
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert await state(worker, "codes") == ("following", None, None)


def raising(error: Callable[[], Exception | None]) -> View[Any]:
    """The view of codes, in which a share raises what this gives, as long as it gives something."""

    def handler(*told: Any) -> Any:
        raised = error()
        if raised is not None:
            raise raised
        return codes.VIEW.updates[Code.Shared](*told)

    return replace(codes.VIEW, updates={**codes.VIEW.updates, Code.Shared: handler})


async def test_an_event_of_a_code_that_no_event_began_stops_the_view(connect: Connect, worker: Cursor) -> None:
    log = MemoryLog(given.shared())
    log.ledgers[1] = [log.ledgers[1][2]._replace(position=1)]
    async with running(runner_of(codes.VIEW, log, connect)):
        await until(lambda: failed(worker, "codes"))
    (view_state,) = await checkpoints.load_states(worker)
    assert view_state.error == f"LookupError: view codes has no row {CODE}, which the event would change"


async def test_views_that_share_a_reader_are_held_up_neither_by_each_others_locks_nor_poison(
    connect: Connect, worker: Cursor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_reader, "EVENTS_KEPT_MAX", 20)
    log = MemoryLog(given.revoked(), happening(8, 200))
    shared = SharedLog(log)
    await create_missing(connect, VIEWS)
    views = [poisoned_by(Code.Revoked, view) if view is statistics.VIEW else view for view in VIEWS]
    others = [view for view in VIEWS if view not in {codes.VIEW, statistics.VIEW}]
    async with await connect() as holding, holding.transaction():
        await holding.execute("LOCK TABLE views.codes IN ACCESS EXCLUSIVE MODE")
        async with running(*(runner_of(view, shared.reader(), connect, page_events=5) for view in views)):
            await until(lambda: failed(worker, "statistics"))
            await until(lambda: all_read(worker, others, log.heads))
            assert await positions(worker, "codes") == {}


# Killed at any moment


class DeadlyLog(MemoryLog):
    """A reader of a page of it loses all sessions, a moment later or at once."""

    def __init__(self, killer: Cursor, log: MemoryLog, kills: int) -> None:
        super().__init__()
        self.ledgers = log.ledgers
        self.killer = killer
        self.kills = kills

    async def after(self, positions: Mapping[int, int], limit: int) -> EventPage:
        page = await super().after(positions, limit)
        if self.kills > 0:
            self.kills -= 1
            await self.kill()
        return page

    async def kill(self) -> None:
        await self.killer.connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND usename = 'sparkledger_worker' AND pid <> pg_backend_pid()"
        )


@pytest.mark.parametrize("each", VIEWS, ids=lambda each: each.name)
async def test_a_view_whose_session_is_killed_again_and_again_loses_and_repeats_nothing(
    each: View[Any], connect: Connect, worker: Cursor, follow: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MemoryLog(happening(1, 60), happening(2, 60))
    deadly = DeadlyLog(worker, log, kills=10)
    unharmed, before_commit = Projector.write, [0]

    async def write(projector: Projector, cur: Cursor, page: EventPage, statements: Iterable[Statement]) -> None:
        await unharmed(projector, cur, page, statements)
        before_commit[0] += 1
        if before_commit[0] in {3, 6}:
            await deadly.kill()

    monkeypatch.setattr(Projector, "write", write)
    async with running(runner_of(each, deadly, connect, page_events=5)):
        await until(lambda: reads(worker, each.name, log.heads))
    assert deadly.kills == 0
    assert before_commit[0] > 6
    monkeypatch.undo()
    after_kills = await rows(worker, each)
    await drop(worker, each)
    await follow(each, log)
    assert after_kills == await rows(worker, each)


async def drop(cur: Cursor, view: View[Any]) -> None:
    for table in view.tables:
        await table.drop(cur)
    await checkpoints.delete(cur, [view.name])


class HaltingLog(MemoryLog):
    """A log that gives so many pages, and keeps a reader that asks for more."""

    def __init__(self, log: MemoryLog, pages: int) -> None:
        super().__init__()
        self.ledgers = log.ledgers
        self.halt_after = pages

    async def after(self, positions: Mapping[int, int], limit: int) -> EventPage:
        if self.pages == self.halt_after:
            await asyncio.Event().wait()
        return await super().after(positions, limit)


async def test_a_runner_cancelled_anywhere_between_pages_resumes_at_its_checkpoint(
    connect: Connect, worker: Cursor, follow: Followed
) -> None:
    log = MemoryLog(happening(3, 250))
    stops = [0]
    while stops[-1] != log.heads[1]:
        # It reads ahead: this one is cancelled while it reads its third page, and writes its second or has written it.
        async with running(runner_of(codes.VIEW, HaltingLog(log, pages=2), connect, page_events=7)):
            await until(lambda: is_beyond(worker, stops[-1]))
        stops.append((await positions(worker, "codes"))[1])
    assert len(stops) > 3
    assert all(later - earlier in {7, 14} for earlier, later in pairwise(stops[:-1]))
    interrupted = await rows(worker, codes.VIEW)
    await drop(worker, codes.VIEW)
    await follow(codes.VIEW, log)
    assert interrupted == await rows(worker, codes.VIEW)


async def is_beyond(cur: Cursor, position: int) -> bool:
    return (await positions(cur, "codes")).get(1, 0) > position


# One leader at a time


async def test_two_runners_that_both_believe_to_lead_apply_no_event_twice(
    connect: Connect, worker: Cursor, follow: Followed
) -> None:
    story = given.revoked()
    story.outcome(given.redeem(advertiser_id="late"))
    log = MemoryLog(story)
    async with await connect() as one_session, await connect() as other_session:
        one, other = Projector(codes.VIEW, one_session), Projector(codes.VIEW, other_session)
        await one.create(indexes=True)
        await other.create(indexes=True)
        page = await log.after({}, 100)
        outcomes = await asyncio.gather(one.apply(page), other.apply(page), return_exceptions=True)
        assert sorted(map(type, outcomes), key=str) == sorted([type(None), CheckpointConflict], key=str)
        story.outcome(given.redeem(advertiser_id="later"))
        late = one if isinstance(outcomes[0], CheckpointConflict) else other
        with pytest.raises(CheckpointConflict):
            await late.apply(await log.after({}, 100))
        await late.find()
        await late.apply_all(log, 100)
    found = await codes.CODES.load(worker, [(1, CODE)])
    assert [(row.refusal_count, row.position) for row in found] == [(2, 7)]


async def test_of_two_runners_one_leads_and_the_other_takes_over_when_it_is_gone(
    connect: Connect, worker: Cursor
) -> None:
    story = given.permitted()
    first_log, second_log = MemoryLog(story), MemoryLog(story)
    async with running(runner_of(event_index.VIEW, first_log, connect)) as (first,):
        await until(lambda: reads(worker, "history", {1: 1}))
        async with running(runner_of(event_index.VIEW, second_log, connect)):
            story.when(given.generate())
            await until(lambda: reads(worker, "history", {1: 2}))
            assert second_log.pages == 0
            first.cancel()
            with suppress(asyncio.CancelledError):
                await first
            story.when(given.share())
            await until(lambda: reads(worker, "history", {1: 3}))
            assert second_log.pages > 0


async def test_a_view_that_a_newer_program_has_rebuilt_is_left_alone(connect: Connect, worker: Cursor) -> None:
    log = MemoryLog(given.shared())
    newer = replace(codes.VIEW, version=codes.VERSION + 1)
    await create_missing(connect, [newer])
    old, new = runner_of(codes.VIEW, log, connect), runner_of(newer, log, connect)
    async with running(old):
        async with running(new):
            await until(lambda: reads(worker, "codes", {1: 3}))
        assert log.pages > 0
        pages = log.pages
        await until(lambda: told(worker, old))
        assert log.pages == pages, "the old program does not even read"


async def told(cur: Cursor, runner: Runner) -> bool:
    return f"version {codes.VERSION + 1}" in runner._last_message


# Waiting


async def test_a_reader_waits_until_the_view_has_read_its_write(connect: Connect, api: Cursor) -> None:
    story, wake = given.shared(), asyncio.Event()
    await create_missing(connect, VIEWS)
    async with running(runner_of(codes.VIEW, MemoryLog(story), connect, wake, poll_s=NEVER_S)):
        waiting = asyncio.create_task(wait_for_position(lambda: lent(api), "codes", 1, 4))
        assert await wait_for_position(lambda: lent(api), "codes", 1, 3) == 3
        assert not waiting.done()
        story.when(given.redeem())
        wake.set()
        assert await waiting == 4
    found = await code_row(api, 1, CODE)
    assert found is not None
    assert found.was_redeemed
    await api.execute("SELECT view, position, recorded_at FROM view_positions WHERE ledger_id = 1")
    assert await api.fetchall() == [("codes", 4, NOW)]
    assert await checkpoints.position_reached(api, 1, "codes") == 4
    assert await checkpoints.position_reached(api, 1, "codes", "history") == 0, "one of them has not begun"


@asynccontextmanager
async def lent(cur: Cursor) -> AsyncIterator[Cursor]:
    async with cur.connection.cursor() as one:
        yield one


async def test_a_reader_is_told_how_far_the_view_has_read_when_its_time_runs_out(follow: Followed, api: Cursor) -> None:
    await follow(codes.VIEW, MemoryLog(given.shared()))
    with pytest.raises(ViewBehind, match="View codes has read up to position 3, but not yet up to 4") as behind:
        await wait_for_position(lambda: lent(api), "codes", 1, 4, timeout_s=0.01)
    assert (behind.value.view, behind.value.wanted, behind.value.reached) == ("codes", 4, 3)


async def test_a_reader_does_not_wait_for_a_view_that_has_stopped(
    connect: Connect, worker: Cursor, api: Cursor
) -> None:
    log = MemoryLog(given.revoked())
    async with running(runner_of(raising(lambda: ZeroDivisionError("x")), log, connect)):
        await until(lambda: failed(worker, "codes"))
        assert await wait_for_position(lambda: lent(api), "codes", 1, 2) == 2
        with pytest.raises(ViewStopped, match=r"View codes has stopped\. It can be read up to position 2") as stopped:
            await wait_for_position(lambda: lent(api), "codes", 1, 3, timeout_s=NEVER_S)
    assert (stopped.value.wanted, stopped.value.reached) == (3, 2)


async def test_a_view_that_never_began_has_read_nothing(api: Cursor) -> None:
    assert await checkpoints.position_reached(api, 1, "codes") == 0
    assert await positions(api, "codes") == {}
    assert await checkpoints.load_states(api) == []


async def test_views_are_created_once_however_often_and_whoever_asks(connect: Connect, api: Cursor) -> None:
    await asyncio.gather(*(create_missing(connect, VIEWS) for _ in range(3)))
    assert [(status.view, status.version, status.state) for status in await checkpoints.load_states(api)] == sorted(
        (each.name, each.version, "following") for each in VIEWS
    )
    assert isinstance((await checkpoints.load_states(api))[0], ViewState)
