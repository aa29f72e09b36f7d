"""`growth`: what an append and a load cost with many events present, against what they cost with few.

On hot streams, warmed: the streams that are appended to and loaded are recent, as they are in use; the events beneath
are those of older codes.
"""

from __future__ import annotations

import asyncio
import secrets
import statistics
import time
from typing import Any, Final
from uuid import UUID

import psycopg
import uvloop

from infra.bootstrap import begin_ledger, mint
from infra.postgres import EmbeddedPostgres
from infra.runtime import API, runtime, spare_the_collector
from infra.vault import MasterKey, fresh_key
from tests.bench.append import Load, rate
from tests.bench.place import SETTINGS, postgres

FEW: Final = 100_000
MANY: Final = 1_000_000
FULL: Final = 10_000_000
CHUNK: Final = 500_000
RUNS: Final = 3
HOT_STREAMS: Final = 2_000
LOADS: Final = 4_000
BUFFERS: Final = {"shared_buffers": "4GB"}

# Older codes of four events each, with the claims and idempotency keys that issuing them left, made by the database
# itself: through the commands, ten million would take an hour.
_OLD_EVENTS: Final = """
INSERT INTO events (
    ledger_id, position, stream_id, version, event_id, type, type_version, recorded_at, effective_at, creator_stream,
    actor_role, source, command_id, format, body)
SELECT %(ledger)s, n,
       (lpad(to_hex((n - 1) / 4), 12, '0') || '7000' || '8000' || substr(md5(((n - 1) / 4)::text), 1, 12))::uuid,
       (n - 1) %% 4 + 1, gen_random_uuid(), 'Shared', 1, now() - interval '1 day', now() - interval '1 day',
       gen_random_uuid(), 'operator', 'operator', gen_random_uuid(), 1, convert_to(repeat('x', 160), 'UTF8')
FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS n
"""
_OLD_CLAIMS: Final = """
INSERT INTO claims (ledger_id, claim, stream_id)
SELECT %(ledger)s, decode(md5(n || kind), 'hex'), gen_random_uuid()
FROM generate_series(%(first)s::bigint, %(last)s::bigint, 4) AS n, (VALUES ('secret'), ('video')) AS k (kind)
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
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")


async def _costs(server: EmbeddedPostgres, master: MasterKey, ledger_id: int, key_id: UUID) -> tuple[float, float]:
    """Return microseconds for one append of 32 in flight, and for one load of 32 that wait together."""
    spare_the_collector()  # as the API's process does
    async with runtime(server.dsn(API), API, master) as opened:
        load = Load(opened.ledgers, ledger_id, key_id)
        await load.prepare()
        await rate(load, 32, 3.0)
        appends = [1e6 / await rate(load, 32, 3.0) for _ in range(RUNS)]
        page = await opened.ledgers.store.page(ledger_id, descending=True, limit=1000)
        hot = list({recorded.stream_id for recorded in page})
        loads = []
        for _ in range(RUNS + 1):
            began = time.perf_counter()
            for _ in range(LOADS // 32):
                await asyncio.gather(*(opened.ledgers.store.stream(ledger_id, secrets.choice(hot)) for _ in range(32)))
            loads.append((time.perf_counter() - began) / (LOADS // 32 * 32) * 1e6)
        return statistics.median(appends), statistics.median(loads[1:])


def run(*, full: bool = False) -> dict[str, Any]:
    """Measure with few events present, then with many; `full` is ten million."""
    many = FULL if full else MANY
    master = MasterKey(fresh_key())
    with postgres(BUFFERS) as server:
        asyncio.run(begin_ledger(server.dsn(), master, "bench"))
        key, _ = asyncio.run(mint(server.dsn(), master, "bench", "operator", None))
        _grow(server, key.ledger_id, FEW)
        few_append, few_load = uvloop.run(_costs(server, master, key.ledger_id, key.key_id))
        _grow(server, key.ledger_id, many)
        many_append, many_load = uvloop.run(_costs(server, master, key.ledger_id, key.key_id))
    return {
        "append_ratio": many_append / few_append,
        "load_ratio": many_load / few_load,
        "events": many,
        "microseconds": {
            "append with few": few_append,
            "append with many": many_append,
            "load with few": few_load,
            "load with many": many_load,
        },
        "few": FEW,
        "settings": {**SETTINGS, **BUFFERS},
        "runs": RUNS,
    }
