"""The sender of one endpoint: it delivers a ledger's events at least once, in order for each ordering key.

    log ──▶ open ──sent──▶ acknowledged
              │ failed
              ▼
            parked, with all that follow under its ordering key ──retried, after 5 s … 10 h──▶ acknowledged
              │ failed for the last time
              ▼
            dead: listed for the owner, who may replay it

The ordering key is the stream: a code, or a creator's permission. Messages of one key are sent one after the other,
messages of different keys at the same time. When nothing is accepted any more, the endpoint counts as down: one message
now and then is sent as a probe, retried or new, and the others wait.

Progress is written a moment after messages are acknowledged. A sender that is killed in between sends those once more,
with the same ids.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from infra.delivery.webhooks.delivery_store import LeaseLost, ProgressBuffer
from infra.delivery.webhooks.http_target import HttpResult
from infra.delivery.webhooks.models import DeliveryAttempt, Message
from infra.delivery.webhooks.queue import MessageQueue
from infra.delivery.webhooks.signing import HEADERS, payload, payload_of_test, signed_headers
from infra.errors import Unavailable, Unreadable
from infra.eventstore.event_filter import EventFilter
from infra.eventstore.serialization import UnreadableEvent
from projections.index_scan import Among

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from domain.recorded import RecordedEvent
    from infra.delivery.webhooks.delivery_store import DeliveryStore
    from infra.delivery.webhooks.http_target import HttpTarget
    from infra.delivery.webhooks.models import (
        DeliveryOutcome,
        DeliveryPolicy,
        DeliveryProgress,
        DisabledReason,
        Endpoint,
    )
    from infra.eventstore.aggregate_reader import AggregateReader
    from infra.eventstore.live_subscription import LiveSubscription, LiveSubscriptions
    from infra.eventstore.reader import EventReader

GONE: Final = 410
PAGE_EVENTS: Final = 100
# Pages that are read in a row before other tasks get a turn.
PAGES_IN_A_ROW: Final = 10
# Between attempts to reach the database while it is unavailable.
DATABASE_RETRY_S: Final = 1.0
# Between attempts to send an event that this version of the program cannot read.
UNREADABLE_RETRY_S: Final = 60.0
# How long requests in flight may take to finish when the sender is cancelled.
DRAIN_S: Final = 1.0
# The longest pause between two rounds.
IDLE_S_MAX: Final = 5.0

log = logging.getLogger(__name__)


class Sender:
    """Sends to one endpoint for as long as `run` runs."""

    def __init__(
        self,
        endpoint: Endpoint,
        progress: DeliveryProgress,
        target: HttpTarget,
        secrets: Callable[[], Sequence[bytes]],
        seal: Callable[[bytes], bytes],
        *,
        store: DeliveryStore,
        events: EventReader,
        aggregates: AggregateReader,
        live_subscriptions: LiveSubscriptions,
        policy: DeliveryPolicy,
        public_url: str | None,
    ) -> None:
        """Prepare to send.

        Args:
            endpoint: the endpoint, and which events it wants.
            progress: how far it has come.
            target: its URL.
            secrets: returns the secrets that sign a message now, the newest first.
            seal: encrypts what a receiver answers.
            store: where progress is read and written.
            events: where events are read.
            aggregates: where creators are read.
            live_subscriptions: the newest events of each ledger.
            policy: the limits and pauses.
            public_url: where the API is reached, if known.

        """
        self.endpoint = endpoint
        self._target = target
        self._secrets = secrets
        self._seal = seal
        self._store = store
        self._events = events
        self._aggregates = aggregates
        self._live_subscriptions = live_subscriptions
        self._policy = policy
        self._public_url = public_url
        conditions = (("type", endpoint.types), ("creator_id", endpoint.creator_ids))
        self._filter = EventFilter([Among(field, tuple(values)) for field, values in conditions if values])  # type: ignore[arg-type] # both are fields
        # The last position that was read, and the open messages up to there, in order.
        self._read = progress.position
        self._open: dict[int, Message] = {}
        self._queue = MessageQueue()
        # The parked messages; and those that the store already has beyond the position where reading begins.
        self._parked: set[UUID] = set()
        self._stored_ahead: set[UUID] = set()
        self._in_flight: set[asyncio.Task[None]] = set()
        self._told_unreadable: set[UUID] = set()
        self._failures = progress.failures
        self._delivered_at = progress.delivered_at
        self._paused_until = progress.paused_until.timestamp() if progress.paused_until else 0.0
        # While the endpoint is down: when the next probe may be sent, and how many were sent in a row.
        self._probe_at = 0.0
        self._probes = progress.failures
        self._progress = ProgressBuffer(store, endpoint, progress, policy.write_s)
        self._disabled = self._stopping = self._must_reload = self._must_retry = False
        self._defect: BaseException | None = None
        self._wake = asyncio.Event()

    # -- The loop

    async def run(self) -> None:
        """Send until it is stopped or cancelled, or the webhook is disabled.

        Raises:
            LeaseLost: another sender has taken over.

        """
        async with self._live_subscriptions.following(self.endpoint.ledger_id) as live:
            listening = asyncio.create_task(self._listen(live))
            try:
                await self._prepare()
                while not (self._ended and self._progress.is_written(self._position)):
                    await self._round(live)
            finally:
                listening.cancel()
                await self._drain()

    def stop(self) -> None:
        """Send nothing new, and end when all requests in flight have finished."""
        self._stopping = True
        self._wake.set()

    def reload(self, endpoint: Endpoint) -> None:
        """Fetch the messages that the owner has added, a test or replays, and retry all where the owner asks for it."""
        self._must_retry = self._must_retry or endpoint.retried != self.endpoint.retried
        self.endpoint = endpoint
        self._must_reload = True
        self._wake.set()

    @property
    def _ended(self) -> bool:
        return (self._stopping or self._disabled) and not self._in_flight

    @property
    def _position(self) -> int:
        """The position up to which no message is open."""
        return next(iter(self._open)) - 1 if self._open else self._read

    async def _prepare(self) -> None:
        for creator_id in self._filter.creators:
            for recorded in (await self._aggregates.creator_stream(self.endpoint.ledger_id, creator_id))[:1]:
                self._filter.know(recorded)
        for message in await self._store.messages(self.endpoint.webhook_id, self._read):
            if message.position is not None and message.position > self._read:
                self._stored_ahead.add(message.message_id)
            if not message.dead:
                self._parked.add(message.message_id)
                self._queue.add(message)

    async def _reload_messages(self) -> None:
        self._must_reload = False
        for message in await self._store.messages(self.endpoint.webhook_id, self._read):
            if not message.dead and message.message_id not in self._parked:
                self._parked.add(message.message_id)
                self._queue.add(message)

    async def _round(self, live: LiveSubscription) -> None:
        try:
            if self._progress.in_doubt:
                # First of all: what the store has may depend on this write, such as the replay of a dead message.
                await self._write()
            if self._must_reload:
                await self._reload_messages()
            if self._must_retry:
                self._must_retry = False
                self._paused_until = self._failures = 0
                self._queue.bring_forward(time.time())
            await self._read_on(live)
            self._send_what_is_due()
            if self._ended or time.time() >= self._progress.due:
                await self._write()
        except Unavailable as unavailable:
            log.warning("Webhook %s is waiting for the database: %s", self.endpoint.webhook_id, unavailable)
            await asyncio.sleep(DATABASE_RETRY_S)
            return
        if self._defect is not None:
            raise self._defect
        if not self._ended:
            await self._wait_for_work()

    async def _listen(self, live: LiveSubscription) -> None:
        while True:
            await live.wait_for_events()
            self._wake.set()

    async def _wait_for_work(self) -> None:
        now = time.time()
        times = [now + IDLE_S_MAX, self._progress.due]
        if self._may_send:
            if (due := self._queue.next_test_due) is not None:
                times.append(max(due, self._paused_until))
            if (due := self._queue.next_due) is not None:
                times.append(max(due, self._paused_until, self._probe_at if self._is_down else 0.0))
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(times) - now)):
                await self._wake.wait()
        self._wake.clear()

    async def _write(self) -> None:
        self._parked -= await self._progress.write(self._position, self._failures, self._paused_until)

    async def _drain(self) -> None:
        """Give requests in flight a moment to finish, and write the progress."""
        if self._in_flight:
            await asyncio.wait(self._in_flight, timeout=DRAIN_S)
        for task in list(self._in_flight):
            task.cancel()
        with suppress(Unavailable, LeaseLost):
            while not self._progress.is_written(self._position):
                await self._write()

    # -- Reading

    async def _read_on(self, live: LiveSubscription) -> None:
        """Read the next events while there is room for them."""
        for _ in range(PAGES_IN_A_ROW):
            # Wait for room for half a page, so that pages are not tiny; never read more than there is room for.
            room = min(PAGE_EVENTS, self._room)
            if room < max(1, min(PAGE_EVENTS, self._policy.window) // 2):
                return
            if live.failure is not None:
                raise live.failure
            if live.keeps(self._read):
                entries = live.after(self._read, room)
                for entry in entries:
                    self._accept(entry.recorded, entry.encoded)
                read = len(entries)
            else:
                page = await self._events.page(self.endpoint.ledger_id, after=self._read, limit=room)
                for recorded in page:
                    self._accept(recorded, None)
                read = len(page)
            self._progress.advance(self._position)
            if read == 0:
                return
        self._wake.set()

    @property
    def _room(self) -> int:
        """The number of events that there is room for."""
        if self._stopping or self._disabled or len(self._parked) >= self._policy.waiting:
            return 0
        # While the endpoint is down, one new message at a time is enough.
        if self._is_down and self._queue.has_fresh:
            return 0
        return self._policy.window - len(self._open)

    def _accept(self, recorded: RecordedEvent, body: bytes | None) -> None:
        self._read = recorded.position
        if not self._filter.wants(recorded):
            return
        if recorded.event_id in self._stored_ahead:
            self._stored_ahead.discard(recorded.event_id)
            return
        unreadable = isinstance(recorded.event, UnreadableEvent)
        if not body and not unreadable:
            body = payload(recorded, self.endpoint.ledger_name, self.endpoint.history, self._public_url)
        message = Message(recorded.event_id, recorded.position, recorded.type, recorded.stream_id, body=body)
        self._open[recorded.position] = message
        if self._queue.add(message):
            self._park(message)

    # -- Sending

    @property
    def _is_down(self) -> bool:
        return self._failures >= self._policy.failing_after

    @property
    def _probe_pause_s(self) -> float:
        """The pause before the next probe: at first as before a retry, then `probe_s`."""
        retries_s = self._policy.retries_s
        return min(self._policy.probe_s, retries_s[min(self._probes, len(retries_s) - 1)])

    @property
    def _may_send(self) -> bool:
        return (
            not self._stopping
            and not self._disabled
            and len(self._in_flight) < (1 if self._is_down else self._policy.in_flight)
            and self._progress.attempts < self._policy.unwritten
        )

    def _send_what_is_due(self) -> None:
        now = time.time()
        while self._may_send and now >= self._paused_until:
            message = self._queue.next(now, only_tests=self._is_down and now < self._probe_at)
            if message is None:
                return
            if self._is_down and message.position is not None:
                self._probes += 1
                self._probe_at = now + self._probe_pause_s
            task = asyncio.create_task(self._attempt(message))
            self._in_flight.add(task)
            task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        if not task.cancelled():
            self._defect = self._defect or task.exception()
        self._wake.set()

    async def _attempt(self, message: Message) -> None:
        try:
            body = message.body or await self._body(message)
        except Unavailable:
            message.due = time.time() + DATABASE_RETRY_S
            self._queue.retry(message)
            self._probe_at = 0.0
            return
        except Unreadable as unreadable:
            await self._wait_for_another_version(message, unreadable)
            return
        at, began = datetime.now(UTC), time.monotonic()
        signed = signed_headers(str(message.message_id), int(at.timestamp()), body, self._secrets())
        try:
            history = {"ledger-history": str(self.endpoint.history)}
            result = await self._target.post(HEADERS | history | signed, body)
        except Exception as error:  # noqa: BLE001 - a defect fails only this message, and does not hold up the others
            # The text of the error is not logged, because it may contain what was sent.
            raised_at = traceback.extract_tb(error.__traceback__)[-1]
            log.error("Webhook %s: %s in %s", self.endpoint.webhook_id, type(error).__name__, raised_at)  # noqa: TRY400
            result = HttpResult(error="Something went wrong on our side.")
        duration_ms = round((time.monotonic() - began) * 1000)
        message.attempts = attempt = message.attempts + 1
        message.first_at = message.first_at or at
        message.status = result.status
        message.error = (
            None if result.delivered else result.error or f"The receiver responded with status {result.status}."
        )
        outcome = self._delivered(message) if result.delivered else self._failed(message, result)
        self._progress.log(
            DeliveryAttempt(
                message_id=message.message_id,
                position=message.position,
                type=message.type,
                attempt=attempt,
                at=at,
                outcome=outcome,
                status=message.status,
                error=message.error,
                duration_ms=duration_ms,
                answer=None if result.answer is None else self._seal(result.answer),
            )
        )

    async def _wait_for_another_version(self, message: Message, unreadable: Unreadable) -> None:
        """Park a message that this version of the program cannot send, until one that can is started.

        That is not the receiver's fault, and no attempt and no probe: the messages of other ordering keys go on.
        """
        self._probe_at = 0.0
        message.error = unreadable.detail
        message.due = time.time() + UNREADABLE_RETRY_S
        self._retry(message)
        if message.message_id not in self._told_unreadable:
            self._told_unreadable.add(message.message_id)
            log.error("Webhook %s: %s", self.endpoint.webhook_id, unreadable)
        with suppress(Unavailable):
            await self._store.show_error(self.endpoint.webhook_id, unreadable.detail)

    async def _body(self, message: Message) -> bytes:
        """Return the body of a message from the log.

        Raises:
            Unreadable: this version of the program cannot read the event.

        """
        if message.position is None:
            return payload_of_test(
                message.message_id, self.endpoint.webhook_id, self.endpoint.ledger_name, datetime.now(UTC)
            )
        (recorded,) = await self._events.at_positions(self.endpoint.ledger_id, [message.position])
        return payload(recorded, self.endpoint.ledger_name, self.endpoint.history, self._public_url)

    def _delivered(self, message: Message) -> DeliveryOutcome:
        was_down, self._failures = self._is_down, 0
        self._delivered_at = datetime.now(UTC)
        self._ack(message)
        if was_down:
            # The endpoint is up again, so parked messages need not wait any longer.
            self._queue.bring_forward(time.time())
        return "delivered"

    def _failed(self, message: Message, result: HttpResult) -> DeliveryOutcome:
        self._failures += 1
        now = time.time()
        if self._failures == self._policy.failing_after:
            self._probes = 0
            self._probe_at = now + self._probe_pause_s
        if result.retry_after_s is not None:
            self._paused_until = max(self._paused_until, now + result.retry_after_s)
        if result.status == GONE:
            return self._disable(message, "gone")
        if message.position is None:
            # A test message is sent once.
            self._ack(message)
            return "failed"
        if message.attempts > len(self._policy.retries_s):
            if message.first_at is None or self._delivered_at is None or self._delivered_at < message.first_at:
                # Nothing else was delivered in all that time either, so the endpoint is at fault.
                return self._disable(message, "failing")
            message.dead = True
            self._remove(message)
            self._progress.park(message)
            return "dead"
        pause_s = self._policy.retries_s[message.attempts - 1]
        pause_s *= random.uniform(1 - self._policy.jitter, 1 + self._policy.jitter)  # noqa: S311 - guards nothing
        message.due = now + max(pause_s, result.retry_after_s or 0.0)
        self._retry(message)
        return "failed"

    def _disable(self, message: Message, reason: DisabledReason) -> DeliveryOutcome:
        """Disable the webhook; the message is parked as if it were new, until the webhook is enabled again."""
        self._disabled = True
        self._progress.disable(reason)
        message.attempts, message.first_at, message.due = 0, None, time.time()
        self._retry(message)
        return "disabled"

    def _retry(self, message: Message) -> None:
        """Park a message until it is due, and all that follow it under its ordering key."""
        for one in self._queue.from_message_on(message):
            if not one.parked:
                self._park(one)
        self._progress.park(message)
        self._queue.retry(message)

    def _park(self, message: Message) -> None:
        message.parked, message.body = True, None
        self._parked.add(message.message_id)
        if message.position is not None:
            self._open.pop(message.position, None)
        self._progress.park(message)

    def _ack(self, message: Message) -> None:
        self._remove(message)
        if message.parked:
            self._progress.ack(message)

    def _remove(self, message: Message) -> None:
        self._queue.remove(message)
        if message.position is not None:
            self._open.pop(message.position, None)
