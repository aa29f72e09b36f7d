"""`console`: how soon pages show something with many codes and with a long history, and what they cost the API.

A browser without a window reads pages over loopback, with the scripts and styles in its cache, as on every page but the
first. First contentful paint is the browser's own figure. Beside it stands what the API's process and the one that
makes pages for it needed of the processor for the page: that holds on a busy machine as well. The views are filled
before, and do not run meanwhile.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import os
import secrets
import shutil
import statistics
import subprocess
import sys
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any, Final

import httpx
import psutil
import psycopg
from playwright.sync_api import Page, sync_playwright

from api.console.assets import ASSETS
from infra.auth.key_commands import create_ledger
from infra.crypto.envelope import fresh_key
from infra.postgres.embedded.server import EmbeddedPostgres
from infra.postgres.roles import API, WORKER
from infra.processes.worker import create_views
from infra.views.commands import rebuild
from tests.bench.client import Figures, drive, http
from tests.bench.http import ROOT, _serve, process
from tests.bench.lives import fill
from tests.bench.place import SETTINGS, postgres
from tests.keys import master_key_of
from tests.waiting import until

# About 45 of 100 events generate a code.
EVENTS: Final = 220_000
FULL: Final = 2_250_000
HISTORY: Final = 10_000
LOADS: Final = 5
# The views that the pages read.
READ: Final = ("advertisers", "campaigns", "codes", "history", "permissions", "redemptions", "shares")
# People who read, and how often each of them opens a page.
SESSIONS: Final = 50
CLICK_EVERY_S: Final = 10.0
LOAD_PER_SECOND: Final = 200
RUN_S: Final = 15.0
ROUNDS: Final = 7
CREATOR: Final = "long-history"
HISTORY_DAYS: Final = 20
PAGE_PROCESS_WITHIN_S: Final = 60.0
# Of ten events, seven shares, two redemptions and one that was refused.
_HISTORY: Final = """
INSERT INTO events (
    ledger_id, position, stream_id, version, event_id, type, type_version, recorded_at, effective_at, creator_stream,
    actor_key, actor_role, source, command_id, creator_id, video_id, format, body)
SELECT g.ledger_id, g.position + n, g.stream_id, 1 + n, gen_random_uuid(), x.type, 1, g.recorded_at,
       %(began)s + n * interval '1 day' * %(days)s / %(events)s, g.creator_stream, g.actor_key, g.actor_role, g.source,
       gen_random_uuid(), g.creator_id, g.video_id, 1, convert_to(x.body, 'UTF8')
