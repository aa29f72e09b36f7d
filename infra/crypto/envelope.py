"""Keys, and what is done with them: sealing and unsealing, fingerprints, the master key that wraps the others.

    master key ─┬─ wraps a key per creator: seals the secrets and notes of that creator's codes (AES-256-GCM)
                ├─ wraps a fingerprint key per ledger: keyed hashes of secrets and ids; never replaced
                └─ wraps the one key that API keys are hashed with; never replaced

Nothing here talks to a database. `master_keys` says where a master key comes from, `keyring` looks up what it
wraps, `rotation` puts another in its place.
"""

from __future__ import annotations

import base64
import hashlib
import os
from typing import TYPE_CHECKING, Final, NamedTuple

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from domain.values import Sealed
from infra.ids import random_16

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
SALT_BYTES: Final = 32
# Keyed hashes are index keys, read at random: 16 bytes keep them short and still far from colliding.
FINGERPRINT_BYTES: Final = 16
MASTER_KEY_ID_BYTES: Final = 8
API_KEY_HASH_BYTES: Final = 32


class MasterKeyError(Exception):
    """The master key is missing, malformed, or not the one that this database's keys are wrapped with."""


class SealedPart(NamedTuple):
    """The encrypted part of an event as a row holds it."""

    key_id: UUID
    commitment: bytes
    sealed: bytes


class MasterKey:
    """The master key in memory, and others that it takes the place of while something is still wrapped with them.

    Implements `infra.crypto.master_keys.KeyProvider`; nothing here waits.
    """

    def __init__(self, key: bytes, *others: bytes) -> None:
        """Take the keys' 32 bytes each."""
        self._wrapping: dict[str, AESGCM] = {}
        for known in (key, *others):
            if len(known) != KEY_BYTES:
                message = f"The master key must be {KEY_BYTES} bytes, base64 encoded."
                raise MasterKeyError(message)
            key_id = _derived(known, b"sparkledger master key id v1")[:MASTER_KEY_ID_BYTES].hex()
            self._wrapping[key_id] = AESGCM(_derived(known, b"sparkledger wrap v1"))

    @classmethod
    def from_text(cls, text: str, *others: str) -> MasterKey:
        """Read the keys from their base64 texts.

        Raises:
            MasterKeyError: one is not base64 of 32 bytes.

        """
        try:
            return cls(*(base64.b64decode(one, validate=True) for one in (text, *others)))
        except ValueError as error:  # also of text that is not ASCII
            message = f"The master key must be {KEY_BYTES} bytes, base64 encoded."
            raise MasterKeyError(message) from error

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The short ids of the keys, the master key's first; they tell nothing of the keys."""
        return tuple(self._wrapping)

    async def wrap(self, key_id: str, key: bytes, purpose: str) -> bytes:
        """Encrypt a key with the master key of an id.

        Raises:
            MasterKeyError: that master key is not among those given.

        """
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._with(key_id).encrypt(nonce, key, purpose.encode())

    async def unwrap(self, key_id: str, wrapped: bytes, purpose: str) -> bytes:
        """Decrypt a key that was wrapped with the master key of an id, for the same purpose.

        Raises:
            MasterKeyError: that master key is not among those given, or what was wrapped was changed.

        """
        cipher = self._with(key_id)
        try:
            return cipher.decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], purpose.encode())
        except (InvalidTag, ValueError) as error:  # too short for a nonce is a ValueError
            message = (
                f"The {purpose} does not open with the master key that it names: it was altered, or copied from "
                "another row. Restore it from a backup."
            )
            raise MasterKeyError(message) from error

    def _with(self, key_id: str) -> AESGCM:
        try:
            return self._wrapping[key_id]
        except KeyError:
            raise MasterKeyError(not_given(key_id, self.key_ids)) from None


def not_given(key_id: str, given: Sequence[str]) -> str:
    """Say that a master key is needed that was not given, by ids, and what to do."""
    return (
        f"The database's keys are wrapped with another master key than the one given: with {key_id}, and given is "
        f"{', '.join(given)}. Set SPARKLEDGER_MASTER_KEY to the key that this database has; while another takes its "
        "place, to the new one, and SPARKLEDGER_MASTER_KEY_PREVIOUS to the one before. `sparkledger master-key show` "
        "tells the id of each."
    )


class ApiKeyHashing:
    """The key that API keys are hashed with, in use."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        """Take the unwrapped key."""
        self._key = key

    def hash(self, presented: str) -> bytes:
        """Hash an API key as it is stored: keyed, and fast, for a random key needs no slow hash."""
        text = presented.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(text, digest_size=API_KEY_HASH_BYTES, key=self._key, person=b"api keys").digest()


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

    def derived(self, purpose: str) -> bytes:
        """Return the ledger's key for another purpose: 32 bytes, the same each time, and as lasting as this one."""
        return _derived(self._key, f"sparkledger {purpose}".encode())

    def fingerprint(self, text: str) -> str:
        """Hash a secret text for an event's clear body, in hexadecimal."""
        return self.claim("fingerprint", text).hex()


class CreatorKey:
    """The key that one creator's sealed parts are under, in use."""

    __slots__ = ("_cipher", "_id_bytes", "_marking", "key_id")

    def __init__(self, key_id: UUID, key: bytes) -> None:
        """Take the unwrapped key."""
        self.key_id = key_id
        self._id_bytes = key_id.bytes
        self._cipher = AESGCM(key)
        self._marking = hashlib.blake2b(digest_size=KEY_BYTES, key=key, person=b"note marks").digest()

    def mark(self, text: str) -> str:
        """Hash a note for an event's clear body, in hexadecimal: the same note of the same creator is known again."""
        return hashlib.blake2b(text.encode(), digest_size=FINGERPRINT_BYTES, key=self._marking).hexdigest()

    def seal(self, fields: dict[str, str], associated_data: bytes) -> SealedPart:
        """Encrypt the fields of an event for its place in the log.

        AES-GCM does not commit to its key: the salted hash beside it does, and lets a proof be checked by whoever has
        no key, also after the key is gone.
        """
        plaintext = random_16() + random_16() + orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)
        nonce = random_16()[:NONCE_BYTES]
        return SealedPart(
            key_id=self.key_id,
            commitment=hashlib.sha256(plaintext).digest(),
            sealed=nonce + self._cipher.encrypt(nonce, plaintext, associated_data + self._id_bytes),
        )

    def unseal(self, sealed: bytes, associated_data: bytes) -> dict[str, Sealed]:
        """Decrypt the fields of an event."""
        plaintext = self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], associated_data + self._id_bytes)
        return {name: Sealed(value) for name, value in orjson.loads(plaintext[SALT_BYTES:]).items()}


def associated_data(ledger_id: int, stream_id: UUID, version: int, event_id: UUID, type_: str) -> bytes:
    """Return what a sealed part is bound to: moved to any other row, it does not open."""
    return b"%d\0%b%d\0%b%b\0" % (ledger_id, stream_id.bytes, version, event_id.bytes, type_.encode())


def fresh_key() -> bytes:
    """Return 32 random bytes."""
    return os.urandom(KEY_BYTES)


def _derived(key: bytes, purpose: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=purpose).derive(key)
