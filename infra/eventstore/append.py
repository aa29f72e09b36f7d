"""Appends: what is to be appended, and its outcome."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    _Row = tuple[
        UUID, int, UUID, str, int, datetime | None, UUID, UUID | None, UUID | None, bytes | None, bytes, bytes | None
    ]


class EventRow(NamedTuple):
    """An event, in the order of `append_event`; without `effective_at` it takes effect on recording."""

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


# `event_row` and `appended` make theirs of a tuple: the constructor of a named tuple is a function of Python.
event_row: Final = cast("Callable[[_Row], EventRow]", partial(tuple.__new__, EventRow))


class Appended(NamedTuple):
    """The events were appended at these positions, at this moment."""

    first: int
    last: int
    recorded_at: datetime


appended: Final = cast("Callable[[tuple[int, int, datetime]], Appended]", partial(tuple.__new__, Appended))


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

    def footprint(self) -> tuple[list[int | bytes], list[int], int]:
        """Return what it writes, what it reads, and roughly how many bytes it adds to a batch.

        Of two appends in a batch, neither may write what the other touches. Streams are given as numbers, because a
        UUID's own hash is computed in Python. They, and the keyed hashes of claims and idempotency keys, are unique
        across ledgers.
        """
        writes: list[int | bytes] = [] if self.idempotency is None else [self.idempotency]
        size = 0
        for event in self.events:
            writes.append(event.stream_id.int)
            size += 400 + len(event.body)
            if event.sealed is not None:
                size += len(event.sealed)
        for claim, _, _ in self.claims:
            writes.append(claim)
        return writes, [stream.int for stream, _ in self.expected_versions], size
