"""`make soak`: everything that there is, under a steady load: do memory, connections, files and lags stay flat?

    python -m tests.soak --minutes 30

Two API processes, two workers with webhooks, alerts and Kafka, the sealer, PostgreSQL; callers, imports of sheets,
readers of lists and histories, streams, a receiver of webhooks, a consumer of Kafka, and a person at the console.
The second API process and the second worker are killed in turns, and started again: what they leave shows in the others
and in the database, and only what is never killed is judged by its memory.

It ends by itself. It fails with a sentence for each figure that grows by more than its bound, for commands that are
lost, and for subscribers that lack events or got them twice. `soak.svg` and `soak.json` have every figure over time.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
import psycopg
from httpx_sse import SSEError, aconnect_sse

from infra.auth.key_commands import create_ledger
from infra.crypto.envelope import fresh_key
from infra.crypto.epochs import EpochKeys
from infra.crypto.master_keys import MasterKey
from infra.postgres.embedded.server import EmbeddedPostgres
from infra.postgres.migrate import migrate
from infra.postgres.roles import API, WORKER
from infra.processes.worker import create_views
from tests.infra.delivery.kafka.broker import Broker, NoKafka, start, stop
from tests.infra.delivery.kafka.publishing import Topic, events
from tests.serving import REPOSITORY
from tests.soak.chart import HEAD, WARM_UP, Bound, Series, svg
from tests.test_compose_commands import free_port
from tests.waiting import until

MINUTES: Final = 30.0
COMMANDS_PER_SECOND: Final = 15.0
CALLERS: Final = 8
STREAMS: Final = 4
SAMPLE_EVERY_S: Final = 5.0
# When a process is killed: each once before figures are judged, as shares of the run, because others take over what it
# led; and then so often.
KILLED_FIRST: Final = (0.08, 0.16)
KILL_EVERY_S: Final = 150.0
CLICK_EVERY_S: Final = 2.0
READ_EVERY_S: Final = 0.25
IMPORT_EVERY_S: Final = 20.0
IMPORT_ROWS: Final = 5
# After so many pages, the person signs out, and in again.
PAGES_OF_A_SESSION: Final = 20
UP_WITHIN_S: Final = 600.0
# How long subscribers may take for what is left in the end.
DELIVERED_WITHIN_S: Final = 240.0
PREFIX: Final = "soak"
TERMS: Final = "2026-01"
FOLLOWING: Final = "views,expiry,anchor,kafka"
DELIVERING: Final = "webhooks,alerts,imports"
OURS: Final = {"Sec-Fetch-Site": "same-origin"}
PAGES: Final = ("/", "/codes", "/events", "/figures", "/statistics", "/system")
RESULTS: Final = REPOSITORY / ".bench"
MIB: Final = 2**20

# By how much the figures may grow, in their units or as shares, in the last three quarters of the run.
MEMORY: Final = Bound(24, 0.1)
SHARED_OUT_MEMORY: Final = Bound(32, 0.15)
FILES: Final = Bound(8, 0.05)
THREADS: Final = Bound(2, 0.05)
SESSIONS: Final = Bound(3, 0.05)
LAG: Final = Bound(50, 0.1)
UNBOUNDED: Final = Bound(float("inf"), 1)

_LAGS: Final = """
    WITH head AS (SELECT coalesce(max(position), 0) AS position FROM events)
    SELECT
        (SELECT max(head.position - t.position) FROM tracking t, head WHERE t.application NOT LIKE '%\\_next'),
        (SELECT coalesce(sum(waiting), 0) FROM publication_lag()),
        (SELECT coalesce(max(head.position - p.position), 0) FROM webhook_progress p, head)
            + (SELECT count(*) FROM webhook_messages),
        (SELECT max(head.position) - coalesce(max(t.checkpoint_size), 0) FROM head LEFT JOIN log_trees t ON true),
        (SELECT count(*) FROM pg_stat_activity WHERE usename LIKE 'sparkledger%'),
        (SELECT position FROM head)
