"""`question`: the question, a page of the trail with two filters, and an export, at so many events.

Over HTTP against one API process, one request at a time, each about another code or another part of the ledger; the
first of each kind are not counted, for they find nothing in memory. Every answer is entered into the log of accesses
before it is given, with fsync on. The page is asked for once more with little memory for buffers, while the system is
made to forget what it has read every second: worse than after an hour in which others needed the memory.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import socket
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import urlencode

import psycopg

from infra.auth.key_commands import create_key, create_ledger
from infra.crypto.envelope import fresh_key
from infra.eventstore.all_ledgers_reader import AllLedgersReader
from infra.postgres.embedded.server import EmbeddedPostgres
from infra.postgres.pool import Database
from infra.postgres.roles import API, WORKER
from infra.processes.worker import create_views
from infra.views.commands import connect
from projections import codes, event_index
from projections.engine.rebuild import rebuild
from tests.bench.client import Figures, drive, http
from tests.bench.http import _serve, process
from tests.bench.lives import CREATORS, fill
from tests.bench.place import SETTINGS, forgetting, place, postgres, restarted
from tests.keys import master_key_of

EVENTS: Final = 1_000_000
FULL: Final = 10_000_000
EXPORTED: Final = 1_000_000
WARM_S: Final = 5.0
RUN_S: Final = 15.0
BUFFERS: Final = {"shared_buffers": "4GB"}
# Buffers for little more than the upper levels of the indexes.
COLD: Final = {"shared_buffers": "64MB"}
KEYS: Final = 50
TYPES: Final = ("Shared", "Redeemed", "CampaignLaunched", "Extended", "Revoked", "CodeGenerated")


class Asked:
    """Requests about a ledger that `lives` filled, each about something else."""

    def __init__(self, key: str, server: EmbeddedPostgres, ledger_id: int, events: int) -> None:
        self._key = key
        self._events = events
        with psycopg.connect(server.dsn()) as connection:
            rows = connection.execute(
                "SELECT video_id, position FROM views.history TABLESAMPLE SYSTEM (1)"
                " WHERE ledger_id = %s AND type = 'CodeGenerated' ORDER BY random() LIMIT 20000",
                (ledger_id,),
            ).fetchall()
            actors = connection.execute(
                "SELECT DISTINCT actor FROM (SELECT actor FROM views.history WHERE ledger_id = %s"
                " ORDER BY position DESC LIMIT 20000) h WHERE actor <> 'clock'",
                (ledger_id,),
            ).fetchall()
        self._videos = [row[0] for row in rows]
        self._actors = [row[0] for row in actors]

    def question(self) -> bytes:
        """Ask about a video, an advertiser that may have redeemed its code, and a moment of its window."""
        video_id = secrets.choice(self._videos)
        at = datetime.now(UTC) - timedelta(days=secrets.randbelow(100))
        asked = {"video_id": video_id, "advertiser_id": video_id.replace("video", "advertiser"), "at": at.isoformat()}
        return self._get("/v1/authorizations", asked)

    def page(self) -> bytes:
        """Ask for a page of 100 events with two filters, from anywhere in the ledger, in either direction."""
        order, bound = secrets.choice([("asc", "after"), ("desc", "before")])
        asked: dict[str, Any] = {"order": order, bound: secrets.randbelow(self._events), "limit": 100}
        of: list[Callable[[], dict[str, Any]]] = [self._creator, self._actor, self._recorded, self._written]
        return self._get("/v1/events", asked | secrets.choice(of)())

    def _creator(self) -> dict[str, Any]:
        return {"creator_id": f"creator-{secrets.randbelow(CREATORS) + 1}", "type": secrets.choice(TYPES)}

    def _actor(self) -> dict[str, Any]:
        return {"actor": secrets.choice(self._actors), "type": secrets.choice(TYPES)}

    def _recorded(self) -> dict[str, Any]:
        since = datetime.now(UTC) - timedelta(days=secrets.randbelow(100))
        return {"type": secrets.choice(TYPES), "from": since.isoformat()}

    def _written(self) -> dict[str, Any]:
        return {"q": f"creator:creator-{secrets.randbelow(CREATORS) + 1} -type:Shared"}

    def _get(self, path: str, query: dict[str, Any]) -> bytes:
        return http("GET", f"{path}?{urlencode(query)}", self._key)


async def _fill_views(server: EmbeddedPostgres) -> None:
    """Let the two views that are read here follow the whole log."""
    database = Database(server.dsn(WORKER), WORKER, size=2)
    await database.open()
    for view in (event_index.VIEW, codes.VIEW):
        done = await rebuild(view, AllLedgersReader(database), lambda: connect(server.dsn(WORKER)))
        sys.stderr.write(f"  view {view.name}: {done.events / max(done.seconds, 1e-6):,.0f} events a second\n")
    await database.close()


def _measured(port: int, request: Callable[[], bytes]) -> Figures:
    drive([port], request, connections=1, seconds=WARM_S)
    figures = drive([port], request, connections=1, seconds=RUN_S)
    assert set(figures.statuses) == {200}, f"answered {figures.statuses}"
    return figures


def _export(port: int, key: str, before: int) -> tuple[int, float]:
    """Take an export as fast as it comes, keeping nothing of it; return how many events, and the seconds."""
    request = http("GET", f"/v1/exports/events?before={before}", key).replace(
        b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"
    )
    began = time.perf_counter()
    tail = b""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(request)
        while block := connection.recv(1 << 20):
            tail = (tail + block)[-4096:]
    seconds = time.perf_counter() - began
    trailer = json.loads(tail[tail.rindex(b'{"trailer"') :].split(b"\r\n")[0])["trailer"]
    return int(trailer["events"]), seconds


def run(*, full: bool = False, events: int | None = None) -> dict[str, Any]:
    """Measure on one PostgreSQL; `full` is ten million events."""
    events = events or (FULL if full else EVENTS)
    master_text = base64.b64encode(fresh_key()).decode()
    master = master_key_of(master_text)
    with place() as directory:
        with postgres(BUFFERS, directory) as server:
            asyncio.run(create_views(server.dsn()))
            asyncio.run(create_ledger(server.dsn(), master, "bench"))
            key, text = asyncio.run(create_key(server.dsn(), master, "bench", "auditor", None))
            fill(server, key.ledger_id, events)
            asyncio.run(_fill_views(server))
            with psycopg.connect(server.dsn(), autocommit=True) as connection:
                connection.execute("VACUUM ANALYZE")
                connection.execute("CHECKPOINT")
                row = connection.execute("SELECT count(*) FROM views.codes").fetchone()
                assert row is not None
            asked = Asked(text, server, key.ledger_id, events)
            with process("-m", "tests.bench.serve", environment=_serve(server, master_text, API)) as (port, api):
                question, page = _measured(port, asked.question), _measured(port, asked.page)
                resident = api.memory_info().rss
                exported, seconds = _export(port, text, min(events, EXPORTED) + 1)
                grown = api.memory_info().rss - resident
        with (
            restarted(directory, COLD) as server,
            process("-m", "tests.bench.serve", environment=_serve(server, master_text, API)) as (port, _),
            forgetting(directory),
        ):
            cold = _measured(port, asked.page)
    return {
        "question_p99_ms": question.p99_ms(),
        "page_p99_ms": page.p99_ms(),
        "page_cold_p99_ms": cold.p99_ms(),
        "events": events,
        "codes": row[0],
        "question_p50_ms": sorted(question.latencies)[len(question.latencies) // 2] * 1000,
        "page_p50_ms": sorted(page.latencies)[len(page.latencies) // 2] * 1000,
        "page_cold_p50_ms": sorted(cold.latencies)[len(cold.latencies) // 2] * 1000,
        "export_events_per_second": exported / seconds,
        "export_rss_growth_mb": grown / 2**20,
        "settings": {**SETTINGS, **BUFFERS},
    }


if __name__ == "__main__":
    parser = ArgumentParser(description="Measure the question, a page of the trail and an export.")
    parser.add_argument("--events", type=int, default=EVENTS)
    print(json.dumps(run(events=parser.parse_args().events), indent=2))  # noqa: T201 - what a benchmark is for
