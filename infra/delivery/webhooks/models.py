"""What webhooks consist of: endpoints, messages on their way to them, attempts, and what owners see of all that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

DeliveryOutcome = Literal["delivered", "failed", "dead", "disabled"]
DisabledReason = Literal["asked", "gone", "failing", "key"]


@dataclass(frozen=True, slots=True)
class DeliveryPolicy:
    """On what terms messages are sent.

    Attributes:
        retries_s: pauses before the attempts that follow the first, in seconds; after the last, a message is dead.
        jitter: by what part of itself a pause is made longer or shorter, by chance.
        in_flight: messages that are under way to one endpoint at once.
        window: events that are read ahead of the first that is not settled.
        waiting: messages that may wait for their next attempt; beyond, nothing new is read.
        failing_after: attempts that fail in a row before an endpoint is taken to be down.
        probe_s: how often something new is tried while it is, in seconds.
        write_s: how long what happened waits to be written down, in seconds.
        unwritten: attempts that may wait to be written down.

    """

    retries_s: Sequence[float] = (5, 300, 1_800, 7_200, 18_000, 36_000)
    jitter: float = 0.1
    in_flight: int = 16
    window: int = 256
    waiting: int = 1_000
    failing_after: int = 10
    probe_s: float = 60.0
    write_s: float = 0.1
    unwritten: int = 1_000


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint as its sender must know it; URL and secrets are still sealed.

    Attributes:
        revision: counts its changes, and what else its sender must look at.
        resumed: counts those that make the past of its receiver void: another URL, and being enabled again.

    """

    webhook_id: UUID
    ledger_id: int
    ledger_name: str
    revision: int
    url: bytes = field(repr=False)
    types: Sequence[str]
    creator_ids: Sequence[str]
    secret: bytes = field(repr=False)
    old_secret: bytes | None = field(repr=False)
    old_secret_until: datetime | None
    resumed: int
    key_valid: bool


@dataclass(slots=True)
class Message:
    """One event on its way to one endpoint.

    Attributes:
        message_id: the event's id; for a test, an id of its own.
        position: of the event; absent for a test.
        type: its wire name.
        lane: messages of one lane are sent one after the other.
        due: when it may be sent, in seconds since 1970.
        body: what is sent; absent where it is read again when it is due.
        kept: whether it stands in the book as waiting, so that the position may move past it.

    """

    message_id: UUID
    position: int | None
    type: str
    lane: UUID
    due: float = 0.0
    body: bytes | None = field(default=None, repr=False)
    kept: bool = False
    dead: bool = False
    attempts: int = 0
    first_at: datetime | None = None
    status: int | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class DeliveryAttempt:
    """One attempt, for the log of deliveries."""

    message_id: UUID
    position: int | None
    type: str
    attempt: int
    at: datetime
    outcome: DeliveryOutcome
    status: int | None
    error: str | None
    duration_ms: int


@dataclass(slots=True)
class DeliveryProgress:
    """Where an endpoint stood when its sender took over."""

    lease: int
    position: int
    paused_until: datetime | None
    failures: int
    delivered_at: datetime | None


@dataclass(slots=True)
class ProgressWrite:
    """What a sender writes down at once: how far it has come, and what changed since it wrote last.

    Attributes:
        number: counts what one sender writes, from 1.

    """

    number: int = 0
    position: int = 0
    paused_until: datetime | None = None
    failures: int = 0
    keep: dict[UUID, Message] = field(default_factory=dict)
    settle: list[UUID] = field(default_factory=list)
    attempts: list[DeliveryAttempt] = field(default_factory=list)
    disable: DisabledReason | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing changed."""
        return not (self.keep or self.settle or self.attempts or self.disable)


class WebhookNotFound(Exception):
    """There is no such webhook among those of this key."""


class WebhookDisabled(Exception):
    """The webhook is disabled: nothing is sent to it before it is enabled again."""


class TooManyWebhooks(Exception):
    """The ledger has as many webhooks as it may."""


class OwnerKeyInvalid(Exception):
    """The key that the webhook belongs to was revoked or has expired: it cannot be enabled again."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who asks: a key of a ledger; with `all`, for every webhook of the ledger."""

    ledger_id: int
    key_id: UUID
    all: bool

    @property
    def parameters(self) -> dict[str, Any]:
        """What `_OWN` asks for."""
        return {"ledger_id": self.ledger_id, "key_id": None if self.all else self.key_id}


@dataclass(frozen=True, slots=True)
class IdempotentRequest:
    """A request that may be sent again: its Idempotency-Key, and what tells it from another one."""

    key: str
    request_hash: bytes


@dataclass(frozen=True, slots=True)
class Webhook:
    """An endpoint, and how it stands.

    Attributes:
        position: everything up to here was delivered, was not asked for, or waits, or is dead.
        head: the ledger's last position.
        oldest: when the first event beyond `position` was recorded, if there is one.
        waiting: messages that wait for another attempt.
        dead: messages that were given up.
        failures: attempts that failed since one succeeded.
        delivered, failed: attempts in all.

    """

    webhook_id: UUID
    key_id: UUID
    url: str
    description: str | None
    types: Sequence[str]
    creator_ids: Sequence[str]
    created_at: datetime
    disabled: DisabledReason | None
    disabled_at: datetime | None
    old_secret_until: datetime | None
    position: int
    head: int
    oldest: datetime | None
    waiting: int
    dead: int
    failures: int
    delivered: int
    failed: int
    delivered_at: datetime | None
    failed_at: datetime | None
    error: str | None
    paused_until: datetime | None

    @property
    def lag(self) -> int:
        """Events that are not looked at yet."""
        return max(0, self.head - self.position)

    def lag_seconds(self, now: datetime) -> float:
        """Return how long the oldest of them waits, in seconds; 0 where none does."""
        return max(0.0, (now - self.oldest).total_seconds()) if self.oldest else 0.0


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was given up."""

    message_id: UUID
    position: int
    type: str
    attempts: int
    first_at: datetime | None
    status: int | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Delivery:
    """One attempt to deliver."""

    attempt_id: int
    message_id: UUID
    position: int | None
    type: str
    attempt: int
    at: datetime
    outcome: DeliveryOutcome
    status: int | None
    error: str | None
    duration_ms: int
