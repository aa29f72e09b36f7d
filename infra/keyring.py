"""The keys that the database holds wrapped, unwrapped in memory for as long as they are in use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, TypeVar

from infra.ids import uuid7
from infra.vault import CreatorKey, LedgerKeys, fresh_key

if TYPE_CHECKING:
    from uuid import UUID

    from infra.database import Database, LedgerConnection
    from infra.vault import MasterKey

K = TypeVar("K")
V = TypeVar("V")

MAX_LEDGERS_CACHED: Final = 1_000
MAX_CREATORS_CACHED: Final = 20_000


class Recent(Generic[K, V]):
    """A bounded memory in two halves: what the younger one lacks and the older one has moves up.

    When the younger half is full it becomes the older one, whose values nobody has asked for since are forgotten. Kept
    so, a look-up that finds something costs one of a plain dict; an order of use would have to be written each time.
    """

    def __init__(self, limit: int) -> None:
        """Remember at most `limit` values, and at least the half of that which was used last."""
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}
        self._half = max(1, limit // 2)

    def get(self, key: K) -> V | None:
        """Return what is remembered under a key."""
        value = self._young.get(key)
        if value is None:
            value = self._old.pop(key, None)
            if value is not None:
                self.put(key, value)
        return value

    def drop(self, key: K) -> None:
        """Forget what is remembered under a key."""
        self._young.pop(key, None)
        self._old.pop(key, None)

    def clear(self) -> None:
        """Forget everything."""
        self._young.clear()
        self._old.clear()

    def put(self, key: K, value: V) -> V:
        """Remember a value, and return it."""
        self._young[key] = value
        if len(self._young) > self._half:
            self._old, self._young = self._young, {key: value}
            del self._old[key]
        return value


def fingerprint_purpose(name: str) -> str:
    """Return what a ledger's wrapped fingerprint key is bound to."""
    return f"fingerprint key of ledger {name}"


def _creator_purpose(ledger_id: int, key_id: UUID) -> str:
    return f"creator key {key_id} of ledger {ledger_id}"


class Keyring:
    """Looks keys up, and makes a creator's on first use."""

    def __init__(self, database: Database, master_key: MasterKey) -> None:
        """Take the sessions to look up with, and the key that unwraps."""
        self._database = database
        self._master_key = master_key
        self._ledgers: Recent[int, LedgerKeys] = Recent(MAX_LEDGERS_CACHED)
        self._creators: Recent[tuple[int, bytes], CreatorKey] = Recent(MAX_CREATORS_CACHED)
        self._by_id: Recent[tuple[int, UUID], CreatorKey] = Recent(MAX_CREATORS_CACHED)

    async def ledger(self, ledger_id: int) -> LedgerKeys:
        """Return a ledger's keys.

        Raises:
            MasterKeyError: they are wrapped with another master key.
            LookupError: there is no such ledger.

        """
        known = self._ledgers.get(ledger_id)
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
        return self._ledgers.put(ledger_id, LedgerKeys(self._master_key.unwrap(wrapped, fingerprint_purpose(name))))

    async def creator(self, ledger_id: int, creator_id: str) -> CreatorKey:
        """Return the key a creator's secrets are sealed under; two that make it at once end up with one."""
        creator = (await self.ledger(ledger_id)).claim("creator", creator_id)
        known = self._creators.get((ledger_id, creator))
        if known is not None:
            return known

        async def query(connection: LedgerConnection) -> tuple[UUID, bytes] | None:
            cursor = await connection.execute(
                "SELECT key_id, wrapped FROM creator_keys WHERE ledger_id = %s AND creator = %s", (ledger_id, creator)
            )
            return await cursor.fetchone()

        row = await self._database.read(ledger_id, query)
        if row is None:
            key_id = uuid7()
            wrapped = self._master_key.wrap(fresh_key(), _creator_purpose(ledger_id, key_id))
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
        return self._creators.put((ledger_id, creator), self._unwrapped(ledger_id, *row))

    async def creator_by_id(self, ledger_id: int, key_id: UUID) -> CreatorKey:
        """Return the key that a sealed part names.

        Raises:
            LookupError: the key is gone.

        """
        known = self._by_id.get((ledger_id, key_id))
        if known is not None:
            return known

        async def query(connection: LedgerConnection) -> tuple[bytes] | None:
            cursor = await connection.execute(
                "SELECT wrapped FROM creator_keys WHERE ledger_id = %s AND key_id = %s", (ledger_id, key_id)
            )
            return await cursor.fetchone()

        row = await self._database.read(ledger_id, query)
        if row is None:
            message = f"the key {key_id} of a sealed part is gone"
            raise LookupError(message)
        return self._unwrapped(ledger_id, key_id, row[0])

    def _unwrapped(self, ledger_id: int, key_id: UUID, wrapped: bytes) -> CreatorKey:
        key = CreatorKey(key_id, self._master_key.unwrap(wrapped, _creator_purpose(ledger_id, key_id)))
        return self._by_id.put((ledger_id, key_id), key)
