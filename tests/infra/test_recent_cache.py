from __future__ import annotations

import random
import weakref

import pytest

from infra.recent_cache import RecentCache


class Kept:
    """A value whose end can be seen."""


def test_the_half_that_was_used_last_is_found() -> None:
    cache = RecentCache[int, int](100)
    for number in range(1_000):
        cache.put(number, number)
        assert [cache.get(n) for n in range(max(0, number - 49), number + 1)] == list(
            range(max(0, number - 49), number + 1)
        )


def test_what_is_used_again_and_again_stays() -> None:
    cache = RecentCache[int, int](100)
    cache.put(-1, 1)
    for number in range(1_000):
        cache.put(number, number)
        if number % 10 == 0:
            assert cache.get(-1) == 1


def test_it_never_holds_more_than_its_limit_and_frees_what_it_drops_one_by_one() -> None:
    cache, alive = RecentCache[int, Kept](100), weakref.WeakSet[Kept]()
    chosen = random.Random(1)
    for number in range(2_000):
        before = len(alive)
        value = Kept()
        alive.add(value)
        cache.put(number, value)
        cache.get(chosen.randrange(number + 1))
        assert before - 3 <= len(alive) <= 102, number


@pytest.mark.parametrize("forget", ["drop", "clear"])
def test_what_is_forgotten_is_not_found(forget: str) -> None:
    cache = RecentCache[int, int](4)
    for number in range(6):
        cache.put(number, number)
    if forget == "clear":
        cache.clear()
    else:
        for number in range(6):
            cache.drop(number)
    assert [cache.get(number) for number in range(6)] == [None] * 6


def test_a_value_that_was_dropped_is_kept_alive_nowhere() -> None:
    cache, alive = RecentCache[int, Kept](10), weakref.WeakSet[Kept]()
    for number in range(26):
        value = Kept()
        alive.add(value)
        cache.put(number, value)
    del value
    assert len(alive) > 10 / 2
    for number in range(26):
        cache.drop(number)
    assert len(alive) == 0


def test_after_it_was_cleared_nothing_is_kept_alive() -> None:
    cache, alive = RecentCache[int, Kept](10), weakref.WeakSet[Kept]()
    for number in range(26):
        value = Kept()
        alive.add(value)
        cache.put(number, value)
    del value
    cache.clear()
    assert len(alive) == 0
