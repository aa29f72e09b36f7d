"""Token identities: a row among the API keys for each bearer of tokens, made when the bearer first comes.

So the log names a bearer by an id without meaning, an append checks a bearer as it checks a key, and
revoking that id shuts the bearer out, whatever tokens they still hold. The issuer's name for the bearer is sealed. Role
and subjects in the row follow the newest token that was seen, so that an erasure finds whom it concerns.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import psycopg

from domain.errors import NotAllowed
from infra.auth.api_keys import MINT_KEY, Authenticated
from infra.auth.erasure_lock import all_erased
from infra.crypto.envelope import SealingKey
from infra.errors import TokenRefused, Unavailable
from infra.ids import uuid7
from infra.recent_cache import RecentCache

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime
    from uuid import UUID

    from infra.auth.api_keys import ApiKey
    from infra.auth.oidc import Grant, Tokens
    from infra.crypto.envelope import LedgerKeys
    from infra.crypto.keyring import Keyring
    from infra.postgres.pool import Database, LedgerConnection

MAX_TOKENS_CACHED: Final = 10_000
MAX_LEDGERS_CACHED: Final = 1_000
_DOTS: Final = 2
NOT_TRUSTED: Final = (
    "The database does not trust this issuer yet, or not for this ledger and role. Run `sparkledger migrate` with the "
    "issuers' settings."
)

_UPDATE_RIGHTS: Final = (
    "SELECT bearer_acts_as(%(ledger_id)s, %(key_id)s, %(role)s, %(creator_ids)s, %(brand_ids)s, %(advertiser_ids)s)"
)


def is_token(presented: str) -> bool:
    """Return whether this is a token: three parts joined by dots, the first a JSON object in base64."""
    return presented.startswith("ey") and presented.count(".") == _DOTS


@dataclass(slots=True)
class VerifiedToken:
    """A token that was verified, and the identity that it belongs to.

    Attributes:
        grant: what the token was signed for.
        changes: how often the issuers' keys had changed when it was verified.
        hashed: the keyed hash of issuer and subject, which finds the identity's row.
        row: the identity's row as it was last found.
        key: `row` with the rights that this token grants.
        recorded: whether the row was set to this token's rights. Once is enough: two tokens used in turn do not
            overwrite each other's rights with every request.

    """

    grant: Grant
    changes: int
    hashed: bytes
    row: ApiKey | None = None
    key: ApiKey | None = None
    recorded: bool = False


class TokenIdentities:
    """Finds or makes the identity of a token."""

    def __init__(
        self,
        tokens: Tokens,
        database: Database,
        keyring: Keyring,
        find: Callable[[bytes, datetime], Awaitable[Authenticated]],
        forget: Callable[[], None],
    ) -> None:
        """Take the verifier of tokens, the database and keyring, and how rows are found, and forgotten once changed."""
        self._tokens = tokens
        self._database = database
        self._keyring = keyring
        self._find = find
        self._forget = forget
        self._verified: RecentCache[bytes, VerifiedToken] = RecentCache(MAX_TOKENS_CACHED)
        self._ledgers: RecentCache[str, int] = RecentCache(MAX_LEDGERS_CACHED)

    async def stop(self) -> None:
        """Stop the background tasks."""
        await self._tokens.stop()

    async def key(self, token: str, now: datetime) -> ApiKey:
        """Return the key of the token's identity, with the role, subjects and end that the token grants.

        Raises:
            TokenRefused: the token cannot be trusted, the identity was revoked, or all its creators were erased.
            NotAllowed: the token's claims open nothing here.
            Unavailable: the keys of its issuer cannot be fetched.

        """
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        verified = self._verified.get(digest)
        if (
            verified is None
            or verified.changes != self._tokens.changes
            or not self._tokens.trusts(verified.grant.issuer)
        ):
            verified = self._verified.put(digest, await self._verify(token, now))
        verified.grant.refuse_untimely(now)
        found = await self._find(verified.hashed, now)
        if (found.key is None or found.key is not verified.row) and await self._record(verified, found.key):
            self._forget()
            found = await self._find(verified.hashed, now)
        if found.key is None or not found.valid(now):
            raise TokenRefused("The access of this token's identity was revoked.")
        if verified.row is not found.key or verified.key is None:
            grant = verified.grant
            verified.row = found.key
            verified.key = replace(found.key, role=grant.role, subjects=grant.subjects, expires_at=grant.until)
        return verified.key

    async def _verify(self, token: str, now: datetime) -> VerifiedToken:
        grant = await self._tokens.verified(token, now)
        keys = await self._keyring.ledger(await self._ledger_id(grant.ledger))
        return VerifiedToken(grant, self._tokens.changes, keys.claim("token", f"{grant.issuer}\0{grant.subject}"))

    async def _record(self, verified: VerifiedToken, row: ApiKey | None) -> bool:
        """Make the row of a new identity, or set it to the rights of a newer token; return whether it changed.

        Raises:
            NotAllowed: this server does not serve the ledger any more.
            TokenRefused: the token acts only for erased creators.

        """
        grant = verified.grant
        differs = row is None or not (verified.recorded or (row.role, row.subjects) == (grant.role, grant.subjects))
        revoked = row is not None and row.revoked_at is not None
        if revoked or not (differs or grant.subjects.creator_ids):
            return False
        if row is None:
            self._ledgers.drop(grant.ledger)  # it may have moved to another server, with the row
        ledger_id = await self._ledger_id(grant.ledger)
        keys = await self._keyring.ledger(ledger_id)
        async with self._database.connection(ledger_id) as connection, connection.transaction():
            if await all_erased(connection, ledger_id, keys, grant.subjects.creator_ids):
                raise TokenRefused("The creator that this token acts for was erased.")
            if row is None:
                try:
                    await connection.execute(MINT_KEY, _new_row(verified, ledger_id, keys))
                except psycopg.errors.InsufficientPrivilege as error:
                    raise Unavailable(NOT_TRUSTED) from error
            elif differs:
                rights = {"ledger_id": ledger_id, "key_id": row.key_id, "role": grant.role, **grant.subjects.columns()}
                await connection.execute(_UPDATE_RIGHTS, rights)
        verified.recorded = True
        return differs

    async def _ledger_id(self, name: str) -> int:
        known = self._ledgers.get(name)
        if known is not None:
            return known

        async def query(connection: LedgerConnection) -> Any:
            cursor = await connection.execute("SELECT ledger_id, ledger_token FROM ledger_named(%s)", (name,))
            return await cursor.fetchone()

        ledger_id, token = await self._database.read(None, query) or (None, None)
        if ledger_id is None:
            raise NotAllowed("The token names a ledger that does not exist.")
        if token is None:
            raise Unavailable(NOT_TRUSTED)
        self._database.tokens.admit_ledger(ledger_id, token)
        return self._ledgers.put(name, ledger_id)


def _new_row(verified: VerifiedToken, ledger_id: int, keys: LedgerKeys) -> dict[str, Any]:
    """Return the parameters of `MINT_KEY` for a new identity."""
    grant, key_id = verified.grant, uuid7()
    return {
        "hash": verified.hashed,
        "ledger_id": ledger_id,
        "key_id": key_id,
        "kind": "token",
        "name": grant.issuer,
        "role": grant.role,
        **grant.subjects.columns(),
        "expires_at": None,
        "by_key": None,
        "by_token": None,
        "sealed_subject": sealed_subject(keys, grant.subject, key_id),
        "may_reveal": True,
        "idempotency": None,
        "request_hash": None,
    }


def sealed_subject(keys: LedgerKeys, subject: str, key_id: UUID) -> bytes:
    """Seal the issuer's name for a bearer, bound to the identity's row."""
    return _sealing(keys).seal(subject.encode(), key_id.bytes)


def unsealed_subject(keys: LedgerKeys, sealed: bytes, key_id: UUID) -> str:
    """Unseal the issuer's name for a bearer."""
    return _sealing(keys).unseal(sealed, key_id.bytes).decode()


def _sealing(keys: LedgerKeys) -> SealingKey:
    return SealingKey(keys.derived("subjects of tokens"))
