"""A failover to a synchronous standby: everything that was acknowledged is there, whatever was cut on the way."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from time import monotonic
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from infra.eventstore.group_commit import GroupCommitWriter
from infra.postgres.embedded.cluster import DATABASE
from infra.postgres.embedded.server import EmbeddedPostgres
from infra.postgres.migrate import migrate
from infra.postgres.roles import WORKER
from infra.postgres.timelines import ServerConnection
from tests.conftest import TestDatabase
from tests.faults.callers import MARK as CALLED
from tests.faults.callers import Callers
from tests.faults.durable import begin
from tests.faults.standbys import WITHIN_S, make_standby, wait_for_a_standby
from tests.faults.test_lost_ends import Ledger, reach
from tests.infra.eventstore.appends import accept
from tests.infra.eventstore.checker import Told, held, problems
from tests.infra.eventstore.load import MARK, Load
from tests.infra.eventstore.notebook import Notebook, noted
from tests.infra.proxy import proxied
from tests.waiting import until

TASKS = 16
EVENTS = 300
# Of callers of the API, before and after.
COMMANDS = 60

_WRITTEN = f"SELECT 1 FROM events HAVING count(*) >= {EVENTS}"
_WAITS = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE '%append(%'"


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="sl-failover-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


async def until_found(connection: psycopg.AsyncConnection[Any], query: str) -> None:
    """Wait until a query finds something, while everything else in this process goes on."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            if await (await connection.execute(query)).fetchone() is not None:
                return
            await asyncio.sleep(0.02)


async def under_load(
    primary: EmbeddedPostgres, standby: EmbeddedPostgres, ledgers: list[int], book: Notebook, folder: Path
) -> None:
    """Write, lose the standby, and cut the connection while a commit waits for it; return once all are answered."""
    (folder / "proxy").mkdir()
    ended = False
    async with (
        proxied(primary.dsn(WORKER), folder / "proxy") as (proxy, dsn),
        await psycopg.AsyncConnection.connect(primary.dsn(), autocommit=True) as reading,
        await psycopg.AsyncConnection.connect(primary.dsn(), autocommit=True) as watching,
    ):
        hosts = f"{conninfo_to_dict(dsn)['host']},{conninfo_to_dict(standby.dsn())['host']}"
        writer = GroupCommitWriter(make_conninfo(dsn, host=hosts), WORKER, answer_within_s=2, resolve_within_s=2)
        # Those that find the ledger locked by the commit that waits are refused sooner.
        writer._session["options"] += " -c lock_timeout=500"
        writer.start()
        load = Load(writer, reading, ledgers, book)
        tasks = [asyncio.create_task(load.write(lambda: ended)) for _ in range(TASKS)]

        await until_found(watching, _WRITTEN)
        await asyncio.to_thread(standby.stop)
        await until_found(watching, _WAITS)
        ended = True
        await proxy.close()
        await asyncio.gather(*tasks)
        await writer.stop()


def test_a_failover_loses_nothing_acknowledged_though_the_connection_was_cut_during_a_commit(folder: Path) -> None:
    """A look-up that ended the waiting session would find its commit: on the primary, and nowhere else."""
    primary, standby = EmbeddedPostgres(folder / "primary"), EmbeddedPostgres(folder / "standby")
    book = Notebook(folder / "told.jsonl")
    with primary:
        migrate(primary.dsn())
        with closing(TestDatabase(primary, DATABASE)) as database:
            accept(database, "Marked")
            ledgers = [writes.ledger_id for writes in asyncio.run(begin(database))]
        make_standby(primary, standby.cluster)
        standby.start()
        wait_for_a_standby(primary)
        asyncio.run(under_load(primary, standby, ledgers, book, folder))
    book.close()
    with standby:
        with psycopg.connect(standby.dsn(), autocommit=True) as connection:
            assert connection.execute("SELECT pg_promote()").fetchone() == (True,)
        log = held(standby.dsn(), MARK)

    told = [attempt.told for attempt in noted(folder / "told.jsonl")]
    answers = Counter(attempt.answer for attempt in told)
    sys.stdout.write(f"{len(log)} events; {dict(answers)}\n")
    assert problems(told, log) == []
    assert answers["recorded"] > TASKS
    # It was cut in the middle of a commit; otherwise it was no test.
    assert answers["unknown"] > 0


