"""Real servers for tests: one in this process on a real PostgreSQL, shared by tests that each get their own ledger;
and the whole program as a user starts it.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Self

import httpx
import psycopg
import uvicorn
import uvloop

from api.console.visit import Console
from api.http.app import create_app
from api.http.dependencies import Limits, Services, SharedPlaces
from api.http.protocol import BoundedProtocol
from api.http.server import believing
from api.streams import Streams
from infra.auth.api_keys import Subjects
from infra.auth.key_admin import KeyAdmin
from infra.auth.key_commands import FIRST_NAME
from infra.auth.ledger_admin import LedgerAdmin
from infra.auth.stream_tokens import StreamTokens
from infra.crypto.envelope import fresh_key
from infra.crypto.keyring import Keyring
from infra.delivery.alerts.calendars import Calendars
from infra.delivery.alerts.rules import AlertRules
from infra.delivery.webhooks.subscriptions import WebhookSubscriptions
from infra.eventstore.all_ledgers_reader import AllLedgersReader
from infra.eventstore.notifications import Listener
from infra.imports.mappings import SheetMappings
from infra.imports.runs import ImportRuns
from infra.jobs.erasure import Erasures
from infra.jobs.expiry_clock import ExpiryClock
from infra.jobs.heads import HeadsJob
from infra.jobs.log_keys import Changed, Step, change_keys
from infra.postgres.pool import Database
from infra.postgres.roles import API, WORKER
from infra.processes.worker import create_views
from infra.proof.configured_witness import ConfiguredWitness
from infra.proof.sealer import Sealer, SealerSettings
from infra.proof.tree_store import TreeStore
from infra.proof.witness_client import WitnessClient
from infra.runtime import runtime
from infra.settings import load_settings
from infra.views.commands import connect
from infra.views.reader import ViewReader
from projections import VIEWS
from projections.engine.runner import Runner
from projections.engine.shared_reader import SharedLog
from tests.conftest import TestDatabase
from tests.keys import master_key
from tests.places import directory
from tests.waiting import until

REPOSITORY = Path(__file__).parent.parent
START_S = 60
# Views follow events together that come within so many seconds; one that is read does so at once.
GATHER_S = 0.1
HEADS_SESSIONS = """
    SELECT pid FROM pg_stat_activity WHERE application_name = 'sparkledger heads' AND datname = current_database()
"""
# Made once: reading the certificates of all authorities would be most of what a client costs.
TLS = ssl.create_default_context()


def http_client(url: str, key: str | None = None) -> httpx.Client:
    """Return a client of a server, with a key if one is given."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return httpx.Client(base_url=url, headers=headers, timeout=20, trust_env=False, verify=TLS)


class Clock:
    """The server's clock: real time, moved forward by tests that must not wait for it."""

    def __init__(self) -> None:
        self.ahead = datetime.now(UTC) - datetime.now(UTC)

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


class Followers:
    """Wakes the views: each at once while it is read, and otherwise all together, a moment after an event.

    Most tests record several events and then read one view. Ten views that followed each event at once would take more
    time than the API itself.
    """

    def __init__(self, wakes: Mapping[str, asyncio.Event]) -> None:
        self._wakes = wakes
        # The views that were not woken since the last event, and those that are read now.
        self._behind: set[str] = set()
        self._reads: Counter[str] = Counter()
        self._due: asyncio.TimerHandle | None = None

    def heard(self) -> None:
        """Take note of events."""
        self._behind.update(self._wakes)
        self._wake({name for name, count in self._reads.items() if count})
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(GATHER_S, self._wake_all)

    def attend(self, reader: ViewReader) -> None:
        """Know when a view is read, or waited for."""
        read, wait, reach = reader.read, reader.wait, reader.reach

        async def attended_read(ledger_id: int, query: Any, *, view: str, also: Sequence[str] = (), **more: Any) -> Any:
            with self._reading(view, *also):
                return await read(ledger_id, query, view=view, also=also, **more)

        async def attended_wait(ledger_id: int, view: str, *more: Any, **named: Any) -> None:
            with self._reading(view):
                await wait(ledger_id, view, *more, **named)

        async def attended_reach(ledger_id: int, view: str, *more: Any, **named: Any) -> int:
            with self._reading(view):
                return await reach(ledger_id, view, *more, **named)

        reader.read, reader.wait, reader.reach = attended_read, attended_wait, attended_reach  # type: ignore[method-assign]

    @contextmanager
    def _reading(self, *names: str) -> Iterator[None]:
        self._reads.update(names)
        self._wake(set(names))
        try:
            yield
        finally:
            self._reads.subtract(names)

    def _wake_all(self) -> None:
        self._due = None
        self._wake(set(self._wakes))

    def _wake(self, names: set[str]) -> None:
        for name in names & self._behind:
            self._behind.discard(name)
            self._wakes[name].set()


