"""Who calls, for which ledger, in which role and for which subjects; and which ledgers there are.

    a key      is found by the keyed hash of its text
    a token    is verified, and its bearer found by the keyed hash of issuer and subject (`infra.auth.token_identities`)

What was found is remembered for a second at most. Every process hears of a change of keys and forgets at once; an
append looks for itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import psycopg

from domain.errors import NotAllowed
from infra.auth.api_keys import ApiKey
from infra.auth.key_admin import KEY_COLUMNS, KeyAdmin, api_key
from infra.auth.key_usage import KeyUsage
from infra.auth.oidc import Tokens
from infra.auth.token_identities import TokenIdentities, is_token, unsealed_subject
from infra.crypto.envelope import fresh_key
from infra.crypto.keyring import fingerprint_purpose
from infra.errors import TokenRefused
from infra.postgres.batch_loader import BatchLoader
from infra.recent_cache import RecentCache
from projections.engine.array_columns import Byteas

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from infra.auth.oidc_issuers import Issuer
    from infra.crypto.master_keys import KeyProvider
    from infra.postgres.pool import Database, LedgerConnection

# A read may be let in this long after its key was revoked, where the word of it was lost on the way.
CACHE_S: Final = 1.0
MAX_CACHED: Final = 10_000
MAX_PRESENTED_CHARACTERS: Final = 512
# On which every process is told that keys have changed.
CHANNEL: Final = "sparkledger_keys"

# Looked up before there is a ledger.
_NO_LEDGER: Final = 0

_LIST: Final = f"""
    SELECT {KEY_COLUMNS}, u.last_used_at, h.ends_at, k.sealed_subject
    FROM api_keys k
    JOIN ledgers l ON l.ledger_id = k.ledger_id
    LEFT JOIN api_key_uses u ON u.ledger_id = k.ledger_id AND u.key_id = k.key_id
    LEFT JOIN LATERAL (
        SELECT max(h.ends_at) AS ends_at
        FROM api_key_hashes h
        WHERE h.ledger_id = k.ledger_id
        AND h.key_id = k.key_id
        AND h.ends_at > now()
    ) h ON true
    WHERE k.ledger_id = %s
    AND (%s::uuid IS NULL OR k.key_id < %s)
    ORDER BY k.key_id DESC
    LIMIT %s
