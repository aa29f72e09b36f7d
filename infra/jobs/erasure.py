"""Erasure of a creator: an event that says whose and why, and then the destruction of the creator's key.

    recorded        the event is in the log: from now on no process unseals anything of the creator
    carrying_out    the key is removed from its table; the write-ahead log and backups may still have copies of it
    carried_out     the epoch that the copies are sealed in is over, and its key destroyed: they open no more

A worker does what comes after the event. Where a process is killed in between, another one goes on from there. Every
event stays: what was decided can still be read and proven, and what was sealed can be read by nobody.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Literal

from domain import commands
from domain.creator import Creator
from domain.errors import Unknown
from domain.values import Actor, When
from infra.auth.access_log import AccessContext
from infra.auth.ledger_admin import LedgerAdmin
from infra.crypto.envelope import MasterKeyError
from infra.crypto.rotation import change_epoch
from infra.errors import Unavailable
from infra.eventstore.command_handler import CommandMetadata
from infra.ids import uuid7
from infra.jobs.derived_check import DerivedCheck
from infra.postgres.pool import SHORT
from infra.postgres.roles import WORKER
from infra.runtime import runtime

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from domain.commands import Decision, Ledger
    from domain.recorded import RecordedEvent
    from infra.auth.key_admin import KeyAdmin
    from infra.crypto.master_keys import KeyProvider
    from infra.eventstore.aggregate_reader import AggregateReader
    from infra.postgres.pool import Database, LedgerConnection

# How often a worker looks for erasures to carry out, and an answer for one that was carried out.
POLL_S: Final = 1.0
WAIT_POLL_S: Final = 0.05
# How long an answer waits for the worker. What was recorded holds, whether or not it was carried out by then.
WAIT_S: Final = 3.0
BATCH: Final = 100
# How much longer than the change of an epoch the pause after it is.
REST_SHARE: Final = 9
# The creator's API keys are revoked one by one, each with an entry in the access log, and looked up in such batches.
KEY_BATCH: Final = 100

# From its column, because a body can be malformed, and the erasure is to be carried out all the same.
_PENDING: Final = """
    SELECT e.ledger_id, e.creator_id
    FROM events e
    WHERE e.type = 'CreatorErased'
    AND EXISTS (SELECT FROM ledgers l WHERE l.ledger_id = e.ledger_id) -- that this server serves
    AND NOT EXISTS (SELECT 1 FROM erasures d WHERE d.ledger_id = e.ledger_id AND d.position = e.position)
    ORDER BY e.ledger_id, e.position
    LIMIT %s
"""

_DEED: Final = """
    SELECT removed_at, carried_out_at, CASE WHEN carried_out_at IS NOT NULL THEN confirm_commits() END
    FROM erasures
    WHERE ledger_id = %s
    AND position = %s
"""
# Whether an erasure waits for the end of an epoch, and the pause after the last change of the epoch is over: so many
# times as long as that change took. One that was interrupted goes on at once.
_DUE: Final = """
    SELECT EXISTS (SELECT FROM erasures WHERE carried_out_at IS NULL)
    AND coalesce((
        SELECT clock_timestamp() >= max(e.destroyed_at) + %s * (max(e.destroyed_at) - max(e.began_at))
        FROM key_epochs e
        HAVING bool_and(e.present OR e.destroyed_at IS NOT NULL)
    ), true)
"""

# Valid keys that act for this creator, and otherwise only for creators who are erased as well. Keys name creators by
# the canonical forms of their ids.
_KEYS_TO_REVOKE: Final = """
    SELECT key_id
    FROM api_keys
    WHERE ledger_id = %(ledger_id)s
    AND role = 'creator'
    AND creator_ids @> ARRAY[lower(%(creator_id)s)]
    AND creator_ids <@ (
        SELECT array_agg(lower(e.creator_id))
        FROM events e
        WHERE e.ledger_id = %(ledger_id)s
        AND e.type = 'CreatorErased'
    )
    AND revoked_at IS NULL
    ORDER BY key_id
    LIMIT %(limit)s
