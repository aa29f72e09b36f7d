"""Everything is killed under load, while clients that others wrote follow: each has every event, once, in order.

`sparkledger up` runs as a user starts it, with Kafka beside it. Commands are sent at a steady pace, each with an
idempotency key, and sent again until they are answered. Meanwhile SIGKILL hits the workers, Kafka and PostgreSQL.
Clients of the topic, of the stream and of webhooks write down what they get. None of them is restarted.

    kafka-python, confluent-kafka           the topic, as `read_committed`
    httpx-sse                               the stream, with an API key
    standardwebhooks and cloudevents        a webhook's receiver
    franz-go, eventsource from npm,         in the long form, where Go, Node.js, Chromium and Firefox are there;
    Chromium, Firefox                       the browsers with a stream token
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from standardwebhooks import Webhook

from tests.absent import absent
from tests.faults.durable import SHORT
from tests.infra.delivery.kafka.broker import NoKafka
from tests.infra.delivery.kafka.fixtures import Restartable
from tests.places import directory
from tests.serving import REPOSITORY, LiveServer, start_live_server
from tests.waiting import until

# As in tests/infra/delivery/kafka: a client that was given up leaves its sockets to the collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

CLIENTS: Final = Path(__file__).parent / "clients"
# Fewer where a machine has other things to do.
COMMANDS: Final = 800 if SHORT else int(os.environ.get("SPARKLEDGER_CHAOS_COMMANDS", "8400"))
PER_SECOND: Final = 100.0
# At which share of the commands what is killed.
WORKERS_AT: Final = (0.2,) if SHORT else (0.08, 0.2, 0.35, 0.5, 0.65, 0.85)
KAFKA_AT: Final = (0.6,) if SHORT else (0.28, 0.72)
POSTGRES_AT: Final = (0.4,) if SHORT else (0.43,)
STORIES_AT_ONCE: Final = 16
ANSWERED_WITHIN_S: Final = 900.0
# Nothing new for so long is taken to be the end.
DELIVERED_WITHIN_S: Final = 240.0
TERMS: Final = "2026-01"


@dataclass
class Client:
    """What a client got: a line for each message, with position, subject, id and version of the event."""

    name: str
    log: Path
    # A webhook may send an event again, with the same id.
    repeats: bool = False

    def lines(self) -> list[tuple[int, str, str, int]]:
        whole = self.log.read_text().rpartition("\n")[0].splitlines() if self.log.exists() else []
        return [tuple(json.loads(line)) for line in whole]


@dataclass
class Counts:
    """What a client got, beside what is in the log."""

    client: str
    expected: int
    got: int
    doubled: int
    out_of_order: int
    others: int

    @classmethod
    def of(cls, client: Client, log: dict[int, str]) -> Counts:
        lines = client.lines()
        seen: dict[int, str] = {}
        versions: dict[str, int] = {}
        out_of_order = others = 0
        for sequence, subject, id_, version in lines:
            if sequence in seen:
                continue
            seen[sequence] = id_
            others += log.get(sequence) != id_
            # First copies: a version of a subject comes after all before it.
            out_of_order += version != versions.get(subject, 0) + 1
            versions[subject] = version
        return cls(client.name, len(log), len(seen), len(lines) - len(seen), out_of_order, others)


class Receiver(BaseHTTPRequestHandler):
    """Receives webhooks, and what pages report; serves the page."""

    server: Listener

    def do_GET(self) -> None:
        content = (CLIENTS / "page.html").read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.startswith("/lines/"):
            self.server.write(self.path.removeprefix("/lines/"), json.loads(body))
        else:
            headers = {name.lower(): value for name, value in self.headers.items()}
            Webhook(self.server.secret).verify(body, headers)
            event = from_http_event(HTTPMessage(headers, body))
            extensions = event.get_attributes()
            line = [
                int(extensions["sequence"]),
                event.get_subject(),
                event.get_id(),
                int(extensions["streamversion"]),
            ]
            self.server.write("webhook", [line])
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Listener(ThreadingHTTPServer):
    """Listens on this machine, and writes down what it gets."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.secret = ""
        self._folder = folder
        self._lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def write(self, name: str, lines: list[Any]) -> None:
        with self._lock, (self._folder / name).open("a") as log:
            log.writelines(f"{json.dumps(line)}\n" for line in lines)