class Serving:
    """The API, the views and the expiry clock on one database, in a thread of this process."""

    def __init__(self, database: TestDatabase) -> None:
        self.database = database
        key = fresh_key()
        self.master_key = master_key(key)
        # For processes of their own on the same database.
        self.master_key_text = base64.b64encode(key).decode()
        self.clock = Clock()
        # Tests name videos so that they can be told apart; which ids are TikTok's has tests of its own.
        self.settings = load_settings(
            {
                "SPARKLEDGER_VIDEO_IDS": "any",
                "SPARKLEDGER_CODES_WITHOUT_SECRET": "true",
                "SPARKLEDGER_SMTP_URL": "smtp://127.0.0.1:9",
                "SPARKLEDGER_SMTP_FROM": "alerts@ledger.example",
                "SPARKLEDGER_ALERT_DOMAINS": "ledger.example,brand.example",
            }
        )
        self.url = ""
        self._signing = directory("signing")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="serving")

    def __enter__(self) -> Self:
        asyncio.run(create_views(self.database.dsn()))
        self._thread.start()
        assert self._ready.wait(START_S), "the server did not start in time"
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(START_S)
        shutil.rmtree(self._signing)
        if self._failure is not None:
            raise self._failure

    def seal(self, *public_logs: str) -> None:
        """Seal all that is recorded, in every ledger; logs that are named become public ones."""
        settings = SealerSettings(self._signing, "ledger.example/log")
        sealer = Sealer(self.database.dsn(WORKER), replace(settings, public_logs=frozenset(public_logs)))
        with psycopg.connect(self.database.dsn(WORKER), autocommit=True) as connection:
            store = TreeStore(connection)
            while sealer.step(store):
                pass

    def cosign(self, *witnesses: ConfiguredWitness) -> None:
        """Let witnesses cosign the newest checkpoint of every log that they know."""
        client = WitnessClient(self.database.dsn(WORKER), self._signing, witnesses, lambda *_: None, threading.Event())
        with psycopg.connect(self.database.dsn(WORKER), autocommit=True) as connection:
            client.round(connection)

    def change_keys(self, ledger: str, step: Step, reason: str | None = None) -> Changed:
        """Take a step of a change of signing keys, as the command line does."""
        return asyncio.run(change_keys(self.database.dsn(), self.master_key, self._signing, ledger, step, reason))

    def seal_heads(self) -> None:
        """Seal the heads of all logs, as a worker does."""

        async def run() -> None:
            async with runtime(self.database.dsn(WORKER), WORKER, self.master_key) as worker:
                await HeadsJob(worker, every_s=0).round()

        asyncio.run(run())
        # The next round would not lead as long as the server has not noticed that this session is over.
        until(lambda: not self.database.sql(HEADS_SESSIONS))

    def new_ledger(self) -> tuple[str, str]:
        """Begin a ledger; return its name, and the key of its administrator."""
        name = f"ledger-{secrets.token_hex(6)}"
        self.call(self._ledger_admin.create(name))
        return name, self.key(name, "admin", name=FIRST_NAME)

    def key(self, ledger: str, role: Any, subjects: Subjects | None = None, name: str | None = None) -> str:
        """Mint a key of a ledger, as the command line does, and return its text."""

        async def create() -> str:
            ledger_id = await self._ledger_admin.id_of(ledger)
            return (await self._key_admin.create(ledger_id, role=role, subjects=subjects, name=name))[1]

        return str(self.call(create()))

    def call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the server's own loop, and return its result."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(START_S)

    def _run(self) -> None:
        try:
            uvloop.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - the test's own thread raises it
            self._failure = error
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        dsn = self.database.dsn
        async with (
            runtime(dsn(API), API, self.master_key) as api,
            runtime(dsn(WORKER), WORKER, self.master_key) as worker,
        ):
            api.handler.now = worker.handler.now = self.clock
            self.api, self.worker = api, worker
            # An operator's session, as the command line has: one for all tests, since each takes longer than a ledger.
            operator = Database(dsn(), WORKER, size=1)
            await operator.open()
            keyring = Keyring(operator, self.master_key)
            self._key_admin, self._ledger_admin = KeyAdmin(operator, keyring), LedgerAdmin(operator, keyring)
            self.expiry = ExpiryClock(worker)
            wakes = {view.name: asyncio.Event() for view in VIEWS}
            shared = SharedLog(AllLedgersReader(worker.database))
            runners = [Runner(view, shared.reader(), lambda: connect(dsn(WORKER)), wakes[view.name]) for view in VIEWS]

            followers = Followers(wakes)
            followers.attend(api.views)
            listener = Listener(dsn(WORKER), WORKER, followers.heard)
            listener.start()
            tasks = [asyncio.create_task(runner.run()) for runner in runners]
            tasks.append(asyncio.create_task(self.expiry.run()))
            erasures = Erasures(worker.database, worker.aggregates, worker.key_admin)
            tasks.append(asyncio.create_task(erasures.run(poll_s=0.5)))
            services = Services(
                handler=api.handler,
                aggregates=api.aggregates,
                events=api.events,
                keyring=api.keyring,
                denied_attempts=api.denied_attempts,
                authenticator=api.authenticator,
                key_admin=api.key_admin,
                reads=api.reads,
                views=api.views,
                settings=self.settings,
                now=self.clock,
                database=api.database,
                webhooks=WebhookSubscriptions(api.database, api.keyring),
                alerts=AlertRules(api.database, api.keyring),
                calendars=Calendars(api.database, api.keyring, api.aggregates),
                mappings=SheetMappings(api.database),
                import_runs=ImportRuns(api.database, api.keyring),
                histories=api.histories,
                stream_tokens=StreamTokens(api.database, api.keyring),
                on_keys_changed=api.on_keys_changed,
            )
            app = create_app(services)
            self.streams: Streams = app.state.streams
            self.places: SharedPlaces = app.state.places
            self.limits: Limits = app.state.limits
            self.console: Console = app.state.console
            listening = socket.create_server(("127.0.0.1", 0))
            # asyncio does it for sockets that name their protocol only; without it every answer waits 40 ms.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            config = uvicorn.Config(
                app, log_config=None, server_header=False, lifespan="off", http=BoundedProtocol, **believing(("none",))
            )
            server = uvicorn.Server(config)
            server.capture_signals = _no_signals  # type: ignore[method-assign] # a thread cannot handle them
            serving = asyncio.create_task(server.serve(sockets=[listening]))
            self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            while not server.started:  # noqa: ASYNC110 - uvicorn offers nothing to wait for
                await asyncio.sleep(0.005)
            self._ready.set()
            await self._stop.wait()
            server.should_exit = True
            await app.state.streams.close()
            await serving
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await listener.stop()
            await operator.close()
            listening.close()


