"""How keys are made, rotated and revoked. Each change stands in the log of accesses, or does not happen."""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

import orjson

from domain.errors import NotAllowed, Refused
from infra.auth.access_log import Access, record_within
from infra.auth.api_keys import REVEALING, ApiKey, Subjects, subjects_problem
from infra.auth.erasure_lock import all_erased
from infra.auth.key_text import RANDOM_BYTES, key_text
from infra.crypto.keyring import Keyring
from infra.errors import IdempotencyMismatch, KeyNoLongerValid, KeyNotRotatable
from infra.ids import uuid7

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from domain.values import Role
    from infra.crypto.master_keys import KeyProvider
    from infra.postgres.pool import Database, LedgerConnection

MAX_OVERLAP_S: Final = 30 * 24 * 3600

KEY_COLUMNS: Final = """
    k.key_id, k.ledger_id, l.name, k.name, k.role, k.creator_ids, k.brand_ids, k.advertiser_ids, k.created_at,
    k.expires_at, k.revoked_at, k.kind, k.may_reveal
"""

# Nothing where the text, or the request with this Idempotency-Key, is known already.
INSERT: Final = """
    WITH fresh AS (
        INSERT INTO api_key_hashes (hash, ledger_id, key_id, idempotency, request_hash)
        VALUES (%(hash)s, %(ledger_id)s, %(key_id)s, %(idempotency)s, %(request_hash)s)
        ON CONFLICT DO NOTHING
        RETURNING key_id
    )
    INSERT INTO api_keys (key_id, ledger_id, kind, name, role, creator_ids, brand_ids, advertiser_ids, expires_at,
                          created_by, sealed_subject, may_reveal)
    SELECT key_id, %(ledger_id)s, %(kind)s, %(name)s, %(role)s, %(creator_ids)s, %(brand_ids)s, %(advertiser_ids)s,
           %(expires_at)s, %(created_by)s, %(sealed_subject)s, %(may_reveal)s
    FROM fresh
"""

_OF_HASH: Final = f"""
    SELECT {KEY_COLUMNS}, h.request_hash
    FROM api_key_hashes h
    JOIN api_keys k ON k.key_id = h.key_id
    JOIN ledgers l ON l.ledger_id = k.ledger_id
    WHERE h.hash = %s
"""

_TO_ROTATE: Final = f"""
    SELECT {KEY_COLUMNS}
    FROM api_keys k
    JOIN ledgers l ON l.ledger_id = k.ledger_id
    WHERE k.ledger_id = %s
    AND k.key_id = %s
    FOR NO KEY UPDATE OF k
"""

_ADD_HASH: Final = """
    INSERT INTO api_key_hashes (hash, ledger_id, key_id, idempotency, request_hash)
    VALUES (%s, %s, %s, %s, %s)
    ON CONFLICT DO NOTHING
"""

# The text before this one works on for a while; one before that has had its time.
_END_OTHERS: Final = """
    UPDATE api_key_hashes
    SET ends_at = CASE WHEN ends_at IS NULL THEN now() + make_interval(secs => %s) ELSE now() END
    WHERE ledger_id = %s
    AND key_id = %s
    AND hash <> %s
    AND (ends_at IS NULL OR ends_at > now())
"""

_OVERLAP: Final = """
    SELECT max(ends_at)
    FROM api_key_hashes
    WHERE ledger_id = %s
    AND key_id = %s
    AND ends_at > now()
"""

_REVOKE: Final = """
    UPDATE api_keys
    SET revoked_at = now()
    WHERE ledger_id = %s
    AND key_id = %s
    AND revoked_at IS NULL
"""

_EXISTS: Final = "SELECT 1 FROM api_keys WHERE ledger_id = %s AND key_id = %s"

_HOLD: Final = """
    SELECT may_reveal
    FROM api_keys
    WHERE key_id = %s
    AND revoked_at IS NULL
    AND (expires_at IS NULL OR expires_at > clock_timestamp())
    FOR NO KEY UPDATE
"""


_REVEALS_MORE: Final = (
    "This key may not show secrets, so it makes and rotates no key that shows them. Make one with may_reveal false."
)


