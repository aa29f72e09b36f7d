"""`append`: commands decided, sealed and committed by one process, beside what PostgreSQL and the library alone do.

40 % of the commands issue a code, with its claims; 60 % follow up on one of the latest 5,000: share, extend, redeem.
Each carries an idempotency key, and is authorized by an API key that the append checks. What it costs to follow up on
codes that the process no longer remembers is for `growth` to say.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import uvloop
from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from psycopg.conninfo import conninfo_to_dict

from domain import commands
from domain.campaign import Share
from domain.code import Code
from domain.values import Actor, Policy, Sealed
from infra.auth.key_commands import create_key, create_ledger
from infra.crypto.envelope import fresh_key
from infra.ending import cancelled
from infra.eventstore.command_handler import CommandHandler, CommandMetadata, CommandResult
from infra.ids import uuid7
from infra.postgres.embedded.server import EmbeddedPostgres
from infra.postgres.roles import API
from infra.process_limits import collect_in_small_pieces, tune_garbage_collector
from infra.runtime import runtime
from tests.bench.budget import run as measure_budget
from tests.bench.place import RUNS, SETTINGS, pgbench, postgres
from tests.given import anyone
from tests.infra.session_tokens import present
from tests.keys import master_key

IN_FLIGHT: Final = (1, 8, 32, 128)
CLIENTS: Final = (1, 8, 32)
RUN_S: Final = 4.0
CREATORS: Final = 200
YOUNG: Final = 5_000
AT_ONCE: Final = 50
# A prime, and more than there are codes: in each round, the same numbers draw other codes.
DRAWN: Final = 10_007
HASH: Final = b"0" * 16


class Load:
    """Commands as a busy platform sends them, on one ledger.

    It runs on the processor that it measures, as no client of an API does, so its own work is kept small: what is
    drawn by lot is drawn beforehand, and names are numbered.
    """

    def __init__(self, handler: CommandHandler, ledger_id: int, key_id: UUID) -> None:
        self._handler = handler
        self._ledger_id = ledger_id
        self._actor = Actor(str(key_id), "operator")
        self._numbers = itertools.count()
        # No other load has the same secrets, videos and idempotency keys.
        self._own = random.randbytes(8).hex()
        self._drawn = itertools.cycle([random.getrandbits(32) for _ in range(DRAWN)])
        # The latest ones, each in the place of the one YOUNG before it; and those that were never extended.
        self._codes: list[tuple[UUID, Sealed]] = []
        self._issued = itertools.count()
        self._never_extended: deque[UUID] = deque(maxlen=YOUNG)
        self._policy = Policy()

    async def prepare(self) -> None:
        """Switch the creators' permissions on, and issue the first codes."""
        for number in range(CREATORS):
            creator = f"creator-{number}"
            stream = uuid7()
            await self._handler.handle(
                CommandMetadata(self._ledger_id, self._actor),
                lambda ledger, when, creator=creator, stream=stream: commands.set_permission(  # type: ignore[misc]
                    ledger, creator, enabled=True, stream_id=stream, when=when
                ),
            )
        for _ in range(YOUNG // 5 // AT_ONCE):  # on a busy machine, more at once would wait too long for a session
            await asyncio.gather(*(self._issue() for _ in range(AT_ONCE)))

    async def command(self) -> None:
        """Send one command: two of five issue a code, three follow up on one."""
        number = next(self._numbers)
        match number % 5:
            case 0 | 1:
                await self._issue()
            case 2:
                code, _ = self._some_code()
                share = Share(f"brand-{number}", "dm")
                await self._execute(
                    f"{self._own}{number}",
                    lambda ledger, when: commands.share(
                        ledger, code, share, None, if_match=None, authorize=anyone, when=when
                    ),
                )
            case 3:
                code = self._never_extended.popleft()
                await self._execute(
                    f"{self._own}{number}",
                    lambda ledger, when: commands.extend(
                        ledger, self._policy, code, days=60, expires_at=None, if_match=None, authorize=anyone, when=when
                    ),
                )
            case _:
                _, secret = self._some_code()
                advertiser = f"advertiser-{number}"
                await self._execute(
                    f"{self._own}{number}",
                    lambda ledger, when: commands.redeem(ledger, secret, advertiser, frozenset(), when=when),
                )

    def _some_code(self) -> tuple[UUID, Sealed]:
        return self._codes[next(self._drawn) % len(self._codes)]

    async def _issue(self) -> None:
        issued, drawn = next(self._issued), next(self._drawn)
        code_id, secret = uuid7(), Sealed(f"#{self._own}{issued:048x}")
        done: CommandResult[Code] = await self._execute(
            f"issue-{self._own}{issued}",
            lambda ledger, when: commands.generate(
                ledger,
                self._policy,
                code_id=code_id,
                creator_id=f"creator-{drawn % CREATORS}",
                # What is drawn comes first, so that the indexes of views grow everywhere, and not at their ends alone.
                video_id=f"video-{drawn:08x}{self._own}{issued}",
                terms_version="2026-01",
                days=30,
                starts_at=None,
                secret=secret,
                caption_sha256=None,
                when=when,
            ),
        )
        assert done.appended == 1
        self._never_extended.append(code_id)
        if len(self._codes) < YOUNG:
            self._codes.append((code_id, secret))
        else:
            self._codes[issued % YOUNG] = code_id, secret

    def _execute(self, idempotency_key: str, decide: Callable[..., Awaitable[Any]]) -> Awaitable[Any]:
        request = CommandMetadata(self._ledger_id, self._actor, idempotency_key=idempotency_key, request_hash=HASH)
        return self._handler.handle(request, decide)


async def rate(load: Load, in_flight: int, seconds: float = RUN_S) -> float:
    """Return commands a second with so many at a time, in a process that looks for garbage as the API's does."""
    collecting = asyncio.create_task(collect_in_small_pieces())
    end = time.perf_counter() + seconds
    done = 0

    async def one() -> None:
        nonlocal done
        while time.perf_counter() < end:
            await load.command()
            done += 1

    began = time.perf_counter()
    try:
        await asyncio.gather(*(one() for _ in range(in_flight)))
        return done / (time.perf_counter() - began)
    finally:
        await cancelled([collecting])


@asynccontextmanager
async def loading(server: EmbeddedPostgres) -> AsyncIterator[Load]:
    """Yield a load on a ledger of its own, warmed."""
    master = master_key(fresh_key())
    await create_ledger(server.dsn(), master, "bench")
    key, _ = await create_key(server.dsn(), master, "bench", "operator", None)
    tune_garbage_collector()  # as the API's process does
    async with runtime(server.dsn(API), API, master) as opened:
        present(opened.database, key.ledger_id, key.key_id)
        load = Load(opened.handler, key.ledger_id, key.key_id)
        await load.prepare()
        await rate(load, 32, 1.0)
        yield load


async def ours(server: EmbeddedPostgres) -> dict[str, float]:
    """Return commands a second of this process, by how many at a time."""
    async with loading(server) as load:
        rounds = [{str(number): await rate(load, number) for number in IN_FLIGHT} for _ in range(RUNS)]
    return medians(rounds)


async def in_rounds(server: EmbeddedPostgres) -> list[list[dict[str, float]]]:
    """Measure one store after another, in rounds: what slows the machine for some seconds then slows all of them."""
    async with loading(server) as load:
        return [
            [
                {str(number): await rate(load, number) for number in IN_FLIGHT},
                {str(clients): await asyncio.to_thread(pgbench, server, clients) for clients in CLIENTS},
                {str(threads): await asyncio.to_thread(library, server, threads) for threads in CLIENTS},
            ]
            for _ in range(RUNS)
        ]


def medians(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the median of each figure."""
    return {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}


class Plain(Aggregate):
    """What the library saves in its own part of the benchmark."""

    @event("Begun")
    def __init__(self, video: str, creator: str, days: int) -> None:
        self.video, self.creator, self.days = video, creator, days


def library(server: EmbeddedPostgres, threads: int) -> float:
    """Return `app.save` calls a second of the library's own PostgreSQL recorder: one new aggregate each."""
    place = conninfo_to_dict(server.dsn())
    application: Any = Application(
        env={
            "PERSISTENCE_MODULE": "eventsourcing.postgres",
            "POSTGRES_DBNAME": str(place["dbname"]),
            "POSTGRES_HOST": str(place["host"]),
            "POSTGRES_PORT": str(place.get("port", "5432")),
            "POSTGRES_USER": str(place["user"]),
            "POSTGRES_PASSWORD": "none",
            "POSTGRES_POOL_SIZE": str(threads),
            "POSTGRES_MAX_OVERFLOW": "4",
        }
    )
    end = time.perf_counter() + RUN_S

    def save() -> int:
        done = 0
        while time.perf_counter() < end:
            application.save(Plain(video="7301234567890123456", creator="creator-123", days=30))
            done += 1
        return done

    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        done = sum(future.result() for future in [pool.submit(save) for _ in range(threads)])
    elapsed = time.perf_counter() - began
    application.close()
    return done / elapsed


def run(*, budget: bool = False, base: Path | None = None) -> dict[str, Any]:
    """Measure all three in one run on one PostgreSQL; or the budget alone, beside that of another checkout."""
    if budget:
        return {"budget": measure_budget(base)}
    with postgres() as server:
        rounds = uvloop.run(in_rounds(server))
    here, plain, saved = (medians(of_one) for of_one in zip(*rounds, strict=True))
    return {
        "events_per_second": here,
        "pgbench": plain,
        "eventsourcing": saved,
        # Of figures from the same round.
        "ratios": medians(
            [
                {
                    "32 in flight to pgbench at 32": commands_here["32"] / inserts["32"],
                    "32 in flight to eventsourcing at its best": commands_here["32"] / max(saves.values()),
                    "1 in flight to eventsourcing at 1": commands_here["1"] / saves["1"],
                }
                for commands_here, inserts, saves in rounds
            ]
        ),
        "settings": SETTINGS,
        "runs": RUNS,
    }


if __name__ == "__main__":
    import json

    print(json.dumps(run(), indent=2))  # noqa: T201 - what a benchmark is for
