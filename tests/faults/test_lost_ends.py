"""Databases that have lost the end of a ledger: a promoted standby that lagged behind, and a dump that is restored.

Both with `sparkledger serve` and `sparkledger work` on a PostgreSQL of one's own. Nothing is recorded until an operator
accepts the loss; from then on readers that come back with an earlier position are told.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from infra.auth.key_commands import create_ledger
from infra.crypto.envelope import fresh_key
from infra.postgres.embedded.cluster import binary
from infra.postgres.embedded.server import EmbeddedPostgres
from infra.postgres.migrate import migrate
from infra.postgres.roles import API, WORKER
from infra.processes.worker import create_views
from tests.faults.standbys import make_standby
from tests.keys import ERASURE_KEYS, master_key
from tests.serving import REPOSITORY, http_client
from tests.test_compose_commands import free_port
from tests.waiting import until

WITHIN_S: Final = 300.0
MASTER: Final = fresh_key()


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="sl-lost-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def reach(user: str, *servers: EmbeddedPostgres) -> str:
    """Return how to reach whichever of these servers takes writes."""
    given = [conninfo_to_dict(server.dsn(user)) for server in servers]
    hosts = ",".join(str(one["host"]) for one in given)
    return make_conninfo(
        "", host=hosts, port=given[0]["port"], user=user, dbname=given[0]["dbname"], target_session_attrs="read-write"
    )


class Ledger:
    """A ledger that is served from one of several databases, and its callers."""

    def __init__(self, folder: Path, *servers: EmbeddedPostgres) -> None:
        self.folder = folder
        self.servers = servers
        self.anchor = folder / "anchor.json"
        self.port = free_port()
        migrate(servers[0].dsn())
        asyncio.run(create_views(servers[0].dsn()))
        key = asyncio.run(create_ledger(servers[0].dsn(), master_key(MASTER), "main"))
        self.http = http_client(f"http://127.0.0.1:{self.port}", key)

    def close(self) -> None:
        self.http.close()

    def environment(self, user: str) -> dict[str, str]:
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("SPARKLEDGER_")},
            "SPARKLEDGER_DATABASE_URL": reach(user, *self.servers),
            "SPARKLEDGER_MASTER_KEY": base64.b64encode(MASTER).decode(),
            "SPARKLEDGER_ERASURE_KEY_DIR": str(ERASURE_KEYS),
            "SPARKLEDGER_ANCHOR_FILE": str(self.anchor),
            "SPARKLEDGER_DATA_DIR": str(self.folder / "data"),
            "SPARKLEDGER_PORT": str(self.port),
        }

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run an API process and a worker."""
        with (
            (self.folder / "log").open("ab") as log,
            self._process(API, log, "tests.bench.serve"),
            self._process(WORKER, log, "cli", "work", "--only", "views,anchor"),
        ):
            try:
                until(self._answers, WITHIN_S)
            except AssertionError:
                raise AssertionError((self.folder / "log").read_text()[-3000:]) from None
            yield

    @contextmanager
    def _process(self, user: str, log: Any, *argv: str) -> Iterator[None]:
        command = [sys.executable, "-m", *argv]
        with subprocess.Popen(command, cwd=REPOSITORY, env=self.environment(user), stdout=log, stderr=log) as process:
            try:
                yield
            finally:
                process.terminate()

    def _answers(self) -> bool:
        try:
            return self.http.get("/livez").is_success
        except httpx.TransportError:
            return False

    def permit(self, creator_id: str) -> httpx.Response:
        return self.http.put(f"/v1/creators/{creator_id}/permission", json={"enabled": True})

    def recorded(self, creator_id: str, position: int) -> str:
        """Record an event, and wait until the anchor has it; return the history."""
        until(lambda: self.permit(creator_id).is_success, WITHIN_S)
        answer = self.permit(creator_id)
        assert answer.json()["position"] == position
        until(lambda: self.anchored() == position, WITHIN_S)
        return answer.headers["ledger-history"]

    def anchored(self) -> int:
        ledgers = json.loads(self.anchor.read_text())["ledgers"] if self.anchor.exists() else {}
        return max((anchor["position"] for anchor in ledgers.values()), default=0)

    def restart(self) -> subprocess.CompletedProcess[str]:
        """Accept the loss, as an operator does."""
        return subprocess.run(
            [sys.executable, "-m", "cli", "ledgers", "restart", "main", "--accept-loss", "--reason", "a test"],
            cwd=REPOSITORY,
            env=self.environment("postgres"),
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
            check=False,
        )


