"""Failovers of a real cluster: three PostgreSQLs under Patroni and etcd, two API processes, two workers, and Kafka.

The leader is killed, frozen, cut off from etcd, and relieved, while callers go on. Each time everything that was
acknowledged is there once, commands go on by themselves, and views and Kafka catch up. A leader that comes back without
knowing that it is none any more is written to by nobody.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from time import monotonic
from typing import Final

import httpx
import pytest

from infra.auth.key_commands import create_ledger
from infra.crypto.envelope import fresh_key
from infra.postgres.migrate import migrate
from infra.postgres.roles import API, WORKER
from infra.processes.worker import create_views
from tests.faults.callers import MARK, Callers
from tests.faults.patroni import WITHIN_S, Node, Patroni, patroni
from tests.infra.delivery.kafka.broker import Broker
from tests.infra.delivery.kafka.fixtures import kafka
from tests.infra.delivery.kafka.publishing import events, once_and_in_order
from tests.infra.eventstore.checker import Told, held, problems
from tests.keys import ERASURE_KEYS, master_key
from tests.serving import REPOSITORY, http_client
from tests.test_compose_commands import free_port
from tests.waiting import until

__all__ = ["kafka"]

# Before a fault, after it, and after what comes back.
COMMANDS: Final = 60
PREFIX: Final = f"patroni-{uuid.uuid4().hex[:12]}"
PARTS: Final = "views,expiry,anchor"

# Sessions of ours with a server that can still do something there. One that waits for a standby cannot: its commit was
# sent before, nobody hears of it, and pg_rewind takes it back.
_SESSIONS: Final = """
    SELECT count(*)
    FROM pg_stat_activity
    WHERE usename LIKE 'sparkledger%' AND application_name <> 'sparkledger watch'
        AND wait_event IS DISTINCT FROM 'SyncRep'
"""


class Site:
    """Everything that runs, and what its callers were told."""

    def __init__(self, cluster: Patroni, broker: Broker | None) -> None:
        self.cluster = cluster
        self._folder = cluster.folder
        self._master = fresh_key()
        leader = cluster.leader()
        assert leader is not None
        migrate(cluster.url("postgres"))
        asyncio.run(create_views(leader.dsn()))
        self._key = asyncio.run(create_ledger(leader.dsn(), master_key(self._master), "main"))
        self._broker = broker
        self._turns = itertools.count()
        self._clients: list[httpx.Client] = []
        self.told: list[Told] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run two API processes and two workers."""
        parts = PARTS if self._broker is None else f"{PARTS},kafka"
        with ExitStack() as opened:
            for name in ("one", "two"):
                opened.enter_context(
                    self._process(WORKER, self.cluster.url(WORKER), name, "cli", "work", "--only", parts)
                )
            self._clients = [opened.enter_context(self.serving(self.cluster.url(API))) for _ in range(2)]
            until(lambda: self.permit("first").is_success, WITHIN_S)
            self.told.append(Told(1, "first", 1, "recorded", 1, 1))
            yield

    @contextmanager
    def serving(self, url: str) -> Iterator[httpx.Client]:
        """Run another API process."""
        port = free_port()
        with (
            self._process(API, url, f"api-{port}", "tests.bench.serve", port=port),
            http_client(f"http://127.0.0.1:{port}", self._key) as http,
        ):
            until(lambda: _lives(http), WITHIN_S)
            yield http

    @contextmanager
    def _process(self, user: str, url: str, name: str, *argv: str, port: int = 0) -> Iterator[None]:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SPARKLEDGER_")},
            "SPARKLEDGER_DATABASE_URL": url,
            "SPARKLEDGER_MASTER_KEY": base64.b64encode(self._master).decode(),
            "SPARKLEDGER_ERASURE_KEY_DIR": str(ERASURE_KEYS),
            "SPARKLEDGER_ANCHOR_FILE": str(self._folder / f"anchor-{name}.json"),
            "SPARKLEDGER_DATA_DIR": str(self._folder / f"data-{name}"),
            "SPARKLEDGER_PORT": str(port),
        }
        if self._broker is not None:
            environment |= {
                "SPARKLEDGER_KAFKA_BOOTSTRAP_SERVERS": self._broker.plain,
                "SPARKLEDGER_KAFKA_LEDGERS": f"*={PREFIX}",
            }
        with (
            (self._folder / f"log-{name}").open("ab") as log,
            subprocess.Popen(
                [sys.executable, "-m", *argv], cwd=REPOSITORY, env=environment, stdout=log, stderr=log
            ) as process,
        ):
            try:
                yield
            finally:
                process.terminate()
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()

    def permit(self, creator_id: str) -> httpx.Response:
        """Send a command to one API process after the other; sent again, it is the same."""
        http = self._clients[next(self._turns) % len(self._clients)]
        return http.put(
            f"/v1/creators/{creator_id}/permission", json={"enabled": True}, headers={"Idempotency-Key": creator_id}
        )

    @contextmanager
    def calling(self, name: str) -> Iterator[Callers]:
        """Have callers call until the block ends, and keep what they were told."""
        callers = Callers(self, name, again=True)
        try:
            with callers.calling():
                callers.until_recorded(COMMANDS)
                yield callers
        finally:
            self.told += callers.told

    def check(self, leader: Node, callers: Callers, fault: str, began: float) -> None:
        """Check that callers and log agree, and that the views of both API processes catch up."""
        log = held(leader.dsn(), MARK)
        sys.stdout.write(
            f"{fault}: {callers.recorded()} acknowledged of {len(log)} events, answers {dict(callers.answers)};"
            f" {callers.silent_s(began):.1f} s without an acknowledgement\n"
        )
        assert problems(self.told, log) == []
        assert set(callers.answers) <= {"200", "503"}
        last = log[-1].position
        for http in self._clients:
            until(lambda http=http: _view_position(http) >= last, WITHIN_S)  # type: ignore[misc] # as in test_chaos.py


