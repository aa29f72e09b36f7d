"""Sends one ledger's events to one endpoint: in order for each code, several codes at once, again until it is taken.

    log ──▶ window ──sent──▶ taken: settled
              │ failed
              ▼
            waiting, with what follows it in its lane ──again, after 5 s … 10 h──▶ taken: settled
              │ after the last attempt
              ▼
            dead: listed, until somebody asks for it again

Messages of one lane, that is of one code or of one creator's permission, are sent one after the other. What fails is
written down as waiting, and so is what comes behind it in its lane; all others go on. When nothing gets through any
more, the endpoint itself is taken to be down: one message now and then is a probe, and the rest stays in the log.

What was taken is written down a moment later, so a sender that is killed in between sends it once more: at least once,
with the same id. What the endpoint has behind it is never lost.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import random
import time
import traceback
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from infra.delivery.webhooks.delivery_store import LeaseLost
from infra.delivery.webhooks.http_target import HttpResult
from infra.delivery.webhooks.models import DeliveryAttempt, Message, ProgressWrite
from infra.delivery.webhooks.queue import Queue
from infra.delivery.webhooks.signing import HEADERS, payload, payload_of_test, signed_headers
from infra.errors import Unavailable
from infra.eventstore.event_filter import EventFilter
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
# Pages that are read in a row before somebody else gets a turn.
PAGES_IN_A_ROW: Final = 10
# While the database is away, between attempts to reach it.
AWAY_S: Final = 1.0
# Who is told to stop gives what is under way so long to land.
LANDING_S: Final = 1.0
# No pause between looks around is longer.
REST_S_MAX: Final = 5.0

log = logging.getLogger(__name__)


class Sender:
    """Sends to one endpoint, for as long as it runs."""

    def __init__(
        self,
        endpoint: Endpoint,
        standing: DeliveryProgress,
        target: HttpTarget,
        secrets: Callable[[], Sequence[bytes]],
        *,
        book: DeliveryStore,
        events: EventReader,
        aggregates: AggregateReader,
        tails: LiveSubscriptions,
        terms: DeliveryPolicy,
    ) -> None:
        """Take what is needed; `run` runs.

        Args:
            endpoint: what it is to be sent.
            standing: where it stands.
            target: where it is.
            secrets: returns those that messages are signed with now, the newest first.
            book: what is written down.
            events: where events are read again.
            aggregates: where creators are found.
            tails: the ends of the logs.
            terms: how often, how many, how long.

        """
        self.endpoint = endpoint
        self._lease = standing.lease
        self._target = target
        self._secrets = secrets
        self._book = book
        self._events = events
        self._aggregates = aggregates
        self._tails = tails
        self._terms = terms
        conditions = (("type", endpoint.types), ("creator_id", endpoint.creator_ids))
        self._selection = EventFilter([Among(field, tuple(values)) for field, values in conditions if values])  # type: ignore[arg-type] # both are fields
        # The last position that was read, and the messages up to there that are neither settled nor kept, in order.
        self._read = standing.position
        self._open: dict[int, Message] = {}
        self._queue = Queue()
        # Messages that are kept, in the book or soon; and those that it had beyond the position from which is read.
        self._kept: set[UUID] = set()
        self._had: set[UUID] = set()
        self._flying: set[asyncio.Task[None]] = set()
        self._failures = standing.failures
        self._delivered_at = standing.delivered_at
        self._paused_until = standing.paused_until.timestamp() if standing.paused_until else 0.0
        self._probe_at = 0.0
        self._disable: DisabledReason | None = None
        self._entry = ProgressWrite()
        # What was tried to be written down, and may have been.
        self._unsure: ProgressWrite | None = None
        self._numbers = itertools.count(1)
        self._written = standing.position
        self._write_at = math.inf
        self._look = self._stopping = False
        self._broken: BaseException | None = None
        self._wake = asyncio.Event()

    @property
    def _failing(self) -> bool:
        return self._failures >= self._terms.failing_after

    async def run(self) -> None:
        """Send until it is told to stop, cancelled, or the endpoint is disabled.

        Raises:
            Overtaken: another sender has taken over.

        """
        async with self._tails.following(self.endpoint.ledger_id) as tail:
            listening = asyncio.create_task(self._listen(tail))
            try:
                await self._prepare()
                while not (self._ended and self._is_written):
                    await self._round(tail)
            finally:
                listening.cancel()
                await self._land()

    def stop(self) -> None:
        """Begin nothing more, and end when all that is under way has landed."""
        self._stopping = True
        self._wake.set()

    def look_again(self, endpoint: Endpoint) -> None:
        """Look into the book for what somebody else has put there: a test, a dead letter to be sent again."""
        self.endpoint = endpoint
        self._look = True
        self._wake.set()

    @property
    def _ended(self) -> bool:
        return (self._stopping or self._disable is not None) and not self._flying

    @property
    def _is_written(self) -> bool:
        return self._unsure is None and self._entry.is_empty and self._position == self._written

    @property
    def _position(self) -> int:
        """Everything up to here is settled or kept."""
        return next(iter(self._open)) - 1 if self._open else self._read

    async def _prepare(self) -> None:
        for creator_id in self._selection.creators:
            for recorded in (await self._aggregates.creator_stream(self.endpoint.ledger_id, creator_id))[:1]:
                self._selection.know(recorded)
        for message in await self._book.messages(self.endpoint.webhook_id, self._read):
            if message.position is not None and message.position > self._read:
                self._had.add(message.message_id)
            if not message.dead:
                self._kept.add(message.message_id)
                self._queue.add(message)

    async def _look_into_the_book(self) -> None:
        self._look = False
        for message in await self._book.messages(self.endpoint.webhook_id, self._read):
            if not message.dead and message.message_id not in self._kept:
                self._kept.add(message.message_id)
                self._queue.add(message)

    async def _round(self, tail: LiveSubscription) -> None:
        try:
            if self._unsure is not None:
                # First: what the book shows may have followed on it, as that somebody asked for what it says is dead.
                await self._write()
            if self._look:
                await self._look_into_the_book()
            await self._read_on(tail)
            self._begin_what_may()
            if self._ended or time.time() >= self._write_at:
                await self._write()
        except Unavailable as unavailable:
            log.warning("Webhook %s waits for the database: %s", self.endpoint.webhook_id, unavailable)
            await asyncio.sleep(AWAY_S)
            return
        if self._broken is not None:
            raise self._broken
        if not self._ended:
            await self._rest()

    async def _listen(self, tail: LiveSubscription) -> None:
        while True:
            await tail.wait_for_events()
            self._wake.set()

    async def _rest(self) -> None:
        """Wait until there may be something to do."""
        now = time.time()
        times = [now + REST_S_MAX, self._write_at]
        if self._may_begin:
            times += [max(due, self._paused_until) for due in (self._queue.next_due,) if due is not None]
            if self._queue.has_fresh:
                times.append(max(self._probe_at if self._failing else now, self._paused_until))
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(times) - now)):
                await self._wake.wait()
        self._wake.clear()

    # -- Reading

    async def _read_on(self, tail: LiveSubscription) -> None:
        """Read what comes next, as long as there is room for it."""
        for _ in range(PAGES_IN_A_ROW):
            # In pages of some size, and never more than the window holds: what waits stays within its bound.
            room = min(PAGE_EVENTS, self._room)
            if room < max(1, min(PAGE_EVENTS, self._terms.window) // 2):
                return
            if tail.failure is not None:
                raise tail.failure
            if tail.keeps(self._read):
                entries = tail.after(self._read, room)
                for entry in entries:
                    self._take(entry.recorded, entry.encoded)
                read = len(entries)
            else:
                page = await self._events.page(self.endpoint.ledger_id, after=self._read, limit=room)
                for recorded in page:
                    self._take(recorded, None)
                read = len(page)
            if self._position != self._written:
                self._write_soon()
            if read == 0:
                return
        self._wake.set()

    @property
    def _room(self) -> int:
        """How many events there is room for."""
        if self._stopping or self._disable is not None or len(self._kept) >= self._terms.waiting:
            return 0
        # Of an endpoint that is down, the log itself keeps what is next.
        if self._failing and self._queue.has_fresh:
            return 0
        return self._terms.window - len(self._open)

    def _take(self, recorded: RecordedEvent, body: bytes | None) -> None:
        self._read = recorded.position
        if not self._selection.wants(recorded):
            return
        if recorded.event_id in self._had:
            self._had.discard(recorded.event_id)
            return
        body = body or payload(recorded, self.endpoint.ledger_name)
        message = Message(recorded.event_id, recorded.position, recorded.type, recorded.stream_id, body=body)
        self._open[recorded.position] = message
        if self._queue.add(message):
            self._keep(message)

    # -- Sending

    @property
    def _may_begin(self) -> bool:
        return (
            not self._stopping
            and self._disable is None
            and len(self._flying) < (1 if self._failing else self._terms.in_flight)
            and len(self._entry.attempts) < self._terms.unwritten
        )

    def _begin_what_may(self) -> None:
        now = time.time()
        while self._may_begin and now >= self._paused_until:
            message = self._queue.next(now, fresh=not self._failing or now >= self._probe_at)
            if message is None:
                return
            if message.attempts == 0:
                self._probe_at = now + self._terms.probe_s
            task = asyncio.create_task(self._attempt(message))
            self._flying.add(task)
            task.add_done_callback(self._landed)

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._flying.discard(task)
        if not task.cancelled():
            self._broken = self._broken or task.exception()
        self._wake.set()

    async def _attempt(self, message: Message) -> None:
        try:
            body = message.body or await self._body(message)
        except Unavailable:
            message.due = time.time() + AWAY_S
            self._queue.again(message)
            return
        at, began = datetime.now(UTC), time.monotonic()
        signed = signed_headers(str(message.message_id), int(at.timestamp()), body, self._secrets())
        try:
            answer = await self._target.post(HEADERS | signed, body)
        except Exception as error:  # noqa: BLE001 - whatever breaks is this message's, and must not hold up the others
            # Its words are not logged, for they may hold what was sent.
            broke_at = traceback.extract_tb(error.__traceback__)[-1]
            log.error("Webhook %s: %s in %s", self.endpoint.webhook_id, type(error).__name__, broke_at)  # noqa: TRY400
            answer = HttpResult(error="Something broke on our side.")
        duration_ms = round((time.monotonic() - began) * 1000)
        message.attempts = attempt = message.attempts + 1
        message.first_at = message.first_at or at
        message.status = answer.status
        message.error = answer.error
        outcome: DeliveryOutcome = "delivered"
        if answer.delivered:
            self._deliver(message)
        else:
            message.error = answer.error or f"The receiver answered {answer.status}."
            outcome = self._fail(message, answer)
        self._entry.attempts.append(
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
            )
        )
        self._write_soon()

    async def _body(self, message: Message) -> bytes:
        """Return what is sent, read from the log again."""
        if message.position is None:
            return payload_of_test(
                message.message_id, self.endpoint.webhook_id, self.endpoint.ledger_name, datetime.now(UTC)
            )
        (recorded,) = await self._events.at_positions(self.endpoint.ledger_id, [message.position])
        return payload(recorded, self.endpoint.ledger_name)

    def _deliver(self, message: Message) -> None:
        was_failing, self._failures = self._failing, 0
        self._delivered_at = datetime.now(UTC)
        self._settle(message)
        if was_failing:
            # It is up again: what waits need not wait longer.
            self._queue.bring_forward(time.time())

    def _fail(self, message: Message, answer: HttpResult) -> DeliveryOutcome:
        self._failures += 1
        now = time.time()
        if answer.retry_after_s is not None:
            self._paused_until = max(self._paused_until, now + answer.retry_after_s)
        if answer.status == GONE:
            return self._give_up_endpoint(message, "gone")
        if message.position is None:
            # A test tells how it went, and that is all.
            self._settle(message)
            return "failed"
        if message.attempts > len(self._terms.retries_s):
            if message.first_at is None or self._delivered_at is None or self._delivered_at < message.first_at:
                # Nothing got through for as long as this was tried: it is not the message.
                return self._give_up_endpoint(message, "failing")
            message.dead = True
            self._leave(message)
            self._note(message)
            return "dead"
        pause_s = self._terms.retries_s[message.attempts - 1]
        pause_s *= random.uniform(1 - self._terms.jitter, 1 + self._terms.jitter)  # noqa: S311 - guards nothing
        message.due = now + max(pause_s, answer.retry_after_s or 0.0)
        self._wait(message)
        return "failed"

    def _give_up_endpoint(self, message: Message, why: DisabledReason) -> DeliveryOutcome:
        """Send nothing more; the message waits, as if it were new, for whoever enables the endpoint again."""
        self._disable = self._entry.disable = why
        message.attempts, message.first_at, message.due = 0, None, time.time()
        self._wait(message)
        return "disabled"

    def _wait(self, message: Message) -> None:
        """Let a message wait for its next attempt, and with it what comes behind it in its lane."""
        for one in self._queue.lane(message):
            if not one.kept:
                self._keep(one)
        self._note(message)
        self._queue.again(message)

    def _keep(self, message: Message) -> None:
        message.kept, message.body = True, None
        self._kept.add(message.message_id)
        if message.position is not None:
            self._open.pop(message.position, None)
        self._note(message)

    def _settle(self, message: Message) -> None:
        self._leave(message)
        if message.kept:
            self._entry.keep.pop(message.message_id, None)
            self._entry.settle.append(message.message_id)

    def _leave(self, message: Message) -> None:
        self._queue.leave(message)
        if message.position is not None:
            self._open.pop(message.position, None)

    # -- Writing down

    def _note(self, message: Message) -> None:
        self._entry.keep[message.message_id] = message
        self._write_soon()

    def _write_soon(self) -> None:
        self._write_at = min(self._write_at, time.time() + self._terms.write_s)

    async def _write(self) -> None:
        if self._is_written:
            self._write_at = math.inf
            return
        # Where no reply came it is unknown whether it is written: the same is tried again, and nothing is put to it.
        entry = self._unsure = self._unsure or self._next_entry()
        await self._book.write(self.endpoint, self._lease, entry, datetime.now(UTC))
        self._unsure = None
        self._written = entry.position
        self._kept.difference_update(entry.settle, [id_ for id_, message in entry.keep.items() if message.dead])

    def _next_entry(self) -> ProgressWrite:
        entry, self._entry, self._write_at = self._entry, ProgressWrite(), math.inf
        entry.number, entry.position, entry.failures = next(self._numbers), self._position, self._failures
        entry.paused_until = datetime.fromtimestamp(self._paused_until, UTC) if self._paused_until else None
        # As they are now: meanwhile they go on.
        entry.keep = {message_id: replace(message) for message_id, message in entry.keep.items()}
        return entry

    async def _land(self) -> None:
        """Let what is under way land, for a moment, and write down what came of it."""
        if self._flying:
            await asyncio.wait(self._flying, timeout=LANDING_S)
        for task in list(self._flying):
            task.cancel()
        with suppress(Unavailable, LeaseLost):
            while not self._is_written:
                await self._write()
