"""A ledger moves to another server with everything on, and over kills of the move and of both servers.

Two PostgreSQLs, one API process, workers of both servers with webhooks and Kafka, sealers; callers, a stream, a
receiver of webhooks, and a consumer of the topic. Each time the ledger ends on one server, with everything that was
acknowledged there once, and every follower has every event: the stream and Kafka once, the webhook at least once,
all in order.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any, Final

import httpx
import psutil
import psycopg
import pytest

from infra.crypto.envelope import fresh_key
from infra.jobs import ledger_move
from infra.jobs.ledger_move import Server, forget, tables_of
from infra.postgres.embedded.cluster import DATABASE
from infra.postgres.embedded.server import EmbeddedPostgres
from projections.engine.advisory_locks import AdvisoryLock
from tests.api.processes import serving_process
from tests.conftest import TestDatabase
from tests.faults.callers import Callers
from tests.faults.durable import SHORT
from tests.faults.moving import moving
from tests.faults.test_chaos import CLIENTS, Client, process
from tests.infra.delivery.kafka.broker import Broker
from tests.infra.delivery.kafka.fixtures import kafka
from tests.infra.delivery.kafka.publishing import Topic, events, once_and_in_order
from tests.infra.delivery.webhooks.receiving import Receiver, in_order, receiving
from tests.infra.eventstore.checker import held, problems, unseen
from tests.infra.programs import Program
from tests.keys import ERASURE_KEYS
from tests.places import directory
from tests.servers import Installation, command, installation_on, shown
from tests.serving import REPOSITORY, http_client
from tests.waiting import until

__all__ = ["kafka"]

WITHIN_S: Final = 120.0
# Between two things that happen.
COMMANDS: Final = 25
PREFIX: Final = f"moves-{uuid.uuid4().hex[:12]}"
PARTS: Final = "views,expiry,webhooks,imports,anchor,kafka"
# At which points the move is killed, in order; and at which a server is, before the ledger has switched. Once the copy
# is staged, the source needs the target no more.
_POINTS: Final = ("registered", "page", "tables", "held", "staged", "switching", "switched", "completed")
KILLED_AT: Final = ("page", "staged", "switched") if SHORT else _POINTS
SERVER_KILLED_AT: Final[dict[str, tuple[str, ...]]] = (
    {"a": ("staged",), "b": ("held",)} if SHORT else {"a": ("tables", "staged"), "b": ("tables", "held")}
)
# Only what callers send has a mark.
MARK: Final = "CASE WHEN type = 'PermissionEnabled' AND creator_id LIKE 'caller-%' THEN creator_id END"
ENDED: Final = "ended unexpectedly"
_SEALED: Final = "SELECT checkpoint_size, stopped FROM log_trees WHERE ledger_id = %s"
_LOCKED: Final = """
    SELECT count(*) FROM pg_locks
    WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND classid = %s AND objid = (hashtext(%s)::bigint & 4294967295)::oid
"""


@dataclass
class Site:
    """Two servers, and everything that works on them."""

    servers: Installation
    kafka: Broker
    folder: Path
    url: str = ""

    @property
    def databases(self) -> dict[str, TestDatabase]:
        return {"a": self.servers.a, "b": self.servers.b}

    @property
    def master_keys(self) -> list[str]:
        """The new master key, and the one before."""
        return [self.servers.settings[name] for name in ("MASTER_KEY", "MASTER_KEY_PREVIOUS")]

    @contextmanager
    def working(self, name: str, *words: str) -> Iterator[None]:
        """Run workers, or sealers, of both servers."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SPARKLEDGER_")}
        environment |= {f"SPARKLEDGER_{key}": value for key, value in self.servers.settings.items()}
        environment |= {
            "SPARKLEDGER_SIGNING_DIR": str(self.folder / "signing"),
            "SPARKLEDGER_KAFKA_BOOTSTRAP_SERVERS": self.kafka.plain,
            "SPARKLEDGER_KAFKA_LEDGERS": f"*={PREFIX}",
        }
        with (
            (self.folder / f"{name}.log").open("ab") as log,
            subprocess.Popen(
                [sys.executable, "-m", "cli", *words], cwd=REPOSITORY, env=environment, stdout=log, stderr=log
            ) as running,
        ):
            try:
                yield
            finally:
                running.terminate()
                running.wait(30)

    def ended(self) -> list[str]:
        """Return which processes of the workers have ended by themselves."""
        logs = [(self.folder / f"{name}.log").read_text() for name in ("workers", "sealers")]
        return [line for log in logs for line in log.splitlines() if ENDED in line]


