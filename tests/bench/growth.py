"""`growth`: what an append and a load cost with many events present, against what they cost with few.

On hot streams, warmed: the streams that are appended to and loaded are recent, as they are in use; the events beneath
are those of older codes. Beside it, with all of them present, the cold figures: a server restarted with few buffers,
appends right after a checkpoint, loads of streams that nobody asked for since.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import psycopg
import uvloop

from infra.auth.key_commands import create_key, create_ledger
from infra.crypto.envelope import fresh_key
from infra.crypto.master_keys import MasterKey
from infra.postgres.embedded.server import EmbeddedPostgres
from infra.postgres.roles import API
from infra.process_limits import tune_garbage_collector
from infra.runtime import runtime
from tests.bench.append import Load, rate
from tests.bench.place import SETTINGS, place, postgres, restarted
from tests.infra.session_tokens import present
from tests.keys import master_key

if TYPE_CHECKING:
    from infra.runtime import Runtime

FEW: Final = 100_000
MANY: Final = 1_000_000
FULL: Final = 10_000_000
CHUNK: Final = 500_000
RUNS: Final = 5
RUN_S: Final = 3.0
LOADS: Final = 4_000
BUFFERS: Final = {"shared_buffers": "4GB"}
COLD_BUFFERS: Final = {"shared_buffers": "512MB"}
COLD_LOADS: Final = 2_000

# Older codes of four events each, with the claims that issuing them left, and an idempotency key for each event as if
# all had come since yesterday; made by the database itself: through the commands, ten million would take an hour.
_OLD_EVENTS: Final = """
INSERT INTO events (
    ledger_id, position, stream_id, version, event_id, type, type_version, recorded_at, effective_at, creator_stream,
    actor_role, source, command_id, creator_id, video_id, format, body)
SELECT %(ledger)s, n,
       (lpad(to_hex((n - 1) / 4), 12, '0') || '7000' || '8000' || substr(md5(((n - 1) / 4)::text), 1, 12))::uuid,
       (n - 1) %% 4 + 1, gen_random_uuid(), 'Shared', 1, now() - interval '1 day', now() - interval '1 day',
       gen_random_uuid(), 'operator', 'operator', gen_random_uuid(), 'creator-' || n %% 1000, 'video-' || n, 1,
       convert_to('{"advertiser_id":"' || repeat('7', 90) || '","brand_id":"' || repeat('b', 30)
                  || '","channel":"dm"}', 'UTF8')
FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS n
"""
_OLD_CLAIMS: Final = """
INSERT INTO claims (ledger_id, claim, stream_id)
SELECT %(ledger)s, decode(md5(n || kind), 'hex'), gen_random_uuid()
FROM generate_series(%(first)s::bigint, %(last)s::bigint, 4) AS n, (VALUES ('secret'), ('video')) AS k (kind)
"""
_OLD_COMMANDS: Final = """
INSERT INTO commands (ledger_id, key, request_hash, first_position, last_position, recorded_at)
SELECT %(ledger)s, decode(md5('command ' || n), 'hex'), decode(md5('request ' || n), 'hex'), n, n,
       now() - interval '1 day'
FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS n
"""


def _grow(server: EmbeddedPostgres, ledger_id: int, upto: int) -> None:
    """Fill the ledger with older events up to a position."""
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        row = connection.execute(
            "SELECT coalesce(max(position), 0) FROM events WHERE ledger_id = %s", (ledger_id,)
        ).fetchone()
        assert row is not None
        for first in range(row[0] + 1, upto + 1, CHUNK):
            chunk = {"ledger": ledger_id, "first": first, "last": min(first + CHUNK - 1, upto)}
            connection.execute(_OLD_EVENTS, chunk)
            connection.execute(_OLD_CLAIMS, chunk)
            connection.execute(_OLD_COMMANDS, chunk)
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")


class _Place:
    """A server with so many events, and the load that is put on it."""

    def __init__(self, server: EmbeddedPostgres, events: int) -> None:
        self.server = server
        self.master = master_key(fresh_key())
        asyncio.run(create_ledger(server.dsn(), self.master, "bench"))
        self.key, _ = asyncio.run(create_key(server.dsn(), self.master, "bench", "operator", None))
        _grow(server, self.key.ledger_id, events)
        self.append_us: list[float] = []
        self.load_us: list[float] = []

    async def prepare(self, opened: Runtime) -> None:
        """Warm up what is measured."""
        self._events = opened.events
        present(opened.database, self.key.ledger_id, self.key.key_id)
        self._load = Load(opened.handler, self.key.ledger_id, self.key.key_id)
        await self._load.prepare()
        await rate(self._load, 32, RUN_S)

    async def measure(self) -> None:
        """Take the time of an append with 32 in flight, and of a load of 32 that wait together."""
        self.append_us.append(1e6 / await rate(self._load, 32, RUN_S))
        store, ledger_id = self._events, self.key.ledger_id
        hot = list({recorded.stream_id for recorded in await store.page(ledger_id, descending=True, limit=1000)})
        began = time.perf_counter()
        for _ in range(LOADS // 32):
            await asyncio.gather(*(store.stream(ledger_id, random.choice(hot)) for _ in range(32)))
        self.load_us.append((time.perf_counter() - began) / (LOADS // 32 * 32) * 1e6)


async def _measure(few: _Place, many: _Place) -> None:
    """Measure both by turns, so that whatever else the machine does falls on both."""
    async with (
        runtime(few.server.dsn(API), API, few.master) as with_few,
        runtime(many.server.dsn(API), API, many.master) as with_many,
    ):
        await few.prepare(with_few)
        await many.prepare(with_many)
        tune_garbage_collector()  # as the API's process does
        for _ in range(RUNS):
            await few.measure()
            await many.measure()


async def _cold(server: EmbeddedPostgres, master: MasterKey, ledger_id: int, key_id: UUID) -> tuple[float, float]:
    """Return the microseconds of the first appends after a checkpoint, and of loads of streams at random."""
    async with runtime(server.dsn(API), API, master) as opened:
        async with await psycopg.AsyncConnection.connect(server.dsn(), autocommit=True) as connection:
            cursor = await connection.execute(
                "SELECT DISTINCT e.stream_id FROM generate_series(1, %s) n"
                " CROSS JOIN LATERAL (SELECT (random() * %s)::bigint AS p OFFSET n * 0) r"
                " JOIN events e ON e.ledger_id = %s AND e.position = r.p",
                (COLD_LOADS, await opened.events.head(ledger_id), ledger_id),
            )
            streams = [row[0] for row in await cursor.fetchall()]
            await connection.execute("CHECKPOINT")
        began = time.perf_counter()
        for first in range(0, len(streams), 32):
            await asyncio.gather(*(opened.events.stream(ledger_id, s) for s in streams[first : first + 32]))
        loads = (time.perf_counter() - began) / len(streams) * 1e6
        present(opened.database, ledger_id, key_id)
        load = Load(opened.handler, ledger_id, key_id)
        await load.prepare()
        return 1e6 / await rate(load, 32, 3.0), loads


def run(*, full: bool = False) -> dict[str, Any]:
    """Measure with few events present and with many; `full` is ten million."""
    events = FULL if full else MANY
    with place() as directory:
        with postgres(BUFFERS) as server_of_few, postgres(BUFFERS, directory) as server_of_many:
            few, many = _Place(server_of_few, FEW), _Place(server_of_many, events)
            uvloop.run(_measure(few, many))
        with restarted(directory, COLD_BUFFERS) as server:
            cold_append, cold_load = uvloop.run(_cold(server, many.master, many.key.ledger_id, many.key.key_id))
    microseconds = {
        "append with few": statistics.median(few.append_us),
        "append with many": statistics.median(many.append_us),
        "load with few": statistics.median(few.load_us),
        "load with many": statistics.median(many.load_us),
        "append with many, cold": cold_append,
        "load with many, cold": cold_load,
    }
    return {
        "append_ratio": microseconds["append with many"] / microseconds["append with few"],
        "load_ratio": microseconds["load with many"] / microseconds["load with few"],
        "events": events,
        "microseconds": microseconds,
        "few": FEW,
        "settings": {**SETTINGS, **BUFFERS},
        "cold_settings": COLD_BUFFERS,
        "runs": RUNS,
    }
