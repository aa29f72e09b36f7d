"""Administration of API keys: creating, rotating, revoking and listing them.

A change of a key and its entry in the access log are one transaction.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, LiteralString, NamedTuple

import orjson

from domain.errors import NotAllowed, Refused
from infra.auth.access_log import COMMAND_LINE, Access, AccessContext, record_within
from infra.auth.api_keys import KEY_COLUMNS, MINT_KEY, REVEALING, ApiKey, Subjects, api_key, subjects_problem
from infra.auth.erasure_lock import all_erased
from infra.auth.key_text import RANDOM_BYTES, key_text
from infra.auth.token_identities import unsealed_subject
from infra.errors import IdempotencyMismatch, KeyNoLongerValid, KeyNotRotatable
from infra.ids import uuid7

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from uuid import UUID

    from domain.values import Role
    from infra.crypto.envelope import ApiKeyHashing
    from infra.crypto.keyring import Keyring
    from infra.postgres.pool import Database, LedgerConnection

MAX_OVERLAP_S: Final = 30 * 24 * 3600
REQUEST_ID_BYTES: Final = 16

_OF_HASH: Final = f"""
    SELECT {KEY_COLUMNS}, h.request_hash
    FROM api_key_hashes h
    JOIN api_keys k ON k.key_id = h.key_id
    JOIN ledgers l ON l.ledger_id = k.ledger_id
    WHERE h.hash = %s
"""

_WORKS: Final = """
    SELECT (h.ends_at IS NULL OR h.ends_at > now())
           AND k.revoked_at IS NULL
           AND (k.expires_at IS NULL OR k.expires_at > now()),
           confirm_commits()
    FROM api_key_hashes h
    JOIN api_keys k ON k.key_id = h.key_id
    WHERE h.hash = %s
"""

_FIRST: Final = """
    SELECT key_id
    FROM api_keys
    WHERE ledger_id = %s
    AND name = %s
    AND role = 'admin'
    AND kind = 'key'
    AND created_by IS NULL
    AND revoked_at IS NULL
    AND (expires_at IS NULL OR expires_at > now())
    ORDER BY key_id
    LIMIT 1
"""

_OF_REQUEST: Final = f"""
    SELECT {KEY_COLUMNS}, h.request_hash
    FROM api_key_hashes h
    JOIN api_keys k ON k.key_id = h.key_id
    JOIN ledgers l ON l.ledger_id = k.ledger_id
    WHERE h.ledger_id = %s
    AND h.idempotency = %s
"""

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

_TO_ROTATE: Final = f"""
    SELECT {KEY_COLUMNS}
    FROM api_keys k
    JOIN ledgers l ON l.ledger_id = k.ledger_id
    WHERE k.ledger_id = %s
    AND k.key_id = %s
"""

# The previous text works for the overlap; a text from before that one ends now.
_ROTATE: Final = "SELECT rotate_key(%s, %s, %s, %s, %s, %s, %s, %s)"

_OVERLAP: Final = """
    SELECT max(ends_at)
    FROM api_key_hashes
    WHERE ledger_id = %s
    AND key_id = %s
    AND ends_at > now()
