"""The queue of one endpoint: what follows what for each ordering key, and the first messages by time."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from infra.delivery.webhooks.models import Message


class MessageQueue:
    """The open and parked messages of one endpoint. Only the first message of an ordering key is handed out."""

    def __init__(self) -> None:
        """Begin empty."""
        self._by_key: dict[UUID, deque[Message]] = {}
        # First messages that were never tried, in order; first messages that were, and tests, by the time of the next
        # attempt.
        self._fresh: deque[Message] = deque()
        self._retries: list[tuple[float, int, Message]] = []
        self._tests: list[tuple[float, int, Message]] = []
        self._numbers = itertools.count()

    @property
    def has_fresh(self) -> bool:
        """Whether there is a message that was never tried."""
        return bool(self._fresh)

    @property
    def next_due(self) -> float | None:
        """When the next message that is no test is due, in seconds since 1970."""
        if self._fresh:
            return 0.0
        return self._retries[0][0] if self._retries else None

    @property
    def next_test_due(self) -> float | None:
        """When the next test is due, in seconds since 1970."""
        return self._tests[0][0] if self._tests else None

    def add(self, message: Message) -> bool:
        """Add a message behind all others of its ordering key; return whether it must be parked behind a parked one."""
        queue = self._by_key.setdefault(message.ordering_key, deque())
        queue.append(message)
        if queue[0] is message:
            self._schedule(message)
        return queue[0].parked and not message.parked

    def next(self, now: float, *, only_tests: bool) -> Message | None:
        """Hand out a message that is due, or only a test."""
        if self._tests and self._tests[0][0] <= now:
            return heapq.heappop(self._tests)[2]
        if only_tests:
            return None
        if self._retries and self._retries[0][0] <= now:
            return heapq.heappop(self._retries)[2]
        return self._fresh.popleft() if self._fresh else None

    def retry(self, message: Message) -> None:
        """Take back a message that was handed out, and hand it out again when it is due."""
        heap = self._tests if message.position is None else self._retries
        heapq.heappush(heap, (message.due, next(self._numbers), message))

    def remove(self, message: Message) -> None:
        """Remove a message that was handed out; the next one of its ordering key follows."""
        queue = self._by_key[message.ordering_key]
        queue.popleft()
        if queue:
            self._schedule(queue[0])
        else:
            del self._by_key[message.ordering_key]

    def from_message_on(self, message: Message) -> Iterator[Message]:
        """Return a message that was handed out, and all that follow it under its ordering key."""
        return iter(self._by_key[message.ordering_key])

    def bring_forward(self, now: float) -> None:
        """Make every retry due now."""
        self._retries = [(min(due, now), number, message) for due, number, message in self._retries]
        heapq.heapify(self._retries)

    def _schedule(self, message: Message) -> None:
        if message.attempts == 0 and message.position is not None and not message.replayed:
            self._fresh.append(message)
        else:
            self.retry(message)
