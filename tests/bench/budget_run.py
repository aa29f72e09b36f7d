"""One side of the budget: runs the load of `append` in slices, and says where the processor's time went.

It is executed as a file, in the directory of the checkout that is measured, which may be an older one: it takes
everything else from there, and leaves out what is not there. It reads one JSON object a line (in_flight, seconds,
mode), and answers with one.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import importlib
import inspect
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, Final

import psutil
import psycopg
import uvloop

# What is timed, by layer: module, and the names in it. What none of them covers is the event loop's.
LAYERS: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "load": {"tests.bench.append": ("Load.command", "Load._issue", "Load._execute")},
    "handler": {"infra.eventstore.command_handler": ("CommandHandler.handle", "CommandHandler._handle")},
    "decide": {"domain.commands": ("generate", "share", "extend", "redeem", "set_permission")},
    "events": {
        "domain.code": ("Code._create", "Code.trigger_event"),
        "infra.eventstore.command_handler": ("_collected", "_changes"),
    },
    "memory": {
        "infra.eventstore.repository": (
            *("Repository.creator", "Repository.code", "Repository.code_by_secret", "Repository.codes_of_video"),
            *("Repository.of_video", "Repository._claimed", "Repository.__init__"),
        ),
        "infra.eventstore.command_handler": ("CommandHandler._keep",),
    },
    "hashes": {"infra.crypto.envelope": ("LedgerKeys.claim",)},
    "rows": {
        "infra.eventstore.command_handler": (
            *("CommandHandler._append", "stored_form", "split_sealed"),
            *("_expected_versions", "_causation_ids", "_event_id"),
        ),
    },
    "sealing": {
        "infra.crypto.envelope": ("CreatorKey.seal",),
        "infra.eventstore.command_handler": ("associated_data",),
    },
    "writer": {
        "infra.eventstore.group_commit": (
            *("GroupCommitWriter.append", "GroupCommitWriter._next_batch", "GroupCommitWriter._commit"),
            *("GroupCommitWriter._send", "GroupCommitWriter._landed", "GroupCommitWriter._ready_statement"),
        ),
    },
    "encoding": {
        "infra.eventstore.append": ("_of_callers", "_of_rows"),
        "infra.eventstore.append_statement": ("encoded",),
        "infra.postgres.prepared_statement": ("encoded",),
    },
    "libpq": {
        "infra.postgres.prepared_statement": ("Statement.call", "Statement.send", "Statement._ready"),
    },
    "answer": {
        "infra.eventstore.append": ("_outcomes",),
        "infra.eventstore.append_statement": ("_outcomes",),
        "infra.eventstore.command_handler": ("_appended",),
    },
    "notify": {"infra.eventstore.notifications": ("Notifier.committed", "Notifier._use", "Notifier._notify")},
}

STATEMENTS: Final = (
    ("lock of the ledger", r"FOR NO KEY UPDATE"),
    ("insert events", r"INSERT INTO events"),
    ("insert commands", r"INSERT INTO commands"),
    ("insert claims", r"INSERT INTO claims"),
    ("other changes of claims", r"(UPDATE|DELETE FROM) claims"),
    ("look-ups", r"UNION ALL|FROM commands"),
    ("end of the log", r"ORDER BY e\.position DESC"),
    ("checks of rows", r"event_types|c_source|e_effective|token_secret|pg_has_role"),
    ("append itself", r"append\("),
    ("whether the log is whole", r"FROM ledgers l\s+LEFT JOIN anchored"),
    ("NOTIFY", r"NOTIFY"),
)


class Clock:
    """Adds up the processor's time of this thread by layer, each without what it calls of other layers."""

    def __init__(self) -> None:
        self.ns: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.children: Counter[str] = Counter()
        self._layer, self._since = "loop", time.thread_time_ns()

    def enter(self, layer: str) -> str:
        now = time.thread_time_ns()
        before, self._layer = self._layer, layer
        self.ns[before] += now - self._since
        self.calls[layer] += 1
        self.children[before] += 1
        self._since = now
        return before

    def leave(self, before: str) -> None:
        now = time.thread_time_ns()
        self.ns[self._layer] += now - self._since
        self._layer, self._since = before, now

    def begin(self) -> None:
        for counter in (self.ns, self.calls, self.children):
            counter.clear()
        self._since = time.thread_time_ns()

    def end(self) -> None:
        self.leave("loop")


