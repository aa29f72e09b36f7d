"""Reads of the log: pages, streams, and point reads that wait together as one query."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import pytest

from domain.recorded import RecordedEvent
from infra.errors import Unavailable
from infra.eventstore.reader import EventReader
from infra.eventstore.serialization import UnreadableEvent
from infra.ids import uuid7
from infra.postgres import batch_loader
from infra.postgres.batch_loader import BatchLoader
from infra.postgres.pool import Database
from infra.postgres.roles import API
from tests import given
from tests.infra.eventstore.appends import accept, appending, keyed, row, writing
from tests.infra.eventstore.load import Marked
from tests.infra.opened import Opened, Tenant

BODY = b'{"mark":"read"}'


async def filled(opened: Opened, count: int = 10) -> Tenant:
    """Fill a ledger with streams of one event each."""
    tenant = await opened.begin()
    async with writing(opened.database) as writer:
        for _ in range(count):
            await writer.append(appending(tenant.ledger_id, row(uuid7(), type=Marked.TOPIC, body=BODY)))
    return tenant


# Bounds of a page over a ledger of ten events, and the positions in it.
PAGES: list[tuple[dict[str, Any], list[int]]] = [
    ({}, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
    ({"after": 0, "limit": 3}, [1, 2, 3]),
    ({"after": 7}, [8, 9, 10]),
    ({"after": 10}, []),
    ({"before": 3}, [1, 2]),
    ({"after": 3, "before": 6}, [4, 5]),
    ({"descending": True, "limit": 3}, [10, 9, 8]),
    ({"descending": True, "before": 9, "limit": 2}, [8, 7]),
]


async def test_a_page_lies_between_its_bounds(opened: Opened) -> None:
    tenant = await filled(opened)
    pages = [await opened.events.page(tenant.ledger_id, **bounds) for bounds, _ in PAGES]
    assert [[recorded.position for recorded in page] for page in pages] == [positions for _, positions in PAGES]


async def test_what_was_committed_is_seen_by_the_next_read(opened: Opened) -> None:
    tenant = await opened.begin()
    store = opened.events
    async with writing(opened.database) as writer:
        for position in range(1, 20):
            await writer.append(appending(tenant.ledger_id, row(uuid7())))
            assert await store.head(tenant.ledger_id) == position


async def test_an_empty_ledger_has_no_head(opened: Opened) -> None:
    tenant = await opened.begin()
    assert await opened.events.head(tenant.ledger_id) == 0


async def test_streams_read_together_are_those_asked_for(opened: Opened) -> None:
    tenant = await filled(opened)
    page = await opened.events.page(tenant.ledger_id)
    asked = [page[2].stream_id, uuid7(), page[5].stream_id]
    found = await opened.events.streams(tenant.ledger_id, asked)
    assert {stream: [r.position for r in events] for stream, events in found.items()} == {asked[0]: [3], asked[2]: [6]}


async def test_point_reads_that_wait_together_are_one_query_and_each_gets_its_own(opened: Opened) -> None:
    tenant = await filled(opened)
    counting, queries = counted(opened)
    streams = [recorded.stream_id for recorded in await opened.events.page(tenant.ledger_id)]
    found = await asyncio.gather(*(counting.stream(tenant.ledger_id, stream) for stream in [*streams, uuid7()]))
    assert [[r.stream_id for r in stream or []] for stream in found] == [*[[stream] for stream in streams], []]
    assert len(queries) == 1


async def test_events_and_commands_asked_for_together_are_one_query_each(opened: Opened) -> None:
    tenant = await opened.begin()
    async with writing(opened.database) as writer:
        for n in range(1, 6):
            event = row(uuid7(), type=Marked.TOPIC, body=BODY)
            await writer.append(keyed(tenant.ledger_id, event, key=b"%016d" % n, request=b"%016d" % n))
    asked: list[str] = []

    class Counting(EventReader):
        async def _rows(self, ledger_id: int, query: str, parameters: Any) -> list[Any]:
            asked.append(query)
            return await super()._rows(ledger_id, query, parameters)

        async def _found(self, ledger_id: int, query: str, parameters: Any) -> list[Any]:
            asked.append(query)
            return await super()._found(ledger_id, query, parameters)

    store = Counting(opened.api.database)
    events = await asyncio.gather(*(store.event(tenant.ledger_id, position) for position in [3, 1, 99, 5]))
    assert [event and event.position for event in events] == [3, 1, None, 5]
    commands = await asyncio.gather(*(store.command(tenant.ledger_id, b"%016d" % n) for n in [2, 9, 4]))
    assert commands == [(b"%016d" % 2, 2, 2), None, (b"%016d" % 4, 4, 4)]
    assert len(asked) == 2


async def test_reads_of_one_stream_that_wait_together_ask_for_it_once(opened: Opened) -> None:
    tenant = await filled(opened, 1)
    counting, queries = counted(opened)
    stream = (await opened.events.page(tenant.ledger_id))[0].stream_id
    found = await asyncio.gather(*(counting.stream(tenant.ledger_id, stream) for _ in range(50)))
    assert all(events and len(events) == 1 for events in found)
    assert queries == [[stream]]


async def test_more_reads_than_one_query_takes_are_answered_by_several(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_loader, "MAX_BATCHED", 4)
    tenant = await filled(opened)
    counting, queries = counted(opened)
    streams = [recorded.stream_id for recorded in await opened.events.page(tenant.ledger_id)]
    await asyncio.gather(*(counting.stream(tenant.ledger_id, stream) for stream in streams))
    assert [len(query) for query in queries] == [4, 4, 2]


async def test_two_ledgers_that_read_at_once_are_not_mixed_up(opened: Opened) -> None:
    one, two = await opened.begin("one"), await opened.begin("two")
    for tenant in (one, two):
        await opened.when(tenant, given.permission())
    store = opened.events
    creators = await asyncio.gather(
        *(opened.aggregates.creator_stream(tenant.ledger_id, given.CREATOR) for tenant in (one, two) * 10)
    )
    keys = [stream[0].actor.key_id for stream in creators]
    assert keys == [str(one.key.key_id), str(two.key.key_id)] * 10
    assert await store.head(one.ledger_id) == await store.head(two.ledger_id) == 1


async def test_a_reader_that_gives_up_never_touches_those_who_wait_with_it(opened: Opened) -> None:
    tenant = await filled(opened)
    store = opened.events
    streams = [recorded.stream_id for recorded in await store.page(tenant.ledger_id)]
    reads = [asyncio.create_task(store.stream(tenant.ledger_id, stream)) for stream in streams]
    await asyncio.sleep(0)
    reads[0].cancel()
    found = await asyncio.gather(*reads[1:])
    assert [len(events or []) for events in found] == [1] * 9


async def test_an_event_that_cannot_be_read_stands_among_those_that_can(opened: Opened) -> None:
    tenant = await filled(opened, 3)
    accept(opened.database, "NobodyKnowsThis")
    async with writing(opened.database) as writer:
        await writer.append(appending(tenant.ledger_id, row(uuid7(), type="NobodyKnowsThis")))
    page = await opened.events.page(tenant.ledger_id)
    assert [isinstance(recorded.event, UnreadableEvent) for recorded in page] == [False] * 3 + [True]
    assert page[-1].type == "NobodyKnowsThis"


async def squares(_ledger_id: int, numbers: Sequence[int]) -> dict[int, int]:
    """Look numbers up, of which one is at fault."""
    if 13 in numbers:
        raise ZeroDivisionError
    return {number: number * number for number in numbers}


async def test_an_error_reaches_every_reader_that_waited_for_it_and_none_after() -> None:
    look_up = BatchLoader(squares)
    errors = await asyncio.gather(*(look_up(1, 13) for _ in range(3)), return_exceptions=True)
    assert [type(error) for error in errors] == [ZeroDivisionError] * 3
    assert await look_up(1, 2) == 4


async def test_what_is_at_fault_never_touches_what_is_read_with_it() -> None:
    look_up = BatchLoader(squares)
    found = await asyncio.gather(*(look_up(1, number) for number in (1, 2, 13, 3)), return_exceptions=True)
    assert [type(square) for square in found] == [int, int, ZeroDivisionError, int]


async def test_a_read_survives_the_end_of_every_pooled_session(opened: Opened) -> None:
    tenant = await filled(opened, 3)
    store = opened.events
    await asyncio.gather(*(store.head(tenant.ledger_id) for _ in range(6)))
    ended = opened.sql(
        "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity"
        " WHERE datname = current_database() AND usename = %s",
        API,
    )
    assert ended[0][0] >= 1
    assert await asyncio.gather(*(store.head(tenant.ledger_id) for _ in range(6))) == [3] * 6


async def test_a_database_that_is_away_is_unavailable_to_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.postgres.pool.POOL_WAIT_S", 0.2)
    database = Database("host=/nowhere dbname=nothing", API)
    await database.open()
    with pytest.raises(Unavailable, match="cannot be reached"):
        await EventReader(database).head(1)
    await database.close()


def counted(opened: Opened) -> tuple[EventReader, list[list[UUID]]]:
    """Return a store, and the streams that each of its queries asks for."""
    queries: list[list[UUID]] = []

    class Counting(EventReader):
        async def streams(self, ledger_id: int, stream_ids: Any) -> dict[UUID, list[RecordedEvent]]:
            queries.append(list(stream_ids))
            return await super().streams(ledger_id, stream_ids)

    return Counting(opened.api.database), queries
