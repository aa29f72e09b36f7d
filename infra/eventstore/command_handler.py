"""The command handler: load, decide, append, and retry where another writer came first.

`CommandHandler._handle` is the whole loop, for one command. `handle_many` spares the clock a query for each code: it
reads many aggregates together, and leaves to the loop whatever does not end with its first append. What stands below
them makes the rows of an append, and the results.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, cast
from uuid import UUID
from weakref import WeakValueDictionary

from domain.code import Code
from domain.commands import A, Decision
from domain.creator import Creator
from domain.errors import NotAllowed, Refused
from domain.values import When
from infra.crypto.envelope import associated_data
from infra.errors import IdempotencyMismatch, IdempotencyRunning, KeyNoLongerValid, Unavailable
from infra.eventstore.append import Append, Appended, ConcurrencyConflict, EventRow, Mismatch, Replayed, event_row
from infra.eventstore.reader import EventAt
from infra.eventstore.repository import AnyAggregate, Loaded, Repository, replayed
from infra.eventstore.serialization import stored_form
from infra.ids import uuid7

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from domain.commands import Ledger
    from domain.recorded import Event, RecordedEvent
    from domain.values import Actor
    from infra.auth.denied_attempts import DeniedAttempts
    from infra.crypto.envelope import CreatorKey
    from infra.eventstore.aggregate_reader import AggregateReader
    from infra.eventstore.append import KeyRefused
    from infra.eventstore.group_commit import GroupCommitWriter

    # An aggregate of a decision, and the events that change it; none where it is only relied on.
    _Change = tuple[AnyAggregate, Sequence[Event]]

# How often a command that met another writer is retried before its caller is asked to come back.
MAX_RETRIES: Final = 32
BUSY: Final = "The same code or video is being changed too often by other requests. Try again in a moment."


class CommandMetadata(NamedTuple):
    """What is known of a command besides what it asks for.

    Attributes:
        ledger_id: the ledger of the caller's key.
        actor: who is recorded; `actor.key_id` is the API key's UUID as text, or the clock's name.
        correlation_id: the caller's name for what the command belongs to.
        causation_id: the event that it follows from, as named by the caller.
        traceparent: the caller's W3C trace context.
        idempotency_key: the caller's name for the request; repeats of it get the result of the first.
        request_hash: 16 bytes over method, path and body; tells a repeat from another request with the same key.
        effective_at: when it was true in the world, where that is not now.

    """

    ledger_id: int
    actor: Actor
    correlation_id: str | None = None
    causation_id: UUID | None = None
    traceparent: str | None = None
    idempotency_key: str | None = None
    request_hash: bytes = b""
    effective_at: datetime | None = None


class CommandResult(NamedTuple, Generic[A]):
    """The result of a command. A repeat with the same idempotency key gets an equal one, but for `replayed`.

    Attributes:
        aggregate: its state right after the command; `None` where an unknown creator was switched off.
        position: of the aggregate's last event at that time; 0 for an unknown creator.
        recorded_at: the clock that the answer's state is computed with.
        appended: how many events the command recorded; 0 where it changed nothing.
        replayed: whether this repeats the result of an earlier request with the same idempotency key.
        creator_stream: the stream of the creator whom it concerns.

    """

    aggregate: A | None
    position: int
    recorded_at: datetime
    appended: int
    replayed: bool
    creator_stream: UUID | None


class CommandHandler:
    """Handles the commands of all ledgers of one database."""

    def __init__(
        self,
        aggregates: AggregateReader,
        writer: GroupCommitWriter,
        denied_attempts: DeniedAttempts,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Take what loads, what appends, what counts repeated refusals, and the clock, aware and in UTC."""
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
        """Why no command can be recorded now, as far as the writer knows; None if nothing prevents it."""
        return self._writer.obstacle

    async def handle(
        self, metadata: CommandMetadata, decide: Callable[[Ledger, When], Awaitable[Decision[A] | None]]
    ) -> CommandResult[A]:
        """Decide a command and append its events, all or none.

        Args:
            metadata: who asks, and what identifies a repeat of the request.
            decide: the command; it is called again, with fresh reads, where another writer came first.

        Raises:
            Refused: a rule said no.
            IdempotencyMismatch, IdempotencyRunning: the idempotency key belongs to another request, or to one that is
                still in progress here.
            KeyNoLongerValid: the API key was revoked meanwhile.
            Unavailable: nothing was recorded, or the same streams change too fast.

        """
        if metadata.idempotency_key is None:
            return await self._handle(metadata, decide, None)
        scope = f"{metadata.actor.key_id}\0{metadata.idempotency_key}"
        idempotency = hashlib.sha256(scope.encode()).digest()[:16]
        running = (metadata.ledger_id, idempotency)
        if running in self._running:
            raise IdempotencyRunning
        self._running.add(running)
        try:
            return await self._handle(metadata, decide, idempotency)
        finally:
            self._running.discard(running)

    async def _handle(  # noqa: C901, PLR0912, PLR0915 - the loop is one piece, to be read from top to bottom
        self,
        metadata: CommandMetadata,
        decide: Callable[[Ledger, When], Awaitable[Decision[A] | None]],
        idempotency: bytes | None,
    ) -> CommandResult[A]:
        ledger_id, command_id = metadata.ledger_id, uuid7()
        keys = self._keyring.known_ledger(ledger_id) or await self._keyring.ledger(ledger_id)
        allow_stale, not_before, retries = True, None, 0
        turn: asyncio.Lock | None = None
        try:
            while retries <= MAX_RETRIES:
                # Load: a decision loads what it looks at; at first from the cache, which may be out of date.
                repository = Repository(
                    ledger_id, self._events, keys, self._keyring, self._cache, allow_stale=allow_stale
                )

                # Decide.
                now = self.now()
                if not_before is not None and now < not_before:
                    now = not_before  # this machine's clock is behind the database's, or was set back
                when = When(now, metadata.effective_at or now)
                decision: Decision[A] | None = None
                refusal: Refused | None = None
                changes: Sequence[_Change] = ()
                try:
                    decision = await decide(repository, when)
                except Refused as refused:
                    refusal = refused
                if decision is not None:
                    changes = _changes(decision)
                    refusal = decision.refusal
                if repository.used_stale and (refusal is not None or not changes):
                    allow_stale = False  # only an append shows that the cache was up to date
                    continue
                if idempotency is not None and _may_repeat(refusal, changes):
                    first = await self._first_result(metadata, idempotency)
                    if first is not None:
                        return cast("CommandResult[A]", first)
                if refusal is not None and not changes:
                    raise await self._counted(metadata, decision, refusal)
                if decision is None:
                    return CommandResult(None, 0, when.now, 0, replayed=False, creator_stream=None)
                if not changes:
                    if await self._is_recorded(ledger_id, repository, decision.aggregate.id):
                        return _unchanged(repository, when, decision)
                    allow_stale, retries = False, retries + 1  # a failover has lost what was read
                    continue

                # Append. A refusal is recorded without the idempotency key: the same request may succeed later.
                once = None if refusal is not None else idempotency
                append = await self._append(metadata, command_id, once, when, repository, decision, changes)
                outcome = await self._writer.append(append)
                if isinstance(outcome, Appended):
                    result = _appended(decision, changes, append, outcome)
                    self._keep(repository, changes, append, outcome)
                    if refusal is not None:
                        raise refusal
                    return result
                if not isinstance(outcome, ConcurrencyConflict):
                    return cast("CommandResult[A]", await self._not_appended(ledger_id, outcome))

                # Retry, with fresh reads. Those here that met another writer on one stream take turns from now on.
                allow_stale, not_before, retries = False, outcome.at, retries + 1
                if turn is None:
                    lock = self._turn(ledger_id, decision.aggregate.id)
                    await lock.acquire()
                    turn = lock
        finally:
            if turn is not None:
                turn.release()
        raise Unavailable(BUSY)

    def _turn(self, ledger_id: int, stream_id: UUID) -> asyncio.Lock:
        lock = self._turns.get((ledger_id, stream_id))
        if lock is None:
            lock = self._turns[ledger_id, stream_id] = asyncio.Lock()
        return lock

    async def handle_many(
        self, metadata: CommandMetadata, decides: Mapping[UUID, Callable[[Ledger, When], Awaitable[Decision[A]]]]
    ) -> dict[UUID, CommandResult[A] | Exception]:
        """Handle a command on each of many aggregates: read together, decided one by one, appended together.

        What is wrong with one command, or meets another writer, does not touch the others: it is handled alone.

        Args:
            metadata: who asks, without an idempotency key.
            decides: the commands, by the stream that each is about.

        Returns:
            What became of each command.

        Raises:
            MasterKeyError: the ledger's keys do not open.
            Unavailable: the aggregates could not be read.

        """
        repository = await self._aggregates.repository(metadata.ledger_id)
        await repository.prefetch(list(decides))
        results: dict[UUID, CommandResult[A] | Exception] = {}
        unchanged: dict[UUID, CommandResult[A]] = {}
        pending: list[tuple[UUID, Decision[A], Sequence[_Change], Append]] = []
        for stream_id in [one for one in decides if one.int in repository.loaded]:
            now = self.now()
            when = When(now, metadata.effective_at or now)
            try:
                decision = await decides[stream_id](repository, when)
            except Exception:  # noqa: BLE001, S112 - it is decided again alone, and raises there
                continue
            changes: Sequence[_Change] = _changes(decision)
            if changes and decision.refusal is None:
                append = await self._append(metadata, uuid7(), None, when, repository, decision, changes)
                pending.append((stream_id, decision, changes, append))
            elif decision.refusal is None:
                unchanged[stream_id] = _unchanged(repository, when, decision)
        recorded = await asyncio.gather(
            *(self._is_recorded(metadata.ledger_id, repository, stream_id) for stream_id in unchanged)
        )
        results.update(itertools.compress(unchanged.items(), recorded))
        outcomes = await asyncio.gather(
            *(self._writer.append(append) for *_, append in pending), return_exceptions=True
        )
        for (stream_id, decision, changes, append), outcome in zip(pending, outcomes, strict=True):
            if isinstance(outcome, Appended):
                results[stream_id] = _appended(decision, changes, append, outcome)
            elif isinstance(outcome, Exception):
                results[stream_id] = outcome
        alone = [stream_id for stream_id in decides if stream_id not in results]
        handled = await asyncio.gather(
            *(self._handle(metadata, decides[stream_id], None) for stream_id in alone), return_exceptions=True
        )
        for stream_id, result in zip(alone, handled, strict=True):
            if isinstance(result, BaseException) and not isinstance(result, Exception):
                raise result
            results[stream_id] = result
        return results

    async def _counted(self, metadata: CommandMetadata, decision: Decision[A] | None, refusal: Refused) -> Refused:
        """Return a refusal; one that would have been recorded, if its hour had no equal one yet, is counted."""
        if decision is not None:
            await self._denied_attempts.count(metadata.ledger_id, metadata.actor, refusal.code)
        return refusal

    async def _append(
        self,
        metadata: CommandMetadata,
        command_id: UUID,
        idempotency: bytes | None,
        when: When,
        repository: Repository,
        decision: Decision[A],
        changes: Sequence[_Change],
    ) -> Append:
        """Return what is to be appended, its secret fields sealed with their creator's key.

        Raises:
            Refused: `creator_erased`, where there is something to seal and the key was destroyed.

        """
        ledger_id, actor, aggregate = metadata.ledger_id, metadata.actor, decision.aggregate
        creator_id = video_id = None
        if isinstance(aggregate, Code):
            creator_id, video_id = aggregate.creator_id, aggregate.video_id
        elif isinstance(aggregate, Creator):
            creator_id = aggregate.creator_id
        creator_stream = _creator_stream(repository, decision)
        # The caller states when it took effect, or the window that the clock watches. Otherwise what happens now takes
        # effect when it is recorded, at a moment that only the append knows.
        dated = metadata.effective_at is not None or actor.role == "clock"
        key: CreatorKey | None = None
        rows: list[EventRow] = []
        events = [event for _, own in changes for event in own]
        event_ids = [uuid7() for _ in events]
        for event, event_id in zip(events, event_ids, strict=True):
            stream_id, version = event.originator_id, event.originator_version
            type_, type_version, body, secret = stored_form(event)
            key_id = commitment = sealed = None
            if secret:
                assert creator_id is not None  # noqa: S101 - of accounts and videos nothing is sealed
                if key is None:
                    claim = repository.claim("creator", creator_id)
                    key = self._keyring.known_creator(ledger_id, claim)
                    if key is None:
                        key = await self._keyring.creator_by_claim(ledger_id, claim)
                where = associated_data(ledger_id, stream_id, version, event_id, type_)
                key_id, commitment, sealed = key.seal(secret, where)
            cause = decision.cause_of(event)
            rows.append(
                event_row(
                    (
                        stream_id,
                        version,
                        event_id,
                        type_,
                        type_version,
                        event.timestamp if dated or event.timestamp != when.at else None,
                        creator_stream,
                        metadata.causation_id if cause is None else _event_id(cause, repository, events, event_ids),
                        key_id,
                        commitment,
                        body,
                        sealed,
                    )
                )
            )
        expected_versions = [(changed.id, changed.version - len(own)) for changed, own in changes]
        expected_versions += [(read.id, read.version) for read in decision.also_read]
        return Append(
            ledger_id,
            rows,
            expected_versions,
            [(repository.claim(kind, name), expected, new) for kind, name, expected, new in decision.claims],
            actor.role,
            actor.source,
            command_id,
            actor.subject,
            api_key=None if actor.role == "clock" else _key_id(actor.key_id),
            idempotency=idempotency,
            request_hash=metadata.request_hash,
            correlation_id=metadata.correlation_id,
            traceparent=metadata.traceparent,
            creator_id=creator_id,
            video_id=video_id,
            valid_until=None if metadata.effective_at is not None else decision.valid_until,
            cached_in=repository.cached_in if repository.used_stale else None,
        )

    def _keep(self, repository: Repository, changes: Sequence[_Change], append: Append, outcome: Appended) -> None:
        """Cache the aggregates and the claims that an append changed."""
        ledger_id, rows, begun = append.ledger_id, append.events, 0
        for aggregate, events in changes:
            if not events:
                continue
            ended = begun + len(events)
            event_ids = tuple([row.event_id for row in rows[begun:ended]])
            before = repository.loaded.get(aggregate.id.int)
            if before is not None:
                event_ids = (*before.event_ids, *event_ids)
            known = Loaded(aggregate, outcome.first + ended - 1, rows[0].creator_stream, event_ids)
            self._cache.keep(ledger_id, known)
            begun = ended
        for claim, _, holder in append.claims:
            self._cache.keep_claim(ledger_id, claim, holder)

    async def _not_appended(self, ledger_id: int, outcome: Replayed | Mismatch | KeyRefused) -> CommandResult[Any]:
        """Return the first result of a repeated request, or raise why the append was refused."""
        if isinstance(outcome, Replayed):
            return await self._replayed(ledger_id, outcome.first, outcome.last)
        if isinstance(outcome, Mismatch):
            raise IdempotencyMismatch
        raise KeyNoLongerValid

    async def _is_recorded(self, ledger_id: int, repository: Repository, stream_id: UUID) -> bool:
        """Tell whether no failover can lose the newest event of an aggregate that was read.

        To answer that a command changes nothing is to answer that what it asks for is recorded.
        """
        event_ids = repository.loaded[stream_id.int].event_ids
        return bool(await self._events.recorded(ledger_id, EventAt(stream_id, len(event_ids), event_ids[-1])))

    async def _first_result(self, metadata: CommandMetadata, idempotency: bytes) -> CommandResult[Any] | None:
        known = await self._events.command(metadata.ledger_id, idempotency)
        if known is None:
            return None
        request_hash, first, last = known
        if request_hash != metadata.request_hash:
            raise IdempotencyMismatch
        return await self._replayed(metadata.ledger_id, first, last)

    async def _replayed(self, ledger_id: int, first: int, last: int) -> CommandResult[Any]:
        """Return a command's first result, made from the events that it recorded."""
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


