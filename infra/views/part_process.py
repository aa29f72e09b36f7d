"""A process that fills parts of views, as `part_processes.py` orders it to, and that ends with its standard input.

Both sides write lines of JSON. The first line that it is given names the database. Each further one is an order: the
view, the part, and the positions to fill it up to; or that an order is withdrawn. It answers with a line for each page,
and one for the outcome.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import orjson
import uvloop

from infra.ending import cancelled
from infra.eventstore.part_reader import PartReader
from infra.postgres.pool import Database
from infra.postgres.roles import WORKER
from infra.process_limits import GC_FILL_OBJECTS, forbid_core_dumps, tune_garbage_collector
from infra.views.commands import SHARED_READ_PATIENCE_S, connect, view_named
from infra.views.part_processes import ORDER_BYTES_MAX
from projections.engine.checkpoints import CheckpointConflict
from projections.engine.fill import fill
from projections.engine.parts import Part
from projections.engine.projector import PAGE_EVENTS_MAX, PoisonEvent, Projector, prepare
from projections.engine.shared_reader import SharedLog

if TYPE_CHECKING:
    from psycopg import AsyncConnection

    from projections.engine.shared_reader import SharedLogReader

# A process that was ended may still commit its last page, which this one must see before it continues.
CONFLICTS_MAX: Final = 10
CONFLICT_PAUSE_S: Final = 0.2
# Parts add to the same counts, each in transactions of many pages: one may have to wait for those of all others.
LOCK_WAIT_MS: Final = 60_000
# An error may quote what it failed with.
REASON_CHARACTERS_MAX: Final = 2_000


async def serve() -> None:
    """Follow orders until the standard input ends."""
    lines = asyncio.StreamReader(limit=ORDER_BYTES_MAX)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    conninfo = orjson.loads(await lines.readline())["conninfo"]
    database = Database(conninfo, WORKER)
    await database.open()
    # All views load their rows here.
    loads = await connect(conninfo)
    await prepare(loads)
    # The views of a part share one reading of it.
    readings: dict[tuple[Part, tuple[tuple[int, int], ...]], SharedLog] = {}
    tasks: dict[tuple[str, Part], asyncio.Task[None]] = {}
    async for line in lines:
        order = orjson.loads(line)
        view, part = order["view"], Part(*order["part"])
        if order.get("withdrawn"):
            _withdraw(tasks[view, part], {"view": view, "part": list(part), "outcome": "withdrawn"})
            continue
        upto = tuple((ledger_id, position) for ledger_id, position in order["upto"])
        reading = readings.get((part, upto))
        if reading is None:
            reader = PartReader(database, part, dict(upto))
            reading = readings[part, upto] = SharedLog(reader, patience_s=SHARED_READ_PATIENCE_S)
        shared = reading.reader()
        task = tasks[view, part] = asyncio.create_task(_carry_out(conninfo, view, part, shared, loads))
        # Also if it is withdrawn before it has begun.
        task.add_done_callback(partial(_close, shared))
    await cancelled(tasks.values())
    await loads.close()
    await database.close()


def _close(log: SharedLogReader, _: asyncio.Task[None]) -> None:
    log.close()


def _withdraw(task: asyncio.Task[None], outcome: dict[str, Any]) -> None:
    """End a task, and say so once it has ended; what it said before counts."""
    task.add_done_callback(lambda _: _say(outcome))
    task.cancel()


async def _carry_out(conninfo: str, view: str, part: Part, log: SharedLogReader, loads: AsyncConnection[Any]) -> None:
    """Fill a part of a view, and say what became of it."""
    to = {"view": view, "part": list(part)}
    try:
        await _fill(conninfo, view, part, log, loads)
    except PoisonEvent as poison:
        _say({**to, "outcome": "poison", "at": poison.at, "reason": poison.reason[:REASON_CHARACTERS_MAX]})
    except Exception as error:  # noqa: BLE001 - whatever it is, the process that ordered it says it
        _say({**to, "outcome": "failed", "reason": f"{type(error).__name__}: {error}"[:REASON_CHARACTERS_MAX]})
    else:
        _say({**to, "outcome": "done"})


async def _fill(conninfo: str, view: str, part: Part, log: SharedLogReader, loads: AsyncConnection[Any]) -> None:
    def on_page(positions: int) -> None:
        _say({"view": view, "part": list(part), "positions": positions})

    async with await connect(conninfo) as connection:
        projector = Projector(view_named(view), connection, shadow=True, part=part)
        await projector.prepare()
        await connection.execute(f"SET lock_timeout = {LOCK_WAIT_MS}")
        for attempt in range(1, CONFLICTS_MAX + 1):
            await projector.find()
            try:
                await fill(projector, log, loads, PAGE_EVENTS_MAX, on_page)
            except CheckpointConflict:
                if attempt == CONFLICTS_MAX:
                    raise
                await asyncio.sleep(CONFLICT_PAUSE_S)
            else:
                return


def _say(message: dict[str, Any]) -> None:
    sys.stdout.buffer.write(orjson.dumps(message) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    # Ctrl-C goes to every process of the terminal. This one ends when the one that ordered it here does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    forbid_core_dumps()
    tune_garbage_collector(GC_FILL_OBJECTS)
    uvloop.run(serve())
