"""What is sealed of a webhook before it is stored: secrets, the URL, which may hold one too, and the description."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, Literal

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from infra.crypto.envelope import NONCE_BYTES

if TYPE_CHECKING:
    from uuid import UUID

    from infra.crypto.envelope import LedgerKeys

Field = Literal["secret", "url", "description"]

_PURPOSE: Final = "webhooks v1"


class Sealing:
    """Seals and unseals what is stored of a ledger's webhooks, under a key that the ledger's own is the root of."""

    __slots__ = ("_cipher",)

    def __init__(self, keys: LedgerKeys) -> None:
        """Take the ledger's keys."""
        self._cipher = AESGCM(keys.derived(_PURPOSE))

    def seal(self, field: Field, content: bytes, webhook_id: UUID) -> bytes:
        """Encrypt a field for storage, bound to its webhook and to what it is."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, content, _place(field, webhook_id))

    def unseal(self, field: Field, sealed: bytes, webhook_id: UUID) -> bytes:
        """Decrypt a stored field.

        Raises:
            InvalidTag: it was altered, or copied from another webhook or field.

        """
        return self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _place(field, webhook_id))


def _place(field: Field, webhook_id: UUID) -> bytes:
    return field.encode() + b"\0" + webhook_id.bytes