def test_the_program_goes_on_by_itself_after_a_failover_and_nothing_acknowledged_is_lost(folder: Path) -> None:
    """The primary ends at once, as if it had lost its power, and the standby is promoted, while callers go on."""
    primary, standby = EmbeddedPostgres(folder / "primary"), EmbeddedPostgres(folder / "standby")
    with primary, closing(Ledger(folder, primary, standby)) as ledger:
        make_standby(primary, standby.cluster)
        with standby, ledger.running():
            wait_for_a_standby(primary)
            ledger.recorded("first", 1)
            callers = Callers(ledger)
            with callers.calling():
                callers.until_recorded(COMMANDS)
                acknowledged = callers.recorded()
                primary.stop(0)
                lost_at = monotonic()
                with psycopg.connect(standby.dsn(), autocommit=True) as connection:
                    assert connection.execute("SELECT pg_promote()").fetchone() == (True,)
                callers.until_recorded(COMMANDS)
            again_at = min(one.ended for one in callers.told if one.answer == "recorded" and one.began > lost_at)

            log = held(standby.dsn(), CALLED)
            told = [Told(1, "first", 1, "recorded", 1, 1), *callers.told]
            answers = Counter(one.answer for one in callers.told)
            sys.stdout.write(
                f"{acknowledged} before and {callers.recorded() - acknowledged} after; {len(log)} events;"
                f" {dict(answers)}; again after {again_at - lost_at:.1f} s\n"
            )
            assert problems(told, log) == []
            # Views and the anchor go on, too.
            last = log[-1].position
            until(lambda: view_position(ledger) >= last, WITHIN_S)
            until(lambda: ledger.anchored() == last, WITHIN_S)


def test_a_former_primary_that_wakes_gets_no_command_though_it_is_named_first(folder: Path) -> None:
    """Replication is asynchronous, so the former primary would acknowledge whatever it is sent."""
    primary, standby = EmbeddedPostgres(folder / "primary"), EmbeddedPostgres(folder / "standby")
    with primary, closing(Ledger(folder, primary, standby)) as ledger:
        make_standby(primary, standby.cluster)
        with standby, ledger.running():
            ledger.recorded("first", 1)
            until(lambda: events(standby) == 1, WITHIN_S)
            try:
                tell(primary, signal.SIGSTOP)
                frozen_at = monotonic()
                with psycopg.connect(standby.dsn(), autocommit=True) as connection:
                    assert connection.execute("SELECT pg_promote()").fetchone() == (True,)
                until(lambda: ledger.permit("second").is_success, WITHIN_S)
                again_s = monotonic() - frozen_at
            finally:
                tell(primary, signal.SIGCONT)
            until(lambda: events(primary) == 1, WITHIN_S)

            callers = Callers(ledger)
            with callers.calling():
                callers.until_recorded(COMMANDS)
            with ServerConnection.connect(reach("postgres", primary, standby)) as newcomer:
                assert newcomer.execute("SELECT count(*) FROM events").fetchone() == (events(standby),)
            sys.stdout.write(f"{callers.recorded()} after it woke; again after {again_s:.1f} s\n")
            assert events(primary) == 1
            told = [Told(1, "first", 1, "recorded", 1, 1), Told(1, "second", 1, "recorded", 2, 2), *callers.told]
            assert problems(told, held(standby.dsn(), CALLED)) == []


def tell(server: EmbeddedPostgres, number: int) -> None:
    """Send a signal to each process of a server."""
    for process in server.cluster.processes():
        process.send_signal(number)


def events(server: EmbeddedPostgres) -> int:
    with psycopg.connect(server.dsn()) as connection:
        row = connection.execute("SELECT count(*) FROM events").fetchone()
    assert row is not None
    return int(row[0])


def view_position(ledger: Ledger) -> int:
    """Return how far the view of codes has read; 0 while it cannot be asked."""
    answer = ledger.http.get("/v1/codes")
    return int(answer.headers["ledger-position"]) if answer.is_success else 0