"""

_REVOKE: Final = "SELECT revoke_key(%s, %s, %s, %s)"

_EXISTS: Final = "SELECT confirm_commits() FROM api_keys WHERE ledger_id = %s AND key_id = %s"

_LOCK_VALID: Final = "SELECT hold_key(%s, %s)"


_REVEALS_MORE: Final = (
    "This key is not allowed to reveal secrets, so it cannot create or rotate a key that can. Create a "
    "key with may_reveal false."
)


class NewKey(NamedTuple):
    """A key that was created, or was given another text.

    Attributes:
        key: the key.
        text: its text, which is stored nowhere; empty where an earlier request had the same Idempotency-Key, because
            that request was given it.
        replayed: whether an earlier request had the same Idempotency-Key.

    """

    key: ApiKey
    text: str
    replayed: bool


class KeyAdmin:
    """Creates, rotates, revokes and lists the API keys of ledgers."""

    def __init__(self, database: Database, keyring: Keyring, on_change: Callable[[], None] | None = None) -> None:
        """Take the database, the keyring to hash with, and what to call in this process once a key has changed."""
        self._database = database
        self._keyring = keyring
        self._on_change = on_change or (lambda: None)

    async def create(
        self,
        ledger_id: int,
        *,
        role: Role,
        name: str | None = None,
        subjects: Subjects | None = None,
        expires_at: datetime | None = None,
        may_reveal: bool = True,
        idempotency_key: str | None = None,
        request_hash: bytes = b"",
        context: AccessContext = COMMAND_LINE,
        text: str | None = None,
    ) -> NewKey:
        """Create a key, with a `text` of the administrator's choice or a new one.

        Raises:
            ValueError: the role cannot have these subjects.
            IdempotencyMismatch: the Idempotency-Key created a different key.
            NotAllowed: the new key would reveal secrets, and the key that creates it may not.
            Refused: `creator_erased`, where the key would act only for erased creators.
            KeyNoLongerValid: the key that creates it was revoked meanwhile.

        """
        subjects = subjects or Subjects()
        problem = subjects_problem(role, subjects)
        if problem is not None:
            raise ValueError(problem)
        hashing = await self._keyring.hashing()
        idempotency = _request_id(hashing, "mint", context, idempotency_key)
        keys = await self._keyring.ledger(ledger_id)
        text = text or key_text(secrets.token_bytes(RANDOM_BYTES))
        key_id = uuid7()
        fields = {
            "hash": hashing.hash(text),
            "ledger_id": ledger_id,
            "key_id": key_id,
            "kind": "key",
            "name": name,
            "role": role,
            **subjects.columns(),
            "expires_at": expires_at,
            "by_key": context.key_id,
            "by_token": self._database.tokens.key(context.key_id),
            "sealed_subject": None,
            "may_reveal": may_reveal,
            "idempotency": idempotency,
            "request_hash": request_hash,
        }
        async with self._database.connection(ledger_id) as connection, connection.transaction():
            context_reveals = await lock_valid_key(connection, ledger_id, context.key_id)
            if may_reveal and role in REVEALING and not context_reveals:
                raise NotAllowed(_REVEALS_MORE)
            if await all_erased(connection, ledger_id, keys, subjects.creator_ids):
                raise Refused("creator_erased")
            created = await _is_true(connection, MINT_KEY, fields)
            if created:
                row = await (await connection.execute(_OF_HASH, (fields["hash"],))).fetchone()
                assert row is not None  # noqa: S101 - it was created just now
                await _record(connection, ledger_id, context, {"key_id": key_id, "role": role})
                return NewKey(api_key(row), text, replayed=False)
            first = await _first_result(connection, ledger_id, idempotency, request_hash)
            await _record(connection, ledger_id, context, {"key_id": first.key_id, "replayed": True})
            return NewKey(first, "", replayed=True)

    async def rotate(
        self,
        ledger_id: int,
        key_id: UUID,
        *,
        overlap_s: int,
        idempotency_key: str | None = None,
        request_hash: bytes = b"",
        context: AccessContext = COMMAND_LINE,
        text: str | None = None,
    ) -> NewKey:
        """Give a key a new text, or a `text` of the administrator's choice.

        The present text works for `overlap_s` more seconds, and any older one stops at once.

        Raises:
            LookupError: the ledger has no such key.
            KeyNotRotatable: the key is revoked or expired, or is a token identity.
            NotAllowed: the key may reveal secrets, and the key that rotates it may not.
            IdempotencyMismatch: the Idempotency-Key was used with other parameters.
            KeyNoLongerValid: the key that rotates it was revoked meanwhile.

        """
        hashing = await self._keyring.hashing()
        idempotency = _request_id(hashing, f"rotate {key_id}", context, idempotency_key)
        text = text or key_text(secrets.token_bytes(RANDOM_BYTES))
        hashed = hashing.hash(text)
        async with self._database.connection(ledger_id) as connection, connection.transaction():
            context_reveals = await lock_valid_key(connection, ledger_id, context.key_id)
            await connection.execute(_LOCK_VALID, (ledger_id, key_id))
            row = await (await connection.execute(_TO_ROTATE, (ledger_id, key_id))).fetchone()
            if row is None:
                message = "There is no such key in this ledger."
                raise LookupError(message)
            key = api_key(row)
            now = await (await connection.execute("SELECT now()")).fetchone()
            assert now is not None  # noqa: S101 - a SELECT without a FROM answers one row
            if key.kind != "key" or not key.valid(now[0]):
                raise KeyNotRotatable
            if key.reveals and not context_reveals:
                raise NotAllowed(_REVEALS_MORE)
            asks = (context.key_id, self._database.tokens.key(context.key_id), ledger_id, key_id)
            rotated = await _is_true(connection, _ROTATE, (*asks, hashed, overlap_s, idempotency, request_hash))
            if rotated:
                await _record(connection, ledger_id, context, {"key_id": key_id, "overlap_seconds": overlap_s})
            else:
                await _first_result(connection, ledger_id, idempotency, request_hash)
                await _record(connection, ledger_id, context, {"key_id": key_id, "replayed": True})
            overlap = await (await connection.execute(_OVERLAP, (ledger_id, key_id))).fetchone()
            assert overlap is not None  # noqa: S101 - an aggregate answers one row
        self._on_change()
        return NewKey(replace(key, overlap_ends_at=overlap[0]), text if rotated else "", not rotated)

    async def revoke(self, ledger_id: int, key_id: UUID, *, context: AccessContext = COMMAND_LINE) -> bool:
        """Revoke a key for good, and return whether the ledger has it; revoking it again changes nothing.

        Raises:
            KeyNoLongerValid: the key that revokes it was revoked meanwhile.

        """
        async with self._database.connection(ledger_id) as connection, connection.transaction():
            await lock_valid_key(connection, ledger_id, context.key_id)
            asks = (context.key_id, self._database.tokens.key(context.key_id), ledger_id, key_id)
            revoked = await _is_true(connection, _REVOKE, asks)
            if revoked:
                await _record(connection, ledger_id, context, {"key_id": key_id})
            found = await (await connection.execute(_EXISTS, (ledger_id, key_id))).fetchone()
        self._on_change()
        return found is not None

    async def works(self, text: str) -> bool | None:
        """Return whether a text opens a key now; None where no key ever had it. Needs the worker's rights."""
        hashed = (await self._keyring.hashing()).hash(text)

        async def query(connection: LedgerConnection) -> bool | None:
            row = await (await connection.execute(_WORKS, (hashed,))).fetchone()
            return None if row is None else bool(row[0])

        return await self._database.look_up(None, query)

    async def first_key(self, ledger_id: int, name: str) -> UUID | None:
        """Return the oldest valid key of an administrator that was made on this machine under a name, if any."""

        async def query(connection: LedgerConnection) -> UUID | None:
            row = await (await connection.execute(_FIRST, (ledger_id, name))).fetchone()
            return None if row is None else row[0]

        return await self._database.read(ledger_id, query)

    async def keys(self, ledger_id: int, *, limit: int | None = None, before: UUID | None = None) -> list[ApiKey]:
        """List a ledger's keys, newest first: at most `limit`, and only those older than the key `before`."""

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
        """Return the names of a ledger's keys by key id, those of revoked keys included."""

        async def query(connection: LedgerConnection) -> dict[str, str | None]:
            cursor = await connection.execute("SELECT key_id, name FROM api_keys WHERE ledger_id = %s", (ledger_id,))
            return {str(row[0]): row[1] for row in await cursor.fetchall()}

        return await self._database.read(ledger_id, query)


