from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

import infra.process_limits
from infra.ending import cancelled
from infra.process_limits import collect_in_small_pieces
from tests.waiting import until


class Circle:
    """An object that only the garbage collector can free."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def left_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(infra.process_limits, "COLLECT_EVERY_S", 0.001)
    gc.disable()
    yield
    gc.enable()


async def test_young_garbage_is_collected_and_what_survives_is_not_looked_at_again() -> None:
    kept = [object() for _ in range(10)]
    gone = weakref.ref(Circle())
    collecting = asyncio.create_task(collect_in_small_pieces())
    await asyncio.to_thread(until, lambda: gone() is None)
    await asyncio.to_thread(until, lambda: all(one is not kept for one in gc.get_objects()))
    await cancelled([collecting])


async def test_garbage_of_what_had_survived_is_found_by_the_collection_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    circle = Circle()
    gone = weakref.ref(circle)
    gc.freeze()
    del circle
    monkeypatch.setattr(infra.process_limits, "COLLECT_ALL_EVERY_S", 0)
    collecting = asyncio.create_task(collect_in_small_pieces())
    await asyncio.to_thread(until, lambda: gone() is None)
    await cancelled([collecting])
