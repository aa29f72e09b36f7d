"""Erasing a creator: an event first, which says who and why, and then the deed, which destroys the creator's key.

From the moment the event is recorded nothing of the creator is unsealed any more, in no process. The deed follows at
once; where a process is killed in between, a worker carries it out. Every event stays in place: what was decided can be
read and proven on, what was sealed cannot be read by anybody.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import psycopg

from domain import commands
from domain.creator import Creator
from domain.errors import Unknown
from domain.values import Actor
from infra.auth.access_log import AccessContext
from infra.auth.ledger_admin import LedgerAdmin
from infra.crypto.envelope import MasterKeyError
from infra.errors import Unavailable
from infra.eventstore.attempt import CommandMetadata
from infra.ids import uuid7
from infra.processes.runtime import WORKER, runtime

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from domain.commands import Decision, Ledger, When
    from domain.recorded import RecordedEvent
    from infra.auth.key_admin import KeyAdmin
    from infra.crypto.master_keys import KeyProvider
    from infra.eventstore.aggregate_reader import AggregateReader
    from infra.postgres.pool import Database, LedgerConnection

# A worker looks this often for erasures that are recorded and not carried out: their process was killed, or cut off.
LOOK_EVERY_S: Final = 5.0
AT_ONCE: Final = 100
# Keys of a creator that are revoked, one by one and each on record, before it is looked for more.
KEYS_AT_ONCE: Final = 100

_PENDING: Final = """
    SELECT e.ledger_id, convert_from(e.body, 'UTF8')::jsonb ->> 'creator_id'
    FROM events e
    WHERE e.type = 'CreatorErased'
    AND NOT EXISTS (SELECT 1 FROM erasures d WHERE d.ledger_id = e.ledger_id AND d.position = e.position)
    ORDER BY e.ledger_id, e.position
    LIMIT %s
"""

_CARRIED_OUT: Final = "SELECT carried_out_at FROM erasures WHERE ledger_id = %s AND position = %s"

# Keys that act for this creator and nobody who is not erased as well: they open nothing any more.
_KEYS: Final = """
    SELECT key_id
    FROM api_keys
    WHERE ledger_id = %(ledger_id)s
    AND role = 'creator'
    AND creator_ids @> ARRAY[%(creator_id)s]
    AND creator_ids <@ (
        SELECT array_agg(convert_from(e.body, 'UTF8')::jsonb ->> 'creator_id')
        FROM events e
        WHERE e.ledger_id = %(ledger_id)s
        AND e.type = 'CreatorErased'
    )
    AND revoked_at IS NULL
    ORDER BY key_id
    LIMIT %(at_once)s
