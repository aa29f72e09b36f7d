"""Administration of ledgers: creating one, and finding those there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import psycopg

from infra.crypto.envelope import fresh_key
from infra.crypto.keyring import fingerprint_purpose

if TYPE_CHECKING:
    from datetime import datetime

    from infra.crypto.keyring import Keyring
    from infra.postgres.pool import Database, LedgerConnection


# A ledger's part of the database, by its number of events: its own rows could only be counted by reading them all.
_SIZES: Final = """
    SELECT l.ledger_id, l.name, h.position,
           (pg_database_size(current_database()) * h.position / greatest(sum(h.position) OVER (), 1))::bigint,
           d.target, d.began_at AT TIME ZONE 'UTC'
    FROM ledgers l
    LEFT JOIN departures d ON d.ledger_id = l.ledger_id AND d.moved_at IS NULL
    CROSS JOIN LATERAL (
        SELECT coalesce(max(e.position), 0) AS position FROM events e WHERE e.ledger_id = l.ledger_id
    ) h
    ORDER BY l.ledger_id
"""


class LedgerSize(NamedTuple):
    """A ledger, and how large it is: its events, and about how many bytes it takes.

    While it moves to another server, or its move was interrupted: where to, and since when, in UTC.
    """

    ledger_id: int
    name: str
    events: int
    bytes: int
    moving_to: str | None
    moving_since: datetime | None


class LedgerExists(Exception):
    """A ledger of this name exists already. Choose another name, or create a key for the existing one."""


class LedgerAdmin:
    """Creates ledgers and finds them by name; needs the worker's rights."""

    def __init__(self, database: Database, keyring: Keyring) -> None:
        """Take the database, and the keyring that wraps a new ledger's fingerprint key."""
        self._database = database
        self._keyring = keyring

    async def create(self, name: str) -> int:
        """Create a ledger with a fingerprint key of its own, and return its id.

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

    async def id_of(self, name: str) -> int:
        """Return a ledger's id by its name.

        Raises:
            LookupError: there is no such ledger.

        """
        return (await self.named(name))[0]

    async def named(self, name: str) -> tuple[int, bytes]:
        """Return a ledger's id by its name, and the token that binds a session of the API to it.

        Raises:
            LookupError: there is no such ledger.

        """

        async def query(connection: LedgerConnection) -> Any:
            cursor = await connection.execute("SELECT ledger_id, ledger_token FROM ledger_named(%s)", (name,))
            return await cursor.fetchone()

        ledger_id, token = await self._database.read(None, query) or (None, None)
        if ledger_id is None or token is None:
            message = f"There is no ledger named {name}. `sparkledger ledgers list` shows all ledgers."
            raise LookupError(message)
        return ledger_id, token

    async def ledgers(self) -> list[LedgerSize]:
        """Return every ledger and how large it is, oldest first."""

        async def query(connection: LedgerConnection) -> list[LedgerSize]:
            return [LedgerSize(*row) for row in await (await connection.execute(_SIZES)).fetchall()]

        return await self._database.read(None, query)