"""


class LedgerExists(Exception):
    """A ledger of this name exists already. Choose another name, or mint a key for the one there is."""


@dataclass(frozen=True, slots=True)
class Authenticated:
    """What a hash was found to belong to, if to anything."""

    at: float
    key: ApiKey | None = None
    ends_at: datetime | None = None
    used: bool = False

    def valid(self, now: datetime) -> bool:
        """Tell whether it opens anything at a moment."""
        return self.key is not None and self.key.valid(now) and (self.ends_at is None or now < self.ends_at)


class Authenticator(KeyAdmin):
    """Mints keys, and finds who a presented one, or a token, belongs to."""

    def __init__(self, database: Database, key_provider: KeyProvider, issuers: Sequence[Issuer] = ()) -> None:
        """Take the sessions to look up with, who unwraps the key that keys are hashed with, and whose tokens count."""
        super().__init__(database, key_provider)
        self._known: RecentCache[bytes, Authenticated] = RecentCache(MAX_CACHED)
        self._changes = 0
        self._look_up = BatchLoader(self._looked_up)
        self._uses = KeyUsage(database)
        self._bearers = None
        if issuers:
            self._bearers = TokenIdentities(Tokens(issuers), database, self._keyring, self._find, self.forget)

    async def stop(self) -> None:
        """End what runs beside."""
        await self._uses.stop()
        if self._bearers is not None:
            await self._bearers.stop()

    def forget(self) -> None:
        """Remember nothing of keys any more: one of them has changed, here or in another process."""
        self._changes += 1
        self._known.clear()

    async def authenticate(self, presented: str, now: datetime) -> ApiKey | None:
        """Find who a key or token belongs to; `None` for what is unknown, revoked or expired.

        Raises:
            TokenRefused: it is a token that cannot be trusted.
            NotAllowed: it is a token whose claims open nothing here.
            Unavailable: the database is away, or the keys of the token's issuer are.

        """
        if self._bearers is not None and is_token(presented):
            return await self._bearers.key(presented, now)
        if len(presented) > MAX_PRESENTED_CHARACTERS:
            return None
        found = await self._find((await self._keyring.hashing()).hash(presented), now)
        return found.key if found.valid(now) else None

    async def still_opens(self, presented: str, now: datetime) -> bool:
        """Tell whether a key or token that was let in would be let in again.

        Raises:
            Unavailable: that cannot be told now.

        """
        try:
            return await self.authenticate(presented, now) is not None
        except (TokenRefused, NotAllowed):
            return False

    async def _find(self, hashed: bytes, now: datetime) -> Authenticated:
        """Find what a hash belongs to, and see to it that a use of it is on record."""
        found = self._known.get(hashed)
        if found is None or monotonic() - found.at > CACHE_S:
            found = await self._look_up(_NO_LEDGER, hashed) or Authenticated(monotonic())
            if found.key is not None and found.valid(now):
                if found.used:
                    self._uses.note(found.key, now)
                else:
                    await self._uses.first(found.key, now)
        return found

    async def _looked_up(self, _: int, hashes: Sequence[bytes]) -> dict[bytes, Authenticated]:
        changes, at = self._changes, monotonic()

        async def query(connection: LedgerConnection) -> list[Any]:
            cursor = connection.cursor(binary=True)
            await cursor.execute("SELECT * FROM authenticate(%b)", (Byteas(hashes),), prepare=True)
            return await cursor.fetchall()

        hashing = await self._keyring.hashing()
        found = dict.fromkeys(hashes, Authenticated(at))
        for row in await self._database.read(None, query):
            key = replace(api_key(row[3:]), request_key=hashing.hash(f"requests of {row[3]}"))
            found[row[0]] = Authenticated(at, key, ends_at=row[1], used=row[2])
        # What was read while a key changed may be of before; and a first use is not on record yet.
        if changes == self._changes:
            for hashed, one in found.items():
                if one.key is None or one.used:
                    self._known.put(hashed, one)
        return found

    async def known(self, presented: str) -> bool:
        """Tell whether a key was ever minted, revoked or not."""
        hashed = (await self._keyring.hashing()).hash(presented)
        return (await self._looked_up(_NO_LEDGER, [hashed]))[hashed].key is not None

    async def keys(self, ledger_id: int, *, limit: int | None = None, before: UUID | None = None) -> list[ApiKey]:
        """List a ledger's keys, newest first; at most `limit`, older than the key `before`."""

        async def query(connection: LedgerConnection) -> list[Any]:
            cursor = await connection.execute(_LIST, (ledger_id, before, before, limit))
            return await cursor.fetchall()

        keys = []
        for row in await self._database.read(ledger_id, query):
            key = replace(api_key(row), last_used_at=row[13], overlap_ends_at=row[14])
            if row[15] is not None:
                ledger_keys = await self._keyring.ledger(ledger_id)
                key = replace(key, subject=unsealed_subject(ledger_keys, row[15], key.key_id))
            keys.append(key)
        return keys

    async def names(self, ledger_id: int) -> dict[str, str | None]:
        """Return the names of a ledger's keys by key id, revoked ones included."""

        async def query(connection: LedgerConnection) -> dict[str, str | None]:
            cursor = await connection.execute("SELECT key_id, name FROM api_keys WHERE ledger_id = %s", (ledger_id,))
            return {str(row[0]): row[1] for row in await cursor.fetchall()}

        return await self._database.read(ledger_id, query)

    async def create_ledger(self, name: str) -> int:
        """Begin a ledger, with a fingerprint key of its own; needs the worker's rights.

        Raises:
            LedgerExists: the name is taken.

        """
        wrapped = await self._keyring.wrap(fresh_key(), fingerprint_purpose(name))
        async with self._database.connection() as connection:
            try:
                cursor = await connection.execute(
                    "INSERT INTO ledgers (name, fingerprint_key) VALUES (%s, %s) RETURNING ledger_id", (name, wrapped)
                )
            except psycopg.errors.UniqueViolation as error:
                raise LedgerExists from error
            row = await cursor.fetchone()
        assert row is not None  # noqa: S101 - RETURNING answers one row or raises
        return int(row[0])

    async def ledger_id(self, name: str) -> int:
        """Return a ledger's id by its name; needs the worker's rights.

        Raises:
            LookupError: there is no such ledger.

        """
        ids = {known: ledger_id for ledger_id, known in await self.ledgers()}
        if name not in ids:
            message = f"There is no ledger named {name}. `sparkledger ledgers list` names those there are."
            raise LookupError(message)
        return ids[name]

    async def unwrap_ledger(self, ledger_id: int) -> None:
        """Try the master key on a ledger.

        Raises:
            MasterKeyError: it is not the one that the ledger's keys are wrapped with.

        """
        await self._keyring.ledger(ledger_id)

    async def ledgers(self) -> list[tuple[int, str]]:
        """List all ledgers as id and name; needs the worker's rights."""

        async def query(connection: LedgerConnection) -> list[tuple[int, str]]:
            cursor = await connection.execute("SELECT ledger_id, name FROM ledgers ORDER BY ledger_id")
            return [(row[0], row[1]) for row in await cursor.fetchall()]

        return await self._database.read(None, query)
