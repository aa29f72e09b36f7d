"""What an operator does to views, as they do it: processes that are killed for real, and lines on a screen."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from typer.testing import CliRunner

import cli
from domain.code import Code
from infra.auth.key_commands import create_ledger
from infra.eventstore.part_reader import PartReader
from infra.postgres import pool
from infra.postgres.pool import Database
from infra.postgres.roles import WORKER
from infra.processes.worker import create_views
from infra.views import commands, part_process
from infra.views.progress_display import Lines, line
from projections import VIEWS, codes, event_index, statistics
from projections.engine import parts
from projections.engine.parts import Part
from projections.engine.projector import PoisonEvent, Projector, prepare
from projections.engine.rebuild import PartFailed, RebuildProgress
from projections.engine.shared_reader import SharedLog
from projections.engine.view import SHADOW_SUFFIX
from tests.bench import lives
from tests.bench.lives import fill
from tests.conftest import TestDatabase
from tests.keys import ERASURE_KEYS, master_key
from tests.waiting import until

pytestmark = pytest.mark.long("processes start, rebuild views and are killed")

ROOT = Path(__file__).parents[3]
RUN = CliRunner()
EVENTS = 25_000  # more than a transaction covers
KEY = bytes(range(32))


@dataclass(frozen=True)
class Filled:
    """A ledger named `acme` with many events."""

    database: TestDatabase
    ledger_id: int

    @property
    def environment(self) -> dict[str, str]:
        """What the program is told of it."""
        return {
            "SPARKLEDGER_DATABASE_URL": self.database.dsn(),
            "SPARKLEDGER_MASTER_KEY": base64.b64encode(KEY).decode(),
            "SPARKLEDGER_ERASURE_KEY_DIR": str(ERASURE_KEYS),
        }

    def sql(self, query: str, *parameters: Any) -> list[Any]:
        """Ask the database itself."""
        return self.database.sql(query, parameters)

    def position(self, view: str) -> int:
        """How far a view has read."""
        found = self.sql("SELECT position FROM view_positions WHERE view = %s", view)
        return found[0][0] if found else 0

    def rows(self, view: str) -> Any:
        """How many rows a view's first table has, and a hash of all."""
        return self.sql(f"SELECT count(*), sum(hashtextextended(t::text, 0)) FROM views.{view} t")

    @contextmanager
    def running(self, *command: str) -> Iterator[subprocess.Popen[str]]:
        """Run the program in a process of its own."""
        with subprocess.Popen(
            [sys.executable, "-m", "cli", *command],
            cwd=ROOT,
            env={**os.environ, **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def said(self, *command: str) -> str:
        """Run the program to its end, and return what it said."""
        with self.running(*command) as process:
            told, _ = process.communicate(timeout=60)
        assert process.returncode == 0, told
        return told


@pytest.fixture
def begun(database: TestDatabase) -> Filled:
    """The ledger, empty, and its views."""
    asyncio.run(create_ledger(database.dsn(), master_key(KEY), "acme"))
    asyncio.run(create_views(database.dsn()))
    with psycopg.connect(database.dsn()) as connection:
        (ledger_id,) = connection.execute("SELECT ledger_id FROM ledgers").fetchone() or (0,)
    return Filled(database, ledger_id)


@pytest.fixture
def filled(begun: Filled) -> Filled:
    """The ledger with many events, which no view has read yet."""
    fill(begun.database, begun.ledger_id, EVENTS)
    return begun


# What fills shadow tables of the view codes waits before each further page, without a lock, so for no limited time.
HOLD = r"""
CREATE TABLE held (); INSERT INTO held DEFAULT VALUES; GRANT SELECT ON held TO PUBLIC;
CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    WHILE EXISTS (SELECT FROM held)
    AND (SELECT min(position) FROM view_positions WHERE view LIKE 'codes\_%next') > 0 LOOP
        PERFORM pg_sleep(0.02);
    END LOOP;
    RETURN NULL;
END
$$;
CREATE TRIGGER hold BEFORE UPDATE ON view_positions EXECUTE FUNCTION hold()
"""


def let_go(filled: Filled) -> None:
    """End the sessions of processes that are dead, which may wait, and let later ones go on."""
    ended = "SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity"
    filled.sql(f"{ended} WHERE datname = current_database() AND application_name = 'sparkledger'")
    filled.sql("DELETE FROM held")


def test_a_rebuild_that_is_killed_resumes(filled: Filled) -> None:
    filled.said("rebuild", "codes")
    whole = filled.rows("codes")
    filled.database.sql(HOLD)
    with filled.running("rebuild", "codes") as process:
        until(lambda: filled.position("codes" + SHADOW_SUFFIX) > 0, within_s=60)
        left = filled.position("codes" + SHADOW_SUFFIX)
        assert 0 < left < EVENTS, "it has not come to its end before it was held"
        process.send_signal(signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
    assert filled.rows("codes") == whole, "the rows that are read are the old ones"
    let_go(filled)

    told = filled.said("rebuild", "codes")
    done = re.search(r"codes: done, ([\d,]+) events in [\d.]+ s \([\d,]+ a second\)", told)
    assert done, told
    assert int(done[1].replace(",", "")) == EVENTS - left
    assert filled.rows("codes") == whole
    assert filled.sql("SELECT view, state, rebuilds FROM view_versions WHERE view LIKE 'codes%%'") == [
        ("codes", "following", 2)
    ]


def test_a_rebuild_by_several_processes_survives_that_one_is_killed_and_then_that_all_are(begun: Filled) -> None:
    filled, events = begun, 25_000  # a transaction covers 20,000
    fill(filled.database, filled.ledger_id, events)
    asyncio.run(commands.rebuild(filled.database.dsn(), ["codes"], lambda *_: None))
    whole = filled.rows("codes")
    filled.database.sql(HOLD)
    with filled.running("rebuild", "codes", "--jobs", "2") as process:
        until(lambda: min(of_parts(filled), default=0) > 0, within_s=60)
        assert 0 < min(of_parts(filled)) < events, "they have not come to their end before they were held"
        first, second = parts_of(process)
        first.kill()
        until(lambda: len(parts_of(process) - {first}) == 2, within_s=60)
        assert second in parts_of(process), "only the one that was killed is started again"
        process.send_signal(signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
        until(lambda: not second.is_running() or second.status() == psutil.STATUS_ZOMBIE, within_s=60)
    assert filled.rows("codes") == whole, "the rows that are read are the old ones"
    let_go(filled)
    left = of_parts(filled)

    told = filled.said("rebuild", "codes", "--jobs", "3")
    done = re.search(r"codes: done, ([\d,]+) events in [\d.]+ s \([\d,]+ a second\)", told)
    assert done, told
    assert int(done[1].replace(",", "")) == events - sum(left) // len(left), "two parts resume, whatever is asked for"
    assert filled.rows("codes") == whole
    assert of_parts(filled) == []


def of_parts(filled: Filled) -> list[int]:
    """How far the parts of a rebuild have come."""
    rows = filled.sql("SELECT position FROM view_positions WHERE view LIKE 'codes\\__\\_of\\__\\_next'")
    return [position for (position,) in rows]


def parts_of(process: subprocess.Popen[str]) -> set[psutil.Process]:
    """Return the living processes that fill parts."""
    children = psutil.Process(process.pid).children(recursive=True)
    return {child for child in children if child.status() != psutil.STATUS_ZOMBIE}


def test_several_processes_fill_all_views_with_the_same_rows(begun: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lives, "GROUPS", 40)  # whole lives of codes in few events
    fill(begun.database, begun.ledger_id, 2_500, creators=40)
    names = [view.name for view in VIEWS]
    asyncio.run(commands.rebuild(begun.database.dsn(), names, lambda *_: None))
    tables = [table.name for view in VIEWS for table in view.tables]
    whole = [begun.rows(table) for table in tables]
    told: list[RebuildProgress] = []
    asyncio.run(commands.rebuild(begun.database.dsn(), names, lambda p, _: told.append(p), jobs=2))
    assert [begun.rows(table) for table in tables] == whole
    assert {(p.view, p.events, p.position) for p in told if p.phase == "done"} == {
        (name, 2_500, 2_500) for name in names
    }
    assert begun.sql("SELECT DISTINCT state FROM view_versions") == [("following",)]


def test_an_event_that_stops_one_of_several_processes_can_be_skipped(
    begun: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lives, "GROUPS", 40)
    fill(begun.database, begun.ledger_id, 1_000, creators=40)
    begun.sql("ALTER TABLE events DISABLE TRIGGER ALL")
    begun.sql("UPDATE events SET body = 'nobody can read this' WHERE position = 500")
    with pytest.raises(PoisonEvent, match="View codes_next stops before event 500 of ledger 1"):
        asyncio.run(commands.rebuild(begun.database.dsn(), ["codes"], lambda *_: None, jobs=2))
    asyncio.run(commands.skip(begun.database.dsn(), "codes", "acme", 500, "a test", "me", and_later=True))
    asyncio.run(commands.rebuild(begun.database.dsn(), ["codes"], lambda *_: None, jobs=2))
    assert begun.position("codes") == 1_000


def test_a_process_that_always_dies_fails_the_rebuild_which_then_says_so(
    begun: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(begun.database, begun.ledger_id, 100, creators=40)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(PartFailed, match=r"ended 4 times, at last with exit code 1\. Start the rebuild again"):
        asyncio.run(commands.rebuild(begun.database.dsn(), ["codes"], lambda *_: None, jobs=2))


def test_a_part_waits_longer_for_others_that_add_to_the_same_counts_than_sessions_wait_for_locks(
    begun: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(begun.database, begun.ledger_id, 2_000)
    dsn, view, part = begun.database.dsn(), statistics.VIEW, Part(1, 2)
    monkeypatch.setattr(pool, "LOCK_TIMEOUT_MS", 50)
    waiting = (
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        " AND clock_timestamp() - query_start > interval '200 ms'"
    )

    async def filled_meanwhile() -> None:
        database = Database(dsn, WORKER)
        await database.open()
        async with await commands.connect(dsn) as loads, await commands.connect(dsn) as other:
            await prepare(loads)
            await Projector(view, other, shadow=True).create(indexes=False)
            reader = SharedLog(PartReader(database, part, {begun.ledger_id: 2_000})).reader()
            async with other.transaction():
                await parts.begin(other.cursor(), view.name, view.version, part.parts, [begun.ledger_id])
            async with other.transaction():
                await other.execute("LOCK TABLE views.statistics_days_next IN SHARE MODE")
                filling = asyncio.create_task(part_process._fill(dsn, view.name, part, reader, loads))
                while not filling.done() and not begun.sql(waiting):  # noqa: ASYNC110 - PostgreSQL sets no event
                    await asyncio.sleep(0.02)
            await filling
        await database.close()

    asyncio.run(filled_meanwhile())
    assert begun.position(part.name(view.name)) == 2_000


def test_all_views_are_rebuilt_from_one_reading_of_the_log(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    # However busy the machine is: after half a minute, the others would go on, and a late view would read for itself.
    monkeypatch.setattr(commands, "SHARED_READ_PATIENCE_S", 600.0)
    told: list[RebuildProgress] = []
    asyncio.run(commands.rebuild(filled.database.dsn(), [view.name for view in VIEWS], lambda p, _: told.append(p)))
    assert {filled.position(view.name) for view in VIEWS} == {EVENTS}
    assert {(p.view, p.events, p.position) for p in told if p.phase == "done"} == {
        (view.name, EVENTS, EVENTS) for view in VIEWS
    }
    reads = "SELECT idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'events'"
    until(lambda: filled.sql(reads)[0][0] >= EVENTS)
    assert filled.sql(reads)[0][0] < 2 * EVENTS, "and not once for each view"


def test_a_view_that_cannot_be_rebuilt_keeps_no_other_from_it(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("a mistake in a handler")

    monkeypatch.setitem(codes.VIEW._handlers, Code.Shared, (None, broken))
    names = [codes.NAME, event_index.NAME]
    with pytest.raises(PoisonEvent, match="View codes_next stops before event 21001 of ledger 1"):
        asyncio.run(commands.rebuild(filled.database.dsn(), names, lambda *_: None))
    assert (filled.position("codes"), filled.position("history")) == (0, EVENTS)


def test_a_worker_that_is_killed_is_followed_by_another_within_seconds(filled: Filled) -> None:
    with filled.running("work", "--only", "views") as first:
        until(lambda: filled.position("history") > 0, within_s=60)
        with filled.running("work", "--only", "views"):
            until(lambda: waiting(filled) == len(VIEWS), within_s=60)
            first.send_signal(signal.SIGKILL)
            first.wait(10)
            until(lambda: {filled.position(view.name) for view in VIEWS} == {EVENTS}, within_s=60)
    assert filled.sql("SELECT DISTINCT state FROM view_versions") == [("following",)]


def waiting(filled: Filled) -> int:
    """How many sessions have asked to lead a view and may not."""
    (count,) = filled.sql(
        "SELECT count(*) FROM pg_stat_activity WHERE usename = %s AND query LIKE 'SELECT pg_try_advisory_lock%%'",
        "postgres",
    )[0]
    return int(count)


# What is said


def invoke(filled: Filled, *command: str) -> tuple[int, str]:
    result = RUN.invoke(cli.app, command, env=filled.environment)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_the_list_of_views_says_how_far_each_is_what_stopped_it_and_what_was_skipped(begun: Filled) -> None:
    fill(begun.database, begun.ledger_id, 1_010)
    begun.said("rebuild", "all")
    fresh = invoke(begun, "views", "list")[1].splitlines()
    assert [text.split()[0] for text in fresh] == sorted(view.name for view in VIEWS)
    assert all(re.search(r"following +1,010 events, all read$", text) for text in fresh)

    begun.sql(
        "UPDATE view_versions SET state = 'failed', error = 'KeyError: it', failed_ledger_id = %s, failed_position = 7"
        " WHERE view = 'codes'",
        begun.ledger_id,
    )
    stopped = invoke(begun, "views", "list")[1]
    assert re.search(r"codes .* failed .*\n    stopped before event 7 of ledger acme: KeyError: it\n", stopped)

    asked = ("views", "skip", "codes", "--ledger", "acme", "--position", "7", "--reason", "it is a test ")
    code, said = invoke(begun, *asked)
    assert (code, said) == (0, "View codes skips event 7 of ledger acme. The worker continues within seconds.\n")
    skipped = invoke(begun, "views", "list")[1]
    assert (
        f"codes v{codes.VERSION} skips event 7 of ledger acme: it is a test\n    by {commands.current_user()}, "
        in skipped
    )
    assert begun.sql("SELECT stream_id, reason, skipped_by, login FROM view_skips") == [
        (None, "it is a test", commands.current_user(), "postgres")
    ]

    begun.sql("UPDATE view_versions SET failed_position = 8 WHERE view = 'codes'")
    more = ("views", "skip", "codes", "--ledger", "acme", "--position", "8", "--reason", "it too", "--and-later")
    code, said = invoke(begun, *more)
    assert code == 0
    assert said.startswith("View codes skips event 8 of ledger acme and all later events of the same code or creator. ")
    ((stream_id,),) = begun.sql("SELECT stream_id FROM events WHERE ledger_id = %s AND position = 8", begun.ledger_id)
    assert (
        f"skips event 8 of ledger acme and all later ones of {stream_id}: it too\n" in invoke(begun, "views", "list")[1]
    )


@pytest.mark.parametrize(
    ("view", "ledger", "position", "reason", "problem"),
    [
        ("nothing", "acme", 7, "why", "There is no view nothing. The views are codes, "),
        ("codes", "nobody", 7, "why", "There is no ledger nobody. `sparkledger ledgers list` shows all ledgers."),
        ("codes", "acme", 7, "why", "View codes has not stopped, so there is nothing to skip."),
    ],
)
def test_what_cannot_be_skipped_is_refused_in_a_line(
    begun: Filled, view: str, ledger: str, position: int, reason: str, problem: str
) -> None:
    with pytest.raises(LookupError) as refused:
        asyncio.run(commands.skip(begun.database.dsn(), view, ledger, position, reason, "ada"))
    assert str(refused.value).startswith(problem)


def test_a_skip_without_a_reason_is_wrong_usage(begun: Filled) -> None:
    asked = ("views", "skip", "codes", "--ledger", "acme", "--position", "7", "--reason", "  ")
    assert invoke(begun, *asked)[0] == 2


def test_the_progress_of_a_rebuild_is_told_in_numbers() -> None:
    assert line(RebuildProgress("codes", "filling", 250_000, 10.0, 500_000), 1_000_000) == (
        "500,000 of 1,000,000 events (50 %), 25,000 a second, 20 s left"
    )
    assert line(RebuildProgress("codes", "filling", 0, 0.0, 0), 1_000_000) == "0 of 1,000,000 events (0 %)"
    assert (
        line(RebuildProgress("codes", "filling", 30, 1.0, 30), 20) == "30 of 30 events (100 %), 30 a second, 0 s left"
    )
    assert line(RebuildProgress("codes", "indexing", 1, 1.0, 1), 1) == "building its indexes"
    assert (
        line(RebuildProgress("codes", "done", 1_000, 0.5, 1_000), 1_000)
        == "done, 1,000 events in 0.5 s (2,000 a second)"
    )


def test_lines_come_at_each_phase_and_now_and_then() -> None:
    said: list[str] = []
    lines = Lines(said.append)
    for events in (10, 20, 30):
        lines(RebuildProgress("codes", "filling", events, 1.0, events), 100)
    lines(RebuildProgress("history", "filling", 10, 1.0, 10), 100)
    lines(RebuildProgress("codes", "indexing", 100, 1.0, 100), 100)
    assert [text.split(":")[0] for text in said] == ["codes", "history", "codes"]
    assert said[-1] == "codes: building its indexes"
