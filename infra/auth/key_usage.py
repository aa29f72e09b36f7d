"""The use of keys: first use and last use of each.

The first use is recorded in the access log before the request is answered, so that the use of a key that leaked, or was
never meant for its holder, can be found. The last use is stored to the minute by a background task.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import orjson

from infra.auth.access_log import Access, record_within
from infra.ending import cancelled
from infra.errors import Unavailable
from infra.recent_cache import RecentCache
from projections.engine.array_columns import Uuids

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from infra.auth.api_keys import ApiKey
    from infra.postgres.pool import Database, LedgerConnection

FIRST_USE: Final = "first use"
WRITE_INTERVAL: Final = timedelta(minutes=1)
# Uses within this time are written together.
GATHER_S: Final = 1.0
MAX_PENDING: Final = 10_000

_FIRST: Final = """
    INSERT INTO api_key_uses (ledger_id, key_id, first_used_at, last_used_at)
    VALUES (%(ledger_id)s, %(key_id)s, %(now)s, %(now)s)
    ON CONFLICT DO NOTHING
"""

_AGAIN: Final = """
    UPDATE api_key_uses u
    SET last_used_at = x.at
    FROM unnest(%s, %s::timestamptz[]) AS x (key_id, at)
    WHERE u.ledger_id = %s
    AND u.key_id = x.key_id
    AND u.last_used_at < x.at
"""


class KeyUsage:
    """Records when keys are used."""

    def __init__(self, database: Database) -> None:
        """Take the database."""
        self._database = database
        self._written: RecentCache[UUID, datetime] = RecentCache(MAX_PENDING)
        self._pending: dict[UUID, tuple[int, datetime]] = {}
        self._writing: asyncio.Task[None] | None = None

    async def first(self, key: ApiKey, now: datetime) -> None:
        """Record a key's first use, unless another process did so before.

        Where this raises, the request must not be let in.
        """
        access = Access(
            key_id=key.key_id,
            role=key.role,
            route=FIRST_USE,
            query=orjson.dumps({"kind": key.kind}),
            format="",
            rows=0,
            complete=True,
            request_id="",
        )
        fields = {"ledger_id": key.ledger_id, "key_id": key.key_id, "now": now}
        async with self._database.connection(key.ledger_id) as connection, connection.transaction():
            if (await connection.execute(_FIRST, fields)).rowcount == 1:
                await record_within(connection, key.ledger_id, access)

    def note(self, key: ApiKey, now: datetime) -> None:
        """Note that a key is used; it is written within seconds, at most once a minute."""
        written = self._written.get(key.key_id)
        if (written is not None and now - written < WRITE_INTERVAL) or len(self._pending) >= MAX_PENDING:
            return
        self._written.put(key.key_id, now)
        self._pending[key.key_id] = (key.ledger_id, now)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write(), name="key usage")

    async def stop(self) -> None:
        """Stop writing; what was noted in the last second is lost."""
        if self._writing is not None:
            await cancelled([self._writing])

    async def _write(self) -> None:
        while self._pending:
            await asyncio.sleep(GATHER_S)
            pending, self._pending = self._pending, {}
            by_ledger: dict[int, dict[UUID, datetime]] = {}
            for key_id, (ledger_id, moment) in pending.items():
                by_ledger.setdefault(ledger_id, {})[key_id] = moment
            for ledger_id, moments in by_ledger.items():
                # The last use is a hint for cleaning up keys: what cannot be written now is written with the next use.
                with suppress(Unavailable):
                    await self._write_for(ledger_id, moments)

    async def _write_for(self, ledger_id: int, moments: dict[UUID, datetime]) -> None:
        async def run(connection: LedgerConnection) -> None:
            await connection.execute(_AGAIN, (Uuids(list(moments)), list(moments.values()), ledger_id))

        await self._database.read(ledger_id, run)
