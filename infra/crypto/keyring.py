"""The keyring: keys that the database stores wrapped, unwrapped and cached in memory.

A stored key is the short id of its master key, in 8 bytes, and then the key as the key provider wrapped it. So each row
names its master key, and keys can be used and created during a rotation. Of a creator's key, what follows the id is
sealed once more, and names the epoch whose key does that, in the next 8 bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from cryptography.exceptions import InvalidTag

from domain.errors import Refused
from infra.crypto.envelope import MASTER_KEY_ID_BYTES, ApiKeyHashing, CreatorKey, LedgerKeys, SealingKey, fresh_key
from infra.crypto.epochs import EPOCH_ID_BYTES, EpochKeyMissing, epoch_id_of
from infra.ids import uuid7
from infra.recent_cache import RecentCache

if TYPE_CHECKING:
    from uuid import UUID

    from infra.crypto.epochs import EpochKeys
    from infra.crypto.master_keys import KeyProvider
    from infra.postgres.pool import Database, LedgerConnection

MAX_LEDGERS_CACHED: Final = 1_000
MAX_CREATORS_CACHED: Final = 20_000
# The purpose of the shared key that API keys are hashed with.
API_KEYS: Final = "API keys"

_PRESENT: Final = """
    SELECT (SELECT m.master_key_id FROM master_keys m WHERE m.present),
           (SELECT e.epoch_id FROM key_epochs e WHERE e.present)
"""


def fingerprint_purpose(name: str) -> str:
    """Return what a ledger's wrapped fingerprint key is bound to."""
    return f"fingerprint key of ledger {name}"


def creator_purpose(ledger_id: int, key_id: UUID) -> str:
    """Return what a creator's wrapped key is bound to."""
    return f"creator key {key_id} of ledger {ledger_id}"


def shared_purpose(name: str) -> str:
    """Return what a wrapped key of the whole database is bound to."""
    return f"shared key for {name}"


def sheet_purpose(import_id: UUID) -> str:
    """Return what the key of a sheet is bound to that waits to be imported."""
    return f"key of the sheet of import {import_id}"


async def wrapped_with(key_provider: KeyProvider, master_key_id: str, key: bytes, purpose: str) -> bytes:
    """Wrap a key and return what is stored: the id of the master key, then the wrapped key."""
    return bytes.fromhex(master_key_id) + await key_provider.wrap(master_key_id, key, purpose)


async def unwrapped_with(key_provider: KeyProvider, wrapped: bytes, purpose: str) -> bytes:
    """Unwrap a stored key; raises `MasterKeyError` where that fails."""
    return await key_provider.unwrap(master_key_id_of(wrapped), wrapped[MASTER_KEY_ID_BYTES:], purpose)


async def creator_key_wrapped_with(
    key_provider: KeyProvider, master_key_id: str, epoch_id: str, key: bytes, purpose: str
) -> bytes:
    """Wrap a creator's key and return what is stored."""
    wrapped = await key_provider.wrap(master_key_id, key, purpose)
    return bytes.fromhex(master_key_id) + key_provider.epochs.seal(epoch_id, wrapped, purpose)


async def creator_key_unwrapped_with(key_provider: KeyProvider, stored: bytes, purpose: str) -> bytes:
    """Unwrap a creator's stored key; raises `MasterKeyError` where that fails."""
    wrapped = key_provider.epochs.unseal(stored[MASTER_KEY_ID_BYTES:], purpose)
    return await key_provider.unwrap(master_key_id_of(stored), wrapped, purpose)


def master_key_id_of(wrapped: bytes) -> str:
    """Return the short id of the master key that a stored key is wrapped with."""
    return wrapped[:MASTER_KEY_ID_BYTES].hex()


class KeyErased(Exception):
    """The epoch in which a key was sealed is over, so it opens no more."""


class StoredKeyAltered(Exception):
    """What is stored of a key was altered, so it does not open."""


class PresentKeys(NamedTuple):
    """What keys are wrapped with now."""

    master_key_id: str
    epoch_id: str


async def begin_epoch(connection: LedgerConnection, epochs: EpochKeys) -> str:
    """Begin an epoch where there is none, or where an erasure needs a new one; return the present one's id.

    Its key is made first: one that a crash leaves unused opens nothing.
    """
    fresh = epochs.add()
    row = await (await connection.execute("SELECT begin_key_epoch(%s)", (fresh,))).fetchone()
    assert row is not None  # noqa: S101 - a function answers one row
    if row[0] != fresh:
        epochs.destroy(fresh)
    return str(row[0])


