"""A database opened for a test of the log: the parts of an API process, ledgers, and keys that write in them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from domain.values import Actor, Role
from infra.auth.access_log import COMMAND_LINE
from infra.auth.api_keys import ApiKey
from infra.auth.key_admin import KeyAdmin
from infra.auth.ledger_admin import LedgerAdmin
from infra.crypto.keyring import Keyring
from infra.eventstore.aggregate_reader import AggregateReader
from infra.eventstore.all_ledgers_reader import AllLedgersReader
from infra.eventstore.command_handler import CommandHandler, CommandMetadata, CommandResult
from infra.eventstore.reader import EventReader
from infra.jobs.erasure import Erasures
from infra.postgres.pool import Database
from infra.postgres.roles import API, WORKER
from infra.runtime import Runtime, runtime
from infra.views.commands import connect
from projections import VIEWS
from projections.engine.projector import Projector
from tests.conftest import TestDatabase
from tests.given import CREATOR, Command, erase
from tests.infra.session_tokens import admit
from tests.keys import master_key

MASTER_KEY = master_key(bytes(range(32)))

# An event of a ledger, at a position, recorded at a moment: around the append, as only a superuser can.
RECORD = """
    INSERT INTO events (ledger_id, position, stream_id, version, event_id, type, type_version, recorded_at,
                        effective_at, creator_stream, actor_role, source, command_id, format, body)
    VALUES (%s, %s, gen_random_uuid(), 1, gen_random_uuid(), 'Tested', 1, %s, now(), gen_random_uuid(), 'operator',
            'operator', gen_random_uuid(), 1, '{}')
"""


@dataclass(frozen=True)
class Tenant:
    """A ledger, and a key that writes in it."""

    ledger_id: int
    key: ApiKey

    @property
    def actor(self) -> Actor:
        """Who acts with the key."""
        return Actor(str(self.key.key_id), self.key.role)

    def request(self, key: str | None = None, body: str = "", **fields: Any) -> CommandMetadata:
        """Return a request, with an idempotency key if one is given, and with a body that only its hash knows."""
        request_hash = body.encode().ljust(16, b"\0")
        return CommandMetadata(self.ledger_id, self.actor, idempotency_key=key, request_hash=request_hash, **fields)


@dataclass(frozen=True)
class Opened:
    """The parts of an API process, and an administrator's view of the same database."""

    database: TestDatabase
    api: Runtime
    key_admin: KeyAdmin
    ledger_admin: LedgerAdmin
    worker: Database

    @property
    def handler(self) -> CommandHandler:
        """What carries out commands."""
        return self.api.handler

    @property
    def aggregates(self) -> AggregateReader:
        """What reads aggregates."""
        return self.api.aggregates

    @property
    def events(self) -> EventReader:
        """What reads events."""
        return self.api.events

    @property
    def keyring(self) -> Keyring:
        """What holds the keys of ledgers and creators."""
        return self.api.keyring

    async def begin(self, name: str = "main", role: Role = "operator") -> Tenant:
        """Begin a ledger, with a key of a role."""
        return await self.another_key(await self.ledger_admin.create(name), role)

    async def another_key(self, ledger_id: int, role: Role = "operator") -> Tenant:
        """Mint a key for a ledger."""
        key, _, _ = await self.key_admin.create(ledger_id, role=role)
        self.present(ledger_id, key.key_id)
        return Tenant(ledger_id, key)

    def present(self, ledger_id: int, key_id: UUID) -> None:
        """Give the API process the tokens that it would get if a key of the ledger were presented to it."""
        admit(self.api.database.tokens, self.database.sql, ledger_id, key_id)

    async def when(self, tenant: Tenant, command: Command, key: str | None = None, **fields: Any) -> CommandResult[Any]:
        """Carry a command out, for a key that was presented, if need be now."""
        if self.api.database.tokens.key(tenant.key.key_id) is None:
            self.present(tenant.ledger_id, tenant.key.key_id)
        decide: Any = command
        return await self.handler.handle(tenant.request(key, **fields), decide)

    @property
    def erasures(self) -> Erasures:
        """What carries out erasures."""
        return Erasures(self.worker, self.aggregates, self.key_admin)

    async def erase(self, tenant: Tenant, creator_id: str = CREATOR) -> None:
        """Erase a creator: the event and the deed."""
        admin = tenant if tenant.key.role == "admin" else await self.another_key(tenant.ledger_id, "admin")
        await self.when(admin, erase(creator_id=creator_id))
        assert await self.erasures.carry_out(tenant.ledger_id, creator_id, COMMAND_LINE)

    async def apply(self) -> None:
        """Let every view take in what is recorded."""
        worker = Database(self.database.dsn(WORKER), WORKER)
        await worker.open()
        async with await connect(self.database.dsn(WORKER)) as connection:
            for view in VIEWS:
                projector = Projector(view, connection)
                await projector.prepare()
                await projector.create(indexes=True)
                await projector.find()
                await projector.apply_all(AllLedgersReader(worker), page_events=100)
        await worker.close()

    def record_at(self, tenant: Tenant, position: int, moment: datetime) -> None:
        """Put an event into the log as if it had been recorded at another moment; only a superuser can."""
        self.sql(RECORD, tenant.ledger_id, position, moment)

    def sql(self, query: str, *parameters: Any) -> list[Any]:
        """Ask the database itself, as its superuser."""
        return self.database.sql(query, parameters)


@asynccontextmanager
async def opening(database: TestDatabase) -> AsyncIterator[Opened]:
    """Open a database as an API process does."""
    # As the command line does it: with the owner's login, in the worker's role.
    worker = Database(database.dsn(), WORKER, size=2)
    async with runtime(database.dsn(API), API, MASTER_KEY) as api:
        await worker.open()
        try:
            keyring = Keyring(worker, MASTER_KEY)
            yield Opened(database, api, KeyAdmin(worker, keyring), LedgerAdmin(worker, keyring), worker)
        finally:
            await worker.close()