@pytest.fixture(scope="module")
def site(kafka: Broker) -> Iterator[Site]:
    folder = directory("ledger-moves")
    with ExitStack() as opened:
        opened.callback(shutil.rmtree, folder, ignore_errors=True)
        opened.enter_context(pytest.MonkeyPatch.context()).setattr(ledger_move, "LINGER_S", 0.0)
        databases = []
        for name in ("a", "b"):
            server = opened.enter_context(EmbeddedPostgres(folder / name))
            databases.append(opened.enter_context(contextlib.closing(TestDatabase(server, DATABASE))))
        made = Site(installation_on(folder, *databases), kafka, folder)
        # Everything has a new master key from the beginning, which is put to use in the middle of a move.
        given = made.servers.settings
        given |= {"MASTER_KEY": base64.b64encode(fresh_key()).decode(), "MASTER_KEY_PREVIOUS": given["MASTER_KEY"]}
        opened.enter_context(made.working("workers", "work", "--only", PARTS))
        opened.enter_context(made.working("sealers", "work", "--only", "seal"))
        settings = {
            "databases": given["DATABASES"],
            "database_url": "",
            "master_key_previous": given["MASTER_KEY_PREVIOUS"],
            "video_ids": "any",
        }
        made.url = opened.enter_context(serving_process(made.servers.a, given["MASTER_KEY"], **settings))
        yield made


@contextmanager
def listening() -> Iterator[Receiver]:
    """Receive webhooks, in a thread."""
    ready, ended = threading.Event(), threading.Event()
    found: list[Receiver] = []

    async def listen() -> None:
        async with receiving() as receiver:
            found.append(receiver)
            ready.set()
            await asyncio.to_thread(ended.wait)

    thread = threading.Thread(target=lambda: asyncio.run(listen()))
    thread.start()
    assert ready.wait(WITHIN_S)
    try:
        yield found[0]
    finally:
        ended.set()
        thread.join()


