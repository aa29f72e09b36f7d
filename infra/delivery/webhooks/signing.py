"""Secrets and signatures of webhooks, by the Standard Webhooks specification 1.0.0, symmetric scheme `v1`."""

from __future__ import annotations

import base64
import hmac
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

    from infra.crypto.envelope import LedgerKeys

PREFIX: Final = "whsec_"
# The specification asks for 24 to 64.
SECRET_BYTES: Final = 32
SALT_BYTES: Final = 16


def secret_text(secret: bytes) -> str:
    """Return a secret as its holder is shown it, once."""
    return PREFIX + base64.b64encode(secret).decode()


def secret_told_again(keys: LedgerKeys, key_id: UUID, idempotency_key: str, salt: str) -> bytes:
    """Return the secret that a request with an Idempotency-Key gets: the same each time, and stored nowhere for it.

    Args:
        keys: the ledger's.
        key_id: who asked.
        idempotency_key: the request's.
        salt: made for the request when it was new. A key that is used once more, after requests are forgotten, must not
            bring an old secret back.

    """
    asked = f"{key_id}\0{idempotency_key}\0{salt}".encode()
    return hmac.digest(keys.derived("webhook secrets asked for v1"), asked, "sha256")


def signed_headers(message_id: str, timestamp: int, body: bytes, secrets: Iterable[bytes]) -> dict[str, str]:
    """Return the headers of a message: one signature for each secret, so that one can be exchanged for another.

    Args:
        message_id: the same for every attempt; without a full stop, which separates what is signed.
        timestamp: of this attempt, in whole seconds since 1970.
        body: exactly as it is sent.
        secrets: those that are valid now, the newest first.

    """
    signed = f"{message_id}.{timestamp}.".encode() + body
    signatures = (base64.b64encode(hmac.digest(secret, signed, "sha256")).decode() for secret in secrets)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }
