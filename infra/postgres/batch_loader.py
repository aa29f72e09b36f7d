"""Batching of look-ups: keys that wait together become one query."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from infra.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

K = TypeVar("K")
V = TypeVar("V")

# The most keys of one query.
MAX_BATCHED: Final = 256


class BatchLoader(Generic[K, V]):
    """Looks keys up one by one for its callers, and many at a time in the database.

    Keys that are asked for while a query runs are looked up by the next one, for each ledger by itself.
    """

    def __init__(self, fetch: Callable[[int, Sequence[K]], Awaitable[Mapping[K, V]]]) -> None:
        """Take the query: for a ledger and keys, it returns what it finds by key."""
        self._fetch = fetch
        self._waiting: dict[int, dict[K, list[asyncio.Future[V | None]]]] = {}
        self._running: set[asyncio.Task[None]] = set()

    async def __call__(self, ledger_id: int, key: K) -> V | None:
        """Look one key up; return `None` if nothing is found."""
        answer: asyncio.Future[V | None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.get(ledger_id)
        if waiting is None:
            self._waiting[ledger_id] = {key: [answer]}
            task = asyncio.create_task(self._drain(ledger_id))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        else:
            waiting.setdefault(key, []).append(answer)
        return await answer

    async def _drain(self, ledger_id: int) -> None:
        while self._waiting[ledger_id]:
            waiting = self._waiting[ledger_id]
            keys = list(waiting)[:MAX_BATCHED]
            batch = {key: waiting.pop(key) for key in keys}
            error = await self._answer(ledger_id, batch)
            if error is not None and len(batch) > 1 and not isinstance(error, Unavailable):
                # One of the keys is at fault: it must not keep the others from their results.
                for key, answers in batch.items():
                    await self._answer(ledger_id, {key: answers}, last=True)
            elif error is not None:
                _fail(batch, error)
        del self._waiting[ledger_id]

    async def _answer(
        self, ledger_id: int, batch: Mapping[K, list[asyncio.Future[V | None]]], *, last: bool = False
    ) -> Exception | None:
        """Look a batch up and answer its callers; return the error of the query, which `last` raises in the callers."""
        try:
            found = await self._fetch(ledger_id, list(batch))
        except Exception as error:  # noqa: BLE001 - the callers get it
            if last:
                _fail(batch, error)
            return error
        for key, answers in batch.items():
            for answer in answers:
                if not answer.done():
                    answer.set_result(found.get(key))
        return None


def _fail(batch: Mapping[Any, list[asyncio.Future[Any]]], error: Exception) -> None:
    for answers in batch.values():
        for answer in answers:
            if not answer.done():
                answer.set_exception(error)