CLOCK: Final = Clock()


class _Steps:
    """A coroutine whose every step is timed."""

    def __init__(self, coroutine: Any, layer: str) -> None:
        self._coroutine, self._layer = coroutine, layer

    def __await__(self) -> Generator[Any, Any, Any]:
        step, argument = self._coroutine.send, None
        while True:
            before = CLOCK.enter(self._layer)
            try:
                waits_for = step(argument)
            except StopIteration as done:
                return done.value
            finally:
                CLOCK.leave(before)
            try:
                step, argument = self._coroutine.send, (yield waits_for)
            except BaseException as error:  # noqa: BLE001 - it is passed in, as the coroutine alone would get it
                step, argument = self._coroutine.throw, error


def _timed(function: Callable[..., Any], layer: str) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            return _Steps(function(*args, **kwargs), layer)
    else:

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            before = CLOCK.enter(layer)
            try:
                return function(*args, **kwargs)
            finally:
                CLOCK.leave(before)

    return timed


def _collects() -> list[Callable[[], Any]]:
    """Return what looks for garbage in the API's process, as far as it is there."""
    from infra import process_limits

    found = getattr(process_limits, "collect_in_small_pieces", None)
    return [] if found is None else [found]


def _nothing() -> None:
    pass


def time_layers() -> list[tuple[Any, str, Any]]:
    """Time what `LAYERS` names, as far as it is there; return what undoes it."""
    replaced = []
    for layer, modules in LAYERS.items():
        for name, functions in modules.items():
            try:
                module: Any = importlib.import_module(name)
            except ImportError:
                continue
            for function in functions:
                *owners, attribute = function.split(".")
                owner = functools.reduce(getattr, owners, module)
                found = inspect.getattr_static(owner, attribute, None)
                if found is None:
                    continue
                replaced.append((owner, attribute, vars(owner).get(attribute)))
                if isinstance(found, classmethod):
                    setattr(owner, attribute, classmethod(_timed(found.__func__, layer)))
                else:
                    setattr(owner, attribute, _timed(found, layer))
    return replaced


def untimed(replaced: list[tuple[Any, str, Any]]) -> None:
    for owner, attribute, own in reversed(replaced):
        if own is None:
            delattr(owner, attribute)
        else:
            setattr(owner, attribute, own)


def cost_of_timing() -> tuple[float, float]:
    """Return what timing one call adds to its own layer and to the caller's, in nanoseconds: the least of many."""
    timed, inside, outside = _timed(_nothing, "inner"), [], []
    for _ in range(200):
        CLOCK.begin()
        CLOCK.enter("outer")
        for _ in range(100):
            timed()
        CLOCK.leave("loop")
        inside.append(CLOCK.ns["inner"] / 100)
        outside.append(CLOCK.ns["outer"] / 100)
    CLOCK.begin()
    return min(inside), min(outside)