class Load:
    """Sends commands at a steady pace, each until it is answered; each records one event."""

    def __init__(self, running: LiveServer) -> None:
        self._url = running.url
        self._headers = {"Authorization": f"Bearer {running.admin_key}"}
        self._numbers = itertools.count(1)
        self._taken = 0
        self.answered = 0
        self.again = 0

    def run(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        limits = httpx.Limits(max_connections=STORIES_AT_ONCE)
        async with httpx.AsyncClient(
            base_url=self._url, headers=self._headers, timeout=30, trust_env=False, limits=limits
        ) as http:
            self._http = http
            self._began = time.monotonic()
            await self._send("PUT", "/v1/creators/ana/permission", {"enabled": True})
            await asyncio.gather(*(self._stories() for _ in range(STORIES_AT_ONCE)))

    async def _stories(self) -> None:
        while self._taken < COMMANDS:
            number = next(self._numbers)
            code = await self._send(
                "POST", "/v1/codes", {"creator_id": "ana", "video_id": f"video-{number}", "terms_version": TERMS}
            )
            if code is None:
                return
            of = f"/v1/codes/{code['code_id']}"
            account = f"account-{number}"
            share = {"brand_id": "acme", "advertiser_id": account, "channel": "dm"}
            await self._send("POST", f"{of}/shares", share)
            await self._send("POST", "/v1/redemptions", {"secret": code["secret"], "advertiser_id": account})
            await self._send("POST", f"{of}/extensions", {"days": 60})
            await self._send("POST", f"{of}/revocation", {"reason": "a test"})

    async def _send(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """Send a command when its turn comes; return nothing where there were enough."""
        if self._taken >= COMMANDS:
            return None
        self._taken += 1
        turn = self._began + self._taken / PER_SECOND
        await asyncio.sleep(turn - time.monotonic())
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        until_ = time.monotonic() + ANSWERED_WITHIN_S
        while True:
            try:
                answer = await self._http.request(method, path, json=body, headers=headers)
                if answer.is_success:
                    self.answered += 1
                    answered: dict[str, Any] = answer.json()
                    return answered
                assert answer.status_code == 503 or answer.json()["retryable"], answer.text
            except httpx.TransportError:
                pass
            assert time.monotonic() < until_, f"{method} {path} was not answered"
            self.again += 1
            await asyncio.sleep(0.2)


@contextmanager
def process(name: str, folder: Path, *command: str | Path) -> Iterator[Client]:
    """Run a client that writes lines to its standard output."""
    client = Client(name, folder / name)
    with (
        client.log.open("wb") as out,
        (folder / f"{name}.err").open("wb") as errors,
        subprocess.Popen(command, stdout=out, stderr=errors, cwd=folder) as running,
    ):
        try:
            yield client
        finally:
            children = psutil.Process(running.pid).children(recursive=True)
            running.kill()
            for child in children:
                if child.is_running():
                    child.kill()


def browsers(url: str, token: Any, listener: Listener, folder: Path) -> Iterator[tuple[str, list[str | Path]]]:
    """Yield the browsers that are there, and what opens the page in each."""
    page = "{}/?name={}&url={}&token={}"
    if shutil.which("chromium"):
        profile = folder / "chromium-profile"
        options = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--user-data-dir={profile}",
        ]
        yield "chromium", ["chromium", *options, page.format(listener.url, "chromium", url, token())]
    if shutil.which("firefox"):
        profile = folder / "firefox-profile"
        profile.mkdir()
        options = ["--headless", "--no-remote", "--profile", str(profile)]
        yield "firefox", ["firefox", *options, page.format(listener.url, "firefox", url, token())]


def others(running: LiveServer, key: str, kafka: str, listener: Listener, folder: Path) -> Iterator[Any]:
    """Yield the further clients of the long form, as far as this machine has what they need."""
    if shutil.which("go"):
        built = folder / "go"
        shutil.copytree(REPOSITORY / "docs" / "consumer" / "go", built)
        shutil.copytree(CLIENTS / "franz", built / "franz")
        subprocess.run(["go", "build", "-o", built / "bin" / "franz", "./franz"], cwd=built, check=True, timeout=600)
        yield process("franz-go", folder, built / "bin" / "franz", kafka, TOPIC)
    if shutil.which("npm"):
        modules = folder / "node"
        modules.mkdir()
        shutil.copy(CLIENTS / "eventsource.mjs", modules)
        install = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "eventsource@4"]
        subprocess.run(install, cwd=modules, check=True, timeout=300, capture_output=True)
        yield process("eventsource", folder, "node", modules / "eventsource.mjs", running.url, key)
    with httpx.Client(base_url=running.url, headers={"Authorization": f"Bearer {key}"}, trust_env=False) as http:

        def token() -> str:
            made: str = http.post("/v1/stream-tokens", json={}).json()["token"]
            return made

        for name, command in browsers(running.url, token, listener, folder):
            yield browser(name, folder, command)


@contextmanager
def browser(name: str, folder: Path, command: list[str | Path]) -> Iterator[Client]:
    with process(f"{name}.out", folder, *command):
        yield Client(name, folder / name)


TOPIC: Final = "sparkledger.code-events.v1"


def kill_workers(running: LiveServer) -> None:
    """Kill the process that publishes to Kafka, and the one that sends webhooks."""
    family = psutil.Process(running.process.pid).children(recursive=True)
    workers = [one for one in family if "work" in words(one) and "seal" not in words(one)]
    assert workers
    for one in workers:
        one.kill()


def words(of: psutil.Process) -> list[str]:
    try:
        return of.cmdline()
    except psutil.NoSuchProcess:
        return []


