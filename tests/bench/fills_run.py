"""One side of the budget of fills: fills views from a long log, and says where the processor's time went.

It is executed as a file, in the directory of the checkout that is measured, which may be an older one: it takes
everything else from there, and leaves out what is not there. It reads one JSON object a line (views, mode, jobs), and
answers with one.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
import time
from typing import Any, Final

import psutil
import psycopg
import uvloop

# What is timed, by layer: module, and the names in it. What none of them covers is psycopg's, libpq's and the loop's.
LAYERS: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "decoding": {
        "infra.eventstore.all_ledgers_reader": ("to_recorded", "decoded"),
        "infra.eventstore.part_reader": ("to_recorded", "decoded"),
    },
    "pages": {"projections.engine.page": ("EventPage.of", "EventPage.joined", "EventPage.after")},
    "projecting": {
        "projections.engine.view": ("View.fold", "View.plan", "View.run"),
        "projections.engine.fill": ("UnwrittenRows.apply", "UnwrittenRows.take"),
    },
    "loading rows": {"projections.engine.table": ("Table.load",)},
    "summing": {"projections.engine.table": ("Table.merge", "Table.merged", "Table.merged_rows")},
    "columns": {"projections.engine.table": ("Table._parameters", "_columns")},
    "encoding": {"projections.engine.array_columns": ("encoded",)},
}


def _postmaster(dsn: str) -> psutil.Process:
    with psycopg.connect(dsn) as connection:
        (directory,) = connection.execute("SHOW data_directory").fetchone()  # type: ignore[misc]
    with open(f"{directory}/postmaster.pid") as file:  # noqa: PTH123 - as short as a path
        return psutil.Process(int(file.readline()))


def _postgres_s(postmaster: psutil.Process) -> float:
    """Return the processor's time of all processes of PostgreSQL, those that have ended included."""
    own = postmaster.cpu_times()
    seconds = own.user + own.system + own.children_user + own.children_system
    for child in postmaster.children():
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        seconds += times.user + times.system
    return float(seconds)


def _python_s() -> float:
    """Return the processor's time of this process, and of those that it started and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class Side:
    """The log of one checkout, on a PostgreSQL of its own."""

    def __init__(self, server: Any, events: int) -> None:
        from tests.bench import budget_run

        self._server, self._events = server, events
        self._budget: Any = budget_run
        self._budget.LAYERS.clear()
        self._budget.LAYERS.update(LAYERS)
        self._cost = budget_run.cost_of_timing()
        self._postmaster = _postmaster(server.dsn())

    def fill(self, views: list[str], mode: str, jobs: int) -> dict[str, Any]:
        """Fill views; `mode` is plain or layers."""
        from infra.postgres.roles import WORKER
        from infra.views.commands import rebuild

        with psycopg.connect(self._server.dsn(), autocommit=True) as connection:
            # Else the vacuum and the checkpoint that follow on so many rows would fall on what is measured next.
            connection.execute("VACUUM ANALYZE")
            connection.execute("CHECKPOINT")
        options = {"jobs": jobs} if "jobs" in inspect.signature(rebuild).parameters else {}
        clock = self._budget.CLOCK
        replaced = self._budget.time_layers() if mode == "layers" else []
        postgres, python, began = _postgres_s(self._postmaster), _python_s(), time.perf_counter()
        clock.begin()
        uvloop.run(rebuild(self._server.dsn(WORKER), views, lambda *_: None, **options))
        clock.end()
        wall, python = time.perf_counter() - began, _python_s() - python
        postgres = _postgres_s(self._postmaster) - postgres
        self._budget.untimed(replaced)
        figures: dict[str, Any] = {
            "rate": self._events / wall,
            "python": python / self._events * 1e6,
            "postgres": postgres / self._events * 1e6,
        }
        if mode == "layers":
            inside, outside = self._cost
            figures["layers"] = {
                "psycopg and the loop" if layer == "loop" else layer: (
                    ns - inside * clock.calls[layer] - outside * clock.children[layer]
                )
                / self._events
                / 1e3
                for layer, ns in clock.ns.items()
            }
        return figures


def main(events: int) -> None:
    """Serve fills until nothing more is asked."""
    from infra.auth.key_commands import create_ledger
    from infra.crypto.envelope import fresh_key
    from infra.processes.worker import create_views
    from tests.bench.lives import fill
    from tests.bench.place import postgres
    from tests.keys import master_key

    with postgres({"shared_buffers": "2GB"}) as server:
        asyncio.run(create_ledger(server.dsn(), master_key(fresh_key()), "bench"))
        with psycopg.connect(server.dsn()) as connection:
            (ledger_id,) = connection.execute("SELECT ledger_id FROM ledgers").fetchone()  # type: ignore[misc]
        fill(server, ledger_id, events)
        asyncio.run(create_views(server.dsn()))
        side = Side(server, events)
        _tell({"ready": True})
        for line in sys.stdin:
            _tell(side.fill(**json.loads(line)))


def _tell(figures: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(figures) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[-1]))