def _cpu_ns(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
    except OSError:
        return 0


class Side:
    """The load of one checkout, on a PostgreSQL of its own."""

    def __init__(self, load: Any, writer: Any, dsn: str) -> None:
        self._load, self._writer, self._dsn = load, writer, dsn
        self._cost = cost_of_timing()
        self._track("none")

    async def slice(self, in_flight: int, seconds: float, mode: str) -> dict[str, Any]:
        """Run the load for a time; `mode` is plain, layers, statements or counts."""
        processes = psutil.Process(self._postmaster()).children()
        writer = self._writer._backend[0]
        replaced = time_layers() if mode == "layers" else []
        tasks = Counter[str]()
        if mode == "statements":
            self._track("all")
        if mode == "counts":
            gc.collect()
            gc.disable()
            asyncio.get_running_loop().set_task_factory(functools.partial(_counted, tasks))
        collecting = [] if mode == "counts" else [asyncio.create_task(collect()) for collect in _collects()]
        before = {process.pid: _cpu_ns(process.pid) for process in processes}
        done = 0
        CLOCK.begin()
        began_wall, began = time.perf_counter(), time.thread_time_ns()
        end = began_wall + seconds

        async def one() -> None:
            nonlocal done
            while time.perf_counter() < end:
                await self._load.command()
                done += 1

        await asyncio.gather(*(one() for _ in range(in_flight)))
        python = time.thread_time_ns() - began
        CLOCK.end()
        wall = time.perf_counter() - began_wall
        untimed(replaced)
        for task in collecting:
            task.cancel()
        spent = {pid: _cpu_ns(pid) - ns for pid, ns in before.items()}
        figures: dict[str, Any] = {
            "commands": done,
            "rate": done / wall,
            "python": python / done / 1e3,
            "postgres": spent.pop(writer, 0) / done / 1e3,
            "other processes of postgres": sum(spent.values()) / done / 1e3,
        }
        if mode == "layers":
            inside, outside = self._cost
            figures["layers"] = {
                layer: (ns - inside * CLOCK.calls[layer] - outside * CLOCK.children[layer]) / done / 1e3
                for layer, ns in CLOCK.ns.items()
            }
        if mode == "statements":
            figures["statements"] = self._statements(done)
            self._track("none")
        if mode == "counts":
            asyncio.get_running_loop().set_task_factory(None)
            figures["tasks"] = (tasks.total() - in_flight) / done
            figures["garbage"] = gc.collect() / done
            gc.enable()
        return figures

    def _postmaster(self) -> int:
        with psycopg.connect(self._dsn) as connection:
            (directory,) = connection.execute("SHOW data_directory").fetchone()  # type: ignore[misc]
        return int((Path(directory) / "postmaster.pid").read_text().split()[0])

    def _track(self, what: str) -> None:
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            connection.execute(f"ALTER SYSTEM SET pg_stat_statements.track = '{what}'")
            connection.execute("SELECT pg_reload_conf(), pg_stat_statements_reset()")
        time.sleep(0.2)  # the sessions read it before their next statement

    def _statements(self, commands: int) -> dict[str, dict[str, float]]:
        with psycopg.connect(self._dsn) as connection:
            rows = connection.execute(
                "SELECT query, calls, total_exec_time + total_plan_time FROM pg_stat_statements"
            ).fetchall()
        found: dict[str, dict[str, float]] = {}
        for query, calls, ms in rows:
            name = next((name for name, pattern in STATEMENTS if re.search(pattern, query)), "other")
            entry = found.setdefault(name, {"calls": 0.0, "us": 0.0})
            entry["calls"] += calls / commands
            entry["us"] += ms * 1e3 / commands
        apart = {"append itself", "NOTIFY", "whether the log is whole"}
        nested = sum(entry["us"] for name, entry in found.items() if name not in apart)
        if "append itself" in found:
            found["append itself"]["us"] -= nested
        return found


def _counted(tasks: Counter[str], loop: Any, coroutine: Any, **kwargs: Any) -> Any:
    tasks[getattr(coroutine, "__qualname__", "?")] += 1
    return asyncio.Task(coroutine, loop=loop, **kwargs)


async def _serve(server: Any) -> None:
    from infra.auth.key_commands import create_key, create_ledger
    from infra.crypto.envelope import fresh_key
    from infra.postgres import pool
    from infra.postgres.roles import API
    from infra.process_limits import tune_garbage_collector
    from infra.runtime import runtime
    from tests.bench.append import Load, rate
    from tests.infra.session_tokens import present
    from tests.keys import master_key

    pool.POOL_WAIT_S = 60  # type: ignore[misc] # on a busy machine the creators' first keys take their time
    master = master_key(fresh_key())
    await create_ledger(server.dsn(), master, "bench")
    key, _ = await create_key(server.dsn(), master, "bench", "operator", None)
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("CREATE EXTENSION pg_stat_statements")
    tune_garbage_collector()
    async with runtime(server.dsn(API), API, master) as opened:
        present(opened.database, key.ledger_id, key.key_id)
        load = Load(opened.handler, key.ledger_id, key.key_id)
        await load.prepare()
        await rate(load, 32, 1.0)
        side = Side(load, opened.writer, server.dsn())
        loop = asyncio.get_running_loop()
        _tell({"ready": True})
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            _tell(await side.slice(**json.loads(line)))


def _tell(figures: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(figures) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Serve slices until nothing more is asked."""
    from tests.bench.place import postgres

    settings = {"shared_preload_libraries": "pg_stat_statements"}
    with postgres(settings) as server:
        uvloop.run(_serve(server))


if __name__ == "__main__":
    main()