def _may_repeat(refusal: Refused | None, changes: Sequence[_Change]) -> bool:
    """Tell whether a request with an Idempotency-Key may be a repeat of one that succeeded: then its result stands.

    Somebody who is not allowed to do this any more does not get that result.
    """
    return not changes if refusal is None else not isinstance(refusal, NotAllowed)


def _unchanged(repository: Repository, when: When, decision: Decision[A]) -> CommandResult[A]:
    """Return the result of a command that changes nothing."""
    aggregate = decision.aggregate
    loaded = repository.loaded[aggregate.id.int]
    return CommandResult(aggregate, loaded.position, when.now, 0, replayed=False, creator_stream=loaded.creator_stream)


def _appended(decision: Decision[A], changes: Sequence[_Change], append: Append, outcome: Appended) -> CommandResult[A]:
    """Return the result of a command whose events were appended.

    The aggregate is the one that a replay of the log would make: events that took effect on recording bear that moment.
    Events only assign, so it is enough to apply them again, with their final times.
    """
    rows = iter(append.events)
    for aggregate, events in changes:
        undated = False
        for event in events:
            if next(rows).effective_at is None:
                undated = True
                vars(event)["timestamp"] = outcome.recorded_at
        for event in events if undated else ():
            event.apply(aggregate)
            aggregate._modified_on = event.timestamp  # noqa: SLF001 - the library's setter is a call that does the same
            if event.originator_version == 1:
                aggregate._created_on = event.timestamp  # noqa: SLF001 - the library has nothing else that sets it
    return CommandResult(
        decision.aggregate,
        outcome.last,
        outcome.recorded_at,
        len(append.events),
        replayed=False,
        creator_stream=append.events[0].creator_stream,
    )


