"""Appends: what is to be appended, its outcome, and how a batch of them is passed to the function `append`.

The function's parameters, in `0001_log.sql`, are columns: arrays with one element for each append, expected version,
event or claim.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import datetime
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from projections.engine.array_columns import Byteas, Ints, Texts, Times, Uuids

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from infra.postgres.prepared_statement import Statement
    from infra.postgres.session_tokens import SessionTokens
    from projections.engine.array_columns import Array


class EventRow(NamedTuple):
    """An event, in the order of the columns of `append`; without `effective_at` it takes effect on recording."""

    stream_id: UUID
    version: int
    event_id: UUID
    type: str
    type_version: int
    effective_at: datetime | None
    creator_stream: UUID
    causation_id: UUID | None
    key_id: UUID | None
    commitment: bytes | None
    body: bytes
    sealed: bytes | None


class Appended(NamedTuple):
    """The events were appended at these positions, at this moment."""

    first: int
    last: int
    recorded_at: datetime


@dataclass(frozen=True, slots=True)
class Replayed:
    """The same request was appended before, at these positions."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class ConcurrencyConflict:
    """Another writer came first to a stream or a claim, or the decision is no longer valid: decide again.

    Attributes:
        at: the ledger's time, if it has passed `Append.valid_until`; to decide as of an earlier time would end in the
            same conflict.

    """

    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The idempotency key belongs to another request."""


@dataclass(frozen=True, slots=True)
class KeyRefused:
    """The API key is no longer valid."""


Outcome = Appended | Replayed | ConcurrencyConflict | Mismatch | KeyRefused
_REFUSED: Final[dict[str, Outcome]] = {
    "conflict": ConcurrencyConflict(),
    "taken": ConcurrencyConflict(),
    "mismatch": Mismatch(),
    "key": KeyRefused(),
}


@dataclass(slots=True)
class Append:
    """Events to append, all or none, and what must be true for that.

    Attributes:
        expected_versions: streams with the version that each must have; 0 for a stream that must not exist yet.
        claims: keyed hashes of names, with the stream that must hold each and the stream that shall hold it.
        creator_id, video_id: whom and what its events concern, where it is a creator or a code.
        idempotency: a hash of the idempotency key, if there is one; `request_hash` then tells requests apart.
        valid_until: the end of a window that the decision relied on; it is void if the ledger's time is later.
        cached_in: the number of the writer's session whose cache the decision relied on; None if it relied on none.
        answer: resolved with the outcome; set by the writer.
        sent: how often it was sent; counted by the writer.

    """

    ledger_id: int
    events: Sequence[EventRow]
    expected_versions: Sequence[tuple[UUID, int]]
    claims: Sequence[tuple[bytes, UUID | None, UUID | None]]
    role: str
    source: str
    command_id: UUID
    subject: str | None = None
    api_key: UUID | None = None
    idempotency: bytes | None = None
    request_hash: bytes | None = None
    correlation_id: str | None = None
    traceparent: str | None = None
    creator_id: str | None = None
    video_id: str | None = None
    valid_until: datetime | None = None
    cached_in: int | None = None
    answer: asyncio.Future[Outcome] = field(init=False)
    sent: int = field(init=False, default=0)

    def touches(self) -> tuple[list[int | bytes], list[int]]:
        """Return what it writes and what it reads: of two appends in a batch, neither may write what the other touches.

        Streams are given as numbers, because a UUID's own hash is computed in Python. They, and the keyed hashes of
        claims and idempotency keys, are unique across ledgers.
        """
        writes: list[int | bytes] = [event.stream_id.int for event in self.events]
        writes.extend(claim[0] for claim in self.claims)
        if self.idempotency is not None:
            writes.append(self.idempotency)
        return writes, [stream.int for stream, _ in self.expected_versions]

    def size(self) -> int:
        """Return roughly how many bytes it adds to a batch."""
        size = 0
        for event in self.events:
            size += 400 + len(event.body)
            if event.sealed is not None:
                size += len(event.sealed)
        return size


# The columns of `append`: appends, expected versions, events, claims.
TYPES: Final[tuple[type[Array], ...]] = (
    *(Ints, Byteas, Byteas, Uuids, Ints, Ints, Byteas, Texts, Texts, Texts, Uuids, Texts, Texts, Texts, Texts, Times),
    *(Ints, Uuids, Ints),
    *(Ints, Uuids, Ints, Uuids, Texts, Ints, Times, Uuids, Uuids, Uuids, Byteas, Byteas, Byteas),
    *(Ints, Byteas, Uuids, Uuids),
)
_PARAMETERS: Final = ", ".join(f"${number}" for number in range(1, len(TYPES) + 1))
TEXT: Final = f"SELECT caller, outcome, a, b, stream, actual, at FROM append({_PARAMETERS})"


async def call(statement: Statement, batch: Sequence[Append], tokens: SessionTokens) -> list[Outcome]:
    """Append a batch with the prepared statement, and return the outcomes, in the order of the batch.

    Raises:
        psycopg.Error: nothing was appended; or, if the session is closed now, it is not known what was.

    """
    columns = [
        *_of_callers(batch, tokens),
        *_of_rows([request.expected_versions for request in batch], 2),
        *_of_rows([request.events for request in batch], len(EventRow._fields)),
        *_of_rows([request.claims for request in batch], 3),
    ]
    rows = await statement.call([array(column) for array, column in zip(TYPES, columns, strict=True)])
    return _outcomes(batch, rows)


def _of_callers(batch: Sequence[Append], tokens: SessionTokens) -> list[list[Any]]:
    counts = [len(request.events) for request in batch]
    return [
        [request.ledger_id for request in batch],
        [request.idempotency for request in batch],
        [request.request_hash for request in batch],
        [request.api_key for request in batch],
        [*accumulate(counts[:-1], initial=1)],
        counts,
        [tokens.key(request.api_key) for request in batch],
        [request.role for request in batch],
        [request.subject for request in batch],
        [request.source for request in batch],
        [request.command_id for request in batch],
        [request.correlation_id for request in batch],
        [request.traceparent for request in batch],
        [request.creator_id for request in batch],
        [request.video_id for request in batch],
        [request.valid_until for request in batch],
    ]


def _of_rows(rows: list[Sequence[tuple[Any, ...]]], width: int) -> list[Sequence[Any]]:
    """Return the rows' columns, and before them a column with the number of each row's append."""
    numbers = [number for number, of_caller in enumerate(rows, 1) for _ in of_caller]
    return [numbers, *(zip(*chain.from_iterable(rows), strict=True) if numbers else [()] * width)]


def _outcomes(batch: Sequence[Append], rows: list[Any]) -> list[Outcome]:
    """Return the outcomes; positions follow from the order of the appends that were accepted."""
    bases = {ledger: (base, at) for caller, _, base, ledger, _, _, at in rows if caller is None}
    refused = {
        caller: _refused(outcome, first, last, at)
        for caller, outcome, first, last, _, _, at in rows
        if caller is not None
    }
    outcomes: list[Outcome] = []
    next_position = {ledger: base + 1 for ledger, (base, _) in bases.items()}
    for number, request in enumerate(batch, 1):
        outcome = refused.get(number)
        if outcome is None:
            first = next_position[request.ledger_id]
            last = first + len(request.events) - 1
            next_position[request.ledger_id] = last + 1
            outcome = Appended(first, last, bases[request.ledger_id][1])
        outcomes.append(outcome)
    return outcomes


def _refused(outcome: str, first: int, last: int, at: datetime | None) -> Outcome:
    if outcome == "replay":
        return Replayed(first, last)
    return _REFUSED[outcome] if at is None else ConcurrencyConflict(at)