"""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Erasure:
    """One erasure: the event that records it, and when the deed was done, if it is."""

    recorded: RecordedEvent
    creator_id: str
    reason: str
    carried_out_at: datetime | None


class Erasures:
    """Carries erasures out, and tells how they stand."""

    def __init__(self, database: Database, aggregates: AggregateReader, key_admin: KeyAdmin) -> None:
        """Take the parts of a process, of the API or of a worker."""
        self._database = database
        self._aggregates = aggregates
        self._keyring = aggregates.keyring
        self._key_admin = key_admin

    async def of(self, ledger_id: int, creator_id: str) -> Erasure | None:
        """Return a creator's erasure; nothing where none is recorded.

        Raises:
            Unavailable: the database is away.

        """
        for recorded in reversed(await self._aggregates.creator_stream(ledger_id, creator_id)):
            if isinstance(recorded.event, Creator.Erased):
                done_at = await self._carried_out_at(ledger_id, recorded.position)
                return Erasure(recorded, creator_id, recorded.event.reason, done_at)
        return None

    async def carry_out(self, ledger_id: int, creator_id: str, context: AccessContext) -> bool:
        """Destroy a creator's key, and revoke the API keys that act for erased creators alone; again, nothing changes.

        Whatever the log does not say is erased stays as it is.

        Returns:
            Whether the creator is erased.

        Raises:
            Unavailable: the database is away; a worker will carry it out.

        """
        if await self.of(ledger_id, creator_id) is None:
            return False
        while keys := await self._keys(ledger_id, creator_id):
            for key_id in keys:
                await self._key_admin.revoke(ledger_id, key_id, context=context)
        creator = (await self._keyring.ledger(ledger_id)).claim("creator", creator_id)
        async with self._database.connection(ledger_id) as connection:
            row = await (await connection.execute("SELECT carry_out_erasure(%s, %s)", (ledger_id, creator))).fetchone()
        destroyed: UUID | None = row[0] if row else None
        if destroyed is not None:
            self._keyring.forget(ledger_id, destroyed, creator)
        return destroyed is not None

    async def run(self, look_every_s: float = LOOK_EVERY_S) -> None:
        """Carry out what is recorded and was not carried out, until cancelled; with the worker's rights."""
        while True:
            try:
                while await self.resume() == AT_ONCE:
                    pass
            except (Unavailable, psycopg.OperationalError) as error:
                log.warning("Erasures are delayed: %s", str(error).strip())
            await asyncio.sleep(look_every_s)

    async def resume(self) -> int:
        """Carry out erasures that are recorded and were not carried out, at most `AT_ONCE`; return how many were.

        One that cannot be carried out, for its ledger's keys do not open, keeps none of the others.

        Raises:
            Unavailable: the database is away.

        """

        async def query(connection: LedgerConnection) -> list[Any]:
            return await (await connection.execute(_PENDING, (AT_ONCE,))).fetchall()

        done = 0
        for ledger_id, creator_id in await self._database.read(None, query):
            try:
                done += await self.carry_out(ledger_id, creator_id, AccessContext(route="erasure"))
            except MasterKeyError as error:
                log.warning("An erasure in ledger %s cannot be carried out: %s", ledger_id, error)
        return done

    async def _carried_out_at(self, ledger_id: int, position: int) -> datetime | None:
        async def query(connection: LedgerConnection) -> datetime | None:
            row = await (await connection.execute(_CARRIED_OUT, (ledger_id, position))).fetchone()
            return None if row is None else row[0]

        return await self._database.read(ledger_id, query)

    async def _keys(self, ledger_id: int, creator_id: str) -> list[UUID]:
        async def query(connection: LedgerConnection) -> list[UUID]:
            asked = {"ledger_id": ledger_id, "creator_id": creator_id, "at_once": KEYS_AT_ONCE}
            cursor = await connection.execute(_KEYS, asked)
            return [row[0] for row in await cursor.fetchall()]

        return await self._database.read(ledger_id, query)


async def erase(conninfo: str, key_provider: KeyProvider, ledger: str, creator_id: str, reason: str) -> Erasure:
    """Erase a creator of a ledger by name, for whoever sits at the machine.

    What is recorded names a key, so one is minted for it, and revoked after it.

    Raises:
        LookupError: there is no such ledger, or nothing is recorded of the creator.
        Unavailable: the database is away.

    """
    async with runtime(conninfo, WORKER, key_provider) as opened:
        erasures = Erasures(opened.database, opened.aggregates, opened.key_admin)
        ledger_id = await LedgerAdmin(opened.database, opened.keyring).id_of(ledger)
        context = AccessContext(route="sparkledger erase")
        key, _, _ = await opened.key_admin.create(ledger_id, role="admin", name="command line", context=context)

        async def decide(read: Ledger, when: When) -> Decision[Creator]:
            return await commands.erase(read, creator_id, reason, when=when)

        try:
            request = CommandMetadata(ledger_id, Actor(str(key.key_id), "admin"), correlation_id=str(uuid7()))
            await opened.handler.handle(request, decide)
        except Unknown as error:
            message = f"Ledger {ledger} has no events of this creator, so there is nothing to erase."
            raise LookupError(message) from error
        finally:
            await opened.key_admin.revoke(ledger_id, key.key_id, context=context)
        await erasures.carry_out(ledger_id, creator_id, context)
        found = await erasures.of(ledger_id, creator_id)
    assert found is not None  # noqa: S101 - it was recorded just now, or before
    return found
