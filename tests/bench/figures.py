"""`figures`: sums by party and month, and lists of the past, over a ledger of so many codes.

Over HTTP against one API process, one request at a time; the first of each kind are not counted. The codes are of
20,000 creators and 500 brands. A million of them are eight months of recording.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import sys
import time
from argparse import ArgumentParser
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

import psycopg

from infra.auth.key_commands import create_key, create_ledger
from infra.crypto.envelope import fresh_key
from infra.eventstore.all_ledgers_reader import AllLedgersReader
from infra.postgres.pool import Database
from infra.postgres.roles import API, WORKER
from infra.processes.worker import create_views
from infra.views.commands import connect
from projections import advertisers, campaigns, codes, figures, statistics
from projections.engine.rebuild import rebuild
from tests.bench.client import drive, http
from tests.bench.http import _serve, process
from tests.bench.lives import BRANDS, fill
from tests.bench.place import SETTINGS, postgres
from tests.keys import master_key_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from infra.postgres.embedded.server import EmbeddedPostgres

CODES: Final = 200_000
FULL: Final = 1_000_000
# Of the events of `lives`, not quite half issue a code.
EVENTS_A_CODE: Final = 2.25
CREATORS: Final = 20_000
WARM_S: Final = 1.0
RUN_S: Final = 8.0
BUFFERS: Final = {"shared_buffers": "2GB"}
VIEWS: Final = (codes, campaigns, advertisers, statistics, figures)


class Asked:
    """Requests of each kind, each about something else."""

    def __init__(self, key: str, events: int, first: datetime) -> None:
        self._key = key
        self._events = events
        self._first = first

    def kinds(self) -> dict[str, Callable[[], bytes]]:
        """Return what is asked, by name."""
        year = {"from": f"{self._first:%Y-%m}"}
        path = "/v1/stats/figures"
        return {
            "by_month": lambda: self._get(path, {"by": "month", **year}),
            "by_month_of_a_creator": lambda: self._get(path, {"by": "month", "creator_id": self._creator(), **year}),
            "by_creator": lambda: self._get(path, {"by": "creator", **year}),
            "by_creator_most_codes_first": lambda: self._get(path, {"by": "creator", "sort": "issued", **year}),
            "by_brand": lambda: self._get(path, {"by": "brand", **year}),
            "by_month_of_a_brand": lambda: self._get(path, {"by": "month", "brand_id": self._brand(), **year}),
            "by_advertiser": lambda: self._get(path, {"by": "advertiser", **year}),
            "by_video": lambda: self._get(path, {"by": "video", **year}),
            "by_video_of_a_creator": lambda: self._get(
                path, {"by": "video", "creator_id": self._creator(), "sort": "shares", **year}
            ),
            "spend_at_risk": lambda: self._get("/v1/stats/spend-at-risk", {"within_days": 30}),
            "days": lambda: self._get(
                "/v1/stats/days", {"from": f"{datetime.now(UTC) - timedelta(days=365):%Y-%m-%d}"}
            ),
            "past_codes": lambda: self._get("/v1/codes", {"as_of": self._position(), "limit": 100}),
            "past_codes_of_a_creator": lambda: self._get(
                "/v1/codes", {"as_of": self._position(), "creator_id": self._creator(), "limit": 100}
            ),
            "past_campaigns": lambda: self._get("/v1/campaigns", {"as_of": self._position(), "limit": 100}),
            "past_campaigns_of_a_creator": lambda: self._get(
                "/v1/campaigns", {"as_of": self._position(), "creator_id": self._creator(), "limit": 100}
            ),
        }

    def _creator(self) -> str:
        return f"creator-{secrets.randbelow(CREATORS) + 1}"

    def _brand(self) -> str:
        return f"brand-{secrets.randbelow(BRANDS) + 1}"

    def _position(self) -> int:
        return self._events // 10 + secrets.randbelow(self._events // 10 * 9)

    def _get(self, path: str, query: dict[str, Any]) -> bytes:
        return http("GET", f"{path}?{urlencode(query)}", self._key)


async def _fill_views(server: EmbeddedPostgres) -> dict[str, float]:
    """Let the views that are read here follow the whole log; return the events a second of each."""
    database = Database(server.dsn(WORKER), WORKER, size=2)
    await database.open()
    rates = {}
    for view in VIEWS:
        began = time.process_time()
        done = await rebuild(view.VIEW, AllLedgersReader(database), lambda: connect(server.dsn(WORKER)))
        rates[view.NAME] = done.events / max(done.seconds, 1e-6)
        own = (time.process_time() - began) / done.events * 1e6
        sys.stderr.write(f"  view {view.NAME}: {rates[view.NAME]:,.0f} events a second, {own:.1f} µs of Python each\n")
    await database.close()
    return rates


def run(*, full: bool = False, number: int | None = None) -> dict[str, Any]:
    """Measure with so many codes; `full` is a million."""
    wanted = number or (FULL if full else CODES)
    events = int(wanted * EVENTS_A_CODE)
    master_text = base64.b64encode(fresh_key()).decode()
    master = master_key_of(master_text)
    with postgres(BUFFERS) as server:
        asyncio.run(create_views(server.dsn()))
        asyncio.run(create_ledger(server.dsn(), master, "bench"))
        key, text = asyncio.run(create_key(server.dsn(), master, "bench", "auditor", None))
        fill(server, key.ledger_id, events, CREATORS)
        rates = asyncio.run(_fill_views(server))
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")
            connection.execute("CHECKPOINT")
            rows = {
                table.name: connection.execute(
                    f"SELECT count(*), pg_total_relation_size('views.{table.name}') FROM views.{table.name}".encode()
                ).fetchall()[0]
                for view in VIEWS
                for table in view.VIEW.tables
            }
            (first,) = connection.execute("SELECT min(recorded_at) FROM events").fetchone() or (None,)
        asked = Asked(text, events, first)
        latencies = {}
        with process("-m", "tests.bench.serve", environment=_serve(server, master_text, API)) as (port, _):
            for name, request in asked.kinds().items():
                drive([port], request, connections=1, seconds=WARM_S)
                found = drive([port], request, connections=1, seconds=RUN_S)
                if set(found.statuses) != {200}:
                    sys.stderr.write(f"  {name}: answered {found.statuses}\n")
                p50 = sorted(found.latencies)[len(found.latencies) // 2] * 1000
                latencies[name] = {"p50_ms": p50, "p99_ms": found.p99_ms(), "requests": len(found.latencies)}
                sys.stderr.write(f"  {name}: p50 {p50:.1f} ms, p99 {found.p99_ms():.1f} ms\n")
    return {
        "requests": latencies,
        "events_per_second": rates,
        "rows": {name: count for name, (count, _) in rows.items()},
        "mb": {name: size / 2**20 for name, (_, size) in rows.items()},
        "codes": rows["codes"][0],
        "events": events,
        "settings": {**SETTINGS, **BUFFERS},
    }


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--codes", type=int, default=CODES)
    print(json.dumps(run(number=parser.parse_args().codes), indent=2))  # noqa: T201 - what a benchmark is for
