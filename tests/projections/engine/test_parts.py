"""Parts of a rebuild, each filled by itself: the same rows, whatever is interrupted, and whichever part comes first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from projections import VIEWS, codes, statistics
from projections.engine import checkpoints, parts, rebuild
from projections.engine.checkpoints import CheckpointConflict
from projections.engine.fill import fill
from projections.engine.page import EventPage, Span
from projections.engine.parts import Part
from projections.engine.projector import Connect, PoisonEvent, Projector, prepare
from projections.engine.rebuild import PartFailed, RebuildProgress
from projections.engine.view import SHADOW_SUFFIX, View
from tests import given
from tests.projections.conftest import Cursor, Followed
from tests.projections.memory_log import MemoryLog, happening, positions, rows

BY_NAME = {view.name: view for view in VIEWS}
PAGE_EVENTS = 10


class MemoryPart:
    """A part of a log in memory, up to some positions."""

    def __init__(self, log: MemoryLog, part: Part, upto: Mapping[int, int]) -> None:
        self.log, self.part, self.upto = log, part, upto

    async def after(self, positions: Mapping[int, int], limit: int) -> EventPage:
        for ledger_id, upto in self.upto.items():
            first = positions.get(ledger_id, 0) + 1
            last = min(upto, first + limit - 1)
            if first <= last:
                events = [
                    (ledger_id, recorded)
                    for recorded in self.log.ledgers[ledger_id][first - 1 : last]
                    if recorded.stream_id.int % self.part.parts == self.part.number - 1
                ]
                return EventPage(events, {ledger_id: Span(first, last, None)})
        return EventPage((), {})

    def forget(self) -> None:
        pass


class Here:
    """Fills parts in this process, all at once; `pages` is how many each fills before it fails."""

    def __init__(self, log: MemoryLog, connect: Connect, count: int, pages: int | None = None) -> None:
        self.log, self.connect, self.count, self.pages = log, connect, count, pages
        self.filled: list[int] = []

    async def heads(self) -> Mapping[int, int]:
        return self.log.heads

    async def fill(self, view: str, count: int, upto: Mapping[int, int], on_page: Callable[[int], None]) -> None:
        self.filled.append(count)
        numbers = range(1, count + 1)
        ways = (self.one(BY_NAME[view], Part(number, count), upto, on_page) for number in numbers)
        for outcome in await asyncio.gather(*ways, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def one(self, view: View[Any], part: Part, upto: Mapping[int, int], on_page: Callable[[int], None]) -> None:
        async with await self.connect() as connection, await self.connect() as loads:
            projector = Projector(view, connection, shadow=True, part=part)
            await projector.prepare()
            await prepare(loads)
            await projector.find()
            pages = 0

            def after_page(passed: int) -> None:
                nonlocal pages
                on_page(passed)
                pages += 1
                if pages == self.pages:
                    raise PartFailed

            of_part = MemoryPart(self.log, part, upto)
            await fill(projector, of_part, loads, PAGE_EVENTS, after_page, fill_events=PAGE_EVENTS)


@pytest.fixture
def log() -> MemoryLog:
    """Two ledgers in which much happens."""
    return MemoryLog(*(given.after(happening(seed, 150), given.advertiser()) for seed in (1, 2)))


async def test_rows_filled_in_parts_are_the_live_rows(
    log: MemoryLog, connect: Connect, worker: Cursor, follow: Followed
) -> None:
    for view in VIEWS:
        await follow(view, log, page_events=1000)
        live = await rows(worker, view)
        told: list[RebuildProgress] = []
        await rebuild.rebuild(view, log, connect, told.append, processes=Here(log, connect, 3))
        assert await rows(worker, view) == live
        assert await positions(worker, view.name) == log.heads
        assert await parts.load(worker, view.name, view.version) == {}
        heads = sum(log.heads.values())
        assert (told[-1].phase, told[-1].events, told[-1].position) == ("done", heads, heads)


async def test_a_rebuild_in_parts_resumes_with_as_many_and_loses_nothing(
    log: MemoryLog, connect: Connect, worker: Cursor, follow: Followed
) -> None:
    await follow(statistics.VIEW, log, page_events=1000)
    live = await rows(worker, statistics.VIEW)
    with pytest.raises(PartFailed):
        await rebuild.rebuild(statistics.VIEW, log, connect, processes=Here(log, connect, 2, pages=3))
    assert await rows(worker, statistics.VIEW) == live, "the old rows are read meanwhile"
    passed = sum(sum(reached.values()) for reached in (await parts.load(worker, "statistics", 6)).values())
    assert passed > 0
    again, told = Here(log, connect, 5), list[RebuildProgress]()
    await rebuild.rebuild(statistics.VIEW, log, connect, told.append, processes=again)
    assert again.filled == [2]
    assert told[-1].events == sum(log.heads.values()) - passed // 2
    assert await rows(worker, statistics.VIEW) == live


async def test_parts_begin_where_a_rebuild_without_them_was_interrupted(
    log: MemoryLog, connect: Connect, worker: Cursor, follow: Followed
) -> None:
    await follow(codes.VIEW, log, page_events=1000)
    live = await rows(worker, codes.VIEW)
    async with await connect() as connection:
        alone = Projector(codes.VIEW, connection, shadow=True)
        await alone.create(indexes=False)
        await alone.apply(await log.after({}, PAGE_EVENTS))
    told: list[RebuildProgress] = []
    await rebuild.rebuild(codes.VIEW, log, connect, told.append, processes=Here(log, connect, 2))
    assert told[-1].events == sum(log.heads.values()) - PAGE_EVENTS
    assert await rows(worker, codes.VIEW) == live


async def test_a_worker_that_finds_parts_rebuilds_from_the_beginning(
    log: MemoryLog, connect: Connect, worker: Cursor, follow: Followed
) -> None:
    await follow(codes.VIEW, log, page_events=1000)
    live = await rows(worker, codes.VIEW)
    with pytest.raises(PartFailed):
        await rebuild.rebuild(codes.VIEW, log, connect, processes=Here(log, connect, 2, pages=3))
    done = await rebuild.rebuild(codes.VIEW, log, connect)
    assert done.events == sum(log.heads.values())
    assert await rows(worker, codes.VIEW) == live
    assert await parts.load(worker, "codes", codes.VERSION) == {}


async def test_what_is_recorded_after_the_parts_began_is_read_after_them(
    log: MemoryLog, connect: Connect, worker: Cursor, follow: Followed
) -> None:
    grown = MemoryLog(*(given.after(happening(seed, 90), given.advertiser()) for seed in (1, 2, 3)))

    class Growing(Here):
        async def fill(self, view: str, count: int, upto: Mapping[int, int], on_page: Callable[[int], None]) -> None:
            await super().fill(view, count, upto, on_page)
            self.log.ledgers = grown.ledgers

    before = MemoryLog()
    before.ledgers = {i: events[:50] for i, events in grown.ledgers.items() if i < 3}
    await follow(statistics.VIEW, before, page_events=1000)
    await rebuild.rebuild(statistics.VIEW, before, connect, processes=Growing(before, connect, 2))
    assert await positions(worker, "statistics") == grown.heads
    rebuilt = await rows(worker, statistics.VIEW)
    await rebuild.rebuild(statistics.VIEW, grown, connect)
    assert await rows(worker, statistics.VIEW) == rebuilt


async def test_an_event_that_stops_a_part_stops_the_rebuild(
    log: MemoryLog, connect: Connect, worker: Cursor, follow: Followed
) -> None:
    class Stopping(Here):
        async def one(self, view: View[Any], part: Part, *_: Any) -> None:
            raise PoisonEvent(view.name + SHADOW_SUFFIX, 1, 7, f"part {part.number} cannot")

    await follow(codes.VIEW, log, page_events=1000)
    with pytest.raises(PoisonEvent, match="before event 7 of ledger 1"):
        await rebuild.rebuild(codes.VIEW, log, connect, processes=Stopping(log, connect, 2))
    state = await checkpoints.load_state(worker, "codes" + SHADOW_SUFFIX)
    assert state is not None
    assert (state.state, state.failed_position, state.error) == ("failed", 7, "part 1 cannot")
    states = await checkpoints.load_states(worker)
    assert [state.view for state in states] == ["codes", "codes_next"], "parts have no state of their own"


async def test_parts_that_are_not_at_the_same_positions_are_not_joined(worker: Cursor) -> None:
    await checkpoints.record_start(worker, "codes" + SHADOW_SUFFIX, codes.VERSION, "building")
    await parts.begin(worker, "codes", codes.VERSION, 2, [1])
    await worker.execute("UPDATE view_positions SET position = 1 WHERE view = %s", (Part(2, 2).name("codes"),))
    with pytest.raises(CheckpointConflict):
        await parts.join(worker, "codes", codes.VERSION)


async def test_a_part_is_not_that_of_another_view_whose_name_ends_alike(worker: Cursor) -> None:
    await parts.begin(worker, "more_codes", codes.VERSION, 2, [1])
    await parts.drop(worker, "codes")
    assert await parts.load(worker, "codes", codes.VERSION) == {}
    assert len(await parts.load(worker, "more_codes", codes.VERSION)) == 2
