"""SIGKILL of a process in mid-load: what it was told stands, and the rest, sent again, gets one answer."""

from __future__ import annotations

import sys

from tests.faults.commands import MARK
from tests.faults.durable import SHORT, Scene
from tests.infra.eventstore.checker import held

KILLS = 2 if SHORT else 10
COMMANDS_BETWEEN = 500 if SHORT else 3_000


def test_a_killed_process_leaves_every_command_whole_or_not_at_all(scene: Scene) -> None:
    unacknowledged = 0
    for number in range(KILLS):
        with scene.telling(f"process-{number}") as program:
            scene.until_acknowledged(COMMANDS_BETWEEN)
            program.process.kill()
            program.process.wait(20)
        assert scene.problems() == []

        again = scene.unacknowledged()
        unacknowledged += len(again)
        assert scene.send_again(again, f"again-{number}") == []
        assert scene.unacknowledged() == []
        assert scene.problems() == []

    events = held(scene.database.dsn(), MARK)
    sys.stdout.write(
        f"{KILLS} kills; {len(events)} events; {len(scene.told())} attempts; {unacknowledged} commands sent again\n"
    )
    # Each kill caught commands in flight; otherwise it was no test.
    assert unacknowledged >= KILLS