FROM events g
CROSS JOIN generate_series(1, %(events)s - 1) AS n
CROSS JOIN LATERAL (
    SELECT CASE WHEN n %% 10 < 7 THEN 'Shared' WHEN n %% 10 < 9 THEN 'Redeemed' ELSE 'RedemptionRefused' END AS type,
           CASE WHEN n %% 10 < 7 THEN '{"brand_id":"brand-' || n || '","channel":"dm"}'
                WHEN n %% 10 < 9 THEN '{"advertiser_id":"account-' || n || '","shared_with_advertiser":false}'
                ELSE '{"advertiser_id":"account-' || n || '","reason":"code_expired"}' END AS body
) x
WHERE g.stream_id = %(code)s AND g.version = 1
"""
PAINTED: Final = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


def _long_history(server: EmbeddedPostgres, port: int, key: str, events: int) -> str:
    """Record a code by the commands, and write as many events of it as it is to have; return its id."""
    began = datetime.now(UTC) - timedelta(days=HISTORY_DAYS)
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, trust_env=False, timeout=60) as client:
        enabled = {"enabled": True, "effective_at": began.isoformat()}
        client.put(f"/v1/creators/{CREATOR}/permission", json=enabled).raise_for_status()
        order = {
            "creator_id": CREATOR,
            "video_id": "7300000000000000001",
            "terms_version": "2026-01",
            "secret": "#long/history/of+a/code==",
            "starts_at": began.isoformat(),
            "effective_at": began.isoformat(),
            "days": 2 * HISTORY_DAYS,
        }
        code_id = str(client.post("/v1/codes", json=order).raise_for_status().json()["code_id"])
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(_HISTORY, {"code": code_id, "events": events, "began": began, "days": HISTORY_DAYS})
    return code_id


class Reader:
    """A person with a browser."""

    def __init__(self, page: Page, api: psutil.Process, key: str) -> None:
        self._page, self._api = page, api
        page.goto("/sign-in")
        page.get_by_label("API key").fill(key)
        with page.expect_navigation():
            page.get_by_role("button", name="Sign in").click()

    def opens(self, path: str) -> dict[str, Any]:
        """Open a page several times; return medians, without those of the first time."""
        self._page.goto(path)
        painted, processor = [], []
        for _ in range(LOADS):
            before = _processor_s(self._api)
            self._page.goto(path)
            self._page.wait_for_function(PAINTED)
            painted.append(self._page.evaluate(PAINTED))
            processor.append(1000 * (_processor_s(self._api) - before))
        return {
            "first_contentful_paint_ms": statistics.median(painted),
            "api_processor_ms": statistics.median(processor),
            "rows": self._page.locator("tbody tr").count(),
            "elements": self._page.locator("*").count(),
        }


def _processor_s(process: psutil.Process) -> float:
    """Return the seconds of the processor that a process has used, with those that it has started."""
    times = [one.cpu_times() for one in (process, *process.children())]
    return float(sum(one.user + one.system for one in times))


def _has_page_process(port: int) -> bool:
    return 'process="pages"' in httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text


@contextmanager
def _clicking(port: int, key: str, paths: list[str]) -> Iterator[Counter[int]]:
    """Have people open pages; yield how many answers had which status, which is known when it is over."""
    statuses: Counter[int] = Counter()
    command = [sys.executable, "-m", "tests.bench.clicks"]
    asked = {"port": port, "key": key, "paths": paths, "sessions": SESSIONS, "every_s": CLICK_EVERY_S}
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as people:
        assert people.stdin is not None
        assert people.stdout is not None
        people.stdin.write(json.dumps(asked) + "\n")
        people.stdin.flush()
        people.stdout.readline()  # everybody is signed in
        yield statuses
        people.stdin.close()
        statuses.update({int(status): count for status, count in json.loads(people.stdout.readline()).items()})


def _beside(port: int, key: str, paths: list[str], request: Callable[[], bytes]) -> dict[str, Any]:
    """Measure reads of the API at a steady rate, in turns with and without people who click."""

    def measured() -> Figures:
        figures = drive([port], request, seconds=RUN_S, per_second=LOAD_PER_SECOND)
        assert set(figures.statuses) == {200}, f"answered {figures.statuses}"
        return figures

    alone, beside, clicks, refused = [], [], 0, 0
    for _ in range(ROUNDS):
        alone.append(measured().p99_ms())
        with _clicking(port, key, paths) as answered:
            beside.append(measured().p99_ms())
        clicks += answered.total()
        refused += answered.total() - answered[HTTPStatus.OK]
    return {
        "p99_ms_without": statistics.median(alone),
        "p99_ms_with": statistics.median(beside),
        "ratio": statistics.median(one / other for one, other in zip(beside, alone, strict=True)),
        "rounds": [[one, other] for one, other in zip(beside, alone, strict=True)],
        "sessions": SESSIONS,
        "pages_opened": clicks,
        "pages_refused": refused,
        "reads_per_second": LOAD_PER_SECOND,
    }


def _say(what: str) -> None:
    sys.stderr.write(f"  {what} …\n")


def _weights() -> dict[str, dict[str, int]]:
    """Return the bytes of scripts and styles, and those that gzip would make of them."""
    return {name: {"raw": len(one.content), "gzip": len(gzip.compress(one.content))} for name, one in ASSETS.items()}


def run(*, full: bool = False, events: int | None = None) -> dict[str, Any]:
    """Measure on one PostgreSQL; `full` is a million codes."""
    events = events or (FULL if full else EVENTS)
    chromium = shutil.which("chromium")
    if chromium is None:
        message = "The benchmark of the console needs a browser: apt-get install chromium."
        raise LookupError(message)
    master_text = base64.b64encode(fresh_key()).decode()
    master = master_key_of(master_text)
    with postgres() as server, ExitStack() as stack:
        asyncio.run(create_views(server.dsn()))
        key = asyncio.run(create_ledger(server.dsn(), master, "bench"))
        with psycopg.connect(server.dsn()) as connection:
            row = connection.execute("SELECT ledger_id FROM ledgers WHERE name = 'bench'").fetchone()
            assert row is not None
        _say("filling")
        fill(server, row[0], events)
        port, api = stack.enter_context(
            process("-m", "tests.bench.serve", environment=_serve(server, master_text, API))
        )
        long = _long_history(server, port, key, HISTORY)
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE events")
        _say("filling the views")
        asyncio.run(rebuild(server.dsn(WORKER), READ, lambda *_: None, jobs=os.cpu_count() or 1))
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")
            row = connection.execute("SELECT count(*) FROM views.codes").fetchone()
            assert row is not None
            codes = [
                str(one[0])
                for one in connection.execute("SELECT code_id FROM views.codes ORDER BY random() LIMIT 500").fetchall()
            ]
        dossier = f"/codes/{long}"
        pages = {
            "start": "/",
            "list of codes": "/codes",
            "list of codes, ending first": "/codes?order=ending",
            "list of one creator's codes": "/codes?creator_id=creator-1",
            "dossier": f"/codes/{codes[0]}",
            "dossier, long history": dossier,
            "dossier, long history, as it was": f"{dossier}?as_of={events + HISTORY // 2}",
            "trail": "/events",
            "event": "/events/1000",
        }
        with sync_playwright() as playwright:
            _say("opening pages")
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            reader = Reader(browser.new_page(base_url=f"http://127.0.0.1:{port}"), api, key)
            until(lambda: _has_page_process(port), PAGE_PROCESS_WITHIN_S)
            shown = {name: reader.opens(path) for name, path in pages.items()}
            sys.stderr.write(f"  {json.dumps(shown)}\n")
            browser.close()

        def read() -> bytes:
            return http("GET", f"/v1/codes/{secrets.choice(codes)}", key)

        _say("reading beside people who click")
        clicked = [path for path in pages.values() if path != dossier and "as_of=" not in path]
        beside = _beside(port, key, clicked, read)
    return {
        "pages": shown,
        "api_beside_readers": beside,
        "weights": _weights(),
        "codes": row[0],
        "events_of_the_long_history": HISTORY,
        "loads": LOADS,
        "settings": SETTINGS,
    }


if __name__ == "__main__":
    parser = ArgumentParser(description="Measure the pages of the console.")
    parser.add_argument("--events", type=int, default=EVENTS)
    print(json.dumps(run(events=parser.parse_args().events), indent=2))  # noqa: T201 - what a benchmark is for
