"""A restore to a moment, as docs/running.md has it: what was acknowledged by then is there, and nothing later.

The drill: a base backup under load, the archive of the write-ahead log, a new server that stops at the moment. The
ledger then stops until the loss is accepted, and readers that have seen more learn of it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any, Final

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from infra.postgres.embedded.cluster import binary
from infra.postgres.embedded.server import EmbeddedPostgres
from tests.faults.callers import MARK, Callers
from tests.faults.standbys import WITHIN_S, give
from tests.faults.test_lost_ends import Ledger
from tests.infra.eventstore.checker import Told, held, problems
from tests.waiting import until

# Commands before the backup, before the moment, and after it.
COMMANDS: Final = 60

_ARCHIVED: Final = "SELECT last_archived_wal >= %s FROM pg_stat_archiver"
_IS_PRIMARY: Final = "SELECT NOT pg_is_in_recovery()"


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="sl-moment-"))
    made.chmod(0o755)
    (made / "archive").mkdir(mode=0o777)
    yield made
    shutil.rmtree(made)


def expected(told: Told, before: float, after: float) -> Told:
    """Return what a restore makes of what somebody was told, if the moment was between two times of this machine."""
    if told.began > after:
        return replace(told, answer="refused")
    return told if told.ended < before else replace(told, answer="unknown")


def asked(server: EmbeddedPostgres, query: str, *parameters: Any) -> Any:
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        row = connection.execute(query, parameters).fetchone()
    assert row is not None
    return row[0]


def back_up(server: EmbeddedPostgres, into: Path) -> None:
    reached = make_conninfo(server.dsn(dbname="postgres"), hostaddr=None)
    copy = [str(binary("pg_basebackup")), "--dbname", reached, "--pgdata", str(into), "--checkpoint=fast"]
    subprocess.run(copy, check=True, timeout=WITHIN_S)


def restore(base: Path, archive: Path, moment: str, restored: EmbeddedPostgres, like: EmbeddedPostgres) -> None:
    """Copy a base backup, and have a server play the archive on it up to a moment."""
    directory = restored.cluster.directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(base, directory)
    with (directory / "postgresql.auto.conf").open("a") as settings:
        settings.write(
            f"restore_command = 'cp {archive}/%f %p'\n"
            f"recovery_target_time = '{moment}'\n"
            "recovery_target_action = 'promote'\n"
        )
    (directory / "recovery.signal").touch()
    give(directory, like.cluster)
    restored.start()
    until(lambda: asked(restored, _IS_PRIMARY), WITHIN_S)


def test_a_restore_to_a_moment_has_all_that_was_acknowledged_by_then_and_nothing_later(folder: Path) -> None:
    archive = folder / "archive"
    archiving = {"archive_mode": "on", "archive_command": f"test ! -f {archive}/%f && cp %p {archive}/%f"}
    server, restored = EmbeddedPostgres(folder / "server", archiving), EmbeddedPostgres(folder / "restored")
    with server:
        give(archive, server.cluster)
        with closing(Ledger(folder, server, restored)) as ledger, ledger.running():
            before = ledger.recorded("first", 1)
            callers = Callers(ledger)
            with callers.calling():
                callers.until_recorded(COMMANDS)
                back_up(server, folder / "base")
                callers.until_recorded(COMMANDS)
                began = monotonic()
                moment = asked(server, "SELECT clock_timestamp()::text")
                ended = monotonic()
                callers.until_recorded(COMMANDS)
            last = asked(server, "SELECT max(position) FROM events")
            until(lambda: ledger.anchored() == last, WITHIN_S)
            segment = asked(server, "SELECT pg_walfile_name(pg_switch_wal())")
            until(lambda: asked(server, _ARCHIVED, segment), WITHIN_S)
            server.stop()

            try:
                restore(folder / "base", archive, moment, restored, server)
                told = [Told(1, "first", 1, "recorded", 1, 1), *(expected(one, began, ended) for one in callers.told)]
                log = held(restored.dsn(), MARK)
                sys.stdout.write(f"{last} events, {len(log)} of them at the moment\n")
                assert problems(told, log) == []
                assert COMMANDS < len(log) < last
                check_readers_are_told(ledger, before, len(log))
            finally:
                restored.stop()


def check_readers_are_told(ledger: Ledger, before: str, common: int) -> None:
    def stopped() -> bool:
        return "ledgers restart main --accept-loss" in ledger.permit("after").json().get("detail", "")

    until(stopped, WITHIN_S)
    accepted = ledger.restart()
    assert accepted.returncode == 0, accepted.stderr
    until(lambda: ledger.permit("after").is_success, WITHIN_S)
    told = ledger.http.get("/v1/events/stream", headers={"Last-Event-ID": f"{before}:{common + 1}"})
    assert (told.status_code, told.json()["code"]) == (409, "history_changed")
    assert told.json()["last_common_position"] == common
    assert told.json()["history"] != before
