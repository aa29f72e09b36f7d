"""What a command costs, in counts, which no load of the machine changes: batches, queries, tasks, garbage."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import psycopg
import pytest

from domain.values import Sealed
from infra.eventstore.append_statement import AppendStatement
from tests import given
from tests.infra.opened import Opened, Tenant

COMMANDS = 20


def _code(number: int) -> Any:
    """Return the command that generates a code of its own, for a video of its own."""
    return given.generate(UUID(int=number), video_id=f"video-{number}", secret=Sealed(f"#secret-of-{number:08}"))


@pytest.fixture
async def tenant(opened: Opened) -> Tenant:
    """A tenant whose creator is known, and a writer that is connected."""
    tenant = await opened.begin()
    await opened.when(tenant, given.permission())
    await opened.when(tenant, _code(1))
    return tenant


@pytest.fixture
def collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def _counted(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> list[Any]:
    """Return what gets the first argument of each call of a method in this event loop.

    The server that other tests share may read in this process, too.
    """
    calls: list[Any] = []
    method = getattr(owner, name)
    loop = asyncio.get_running_loop()

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        if asyncio.get_running_loop() is loop:
            calls.append(args[:1])
        return method(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, counted)
    return calls


async def _commands(opened: Opened, tenant: Tenant, first: int) -> None:
    for number in range(first, first + COMMANDS):
        await opened.when(tenant, _code(number), key=f"key {number}")


async def test_a_command_alone_is_one_round_trip_and_no_task(
    opened: Opened, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _commands(opened, tenant, 100)
    # Whether the log is whole, and whether keys have changed, is asked once a second, however many commands there are.
    monkeypatch.setattr("infra.eventstore.histories.CACHE_S", 600)
    monkeypatch.setattr("infra.auth.authenticator.CACHE_S", 600)
    batches = _counted(monkeypatch, AppendStatement, "send")
    queries = _counted(monkeypatch, psycopg.AsyncCursor, "execute")
    tasks = 0
    loop = asyncio.get_running_loop()

    def made(loop: asyncio.AbstractEventLoop, coroutine: Any, **kwargs: Any) -> Any:
        nonlocal tasks
        tasks += 1
        return asyncio.Task(coroutine, loop=loop, **kwargs)

    loop.set_task_factory(made)
    try:
        await _commands(opened, tenant, 200)
    finally:
        loop.set_task_factory(None)
    assert (len(batches), queries, tasks) == (COMMANDS, [], 0)


async def test_commands_at_once_are_one_batch(opened: Opened, tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.eventstore.histories.CACHE_S", 600)
    batches = _counted(monkeypatch, AppendStatement, "send")
    await asyncio.gather(*(opened.when(tenant, _code(number), key=f"{number}") for number in range(300, 320)))
    assert len(batches) == 1


@pytest.mark.usefixtures("collector")
async def test_a_command_leaves_nothing_for_the_collector(opened: Opened, tenant: Tenant) -> None:
    await _commands(opened, tenant, 400)
    gc.collect()
    await _commands(opened, tenant, 500)
    assert gc.collect() < COMMANDS, "less than one object a command"
