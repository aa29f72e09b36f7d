"""Places: shared room for requests that last, such as exports, with a share for each ledger and each key.

A ledger gets half of the places at most, and a key half of its ledger's, so that nobody keeps all others out. A request
that finds its ledger's share or all places taken waits a few seconds. A free place goes to the ledger that has the
fewest, and there to the request that has waited longest.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from api.http.limits import Slots
from api.http.problems import Problem
from infra.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from uuid import UUID

WAIT_S: Final = 5.0
MIB: Final = 1024 * 1024
# Of one process. Of a key also those that wait, which take no memory yet.
MAX_PAGES: Final = 16
MAX_PAGES_OF_A_LEDGER: Final = MAX_PAGES // 2
MAX_PAGES_OF_A_KEY: Final = 500
RETRY_AFTER_S: Final = 10


@dataclass(frozen=True, slots=True)
class PlaceFigures:
    """How the places of one kind are taken.

    Attributes:
        places: how many there are.
        share: how many of them one ledger can take.
        held: how many each ledger holds; those that hold none are left out.
        keys: how many each key holds or waits for.
        waiting: how many requests of each ledger wait for a place.

    """

    places: int
    share: int
    held: Mapping[int, int]
    keys: Mapping[UUID, int]
    waiting: Mapping[int, int]


class Places:
    """The places of one kind, of one process.

    Attributes:
        most: how many there are.
        of_a_ledger: how many of them one ledger can take.
        of_a_key: how many of them one key can take or wait for.
        wait_s: how long a request waits for one, in seconds.

    """

    def __init__(
        self, what: str, most: int, of_a_ledger: int, of_a_key: int, retry_after_s: int = RETRY_AFTER_S
    ) -> None:
        """Begin with all places free; `what` takes them is named in refusals, in the plural."""
        self.most = most
        self.of_a_ledger = of_a_ledger
        self.of_a_key = of_a_key
        self.wait_s = WAIT_S
        self._what = what
        self._retry_after_s = retry_after_s
        self._held = 0
        self._ledgers: Slots[int] = Slots()
        self._keys: Slots[UUID] = Slots()
        # Of each ledger that waits: who waits, the longest first.
        self._queues: dict[int, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def place(self, ledger_id: int, key_id: UUID) -> AsyncIterator[None]:
        """Hold a place for as long as the context lasts; raises what `enter` does."""
        await self.enter(ledger_id, key_id)
        try:
            yield
        finally:
            self.leave(ledger_id, key_id)

    async def enter(self, ledger_id: int, key_id: UUID) -> None:
        """Take a place, which must be given back with `leave`.

        Raises:
            Problem: the share of the key or of its ledger is taken.
            Unavailable: all places are taken.

        """
        if self._keys.taken(key_id) >= self.of_a_key:
            raise self._too_many("key", self.of_a_key)
        self._keys.take(key_id)
        try:
            if self._has_room(ledger_id):
                self._occupy(ledger_id)
            else:
                await self._wait(ledger_id)
        except BaseException:
            self._keys.give_back(key_id)
            raise

    def leave(self, ledger_id: int, key_id: UUID) -> None:
        """Give a place back, to the one that waits and holds the fewest."""
        self._held -= 1
        self._ledgers.give_back(ledger_id)
        self._keys.give_back(key_id)
        self._hand_out()

    def figures(self) -> PlaceFigures:
        """Return how the places are taken."""
        waiting = {ledger_id: len(queue) for ledger_id, queue in self._queues.items()}
        return PlaceFigures(self.most, self.of_a_ledger, self._ledgers.copy(), self._keys.copy(), waiting)

    def _has_room(self, ledger_id: int) -> bool:
        return self._held < self.most and self._ledgers.taken(ledger_id) < self.of_a_ledger

    def _occupy(self, ledger_id: int) -> None:
        self._held += 1
        self._ledgers.take(ledger_id)

    async def _wait(self, ledger_id: int) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue = self._queues.setdefault(ledger_id, deque())
        queue.append(waiter)
        try:
            async with asyncio.timeout(self.wait_s):
                await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled():
                # It got its place in the moment in which it gave up.
                self._held -= 1
                self._ledgers.give_back(ledger_id)
                self._hand_out()
            else:
                self._forget(ledger_id, waiter)
            if not isinstance(error, TimeoutError):
                raise
            if self._ledgers.taken(ledger_id) >= self.of_a_ledger:
                raise self._too_many("ledger", self.of_a_ledger) from None
            raise Unavailable(self._taken("server", self.most), self._retry_after_s) from None

    def _hand_out(self) -> None:
        while waiting := [ledger_id for ledger_id in self._queues if self._has_room(ledger_id)]:
            # Of ledgers that hold as many, the one that has waited longest comes first: it is earlier in the dict.
            ledger_id = min(waiting, key=self._ledgers.taken)
            waiter = self._queues[ledger_id][0]
            self._forget(ledger_id, waiter)
            if not waiter.done():
                self._occupy(ledger_id)
                waiter.set_result(None)

    def _forget(self, ledger_id: int, waiter: asyncio.Future[None]) -> None:
        queue = self._queues.get(ledger_id, deque())
        if waiter in queue:
            queue.remove(waiter)
            del self._queues[ledger_id]
            if queue:
                # At the end of the dict: the next place goes to another ledger that holds as few.
                self._queues[ledger_id] = queue

    def _too_many(self, whose: str, most: int) -> Problem:
        return Problem("too_many_requests", self._taken(whose, most), headers={"Retry-After": str(self._retry_after_s)})

    def _taken(self, whose: str, most: int) -> str:
        return f"This {whose} already has {most:,} {self._what}, which is the maximum. Try again when one has ended."


def page_places() -> Places:
    """Return the places of histories and pages of the trail that are being read, all of them free.

    While it is read, each takes several times the memory of its answer. More at a time would not be read faster.
    """
    return Places("histories or pages in progress", MAX_PAGES, MAX_PAGES_OF_A_LEDGER, MAX_PAGES_OF_A_KEY)


class UploadBytes:
    """How many bytes of uploads a process keeps on disk, in all and of each ledger.

    Attributes:
        most: how many of all ledgers.
        of_a_ledger: how many of one ledger.

    """

    def __init__(self, most: int, of_a_ledger: int) -> None:
        """Begin with none."""
        self.most = most
        self.of_a_ledger = of_a_ledger
        self._kept = 0
        self._ledgers: Slots[int] = Slots()

    def keep(self, ledger_id: int, size: int) -> None:
        """Count bytes that are about to be kept.

        Raises:
            Problem: the ledger has as many as it may.
            Unavailable: all ledgers together do.

        """
        if self._ledgers.taken(ledger_id) + size > self.of_a_ledger:
            detail = (
                f"The batches of this ledger that are in progress have {self.of_a_ledger // MIB} MiB, which is the "
                "maximum. Try again when one has ended."
            )
            headers = {"Retry-After": str(RETRY_AFTER_S), "Connection": "close"}
            raise Problem("too_many_requests", detail, headers=headers)
        if self._kept + size > self.most:
            detail = (
                f"This server already has {self.most // MIB} MiB of batches in progress, which is the maximum. Try "
                "again in a moment."
            )
            raise Unavailable(detail, RETRY_AFTER_S)
        self._kept += size
        if size:
            self._ledgers.take(ledger_id, size)

    def drop(self, ledger_id: int, size: int) -> None:
        """Count bytes that are kept no longer."""
        self._kept -= size
        if size:
            self._ledgers.give_back(ledger_id, size)

    def figures(self) -> PlaceFigures:
        """Return how many bytes are kept of each ledger."""
        return PlaceFigures(self.most, self.of_a_ledger, self._ledgers.copy(), {}, {})
