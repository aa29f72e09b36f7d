"""The processes of a worker: deliveries and the sealer run in ones of their own, and nothing else does."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from infra.crypto.envelope import fresh_key
from infra.postgres.roles import WORKER
from infra.processes.worker import jobs
from tests.conftest import TestDatabase
from tests.infra.opened import Opened
from tests.infra.programs import ROOT
from tests.serving import LiveServer
from tests.waiting import until

pytestmark = pytest.mark.long("a worker starts, and its processes")

# As in `<coroutine object ExpiryClock.run at …>`.
JOBS = ["ExpiryClock.run", "Erasures.run", "purging", "DerivedCheck.run", "HeadsJob.run"]
DELIVERIES = ["work", "--only", "alerts,imports,webhooks"]
ALL_ELSE = ["work", "--only", "anchor,expiry,kafka,views"]
SEALER = ["work", "--only", "seal"]


def commands_of(pid: int) -> list[list[str]]:
    """Return what the children of a process were started with, after the program's name."""
    lines = [child.cmdline() for child in psutil.Process(pid).children()]
    return sorted(line[line.index("cli") + 1 :] for line in lines if "cli" in line)


@contextmanager
def working(database: TestDatabase) -> Iterator[subprocess.Popen[bytes]]:
    """Run `sparkledger work` for as long as the block takes."""
    environment = os.environ | {
        "SPARKLEDGER_DATABASE_URL": database.dsn(WORKER),
        "SPARKLEDGER_MASTER_KEY": base64.b64encode(fresh_key()).decode(),
    }
    with subprocess.Popen([sys.executable, "-m", "cli", "work"], cwd=ROOT, env=environment) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0


def test_one_command_delivers_webhooks_and_seals_in_processes_of_their_own(live_server: LiveServer) -> None:
    assert commands_of(live_server.process.pid) == [["serve"], DELIVERIES, ALL_ELSE, SEALER]


def test_a_worker_delivers_webhooks_in_a_process_of_its_own_and_starts_it_again(database: TestDatabase) -> None:
    with working(database) as process:
        until(lambda: commands_of(process.pid) == [DELIVERIES, ALL_ELSE])
        children = psutil.Process(process.pid).children()
        (deliveries,) = [child for child in children if child.cmdline()[-1] == DELIVERIES[-1]]
        deliveries.kill()
        until(lambda: deliveries.pid not in psutil.pids() and commands_of(process.pid) == [DELIVERIES, ALL_ELSE])


@pytest.mark.parametrize(
    ("command", "expected"), [(ALL_ELSE, JOBS), (DELIVERIES, []), (["work", "--only", "kafka"], [])]
)
async def test_of_a_workers_processes_the_one_with_the_clock_erases_and_deletes(
    opened: Opened, command: list[str], expected: list[str]
) -> None:
    found = jobs(opened.api, frozenset(command[-1].split(",")))
    for job in found:
        job.close()
    assert [str(job).split()[2] for job in found] == expected
