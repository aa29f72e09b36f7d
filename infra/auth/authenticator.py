"""Authentication: finds the API key, or the token identity, behind what a request presents.

    API key    found by the keyed hash of its text
    token      verified, then its identity is found by the keyed hash of issuer and subject (`token_identities`)

What was found is cached for a second at most. Every process is notified when a key changes and clears its cache, and an
append checks the key again for itself.
"""

from __future__ import annotations

from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from domain.errors import NotAllowed
from infra.auth.api_keys import Authenticated, api_key
from infra.auth.key_usage import KeyUsage
from infra.auth.oidc import Tokens
from infra.auth.token_identities import TokenIdentities, is_token
from infra.errors import LedgerElsewhere, TokenRefused
from infra.postgres.batch_loader import BatchLoader
from infra.recent_cache import RecentCache
from projections.engine.array_columns import Byteas

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from infra.auth.api_keys import ApiKey
    from infra.auth.oidc_issuers import Issuer
    from infra.crypto.envelope import ApiKeyHashing
    from infra.crypto.keyring import Keyring
    from infra.postgres.pool import Database, LedgerConnection

# The longest that a read may still be let in after its key was revoked, where the notification was lost.
CACHE_S: Final = 1.0
MAX_CACHED: Final = 10_000
MAX_PRESENTED_CHARACTERS: Final = 512
# The notification channel that tells every process of changed keys.
CHANNEL: Final = "sparkledger_keys"

# A key is looked up before its ledger is known.
_NO_LEDGER: Final = 0


class Authenticator:
    """Finds who a presented key or token belongs to."""

    def __init__(self, database: Database, keyring: Keyring, issuers: Sequence[Issuer] = ()) -> None:
        """Take the database to look up in, the keyring to hash with, and the issuers whose tokens are accepted."""
        self._database = database
        self._keyring = keyring
        self._hashing: ApiKeyHashing | None = None
        self._cache: RecentCache[bytes, Authenticated] = RecentCache(MAX_CACHED)
        self._changes = 0
        # How often keys of each ledger had changed when it was looked up last.
        self._key_changes: dict[int, int] = {}
        self._look_up = BatchLoader(self._looked_up)
        self._usage = KeyUsage(database)
        self._token_identities = None
        if issuers:
            self._token_identities = TokenIdentities(Tokens(issuers), database, keyring, self._find, self.forget)

    async def stop(self) -> None:
        """Stop the background tasks."""
        await self._usage.stop()
        if self._token_identities is not None:
            await self._token_identities.stop()

    def forget(self) -> None:
        """Clear the cache, because a key has changed, here or in another process."""
        self._changes += 1
        self._cache.clear()

    async def authenticate(self, presented: str, now: datetime) -> ApiKey | None:
        """Return the key that was presented, or the identity of a token; None if unknown, revoked or expired.

        Raises:
            TokenRefused: a token cannot be trusted.
            NotAllowed: a trusted token's claims open nothing here.
            Unavailable: the keys of the token's issuer cannot be fetched.

        """
        if self._token_identities is not None and is_token(presented):
            return await self._token_identities.key(presented, now)
        if len(presented) > MAX_PRESENTED_CHARACTERS:
            return None
        hashing = self._hashing
        if hashing is None:
            hashing = self._hashing = await self._keyring.hashing()
        found = await self._find(hashing.hash(presented), now)
        return found.key if found.valid(now) else None

    async def still_opens(self, presented: str, now: datetime) -> bool:
        """Return whether a key or token that was accepted before would be accepted at `now`."""
        try:
            return await self.authenticate(presented, now) is not None
        except (TokenRefused, NotAllowed):
            return False

    async def notice_changes(self, ledger_id: int) -> bool:
        """Clear the cache if keys of a ledger have changed since the last call, and return whether they have.

        A notification says so, too, but perhaps later than an event is read that was recorded after the change.

        Raises:
            Unavailable: the database is away.

        """

        async def query(connection: LedgerConnection) -> Any:
            cursor = connection.cursor(binary=True)
            await cursor.execute("SELECT changes FROM key_changes WHERE ledger_id = %b", (ledger_id,), prepare=True)
            return await cursor.fetchone()

        row = await self._database.read(ledger_id, query)
        changes = row[0] if row else 0
        known = self._key_changes.get(ledger_id)
        self._key_changes[ledger_id] = changes
        if known == changes:
            return False
        self.forget()
        return True

    async def _find(self, hashed: bytes, now: datetime) -> Authenticated:
        """Find what a hash belongs to, and have its use recorded.

        Raises:
            LedgerElsewhere: another server serves the ledger.

        """
        found = self._cache.get(hashed)
        if found is None or monotonic() - found.at > CACHE_S:
            found = await self._look_up(_NO_LEDGER, hashed) or Authenticated(monotonic())
            if found.key is not None and found.served_by is not None:
                raise LedgerElsewhere(found.key.ledger_id, found.served_by)
            if found.key is not None and found.valid(now):
                if found.used:
                    self._usage.note(found.key, now)
                else:
                    await self._usage.first(found.key, now)
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
            key = replace(api_key(row[5:]), request_key=hashing.hash(f"requests of {row[5]}"))
            served_by = row[-1]
            self._database.tokens.admit_ledger(key.ledger_id, row[3])
            self._database.tokens.admit_key(key.key_id, row[4])
            found[row[0]] = Authenticated(at, key, ends_at=row[1], used=row[2], served_by=served_by)
        # A row that was read while a key changed may be outdated; and a first use is not on record yet.
        if changes == self._changes:
            for hashed, one in found.items():
                if one.served_by is None and (one.key is None or one.used):
                    self._cache.put(hashed, one)
        return found
