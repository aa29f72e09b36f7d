"""The models of webhooks: endpoints, messages, attempts, and what owners are shown of them.

A message is *open* while it is new, *parked* while it waits for another attempt, *acknowledged* once the receiver has
accepted it, and *dead* once it is given up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

DeliveryOutcome = Literal["delivered", "failed", "dead", "disabled"]
DisabledReason = Literal["asked", "gone", "failing", "key"]


class WebhookNotFound(Exception):
    """The key owns no such webhook."""


class WebhookDisabled(Exception):
    """The webhook is disabled. Nothing is sent to it until it is enabled again."""


class TooManyWebhooks(Exception):
    """The ledger, or the key, has reached its limit of webhooks."""


class OwnerKeyInvalid(Exception):
    """The webhook cannot be enabled: the key that it belongs to was revoked or has expired."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The API key that owns webhooks. With `all`, it acts for every webhook of its ledger."""

    ledger_id: int
    key_id: UUID
    all: bool

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of the SQL condition on the owner."""
        return {"ledger_id": self.ledger_id, "key_id": None if self.all else self.key_id}


@dataclass(frozen=True, slots=True)
class Webhook:
    """A webhook as its owner sees it.

    Attributes:
        position: every event up to here is delivered, filtered out, parked or dead.
        head: the ledger's last position.
        oldest: when the first event beyond `position` was recorded; None where there is none.
        waiting: the number of parked messages.
        dead: the number of dead messages.
        failures: attempts that have failed since the last success.
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
        """The number of events beyond `position`."""
        return max(0, self.head - self.position)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead message as its owner sees it."""

    message_id: UUID
    position: int
    type: str
    attempts: int
    first_at: datetime | None
    status: int | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Delivery:
    """An attempt as its owner sees it."""

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
    answer: str | None


@dataclass(frozen=True, slots=True)
class ReplayRange:
    """Which events of a ledger are to be sent again: those after a position, up to another."""

    after: int
    upto: int


@dataclass(frozen=True, slots=True)
class Replayed:
    """How many messages are sent again, and the position to ask for the rest after; None where that is all."""

    messages: int
    next: int | None = None


@dataclass(frozen=True, slots=True)
class DeliveryPolicy:
    """The limits and pauses of delivery.

    Attributes:
        retries_s: the pause before each further attempt, in seconds. After the last one a message is dead.
        jitter: the fraction by which a pause is randomly longer or shorter.
        in_flight: messages that are sent to one endpoint at the same time.
        window: events that are read ahead of the first one that is still open.
        waiting: messages that may be parked. At this number no further event is read.
        failing_after: attempts that must fail in a row before an endpoint counts as down.
        probe_s: the longest pause between two attempts while an endpoint is down, in seconds, if anything is due. The
            first pauses are those of `retries_s`.
        write_s: how long progress may wait to be written, in seconds.
        unwritten: attempts that may wait to be written.

    """

    retries_s: Sequence[float] = (5, 10, 20, 40, 60, 300, 1_800, 7_200, 18_000, 36_000)
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
    """A webhook as its sender sees it. Its URL and secrets are still sealed.

    Attributes:
        revision: counts every change that the sender must notice.
        resumed: counts the changes that void the receiver's past: another URL, or being enabled again.
        history: the present history of the ledger.
        whole: whether nothing speaks against handing out the ledger's events.
        moved, moved_to: counts the times that the owner moved it, the last time to the position after which it sends.
        retried: counts the times that the owner asked for all retries at once.

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
    moved: int
    moved_to: int | None
    retried: int
    key_valid: bool
    history: UUID
    whole: bool


@dataclass(slots=True)
class Message:
    """One event on its way to one endpoint.

    Attributes:
        message_id: the event's id. A test message has an id of its own.
        position: the event's position; None for a test message.
        type: the event type.
        ordering_key: messages with the same key are sent one after the other.
        due: when it may be sent, in seconds since 1970.
        replayed: whether the owner asked for it again.
        body: what is sent; None where it is read from the log again when it is due.
        parked: whether it waits in the database, so that the webhook's position may move past it.

    """

    message_id: UUID
    position: int | None
    type: str
    ordering_key: UUID
    due: float = 0.0
    body: bytes | None = field(default=None, repr=False)
    parked: bool = False
    dead: bool = False
    replayed: bool = False
    attempts: int = 0
    first_at: datetime | None = None
    status: int | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class DeliveryAttempt:
    """One attempt to deliver a message, as it is written to the log of deliveries."""

    message_id: UUID
    position: int | None
    type: str
    attempt: int
    at: datetime
    outcome: DeliveryOutcome
    status: int | None
    error: str | None
    duration_ms: int
    answer: bytes | None


@dataclass(slots=True)
class DeliveryProgress:
    """The progress of an endpoint when a sender takes over."""

    lease: int
    position: int
    paused_until: datetime | None
    failures: int
    delivered_at: datetime | None


@dataclass(slots=True)
class ProgressWrite:
    """One write of a sender: its progress, and everything that changed since its last write.

    Attributes:
        number: counts the writes of one sender, from 1.
        parked: messages to store, parked or dead.
        acked: parked messages to remove.

    """

    number: int = 0
    position: int = 0
    paused_until: datetime | None = None
    failures: int = 0
    parked: dict[UUID, Message] = field(default_factory=dict)
    acked: list[UUID] = field(default_factory=list)
    attempts: list[DeliveryAttempt] = field(default_factory=list)
    disable: DisabledReason | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing has changed."""
        return not (self.parked or self.acked or self.attempts or self.disable)
