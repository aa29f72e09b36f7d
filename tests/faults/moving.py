"""A process that moves a ledger as `sparkledger ledgers move` does, says when it has come to a point, and waits there.

    python -c "from tests.faults.moving import main; main()" '{"ledger": …, "servers": […], "points": […], …}'

A test kills it there, or something else, and lets it go on by removing the file that it waits for.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg

from infra.jobs.ledger_move import LedgerMove, MoveError, Server
from tests.infra.programs import Program, running
from tests.keys import master_key_of
from tests.waiting import LOOK_EVERY_S

MOVE: Final = "from tests.faults.moving import main; main()"


@contextmanager
def moving(order: dict[str, Any], *points: str) -> Iterator[Program]:
    """Run it for as long as the block takes; it prints each of these points when it is there first."""
    with running(MOVE, json.dumps(order | {"points": points})) as program:
        yield program


def main() -> None:
    """Move, or say why not."""
    order = json.loads(sys.argv[1])
    points = list(order["points"])
    wait = Path(order["wait"])

    def reached(point: str) -> None:
        if point in points:
            points.remove(point)
            wait.touch()
            _say(point)
            while wait.exists():
                time.sleep(LOOK_EVERY_S)

    source, target = (Server(name, owner) for name, owner in order["servers"])
    key = master_key_of(*order["master_keys"])
    try:
        with LedgerMove(order["ledger"], source, target, key, lambda _: None) as move:
            move.reached, move.linger_s = reached, 0.0
            moved = move.run()
    except (MoveError, psycopg.Error) as error:
        _say(f"failed: {' '.join(str(error).split())}")
        sys.exit(1)
    _say(f"held for {moved.held_s:.2f} s")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
