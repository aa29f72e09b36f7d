"""Carry out commands: decide, append, answer; again where another writer came first."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, cast
from uuid import UUID
from weakref import WeakValueDictionary

from domain.commands import A, Decision, When
from domain.errors import Refused
from domain.recorded import RecordedEvent
from infra.errors import IdempotencyMismatch, IdempotencyRunning, KeyNoLongerValid, Unavailable
from infra.eventstore.append import Append, Appended, ConcurrencyConflict, KeyRefused, Mismatch, Outcome, Replayed
from infra.eventstore.attempt import Attempt, CommandMetadata
from infra.eventstore.repository import Loaded, replayed
from infra.ids import uuid7

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from domain.commands import Ledger
    from domain.recorded import Event
    from infra.auth.denied_attempts import DeniedAttempts
    from infra.eventstore.aggregate_reader import AggregateReader
    from infra.eventstore.group_commit import GroupCommitWriter

# How often a command is decided anew because another writer came first, before it is told to come back.
MAX_ATTEMPTS: Final = 32
BUSY: Final = "The same code or video is being changed too often by other requests. Try again in a moment."


class CommandResult(NamedTuple, Generic[A]):
    """What a command came to. Told again for the same Idempotency-Key, it is the same to the last field.

    Attributes:
        aggregate: as it stood right after the command; `None` where an unknown creator was switched off.
        position: of the aggregate's last event at that time; 0 for an unknown creator.
        recorded_at: the clock that the answer's state is computed with.
        appended: events recorded by the command; 0 for a repeat.
        replayed: told again for the same Idempotency-Key.
        creator_stream: the stream of the creator whom it concerns.

    """

    aggregate: A | None
    position: int
    recorded_at: datetime
    appended: int
    replayed: bool
    creator_stream: UUID | None


class Contended(NamedTuple):
    """Another writer came first to a stream; or the window ended, by the ledger's moment, which this clock has not."""

    stream_id: UUID
    at: datetime | None


