"""A throwaway PostgreSQL for benchmarks: fsync on, settings named, warmed, gone afterwards."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Final

import psycopg

from infra.postgres.embedded.cluster import binary
from infra.postgres.embedded.server import EmbeddedPostgres
from infra.postgres.migrate import migrate

# What every figure is measured with, named beside it in the results.
SETTINGS: Final = {
    "fsync": "on",
    "synchronous_commit": "on",
    "shared_buffers": "1GB",
    "max_wal_size": "4GB",
    # Kept from the start, so that no run pays for files that the next one reuses.
    "min_wal_size": "2GB",
    "max_connections": "200",
}
RUNS: Final = 3
PGBENCH_S: Final = 4

_INSERT: Final = """
INSERT INTO plain (body) VALUES (decode(repeat('ab', 250), 'hex'));
"""


@contextmanager
def place() -> Iterator[Path]:
    """Make a directory for a server that is restarted with other settings, and remove it in the end."""
    directory = Path(tempfile.mkdtemp(prefix="sl-bench-"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def restarted(directory: Path, settings: dict[str, str]) -> Iterator[EmbeddedPostgres]:
    """Run the PostgreSQL of a directory again, with other settings and nothing in its buffers."""
    with EmbeddedPostgres(directory, {**SETTINGS, **settings}) as server:
        yield server


@contextmanager
def postgres(settings: dict[str, str] | None = None, directory: Path | None = None) -> Iterator[EmbeddedPostgres]:
    """Run a PostgreSQL, migrated and warmed, in a directory of its own or the given one."""
    with (
        nullcontext(directory) if directory is not None else place() as where,
        EmbeddedPostgres(where, {**SETTINGS, **(settings or {})}) as server,
    ):
        migrate(server.dsn())
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("CREATE TABLE plain (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body bytea)")
            # A cluster's first gigabyte of log is written into files that do not exist yet: that is not measured.
            for _ in range(8):
                connection.execute(
                    "INSERT INTO plain (body) SELECT decode(repeat('ab', 4000), 'hex') FROM generate_series(1, 15000)"
                )
            connection.execute("TRUNCATE plain")
            connection.execute("CHECKPOINT")
        yield server


def pgbench(server: EmbeddedPostgres, clients: int) -> float:
    """Return how many plain INSERTs of one row a second PostgreSQL commits, one a transaction, prepared."""
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(_INSERT)
        script.flush()
        done = subprocess.run(
            [
                str(binary("pgbench")),
                *("-n", "-M", "prepared", "-f", script.name, "-c", str(clients), "-j", "2", "-T", str(PGBENCH_S)),
                server.dsn(),
            ],
            capture_output=True,
            text=True,
            check=True,
        )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("tps")]
    return float(line.split()[2])


def median(measure: Callable[[], float], runs: int = RUNS) -> float:
    """Return the median of some runs."""
    return statistics.median(measure() for _ in range(runs))
