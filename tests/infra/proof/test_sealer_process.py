"""Sealers as processes: killed while they seal, or two at once, what they serve only grows and never contradicts."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from infra.postgres.roles import WORKER
from tests.infra.opened import Opened, Tenant
from tests.infra.programs import Program, running
from tests.infra.proof.auditing import Auditor, record, stopped
from tests.waiting import until

SEAL = """
import sys
from cli import main
sys.argv[1:] = ["work", "--only", "seal"]
main()
"""
# Small steps, so that a kill finds the sealer at every point of one.
SEAL_SLOWLY = f"""
from infra.proof import sealer
sealer.MAX_EVENTS = 50
{SEAL}
"""
SERVED = "SELECT coalesce(max(checkpoint_size), -1) FROM log_trees"


@pytest.fixture
async def tenant(opened: Opened) -> Tenant:
    return await opened.begin()


class Sealers:
    """Processes that seal one database, with one directory of keys."""

    def __init__(self, opened: Opened, directory: Path, stack: ExitStack) -> None:
        self.opened = opened
        self._stack = stack
        # It needs no master key, and is given none.
        self._env = {"SPARKLEDGER_DATABASE_URL": opened.database.dsn(WORKER), "SPARKLEDGER_DATA_DIR": str(directory)}

    def start(self, script: str = SEAL) -> Program:
        """Start a sealer."""
        return self._stack.enter_context(running(script, env=self._env))

    def served(self) -> int:
        """Return the size that is served, -1 before there is any."""
        [(size,)] = self.opened.sql(SERVED)
        return int(size)


@pytest.fixture
def sealers(opened: Opened, tmp_path: Path) -> Iterator[Sealers]:
    with ExitStack() as stack:
        yield Sealers(opened, tmp_path, stack)


@pytest.mark.long("a sealer starts")
async def test_a_sealer_seals_what_is_recorded_and_ends_when_told_to(
    opened: Opened, tenant: Tenant, sealers: Sealers, tmp_path: Path
) -> None:
    auditor = Auditor(opened, tenant)
    program = sealers.start()
    for size in (0, 1, 300):
        record(opened, tenant, size)
        until(lambda size=size: sealers.served() == size)  # type: ignore[misc] # mypy infers no lambda with a default
        assert auditor.check() == size
    program.process.send_signal(signal.SIGTERM)
    assert program.process.wait(10) in {0, 128 + signal.SIGTERM}
    # The watcher may have written what it has compared.
    assert {path.suffix for path in (tmp_path / "signing").iterdir()} - {".tiles"} == {".key", ".signed", ".lock"}


@pytest.mark.long("sealers start and are killed, one after another")
async def test_sealers_that_are_killed_leave_a_log_that_the_next_continues(
    opened: Opened, tenant: Tenant, sealers: Sealers
) -> None:
    auditor = Auditor(opened, tenant)
    for upto in range(1_000, 5_000, 1_000):
        record(opened, tenant, upto)
        before = sealers.served()
        program = sealers.start(SEAL_SLOWLY)
        until(lambda before=before: sealers.served() > before)  # type: ignore[misc] # as above
        program.process.kill()
        program.process.wait(10)
        auditor.check()
    sealers.start()
    until(lambda: sealers.served() == 4_000)
    assert auditor.check() == 4_000
    assert stopped(opened, tenant) is None


@pytest.mark.long("two sealers start, and one is killed")
async def test_of_two_sealers_the_second_takes_over_when_the_first_dies(
    opened: Opened, tenant: Tenant, sealers: Sealers
) -> None:
    auditor = Auditor(opened, tenant)
    first = sealers.start()
    until(lambda: sealers.served() == 0)
    sealers.start()
    record(opened, tenant, 100)
    until(lambda: sealers.served() == 100)
    auditor.check()
    first.process.kill()
    record(opened, tenant, 200)
    until(lambda: sealers.served() == 200)
    assert auditor.check() == 200
