"""Whom tokens stand for: each bearer has a row among the keys, made when they first come.

So the log names a bearer by an id that tells nothing of the person, an append checks them as it checks a key, and to
revoke that id shuts them out, whatever tokens they still hold. What the issuer calls them is kept encrypted. Role and
subjects in the row follow the newest token that was seen: an erasure finds there whom it concerns.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from domain.errors import NotAllowed
from infra.auth.erasure_lock import all_erased
from infra.auth.key_admin import INSERT
from infra.errors import TokenRefused
from infra.ids import uuid7
from infra.recent_cache import RecentCache

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime
    from uuid import UUID

    from infra.auth.api_keys import ApiKey, Subjects
    from infra.auth.authenticator import Authenticated
    from infra.auth.oidc import Grant, Tokens
    from infra.crypto.envelope import LedgerKeys
    from infra.crypto.keyring import Keyring
    from infra.postgres.pool import Database, LedgerConnection

MAX_BEARERS: Final = 10_000
MAX_LEDGERS: Final = 1_000
_NONCE_BYTES: Final = 12
_DOTS: Final = 2

_ACTS_AS: Final = "SELECT bearer_acts_as(%s, %s, %s, %s, %s, %s)"


def is_token(presented: str) -> bool:
    """Tell a token from a key: its three parts are joined by dots, and the first is a JSON object in base64."""
    return presented.startswith("ey") and presented.count(".") == _DOTS


@dataclass(slots=True)
class TokenIdentity:
    """A token that was verified."""

    grant: Grant
    # How often the issuers' keys had changed by then.
    changes: int
    hashed: bytes
    # The bearer's row as it was last found, and the key that it and the token together make.
    row: ApiKey | None = None
    key: ApiKey | None = None
    # Whether the row was made to say what this token does. Once is enough: two tokens in turn do not write in turn.
    told: bool = False


class TokenIdentities:
    """Finds the key of a token's bearer."""

    def __init__(
        self,
        tokens: Tokens,
        database: Database,
        keyring: Keyring,
        find: Callable[[bytes, datetime], Awaitable[Authenticated]],
        forget: Callable[[], None],
    ) -> None:
        """Take what verifies tokens, what bearers are written down with, and how they are found and forgotten."""
        self._tokens = tokens
        self._database = database
        self._keyring = keyring
        self._find = find
        self._forget = forget
        self._known: RecentCache[bytes, TokenIdentity] = RecentCache(MAX_BEARERS)
        self._ledgers: RecentCache[str, int] = RecentCache(MAX_LEDGERS)

    async def stop(self) -> None:
        """End what runs beside."""
        await self._tokens.stop()

    async def key(self, token: str, now: datetime) -> ApiKey:
        """Return the key of a token's bearer, with the role, subjects and end that the token has.

        Raises:
            TokenRefused: the token cannot be trusted, its bearer's access was revoked, or whom they act for was erased.
            NotAllowed: its claims open nothing here.
            Unavailable: the database is away, or the keys of its issuer cannot be fetched.

        """
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        bearer = self._known.get(digest)
        if bearer is None or bearer.changes != self._tokens.changes or not self._tokens.trusts(bearer.grant.issuer):
            bearer = self._known.put(digest, await self._verified(token, now))
        bearer.grant.refuse_untimely(now)
        found = await self._find(bearer.hashed, now)
        if (found.key is None or found.key is not bearer.row) and await self._write_down(bearer, found.key):
            self._forget()
            found = await self._find(bearer.hashed, now)
        if found.key is None or not found.valid(now):
            raise TokenRefused("The access of this token's bearer was revoked here.")
        if bearer.row is not found.key or bearer.key is None:
            grant = bearer.grant
            bearer.row = found.key
            bearer.key = replace(found.key, role=grant.role, subjects=grant.subjects, expires_at=grant.until)
        return bearer.key

    async def _verified(self, token: str, now: datetime) -> TokenIdentity:
        grant = await self._tokens.verified(token, now)
        keys = await self._keyring.ledger(await self._ledger(grant.ledger))
        return TokenIdentity(grant, self._tokens.changes, keys.claim("token", f"{grant.issuer}\0{grant.subject}"))

    async def _write_down(self, bearer: TokenIdentity, row: ApiKey | None) -> bool:
        """Make the row of a bearer who comes for the first time, or let it say what a new token does; tell whether.

        Raises:
            TokenRefused: they act for erased creators alone.

        """
        grant = bearer.grant
        differs = row is None or not (bearer.told or (row.role, row.subjects) == (grant.role, grant.subjects))
        shut_out = row is not None and row.revoked_at is not None
        if shut_out or not (differs or grant.subjects.creator_ids):
            return False
        ledger_id = await self._ledger(grant.ledger)
        keys = await self._keyring.ledger(ledger_id)
        async with self._database.connection(ledger_id) as connection, connection.transaction():
            if await all_erased(connection, ledger_id, keys, grant.subjects.creator_ids):
                raise TokenRefused("The creator that this token's bearer acts for was erased here.")
            if row is None:
                await connection.execute(INSERT, _fields(bearer, ledger_id, keys))
            elif differs:
                await connection.execute(_ACTS_AS, (ledger_id, row.key_id, grant.role, *_ids(grant.subjects)))
        bearer.told = True
        return differs

    async def _ledger(self, name: str) -> int:
        known = self._ledgers.get(name)
        if known is not None:
            return known

        async def query(connection: LedgerConnection) -> Any:
            cursor = await connection.execute("SELECT ledger_named(%s)", (name,))
            return await cursor.fetchone()

        (ledger_id,) = await self._database.read(None, query)
        if ledger_id is None:
            raise NotAllowed("This token leads to a ledger that is not here.")
        return self._ledgers.put(name, ledger_id)


def _fields(bearer: TokenIdentity, ledger_id: int, keys: LedgerKeys) -> dict[str, Any]:
    """Return what `INSERT` takes of a bearer."""
    grant, key_id = bearer.grant, uuid7()
    creator_ids, brand_ids, advertiser_ids = _ids(grant.subjects)
    return {
        "hash": bearer.hashed,
        "ledger_id": ledger_id,
        "key_id": key_id,
        "kind": "token",
        "name": grant.issuer,
        "role": grant.role,
        "creator_ids": creator_ids,
        "brand_ids": brand_ids,
        "advertiser_ids": advertiser_ids,
        "expires_at": None,
        "created_by": None,
        "sealed_subject": sealed_subject(keys, grant.subject, key_id),
        "may_reveal": True,
        "idempotency": None,
        "request_hash": None,
    }


def _ids(subjects: Subjects) -> tuple[list[str], list[str], list[str]]:
    return sorted(subjects.creator_ids), sorted(subjects.brand_ids), sorted(subjects.advertiser_ids)


def sealed_subject(keys: LedgerKeys, subject: str, key_id: UUID) -> bytes:
    """Encrypt what an issuer calls a bearer, for the bearer's own row."""
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + _cipher(keys).encrypt(nonce, subject.encode(), key_id.bytes)


def unsealed_subject(keys: LedgerKeys, sealed: bytes, key_id: UUID) -> str:
    """Decrypt what an issuer calls a bearer."""
    return _cipher(keys).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], key_id.bytes).decode()


def _cipher(keys: LedgerKeys) -> AESGCM:
    return AESGCM(keys.derived("subjects of tokens"))
