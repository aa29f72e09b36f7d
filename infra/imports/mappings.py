"""Mappings as they are saved: how the sheets of a source are read, under a name of the ledger's own."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from infra.auth.key_admin import lock_valid_key
from projections.engine.advisory_locks import AdvisoryLock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from datetime import datetime
    from uuid import UUID

    from infra.postgres.pool import Database, LedgerConnection

MAX_MAPPINGS: Final = 200

_SELECT: Final = "SELECT name, content, saved_at, key_id FROM import_mappings WHERE ledger_id = %s"
_ONE: Final = f"{_SELECT} AND name = %s"
_ALL: Final = f"{_SELECT} ORDER BY name"
_LOCK_COUNT: Final = "SELECT pg_advisory_xact_lock(%s, %s)"
_COUNT: Final = "SELECT count(*) FROM import_mappings WHERE ledger_id = %s AND name <> %s"
_SAVE: Final = """
    INSERT INTO import_mappings (ledger_id, name, content, key_id)
    VALUES (%s, %s, %s, %s)
    ON CONFLICT (ledger_id, name) DO UPDATE
    SET content = EXCLUDED.content, key_id = EXCLUDED.key_id, saved_at = now()
    RETURNING name, content, saved_at, key_id
"""
_DELETE: Final = "DELETE FROM import_mappings WHERE ledger_id = %s AND name = %s"


class TooManyMappings(Exception):
    """The ledger has as many mappings as it may have."""


class MappingNotFound(LookupError):
    """There is no such mapping in this ledger."""


@dataclass(frozen=True, slots=True)
class SavedMapping:
    """A mapping: its name, what it says, when it was saved last, and with which key."""

    name: str
    content: Mapping[str, Any]
    saved_at: datetime
    key_id: UUID


class SheetMappings:
    """Saves and reads the mappings of ledgers."""

    def __init__(self, database: Database) -> None:
        """Take the database."""
        self._database = database

    async def all(self, ledger_id: int) -> list[SavedMapping]:
        """Return a ledger's mappings, by name."""

        async def query(connection: LedgerConnection) -> list[SavedMapping]:
            return [SavedMapping(*row) for row in await (await connection.execute(_ALL, (ledger_id,))).fetchall()]

        return await self._database.read(ledger_id, query)

    async def find(self, ledger_id: int, name: str) -> SavedMapping:
        """Return a mapping by its name.

        Raises:
            MappingNotFound: there is none.

        """

        async def query(connection: LedgerConnection) -> Any:
            return await (await connection.execute(_ONE, (ledger_id, name))).fetchone()

        row = await self._database.read(ledger_id, query)
        if row is None:
            raise MappingNotFound
        return SavedMapping(*row)

    async def save(self, ledger_id: int, key_id: UUID, name: str, content: Mapping[str, Any]) -> SavedMapping:
        """Save a mapping, in place of what was saved under the name.

        Raises:
            TooManyMappings: the ledger has reached its limit.
            KeyNoLongerValid: the key was revoked in the meantime; here and below.

        """
        async with self._changing(ledger_id, key_id) as connection:
            await connection.execute(_LOCK_COUNT, (AdvisoryLock.MAPPING_COUNT, ledger_id))
            row = await (await connection.execute(_COUNT, (ledger_id, name))).fetchone()
            if row is None or row[0] >= MAX_MAPPINGS:
                raise TooManyMappings
            saved: Any = await (
                await connection.execute(_SAVE, (ledger_id, name, orjson.dumps(content).decode(), key_id))
            ).fetchone()
            return SavedMapping(*saved)

    async def delete(self, ledger_id: int, key_id: UUID, name: str) -> None:
        """Delete a mapping. Imports that have used it stay as they are.

        Raises:
            MappingNotFound: there is none.

        """
        async with self._changing(ledger_id, key_id) as connection:
            if (await connection.execute(_DELETE, (ledger_id, name))).rowcount == 0:
                raise MappingNotFound

    @asynccontextmanager
    async def _changing(self, ledger_id: int, key_id: UUID) -> AsyncIterator[LedgerConnection]:
        async with self._database.connection(ledger_id) as connection, connection.transaction():
            await lock_valid_key(connection, ledger_id, key_id)
            yield connection
