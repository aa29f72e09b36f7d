"""What owners of webhooks ask, are shown, and may be refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from infra.delivery.webhooks.messages import Disabled, Outcome


class WebhookUnknown(Exception):
    """There is no such webhook among those of this key."""


class WebhookDisabled(Exception):
    """The webhook is disabled: nothing is sent to it before it is enabled again."""


class TooManyWebhooks(Exception):
    """The ledger has as many webhooks as it may."""


class OwnerInvalid(Exception):
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
    disabled: Disabled | None
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
    outcome: Outcome
    status: int | None
    error: str | None
    duration_ms: int