def _lives(http: httpx.Client) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return http.get("/livez").is_success
    return False


def _view_position(http: httpx.Client) -> int:
    answer = http.get("/v1/codes")
    return int(answer.headers["ledger-position"]) if answer.is_success else 0


@pytest.fixture(scope="module")
def site(kafka: Broker) -> Iterator[Site]:
    settings = {"synchronous_mode": True, "synchronous_mode_strict": True}
    with patroni(**settings) as cluster:
        made = Site(cluster, kafka)
        with made.running():
            yield made


def test_a_leader_that_is_killed_loses_nothing_acknowledged(site: Site) -> None:
    leader = site.cluster.until_whole()
    with site.calling("killed") as callers:
        began = monotonic()
        leader.kill()
        following = site.cluster.until_another_leads(leader)
        callers.until_recorded(COMMANDS)
    site.check(following, callers, "killed", began)
    leader.start()
    site.cluster.until_whole()


def test_a_leader_that_was_frozen_and_wakes_unfenced_is_written_to_by_nobody(site: Site) -> None:
    """Its Patroni stays frozen, so nothing stops it: it takes itself for the primary, and is the first in every URL."""
    leader = site.cluster.until_whole()
    with site.calling("frozen") as callers:
        began = monotonic()
        leader.freeze()
        try:
            following = site.cluster.until_another_leads(leader)
            callers.until_recorded(COMMANDS)
            silent_s = callers.silent_s(began)
            leader.signal_postgres(signal.SIGCONT)
            woken = monotonic()
            until(lambda: leader.asked("SELECT NOT pg_is_in_recovery()"), WITHIN_S)
            with site.serving(site.cluster.url(API, first=leader)) as newcomer:
                answer = newcomer.put("/v1/creators/newcomer/permission", json={"enabled": True})
                assert answer.status_code == 200, answer.text
                position = answer.json()["position"]
                site.told.append(Told(1, "newcomer", 1, "recorded", position, position))
                callers.until_recorded(COMMANDS)
                until(lambda: leader.asked(_SESSIONS) == 0, WITHIN_S)
            there = {event.mark for event in held(leader.dsn(), MARK)}
        finally:
            leader.signal_postgres(signal.SIGCONT)
            leader.signal_patroni(signal.SIGCONT)
    later = {one.mark for one in callers.told if one.began > woken} | {"newcomer"}
    before = {one.mark for one in callers.told if one.began <= woken}
    assert (later - before) & there == set()
    site.check(following, callers, f"frozen (going on while it was, after {silent_s:.1f} s)", began)
    site.cluster.until_whole()


def test_a_leader_that_is_cut_off_from_etcd_loses_nothing_acknowledged(site: Site) -> None:
    leader = site.cluster.until_whole()
    with site.calling("cut-off") as callers:
        began = monotonic()
        leader.gate.shut()
        try:
            following = site.cluster.until_another_leads(leader)
            callers.until_recorded(COMMANDS)
        finally:
            leader.gate.open()
    site.check(following, callers, "cut off from etcd", began)
    site.cluster.until_whole()


def test_a_switchover_loses_nothing_acknowledged(site: Site) -> None:
    leader = site.cluster.until_whole()
    candidate = site.cluster.synchronous_standby()
    with site.calling("switched") as callers:
        began = monotonic()
        site.cluster.switch_over(leader, candidate)
        site.cluster.until(lambda: site.cluster.leader() is candidate)
        callers.until_recorded(COMMANDS)
    site.check(candidate, callers, "switchover", began)
    site.cluster.until_whole()


def test_kafka_has_every_event_once_after_all_of_that(site: Site, kafka: Broker) -> None:
    last = held(site.cluster.until_whole().dsn(), MARK)[-1].position
    with events(kafka.plain, PREFIX) as topic:
        received = topic.until(last, WITHIN_S)
        received += topic.poll() + topic.poll()
    sys.stdout.write(f"Kafka: {len(received)} records for {last} events\n")
    assert once_and_in_order(received, range(1, last + 1)) == []
