"""Envelope encryption: the master key wraps other keys, and those seal, fingerprint and hash.

    master key ─┬─ wraps a key per creator, which the key of an epoch seals once more: see `epochs`
                │    it seals the secrets and notes of that creator's codes
                ├─ wraps a fingerprint key per ledger: keyed hashes of secrets and ids; never replaced
                └─ wraps the one key that API keys are hashed with; never replaced

Nothing here uses a database. `master_keys` provides the master key, `keyring` looks up what it wraps, and `rotation`
replaces it.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Final, NamedTuple

import orjson
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from domain.pasted import creator_name
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


class SealingKey:
    """AES-256-GCM under one key. What it seals is a nonce of 12 bytes, then the ciphertext with its tag of 16 bytes.

    Everything that is stored encrypted is sealed here.
    """

    __slots__ = ("_cipher",)

    def __init__(self, key: bytes) -> None:
        """Take the key's 32 bytes."""
        self._cipher = AESGCM(key)

    def seal(self, content: bytes, associated_data: bytes | None, nonce: bytes | None = None) -> bytes:
        """Encrypt content for one place: it opens only with the same associated data.

        A nonce that is given, of 12 bytes, must never be used for other content under this key.
        """
        nonce = nonce or random_16()[:NONCE_BYTES]
        return nonce + self._cipher.encrypt(nonce, content, associated_data)

    def unseal(self, sealed: bytes, associated_data: bytes | None) -> bytes:
        """Decrypt what was sealed.

        Raises:
            InvalidTag: it was altered, or sealed with another key or for another place.
            ValueError: it is too short for a nonce.

        """
        return self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], associated_data)


class MasterKeyError(Exception):
    """The master key is missing, malformed, or not the one that this database's keys are wrapped with."""


class SealedPart(NamedTuple):
    """The encrypted part of an event, as its row stores it."""

    key_id: UUID
    commitment: bytes
    sealed: bytes


def not_given(key_id: str, given: Sequence[str]) -> str:
    """Return the error message for a master key that is needed and was not given."""
    return (
        f"The database's keys are wrapped with master key {key_id}, but the given master key is "
        f"{', '.join(given)}. Set SPARKLEDGER_MASTER_KEY to the database's master key. During a rotation, set "
        "SPARKLEDGER_MASTER_KEY to the new key and SPARKLEDGER_MASTER_KEY_PREVIOUS to the old one. "
        "`sparkledger master-key show` shows the ids."
    )


class ApiKeyHashing:
    """The unwrapped key that API keys are hashed with."""

    __slots__ = ("_begun", "_key")

    def __init__(self, key: bytes) -> None:
        """Take the unwrapped key."""
        self._key = key
        self._begun = hashlib.blake2b(digest_size=API_KEY_HASH_BYTES, key=key, person=b"api keys")

    def hash(self, presented: str) -> bytes:
        """Return the hash under which an API key is stored. It is keyed, and fast: a random key needs no slow hash."""
        hashed = self._begun.copy()
        hashed.update(presented.encode("utf-8", "surrogatepass"))
        return hashed.digest()

    def derived(self, purpose: str) -> bytes:
        """Return a key for another purpose: 32 bytes, derived from this key and so always the same."""
        return derived(self._key, f"sparkledger {purpose}".encode())


class LedgerKeys:
    """The unwrapped fingerprint key of a ledger."""

    __slots__ = ("_begun", "_key")

    def __init__(self, fingerprint_key: bytes) -> None:
        """Take the unwrapped key."""
        self._key = fingerprint_key
        # By the kind of the name. To begin with a key is half of the work of hashing a name.
        self._begun: dict[str, hashlib.blake2b] = {}

    def claim(self, kind: str, name: str) -> bytes:
        """Return the hash of a name for the claims table; with `kind`, a video and a secret never collide.

        A creator has one name, however their id is spelled.

        BLAKE2b with a key and a personalisation (RFC 7693) is a keyed hash, as HMAC is, in a third of the time.
        """
        if kind == "creator":
            name = creator_name(name)
        try:
            hashed = self._begun[kind].copy()
        except KeyError:
            begun = hashlib.blake2b(digest_size=FINGERPRINT_BYTES, key=self._key, person=kind.encode())
            self._begun[kind] = begun
            hashed = begun.copy()
        hashed.update(name.encode())
        return hashed.digest()

    def derived(self, purpose: str) -> bytes:
        """Return the ledger's key for another purpose: 32 bytes, derived from this key and so always the same."""
        return derived(self._key, f"sparkledger {purpose}".encode())

    def fingerprint(self, text: str) -> str:
        """Return the hash of a secret text for an event's clear body, in hexadecimal."""
        return self.claim("fingerprint", text).hex()


class CreatorKey:
    """The unwrapped key that seals the secrets and notes of one creator."""

    __slots__ = ("_id_bytes", "_marking", "_sealing", "key_id")

    def __init__(self, key_id: UUID, key: bytes) -> None:
        """Take the unwrapped key."""
        self.key_id = key_id
        self._id_bytes = key_id.bytes
        self._sealing = SealingKey(key)
        self._marking = hashlib.blake2b(digest_size=KEY_BYTES, key=key, person=b"note marks").digest()

    def mark(self, text: str) -> str:
        """Return the hash of a note for an event's clear body, in hexadecimal; equal notes of a creator hash alike."""
        return hashlib.blake2b(text.encode(), digest_size=FINGERPRINT_BYTES, key=self._marking).hexdigest()

    def seal(self, fields: dict[str, str], associated_data: bytes) -> SealedPart:
        """Seal the fields of an event for its row in the log, and commit to them.

        AES-GCM does not commit to its key. The salted hash does, and a proof can be checked with it by somebody who has
        no key, even after the key was destroyed.
        """
        plaintext = random_16() + random_16() + orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)
        sealed = self._sealing.seal(plaintext, associated_data + self._id_bytes)
        return SealedPart(self.key_id, hashlib.sha256(plaintext).digest(), sealed)

    def unseal(self, sealed: bytes, associated_data: bytes) -> dict[str, Sealed]:
        """Unseal the fields of an event; raises `InvalidTag` where they were sealed for another row."""
        return self.open_with_commitment(sealed, associated_data)[1]

    def open_with_commitment(self, sealed: bytes, associated_data: bytes) -> tuple[bytes, dict[str, Sealed]]:
        """Unseal the fields of an event, and return what an event that seals them commits to.

        Raises:
            InvalidTag: they were altered, or sealed for another row.
            ValueError: the sealed part is malformed.

        """
        plaintext = self._sealing.unseal(sealed, associated_data + self._id_bytes)
        fields = {name: Sealed(value) for name, value in orjson.loads(plaintext[SALT_BYTES:]).items()}
        return hashlib.sha256(plaintext).digest(), fields


def associated_data(ledger_id: int, stream_id: UUID, version: int, event_id: UUID, type_: str) -> bytes:
    """Return what the sealed part of an event is bound to: in any other row it does not open."""
    return b"%d\0%b%d\0%b%b\0" % (ledger_id, stream_id.bytes, version, event_id.bytes, type_.encode())


def fresh_key() -> bytes:
    """Return 32 random bytes."""
    return os.urandom(KEY_BYTES)


def derived(key: bytes, purpose: bytes) -> bytes:
    """Return 32 bytes for another purpose, derived from a key and so always the same."""
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=purpose).derive(key)
