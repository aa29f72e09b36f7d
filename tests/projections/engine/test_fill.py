"""Fills: many pages in one transaction, written while the next are applied; killed and stopped at any moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import psycopg
import pytest

from domain.code import Code
from domain.recorded import RecordedEvent
from projections import codes, event_index, figures, permissions, statistics
from projections.engine import rebuild
from projections.engine.fill import fill
from projections.engine.page import EventPage
from projections.engine.projector import Connect, PoisonEvent, Projector, prepare
from projections.engine.table import Statement, Table
from projections.engine.view import SHADOW_SUFFIX, View
from tests import given
from tests.projections.conftest import Cursor, Followed
from tests.projections.engine.runners import poisoned_by
from tests.projections.memory_log import MemoryLog, happening, positions, rows

PAGE_EVENTS = 10
SEVERAL = [codes.VIEW, event_index.VIEW, permissions.VIEW, statistics.VIEW, figures.VIEW]


@dataclass(slots=True)
class SpanRow:
    """What happened to a code since its window was last set: an extension makes the row once more."""

    ledger_id: int
    code_id: UUID
    began_at: int
    length: int


def begun(ledger_id: int, recorded: RecordedEvent, _event: Code.Event) -> SpanRow:
    return SpanRow(ledger_id, recorded.stream_id, recorded.position, 1)


def continued(row: SpanRow, _recorded: RecordedEvent, _event: Code.Event) -> None:
    row.length += 1


SPANS = View(
    "spans",
    1,
    Table(
        "spans",
        SpanRow,
        key=("ledger_id", "code_id"),
        fixed=("began_at",),
        ddl="""
            CREATE TABLE {table} (
                ledger_id   int NOT NULL,
                code_id     uuid NOT NULL,
                began_at    bigint NOT NULL,
                length      bigint NOT NULL,
                PRIMARY KEY (ledger_id, code_id)
            )
        """,
    ),
    row_of=lambda recorded: recorded.stream_id,
    creates={Code.Generated: begun, Code.Extended: begun},
    updates={Code.Event: continued},
)


@asynccontextmanager
async def filling(view: View[Any], connect: Connect) -> AsyncIterator[tuple[Projector, psycopg.AsyncConnection[Any]]]:
    """Yield a projector of the view's shadow tables, and a session for loads."""
    async with await connect() as connection, await connect() as loads:
        projector = Projector(view, connection, shadow=True)
        await projector.prepare()
        await prepare(loads)
        await projector.create(indexes=False)
        await projector.find()
        yield projector, loads


async def test_many_pages_are_written_in_one_transaction_of_a_bounded_number_of_events(
    connect: Connect, worker: Cursor
) -> None:
    log = MemoryLog(happening(1, 150), happening(2, 150))
    written: list[int] = []
    async with filling(codes.VIEW, connect) as (projector, loads):
        await fill(projector, log, loads, PAGE_EVENTS, written.append, fill_events=35)
    assert sum(written) == sum(log.heads.values())
    assert all(35 <= events < 35 + PAGE_EVENTS for events in written[:-1])
    assert len(written) > 2
    assert await positions(worker, "codes" + SHADOW_SUFFIX) == log.heads


