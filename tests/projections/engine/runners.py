"""Runners for tests: started and stopped with a block, or broken by an event; and what became of their views."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from projections import codes
from projections.engine import checkpoints
from projections.engine.projector import Connect
from projections.engine.runner import Runner
from projections.engine.view import View
from tests.projections.conftest import Cursor
from tests.projections.memory_log import positions

NEVER_S = 3600.0
SOON_S = 0.02


@asynccontextmanager
async def running(*runners: Runner) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Run runners until the block ends."""
    tasks = [asyncio.create_task(runner.run()) for runner in runners]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(outcome, asyncio.CancelledError), outcome


def runner_of(
    view: View[Any],
    log: Any,
    connect: Connect,
    wake: asyncio.Event | None = None,
    *,
    poll_s: float = SOON_S,
    page_events: int = 100,
) -> Runner:
    return Runner(view, log, connect, wake or asyncio.Event(), poll_s=poll_s, page_events=page_events)


async def state(cur: Cursor, name: str) -> tuple[str, int | None, int | None] | None:
    view_state = await checkpoints.load_state(cur, name)
    if view_state is None:
        return None
    return view_state.state, view_state.failed_ledger_id, view_state.failed_position


async def follows(cur: Cursor, name: str) -> bool:
    """Tell whether a view follows the log, and nothing is left of what stopped it."""
    return await state(cur, name) == ("following", None, None)


def poisoned_by(kind: type, of: View[Any] = codes.VIEW) -> View[Any]:
    """A view whose handler of this event is broken."""

    def handler(*_: Any) -> None:
        raise ZeroDivisionError("a mistake in a handler")

    return replace(of, updates={**of.updates, kind: handler})


async def all_read(cur: Cursor, views: Sequence[View[Any]], heads: dict[int, int]) -> bool:
    return all([await reads(cur, view.name, heads) for view in views])


async def reads(cur: Cursor, name: str, heads: dict[int, int]) -> bool:
    return await positions(cur, name) == heads


async def failed(cur: Cursor, name: str) -> bool:
    view_state = await checkpoints.load_state(cur, name)
    return view_state is not None and view_state.state == "failed"
