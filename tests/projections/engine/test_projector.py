"""The projector: the rows of a page and the checkpoint past it are written together or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest

from domain.code import Code
from domain.recorded import RecordedEvent
from projections import codes
from projections.codes import CodeRow
from projections.engine.fill import fill
from projections.engine.projector import Connect, PoisonEvent, Projector, prepare
from projections.engine.table import Statement
from projections.engine.view import SHADOW_SUFFIX, View
from tests import given
from tests.projections.conftest import Cursor
from tests.projections.memory_log import MemoryLog, happening, positions, rows


@asynccontextmanager
async def projecting(view: View[Any], connect: Connect, *, shadow: bool = False) -> AsyncIterator[Projector]:
    async with await connect() as connection:
        projector = Projector(view, connection, shadow=shadow)
        await projector.prepare()
        await projector.create(indexes=not shadow)
        await projector.find()
        yield projector


@pytest.mark.parametrize("filling", [False, True], ids=["following", "filling"])
async def test_a_page_whose_writing_is_cancelled_leaves_neither_rows_nor_a_checkpoint(
    filling: bool, connect: Connect, worker: Cursor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is cancelled when the checkpoint has been sent, and some rows have not."""
    log, sent = MemoryLog(happening(1, 40)), asyncio.Event()

    async def never_sent(_: Statement, __: Cursor) -> None:
        sent.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Statement, "execute", never_sent)
    async with await connect() as loads, projecting(codes.VIEW, connect, shadow=filling) as projector:
        await prepare(loads)
        applying = asyncio.create_task(
            fill(projector, log, loads, 10, lambda _: None) if filling else _applied(projector, log)
        )
        await asyncio.wait({applying, asyncio.create_task(sent.wait())}, return_when=asyncio.FIRST_COMPLETED)
        applying.cancel()
        with suppress(asyncio.CancelledError):
            await applying
    assert await positions(worker, projector.name) == {}
    assert not any((await rows(worker, codes.VIEW, suffix=SHADOW_SUFFIX if filling else "")).values())


async def _applied(projector: Projector, log: MemoryLog) -> None:
    await projector.apply_all(log, 10)


@pytest.mark.parametrize("filling", [False, True], ids=["following", "filling"])
async def test_a_view_stops_before_an_event_whose_row_cannot_be_sent(
    filling: bool, connect: Connect, worker: Cursor
) -> None:
    story = happening(3, 80)
    story.when(given.generate(video_id="7300000000000000123"))
    log = MemoryLog(story)
    poison = log.heads[1]

    def unsendable(ledger_id: int, recorded: RecordedEvent, event: Code.Generated) -> CodeRow:
        row = codes.generated(ledger_id, recorded, event)
        return replace(row, video_id="\ud800") if recorded.position == poison else row

    view = replace(codes.VIEW, creates={Code.Generated: unsendable})
    async with await connect() as loads, projecting(view, connect, shadow=filling) as projector:
        await prepare(loads)
        with pytest.raises(PoisonEvent) as stopped:
            await (fill(projector, log, loads, 10, lambda _: None) if filling else projector.apply_all(log, 1_000))
        assert stopped.value.at == (1, poison)
    assert await positions(worker, projector.name) == {1: poison - 1}


async def test_rows_are_found_by_their_key_in_a_table_that_was_empty_when_the_first_were_overwritten(
    connect: Connect,
) -> None:
    log = MemoryLog(happening(1, 60))
    events = log.ledgers[1]
    log.ledgers[1] = events[:-10]
    async with projecting(codes.VIEW, connect) as projector:
        cur = projector.connection.cursor()
        # As for pages of many rows, which PostgreSQL would not plan each time.
        await cur.execute("SET plan_cache_mode = force_generic_plan")
        await projector.apply_all(log, 1)
        columns = [column for column in codes.CODES.columns if column != "code_id"]
        await cur.execute(
            f"INSERT INTO views.codes (code_id, {', '.join(columns)})"
            f" SELECT gen_random_uuid(), {', '.join(columns)} FROM views.codes, generate_series(1, 500)".encode()
        )
        log.ledgers[1] = events
        before = await _entries_read(cur)
        await projector.apply_all(log, 1)
        assert await _entries_read(cur) - before < 500


async def _entries_read(cur: Cursor) -> int:
    """Return how many entries of the indexes of the view of codes were read."""
    await cur.execute("SELECT pg_stat_force_next_flush()")
    await cur.execute("SELECT sum(idx_tup_read)::bigint FROM pg_stat_user_indexes WHERE relname = 'codes'")
    row = await cur.fetchone()
    assert row is not None
    return int(row[0])
