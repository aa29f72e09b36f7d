"""How much one key may ask, and how many places it may take, in bounded memory.

The counts are those of one process: with several API processes each grants its own share.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

K = TypeVar("K")

# Keys remembered; one that is forgotten begins with a full bucket.
MAX_KEYS: Final = 10_000

# Distinct codes that nobody recorded. A spreadsheet of old codes is within it.
UNKNOWN_CODES_AT_ONCE: Final = 500
UNKNOWN_CODES_PER_SECOND: Final = 1 / 3
# Those of all keys that are remembered, about 200 bytes each; one that is forgotten costs again.
MAX_REMEMBERED_CODES: Final = 100_000
_REMEMBERED_BYTES: Final = 12


class Limit(Generic[K]):
    """A bucket for each key: so many at once, and so many a second after that."""

    def __init__(self, at_once: float, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with full buckets."""
        self._at_once = at_once
        self._per_second = per_second
        self._clock = clock
        self._buckets: OrderedDict[K, tuple[float, float]] = OrderedDict()

    @property
    def policy(self) -> tuple[int, int]:
        """Return how many are let through at once, and in how many seconds an empty bucket is full again."""
        return int(self._at_once), max(1, round(self._at_once / self._per_second))

    def wait_s(self, key: K) -> float:
        """Return the seconds until the key has a token; 0 where it has one."""
        return max(0.0, (1 - self._tokens(key)) / self._per_second)

    def take_or_wait_s(self, key: K) -> float:
        """Take a token if the key has one, and return 0; otherwise return the seconds until it has one."""
        now = self._clock()
        tokens, since = self._buckets.get(key, (self._at_once, now))
        tokens = min(self._at_once, tokens + (now - since) * self._per_second)
        if tokens < 1:
            return (1 - tokens) / self._per_second
        self._keep(key, tokens - 1, now)
        return 0.0

    def take(self, key: K) -> None:
        """Take a token, on credit where there is none: what was let in together is paid for together."""
        self._keep(key, self._tokens(key) - 1, self._clock())

    def _keep(self, key: K, tokens: float, now: float) -> None:
        self._buckets[key] = (tokens, now)
        self._buckets.move_to_end(key)
        if len(self._buckets) > MAX_KEYS:
            self._buckets.popitem(last=False)

    def give_back(self, key: K) -> None:
        """Give a token back; the bucket is never fuller than full."""
        self._buckets[key] = (min(self._at_once, self._tokens(key) + 1), self._clock())

    def _tokens(self, key: K) -> float:
        known = self._buckets.get(key)
        if known is None:
            return self._at_once
        tokens, since = known
        return min(self._at_once, tokens + (self._clock() - since) * self._per_second)


class GuessLimit(Limit[K]):
    """A bucket for each key from which every distinct miss takes a token; a miss that is repeated is remembered."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, remembered: int = MAX_REMEMBERED_CODES) -> None:
        """Begin with full buckets, and nothing remembered."""
        super().__init__(UNKNOWN_CODES_AT_ONCE, UNKNOWN_CODES_PER_SECOND, clock)
        self._limit = remembered
        # Codes are remembered by a hash that nobody else can compute.
        self._hash_key = secrets.token_bytes(16)
        self._missed: OrderedDict[tuple[K, bytes], None] = OrderedDict()

    def is_new(self, key: K, code: str) -> bool:
        """Remember a code that a key has missed; false where it is remembered already."""
        hashed = hashlib.blake2b(code.encode(), digest_size=_REMEMBERED_BYTES, key=self._hash_key).digest()
        known = (key, hashed) in self._missed
        self._missed[key, hashed] = None
        self._missed.move_to_end((key, hashed))
        if len(self._missed) > self._limit:
            self._missed.popitem(last=False)
        return not known


class Slots(dict[K, int]):
    """How many places each key takes of those that all share; one that takes none is not in it."""

    def taken(self, key: K) -> int:
        """Return how many places a key takes."""
        return self.get(key, 0)

    def take(self, key: K, places: int = 1) -> None:
        """Take places."""
        self[key] = self.get(key, 0) + places

    def give_back(self, key: K, places: int = 1) -> None:
        """Give places back that were taken."""
        left = self[key] - places
        if left:
            self[key] = left
        else:
            del self[key]
