"""People who open pages of the console, in a process of their own: beside those whose answers are measured, they would
hold up the measuring.

It reads what to do from its input, says when everybody is signed in, opens pages until its input ends, and then says
how many answers had which status.
"""

from __future__ import annotations

import itertools
import json
import select
import sys
import time
from collections import Counter
from contextlib import ExitStack
from typing import Any

import httpx

OURS = {"Sec-Fetch-Site": "same-origin"}


def main(port: int, key: str, paths: list[str], sessions: int, every_s: float) -> None:
    """Open pages until the input ends, in so many sessions, each one every so many seconds."""
    with ExitStack() as stack:
        clients = [
            stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60))
            for _ in range(sessions)
        ]
        for client in clients:
            client.post("/sign-in", data={"key": key}, headers=OURS)
        _say("ready")
        statuses: Counter[int] = Counter()
        began = time.monotonic()
        for number in itertools.count():
            due = began + number * every_s / sessions
            if select.select([sys.stdin], [], [], max(0.0, due - time.monotonic()))[0]:
                break
            statuses[clients[number % sessions].get(paths[number % len(paths)]).status_code] += 1
    _say(statuses)


def _say(what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(**json.loads(sys.stdin.readline()))
