"""Several servers in one process: what a command costs with 1, 2 and 4, what they share, and what routing costs.

Each server is a PostgreSQL cluster. The same number of commands, as `append` sends them, is spread over the
ledgers of all servers; one more server has nothing to do. It is no part of `sparkledger bench`: run the module.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from contextlib import AsyncExitStack, ExitStack
from types import SimpleNamespace
from typing import Any, Final, cast

import psutil
import psycopg
import uvloop

from api.http.homes import Homes
from infra.auth.key_commands import create_key, create_ledger, share_hashing
from infra.postgres.embedded.server import EmbeddedPostgres
from infra.postgres.migrate import migrate
from infra.postgres.roles import API
from infra.process_limits import tune_garbage_collector
from infra.runtime import Runtime, runtime
from infra.servers import number_servers
from tests.bench.append import Load
from tests.bench.place import SETTINGS, place
from tests.infra.session_tokens import present
from tests.keys import master_key

SERVERS: Final = (1, 2, 4)
IN_FLIGHT: Final = 32
COMMANDS: Final = 6_000
WARM: Final = 1_000
ROUTED: Final = 20_000
RUNS: Final = 3
MASTER: Final = master_key()
_COMMITS: Final = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"


async def _send(loads: list[Load], commands: int) -> None:
    left = commands

    async def one(load: Load) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await load.command()

    await asyncio.gather(*(one(loads[number % len(loads)]) for number in range(IN_FLIGHT)))


def _processor_s(server: EmbeddedPostgres) -> float:
    """Return the processor's time of a server's processes that are running."""
    root = psutil.Process(int((server.cluster.directory / "postmaster.pid").read_text().splitlines()[0]))
    times = [process.cpu_times() for process in [root, *root.children()]]
    return sum(one.user + one.system for one in times)


def _commits(server: EmbeddedPostgres) -> int:
    with psycopg.connect(server.dsn()) as connection:
        return int((connection.execute(_COMMITS).fetchone() or (0,))[0])


async def _loads(servers: list[EmbeddedPostgres], opened: list[Runtime]) -> list[Load]:
    loads = []
    for number, (server, one) in enumerate(zip(servers, opened, strict=True)):
        ledger = f"bench-{len(servers)}-{number}"
        await create_ledger(server.dsn(), MASTER, ledger)
        key, _ = await create_key(server.dsn(), MASTER, ledger, "operator", None)
        present(one.database, key.ledger_id, key.key_id)
        loads.append(Load(one.handler, key.ledger_id, key.key_id))
        await loads[-1].prepare()
    return loads


async def _measured(servers: list[EmbeddedPostgres], idle: EmbeddedPostgres) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(runtime(one.dsn(API), API, MASTER)) for one in (*servers, idle)]
        loads = await _loads(servers, opened[:-1])
        await _send(loads, WARM)
        found = []
        for _ in range(RUNS):
            before = time.process_time(), sum(map(_processor_s, servers)), _commits(idle)
            began = time.perf_counter()
            await _send(loads, COMMANDS)
            elapsed = time.perf_counter() - began
            after = time.process_time(), sum(map(_processor_s, servers)), _commits(idle)
            found.append((after[0] - before[0], after[1] - before[1], after[2] - before[2], elapsed))
        python_s, postgres_s, commits, elapsed = sorted(found)[RUNS // 2]
        return {
            "python_us": python_s / COMMANDS * 1e6,
            "postgresql_us": postgres_s / COMMANDS * 1e6,
            "commits_of_the_idle_server": commits,
            "commands_per_second": COMMANDS / elapsed,
        }


async def _routing(servers: list[EmbeddedPostgres]) -> dict[str, float]:
    """Return the microseconds of the processor that it takes to find the server of a key that was seen before."""
    from datetime import UTC, datetime

    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(runtime(one.dsn(API), API, MASTER)) for one in servers]
        await create_ledger(servers[-1].dsn(), MASTER, f"routed-{len(servers)}")
        _, key = await create_key(servers[-1].dsn(), MASTER, f"routed-{len(servers)}", "operator", None)
        apps = [
            SimpleNamespace(
                state=SimpleNamespace(
                    services=SimpleNamespace(authenticator=one.authenticator, now=lambda: datetime.now(UTC))
                )
            )
            for one in opened
        ]
        homes = Homes(cast("Any", [_Hashed(app) for app in apps]))
        await homes.of_key(key)
        began = time.process_time()
        for _ in range(ROUTED):
            await homes.of_key(key)
        return {str(len(servers)): (time.process_time() - began) / ROUTED * 1e6}


class _Hashed:
    """An application as far as it is needed to find the server of a key."""

    def __init__(self, app: SimpleNamespace) -> None:
        self.state = app.state


async def _footprint(servers: list[EmbeddedPostgres]) -> dict[str, Any]:
    """Return the memory and the sessions that each more server takes of a process that has nothing to do."""
    process = psutil.Process()
    async with AsyncExitStack() as stack:
        sizes, sessions = [process.memory_info().rss], []
        for server in servers:
            one = await stack.enter_async_context(runtime(server.dsn(API), API, MASTER))
            await one.database.read(None, _nothing)
            with psycopg.connect(server.dsn()) as connection:
                query = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'sparkledger%'"
                sessions.append((connection.execute(query).fetchone() or (0,))[0])
            sizes.append(process.memory_info().rss)
        return {
            "bytes": [after - before for before, after in itertools.pairwise(sizes)],
            "sessions": sessions,
        }


async def _nothing(_: Any) -> None:
    return


def run() -> dict[str, Any]:
    """Measure everything."""
    tune_garbage_collector()
    with ExitStack() as stack:
        made = []
        for _ in range(max(SERVERS) + 1):
            server = stack.enter_context(
                EmbeddedPostgres(stack.enter_context(place()), {**SETTINGS, "shared_buffers": "128MB"})
            )
            migrate(server.dsn())
            made.append(server)
        names = {f"s{number}": server.dsn() for number, server in enumerate(made)}
        number_servers(names)
        asyncio.run(share_hashing(names, MASTER))
        return {
            "footprint": uvloop.run(_footprint(made[:-1])),
            "commands": {str(number): uvloop.run(_measured(made[:number], made[-1])) for number in SERVERS},
            "routing_us": {name: us for number in SERVERS for name, us in uvloop.run(_routing(made[:number])).items()},
        }


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))  # noqa: T201 - what a benchmark is for
