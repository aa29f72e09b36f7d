"""A throwaway PostgreSQL for benchmarks: fsync on, settings named, warmed, gone afterwards."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Final

import psutil
import psycopg
from psycopg.conninfo import make_conninfo

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


def forget(directory: Path) -> None:
    """Have the system drop from memory what it has read of tables, as it does when others need the memory."""
    for path in directory.glob("**/base/*/*"):
        with suppress(OSError), path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def forgetting(directory: Path, every_s: float = 1.0) -> Iterator[None]:
    """Have the system drop it again and again."""
    over = threading.Event()

    def drop() -> None:
        while not over.wait(every_s):
            forget(directory)

    forget(directory)
    thread = threading.Thread(target=drop)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def processor_s(server: EmbeddedPostgres) -> float:
    """Return the seconds of the processor that all processes of a PostgreSQL have used, the ended ones included."""
    assert server.pid is not None, "it runs"
    postmaster = psutil.Process(server.pid)
    own = postmaster.cpu_times()
    seconds = own.user + own.system + own.children_user + own.children_system
    for child in postmaster.children():
        with suppress(psutil.NoSuchProcess):
            times = child.cpu_times()
            seconds += times.user + times.system
    return float(seconds)


def pgbench(server: EmbeddedPostgres, clients: int, statement: str = _INSERT, database: str | None = None) -> float:
    """Return how many statements a second PostgreSQL commits, one a transaction, prepared: plain INSERTs of one row."""
    dsn = server.dsn() if database is None else make_conninfo(server.dsn(), dbname=database)
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(statement)
        script.flush()
        done = subprocess.run(
            [
                str(binary("pgbench")),
                *("-n", "-M", "prepared", "-f", script.name, "-c", str(clients), "-j", "2", "-T", str(PGBENCH_S)),
                dsn,
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