"""


class Process:
    """A process of ours, which is started again after it was killed."""

    def __init__(self, name: str, environment: dict[str, str], log: Path, *argv: str) -> None:
        self.name = name
        self._environment = environment
        self._log = log
        self._argv = argv
        self.kills = 0
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._running = subprocess.Popen(
                [sys.executable, "-m", *self._argv], cwd=REPOSITORY, env=self._environment, stdout=log, stderr=log
            )

    def family(self) -> list[psutil.Process]:
        """Return the process and those that it has started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            itself = psutil.Process(self._running.pid)
            return [itself, *itself.children(recursive=True)]
        return []

    def kill(self) -> None:
        """Kill it; what it has started ends by itself."""
        self.kills += 1
        self._running.kill()
        self._running.wait()
        self.start()

    def died(self) -> bool:
        return self._running.poll() is not None

    def stop(self) -> None:
        self._running.terminate()
        try:
            self._running.wait(30)
        except subprocess.TimeoutExpired:
            for process in self.family():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self._running.wait()


@dataclass
class Counts:
    """What callers and subscribers got."""

    acknowledged: dict[str, int] = field(default_factory=dict)
    again: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    streams: list[Counter[int]] = field(default_factory=list)
    webhook: Counter[int] = field(default_factory=Counter)
    kafka: Counter[int] = field(default_factory=Counter)
    reads: Counter[str] = field(default_factory=Counter)
    imports: Counter[str] = field(default_factory=Counter)
    pages: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0


