"""Live subscriptions: the newest events of a ledger, read once for all its followers in a process.

    LiveSubscription     one ledger's newest events, each encoded once; a follower keeps only its own position
    LiveSubscriptions    the subscriptions of a process: one for each ledger that has a follower

A follower asks for the events after its position, and waits for more. A subscription never waits for a follower: one
that is too slow gets `FellBehind` once its next event has been dropped, and continues from the log itself.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from infra.ending import cancelled
from infra.errors import Unavailable
from infra.eventstore.notifications import Listener
from projections.engine.page import PositionGap

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from domain.recorded import RecordedEvent
    from infra.eventstore.reader import EventReader
    from infra.postgres.pool import Database

    # Encodes events of a ledger for followers. What it looks up for that must be as new, when it returns, as the last
    # change that this process has heard of; after later changes, `forget_encoded` is called.
    Encode = Callable[[int, Sequence[RecordedEvent]], Awaitable[Sequence[bytes]]]

PAGE_EVENTS: Final = 200
# What one subscription keeps at most, and what all subscriptions of a process keep together.
KEPT_EVENTS: Final = 4_096
KEPT_BYTES: Final = 4 * 1024 * 1024
KEPT_EVENTS_IN_ALL: Final = 65_536
KEPT_BYTES_IN_ALL: Final = 64 * 1024 * 1024
KEPT_EVENTS_LEAST: Final = 256
# How many events before the head are read at the start, for followers that come back after a restart.
READ_AHEAD_EVENTS: Final = 256
# The time between polls of the log, and between attempts while the database is away.
POLL_S: Final = 1.0
# Events that are recorded during the pause after a read are read and sent together. The pause grows with the number of
# followers, because each must be sent the events, and of subscriptions, because each commit wakes all of them.
PAUSE_S_PER_READER: Final = 0.0002
PAUSE_S_PER_SUBSCRIPTION: Final = 0.002
PAUSE_S_MAX: Final = 0.25

STOPPING: Final = "The server is stopping."

log = logging.getLogger(__name__)


class FellBehind(Exception):
    """The follower's next event was dropped; the log still has it."""


@dataclass(slots=True)
class LiveEvent:
    """An event, and its encoding for followers; that is empty after `forget_encoded`."""

    recorded: RecordedEvent
    encoded: bytes


class LiveSubscription:
    """The newest events of one ledger.

    Attributes:
        ledger_id: the ledger.
        position: the last position that was read.
        readers: how many follow.
        woken: set when something was committed, so that it reads on.
        failure: why it stopped reading; followers raise it.
        kept_events, kept_bytes: how much it keeps at most.
        pause_s: the seconds between two reads.

    """

    def __init__(self, ledger_id: int, events: EventReader, encode: Encode) -> None:
        """Prepare; `LiveSubscriptions` runs it."""
        self.ledger_id = ledger_id
        self.position = 0
        self.readers = 0
        self.woken = asyncio.Event()
        self.failure: Exception | None = None
        self.kept_events, self.kept_bytes = KEPT_EVENTS, KEPT_BYTES
        self.pause_s = 0.0
        self._events = events
        self._encode = encode
        self._entries: list[LiveEvent] = []
        self._bytes = 0
        self._kept_after = 0
        self._events_read = asyncio.Event()
        self._begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def keeps(self, position: int) -> bool:
        """Return whether all events after a position that were read are kept."""
        return position >= self._kept_after

    def after(self, position: int, limit: int) -> Sequence[LiveEvent]:
        """Return the next events after a position, at most `limit`; none if none were read yet.

        Raises:
            FellBehind: the next event was dropped.

        """
        if position < self._kept_after:
            raise FellBehind
        begin = position - self._kept_after
        return self._entries[begin : begin + limit]

    async def encoded(self, entries: Sequence[LiveEvent]) -> list[bytes]:
        """Return the encodings of events; those that were forgotten are made again, and kept."""
        forgotten = [entry for entry in entries if not entry.encoded]
        if forgotten:
            page = [entry.recorded for entry in forgotten]
            for entry, encoded in zip(forgotten, await self._encode(self.ledger_id, page), strict=True):
                # Meanwhile another follower may have had it encoded, or it may have been dropped.
                if entry.recorded.position > self._kept_after:
                    self._bytes += len(encoded) - len(entry.encoded)
                entry.encoded = encoded
        return [entry.encoded for entry in entries]

    def forget_encoded(self) -> None:
        """Drop all encodings: what was looked up for them has changed."""
        for entry in self._entries:
            entry.encoded = b""
        self._bytes = 0

    async def wait_for_events(self) -> None:
        """Wait until events were read, or `notify` was called."""
        await self._events_read.wait()

    def notify(self) -> None:
        """Wake every follower that waits."""
        self._events_read.set()
        self._events_read.clear()

    async def begun(self) -> None:
        """Wait until the head of the log was reached for the first time.

        Raises:
            Unavailable: the database is away, or the server is stopping.

        """
        await asyncio.shield(self._begun)

    async def run(self) -> None:
        """Read until cancelled, or until an event cannot be read."""
        try:
            head = await self._events.head(self.ledger_id)
            self.position = self._kept_after = max(0, head - READ_AHEAD_EVENTS)
            await self._read()
            self._begun.set_result(None)
            while True:
                await self._follow()
        except Exception as error:
            if not isinstance(error, Unavailable):
                log.exception(
                    "The live subscription to ledger %s cannot read past position %s", self.ledger_id, self.position
                )
            self.failure = error
            self._not_begun(error)
            self.notify()
        except asyncio.CancelledError:
            self._not_begun(Unavailable(STOPPING))
            raise

    def _not_begun(self, error: Exception) -> None:
        """Raise an error in those that wait for `begun`."""
        if not self._begun.done():
            self._begun.set_exception(error)
            self._begun.exception()  # else asyncio would log that nobody waited

    async def _follow(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_S):
                await self.woken.wait()
        self.woken.clear()
        try:
            await self._read()
        except Unavailable as unavailable:
            log.warning("The live subscription to ledger %s failed and is retried: %s", self.ledger_id, unavailable)
            await asyncio.sleep(POLL_S)
        else:
            await asyncio.sleep(self.pause_s)

    async def _read(self) -> None:
        page_events = PAGE_EVENTS
        while page_events == PAGE_EVENTS:
            page = await self._events.page(self.ledger_id, after=self.position, limit=PAGE_EVENTS)
            page_events = len(page)
            if page_events == 0:
                return
            if page[0].position != self.position + 1:
                message = (
                    f"Ledger {self.ledger_id} returned position {page[0].position} after position {self.position}."
                )
                raise PositionGap(message)
            encoded = await self._encode(self.ledger_id, page)
            self._entries += map(LiveEvent, page, encoded)
            self._bytes += sum(map(len, encoded))
            self.position = page[-1].position
            self._forget()
            self.notify()

    def _forget(self) -> None:
        """Drop the oldest events beyond the limits."""
        first = 0
        while len(self._entries) - first > self.kept_events or self._bytes > self.kept_bytes:
            self._bytes -= len(self._entries[first].encoded)
            first += 1
        del self._entries[:first]
        self._kept_after += first


