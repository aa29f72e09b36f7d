"""Sessions of the console: who is signed in, by a cookie that says nothing by itself.

A cookie holds 256 random bits. The database has their keyed hash, and the key or token that the person signed in with,
sealed under a key that is derived from one outside the database. So neither a copy of the database nor a stolen cookie
jar alone opens anything, and a session is never worth more than its key: that is checked again with every request.
"""

from __future__ import annotations

import base64
import re
import secrets
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import orjson
from cryptography.exceptions import InvalidTag

from infra.crypto.envelope import SealingKey
from infra.errors import LedgerElsewhere

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from infra.auth.api_keys import ApiKey
    from infra.crypto.keyring import Keyring
    from infra.postgres.pool import Database, LedgerConnection

LONGEST: Final = timedelta(hours=8)
IDLE: Final = timedelta(minutes=30)
# Beyond that, a key's oldest session ends: people share keys, but not with a crowd.
MAX_OF_A_KEY: Final = 50
ID_BYTES: Final = 32
_ID: Final = re.compile(r"[A-Za-z0-9_-]{43}")
_PURPOSE: Final = "console sessions"

_BEGIN: Final = """
    INSERT INTO console_sessions (hash, ledger_id, key_id, sealed, expires_at) VALUES (%s, %s, %s, %s, now() + %s)
"""
_CROWD_OUT: Final = """
    DELETE FROM console_sessions
    WHERE ledger_id = %(ledger_id)s
    AND key_id = %(key_id)s
    AND hash NOT IN (
        SELECT hash FROM console_sessions
        WHERE ledger_id = %(ledger_id)s AND key_id = %(key_id)s
        ORDER BY created_at DESC
        LIMIT %(most)s
    )
"""
_FIND: Final = "SELECT ledger_id, key_id, sealed, expires_at, served_by FROM console_session(%s, %s, %s)"
_RENEW: Final = "UPDATE console_sessions SET sealed = %s WHERE ledger_id = %s AND hash = %s"
_END: Final = "DELETE FROM console_sessions WHERE ledger_id = %s AND hash = %s"
PURGE: Final = """
    DELETE FROM console_sessions WHERE hash IN (
        SELECT hash FROM console_sessions WHERE expires_at < now() - make_interval(days => %s) LIMIT %s
    )
"""
KEEP_ENDED_DAYS: Final = 1


@dataclass(frozen=True, slots=True)
class ConsoleSession:
    """A session that has not ended.

    Attributes:
        hash: under which it is stored.
        presented: the key or token that the person signed in with.
        expires_at: when it ends at the latest.
        renewal: the identity provider, and what gets a new token there; None where nothing does.

    """

    hash: bytes = field(repr=False)
    ledger_id: int
    key_id: UUID
    presented: str = field(repr=False)
    expires_at: datetime
    renewal: tuple[str, str] | None = field(default=None, repr=False)


class ConsoleSessions:
    """Begins, finds and ends sessions."""

    def __init__(self, database: Database, keyring: Keyring) -> None:
        """Take where sessions are stored, and whose key hashes and seals."""
        self._database = database
        self._keyring = keyring

    async def begin(self, key: ApiKey, presented: str, renewal: tuple[str, str] | None = None) -> str:
        """Begin a session of somebody who presented a valid key or token; return what their cookie says.

        Raises:
            Unavailable: the database is away.

        """
        session_id = secrets.token_urlsafe(ID_BYTES)
        hashed, sealing = await self._keys(session_id)
        sealed = sealing.seal(orjson.dumps([presented, renewal]), hashed)
        async with self._database.connection(key.ledger_id) as connection, connection.transaction():
            await connection.execute(_BEGIN, (hashed, key.ledger_id, key.key_id, sealed, LONGEST))
            most = {"ledger_id": key.ledger_id, "key_id": key.key_id, "most": MAX_OF_A_KEY}
            await connection.execute(_CROWD_OUT, most)
        return session_id

    async def find(self, session_id: str, *, used: bool = True) -> ConsoleSession | None:
        """Return the session of a cookie; None if there is none, or it has ended.

        Args:
            session_id: what the cookie says.
            used: whether a person uses it now, which keeps it from ending as idle.

        Raises:
            LedgerElsewhere: another server serves its ledger.
            Unavailable: the database is away.

        """
        if _ID.fullmatch(session_id) is None:
            return None
        hashed, sealing = await self._keys(session_id)

        async def query(connection: LedgerConnection) -> Any:
            return await (await connection.execute(_FIND, (hashed, used, IDLE), prepare=True)).fetchone()

        row = await self._database.read(None, query)
        if row is None:
            return None
        ledger_id, key_id, sealed, expires_at, served_by = row
        if served_by is not None:
            raise LedgerElsewhere(ledger_id, served_by)
        try:
            presented, renewal = orjson.loads(sealing.unseal(bytes(sealed), hashed))
        except (InvalidTag, ValueError):
            return None
        return ConsoleSession(hashed, ledger_id, key_id, presented, expires_at, renewal and tuple(renewal))

    async def renewed(self, session_id: str, session: ConsoleSession, token: str, renewal: tuple[str, str]) -> None:
        """Keep the new token of a session whose old one has expired.

        Raises:
            Unavailable: the database is away.

        """
        hashed, sealing = await self._keys(session_id)
        sealed = sealing.seal(orjson.dumps([token, renewal]), hashed)
        async with self._database.connection(session.ledger_id) as connection:
            await connection.execute(_RENEW, (sealed, session.ledger_id, hashed))

    async def sealed(self, content: bytes, purpose: str) -> str:
        """Return a text that says nothing to the browser that keeps it, and that nobody else can make."""
        sealing = SealingKey((await self._keyring.hashing()).derived(purpose))
        return base64.urlsafe_b64encode(sealing.seal(content, purpose.encode())).decode()

    async def unsealed(self, text: str, purpose: str) -> bytes | None:
        """Return what was sealed for a purpose; None if it was changed, or sealed for another."""
        sealing = SealingKey((await self._keyring.hashing()).derived(purpose))
        try:
            return sealing.unseal(base64.urlsafe_b64decode(text), purpose.encode())
        except (InvalidTag, ValueError):
            return None

    async def end(self, session: ConsoleSession, ledger_id: int) -> None:
        """End a session, in the ledger of its key.

        Raises:
            Unavailable: the database is away.

        """
        async with self._database.connection(ledger_id) as connection:
            await connection.execute(_END, (ledger_id, session.hash))

    async def _keys(self, session_id: str) -> tuple[bytes, SealingKey]:
        hashing = await self._keyring.hashing()
        return hashing.hash(f"{_PURPOSE} {session_id}"), SealingKey(hashing.derived(_PURPOSE))
