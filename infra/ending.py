"""The end of a process: tasks that are cancelled until they have ended, and a limit for all of it."""

from __future__ import annotations

import asyncio
import faulthandler
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

# After which a task that still runs is cancelled once more. What tasks do at their end takes less.
AGAIN_S: Final = 3.0
# How long a process may take to end: longer than it should, and less than service managers give it (docs/running.md).
ENDS_WITHIN_S: Final = 15


async def cancelled(tasks: Iterable[asyncio.Task[Any]], again_s: float = AGAIN_S) -> None:
    """Cancel tasks, and wait until they have ended. What they return or raise is left to who wants it.

    One cancellation may not be enough: a library may take it for a failure of what it was doing, and go on (psycopg's
    pool does, while it checks its connections), and before Python 3.12 `asyncio.wait_for` loses it if what it waits for
    comes in the same turn of the loop.

    Args:
        tasks: the tasks.
        again_s: the seconds after which those that still run are cancelled once more, and so on.

    """
    all_tasks = list(tasks)
    running = {task for task in all_tasks if not task.done()}
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=again_s)
    for task in all_tasks:
        if not task.cancelled():
            task.exception()  # else asyncio would log that nobody asked for it


def stop_if_cancelled() -> None:
    """Raise `CancelledError` in a task that was cancelled, if something has taken that for an error, and gone on."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def end_for_certain(within_s: float = ENDS_WITHIN_S) -> None:
    """Have this process end within some seconds, whatever holds it up; its output then says where each thread was.

    Nothing that was acknowledged depends on an orderly end, so to wait for longer would gain nothing. It is to be
    called once the end is asked for, in a process that does nothing else.
    """
    faulthandler.dump_traceback_later(within_s, exit=True)
