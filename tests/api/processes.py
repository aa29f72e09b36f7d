"""API processes of their own on a test's database, as `sparkledger serve` runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from infra.postgres.roles import API
from tests.conftest import TestDatabase
from tests.keys import ERASURE_KEYS
from tests.serving import REPOSITORY


@contextmanager
def serving_process(database: TestDatabase, master: str, **settings: str) -> Iterator[str]:
    """Run one API process of its own on a database, and yield its address."""
    with started_process(database, master, **settings) as (url, _):
        yield url


@contextmanager
def started_process(
    database: TestDatabase, master: str, **settings: str
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run one API process of its own on a database, and yield its address and the process."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SPARKLEDGER_")}
    environment |= {
        "SPARKLEDGER_DATABASE_URL": database.dsn(API),
        "SPARKLEDGER_MASTER_KEY": master,
        "SPARKLEDGER_ERASURE_KEY_DIR": str(ERASURE_KEYS),
        "SPARKLEDGER_PORT": "0",
        **{f"SPARKLEDGER_{name.upper()}": value for name, value in settings.items()},
    }
    command = [sys.executable, "-m", "tests.bench.serve"]
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip(), process
        finally:
            process.terminate()
            process.wait(20)
