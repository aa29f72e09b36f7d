"""A thread beside the one that asks, for calls that may never return and for work that goes on meanwhile."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class SingleThreadExecutor:
    """Does one call after another in a thread of its own, which keeps no process from ending."""

    def __init__(self, name: str) -> None:
        """Begin the thread."""
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def begin(self, call: Callable[[], T]) -> Future[T]:
        """Have a call done; whoever waits for its outcome may give it up, and the thread stays with it."""
        outcome: Future[T] = Future()
        self._calls.put((call, outcome))
        return outcome

    def leave(self) -> None:
        """End once the present call ends."""
        self._calls.put(None)

    def _run(self) -> None:
        while (next_ := self._calls.get()) is not None:
            call, outcome = next_
            try:
                outcome.set_result(call())
            except BaseException as error:  # noqa: BLE001 - whoever waits gets it
                outcome.set_exception(error)
