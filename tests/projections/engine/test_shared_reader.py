"""The shared reader: one reading of the log for many views, none of which waits long or misses an event."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from projections.engine import shared_reader
from projections.engine.checkpoints import positions_after
from projections.engine.page import EventPage
from projections.engine.projector import UnreadableEvent
from projections.engine.shared_reader import SharedLog, SharedLogReader
from tests import given
from tests.given import Story
from tests.projections.memory_log import MemoryLog, happening, until

LONG: Story = happening(11, 200)
NEVER_S = 3600.0


class SlowLog(MemoryLog):
    """A log whose answers wait for `go`; what they say was so when they were asked for."""

    def __init__(self, *stories: Story) -> None:
        super().__init__(*stories)
        self.go = asyncio.Event()

    async def after(self, positions: Mapping[int, int], limit: int) -> EventPage:
        page = await super().after(positions, limit)
        await self.go.wait()
        return page


class BusyLog(MemoryLog):
    """A log whose answers take a moment, in which others may ask."""

    async def after(self, positions: Mapping[int, int], limit: int) -> EventPage:
        page = await super().after(positions, limit)
        await asyncio.sleep(0)
        return page


async def follow(
    reader: SharedLogReader, positions: dict[int, int], limit: int = 10, pages: int = 1000
) -> dict[int, int]:
    """Read page after page to the end."""
    while pages and (page := await reader.after(positions, limit)).spans:
        positions = positions_after(positions, page)
        pages -= 1
    return positions


async def test_the_log_is_read_once_for_all_readers_at_the_same_position() -> None:
    log = BusyLog(LONG, happening(12, 100))
    shared = SharedLog(log)
    readers = [shared.reader() for _ in range(8)]
    ends = await asyncio.gather(*(follow(reader, {}) for reader in readers))
    assert ends == [log.heads] * 8
    pages = -(-sum(log.heads.values()) // 10)
    assert log.pages <= pages + 2, "each page once, and at the end a look or two that find nothing more"


async def test_a_reader_inside_a_page_meets_the_others_at_its_end() -> None:
    log = MemoryLog(LONG)
    shared = SharedLog(log)
    one, other = shared.reader(), shared.reader()
    assert positions_after({}, await one.after({}, 10)) == {1: 10}
    page = await other.after({1: 7}, 10)
    assert [recorded.position for _, recorded in page.events] == [8, 9, 10]
    assert await other.after({1: 10}, 10) is await one.after({1: 10}, 10)
    assert log.pages == 2


async def test_a_slower_reader_gets_more_at_a_time() -> None:
    story = happening(14, 40)
    log = MemoryLog(story, happening(15, 20))
    shared = SharedLog(log)
    quick, slow = shared.reader(), shared.reader()
    at = positions_after({}, await slow.after({}, 2))
    reached = await follow(quick, {}, 2)
    for _ in range(5):
        story.when(_more(story))
        reached = await follow(quick, reached, 2)
    looked = log.pages
    page = await slow.after(at, 1000)
    assert positions_after(at, page) == reached == log.heads
    assert page.length > 10
    assert log.pages == looked
    assert (await shared.reader().after({}, 7)).length in {6, 7}


async def test_what_is_recorded_during_a_read_is_seen_by_every_later_reader() -> None:
    story = happening(13, 30)
    log = SlowLog(story)
    shared = SharedLog(log)
    end = log.heads
    first = asyncio.create_task(shared.reader().after(end, 10))
    await until(lambda: log.pages == 1)
    story.when(_more(story))
    # It would have been told of that commit, and not be told again: the answer under way is too old for it.
    second = asyncio.create_task(shared.reader().after(end, 10))
    await asyncio.sleep(0)
    log.go.set()
    assert (await first).spans == {}
    assert (await second).length == 1


async def test_of_two_readers_that_find_nothing_at_the_same_time_one_reads() -> None:
    log = SlowLog(LONG)
    shared = SharedLog(log)
    asked = [asyncio.create_task(shared.reader().after(log.heads, 10)) for _ in range(5)]
    await until(lambda: log.pages == 1)
    log.go.set()
    assert [page.spans for page in await asyncio.gather(*asked)] == [{}] * 5
    assert log.pages == 2, "the one under way as they asked, and one more for all who asked meanwhile"


async def test_a_reader_that_has_fallen_behind_reads_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_reader, "EVENTS_KEPT_MAX", 30)
    log = MemoryLog(LONG)
    shared = SharedLog(log, patience_s=0.0)
    quick, slow = shared.reader(), shared.reader()
    at = positions_after({}, await slow.after({}, 10))
    assert await follow(quick, {}) == log.heads
    before = log.pages
    assert await follow(slow, at) == log.heads
    assert log.pages > before + 1


async def test_quick_readers_wait_for_a_slow_one_before_they_push_out_its_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_reader, "EVENTS_KEPT_MAX", 30)
    log = MemoryLog(LONG)
    shared = SharedLog(log, patience_s=NEVER_S)
    quick, slow = shared.reader(), shared.reader()
    at = positions_after({}, await slow.after({}, 10))
    running = asyncio.create_task(follow(quick, {}))
    await until(lambda: log.pages == 4)
    assert not running.done(), "it has read what the slow one will ask for next, and more is not kept"
    while (page := await slow.after(at, 10)).spans:
        at = positions_after(at, page)
    assert await running == at == log.heads
    assert log.pages <= -(-log.heads[1] // 10) + 2, "the log was read once"


async def test_quick_readers_wait_for_one_that_has_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_reader, "EVENTS_KEPT_MAX", 30)
    log = MemoryLog(LONG)
    shared = SharedLog(log, patience_s=NEVER_S)
    quick, late = shared.reader(), shared.reader()
    running = asyncio.create_task(follow(quick, {}))
    await until(lambda: log.pages == 3)
    assert not running.done()
    assert await follow(late, {}) == await running == log.heads
    assert log.pages <= -(-log.heads[1] // 10) + 2, "the log was read once"


async def test_no_reader_waits_for_one_that_hangs_or_was_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_reader, "EVENTS_KEPT_MAX", 30)
    log = MemoryLog(LONG)
    patient = SharedLog(log, patience_s=NEVER_S)
    quick, leaving = patient.reader(), patient.reader()
    await leaving.after({}, 10)
    running = asyncio.create_task(follow(quick, {}))
    await until(lambda: log.pages == 4)
    leaving.close()
    assert await running == log.heads

    impatient = SharedLog(log, patience_s=0.05)
    still = impatient.reader()
    await still.after({}, 10)
    assert await asyncio.wait_for(follow(impatient.reader(), {}), 5) == log.heads


async def test_an_event_that_cannot_be_read_stops_each_reader_that_comes_to_it() -> None:
    log = MemoryLog(LONG)
    log.unreadable.add((1, 15))
    shared = SharedLog(log)
    readers = [shared.reader() for _ in range(3)]
    outcomes = await asyncio.gather(*(follow(reader, {}) for reader in readers), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [UnreadableEvent] * 3


async def test_a_reader_that_is_cancelled_while_it_reads_for_others_leaves_them_to_read() -> None:
    log = SlowLog(LONG)
    shared = SharedLog(log)
    first = asyncio.create_task(shared.reader().after({}, 10))
    await until(lambda: log.pages == 1)
    second = asyncio.create_task(shared.reader().after({}, 10))
    await asyncio.sleep(0)
    first.cancel()
    log.go.set()
    assert (await second).length == 10
    assert log.pages == 2


async def test_after_a_lost_session_nothing_is_served_that_was_read_before() -> None:
    log = SlowLog(LONG)
    shared = SharedLog(log)
    reader = shared.reader()
    under_way = asyncio.create_task(reader.after({}, 10))
    await until(lambda: log.pages == 1)
    reader.forget()
    log.go.set()
    await under_way
    await shared.reader().after({}, 10)
    assert log.pages == 2
    reader.forget()
    await shared.reader().after({}, 10)
    assert log.pages == 3


def _more(story: Story) -> given.Command:
    return given.permission(creator_id=f"creator-{len(story.ledger.events)}")