class Keyring:
    """Looks up and unwraps keys, and creates a creator's key on first use."""

    def __init__(self, database: Database, key_provider: KeyProvider) -> None:
        """Take the database, and the provider of the master key."""
        self._database = database
        self.key_provider = key_provider
        self._hashing: ApiKeyHashing | None = None
        self._ledgers: RecentCache[int, LedgerKeys] = RecentCache(MAX_LEDGERS_CACHED)
        self._creators: RecentCache[tuple[int, bytes], CreatorKey] = RecentCache(MAX_CREATORS_CACHED)
        self._by_id: RecentCache[tuple[int, UUID], CreatorKey] = RecentCache(MAX_CREATORS_CACHED)

    async def wrap(self, key: bytes, purpose: str) -> bytes:
        """Wrap a key for storage, with the master key that the database names as the present one.

        A column for wrapped keys must be listed in `rotation`, and have the trigger that `0009_erasure.sql` gives to
        the others. `purpose` says what the key is and whose; no two rows share one.

        Raises:
            MasterKeyError: the present master key was not given.
            Unavailable: the key provider cannot be reached.

        """
        return await wrapped_with(self.key_provider, (await self._present()).master_key_id, key, purpose)

    async def unwrap(self, wrapped: bytes, purpose: str) -> bytes:
        """Unwrap a stored key, for the purpose it was wrapped for.

        Raises:
            MasterKeyError: it is wrapped with a master key that was not given, or was altered.
            Unavailable: the key provider cannot be reached.

        """
        return await unwrapped_with(self.key_provider, wrapped, purpose)

    async def hashing(self) -> ApiKeyHashing:
        """Return the hashing of API keys; the first call ever creates its key, and needs the worker's rights.

        Raises:
            MasterKeyError: its key is wrapped with a master key that was not given.

        """
        if self._hashing is None:
            stored = await self.shared(API_KEYS)
            self._hashing = ApiKeyHashing(stored or await self.share(API_KEYS, fresh_key()))
        return self._hashing

    def known_ledger(self, ledger_id: int) -> LedgerKeys | None:
        """Return a ledger's keys if they are in memory, so that a command need not wait for them."""
        return self._ledgers.get(ledger_id)

    async def ledger(self, ledger_id: int) -> LedgerKeys:
        """Return a ledger's keys.

        Raises:
            MasterKeyError: they are wrapped with a master key that was not given.
            LookupError: there is no such ledger.

        """
        known = self.known_ledger(ledger_id)
        if known is not None:
            return known

        async def query(connection: LedgerConnection) -> tuple[str, bytes] | None:
            cursor = await connection.execute(
                "SELECT name, fingerprint_key FROM ledgers WHERE ledger_id = %s", (ledger_id,)
            )
            return await cursor.fetchone()

        row = await self._database.read(ledger_id, query)
        if row is None:
            message = f"there is no ledger {ledger_id}"
            raise LookupError(message)
        name, wrapped = row
        return self._ledgers.put(ledger_id, LedgerKeys(await self.unwrap(wrapped, fingerprint_purpose(name))))

    async def creator(self, ledger_id: int, creator_id: str) -> CreatorKey:
        """Return the key that seals a creator's secrets, created on first use; concurrent callers get the same key.

        It may come from the cache after it was destroyed. That does no harm: an event that is sealed with it is
        appended only if the creator's stream has not changed, so nothing is stored once an erasure is recorded.

        Raises:
            Refused: `creator_erased`, where the key was destroyed.

        """
        return await self.creator_by_claim(ledger_id, (await self.ledger(ledger_id)).claim("creator", creator_id))

    def known_creator(self, ledger_id: int, creator: bytes) -> CreatorKey | None:
        """Return the same key, if it is in memory, so that a command need not wait for it."""
        return self._creators.get((ledger_id, creator))

    async def creator_by_claim(self, ledger_id: int, creator: bytes) -> CreatorKey:
        """Return the same key, by the hash of the creator's name in claims."""
        known = self.known_creator(ledger_id, creator)
        if known is not None:
            return known
        try:
            return await self._stored_creator(ledger_id, creator)
        except EpochKeyMissing:  # the epoch ended in between: what is stored now is sealed in the next one
            return await self._stored_creator(ledger_id, creator)

    async def _stored_creator(self, ledger_id: int, creator: bytes) -> CreatorKey:
        """Return the key of a creator from its row, which is made now if there is none."""

        async def query(connection: LedgerConnection) -> tuple[UUID, bytes | None] | None:
            cursor = await connection.execute(
                "SELECT key_id, wrapped FROM creator_keys WHERE ledger_id = %s AND creator = %s", (ledger_id, creator)
            )
            return await cursor.fetchone()

        row = await self._database.read(ledger_id, query)
        if row is None:
            key_id = uuid7()
            present, purpose = await self._present(), creator_purpose(ledger_id, key_id)
            wrapped = await creator_key_wrapped_with(self.key_provider, *present, fresh_key(), purpose)
            async with self._database.connection(ledger_id) as connection:
                await connection.execute(
                    "INSERT INTO creator_keys (ledger_id, key_id, creator, wrapped) VALUES (%s, %s, %s, %s)"
                    " ON CONFLICT (ledger_id, creator) DO NOTHING",
                    (ledger_id, key_id, creator, wrapped),
                )
                row = await query(connection)
        if row is None:
            message = "a creator's key was made and then not found"
            raise LookupError(message)
        if row[1] is None:
            raise Refused("creator_erased")
        return self._creators.put((ledger_id, creator), await self.opened(ledger_id, row[0], row[1]))

    async def opened(self, ledger_id: int, key_id: UUID, wrapped: bytes) -> CreatorKey:
        """Return a creator's key from a row of `creator_keys` that was just read, or from the cache.

        Raises:
            EpochKeyMissing: its epoch ended after the row was read.
            MasterKeyError: it is wrapped with a master key that was not given.

        """
        known = self._by_id.get((ledger_id, key_id))
        if known is not None:
            return known
        purpose = creator_purpose(ledger_id, key_id)
        key = CreatorKey(key_id, await creator_key_unwrapped_with(self.key_provider, wrapped, purpose))
        return self._by_id.put((ledger_id, key_id), key)

    async def seal_until_erasure(self, ledger_id: int, key: bytes, purpose: str) -> bytes:
        """Seal a key that is needed for minutes: with one of the ledger's, and with that of the present epoch.

        It is sealed again in the next epoch only where no erasure of its ledger ends this one (`rotation`). So after
        the next erasure of a creator of this ledger it opens no more, in whatever copy.

        Raises:
            MasterKeyError: a key is missing.

        """
        sealed = SealingKey((await self.ledger(ledger_id)).derived(purpose)).seal(key, purpose.encode())
        try:
            return self.key_provider.epochs.seal((await self._present()).epoch_id, sealed, purpose)
        except EpochKeyMissing:  # the epoch ended in between
            return self.key_provider.epochs.seal((await self._present()).epoch_id, sealed, purpose)

    async def open_until_erasure(self, ledger_id: int, stored: bytes, purpose: str) -> bytes:
        """Return a key that was sealed by `seal_until_erasure`.

        Raises:
            KeyErased: an erasure has ended its epoch.
            StoredKeyAltered: it was altered.
            MasterKeyError: a key is missing.

        """
        epoch_id = epoch_id_of(stored)
        try:
            epoch = self.key_provider.epochs.key(epoch_id)
        except EpochKeyMissing:
            if epoch_id == (await self._present()).epoch_id:
                raise
            raise KeyErased from None
        derived = SealingKey((await self.ledger(ledger_id)).derived(purpose))
        try:
            return derived.unseal(epoch.unseal(stored[EPOCH_ID_BYTES:], purpose.encode()), purpose.encode())
        except (InvalidTag, ValueError):
            raise StoredKeyAltered from None

    def forget(self, ledger_id: int, key_id: UUID, creator: bytes | None = None) -> None:
        """Remove a destroyed key from the cache."""
        self._by_id.drop((ledger_id, key_id))
        if creator is not None:
            self._creators.drop((ledger_id, creator))

    def forget_creators(self) -> None:
        """Remove every creator's key from the cache, because one was destroyed in some process."""
        self._by_id.clear()
        self._creators.clear()

    async def _present(self) -> PresentKeys:
        """Return the present master key and epoch; the first call ever records them, and needs the worker's rights."""

        async def query(connection: LedgerConnection) -> PresentKeys | None:
            row = await (await connection.execute(_PRESENT)).fetchone()
            return None if row is None or None in row else PresentKeys(*row)

        present = await self._database.read(None, query)
        if present is None:
            async with self._database.connection() as connection:
                await connection.execute("SELECT name_master_key(%s)", (self.key_provider.key_ids[0],))
                await begin_epoch(connection, self.key_provider.epochs)
                present = await query(connection)
        if present is None:
            message = "the master key was named and then not found"
            raise LookupError(message)
        return present

    async def shared(self, name: str) -> bytes | None:
        """Return a key of the whole database; None if there is none yet.

        Raises:
            MasterKeyError: it is wrapped with a master key that was not given.

        """

        async def query(connection: LedgerConnection) -> tuple[bytes] | None:
            cursor = await connection.execute("SELECT wrapped FROM shared_keys WHERE purpose = %s", (name,))
            return await cursor.fetchone()

        row = await self._database.read(None, query)
        return None if row is None else await self.unwrap(row[0], shared_purpose(name))

    async def share(self, name: str, key: bytes) -> bytes:
        """Store a key of the whole database, unless there is one; return the one that is stored."""
        wrapped = await self.wrap(key, shared_purpose(name))
        async with self._database.connection() as connection:
            await connection.execute(
                "INSERT INTO shared_keys (purpose, wrapped) VALUES (%s, %s) ON CONFLICT DO NOTHING", (name, wrapped)
            )
        stored = await self.shared(name)
        if stored is None:
            message = f"the shared key for {name} was made and then not found"
            raise LookupError(message)
        return stored