def _changes(decision: Decision[A]) -> list[_Change]:
    """Return what a decision wants appended, in that order; nothing, if it changes nothing."""
    aggregate: Any = decision.aggregate
    own = aggregate, aggregate.collect_events()
    if not decision.also_changed:
        return [own] if own[1] else []
    changes = [*((changed, changed.collect_events()) for changed in decision.also_changed), own]
    return changes if any(events for _, events in changes) else []


def _event_id(
    cause: tuple[UUID, int], repository: Repository, events: Sequence[Event], event_ids: Sequence[UUID]
) -> UUID:
    """Return the id of an event that another one follows from, which may be among those that are to be appended."""
    stream_id, version = cause
    known = repository.loaded.get(stream_id.int)
    if known is not None and version <= len(known.event_ids):
        return known.event_ids[version - 1]
    return next(
        event_id
        for event, event_id in zip(events, event_ids, strict=True)
        if (event.originator_version, event.originator_id) == (version, stream_id)
    )


def _creator_stream(repository: Repository, decision: Decision[A]) -> UUID:
    """Return the stream of the creator whom it concerns: their own, or the one that their code was recorded with."""
    aggregate = decision.aggregate
    loaded = repository.loaded.get(aggregate.id.int)
    if loaded is not None:
        return loaded.creator_stream
    if not isinstance(aggregate, Code):
        return aggregate.id
    return next(read for read in decision.also_read if type(read) is Creator).id


# A key's id is text wherever people see it; it is parsed once, not with every command.
_key_id = lru_cache(maxsize=10_000)(UUID)