@dataclass
class Ledger:
    """A ledger that begins on server a, and everybody who follows it."""

    site: Site
    name: str
    http: httpx.Client
    receiver: Receiver
    stream: Client
    topic: Topic
    webhook_id: str
    history: str
    number: int
    ended: int

    def permit(self, creator_id: str) -> httpx.Response:
        """Send a command; sent again, it is the same."""
        body, headers = {"enabled": True}, {"Idempotency-Key": creator_id}
        return self.http.put(f"/v1/creators/{creator_id}/permission", json=body, headers=headers)

    def told(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send something until it is not answered by 503; return the answer."""
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        found: list[httpx.Response] = []

        def answered() -> bool:
            answer = self.http.request(method, path, json=body, headers=headers)
            if answer.status_code != 503:
                found.append(answer)
            return bool(found)

        until(answered, WITHIN_S)
        assert found[0].is_success, found[0].text
        told: dict[str, Any] = found[0].json()
        return told

    def sealed(self, creator_id: str) -> str:
        """Record a code of a creator, with a secret that is sealed under the creator's key; return its id."""
        self.told("PUT", f"/v1/creators/{creator_id}/permission", {"enabled": True})
        asked = {"creator_id": creator_id, "video_id": f"video-of-{creator_id}", "terms_version": "2026-01"}
        return str(self.told("POST", "/v1/codes", asked)["code_id"])

    def erase(self, creator_id: str) -> None:
        """Erase a creator; the answer may come before that is carried out."""
        self.told("POST", f"/v1/creators/{creator_id}/erasure", {"reason": "asked for it"})

    def erased(self, creator_id: str) -> bool:
        """Tell whether an erasure is carried out."""
        answer = self.http.get(f"/v1/creators/{creator_id}/erasure")
        return answer.is_success and answer.json()["state"] == "carried_out"

    def moving(self, *points: str) -> contextlib.AbstractContextManager[Program]:
        """Move it from a to b, in a process that waits at these points."""
        servers = [(name, database.dsn()) for name, database in self.site.databases.items()]
        order = {
            "ledger": self.name,
            "servers": servers,
            "master_keys": self.site.master_keys,
            "wait": str(self.waiting),
        }
        return moving(order, *points)

    @property
    def waiting(self) -> Path:
        """The file that a move waits for."""
        return self.site.folder / "waiting"

    def go_on(self) -> None:
        """Let the move go on."""
        self.waiting.unlink()

    def move(self) -> float:
        """Move it as an operator does, to the end; return for how long commands waited."""
        said = command(self.site.servers.settings, "ledgers", "move", self.name, "--to", "b")
        return float(said.split("Commands waited for ")[1].split()[0])

    def serving(self) -> list[str]:
        """Return which servers serve it."""
        query = "SELECT 1 FROM ledgers WHERE name = %s AND served_by IS NULL"
        return [name for name, one in self.site.databases.items() if one.sql(query, (self.name,))]

    def ended_meanwhile(self) -> list[str]:
        """Return which processes of workers have ended by themselves since it was made."""
        return self.site.ended()[self.ended :]

    def until_caught_up(self) -> int:
        """Wait until everybody has everything; return the last position."""
        query = "SELECT max(position) FROM events WHERE ledger_id = %s"
        last = int(self.site.servers.b.sql(query, (self.number,))[0][0])
        until(lambda: set(self.receiver.positions) >= set(range(1, last + 1)), WITHIN_S)
        until(lambda: len(self.stream.lines()) >= last, WITHIN_S)
        deadline = monotonic() + WITHIN_S
        while len(self.published()) < last:
            self.topic.poll()
            assert monotonic() < deadline, f"{len(self.published())} of {last} events are published"
        self.topic.poll()
        until(lambda: _position(self.http.get("/v1/codes")) >= last, WITHIN_S)
        until(lambda: self.site.servers.b.sql(_SEALED, (self.number,)) == [(last, None)], WITHIN_S)
        return last

    def published(self) -> list[Any]:
        """Return its records."""
        return [one for one in self.topic.received if one.headers["ce_source"] == f"/ledgers/{self.name}"]

    def check(self, callers: Callers) -> None:
        """Check that it is on b alone, and that callers and everybody who follows agree with its log."""
        assert self.serving() == ["b"]
        last = self.until_caught_up()
        log = [
            replace(one, ledger_id=1) for one in held(self.site.servers.b.dsn(), MARK) if one.ledger_id == self.number
        ]
        assert problems(callers.told, log) == []
        assert callers.answers.keys() <= {"200", "503"}
        assert unseen([line[0] for line in self.stream.lines()], last) == []
        assert in_order(list(self.receiver.received))
        assert self.receiver.unverified == []
        published = self.published()
        assert once_and_in_order(published, range(1, last + 1)) == []
        assert {one.headers["ce_ledgerhistory"] for one in published} == {self.history}
        assert {one.event["ledgerhistory"] for one in list(self.receiver.received)} == {self.history}
        # Nothing of the source waits to write down what was delivered there.
        lock = (int(AdvisoryLock.WEBHOOK_SENDER), self.webhook_id)
        until(lambda: self.site.servers.a.sql(_LOCKED, lock) == [(0,)], WITHIN_S)


def _position(answer: httpx.Response) -> int:
    return int(answer.headers["ledger-position"]) if answer.is_success else 0


@pytest.fixture
def ledger(site: Site) -> Iterator[Ledger]:
    name = f"moving-{uuid.uuid4().hex[:8]}"
    key = shown(site.servers.command("ledgers", "create", name))
    with (
        http_client(site.url, key) as http,
        listening() as receiver,
        process(name, site.folder, sys.executable, CLIENTS / "httpx_sse_.py", site.url, key) as stream,
        events(site.kafka.plain, PREFIX) as topic,
    ):
        http.timeout = WITHIN_S
        answer = http.post("/v1/webhooks", json={"url": receiver.url, "after": 0})
        assert answer.status_code == 201, answer.text
        receiver.secrets.append(answer.json()["secret"])
        webhook_id = answer.json()["webhook_id"]
        history = answer.headers["ledger-history"]
        number = site.servers.a.sql("SELECT ledger_id FROM ledgers WHERE name = %s", (name,))[0][0]
        ended = len(site.ended())
        yield Ledger(site, name, http, receiver, stream, topic, webhook_id, history, number, ended)


@contextmanager
def calling(ledger: Ledger) -> Iterator[Callers]:
    """Have callers call until the block ends."""
    callers = Callers(ledger, "caller", again=True)
    with callers.calling():
        callers.until_recorded(COMMANDS)
        yield callers
        callers.until_recorded(COMMANDS)


def test_a_ledger_moves_with_everything_on_while_creators_are_erased_and_the_master_key_is_replaced(
    ledger: Ledger,
) -> None:
    codes = {when: ledger.sealed(f"erased-{when}") for when in ("before", "meanwhile", "after")}
    kept = ledger.sealed("kept")
    with calling(ledger) as callers:
        ledger.erase("erased-before")
        until(lambda: ledger.erased("erased-before"), WITHIN_S)
        with ledger.moving("tables") as program:
            program.line("tables", WITHIN_S)
            ledger.erase("erased-meanwhile")
            ledger.site.servers.command("master-key", "rotate")
            callers.until_recorded(COMMANDS)
            began = monotonic()
            ledger.go_on()
            held_s = float(program.line("held for", WITHIN_S).split()[2])
        callers.until_recorded(COMMANDS)
        silent_s = callers.silent_s(began)
        ledger.erase("erased-after")
    ledger.check(callers)
    sys.stdout.write(
        f"{callers.recorded()} acknowledged, answers {dict(callers.answers)}; held for {held_s:.2f} s,"
        f" {silent_s:.2f} s without an acknowledgement\n"
    )
    for when, code_id in codes.items():
        until(lambda when=when: ledger.erased(f"erased-{when}"), WITHIN_S)  # type: ignore[misc] # mypy infers no lambda with a default
        assert not ledger.http.post(f"/v1/codes/{code_id}/reveals", json={"reason": "asked"}).is_success
    assert ledger.http.post(f"/v1/codes/{kept}/reveals", json={"reason": "asked"}).is_success
    keys = "SELECT count(*) FILTER (WHERE wrapped IS NULL) FROM creator_keys WHERE ledger_id = %s"
    assert ledger.site.servers.b.sql(keys, (ledger.number,)) == [(len(codes),)]
    nothing_is_left(ledger)
    wrapping = [
        line for line in ledger.site.servers.command("master-key", "show").splitlines() if " 0 keys" not in line
    ]
    assert all("present" in line for line in wrapping), wrapping
    assert ledger.ended_meanwhile() == []


def nothing_is_left(ledger: Ledger) -> None:
    """Let the source forget the ledger: it keeps no row, and its backups open no key of the ledger's creators."""
    # What was entered into the access log after the move was complete.
    ledger.move()
    source = ledger.site.servers.a
    present = source.sql("SELECT number, epoch_id FROM key_epochs WHERE present")[0]
    forget(ledger.name, Server("a", source.dsn()), lambda _: None)
    with psycopg.connect(source.dsn()) as connection:
        names = {table.name for table in tables_of(connection)} - {"erasures"}
    left = {name: source.sql(f"SELECT count(*) FROM {name} WHERE ledger_id = %s", (ledger.number,)) for name in names}
    assert {name for name, count in left.items() if count != [(0,)]} == set()
    ended = "SELECT count(*) FROM key_epochs WHERE number <= %s AND destroyed_at IS NULL"
    until(lambda: source.sql(ended, (present[0],)) == [(0,)], WITHIN_S)
    until(lambda: not any(present[1] in path.name for path in ERASURE_KEYS.iterdir()), WITHIN_S)


def test_a_move_that_is_killed_again_and_again_leaves_one_server_each_time(ledger: Ledger) -> None:
    with calling(ledger) as callers:
        for point in KILLED_AT:
            with ledger.moving(point) as program:
                program.line(point, WITHIN_S)
                program.process.kill()
            callers.until_recorded(COMMANDS)
            assert ledger.serving() == (["b"] if point in {"switched", "completed"} else ["a"]), point
        ledger.move()
    ledger.check(callers)
    assert ledger.ended_meanwhile() == []


@pytest.mark.parametrize("victim", ["a", "b"])
def test_a_server_that_is_killed_during_a_move_loses_nothing_acknowledged(ledger: Ledger, victim: str) -> None:
    with calling(ledger) as callers:
        for point in SERVER_KILLED_AT[victim]:
            with ledger.moving(point) as program:
                program.line(point, WITHIN_S)
                kill(ledger.site.databases[victim])
                ledger.go_on()
                assert "failed:" in program.line("", WITHIN_S)
            assert ledger.serving() == ["a"]
            callers.until_recorded(COMMANDS)
        with ledger.moving("switched") as program:
            program.line("switched", WITHIN_S)
            kill(ledger.site.databases[victim])
            ledger.go_on()
            program.rest()
        callers.until_recorded(COMMANDS)
        ledger.move()
    ledger.check(callers)


def kill(database: TestDatabase) -> None:
    """Kill all processes of a server; wait until it is back."""
    database.close()
    server = database.cluster
    pid = server.pid
    assert pid is not None
    for one in [psutil.Process(pid), *server.cluster.processes()]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()

    def back() -> bool:
        with contextlib.suppress(Exception):
            return server.pid not in {None, pid} and database.sql("SELECT 1") == [(1,)]
        return False

    until(back, WITHIN_S)