class LiveSubscriptions:
    """The subscriptions of one process."""

    def __init__(self, events: EventReader, encode: Encode, database: Database | None = None) -> None:
        """Prepare; nothing runs until a ledger is followed.

        Args:
            events: reads the log.
            encode: encodes events for followers.
            database: where to listen for commits; None if the caller listens itself and calls `wake`.

        """
        self._listener: Listener | None = None
        self._database = database
        self._events = events
        self._encode = encode
        self._subscriptions: dict[int, tuple[LiveSubscription, asyncio.Task[None]]] = {}

    @asynccontextmanager
    async def following(self, ledger_id: int) -> AsyncIterator[LiveSubscription]:
        """Follow a ledger; its subscription runs while it has followers."""
        subscription, running = self._subscriptions.get(ledger_id) or self._start(ledger_id)
        subscription.readers += 1
        self._share_out()
        try:
            await subscription.begun()
            yield subscription
        finally:
            subscription.readers -= 1
            if subscription.readers == 0:
                running.cancel()
                self._drop(subscription)
            self._share_out()

    def position(self, ledger_id: int) -> int:
        """Return the last position that was read of a ledger; 0 if it is not followed."""
        known = self._subscriptions.get(ledger_id)
        return 0 if known is None else known[0].position

    def wake(self) -> None:
        """Read on: something was committed."""
        for subscription, _ in self._subscriptions.values():
            subscription.woken.set()

    def forget_encoded(self) -> None:
        """Drop all encodings: what was looked up for them has changed."""
        for subscription, _ in self._subscriptions.values():
            subscription.forget_encoded()

    def notify(self) -> None:
        """Wake every follower that waits."""
        for subscription, _ in self._subscriptions.values():
            subscription.notify()

    async def close(self) -> None:
        """End every subscription; its followers get no more events."""
        running = [task for _, task in self._subscriptions.values()]
        self._subscriptions.clear()
        await cancelled(running)
        if self._listener is not None:
            listener, self._listener = self._listener, None
            await listener.stop()

    def _start(self, ledger_id: int) -> tuple[LiveSubscription, asyncio.Task[None]]:
        if self._listener is None and self._database is not None:
            self._listener = Listener(self._database.conninfo, self._database.role, self.wake)
            self._listener.start()
        subscription = LiveSubscription(ledger_id, self._events, self._encode)
        task = asyncio.create_task(subscription.run(), name=f"subscription of ledger {ledger_id}")
        # One that ended by itself is dropped, so that the next follower starts a new one.
        task.add_done_callback(lambda _: self._drop(subscription))
        self._subscriptions[ledger_id] = started = subscription, task
        return started

    def _drop(self, subscription: LiveSubscription) -> None:
        known = self._subscriptions.get(subscription.ledger_id)
        if known is not None and known[0] is subscription:
            del self._subscriptions[subscription.ledger_id]

    def _share_out(self) -> None:
        """Set the limits and pauses, so that they hold for all subscriptions together."""
        count = len(self._subscriptions)
        for subscription, _ in self._subscriptions.values():
            subscription.kept_events = max(KEPT_EVENTS_LEAST, min(KEPT_EVENTS, KEPT_EVENTS_IN_ALL // count))
            subscription.kept_bytes = min(KEPT_BYTES, KEPT_BYTES_IN_ALL // count)
            subscription.pause_s = min(
                PAUSE_S_MAX, PAUSE_S_PER_READER * subscription.readers + PAUSE_S_PER_SUBSCRIPTION * count
            )
