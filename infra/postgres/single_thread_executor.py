"""An executor with one daemon thread, for blocking calls that may never return."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class SingleThreadExecutor:
    """Makes one call after another in a thread of its own, which does not keep the process alive."""

    def __init__(self, name: str) -> None:
        """Start the thread."""
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def begin(self, call: Callable[[], T]) -> Future[T]:
        """Queue a call, and return its future. A caller may stop waiting; the thread still finishes the call."""
        outcome: Future[T] = Future()
        self._calls.put((call, outcome))
        return outcome

    def leave(self) -> None:
        """End the thread after the calls that are queued."""
        self._calls.put(None)

    def _run(self) -> None:
        while (next_ := self._calls.get()) is not None:
            call, outcome = next_
            try:
                outcome.set_result(call())
            except BaseException as error:  # noqa: BLE001 - the caller gets it
                outcome.set_exception(error)
