"""Workers as processes of their own: killed in mid-run, or two at once, they record everything exactly once."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from infra.auth.key_commands import create_key, create_ledger
from infra.postgres.roles import WORKER
from infra.processes.worker import create_views
from tests.bench.due_codes import CAMPAIGN_EVERY, fill
from tests.conftest import TestDatabase
from tests.infra.opened import MASTER_KEY
from tests.infra.programs import Program, running
from tests.keys import ERASURE_KEYS
from tests.waiting import until

CODES = 2_000
DAY = timedelta(days=1)
WITHIN_S = 60

WORK = """
import sys
from cli import main
sys.argv[1:] = ["work", "--only", "views,expiry"]
main()
"""
# What a session that hangs after its worker lost touch with it would come to: two that both believe that they lead.
WORK_AS_IF_ALONE = f"""
from infra.jobs import expiry_clock

async def leads(_lease):
    return True

expiry_clock._leads = leads
{WORK}
"""

RECORDED = "SELECT count(*) FROM events WHERE type = %s"
TWICE = "SELECT count(*) - count(DISTINCT stream_id) FROM events WHERE type = %s"
HOLES = "SELECT max(position) - count(*) FROM events"
BEHIND = "SELECT (SELECT max(position) FROM events) - position FROM view_positions WHERE view = 'expiring'"
WAITING = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%append(%'
"""


@dataclass
class Scene:
    """A ledger with many codes of which something is due, and workers to come."""

    database: TestDatabase
    stack: ExitStack
    connection: psycopg.Connection[Any]

    def start(self, script: str = WORK) -> Program:
        """Start a worker."""
        key = base64.b64encode(bytes(range(32))).decode()
        env = {
            "SPARKLEDGER_DATABASE_URL": self.database.dsn(WORKER),
            "SPARKLEDGER_MASTER_KEY": key,
            "SPARKLEDGER_ERASURE_KEY_DIR": str(ERASURE_KEYS),
        }
        return self.stack.enter_context(running(script, env=env))

    def one(self, query: str, *parameters: Any) -> int:
        """Ask for a number."""
        row = self.connection.execute(query, parameters or None).fetchone()
        assert row is not None
        return int(row[0])


@contextmanager
def scene(database: TestDatabase, ends_at: datetime, recorded_at: datetime) -> Iterator[Scene]:
    """Fill a ledger with codes that end at a moment."""

    async def prepare() -> None:
        await create_views(database.dsn())
        await create_ledger(database.dsn(), MASTER_KEY, "main")
        key, _ = await create_key(database.dsn(), MASTER_KEY, "main", "auditor", None)
        await fill(database.dsn(), MASTER_KEY, key.ledger_id, CODES, ends_at, recorded_at)

    asyncio.run(prepare())
    with ExitStack() as stack, psycopg.connect(database.dsn(), autocommit=True) as connection:
        yield Scene(database, stack, connection)


@pytest.mark.long("workers start, and one is killed")
def test_a_worker_killed_in_mid_run_leaves_the_rest_to_the_next_and_nothing_is_recorded_twice(
    database: TestDatabase,
) -> None:
    now = datetime.now(UTC)
    with scene(database, now, now) as told:
        first = told.start()
        until(lambda: told.one(RECORDED, "Expired") > 0, WITHIN_S)
        second = told.start()
        with psycopg.connect(database.dsn()) as held:
            held.execute("SELECT 1 FROM ledgers FOR UPDATE")
            until(lambda: told.one(WAITING) > 0, WITHIN_S)
            before = told.one(RECORDED, "Expired")
            # Its append is under way in the database, which does not know yet that nobody waits for it any more.
            first.process.kill()
            first.process.wait()
        until(lambda: told.one(RECORDED, "Expired") == CODES, WITHIN_S)
        second.end()
        assert 0 < before < CODES
        assert told.one(TWICE, "Expired") == told.one(HOLES) == 0
        assert told.one(RECORDED, "CampaignEnded") == CODES // CAMPAIGN_EVERY


@pytest.mark.long("two workers start")
@pytest.mark.parametrize(("type_", "ends_in"), [("Expired", 0), ("ExpiryApproaching", 5)])
def test_two_workers_that_both_believe_that_they_lead_record_everything_once(
    database: TestDatabase, type_: str, ends_in: int
) -> None:
    now = datetime.now(UTC)
    with scene(database, now + ends_in * DAY, now - 10 * DAY) as told:
        both = [told.start(WORK_AS_IF_ALONE) for _ in range(2)]
        until(lambda: told.one(RECORDED, type_) >= CODES, WITHIN_S)
        # What the slower one still has in hand, it finds recorded.
        until(lambda: told.one(BEHIND) == 0, WITHIN_S)
        assert told.one(RECORDED, type_) == CODES
        assert told.one(TWICE, type_) == told.one(HOLES) == 0
        assert all(worker.process.poll() is None for worker in both)