class Traffic:
    """Everything that calls, reads and subscribes; in one event loop of a thread of its own."""

    def __init__(self, urls: list[str], key: str) -> None:
        self._urls = urls
        self._key = key
        self._numbers = itertools.count(1)
        self._turns = itertools.count()
        self.counts = Counts(streams=[Counter() for _ in range(STREAMS)])
        # Set once every caller has ended its last story: until then there are more commands and events.
        self.told = threading.Event()
        self._codes: list[str] = []

    async def run(self, callers_until: Callable[[], bool], ended: threading.Event, hook: int) -> None:
        limits = httpx.Limits(max_connections=100, max_keepalive_connections=50)
        headers = {"Authorization": f"Bearer {self._key}"}
        server = await asyncio.start_server(self._receive, "127.0.0.1", hook)
        async with server, httpx.AsyncClient(headers=headers, timeout=30, trust_env=False, limits=limits) as http:
            self._http = http
            self._began = time.monotonic()
            following = [asyncio.create_task(self._follow(number)) for number in range(STREAMS)]
            others = [
                asyncio.create_task(self._read(callers_until)),
                asyncio.create_task(self._click(callers_until)),
                asyncio.create_task(self._import(callers_until)),
            ]
            await asyncio.gather(*(self._tell(callers_until) for _ in range(CALLERS)))
            await asyncio.gather(*others)
            self.told.set()
            await asyncio.to_thread(ended.wait)
            for task in following:
                task.cancel()
            await asyncio.gather(*following, return_exceptions=True)

    def _url(self) -> str:
        return random.choice(self._urls)

    async def _tell(self, enough: Callable[[], bool]) -> None:
        """Tell one story after another: a code from its beginning to its end."""
        while not enough():
            number = next(self._numbers)
            creator = f"creator-{number % 50}"
            await self._command("PUT", f"/v1/creators/{creator}/permission", {"enabled": True})
            body = {"creator_id": creator, "video_id": f"video-{uuid.uuid4()}", "terms_version": TERMS}
            code = await self._command("POST", "/v1/codes", body)
            if code is None:
                continue
            self._codes = [*self._codes[-200:], code["code_id"]]
            of, account = f"/v1/codes/{code['code_id']}", f"account-{number % 1000}"
            share = {"brand_id": f"brand-{number % 20}", "advertiser_id": account, "channel": "dm"}
            await self._command("POST", f"{of}/shares", share)
            await self._command("POST", "/v1/redemptions", {"secret": code["secret"], "advertiser_id": account})
            await self._command("POST", f"{of}/extensions", {"days": 60})
            await self._command("POST", f"{of}/notes", {"text": "as agreed by mail"})
            if number % 2:
                await self._command("POST", f"{of}/revocation", {"reason": "a soak"})

    async def _command(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """Send a command when its turn comes, and again until it is answered."""
        turn = self._began + next(self._turns) / COMMANDS_PER_SECOND
        await asyncio.sleep(max(0.0, turn - time.monotonic()))
        mark = str(uuid.uuid4())
        began = time.monotonic()
        while True:
            try:
                answer = await self._http.request(
                    method, self._url() + path, json=body, headers={"Idempotency-Key": mark}
                )
            except httpx.TransportError:
                answer = None
            if answer is not None and answer.is_success:
                told: dict[str, Any] = answer.json()
                self.counts.acknowledged[mark] = told["position"]
                self.counts.slowest_s = max(self.counts.slowest_s, time.monotonic() - began)
                return told
            if answer is not None and answer.status_code != 503 and not answer.json().get("retryable"):
                self.counts.refused[f"{answer.status_code} {answer.json().get('code')}"] += 1
                return None
            self.counts.again += 1
            await asyncio.sleep(0.2)

    async def _read(self, enough: Callable[[], bool]) -> None:
        """Ask what people and programs ask."""
        while not enough():
            code = random.choice(self._codes) if self._codes else "none"
            path = random.choice(
                (
                    "/v1/codes?state=redeemed",
                    f"/v1/codes/{code}",
                    f"/v1/codes/{code}/history",
                    "/v1/events?order=desc",
                    "/v1/authorizations?video_id=7300000000000000001&advertiser_id=account-1",
                    "/v1/stats",
                    f"/v1/creators/creator-{random.randrange(50)}/permission",
                )
            )
            self.counts.reads[await self._got(path)] += 1
            await asyncio.sleep(READ_EVERY_S)

    async def _got(self, path: str) -> str:
        try:
            return str((await self._http.get(self._url() + path)).status_code)
        except httpx.TransportError:
            return "none"

    async def _import(self, enough: Callable[[], bool]) -> None:
        """Record sheets of codes."""
        for number in itertools.count(1):
            if enough():
                return
            ends = (datetime.now(UTC) + timedelta(days=30)).isoformat()
            rows = [f"creator-{number % 50},imported-{number}-{row},{ends}" for row in range(IMPORT_ROWS)]
            sheet = "\n".join(["creator_id,video_id,expires_at", *rows, ""])
            try:
                answer = await self._http.post(
                    f"{self._urls[0]}/v1/imports",
                    content=sheet,
                    headers={"Content-Type": "text/csv"},
                    params={"record": "true", "terms": TERMS},
                )
                self.counts.imports[str(answer.status_code)] += 1
            except httpx.TransportError:
                self.counts.imports["none"] += 1
            await asyncio.sleep(IMPORT_EVERY_S)

    async def _click(self, enough: Callable[[], bool]) -> None:
        """Read the console as a person does, who signs out and in now and then."""
        async with httpx.AsyncClient(base_url=self._urls[0], timeout=30, trust_env=False) as browser:
            for number in itertools.count():
                if enough():
                    return
                try:
                    if number % PAGES_OF_A_SESSION == 0:
                        await browser.post("/sign-out", headers=OURS)
                        answer = await browser.post("/sign-in", data={"key": self._key, "next": "/"}, headers=OURS)
                        self.counts.pages[f"sign-in {answer.status_code}"] += 1
                    path = random.choice((*PAGES, f"/codes/{self._codes[-1]}" if self._codes else "/"))
                    self.counts.pages[str((await browser.get(path)).status_code)] += 1
                except httpx.TransportError:
                    self.counts.pages["none"] += 1
                await asyncio.sleep(CLICK_EVERY_S)

    async def _follow(self, number: int) -> None:
        """Follow the stream of events, and go on after the last one when it is cut."""
        last_id = ""
        seen = self.counts.streams[number]
        while True:
            headers = {"Last-Event-ID": last_id} if last_id else {}
            url = f"{self._urls[number % len(self._urls)]}/v1/events/stream?after=0"
            with contextlib.suppress(httpx.HTTPError, SSEError):
                async with aconnect_sse(self._http, "GET", url, headers=headers) as source:
                    async for sent in source.aiter_sse():
                        last_id = sent.id
                        if sent.event == "message" and sent.data:
                            seen[sent.json()["position"]] += 1
            await asyncio.sleep(0.5)

    async def _receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Receive webhooks, over connections that are kept."""
        ended = (asyncio.IncompleteReadError, asyncio.CancelledError, OSError)
        with contextlib.suppress(*ended), contextlib.closing(writer):
            while head := (await reader.readuntil(b"\r\n\r\n")).decode().lower():
                lines = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
                event = json.loads(await reader.readexactly(int(lines.get("content-length", "0"))))
                self.counts.webhook[int(event["sequence"])] += 1
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
                await writer.drain()


class Watch:
    """Samples every figure."""

    def __init__(self, server: EmbeddedPostgres, judged: dict[str, Process], traffic: Traffic) -> None:
        self._server = server
        self._judged = judged
        self._traffic = traffic
        self.series: dict[str, Series] = {}
        self._began = time.monotonic()

    def _add(self, name: str, unit: str, bound: Bound, value: float) -> None:
        self.series.setdefault(name, Series(name, unit, bound)).add(time.monotonic() - self._began, value)

    def sample(self, connection: psycopg.Connection[Any]) -> None:
        """Take one sample of each figure."""
        for name, process in self._judged.items():
            family = process.family()
            with contextlib.suppress(psutil.NoSuchProcess):
                self._add(f"memory of {name}", "MiB", MEMORY, sum(one.memory_info().rss for one in family) / MIB)
                self._add(f"files of {name}", "files", FILES, sum(one.num_fds() for one in family))
                self._add(f"threads of {name}", "threads", THREADS, sum(one.num_threads() for one in family))
        private = 0
        for one in self._server.cluster.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                memory = one.memory_info()
                private += memory.rss - memory.shared
        self._add("memory of PostgreSQL, not shared", "MiB", SHARED_OUT_MEMORY, private / MIB)
        views, kafka, webhook, sealer, sessions, head = connection.execute(_LAGS).fetchone() or (0,) * 6
        self._add("connections to PostgreSQL", "sessions", SESSIONS, sessions)
        self._add("lag of the slowest view", "events", LAG, views or 0)
        self._add("lag of Kafka", "events", LAG, kafka)
        self._add("lag of the webhook", "events", LAG, webhook)
        self._add("lag of the sealer", "events", LAG, sealer)
        for number, seen in enumerate(self._traffic.counts.streams[:2], 1):
            self._add(f"lag of stream {number}", "events", LAG, max(0, head - max(seen, default=0)))
        self._add("events recorded", "events", UNBOUNDED, head)


def _environment(folder: Path, url: str, master: bytes, broker: Broker, name: str, port: int) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("SPARKLEDGER_")},
        "SPARKLEDGER_DATABASE_URL": url,
        "SPARKLEDGER_MASTER_KEY": base64.b64encode(master).decode(),
        "SPARKLEDGER_DATA_DIR": str(folder / name),
        "SPARKLEDGER_ERASURE_KEY_DIR": str(folder / "erasure-keys"),
        "SPARKLEDGER_SIGNING_DIR": str(folder / "signing"),
        "SPARKLEDGER_VIDEO_IDS": "any",
        "SPARKLEDGER_CODES_WITHOUT_SECRET": "true",
        "SPARKLEDGER_PORT": str(port),
        "SPARKLEDGER_KAFKA_BOOTSTRAP_SERVERS": broker.plain,
        "SPARKLEDGER_KAFKA_LEDGERS": f"*={PREFIX}",
    }


@contextmanager
def _broker(folder: Path) -> Iterator[Broker]:
    folder.mkdir()
    made = start(folder, lasting=True)
    try:
        yield made
    finally:
        stop(made)


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/livez", trust_env=False).is_success
    return False


def run(minutes: float, results: Path) -> int:
    """Run everything for so long, and write pictures and figures into a directory; return the exit code."""
    folder = Path(tempfile.mkdtemp(prefix="sl-soak-"))
    folder.chmod(0o755)
    try:
        with ExitStack() as opened:
            return _run(minutes, folder, opened, results)
    except AssertionError:
        for log in sorted(folder.glob("*.log")):
            sys.stderr.write(f"--- {log.name}\n{log.read_text()[-2000:]}\n")
        raise
    except NoKafka as reason:
        sys.stderr.write(f"{reason}\n")
        return 2
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(minutes: float, folder: Path, opened: ExitStack, results: Path) -> int:
    master = fresh_key()
    broker = opened.enter_context(_broker(folder / "kafka"))
    server = opened.enter_context(EmbeddedPostgres(folder / "postgres"))
    migrate(server.dsn())
    asyncio.run(create_views(server.dsn()))
    provider = MasterKey(master, epochs=EpochKeys(folder / "erasure-keys"))
    key = asyncio.run(create_ledger(server.dsn(), provider, "main"))
    ports = [free_port(), free_port()]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    processes: dict[str, Process] = {}

    def begin(name: str, user: str, port: int, *argv: str) -> None:
        environment = _environment(folder, server.dsn(user), master, broker, name, port)
        made = Process(name, environment, folder / f"{name}.log", *argv)
        opened.callback(made.stop)
        processes[name] = made

    for number, port in enumerate(ports, 1):
        begin(f"api {number}", API, port, "tests.soak.small_caches", "serve")
    # The first worker runs as the two processes that it consists of, each with small caches; the second one is killed.
    begin("worker 1", WORKER, 0, "tests.soak.small_caches", "work", "--only", FOLLOWING)
    begin("deliveries 1", WORKER, 0, "tests.soak.small_caches", "work", "--only", DELIVERING)
    begin("worker 2", WORKER, 0, "cli", "work", "--only", f"{FOLLOWING},{DELIVERING}")
    begin("sealer", WORKER, 0, "cli", "work", "--only", "seal")
    for url in urls:
        until(lambda url=url: _answers(url), UP_WITHIN_S)  # type: ignore[misc] # mypy infers no lambda with a default

    hook = free_port()
    with httpx.Client(
        base_url=urls[0], headers={"Authorization": f"Bearer {key}"}, trust_env=False, timeout=30
    ) as http:
        http.post("/v1/webhooks", json={"url": f"http://127.0.0.1:{hook}/", "after": 0}).raise_for_status()

    began = time.monotonic()
    ends = began + 60 * minutes
    ended = threading.Event()
    traffic = Traffic(urls, key)
    thread = threading.Thread(
        target=lambda: asyncio.run(traffic.run(lambda: time.monotonic() > ends, ended, hook)), daemon=True
    )
    thread.start()
    topic = opened.enter_context(events(broker.plain, PREFIX))
    watch = Watch(server, {name: one for name, one in processes.items() if not name.endswith("2")}, traffic)
    problems = _watch(watch, server, processes, traffic, topic, began, ends)
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        problems += _end(connection, traffic, topic)
    ended.set()
    thread.join(60)
    return _report(minutes, watch, traffic, processes, problems, results)


def _watch(
    watch: Watch,
    server: EmbeddedPostgres,
    processes: dict[str, Process],
    traffic: Traffic,
    topic: Topic,
    began: float,
    ends: float,
) -> list[str]:
    """Sample and kill until the end; return what went wrong."""
    problems = []
    victims = itertools.cycle([processes["worker 2"], processes["api 2"]])
    kills = itertools.chain(
        (began + share * (ends - began) for share in KILLED_FIRST),
        itertools.count(began + WARM_UP * (ends - began) + KILL_EVERY_S, KILL_EVERY_S),
    )
    kill_at = next(kills)
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        while (now := time.monotonic()) < ends:
            watch.sample(connection)
            for received in topic.poll():
                traffic.counts.kafka[received.position] += 1
            topic.received.clear()
            if now > kill_at:
                next(victims).kill()
                kill_at = next(kills)
            for process in processes.values():
                if process.died():
                    problems.append(f"{process.name} ended by itself")
                    process.start()
            _show(watch, traffic, now - began, ends - began)
            time.sleep(max(0.0, SAMPLE_EVERY_S - (time.monotonic() - now)))
    return problems


def _show(watch: Watch, traffic: Traffic, passed: float, whole: float) -> None:
    if int(passed / 60) == int((passed - SAMPLE_EVERY_S) / 60):
        return
    counts = traffic.counts
    sys.stdout.write(
        f"{passed / 60:5.1f} of {whole / 60:.0f} min: {len(counts.acknowledged)} commands, {counts.again} sent again;"
        f" lag of views {watch.series['lag of the slowest view'].values[-1]:.0f}\n"
    )
    sys.stdout.flush()


def _end(connection: psycopg.Connection[Any], traffic: Traffic, topic: Topic) -> list[str]:
    """Wait until subscribers have everything, and compare; return what is missing or doubled."""
    counts = traffic.counts
    if not traffic.told.wait(DELIVERED_WITHIN_S):
        return ["the callers do not end"]
    deadline = time.monotonic() + DELIVERED_WITHIN_S
    head = 0
    while time.monotonic() < deadline:
        row = connection.execute("SELECT max(position) FROM events").fetchone()
        head = int(row[0]) if row else 0
        for received in topic.poll():
            counts.kafka[received.position] += 1
        topic.received.clear()
        got = [*map(len, counts.streams), len(counts.webhook), len(counts.kafka)]
        if all(one >= head for one in got):
            break
        time.sleep(0.5)
    problems = []
    for name, seen, repeats in (
        *((f"stream {number}", seen, False) for number, seen in enumerate(counts.streams, 1)),
        ("the webhook", counts.webhook, True),
        ("Kafka", counts.kafka, False),
    ):
        doubled = sum(count - 1 for count in seen.values())
        sys.stdout.write(f"{name}: {len(seen)} of {head} events, {doubled} more than once\n")
        if sorted(seen) != list(range(1, head + 1)):
            problems.append(f"{name} has {len(seen)} of {head} events")
        if doubled and not repeats:
            problems.append(f"{name} got {doubled} events more than once")
    found = connection.execute(
        "SELECT position FROM events WHERE position = ANY (%s)", (list(counts.acknowledged.values()),)
    ).fetchall()
    missing = sorted(set(counts.acknowledged.values()) - {row[0] for row in found})
    if missing:
        problems.append(f"acknowledged commands are missing: those at {missing[:20]}, {len(missing)} in all")
    return problems


def _report(
    minutes: float,
    watch: Watch,
    traffic: Traffic,
    processes: dict[str, Process],
    problems: list[str],
    results: Path,
) -> int:
    counts = traffic.counts
    series = list(watch.series.values())
    problems += [one.sentence() for one in series if not one.flat]
    kills = ", ".join(f"{one.name}: {one.kills}" for one in processes.values() if one.kills)
    lines = [
        "",
        HEAD,
        *(one.line() for one in series),
        "",
        f"{len(counts.acknowledged)} commands acknowledged in {minutes:g} min, {counts.again} attempts sent again",
        f"the slowest answered after {counts.slowest_s:.1f} s; refused: {dict(counts.refused) or 'none'}",
        f"reads by status: {dict(counts.reads)}; pages of the console: {dict(counts.pages)}",
        f"imports: {dict(counts.imports)}; kills: {kills or 'none'}",
        *(f"PROBLEM: {problem}" for problem in problems),
    ]
    results.mkdir(parents=True, exist_ok=True)
    picture, figures = results / "soak.svg", results / "soak.json"
    title = f"{minutes:g} minutes, {len(counts.acknowledged)} commands"
    picture.write_text(svg(title, series))
    content = {
        "minutes": minutes,
        "acknowledged": len(counts.acknowledged),
        "sent_again": counts.again,
        "slowest_s": round(counts.slowest_s, 2),
        "refused": dict(counts.refused),
        "reads": dict(counts.reads),
        "pages": dict(counts.pages),
        "imports": dict(counts.imports),
        "kills": {one.name: one.kills for one in processes.values()},
        "problems": problems,
        "figures": [one.figures() for one in series],
    }
    figures.write_text(json.dumps(content, indent=1) + "\n")
    sys.stdout.write("\n".join([*lines, f"The picture is {picture}, the figures are {figures}.", ""]))
    return 1 if problems else 0


def main() -> None:
    """Read the length from the command line, and run."""
    parser = ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="how long callers call")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the directory for soak.svg and soak.json")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    given = parser.parse_args()
    sys.exit(run(given.minutes, given.results))


if __name__ == "__main__":
    main()
