"""Turns of long work, such as batches: all other requests come between two of them.

An event loop does one thing at a time. Work that awaits nothing for a second keeps every request waiting for a second.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

# How long other requests wait for one piece of long work, and the time that is theirs before the next one.
TURN_S: Final = 0.002
PAUSE_S: Final = 0.001
# What takes some ten milliseconds, such as a page, goes on in shorter turns, without a pause where nobody waits.
# Between two of them come so many rounds of the event loop: another request needs some of these one after another,
# between its beginning and its query, and between the result and the answer.
SHORT_TURN_S: Final = 0.00025
ROUNDS: Final = 4


class Turns:
    """The turns of one process: one piece of long work at a time, however many requests have some."""

    def __init__(self) -> None:
        """Begin with none."""
        self._pause = asyncio.Lock()

    def begin(self) -> Turn:
        """Return the turn of a request that begins with long work."""
        return Turn(self._pause)


class Turn:
    """The turn of one request."""

    def __init__(self, pause: asyncio.Lock) -> None:
        """Begin it."""
        self._pause = pause
        self._began = time.perf_counter()

    async def give_way(self) -> None:
        """End the turn if it is over, and wait for the next one."""
        if time.perf_counter() - self._began < TURN_S:
            return
        # One request pauses at a time, so that after each pause one works: many batches keep others no longer than one.
        async with self._pause:
            await asyncio.sleep(PAUSE_S)
        self._began = time.perf_counter()


async def made_in_short_turns(parts: Iterable[str]) -> str:
    """Join the parts of a text that are made one after another, in short turns."""
    made = []
    over = time.perf_counter() + SHORT_TURN_S
    for part in parts:
        made.append(part)
        if time.perf_counter() > over:
            for _ in range(ROUNDS):
                await asyncio.sleep(0)
            over = time.perf_counter() + SHORT_TURN_S
    return "".join(made)
