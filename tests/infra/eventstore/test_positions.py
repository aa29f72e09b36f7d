"""Positions under concurrency: dense from 1, in commit order, however many writers contend."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from time import monotonic
from uuid import UUID

import psycopg
import pytest

from infra.eventstore.append import Append, Appended, Outcome
from infra.eventstore.group_commit import GroupCommitWriter
from infra.ids import uuid7
from tests.infra.eventstore.appends import appending, row, together, writing
from tests.infra.eventstore.checker import held, problems
from tests.infra.eventstore.load import MARK, Load
from tests.infra.eventstore.notebook import Notebook, noted
from tests.infra.holding import locked, until_it_waits
from tests.infra.opened import Opened

TASKS = 32
SECONDS = 2.0
NEVER_A_DEADLOCK = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"


@pytest.mark.long("hundreds of commands compete")
async def test_two_writers_with_32_tasks_on_three_ledgers_agree_with_the_log(opened: Opened, tmp_path: Path) -> None:
    ledgers = [(await opened.begin(f"ledger-{n}")).ledger_id for n in range(3)]
    book = Notebook(tmp_path / "told.jsonl")
    until = monotonic() + SECONDS
    dsn = opened.database.dsn()
    async with (
        writing(opened.database) as one,
        writing(opened.database) as two,
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as reading,
    ):
        loads = [Load(writer, reading, ledgers, book) for writer in (one, two)]
        await asyncio.gather(*(loads[n % 2].write(lambda: monotonic() > until) for n in range(TASKS)))
    book.close()

    told = [attempt.told for attempt in noted(tmp_path / "told.jsonl")]
    assert problems(told, held(dsn, MARK)) == []
    answers = Counter(attempt.answer for attempt in told)
    assert answers["recorded"] > TASKS
    assert answers["refused"] > TASKS
    assert answers["unknown"] == 0
    assert opened.sql(NEVER_A_DEADLOCK) == [(0,)]


async def test_batches_that_name_their_ledgers_in_opposite_orders_do_not_deadlock(opened: Opened) -> None:
    """Both are stopped in the middle of taking locks: without sorting, each would hold what the other needs."""
    tenants = [await opened.begin(f"ledger-{n}") for n in range(3)]
    ledgers = [tenant.ledger_id for tenant in tenants]
    async with writing(opened.database) as one, writing(opened.database) as two:
        async with locked(opened, tenants[1]) as other:
            forth = asyncio.create_task(together(one, [appending(ledger_id, row(uuid7())) for ledger_id in ledgers]))
            first = await until_it_waits(opened)
            back = asyncio.create_task(
                together(two, [appending(ledger_id, row(uuid7())) for ledger_id in ledgers[::-1]])
            )
            await until_it_waits(opened, other_than=first)
            # The second waits for the first ledger: it does not hold the last, which comes first in its batch.
            await other.execute("SELECT 1 FROM ledgers WHERE ledger_id = %s FOR UPDATE NOWAIT", (ledgers[2],))
        outcomes = [*await forth, *await back]
    assert {type(outcome) for outcome in outcomes} == {Appended}
    assert opened.sql("SELECT count(*), max(position) FROM events GROUP BY ledger_id") == [(2, 2)] * 3


async def test_one_stream_that_many_fight_for_gets_each_version_once(opened: Opened) -> None:
    tenant = await opened.begin()
    stream = uuid7()

    async def fight(writer: GroupCommitWriter) -> int:
        outcomes = [await writer.append(appending(tenant.ledger_id, row(stream, version))) for version in range(1, 21)]
        return sum(isinstance(outcome, Appended) for outcome in outcomes)

    async with writing(opened.database) as one, writing(opened.database) as two:
        won = await asyncio.gather(*(fight(writer) for writer in (one, two) for _ in range(8)))
    assert sum(won) == 20
    assert versions(opened, stream) == list(range(1, 21))


def versions(opened: Opened, stream: UUID) -> list[int]:
    rows = opened.sql("SELECT version FROM events WHERE stream_id = %s ORDER BY position", stream)
    return [version for (version,) in rows]


async def test_positions_follow_the_order_of_commits_while_a_reader_holds_a_snapshot(opened: Opened) -> None:
    """A long snapshot must neither hide a commit from the next append nor stand in its way."""
    tenant = await opened.begin()
    async with await psycopg.AsyncConnection.connect(opened.database.dsn()) as reader, writing(opened.database) as one:
        await reader.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        await reader.execute("SELECT count(*) FROM events")
        outcomes: list[Outcome] = []
        async with writing(opened.database) as two:
            for n in range(10):
                request: Append = appending(tenant.ledger_id, row(uuid7()))
                outcomes.append(await (one, two)[n % 2].append(request))
    assert [outcome.first for outcome in outcomes if isinstance(outcome, Appended)] == list(range(1, 11))
