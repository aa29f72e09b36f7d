"""API keys and ledgers: who calls, for which ledger, in which role and for which subjects."""

from __future__ import annotations

import base64
import hmac
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import psycopg

from infra.errors import IdempotencyMismatch, KeyNoLongerValid
from infra.ids import uuid7
from infra.keyring import Keyring, Recent, fingerprint_purpose
from infra.vault import fresh_key

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from domain.values import Role
    from infra.database import Database, LedgerConnection
    from infra.vault import MasterKey

PREFIX: Final = "slk_"
# A read may be let in this long after its key was revoked; an append checks the key again itself.
CACHE_S: Final = 1.0
MAX_CACHED: Final = 10_000
MAX_PRESENTED_CHARACTERS: Final = 512


class LedgerExists(Exception):
    """A ledger of this name exists already. Choose another name, or mint a key for the one there is."""


@dataclass(frozen=True, slots=True)
class Subjects:
    """Whom a key acts for; empty sets for roles that act for nobody in particular."""

    creator_ids: frozenset[str] = frozenset()
    brand_ids: frozenset[str] = frozenset()
    advertiser_ids: frozenset[str] = frozenset()


def subjects_problem(role: Role, subjects: Subjects) -> str | None:
    """Say what is wrong with a role's subjects: creators and brands act for somebody, the others for everyone."""
    match role:
        case "creator":
            if not subjects.creator_ids or subjects.brand_ids or subjects.advertiser_ids:
                return "A creator's key names one or more creator_ids, and nothing else."
        case "brand":
            if subjects.creator_ids or not (subjects.brand_ids or subjects.advertiser_ids):
                return "A brand's key names brand_ids, advertiser_ids or both, and no creator_ids."
        case _:
            if subjects != Subjects():
                return "Only keys of creators and brands have subjects; this role acts for everyone."
    return None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as it is known: never its text, which only its holder has."""

    key_id: UUID
    ledger_id: int
    ledger_name: str
    name: str | None
    role: Role
    subjects: Subjects
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None

    def valid(self, now: datetime) -> bool:
        """Tell whether the key may be used at a moment."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


_COLUMNS: Final = """
    k.key_id, k.ledger_id, l.name, k.name, k.role, k.creator_ids, k.brand_ids, k.advertiser_ids, k.created_at,
    k.expires_at, k.revoked_at
"""


def _api_key(row: Any) -> ApiKey:
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
    )