@contextmanager
def _no_signals() -> Iterator[None]:
    yield


@dataclass(frozen=True)
class Server:
    """A running server as one test sees it: with a ledger of its own, and the key of that ledger's administrator."""

    serving: Serving
    ledger: str
    admin_key: str

    @property
    def url(self) -> str:
        """Where it answers."""
        return self.serving.url

    @property
    def clock(self) -> Clock:
        """The clock it decides by; move it forward by setting `ahead`."""
        return self.serving.clock

    @property
    def database(self) -> TestDatabase:
        """The database behind it."""
        return self.serving.database

    def key(self, role: Any, **subjects: Any) -> str:
        """Mint a key of the test's ledger, with creator_ids, brand_ids or advertiser_ids."""
        given = Subjects(**{name: frozenset(ids) for name, ids in subjects.items()})
        return self.serving.key(self.ledger, role, given)

    def another(self) -> Server:
        """Begin another ledger on the same server."""
        return new_ledger(self.serving)

    def client(self, key: str | None = None) -> httpx.Client:
        """Return a client that authenticates with a key, the administrator's if none is given."""
        return http_client(self.url, key or self.admin_key)


def new_ledger(serving: Serving) -> Server:
    """Begin a ledger and return the server as its administrator sees it."""
    return Server(serving, *serving.new_ledger())


@dataclass
class LiveServer:
    """`sparkledger up` as a user starts it: a process tree of its own, on a data directory of its own."""

    process: subprocess.Popen[str]
    url: str
    admin_key: str
    data_dir: Path
    environment: dict[str, str]
    lines: list[str]
    reader: threading.Thread
    log: IO[str]

    def stop(self, number: int = signal.SIGINT) -> int:
        """Ask it to end, as Ctrl-C does by default, and return its exit code."""
        self.process.send_signal(number)
        code = self.process.wait(20)
        self.reader.join(20)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.log.close()
        return code


def start_live_server(data_dir: Path, port: int = 0, admin_key: str = "", **settings: str) -> LiveServer:
    """Run `sparkledger up` on a data directory, and wait until it says where it answers."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SPARKLEDGER_")}
    environment |= {
        "SPARKLEDGER_DATA_DIR": str(data_dir),
        "SPARKLEDGER_PORT": str(port),
        "SPARKLEDGER_VIDEO_IDS": "any",
    }
    environment |= {f"SPARKLEDGER_{name.upper()}": value for name, value in settings.items()}
    log = (data_dir.parent / "up.log").open("a")
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", "up"],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    said = threading.Event()
    told: dict[str, str] = {"key": admin_key}

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if found := re.search(r"is up at (http://\S+)", line):
                told["url"] = found[1]
            if found := re.search(r"shown only once: (slk_\S+)", line):
                told["key"] = found[1]
            if "url" in told and (told["key"] or "Ctrl-C" not in line):
                said.set()
        said.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    assert said.wait(START_S), "sparkledger up did not say that it is up"
    if "url" not in told:
        raise AssertionError((data_dir.parent / "up.log").read_text())
    return LiveServer(process, told["url"], told["key"], data_dir, environment, lines, reader, log)