@dataclass(frozen=True, slots=True)
class AccessContext:
    """Who changes keys, through which route, as the access log records it; by default, the command line."""

    key_id: UUID | None = None
    role: Role | Literal["machine"] = "machine"
    route: str = "sparkledger keys"
    request_id: str = ""


COMMAND_LINE: Final = AccessContext()


def api_key(row: Any) -> ApiKey:
    """Return the key of a row that begins with `KEY_COLUMNS`."""
    return ApiKey(
        key_id=row[0],
        ledger_id=row[1],
        ledger_name=row[2],
        name=row[3],
        role=row[4],
        subjects=Subjects(frozenset(row[5]), frozenset(row[6]), frozenset(row[7])),
        created_at=row[8],
        expires_at=row[9],
        revoked_at=row[10],
        kind=row[11],
        may_reveal=row[12],
    )


class KeyAdmin:
    """Makes, rotates and revokes keys."""

    def __init__(self, database: Database, key_provider: KeyProvider) -> None:
        """Take the sessions to write with, and who unwraps the key that API keys are hashed with."""
        self._database = database
        self._keyring = Keyring(database, key_provider)

    def forget(self) -> None:
        """Remember nothing of keys any more: one of them has changed."""

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
    ) -> tuple[ApiKey, str, bool]:
        """Mint a key.

        A request with an Idempotency-Key gets a text derived from it, so that it can be told again and is stored
        nowhere. An operator may bring a `text` of their own.

        Returns:
            The key, its text, and whether it was minted before.

        Raises:
            ValueError: the role does not go with the subjects.
            IdempotencyMismatch: the Idempotency-Key minted another key.
            NotAllowed: it would reveal, and the key that asks may not.
            Refused: `creator_erased`, where it would act for erased creators alone.
            KeyNoLongerValid: the key that asks was revoked meanwhile.

        """
        subjects = subjects or Subjects()
        problem = subjects_problem(role, subjects)
        if problem is not None:
            raise ValueError(problem)
        hashing = await self._keyring.hashing()
        idempotency, drawn = await self._drawn("mint", context, idempotency_key)
        keys = await self._keyring.ledger(ledger_id)
        text = text or drawn
        key_id = uuid7()
        fields = {
            "hash": hashing.hash(text),
            "ledger_id": ledger_id,
            "key_id": key_id,
            "kind": "key",
            "name": name,
            "role": role,
            "creator_ids": sorted(subjects.creator_ids),
            "brand_ids": sorted(subjects.brand_ids),
            "advertiser_ids": sorted(subjects.advertiser_ids),
            "expires_at": expires_at,
            "created_by": context.key_id,
            "sealed_subject": None,
            "may_reveal": may_reveal,
            "idempotency": idempotency,
            "request_hash": request_hash,
        }
        async with self._database.connection(ledger_id) as connection, connection.transaction():
            may_reveal_itself = await lock_valid_key(connection, context.key_id)
            if may_reveal and role in REVEALING and not may_reveal_itself:
                raise NotAllowed(_REVEALS_MORE)
            if await all_erased(connection, ledger_id, keys, subjects.creator_ids):
                raise Refused("creator_erased")
            minted = (await connection.execute(INSERT, fields)).rowcount == 1
            row = await (await connection.execute(_OF_HASH, (fields["hash"],))).fetchone()
            if row is None or (not minted and row[13] != request_hash):
                raise IdempotencyMismatch
            if minted:
                await _record(connection, ledger_id, context, {"key_id": key_id, "role": role})
        return api_key(row), text, not minted

    async def rotate(
        self,
        ledger_id: int,
        key_id: UUID,
        *,
        overlap_s: int,
        idempotency_key: str | None = None,
        request_hash: bytes = b"",
        context: AccessContext = COMMAND_LINE,
    ) -> tuple[ApiKey, str, bool]:
        """Give a key another text; the one it had works on for `overlap_s` seconds, one from before that no longer.

        Returns:
            The key, its new text, and whether it was rotated by this request before.

        Raises:
            LookupError: the ledger has no such key.
            KeyNotRotatable: it was revoked, has expired, or stands for the bearer of tokens.
            NotAllowed: it reveals, and the key that asks may not.
            IdempotencyMismatch: the Idempotency-Key rotated in another way.
            KeyNoLongerValid: the key that asks was revoked meanwhile.

        """
        hashing = await self._keyring.hashing()
        idempotency, text = await self._drawn(f"rotate {key_id}", context, idempotency_key)
        hashed = hashing.hash(text)
        async with self._database.connection(ledger_id) as connection, connection.transaction():
            may_reveal_itself = await lock_valid_key(connection, context.key_id)
            row = await (await connection.execute(_TO_ROTATE, (ledger_id, key_id))).fetchone()
            if row is None:
                message = "There is no such key in this ledger."
                raise LookupError(message)
            key = api_key(row)
            now = await (await connection.execute("SELECT now()")).fetchone()
            assert now is not None  # noqa: S101 - a SELECT without a FROM answers one row
            if key.kind != "key" or not key.valid(now[0]):
                raise KeyNotRotatable
            if key.reveals and not may_reveal_itself:
                raise NotAllowed(_REVEALS_MORE)
            added = await connection.execute(_ADD_HASH, (hashed, ledger_id, key_id, idempotency, request_hash))
            rotated = added.rowcount == 1
            if rotated:
                await connection.execute(_END_OTHERS, (overlap_s, ledger_id, key_id, hashed))
                await _record(connection, ledger_id, context, {"key_id": key_id, "overlap_seconds": overlap_s})
            else:
                known = await (await connection.execute(_OF_HASH, (hashed,))).fetchone()
                if known is None or known[13] != request_hash:
                    raise IdempotencyMismatch
            overlap = await (await connection.execute(_OVERLAP, (ledger_id, key_id))).fetchone()
            assert overlap is not None  # noqa: S101 - an aggregate answers one row
        self.forget()
        return replace(key, overlap_ends_at=overlap[0]), text, not rotated

    async def revoke(self, ledger_id: int, key_id: UUID, *, context: AccessContext = COMMAND_LINE) -> bool:
        """Revoke a key for good; `False` where there is none, again is fine.

        Raises:
            KeyNoLongerValid: the key that asks was itself revoked meanwhile.

        """
        async with self._database.connection(ledger_id) as connection, connection.transaction():
            await lock_valid_key(connection, context.key_id)
            revoked = (await connection.execute(_REVOKE, (ledger_id, key_id))).rowcount == 1
            if revoked:
                await _record(connection, ledger_id, context, {"key_id": key_id})
            found = await (await connection.execute(_EXISTS, (ledger_id, key_id))).fetchone()
        self.forget()
        return found is not None

    async def _drawn(
        self, purpose: str, context: AccessContext, idempotency_key: str | None
    ) -> tuple[bytes | None, str]:
        """Return how a request is known, where it bears an Idempotency-Key, and the text that it gets."""
        if idempotency_key is None:
            return None, key_text(secrets.token_bytes(RANDOM_BYTES))
        hashed = (await self._keyring.hashing()).hash(f"{purpose}\0{context.key_id}\0{idempotency_key}")
        return hashed[:16], key_text(hmac.digest(hashed, b"text", "sha256"))


async def lock_valid_key(connection: LedgerConnection, key_id: UUID | None) -> bool:
    """Hold the key that asks as it is until the transaction ends: one that was revoked must not outlive itself.

    Returns:
        Whether it may reveal; whoever sits at the machine may.

    Raises:
        KeyNoLongerValid: it was revoked, or has expired.

    """
    if key_id is None:
        return True
    row = await (await connection.execute(_HOLD, (key_id,))).fetchone()
    if row is None:
        raise KeyNoLongerValid
    return bool(row[0])


async def _record(connection: LedgerConnection, ledger_id: int, context: AccessContext, asked: dict[str, Any]) -> None:
    access = Access(
        key_id=context.key_id,
        role=context.role,
        route=context.route,
        query=orjson.dumps(asked, option=orjson.OPT_SORT_KEYS),
        format="text/plain" if context.key_id is None else "application/json",
        rows=1,
        complete=True,
        request_id=context.request_id,
    )
    await record_within(connection, ledger_id, access)