def check_lost_end(ledger: Ledger, before: str) -> None:
    """Check what callers see where position 3 is lost, and the history before is `before`."""

    def stopped() -> bool:
        refused = ledger.permit("after")
        assert refused.status_code == 503, refused.text
        return "sparkledger ledgers restart main --accept-loss" in refused.json()["detail"]

    until(stopped, WITHIN_S)
    for feed in ("/v1/events", "/v1/events/stream", "/v1/exports/events"):
        assert ledger.http.get(feed).status_code == 503
    assert ledger.http.get("/v1/creators/one/permission").json()["version"] == 1

    accepted = ledger.restart()
    assert accepted.returncode == 0, accepted.stderr
    assert "goes on as generation 2, from position 3 on. Events up to position 2 are the same." in accepted.stdout
    until(lambda: ledger.permit("after").is_success, WITHIN_S)
    # The API's readers have a session of their own: they may hear of it a second after the writer.
    until(lambda: ledger.http.get("/v1/events").is_success, WITHIN_S)

    events = ledger.http.get("/v1/events")
    shown = [(event["position"], event["type"], event["creator_id"]) for event in events.json()["events"][:2]]
    assert shown == [(1, "PermissionEnabled", "one"), (2, "PermissionEnabled", "two")]
    assert [event["type"] for event in events.json()["events"][2:]] == ["LogRestarted", "PermissionEnabled"]
    asked: tuple[tuple[str, dict[str, str], dict[str, str]], ...] = (
        ("/v1/events/stream", {}, {"Last-Event-ID": f"{before}:3"}),
        ("/v1/events", {"after": "3"}, {"Ledger-History": before}),
        ("/v1/events", {"after": "3", "history": before}, {}),
        ("/v1/events", {"after": "3"}, {}),
    )
    for path, query, headers in asked:
        told = ledger.http.get(path, params=query, headers=headers)
        assert (told.status_code, told.json()["code"]) == (409, "history_changed")
        assert told.json()["history"] == events.headers["ledger-history"] != before
        assert told.json().get("last_common_position") == (2 if headers or "history" in query else None)


def test_a_promoted_standby_that_lacks_the_last_event_stops_until_its_loss_is_accepted(folder: Path) -> None:
    primary = EmbeddedPostgres(folder / "primary")
    standby = EmbeddedPostgres(folder / "standby")
    with primary:
        make_standby(primary, standby.cluster)
        standby.start()
        with closing(Ledger(folder, primary, standby)) as ledger, ledger.running():
            ledger.recorded("one", 1)
            ledger.recorded("two", 2)
            until(lambda: replayed(standby) == 2, WITHIN_S)
            standby.stop()
            before = ledger.recorded("lost", 3)
            primary.stop()
            try:
                standby.start()
                with psycopg.connect(standby.dsn(), autocommit=True) as connection:
                    assert connection.execute("SELECT pg_promote()").fetchone() == (True,)
                check_lost_end(ledger, before)
            finally:
                standby.stop()


def replayed(standby: EmbeddedPostgres) -> int:
    with psycopg.connect(standby.dsn()) as connection:
        row = connection.execute("SELECT coalesce(max(position), 0) FROM events").fetchone()
    assert row is not None
    return int(row[0])


def test_a_restored_dump_that_lacks_the_last_event_stops_until_its_loss_is_accepted(folder: Path) -> None:
    dump = folder / "sparkledger.dump"
    with EmbeddedPostgres(folder / "server") as server:
        reached = make_conninfo(server.dsn(), hostaddr=None)
        ledger = Ledger(folder, server)
        with ledger.running():
            ledger.recorded("one", 1)
            ledger.recorded("two", 2)
            # As docs/running.md has it.
            make = [str(binary("pg_dump")), "--dbname", reached, "--format=custom", "--file", str(dump)]
            subprocess.run(make, check=True, timeout=WITHIN_S)
            before = ledger.recorded("lost", 3)
        restore = [
            str(binary("pg_restore")),
            "--dbname",
            reached,
            "--clean",
            "--if-exists",
            "--single-transaction",
            str(dump),
        ]
        subprocess.run(restore, check=True, timeout=WITHIN_S)
        with closing(ledger), ledger.running():
            check_lost_end(ledger, before)
