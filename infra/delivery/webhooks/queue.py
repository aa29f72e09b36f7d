"""What an endpoint is to be sent next: lanes whose messages follow one another, and their heads by time."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from infra.delivery.webhooks.models import Message


class Queue:
    """The messages of one endpoint that are neither settled nor left in the log. Only heads of lanes are handed out."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._lanes: dict[UUID, deque[Message]] = {}
        # Heads that were never tried, in order; and those whose time comes again, by that.
        self._fresh: deque[Message] = deque()
        self._again: list[tuple[float, int, Message]] = []
        self._numbers = itertools.count()

    @property
    def has_fresh(self) -> bool:
        """Whether there is a message that was never tried."""
        return bool(self._fresh)

    @property
    def next_due(self) -> float | None:
        """When the next message is due that was tried before, or asked for, in seconds since 1970."""
        return self._again[0][0] if self._again else None

    def add(self, message: Message) -> bool:
        """Put a message at the end of its lane; tell whether it must wait behind one that waits itself."""
        lane = self._lanes.setdefault(message.lane, deque())
        lane.append(message)
        if lane[0] is message:
            self._line_up(message)
        return lane[0].kept and not message.kept

    def next(self, now: float, *, fresh: bool) -> Message | None:
        """Hand out a message that is due; one that was never tried only if `fresh`."""
        if self._again and self._again[0][0] <= now:
            return heapq.heappop(self._again)[2]
        return self._fresh.popleft() if fresh and self._fresh else None

    def again(self, message: Message) -> None:
        """Take back a message that was handed out, for when it is due."""
        heapq.heappush(self._again, (message.due, next(self._numbers), message))

    def leave(self, message: Message) -> None:
        """Drop a message that was handed out and is settled; the next one's turn has come."""
        lane = self._lanes[message.lane]
        lane.popleft()
        if lane:
            self._line_up(lane[0])
        else:
            del self._lanes[message.lane]

    def lane(self, message: Message) -> Iterator[Message]:
        """Return a message and all that follow it in its lane."""
        return iter(self._lanes[message.lane])

    def bring_forward(self, now: float) -> None:
        """Let everything be due that was to wait longer."""
        self._again = [(min(due, now), number, message) for due, number, message in self._again]
        heapq.heapify(self._again)

    def _line_up(self, message: Message) -> None:
        # What somebody asked for has a lane of its own, and goes at once: it is no probe, and waits for none.
        if message.attempts == 0 and message.lane != message.message_id:
            self._fresh.append(message)
        else:
            self.again(message)
