"""A writer whose connection is cut again and again under load, before a batch is sent and after it is committed."""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from pathlib import Path
from time import monotonic

import psycopg

from infra.eventstore.group_commit import GroupCommitWriter
from infra.postgres.roles import WORKER
from tests.faults.durable import SHORT, TASKS, Scene
from tests.infra.eventstore.checker import held, problems
from tests.infra.eventstore.load import MARK, Load
from tests.infra.eventstore.notebook import Notebook, noted
from tests.infra.proxy import Proxy, proxied

SECONDS = 6.0 if SHORT else 60.0
# How much longer it goes on until something was recorded: on a busy machine, seconds can pass between two cuts.
RECORDED_WITHIN_S = 60.0
CUTS_MIN = 4 if SHORT else 40
# Of the requests that pass.
ONE_IN = 40


async def under_load(scene: Scene, book: Notebook, directory: Path) -> Proxy:
    """Write with many tasks through a proxy that cuts one request in so many, half of them once they are committed."""
    ledgers = [writes.ledger_id for writes in scene.writes]
    until = monotonic() + SECONDS
    async with (
        proxied(scene.database.dsn(WORKER), directory) as (proxy, dsn),
        await psycopg.AsyncConnection.connect(scene.database.dsn(), autocommit=True) as reading,
    ):
        writer = GroupCommitWriter(dsn, WORKER)
        writer.start()
        proxy.cut_request = proxy.hold_reply = lambda _: random.randrange(ONE_IN) == 0
        load = Load(writer, reading, ledgers, book)

        def is_over() -> bool:
            now = monotonic()
            return now > until and (len(load._recorded) > TASKS or now > until + RECORDED_WITHIN_S)

        await asyncio.gather(*(load.write(is_over) for _ in range(TASKS)))
        await writer.stop()
    return proxy


def test_callers_and_log_agree_though_the_connection_is_cut_again_and_again(scene: Scene, tmp_path: Path) -> None:
    book = Notebook(tmp_path / "told.jsonl")
    proxy = asyncio.run(under_load(scene, book, tmp_path))
    book.close()

    told = [attempt.told for attempt in noted(tmp_path / "told.jsonl")]
    log = held(scene.database.dsn(), MARK)
    answers = Counter(attempt.answer for attempt in told)
    sys.stdout.write(f"{proxy.cuts} cuts; {len(log)} events; {dict(answers)}\n")
    assert problems(told, log) == []
    assert proxy.cuts >= CUTS_MIN
    assert answers["recorded"] > TASKS