class Identity:
    """Mints keys, and finds who a presented one belongs to."""

    def __init__(self, database: Database, master_key: MasterKey) -> None:
        """Take the sessions to look up with, and the key that API keys are hashed with."""
        self._database = database
        self._master_key = master_key
        self._known: Recent[bytes, tuple[float, ApiKey | None]] = Recent(MAX_CACHED)

    async def authenticate(self, presented: str, now: datetime) -> ApiKey | None:
        """Find who a key belongs to; `None` for one that is unknown, revoked or expired."""
        if len(presented) > MAX_PRESENTED_CHARACTERS:
            return None
        hashed = self._master_key.api_key_hash(presented)
        known = self._known.get(hashed)
        if known is None or time.monotonic() - known[0] > CACHE_S:

            async def query(connection: LedgerConnection) -> Any:
                cursor = connection.cursor(binary=True)
                await cursor.execute("SELECT * FROM authenticate(%b)", (hashed,), prepare=True)
                return await cursor.fetchone()

            row = await self._database.read(None, query)
            known = self._known.put(hashed, (time.monotonic(), None if row is None else _api_key(row)))
        key = known[1]
        return key if key is not None and key.valid(now) else None

    async def known(self, presented: str) -> bool:
        """Tell whether a key was ever minted, revoked or not."""
        hashed = self._master_key.api_key_hash(presented)

        async def query(connection: LedgerConnection) -> bool:
            cursor = await connection.execute("SELECT 1 FROM authenticate(%s)", (hashed,))
            return await cursor.fetchone() is not None

        return await self._database.read(None, query)

    async def create(
        self,
        ledger_id: int,
        *,
        role: Role,
        name: str | None = None,
        subjects: Subjects | None = None,
        expires_at: datetime | None = None,
        idempotency_key: str | None = None,
        request_hash: bytes = b"",
        created_by: UUID | None = None,
        text: str | None = None,
    ) -> tuple[ApiKey, str, bool]:
        """Mint a key.

        A request with an Idempotency-Key gets a text derived from it, so that it can be told again and is stored
        nowhere. An operator may bring a `text` of their own.

        Returns:
            The key, its text, and whether it was minted before.

        Raises:
            IdempotencyMismatch: the Idempotency-Key minted another key.
            KeyNoLongerValid: the key that asks was revoked meanwhile.

        """
        subjects = subjects or Subjects()
        idempotency = None
        if idempotency_key is not None:
            idempotency = self._master_key.api_key_hash(f"mint\0{created_by}\0{idempotency_key}")
            text = _text(hmac.digest(idempotency, b"text", "sha256"))
        text = text or _text(secrets.token_bytes(32))
        async with self._database.connection(ledger_id) as connection, connection.transaction():
            await _still_valid(connection, created_by)
            cursor = await connection.execute(
                "INSERT INTO api_keys (key_id, ledger_id, hash, name, role, creator_ids, brand_ids, advertiser_ids,"
                " expires_at, created_by, idempotency, request_hash)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
                " ON CONFLICT (ledger_id, idempotency) DO NOTHING",
                (
                    uuid7(),
                    ledger_id,
                    self._master_key.api_key_hash(text),
                    name,
                    role,
                    sorted(subjects.creator_ids),
                    sorted(subjects.brand_ids),
                    sorted(subjects.advertiser_ids),
                    expires_at,
                    created_by,
                    None if idempotency is None else idempotency[:16],
                    request_hash,
                ),
            )
            minted = cursor.rowcount == 1
            cursor = await connection.execute(
                "SELECT" + _COLUMNS + ", k.request_hash FROM api_keys k JOIN ledgers l ON l.ledger_id = k.ledger_id"
                " WHERE k.hash = %s",
                (self._master_key.api_key_hash(text),),
            )
            row = await cursor.fetchone()
        if row is None or (not minted and row[11] != request_hash):
            raise IdempotencyMismatch
        return _api_key(row), text, not minted

    async def keys(self, ledger_id: int) -> list[ApiKey]:
        """List a ledger's keys, newest first."""

        async def query(connection: LedgerConnection) -> list[ApiKey]:
            cursor = await connection.execute(
                "SELECT" + _COLUMNS + " FROM api_keys k JOIN ledgers l ON l.ledger_id = k.ledger_id"
                " WHERE k.ledger_id = %s ORDER BY k.key_id DESC",
                (ledger_id,),
            )
            return [_api_key(row) for row in await cursor.fetchall()]

        return await self._database.read(ledger_id, query)

    async def revoke(self, ledger_id: int, key_id: UUID, *, by: UUID | None = None) -> bool:
        """Revoke a key for good; `False` where there is none, again is fine.

        Raises:
            KeyNoLongerValid: the key that asks was itself revoked meanwhile.

        """
        # Nothing is let in from memory after this, here; other processes forget within a second.
        self._known.clear()
        async with self._database.connection(ledger_id) as connection, connection.transaction():
            await _still_valid(connection, by)
            cursor = await connection.execute(
                "UPDATE api_keys SET revoked_at = coalesce(revoked_at, now()) WHERE ledger_id = %s AND key_id = %s",
                (ledger_id, key_id),
            )
            found = cursor.rowcount == 1
        self._known.clear()
        return found

    async def names(self, ledger_id: int) -> dict[str, str | None]:
        """Return the names of a ledger's keys by key id, revoked ones included."""
        return {str(key.key_id): key.name for key in await self.keys(ledger_id)}

    async def create_ledger(self, name: str) -> int:
        """Begin a ledger, with a fingerprint key of its own; needs the worker's rights.

        Raises:
            LedgerExists: the name is taken.

        """
        wrapped = self._master_key.wrap(fresh_key(), fingerprint_purpose(name))
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
        await Keyring(self._database, self._master_key).ledger(ledger_id)

    async def ledgers(self) -> list[tuple[int, str]]:
        """List all ledgers as id and name; needs the worker's rights."""

        async def query(connection: LedgerConnection) -> list[tuple[int, str]]:
            cursor = await connection.execute("SELECT ledger_id, name FROM ledgers ORDER BY ledger_id")
            return [(row[0], row[1]) for row in await cursor.fetchall()]

        return await self._database.read(None, query)


async def _still_valid(connection: LedgerConnection, key_id: UUID | None) -> None:
    """Hold the key that asks as it is until the transaction ends: one that was revoked must not outlive itself."""
    if key_id is None:
        return
    cursor = await connection.execute(
        "SELECT 1 FROM api_keys WHERE key_id = %s AND revoked_at IS NULL"
        " AND (expires_at IS NULL OR expires_at > clock_timestamp()) FOR UPDATE",
        (key_id,),
    )
    if await cursor.fetchone() is None:
        raise KeyNoLongerValid


def _text(random: bytes) -> str:
    return PREFIX + base64.urlsafe_b64encode(random).decode().rstrip("=")
