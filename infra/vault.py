"""Keys, and what is done with them: sealing and unsealing, fingerprints, the master key that wraps the others.

    master key ─┬─ wraps a key per creator: seals the secrets and notes of that creator's codes (AES-256-GCM)
                ├─ wraps a fingerprint key per ledger: keyed hashes of secrets, ids and notes; never rotated
                └─ derives the key that API keys are hashed with

Nothing here talks to a database but through the two look-ups it is handed rows from.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from domain.values import Sealed
from infra.ids import random_16

if TYPE_CHECKING:
    from uuid import UUID

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
SALT_BYTES: Final = 32
# Keyed hashes are index keys, read at random: 16 bytes keep them short and still far from colliding.
FINGERPRINT_BYTES: Final = 16


class MasterKeyError(Exception):
    """The master key is missing, malformed, or not the one that this database's keys are wrapped with."""


@dataclass(frozen=True, slots=True)
class SealedPart:
    """The encrypted part of an event as a row holds it."""

    key_id: UUID
    commitment: bytes
    sealed: bytes


class MasterKey:
    """The one key that is not in the database."""

    def __init__(self, key: bytes) -> None:
        """Take the key's 32 bytes."""
        if len(key) != KEY_BYTES:
            message = f"The master key must be {KEY_BYTES} bytes, base64 encoded."
            raise MasterKeyError(message)
        self._wrapping = AESGCM(_derived(key, b"sparkledger wrap v1"))
        self._api_keys = _derived(key, b"sparkledger api keys v1")

    @classmethod
    def from_text(cls, text: str) -> MasterKey:
        """Read the key from its base64 text.

        Raises:
            MasterKeyError: it is not base64 of 32 bytes.

        """
        try:
            return cls(base64.b64decode(text, validate=True))
        except ValueError as error:  # also of text that is not ASCII
            message = f"The master key must be {KEY_BYTES} bytes, base64 encoded."
            raise MasterKeyError(message) from error

    def wrap(self, key: bytes, purpose: str) -> bytes:
        """Encrypt a key for storage; `purpose` binds it to its place, so that rows cannot be swapped."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._wrapping.encrypt(nonce, key, purpose.encode())

    def unwrap(self, wrapped: bytes, purpose: str) -> bytes:
        """Decrypt a stored key.

        Raises:
            MasterKeyError: it was wrapped with another master key, or for another place.

        """
        try:
            return self._wrapping.decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], purpose.encode())
        except InvalidTag as error:
            message = (
                "The database's keys are wrapped with another master key than the one given. "
                "Set SPARKLEDGER_MASTER_KEY to the key that this database was created with."
            )
            raise MasterKeyError(message) from error

    def api_key_hash(self, presented: str) -> bytes:
        """Hash an API key as it is stored: keyed, and fast, for a random key needs no slow hash."""
        return hmac.digest(self._api_keys, presented.encode("utf-8", "surrogatepass"), "sha256")


class LedgerKeys:
    """A ledger's fingerprint key, in use."""

    __slots__ = ("_key",)

    def __init__(self, fingerprint_key: bytes) -> None:
        """Take the unwrapped key."""
        self._key = fingerprint_key

    def claim(self, kind: str, name: str) -> bytes:
        """Hash a name for the claims table; `kind` keeps a video from ever colliding with a secret.

        BLAKE2b with its own key and personalisation (RFC 7693) is a keyed hash as HMAC is one, in a third of the time.
        """
        person = kind.encode()
        return hashlib.blake2b(name.encode(), digest_size=FINGERPRINT_BYTES, key=self._key, person=person).digest()

    def fingerprint(self, text: str) -> str:
        """Hash a secret text for an event's clear body, in hexadecimal."""
        return self.claim("fingerprint", text).hex()


class CreatorKey:
    """The key that one creator's sealed parts are under, in use."""

    __slots__ = ("_cipher", "key_id")

    def __init__(self, key_id: UUID, key: bytes) -> None:
        """Take the unwrapped key."""
        self.key_id = key_id
        self._cipher = AESGCM(key)

    def seal(self, fields: dict[str, str], place: bytes) -> SealedPart:
        """Encrypt the fields of an event for its place in the log.

        AES-GCM does not commit to its key: the salted hash beside it does, and lets a proof be checked by whoever has
        no key, also after the key is gone.
        """
        plaintext = random_16() + random_16() + orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)
        nonce = random_16()[:NONCE_BYTES]
        return SealedPart(
            key_id=self.key_id,
            commitment=hashlib.sha256(plaintext).digest(),
            sealed=nonce + self._cipher.encrypt(nonce, plaintext, place + self.key_id.bytes),
        )

    def unseal(self, sealed: bytes, place: bytes) -> dict[str, Sealed]:
        """Decrypt the fields of an event."""
        plaintext = self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], place + self.key_id.bytes)
        return {name: Sealed(value) for name, value in orjson.loads(plaintext[SALT_BYTES:]).items()}


def place(ledger_id: int, stream_id: UUID, version: int, event_id: UUID, type_: str) -> bytes:
    """Return what a sealed part is bound to: moved to any other row, it does not open."""
    return b"%d\0%b%d\0%b%b\0" % (ledger_id, stream_id.bytes, version, event_id.bytes, type_.encode())


def fresh_key() -> bytes:
    """Return 32 random bytes."""
    return os.urandom(KEY_BYTES)


def _derived(key: bytes, purpose: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=purpose).derive(key)
