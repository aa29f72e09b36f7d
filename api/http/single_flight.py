"""What anyone may ask without a key, and the database answers: looked up once for all who ask within a moment."""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")

KEEP_S: Final = 1.0


class SingleFlight(Generic[T]):
    """One look-up at a time, whose answer, or failure, is kept for a moment: strangers take one session and no more."""

    def __init__(self, look_up: Callable[[], Coroutine[None, None, T]]) -> None:
        """Take what looks up; nothing is looked up until somebody asks."""
        self._look_up = look_up
        self._answer: asyncio.Task[T] | None = None
        self._until = -math.inf

    async def __call__(self) -> T:
        """Return the answer, or raise what looking it up raised; a caller that leaves keeps nobody from it."""
        if self._answer is None or (self._answer.done() and time.monotonic() >= self._until):
            self._answer = asyncio.create_task(self._looked_up(), name="look-up for all who ask")
        return await asyncio.shield(self._answer)

    async def _looked_up(self) -> T:
        try:
            return await self._look_up()
        finally:
            self._until = time.monotonic() + KEEP_S
