"""A rolling upgrade: processes of two versions side by side on one database, under load.

The next version is this one with what a release brings: a migration that adds a column and a table, and replaces the
function that appends; and a view that is built again. Nobody gets anything but an answer or a 503.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic
from typing import Any, Final

import httpx
import psycopg
import pytest

from infra.auth.key_commands import create_ledger
from infra.crypto.envelope import fresh_key
from infra.postgres.embedded.server import EmbeddedPostgres
from infra.postgres.migrate import migrate
from infra.postgres.roles import API, WORKER
from infra.processes.worker import create_views
from projections import codes
from tests.faults.callers import MARK, Callers
from tests.faults.standbys import WITHIN_S
from tests.infra.eventstore.checker import Told, held, problems
from tests.keys import ERASURE_KEYS, master_key
from tests.serving import REPOSITORY, http_client
from tests.test_compose_commands import free_port
from tests.waiting import until

# In each step.
COMMANDS: Final = 40
PACKAGES: Final = ("api", "domain", "infra", "projections")
MIGRATION: Final = "9999_next"
_NEXT: Final = """
ALTER TABLE ledgers ADD COLUMN next_version text;
CREATE TABLE next_version (ledger_id int PRIMARY KEY REFERENCES ledgers, remark text NOT NULL);
-- The same function again, as a release that changes its body replaces it.
DO $$
BEGIN
    EXECUTE pg_get_functiondef('append'::regproc);
END $$;
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="sl-upgrade-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def next_version(folder: Path) -> Path:
    """Make the next version of the program, and return where it is."""
    made = folder / "next"
    for package in PACKAGES:
        shutil.copytree(REPOSITORY / package, made / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "cli.py", made)
    (made / "infra/postgres/migrations" / f"{MIGRATION}.sql").write_text(_NEXT)
    view = made / "projections/codes.py"
    text = view.read_text()
    changed = re.sub(r"^VERSION: Final = \d+$", f"VERSION: Final = {codes.VERSION + 1}", text, flags=re.MULTILINE)
    assert changed != text
    view.write_text(changed)
    return made


