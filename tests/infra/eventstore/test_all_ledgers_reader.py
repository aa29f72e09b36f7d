"""Pages across ledgers: to every ledger that has more its part, and nothing left out."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from infra.eventstore.all_ledgers_reader import AllLedgersReader
from infra.ids import uuid7
from infra.postgres.pool import Database
from infra.postgres.roles import WORKER
from projections.engine.checkpoints import positions_after
from projections.engine.page import EventPage, PositionGap
from projections.engine.projector import UnreadableEvent
from tests.infra.opened import Opened

FILL = """
    INSERT INTO events (
        ledger_id, position, stream_id, version, event_id, type, type_version, recorded_at, effective_at,
        creator_stream, actor_role, source, command_id, format, body)
    SELECT %s, n, gen_random_uuid(), 1, gen_random_uuid(), 'PermissionEnabled', 1, now(), now(), gen_random_uuid(),
           'operator', 'operator', gen_random_uuid(), 1, convert_to('{"creator_id":"c"}', 'UTF8')
    FROM generate_series(1, %s) AS n
"""


@pytest.fixture
async def reader(opened: Opened) -> AsyncIterator[AllLedgersReader]:
    """The log as the worker reads it."""
    database = Database(opened.database.dsn(WORKER), WORKER, size=2)
    await database.open()
    yield AllLedgersReader(database)
    await database.close()


async def begin(opened: Opened, *events: int) -> list[int]:
    """Begin ledgers with so many events each, and return their ids."""
    ledgers = []
    for number, count in enumerate(events):
        ledgers.append((await opened.begin(f"ledger-{number}")).ledger_id)
        opened.sql(FILL, ledgers[-1], count)
    return ledgers


def lengths(page: EventPage) -> list[int]:
    """How many events of each ledger a page has."""
    return [span.last - span.first + 1 for _, span in sorted(page.spans.items())]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ((1000,), [100]),
        ((1000, 1000), [50, 50]),
        ((1000, 3), [97, 3]),
        ((3, 1000, 3, 1000), [3, 47, 3, 47]),
        ((1000, 30, 1000, 1), [34, 30, 34, 1]),
        ((20, 30, 40), [20, 30, 40]),
        ((1000, 0, 1000, 1000), [33, 33, 33]),
    ],
)
async def test_each_ledger_gets_its_part_of_a_page_and_what_one_leaves_the_others_share(
    opened: Opened, reader: AllLedgersReader, events: tuple[int, ...], expected: list[int]
) -> None:
    await begin(opened, *events)
    page = await reader.after({}, 100)
    assert lengths(page) == expected
    assert len(page.events) == page.length <= 100


async def test_a_backlog_of_one_ledger_keeps_no_other_waiting(opened: Opened, reader: AllLedgersReader) -> None:
    long, short = await begin(opened, 2000, 5)
    page = await reader.after({}, 10)
    assert lengths(page) == [5, 5]
    opened.sql(FILL.replace("(1, %s)", "(6, %s)"), short, 7)
    page = await reader.after(positions_after({}, page), 10)
    assert {ledger: span.last for ledger, span in page.spans.items()} == {long: 13, short: 7}


async def test_where_more_ledgers_have_more_than_a_page_has_room_for_they_take_turns(
    opened: Opened, reader: AllLedgersReader
) -> None:
    ledgers = await begin(opened, *[5] * 7)
    positions: dict[int, int] = {}
    served: list[list[int]] = []
    while (page := await reader.after(positions, 3)).spans:
        assert lengths(page) == [1, 1, 1] or len(positions) == 7
        served.append(sorted(page.spans))
        positions = positions_after(positions, page)
    assert positions == dict.fromkeys(ledgers, 5)
    assert {ledger for spans in served[:3] for ledger in spans} == set(ledgers), "in three pages all of seven"


async def test_pages_follow_each_other_through_all_ledgers_without_a_gap(
    opened: Opened, reader: AllLedgersReader
) -> None:
    ledgers = await begin(opened, 50, 1, 17, 33)
    positions: dict[int, int] = {}
    while (page := await reader.after(positions, 9)).spans:
        positions = positions_after(positions, page)
    assert positions == dict(zip(ledgers, (50, 1, 17, 33), strict=True))
    assert await reader.heads() == positions


async def test_a_log_that_lacks_an_event_is_read_by_nobody(opened: Opened, reader: AllLedgersReader) -> None:
    (ledger,) = await begin(opened, 9)
    opened.sql("ALTER TABLE events DISABLE TRIGGER ALL")
    opened.sql("DELETE FROM events WHERE ledger_id = %s AND position = 5", ledger)
    with pytest.raises(PositionGap, match=f"Event 6 of ledger {ledger} was read after 4"):
        await reader.after({}, 100)


async def test_an_event_that_cannot_be_read_ends_the_page_before_it_and_is_named_where_it_comes_first(
    opened: Opened, reader: AllLedgersReader
) -> None:
    one, two = await begin(opened, 9, 9)
    opened.sql("ALTER TABLE events DISABLE TRIGGER ALL")
    opened.sql("UPDATE events SET body = 'no JSON' WHERE ledger_id = %s AND position = 5", one)
    opened.sql(
        "UPDATE events SET type = 'NothingThatWeKnow', event_id = %s WHERE ledger_id = %s AND position = 3",
        uuid7(),
        two,
    )
    page = await reader.after({}, 100)
    assert {ledger: span.last for ledger, span in page.spans.items()} == {one: 4}
    for positions, place in (({one: 4}, (one, 5)), ({one: 9, two: 2}, (two, 3))):
        with pytest.raises(UnreadableEvent) as unreadable:
            await reader.after(positions, 100)
        assert (unreadable.value.ledger_id, unreadable.value.position) == place