async def test_rows_that_are_being_written_are_not_loaded_but_changed_further(
    connect: Connect, worker: Cursor, follow: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each page is committed only after the one that follows on it was begun."""
    log = MemoryLog(happening(1, 80))
    further = asyncio.Event()
    unhindered, read = Projector.write, log.after

    async def after(known: Mapping[int, int], limit: int) -> EventPage:
        page = await read(known, limit)
        further.set()
        return page

    async def write(projector: Projector, cur: Cursor, page: EventPage, statements: Iterable[Statement]) -> None:
        further.clear()
        await further.wait()
        await unhindered(projector, cur, page, statements)

    for view in (codes.VIEW, statistics.VIEW, figures.VIEW):
        await follow(view, log)
        monkeypatch.setattr(log, "after", after)
        monkeypatch.setattr(Projector, "write", write)
        async with filling(view, connect) as (projector, loads):
            ends = asyncio.create_task(fill(projector, log, loads, 5, lambda _: further.set(), fill_events=5))
            while not ends.done():
                await asyncio.wait({ends}, timeout=0.05)
                further.set()  # the last page has none that follows
            await ends
        monkeypatch.undo()
        assert await rows(worker, view, suffix=SHADOW_SUFFIX) == await rows(worker, view)


@pytest.mark.parametrize("view", SEVERAL, ids=lambda view: view.name)
async def test_a_fill_that_is_killed_again_and_again_loses_and_repeats_nothing(
    view: View[Any], connect: Connect, worker: Cursor, follow: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MemoryLog(happening(1, 150), happening(2, 150))
    await follow(view, log, page_events=1000)
    whole = await rows(worker, view)
    unharmed, writes = Projector.write, [0]

    async def write(projector: Projector, cur: Cursor, page: EventPage, statements: Iterable[Statement]) -> None:
        await unharmed(projector, cur, page, statements)
        writes[0] += 1
        if writes[0] % 2 == 0:  # before it is committed
            await worker.connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND usename = 'sparkledger_worker' AND pid <> pg_backend_pid()"
            )

    monkeypatch.setattr(Projector, "write", write)
    reached = []
    while True:
        try:
            await rebuild.rebuild(view, log, connect, page_events=PAGE_EVENTS, fill_events=25)
        except psycopg.OperationalError:
            reached.append(sum((await positions(worker, view.name + SHADOW_SUFFIX)).values()))
        else:
            break
    assert len(reached) > 1
    assert reached == sorted(reached), "each resumes where the one before was committed"
    assert await rows(worker, view) == whole


async def test_a_fill_stops_right_before_an_event_that_it_cannot_apply(connect: Connect, worker: Cursor) -> None:
    story = happening(3, 80)
    story.when(given.generate(video_id="7300000000000000123"))
    log = MemoryLog(story)
    view = poisoned_by(Code.Revoked)
    poison = next(r.position for r in log.ledgers[1] if isinstance(r.event, Code.Revoked))
    async with filling(view, connect) as (projector, loads):
        with pytest.raises(PoisonEvent) as stopped:
            await fill(projector, log, loads, PAGE_EVENTS, lambda _: None, fill_events=1_000)
    assert stopped.value.at == (1, poison)
    assert await positions(worker, "codes" + SHADOW_SUFFIX) == {1: poison - 1}


@pytest.mark.parametrize("fill_events", [1, 20, 1_000])
async def test_a_row_that_an_event_makes_once_more_is_replaced_whole(
    fill_events: int, connect: Connect, worker: Cursor, follow: Followed
) -> None:
    log = MemoryLog(happening(1, 150))
    await follow(SPANS, log)
    async with filling(SPANS, connect) as (projector, loads):
        await fill(projector, log, loads, 5, lambda _: None, fill_events=fill_events)
    found = await rows(worker, SPANS, suffix=SHADOW_SUFFIX)
    assert found == await rows(worker, SPANS)
    assert any(began_at > 5 and length > 1 for *_, began_at, length in found["spans"])


async def test_all_that_is_written_before_a_fill_fails_counts_as_progress(connect: Connect) -> None:
    story = happening(3, 80)
    log, written = MemoryLog(story), list[int]()
    poison = max(r.position for r in log.ledgers[1] if isinstance(r.event, Code.Generated))

    def unreadable(ledger_id: int, recorded: RecordedEvent, event: Code.Generated) -> codes.CodeRow:
        if recorded.position == poison:
            raise ZeroDivisionError("a mistake in a handler")
        return codes.generated(ledger_id, recorded, event)

    view = replace(codes.VIEW, creates={Code.Generated: unreadable})
    async with filling(view, connect) as (projector, loads):
        with pytest.raises(PoisonEvent):
            await fill(projector, log, loads, 1, written.append, fill_events=2)
        assert sum(written) == projector.positions[1] == poison - 1


async def test_what_comes_before_an_event_that_cannot_be_read_is_written(connect: Connect, worker: Cursor) -> None:
    log = MemoryLog(happening(3, 80))
    log.unreadable = {(1, 17)}
    async with filling(codes.VIEW, connect) as (projector, loads):
        with pytest.raises(PoisonEvent):
            await fill(projector, log, loads, PAGE_EVENTS, lambda _: None, fill_events=1_000)
    assert await positions(worker, "codes" + SHADOW_SUFFIX) == {1: 16}