class CommandHandler:
    """Carries out the commands of all ledgers of one database."""

    def __init__(
        self,
        aggregates: AggregateReader,
        writer: GroupCommitWriter,
        denied_attempts: DeniedAttempts,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Take what loads and what appends, the counts of refusals, and the clock that commands are decided by."""
        self.now = now
        self._aggregates = aggregates
        self._events = aggregates.events
        self._keyring = aggregates.keyring
        self._cache = aggregates.cache
        self._writer = writer
        self._denied_attempts = denied_attempts
        self._running: set[tuple[int, bytes]] = set()
        self._turns: WeakValueDictionary[tuple[int, UUID], asyncio.Lock] = WeakValueDictionary()

    @property
    def obstacle(self) -> str | None:
        """Why no command can be recorded now, as far as the writer knows; None where nothing stands in the way."""
        return self._writer.obstacle

    async def handle(
        self, request: CommandMetadata, decide: Callable[[Ledger, When], Awaitable[Decision[A] | None]]
    ) -> CommandResult[A]:
        """Decide and append, whole or not at all.

        Args:
            request: who asks, and what makes a repeat of it known.
            decide: the command; called again with fresh reads where another writer came first.

        Raises:
            Refused: a rule said no.
            IdempotencyMismatch, IdempotencyRunning: the Idempotency-Key is taken.
            KeyNoLongerValid: the API key was revoked meanwhile.
            Unavailable: the database is away, or too busy with the same streams.

        """
        if request.idempotency_key is None:
            return await self._attempts(request, decide, None)
        scope = f"{request.actor.key_id}\0{request.idempotency_key}"
        idempotency = hashlib.sha256(scope.encode()).digest()[:16]
        running = (request.ledger_id, idempotency)
        if running in self._running:
            raise IdempotencyRunning
        self._running.add(running)
        try:
            return await self._attempts(request, decide, idempotency)
        finally:
            self._running.discard(running)

    async def _attempts(
        self,
        request: CommandMetadata,
        decide: Callable[[Ledger, When], Awaitable[Decision[A] | None]],
        idempotency: bytes | None,
    ) -> CommandResult[A]:
        command_id = uuid7()
        outcome = await self._attempt(request, decide, idempotency, command_id, allow_stale=True)
        if isinstance(outcome, CommandResult):
            return outcome
        # Whoever lost a race takes turns from now on with the others here that want the same stream.
        async with self._turn(request.ledger_id, outcome.stream_id):
            for _ in range(MAX_ATTEMPTS):
                outcome = await self._attempt(
                    request, decide, idempotency, command_id, allow_stale=False, not_before=outcome.at
                )
                if isinstance(outcome, CommandResult):
                    return outcome
        raise Unavailable(BUSY)

    async def _attempt(
        self,
        request: CommandMetadata,
        decide: Callable[[Ledger, When], Awaitable[Decision[A] | None]],
        idempotency: bytes | None,
        command_id: UUID,
        *,
        allow_stale: bool,
        not_before: datetime | None = None,
    ) -> CommandResult[A] | Contended:
        """Decide and append once, by a moment that is not before the one that the ledger is known to have reached."""
        attempt = await self._decide(request, decide, allow_stale=allow_stale, not_before=not_before)
        if attempt.must_reload:
            attempt = await self._decide(request, decide, allow_stale=False, not_before=not_before)
        if idempotency is not None and (attempt.refusal is not None or not attempt.events):
            # What would be turned down now may have been done before: then its first answer stands.
            told = await self._told_again(request, idempotency)
            if told is not None:
                return cast("CommandResult[A]", told)
        if not attempt.events:
            return await self._nothing_recorded(attempt)
        # A refusal is recorded without the key: the same request may succeed later.
        append = await attempt.append(self._keyring, command_id, None if attempt.refusal else idempotency)
        outcome = await self._writer.append(append)
        if isinstance(outcome, ConcurrencyConflict):
            return Contended(attempt.decided.aggregate.id, outcome.at)
        return await self._answered(attempt, append, outcome)

    def _turn(self, ledger_id: int, stream_id: UUID) -> asyncio.Lock:
        lock = self._turns.get((ledger_id, stream_id))
        if lock is None:
            lock = self._turns[ledger_id, stream_id] = asyncio.Lock()
        return lock

    async def _decide(
        self,
        request: CommandMetadata,
        decide: Callable[[Ledger, When], Awaitable[Decision[A] | None]],
        *,
        allow_stale: bool,
        not_before: datetime | None,
    ) -> Attempt[A]:
        now = self.now()
        if not_before is not None and now < not_before:
            now = not_before  # this machine's clock is behind the database's, or that went back
        when = When(now, request.effective_at or now)
        session = await self._aggregates.repository(request.ledger_id, allow_stale=allow_stale)
        try:
            decision = await decide(session, when)
        except Refused as refusal:
            return Attempt(request, when, session, None, (), refusal)
        if decision is None:
            return Attempt(request, when, session, None, (), None)
        events = cast("list[Event]", list(decision.aggregate.collect_events()))
        return Attempt(request, when, session, decision, events, decision.refusal)

    async def _nothing_recorded(self, attempt: Attempt[A]) -> CommandResult[A]:
        """Answer a repeat, or raise the refusal; one that its hour has recorded already is counted."""
        if attempt.refusal is not None:
            if attempt.decision is not None:
                await self._denied_attempts.count(
                    attempt.request.ledger_id, attempt.request.actor, attempt.refusal.code
                )
            raise attempt.refusal
        if attempt.decision is None:
            return CommandResult(None, 0, attempt.when.now, 0, replayed=False, creator_stream=None)
        aggregate = attempt.decision.aggregate
        known = attempt.session.loaded[aggregate.id]
        return CommandResult(
            aggregate, known.position, attempt.when.now, 0, replayed=False, creator_stream=known.creator_stream
        )

    async def _answered(self, attempt: Attempt[A], append: Append, outcome: Outcome) -> CommandResult[A]:
        """Answer what became of an append that did not lose a race."""
        match outcome:
            case Replayed():
                return cast(
                    "CommandResult[A]", await self._replayed(attempt.request.ledger_id, outcome.first, outcome.last)
                )
            case Mismatch():
                raise IdempotencyMismatch
            case KeyRefused():
                raise KeyNoLongerValid
        done = _done(attempt, append, cast("Appended", outcome))
        self._remember(append, done)
        if attempt.refusal is not None:
            raise attempt.refusal
        return done

    def _remember(self, append: Append, done: CommandResult[A]) -> None:
        ledger_id = append.ledger_id
        self._cache.keep(ledger_id, Loaded(cast("A", done.aggregate), done.position, append.events[0].creator_stream))
        for claim, _, holder in append.claims:
            self._cache.keep_claim(ledger_id, claim, holder)

    async def _told_again(self, request: CommandMetadata, idempotency: bytes) -> CommandResult[Any] | None:
        known = await self._events.command(request.ledger_id, idempotency)
        if known is None:
            return None
        request_hash, first, last = known
        if request_hash != request.request_hash:
            raise IdempotencyMismatch
        return await self._replayed(request.ledger_id, first, last)

    async def _replayed(self, ledger_id: int, first: int, last: int) -> CommandResult[Any]:
        """Build a command's first answer again from the events it recorded."""
        recorded = cast("RecordedEvent", await self._events.event(ledger_id, last))
        whole = cast("list[RecordedEvent]", await self._events.stream(ledger_id, recorded.stream_id))
        stream = [r for r in whole if r.position <= last]
        return CommandResult(
            aggregate=replayed(stream),
            position=last,
            recorded_at=recorded.recorded_at,
            appended=last - first + 1,
            replayed=True,
            creator_stream=recorded.creator_stream,
        )


def _done(attempt: Attempt[A], append: Append, outcome: Appended) -> CommandResult[A]:
    """Answer with the aggregate as the log now has it: what took effect on recording bears that moment.

    Events assign and do nothing else, so applying one again with its final time leaves what a replay would.
    """
    aggregate: Any = attempt.decided.aggregate
    for event in attempt.events:
        if not attempt.dated(event):
            vars(event)["timestamp"] = outcome.recorded_at
        event.apply(aggregate)
        aggregate.modified_on = event.timestamp
        if event.originator_version == 1:
            vars(aggregate)["_created_on"] = event.timestamp
    return CommandResult(
        aggregate=aggregate,
        position=outcome.last,
        recorded_at=outcome.recorded_at,
        appended=len(attempt.events),
        replayed=False,
        creator_stream=append.events[0].creator_stream,
    )
