"""SIGKILL of PostgreSQL in mid-load, with fsync on: nothing acknowledged is lost, nothing is half done."""

from __future__ import annotations

import contextlib
import sys
from time import monotonic

import psutil
import psycopg

from tests.faults.commands import MARK
from tests.faults.durable import SHORT, Scene
from tests.infra.eventstore.checker import held
from tests.waiting import until

KILLS = 2 if SHORT else 8
COMMANDS_BETWEEN = 400 if SHORT else 2_000


def test_a_killed_postgres_loses_nothing_that_was_acknowledged(scene: Scene) -> None:
    kills: list[float] = []
    with scene.telling("one") as one, scene.telling("two") as two:
        for number in range(KILLS):
            scene.until_acknowledged(COMMANDS_BETWEEN)
            kills.append(monotonic())
            kill_postgres(scene, postmaster_alone=number % 2 == 1)
            until(lambda: answers(scene), 60)
        scene.until_acknowledged(COMMANDS_BETWEEN)
        scene.stop.touch()
        assert [program.rest()[-1] for program in (one, two)] == ["done", "done"], (one.printed, two.printed)

    assert scene.problems() == []
    # Writers send again until it is answered, so in the end everything was.
    assert scene.unacknowledged() == []
    told = scene.told()
    unknown = sum(attempt.answer == "unknown" for attempt in told)
    # Those on their way when PostgreSQL was killed; most learn from the writer itself what became of them.
    caught = [sum(attempt.began < kill < (attempt.ended or kill + 1) for attempt in told) for kill in kills]
    events = held(scene.database.dsn(), MARK)
    sys.stdout.write(
        f"{KILLS} kills caught {caught} attempts; {len(events)} events; {len(told)} attempts, {unknown} unanswered\n"
    )
    assert min(caught) > 0


def kill_postgres(scene: Scene, *, postmaster_alone: bool) -> None:
    """Kill the postmaster, whose children then notice, or all of them at once."""
    server = scene.database.cluster
    pid = server.pid
    assert pid is not None
    family = [psutil.Process(pid)]
    if not postmaster_alone:
        family += server.cluster.processes()
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    until(lambda: server.pid != pid, 60)


def answers(scene: Scene) -> bool:
    try:
        with psycopg.connect(scene.database.dsn(), connect_timeout=5) as connection:
            return connection.execute("SELECT 1").fetchone() == (1,)
    except psycopg.OperationalError:
        return False
