"""A process full of writers, below the domain: new streams, hot streams, replays, twins and misused keys at random.

python -c "from tests.infra.eventstore.load import main; main()" '{"dsn": …, "ledgers": […], "notebook": …, …}'
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any, Final
from uuid import UUID, uuid5

import orjson
import psycopg
from eventsourcing.domain import Aggregate
from eventsourcing.utils import register_topic

from infra.errors import Unavailable
from infra.eventstore.append import Append, Appended, EventRow, Replayed
from infra.eventstore.group_commit import GroupCommitWriter
from infra.eventstore.notifications import Notifier
from infra.ids import uuid7
from infra.postgres.roles import WORKER
from tests.infra.eventstore.appends import appending, keyed, row
from tests.infra.eventstore.notebook import Notebook, untold

# What the checker reads a command's mark with.
MARK: Final = "convert_from(body, 'UTF8')::jsonb ->> 'mark'"
HOT_STREAMS: Final = 20
REMEMBERED: Final = 500


class Marked(Aggregate.Event):
    """What the load records, so that readers of the product can read it."""

    TOPIC = "Marked"
    mark: str


register_topic(Marked.TOPIC, Marked)


class Load:
    """Writers of one process on some ledgers."""

    def __init__(
        self, writer: GroupCommitWriter, reading: psycopg.AsyncConnection[Any], ledgers: list[int], book: Notebook
    ) -> None:
        self._writer = writer
        self._reading = reading
        self._ledgers = ledgers
        self._book = book
        self._versions: dict[tuple[int, UUID], int] = {}
        self._recorded: deque[tuple[int, str, int, bytes]] = deque(maxlen=REMEMBERED)
        self._kinds = (
            self._fresh,
            self._fresh,
            self._hot,
            self._hot,
            self._hot,
            self._again,
            self._misused,
            self._twin,
        )

    async def write(self, until: Callable[[], bool]) -> None:
        """Send one command after another."""
        while not until():
            await random.choice(self._kinds)(random.choice(self._ledgers))

    async def _fresh(self, ledger_id: int) -> None:
        mark, key, stream = _mark(), uuid7().bytes, uuid7()
        rows = _rows(mark, stream, 1, random.randint(1, 3))
        claims = [(uuid7().bytes, None, stream)]
        if await self._send(mark, keyed(ledger_id, *rows, key=key, request=mark.encode(), claims=claims)):
            self._recorded.append((ledger_id, mark, len(rows), key))

    async def _hot(self, ledger_id: int) -> None:
        # The same names in every process, so that they fight for them.
        stream = uuid5(UUID(int=ledger_id), str(random.randrange(HOT_STREAMS)))
        version = self._versions.get((ledger_id, stream), 0)
        mark = _mark()
        rows = _rows(mark, stream, version + 1, random.randint(1, 2))
        if await self._send(mark, appending(ledger_id, *rows)):
            self._versions[ledger_id, stream] = max(self._versions.get((ledger_id, stream), 0), version + len(rows))
            return
        query = "SELECT coalesce(max(version), 0) FROM events WHERE ledger_id = %s AND stream_id = %s"
        found = await (await self._reading.execute(query, (ledger_id, stream))).fetchone()
        assert found is not None
        self._versions[ledger_id, stream] = found[0]

    async def _again(self, _: int) -> None:
        if self._recorded:
            ledger_id, mark, events, key = random.choice(self._recorded)
            rows = _rows(mark, uuid7(), 1, events)
            await self._send(mark, keyed(ledger_id, *rows, key=key, request=mark.encode()))

    async def _misused(self, _: int) -> None:
        if self._recorded:
            recorded = random.choice(self._recorded)
            mark = _mark()
            rows = _rows(mark, uuid7(), 1, 1)
            await self._send(mark, keyed(recorded[0], *rows, key=recorded[3], request=mark.encode()))

    async def _twin(self, ledger_id: int) -> None:
        claim = uuid7().bytes
        sends = []
        for mark in (_mark(), _mark()):
            stream = uuid7()
            rows = _rows(mark, stream, 1, 1)
            sends.append(self._send(mark, appending(ledger_id, *rows, claims=[(claim, None, stream)])))
        outcomes = await asyncio.gather(*sends)
        assert sum(outcomes) <= 1, "both twins got the name"

    async def _send(self, mark: str, request: Append) -> bool:
        """Send, note what was told, and return whether it is recorded now."""
        attempt = self._book.sends(request.ledger_id, mark, len(request.events))
        try:
            outcome = await self._writer.append(request)
        except Unavailable as error:
            self._book.told(attempt, untold(error))
            return False
        match outcome:
            case Appended():
                self._book.told(attempt, "recorded", outcome.first, outcome.last, request.events[-1].version)
            case Replayed():
                self._book.told(attempt, "recorded", outcome.first, outcome.last)
            case _:
                self._book.told(attempt, "refused")
        return isinstance(outcome, Appended)


def _mark() -> str:
    return uuid7().hex


def _rows(mark: str, stream: UUID, version: int, count: int) -> list[EventRow]:
    body = orjson.dumps({"mark": mark})
    return [row(stream, version + n, type=Marked.TOPIC, body=body) for n in range(count)]


async def _run(order: dict[str, Any]) -> None:
    until = monotonic() + order["seconds"]
    book = Notebook(Path(order["notebook"]))
    notifier = Notifier(order["dsn"], WORKER)
    notifier.start()
    writer = GroupCommitWriter(order["dsn"], WORKER, on_commit=notifier.committed)
    writer.start()
    async with await psycopg.AsyncConnection.connect(order["reading_dsn"], autocommit=True) as reading:
        load = Load(writer, reading, order["ledgers"], book)
        await asyncio.gather(*(load.write(lambda: monotonic() > until) for _ in range(order["tasks"])))
    await writer.stop()
    await notifier.stop()
    book.close()


def main() -> None:
    """Write for a while."""
    asyncio.run(_run(json.loads(sys.argv[1])))
    sys.stdout.write("done\n")