async def lock_valid_key(connection: LedgerConnection, ledger_id: int, key_id: UUID | None) -> bool:
    """Lock the row of the key that makes a change, so that it cannot be revoked before the transaction ends.

    Returns:
        Whether the key may reveal secrets; the command line, which has no key, may.

    Raises:
        KeyNoLongerValid: the key is revoked or expired.

    """
    if key_id is None:
        return True
    row = await (await connection.execute(_LOCK_VALID, (ledger_id, key_id))).fetchone()
    if row is None or row[0] is None:
        raise KeyNoLongerValid
    return bool(row[0])


def _request_id(
    hashing: ApiKeyHashing, purpose: str, context: AccessContext, idempotency_key: str | None
) -> bytes | None:
    """Return the hash by which a request with an Idempotency-Key is recognised; None for one without."""
    if idempotency_key is None:
        return None
    return hashing.hash(f"{purpose}\0{context.key_id}\0{idempotency_key}")[:REQUEST_ID_BYTES]


async def _first_result(
    connection: LedgerConnection, ledger_id: int, idempotency: bytes | None, request_hash: bytes
) -> ApiKey:
    """Return the key that the first request with an Idempotency-Key was about.

    Raises:
        IdempotencyMismatch: that was another request.

    """
    row = await (await connection.execute(_OF_REQUEST, (ledger_id, idempotency))).fetchone()
    if row is None or row[13] != request_hash:
        raise IdempotencyMismatch
    return api_key(row)


async def _is_true(connection: LedgerConnection, query: LiteralString, parameters: Any) -> bool:
    row = await (await connection.execute(query, parameters)).fetchone()
    return bool(row and row[0])


async def _record(connection: LedgerConnection, ledger_id: int, context: AccessContext, change: dict[str, Any]) -> None:
    access = Access(
        key_id=context.key_id,
        role=context.role,
        route=context.route,
        query=orjson.dumps(change, option=orjson.OPT_SORT_KEYS),
        format="text/plain" if context.key_id is None else "application/json",
        rows=1,
        complete=True,
        request_id=context.request_id,
    )
    await record_within(connection, ledger_id, access)