"""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Erasure:
    """One erasure: the event that records it, when the key was removed, and when its copies became useless."""

    recorded: RecordedEvent
    creator_id: str
    reason: str
    removed_at: datetime | None
    carried_out_at: datetime | None

    @property
    def state(self) -> Literal["recorded", "carrying_out", "carried_out"]:
        """How far it is."""
        if self.carried_out_at is not None:
            return "carried_out"
        return "recorded" if self.removed_at is None else "carrying_out"


class Erasures:
    """Carries erasures out, and shows their state."""

    def __init__(self, database: Database, aggregates: AggregateReader, key_admin: KeyAdmin) -> None:
        """Take these parts of an API process or a worker."""
        self._database = database
        self._aggregates = aggregates
        self._keyring = aggregates.keyring
        self._key_admin = key_admin
        self._check = DerivedCheck(database.conninfo, self._keyring)

    async def of(self, ledger_id: int, creator_id: str) -> Erasure | None:
        """Return a creator's erasure; None where none is recorded."""
        for recorded in reversed(await self._aggregates.creator_stream(ledger_id, creator_id)):
            if isinstance(recorded.event, Creator.Erased):
                removed_at, carried_out_at = await self._deed(ledger_id, recorded.position)
                return Erasure(recorded, recorded.event.creator_id, recorded.event.reason, removed_at, carried_out_at)
        return None

    async def wait(self, ledger_id: int, creator_id: str, within_s: float = WAIT_S) -> Erasure | None:
        """Return a creator's erasure once a worker has carried it out, or as it is after `within_s` seconds."""
        ends_at = monotonic() + within_s
        while True:
            found = await self.of(ledger_id, creator_id)
            if found is None or found.carried_out_at is not None or monotonic() >= ends_at:
                return found
            await asyncio.sleep(WAIT_POLL_S)

    async def carry_out(self, ledger_id: int, creator_id: str, context: AccessContext) -> bool:
        """Destroy a creator's key, and revoke the API keys that act only for erased creators, as a worker.

        It does nothing unless the log records the erasure, and repeating it is harmless.

        Returns:
            Whether the creator is erased.

        Raises:
            MasterKeyError: the key of an epoch is missing, so that the other creators' keys cannot leave that epoch.

        """
        removed = await self.remove(ledger_id, creator_id, context)
        await self.complete()
        return removed

    async def remove(self, ledger_id: int, creator_id: str, context: AccessContext) -> bool:
        """Remove a creator's key from its table, and revoke the API keys; return whether the creator is erased."""
        stream = await self._aggregates.creator_stream(ledger_id, creator_id)
        if not any(recorded.type == "CreatorErased" for recorded in stream):
            return False
        while keys := await self._keys(ledger_id, creator_id):
            for key_id in keys:
                await self._key_admin.revoke(ledger_id, key_id, context=context)
        creator = (await self._keyring.ledger(ledger_id)).claim("creator", creator_id)
        async with self._database.connection(ledger_id) as connection:
            await self._check.before_erasure(connection, ledger_id, stream[0].stream_id)
            row = await (await connection.execute("SELECT carry_out_erasure(%s, %s)", (ledger_id, creator))).fetchone()
        removed: UUID | None = row[0] if row else None
        if removed is not None:
            self._keyring.forget(ledger_id, removed, creator)
        return removed is not None

    async def complete(self, rest_share: int = 0) -> None:
        """End the epoch that the removed keys were sealed in, once for all of them, if there are any.

        With `rest_share`, this waits for a later call until the pause after the last end of an epoch is over.
        """

        async def query(connection: LedgerConnection) -> bool:
            row = await (await connection.execute(_DUE, (rest_share,))).fetchone()
            return row is not None and bool(row[0])

        if await self._database.read(None, query):
            await change_epoch(self._database.conninfo, self._keyring.key_provider)

    async def run(self, poll_s: float = POLL_S) -> None:
        """Carry out pending erasures until cancelled; needs the worker's rights.

        Erasures that are recorded while an epoch ends wait for the end of the next one, together. Epochs follow each
        other so slowly that sealing every creator's key again takes a tenth of the time, with any number of workers.
        """
        while True:
            try:
                while await self.remove_pending() == BATCH:
                    pass
                await self.complete(REST_SHARE)
            except (Unavailable, MasterKeyError, *SHORT) as error:
                log.warning("Erasures are delayed: %s", str(error).strip())
            await asyncio.sleep(poll_s)

    async def carry_out_pending(self) -> int:
        """Carry out at most `BATCH` erasures that are recorded and pending, and return how many keys were removed."""
        removed = await self.remove_pending()
        await self.complete()
        return removed

    async def remove_pending(self) -> int:
        """Remove the keys of at most `BATCH` erasures that are recorded and pending, and return how many there were.

        One that cannot be carried out, because its ledger's keys do not open, does not hold up the others.
        """

        async def query(connection: LedgerConnection) -> list[Any]:
            return await (await connection.execute(_PENDING, (BATCH,))).fetchall()

        done = 0
        for ledger_id, creator_id in await self._database.read(None, query):
            try:
                done += await self.remove(ledger_id, creator_id, AccessContext(route="erasure"))
            except MasterKeyError as error:
                log.warning("An erasure in ledger %s cannot be carried out: %s", ledger_id, error)
        return done

    async def _deed(self, ledger_id: int, position: int) -> tuple[datetime | None, datetime | None]:
        async def query(connection: LedgerConnection) -> tuple[datetime | None, datetime | None]:
            row = await (await connection.execute(_DEED, (ledger_id, position))).fetchone()
            return (row[0], row[1]) if row else (None, None)

        return await self._database.look_up(ledger_id, query)

    async def _keys(self, ledger_id: int, creator_id: str) -> list[UUID]:
        async def query(connection: LedgerConnection) -> list[UUID]:
            asked = {"ledger_id": ledger_id, "creator_id": creator_id, "limit": KEY_BATCH}
            cursor = await connection.execute(_KEYS_TO_REVOKE, asked)
            return [row[0] for row in await cursor.fetchall()]

        return await self._database.read(ledger_id, query)


async def erase(conninfo: str, key_provider: KeyProvider, ledger: str, creator_id: str, reason: str) -> Erasure:
    """Erase a creator of a ledger by name, for the command line.

    The event must name a key as its actor, so a key is created for it and revoked afterwards.

    Raises:
        LookupError: there is no such ledger, or nothing is recorded of the creator.

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
        # A worker may be ending the epoch at this moment.
        found = await erasures.wait(ledger_id, creator_id)
    assert found is not None  # noqa: S101 - it was recorded just now, or before
    return found
