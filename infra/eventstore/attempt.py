"""One attempt at a command: what was asked, what was decided, and the rows that this makes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, cast
from uuid import UUID

from domain.commands import A, Decision, When
from domain.creator import Creator
from infra.crypto.envelope import associated_data
from infra.eventstore.append import Append, EventRow
from infra.eventstore.serialization import event_type, split_sealed
from infra.ids import uuid7

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from domain.errors import Refused
    from domain.recorded import Event
    from domain.values import Actor
    from infra.crypto.envelope import CreatorKey
    from infra.crypto.keyring import Keyring
    from infra.eventstore.repository import Repository


class CommandMetadata(NamedTuple):
    """What is known of a command besides what it asks for.

    Attributes:
        ledger_id: the ledger of the caller's key.
        actor: who asks; `actor.key_id` is the API key's UUID as text, or the clock's name.
        request_hash: 16 bytes over method, path and body; what tells a repeat from a misuse of its key.
        effective_at: when it was true in the world, where that is not now.

    """

    ledger_id: int
    actor: Actor
    correlation_id: str | None = None
    traceparent: str | None = None
    idempotency_key: str | None = None
    request_hash: bytes = b""
    effective_at: datetime | None = None


@dataclass(eq=False, slots=True)
class Attempt(Generic[A]):
    """One attempt at a command: when, what was read, what came out."""

    request: CommandMetadata
    when: When
    session: Repository
    decision: Decision[A] | None
    events: Sequence[Event]
    refusal: Refused | None

    @property
    def decided(self) -> Decision[A]:
        """The decision, where there are events to append."""
        return cast("Decision[A]", self.decision)

    @property
    def must_reload(self) -> bool:
        """Whether it guessed, and would append nothing that could prove the guess right."""
        return self.session.used_stale and (self.refusal is not None or not self.events)

    def dated(self, event: Event) -> bool:
        """Tell whether an event's effective time is stated, by the caller or a window's end; else it is recording's."""
        return self.request.effective_at is not None or event.timestamp != self.when.at

    async def append(self, keyring: Keyring, command_id: UUID, idempotency: bytes | None) -> Append:
        """Return what is to be appended, its secret parts sealed with their creator's key.

        Raises:
            Refused: `creator_erased`, where there is something to seal and no key any more.

        """
        request, session = self.request, self.session
        decision: Decision[A] = self.decided
        aggregate = decision.aggregate
        bodies = [split_sealed(event) for event in self.events]
        key = None
        if any(secret for _, secret in bodies):
            key = await keyring.creator(request.ledger_id, aggregate.creator_id)
        creator_stream = self._creator_stream()
        return Append(
            ledger_id=request.ledger_id,
            events=[
                self._row(event, *body, key, creator_stream) for event, body in zip(self.events, bodies, strict=True)
            ],
            expected_versions=[
                (aggregate.id, aggregate.version - len(self.events)),
                *[(read.id, read.version) for read in decision.also_read],
            ],
            claims=[(session.claim(claim.kind, claim.name), claim.expected, claim.new) for claim in decision.claims],
            role=request.actor.role,
            source=request.actor.source,
            command_id=command_id,
            subject=request.actor.subject,
            api_key=None if request.actor.role == "clock" else _key_id(request.actor.key_id),
            idempotency=idempotency,
            request_hash=request.request_hash,
            correlation_id=request.correlation_id,
            traceparent=request.traceparent,
            valid_until=None if request.effective_at is not None else decision.valid_until,
            cached_in=session.began_in if session.used_stale else None,
        )

    def _row(
        self, event: Event, clear: bytes, secret: dict[str, str], key: CreatorKey | None, creator_stream: UUID
    ) -> EventRow:
        """Make an event's row: its clear body, and its secret fields sealed for its place in the log."""
        stream_id: UUID = self.decided.aggregate.id
        event_id = uuid7()
        type_, type_version = event_type(event)
        sealed: Any = _NOTHING_SEALED
        if secret:
            assert key is not None  # noqa: S101 - `append` has looked it up for whatever has something to seal
            where = associated_data(self.request.ledger_id, stream_id, event.originator_version, event_id, type_)
            sealed = key.seal(secret, where)
        return EventRow(
            stream_id=stream_id,
            version=event.originator_version,
            event_id=event_id,
            type=type_,
            type_version=type_version,
            effective_at=event.timestamp if self.dated(event) else None,
            creator_stream=creator_stream,
            causation_id=None,
            key_id=sealed[0],
            commitment=sealed[1],
            body=clear,
            sealed=sealed[2],
        )

    def _creator_stream(self) -> UUID:
        """Return the stream of the creator whom it concerns: their own, or the one their code remembers."""
        aggregate = self.decided.aggregate
        if isinstance(aggregate, Creator):
            return aggregate.id
        known = self.session.loaded.get(aggregate.id)
        if known is not None:
            return known.creator_stream
        return next(read.id for read in self.decided.also_read if isinstance(read, Creator))


_NOTHING_SEALED: Final = (None, None, None)
# A key's id is text wherever people see it; it is parsed once, not with every command.
_key_id = lru_cache(maxsize=10_000)(UUID)
