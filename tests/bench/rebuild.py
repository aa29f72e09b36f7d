"""`rebuild`: every view filled from a long log: all as the worker follows it, each alone, and all from one reading.

Whatever way a view was filled, its rows are the same: that is checked on all of them, by a hash of each row.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any, Final

import psycopg
import uvloop

from infra.auth.key_commands import create_ledger
from infra.crypto.envelope import fresh_key
from infra.postgres.embedded.server import EmbeddedPostgres
from infra.postgres.pool import Database
from infra.postgres.roles import WORKER
from infra.process_limits import GC_YOUNG_OBJECTS, tune_garbage_collector
from infra.processes.worker import create_views, views_followed
from infra.views.commands import rebuild
from infra.views.progress_display import Lines
from projections import VIEWS
from tests.bench.fills import run as measure_budget
from tests.bench.lives import fill
from tests.bench.place import SETTINGS, postgres
from tests.keys import master_key

EVENTS: Final = 1_000_000
FULL: Final = 10_000_000
BUFFERS: Final = {"shared_buffers": "2GB"}
LOOK_EVERY_S: Final = 0.2
WITHIN_S: Final = 3600.0

_READ: Final = "SELECT view, position FROM view_positions WHERE ledger_id = %s"

# By table: how many, and a hash of all.
Rows = dict[str, tuple[Any, ...]]


def _rows(server: EmbeddedPostgres) -> Rows:
    """Return of each table how many rows it has, and a hash of all of them in whatever order."""
    with psycopg.connect(server.dsn()) as connection:
        return {
            table.name: connection.execute(
                f"SELECT count(*), sum(hashtextextended(t::text, 0)) FROM views.{table.name} t".encode()
            ).fetchall()[0]
            for view in VIEWS
            for table in view.tables
        }


async def _follow(server: EmbeddedPostgres, ledger_id: int, events: int) -> dict[str, float]:
    """Follow the log into all views from its beginning, as a worker does; return the rates of each and of all."""
    tune_garbage_collector(GC_YOUNG_OBJECTS)
    database = Database(server.dsn(WORKER), WORKER)
    await database.open()
    runners, _ = views_followed(server.dsn(WORKER), database)
    began = time.perf_counter()
    tasks = [asyncio.create_task(runner.run()) for runner in runners]
    took: dict[str, float] = {}
    async with await psycopg.AsyncConnection.connect(server.dsn(), autocommit=True) as connection:
        async with asyncio.timeout(WITHIN_S):
            while len(took) < len(VIEWS):
                await asyncio.sleep(LOOK_EVERY_S)
                for view, position in await (await connection.execute(_READ, (ledger_id,))).fetchall():
                    if position == events:
                        took.setdefault(view, time.perf_counter() - began)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await database.close()
    return {**{view: events / seconds for view, seconds in took.items()}, "all": events / max(took.values())}


def _filled_anew(server: EmbeddedPostgres, names: list[str], events: int) -> float:
    """Rebuild views; return events a second, the switch included, and nothing of what was filled before."""
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        # Else the vacuum and the checkpoint that follow on so many rows would fall on the next to be measured.
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")
    began = time.perf_counter()
    uvloop.run(rebuild(server.dsn(WORKER), names, Lines(lambda line: print(line, file=sys.stderr))))  # noqa: T201
    return events / (time.perf_counter() - began)


def run(
    *, full: bool = False, events: int | None = None, budget: bool = False, base: Path | None = None
) -> dict[str, Any]:
    """Measure on so many events, a million if nothing else is said; `full` is ten million.

    With `budget`, measure instead where the processor's time of each view goes, beside that of another checkout.
    """
    if budget:
        return {"budget": measure_budget(base)}
    events = events or (FULL if full else EVENTS)
    with postgres(BUFFERS) as server:
        asyncio.run(create_ledger(server.dsn(), master_key(fresh_key()), "bench"))
        with psycopg.connect(server.dsn()) as connection:
            (ledger_id,) = connection.execute("SELECT ledger_id FROM ledgers").fetchone() or (0,)
        fill(server, ledger_id, events)
        asyncio.run(create_views(server.dsn()))
        followed = uvloop.run(_follow(server, ledger_id, events))
        live = _rows(server)
        names = [view.name for view in VIEWS]
        rates = {name: _filled_anew(server, [name], events) for name in names}
        equal = _rows(server) == live
        rates["all"] = _filled_anew(server, names, events)
        equal = equal and _rows(server) == live
    assert equal, "the rows of a view that was rebuilt are not the live ones"
    return {
        "events_per_second": rates,
        "following": followed,
        "equal": equal,
        "rows": {table: counted[0] for table, counted in live.items()},
        "events": events,
        "settings": {**SETTINGS, **BUFFERS},
    }


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=EVENTS, help="in the log")
    print(json.dumps(run(events=parser.parse_args().events), indent=2))  # noqa: T201 - what a benchmark is for
