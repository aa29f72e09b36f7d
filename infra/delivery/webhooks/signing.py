"""What one message consists of: its body, its signature, and how the secret behind it is stored.

The signature follows the Standard Webhooks specification 1.0.0, symmetric scheme `v1`. The body is the event as a
CloudEvent in JSON, the same as every other subscriber gets, and so it holds no secret.
"""

from __future__ import annotations

import base64
import hmac
from typing import TYPE_CHECKING, Final, Literal

import orjson

from infra.crypto.envelope import SealingKey
from infra.delivery.cloud_events import (
    CONTENT_TYPE,
    SPEC_VERSION,
    STRUCTURED_CONTENT_TYPE,
    CloudEvent,
    cloud_event,
    rfc3339,
    source_of,
    structured,
    type_of,
)
from infra.delivery.event_schemas import TEST

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime
    from uuid import UUID

    from domain.recorded import RecordedEvent
    from infra.crypto.envelope import LedgerKeys

HEADERS: Final = {"content-type": STRUCTURED_CONTENT_TYPE, "user-agent": "sparkledger-webhooks/1"}

PREFIX: Final = "whsec_"
# The specification asks for 24 to 64.
SECRET_BYTES: Final = 32

SealedField = Literal["secret", "url", "description", "answer"]

_PURPOSE: Final = "webhooks v1"


def payload(recorded: RecordedEvent, ledger_name: str, history: UUID, public_url: str | None = None) -> bytes:
    """Return the body of the message for an event."""
    return structured(cloud_event(recorded, ledger_name, history, public_url=public_url))


def payload_of_test(message_id: UUID, webhook_id: UUID, ledger_name: str, moment: datetime) -> bytes:
    """Return the body of a test message: shaped like an event, with a type of its own."""
    attributes = {
        "specversion": SPEC_VERSION,
        "id": str(message_id),
        "source": source_of(ledger_name),
        "type": type_of(TEST, 1),
        "subject": f"webhooks/{webhook_id}",
        "time": rfc3339(moment),
        "datacontenttype": CONTENT_TYPE,
    }
    return structured(CloudEvent(str(webhook_id), attributes, orjson.dumps({"webhook_id": webhook_id})))


def signed_headers(message_id: str, timestamp: int, body: bytes, secrets: Iterable[bytes]) -> dict[str, str]:
    """Return the headers that sign a message, with one signature for each secret, so that secrets can be rotated.

    Args:
        message_id: the same for every attempt. It must not contain a full stop, which separates the signed parts.
        timestamp: of this attempt, in whole seconds since 1970.
        body: exactly as it is sent.
        secrets: the secrets that are valid now, the newest first.

    """
    signed = f"{message_id}.{timestamp}.".encode() + body
    signatures = (base64.b64encode(hmac.digest(secret, signed, "sha256")).decode() for secret in secrets)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }


def secret_text(secret: bytes) -> str:
    """Return a secret in the form that its owner is shown once."""
    return PREFIX + base64.b64encode(secret).decode()


class WebhookSealer:
    """Seals and unseals the stored fields of a ledger's webhooks, under a key derived from the ledger's own.

    Secrets and descriptions are sealed, and so is the URL, which may contain a secret too.
    """

    __slots__ = ("_sealing",)

    def __init__(self, keys: LedgerKeys) -> None:
        """Take the ledger's keys."""
        self._sealing = SealingKey(keys.derived(_PURPOSE))

    def seal(self, field: SealedField, content: bytes, webhook_id: UUID) -> bytes:
        """Encrypt a field for storage, bound to its webhook and to its name."""
        return self._sealing.seal(content, _associated_data(field, webhook_id))

    def unseal(self, field: SealedField, sealed: bytes, webhook_id: UUID) -> bytes:
        """Decrypt a stored field.

        Raises:
            InvalidTag: it was altered, or copied from another webhook or field.

        """
        return self._sealing.unseal(sealed, _associated_data(field, webhook_id))


def _associated_data(field: SealedField, webhook_id: UUID) -> bytes:
    return field.encode() + b"\0" + webhook_id.bytes