def kill_postgres(running: LiveServer) -> None:
    """Kill all processes of PostgreSQL at once."""
    family = psutil.Process(running.process.pid).children(recursive=True)
    server = next(
        one for one in family if any("postgres" in word for word in words(one)[:1]) and "-D" in " ".join(words(one))
    )
    for one in [server, *server.children(recursive=True)]:
        if one.is_running():
            one.kill()


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="sl-chaos-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def broker() -> Iterator[Restartable]:
    place = directory("chaos-kafka")
    try:
        own = Restartable(place)
    except NoKafka as reason:
        absent(str(reason))
    yield own
    own.stop()
    shutil.rmtree(place)


def test_clients_of_others_have_every_event_once_and_in_order_over_kills_of_everything(
    broker: Restartable, folder: Path
) -> None:
    listener = Listener(folder)
    kafka = broker.broker.plain
    running = start_live_server(
        folder / "data",
        kafka_bootstrap_servers=kafka,
        cors_origins=listener.url,
        webhook_networks="127.0.0.0/8",
        requests_per_second="100000",
    )
    try:
        with httpx.Client(
            base_url=running.url, headers={"Authorization": f"Bearer {running.admin_key}"}, timeout=30, trust_env=False
        ) as http:
            key = http.post("/v1/keys", json={"role": "subscriber"}).json()["key"]
            webhook = http.post("/v1/webhooks", json={"url": f"{listener.url}/webhook", "after": 0})
            assert webhook.status_code == 201, webhook.text
            listener.secret = webhook.json()["secret"]
            python = sys.executable
            with ExitStack() as stack:
                clients = [Client("webhook", folder / "webhook", repeats=True)]
                started: Iterator[Any] = iter(
                    [
                        process("kafka-python", folder, python, CLIENTS / "kafka_python.py", kafka, TOPIC),
                        process("confluent-kafka", folder, python, CLIENTS / "confluent.py", kafka, TOPIC),
                        process("httpx-sse", folder, python, CLIENTS / "httpx_sse_.py", running.url, key),
                    ]
                )
                if not SHORT:
                    started = itertools.chain(started, others(running, key, kafka, listener, folder))
                clients += [stack.enter_context(one) for one in started]
                load = Load(running)
                began = time.monotonic()
                kill_under_load(load, running, broker)
                took = time.monotonic() - began
                log = whole_log(http)
                delivered(clients, len(log))
                counts = [Counts.of(client, log) for client in clients]
    finally:
        running.stop()
        listener.shutdown()
        listener.server_close()

    report(load, took, len(log), counts)
    assert load.answered == COMMANDS
    assert len(log) == COMMANDS
    for client, counted in zip(clients, counts, strict=True):
        assert (counted.got, counted.out_of_order, counted.others) == (len(log), 0, 0), counted
        assert client.repeats or counted.doubled == 0, counted


def kill_under_load(load: Load, running: LiveServer, broker: Restartable) -> None:
    """Send all commands, and kill when the time has come."""
    kills = sorted(
        [(share, "workers") for share in WORKERS_AT]
        + [(share, "kafka") for share in KAFKA_AT]
        + [(share, "postgres") for share in POSTGRES_AT]
    )
    sending = threading.Thread(target=load.run)
    sending.start()
    for share, what in kills:
        until(lambda share=share: load.answered >= share * COMMANDS or not sending.is_alive(), ANSWERED_WITHIN_S)  # type: ignore[misc] # mypy infers no lambda with a default
        match what:
            case "workers":
                kill_workers(running)
            case "postgres":
                kill_postgres(running)
            case _:
                broker.stop(9)
                broker.start()
    sending.join()


def whole_log(http: httpx.Client) -> dict[int, str]:
    """Return the id of each event by its position."""
    log: dict[int, str] = {}
    after: int | None = 0
    while after is not None:
        page = http.get("/v1/events", params={"after": after, "limit": 1000}).json()
        log |= {event["position"]: event["event_id"] for event in page["events"]}
        after = page["next"]
    return log


def delivered(clients: list[Client], expected: int) -> None:
    """Wait until each client has as many events, or has got nothing new for long."""
    deadline = time.monotonic() + DELIVERED_WITHIN_S
    while time.monotonic() < deadline:
        if all(len({line[0] for line in client.lines()}) >= expected for client in clients):
            return
        time.sleep(0.5)


def report(load: Load, took: float, events: int, counts: list[Counts]) -> None:
    """Print what docs/delivery.md has."""
    sent = f"{load.answered} commands answered, {load.again} attempts failed and were sent again, {took:.0f} s"
    rows = [
        f"{sent}; {events} events",
        f"{'client':<18} {'expected':>8} {'got':>6} {'doubled':>8} {'out of order':>13}",
        *(f"{c.client:<18} {c.expected:>8} {c.got:>6} {c.doubled:>8} {c.out_of_order:>13}" for c in counts),
    ]
    sys.stdout.write("\n".join([*rows, ""]))
    if target := os.environ.get("SPARKLEDGER_CHAOS_REPORT"):
        Path(target).write_text("\n".join([*rows, ""]))
