"""A bounded cache of the values used last."""

from __future__ import annotations

from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class RecentCache(Generic[K, V]):
    """A cache of the values used last, in two generations.

    A value that is found in the old generation moves to the young one. When the young generation is full it becomes the
    old one, and what was left in the old one is dropped. A hit costs no more than a look-up in a plain dict; an exact
    order of use would have to be written with every hit.

    What is dropped is freed one by one, with each value that is put: to free ten thousand aggregates at once held
    everything up for 30 to 60 ms.
    """

    def __init__(self, limit: int) -> None:
        """Remember at most `limit` values, and at least the half of that which was used last."""
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}
        # Found no more, only freed. Together they are never more than the limit.
        self._dropped: dict[K, V] = {}
        self._half = max(1, limit // 2)

    def get(self, key: K) -> V | None:
        """Return what is remembered under a key."""
        value = self._young.get(key)
        if value is None:
            value = self._old.pop(key, None)
            if value is not None:
                self.put(key, value)
        return value

    def drop(self, key: K) -> None:
        """Forget what is remembered under a key."""
        self._young.pop(key, None)
        self._old.pop(key, None)
        # It may be a key that was destroyed, of which nothing is to stay in memory.
        self._dropped.pop(key, None)

    def clear(self) -> None:
        """Forget everything."""
        self._young.clear()
        self._old.clear()
        self._dropped.clear()

    def put(self, key: K, value: V) -> V:
        """Remember a value, and return it."""
        young = self._young
        young[key] = value
        if self._dropped:
            self._dropped.popitem()
        if len(young) > self._half:
            self._dropped, self._old, self._young = self._old, young, {key: value}
            del young[key]
        return value
