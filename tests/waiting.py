"""Waiting for a condition instead of for a time."""

from __future__ import annotations

import time
from collections.abc import Callable

WITHIN_S = 15.0
LOOK_EVERY_S = 0.02


def until(condition: Callable[[], bool], within_s: float = WITHIN_S) -> None:
    """Return as soon as a condition holds; fail if it does not within the time."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come to hold in time"
        time.sleep(LOOK_EVERY_S)