class Installation:
    """A database, and processes of either version."""

    def __init__(self, folder: Path, server: EmbeddedPostgres) -> None:
        self._folder = folder
        self._server = server
        self._master = fresh_key()
        migrate(server.dsn())
        asyncio.run(create_views(server.dsn()))
        self._key = asyncio.run(create_ledger(server.dsn(), master_key(self._master), "main"))
        self._turns = itertools.count()
        self.clients: list[httpx.Client] = []
        self._busy: Counter[httpx.Client] = Counter()
        self._lock = threading.Lock()

    def _environment(self, user: str, port: int = 0) -> dict[str, str]:
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("SPARKLEDGER_")},
            "SPARKLEDGER_DATABASE_URL": self._server.dsn(user),
            "SPARKLEDGER_MASTER_KEY": base64.b64encode(self._master).decode(),
            "SPARKLEDGER_ERASURE_KEY_DIR": str(ERASURE_KEYS),
            "SPARKLEDGER_ANCHOR_FILE": str(self._folder / "anchor.json"),
            "SPARKLEDGER_DATA_DIR": str(self._folder / "data"),
            "SPARKLEDGER_PORT": str(port),
        }

    def run(self, version: Path, user: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command of a version to its end."""
        return subprocess.run(
            [sys.executable, "-m", "cli", *words],
            cwd=version,
            env=self._environment(user, free_port()),
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
            check=False,
        )

    @contextmanager
    def process(self, version: Path, user: str, *words: str, port: int = 0) -> Iterator[subprocess.Popen[bytes]]:
        """Run a process of a version until the block ends."""
        with (
            (self._folder / "log").open("ab") as log,
            subprocess.Popen(
                [sys.executable, "-m", "cli", *words],
                cwd=version,
                env=self._environment(user, port),
                stdout=log,
                stderr=log,
            ) as process,
        ):
            try:
                yield process
            finally:
                process.terminate()

    @contextmanager
    def serving(self, version: Path) -> Iterator[httpx.Client]:
        """Run an API process of a version, which gets requests until shortly before it ends."""
        port = free_port()
        with (
            self.process(version, API, "serve", port=port),
            http_client(f"http://127.0.0.1:{port}", self._key) as http,
        ):
            until(lambda: _lives(http), WITHIN_S)
            self.clients.append(http)
            yield http
            with self._lock:
                self.clients.remove(http)
            until(lambda: self._busy[http] == 0, WITHIN_S)

    @contextmanager
    def working(self, version: Path) -> Iterator[None]:
        """Run a worker of a version."""
        with self.process(version, WORKER, "work", "--only", "views,expiry,anchor"):
            yield

    def permit(self, creator_id: str) -> httpx.Response:
        with self._lock:
            http = self.clients[next(self._turns) % len(self.clients)]
            self._busy[http] += 1
        try:
            return http.put(
                f"/v1/creators/{creator_id}/permission", json={"enabled": True}, headers={"Idempotency-Key": creator_id}
            )
        finally:
            with self._lock:
                self._busy[http] -= 1

    def asked(self, query: str) -> Any:
        with psycopg.connect(self._server.dsn(), autocommit=True) as connection:
            row = connection.execute(query).fetchone()
        return None if row is None else row[0]


def _lives(http: httpx.Client) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return http.get("/livez").is_success
    return False


def test_two_versions_serve_side_by_side_under_load_and_nothing_acknowledged_is_lost(folder: Path) -> None:
    newer = next_version(folder)
    with EmbeddedPostgres(folder / "server") as server:
        site = Installation(folder, server)
        with ExitStack() as old_workers, ExitStack() as old, ExitStack() as new:
            old_workers.enter_context(site.working(REPOSITORY))
            older = old.enter_context(site.serving(REPOSITORY))
            until(lambda: site.permit("first").is_success, WITHIN_S)
            callers = Callers(site, again=True)
            with callers.calling():
                callers.until_recorded(COMMANDS)

                for words, user in ((("serve",), API), (("work", "--only", "views"), WORKER)):
                    refused = site.run(newer, user, *words)
                    assert refused.returncode == 1
                    assert f"lacks the migrations {MIGRATION}. Run `sparkledger migrate` first." in refused.stderr

                began = monotonic()
                migrated = site.run(newer, "postgres", "migrate")
                assert migrated.returncode == 0, migrated.stderr
                migration_s = callers.silent_s(began)
                callers.until_recorded(COMMANDS)

                # The view is built beside the old one, which old processes go on with until it is swapped in.
                rebuilt = site.run(newer, WORKER, "rebuild", codes.NAME)
                assert rebuilt.returncode == 0, rebuilt.stderr
                assert _view_version(site) == codes.VERSION + 1
                # Workers first, so that no view meets an event that it does not know.
                new.enter_context(site.working(newer))
                old_workers.close()
                read = site.asked("SELECT max(position) FROM events")
                until(lambda: _view_position(older) >= read, WITHIN_S)
                latest = new.enter_context(site.serving(newer))
                callers.until_recorded(COMMANDS)

                # An old process that ends meanwhile starts again.
                with site.serving(REPOSITORY):
                    callers.until_recorded(COMMANDS)
                old.close()
                callers.until_recorded(COMMANDS)
            log = held(server.dsn(), MARK)
            last = log[-1].position
            until(lambda: _view_position(latest) >= last, WITHIN_S)

    told = [Told(1, "first", 1, "recorded", 1, 1), *callers.told]
    sys.stdout.write(
        f"{callers.recorded()} acknowledged of {len(log)} events, answers {dict(callers.answers)};"
        f" {migration_s:.1f} s without an acknowledgement while the migration ran\n"
    )
    assert problems(told, log) == []
    # No process was asked after it had begun to end: a load balancer does the same.
    assert set(callers.answers) <= {"200", "503"}


def _view_version(site: Installation) -> int:
    version = site.asked(f"SELECT version FROM view_versions WHERE view = '{codes.NAME}'")
    return int(version or 0)


def _view_position(http: httpx.Client) -> int:
    answer = http.get("/v1/codes")
    return int(answer.headers["ledger-position"]) if answer.is_success else 0


def test_an_older_version_does_not_undo_a_migration(folder: Path) -> None:
    newer = next_version(folder)
    with EmbeddedPostgres(folder / "server") as server:
        site = Installation(folder, server)
        assert site.run(newer, "postgres", "migrate").returncode == 0
        refused = site.run(REPOSITORY, "postgres", "migrate")
        assert refused.returncode == 1
        assert "migrated by a newer version of this program (migration 9999)" in refused.stderr
