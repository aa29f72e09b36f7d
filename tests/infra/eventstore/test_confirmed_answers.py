"""What is found is answered only once no failover can lose it.

The standby here is one that never comes, until the setting that asks for it is taken back. A look-up that finds
something must wait for it, though a look-up changes nothing.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import psycopg
import pytest

from infra.delivery.kafka.publication_status import destinations
from infra.delivery.kafka.records import RecordReader
from infra.delivery.webhooks.delivery_store import DeliveryStore
from infra.delivery.webhooks.idempotent_requests import IdempotentRequest
from infra.delivery.webhooks.models import Owner, ProgressWrite
from infra.delivery.webhooks.subscriptions import WebhookSubscriptions
from infra.errors import Unavailable
from infra.eventstore.append import Appended, Replayed
from infra.eventstore.group_commit import IN_DOUBT, NOT_RECORDED
from infra.ids import uuid7
from infra.postgres import pool
from infra.postgres.embedded.cluster import DATABASE
from infra.postgres.embedded.server import EmbeddedPostgres
from infra.postgres.migrate import migrate
from infra.postgres.pool import session
from infra.postgres.roles import API, WORKER
from tests import given
from tests.conftest import FORGETFUL, TestDatabase
from tests.infra.eventstore.appends import by, keyed_by, row, writing
from tests.infra.holding import count, sent
from tests.infra.opened import Opened, opening
from tests.places import directory

pytestmark = pytest.mark.long("a server with a standby that never answers is waited for")

WITHIN_S: Final = 60.0

_WAITING: Final = """
    SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE %s AND pid <> %s
"""

# What is looked up, and what is found.
LookUp = Callable[[], Awaitable[Any]]


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    """A server of these tests alone: what they set holds for all of its databases."""
    place = directory("confirmed")
    with EmbeddedPostgres(place, FORGETFUL) as running:
        migrate(running.dsn())
        with psycopg.connect(running.dsn(), autocommit=True) as connection:
            connection.execute("INSERT INTO event_types VALUES ('Tested', 1, '{operator}')")
        yield running
    shutil.rmtree(place)


@pytest.fixture
async def opened(server: EmbeddedPostgres) -> AsyncIterator[Opened]:
    with closing(TestDatabase(server, DATABASE)) as database:
        async with opening(database) as parts:
            yield parts


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "CONFIRM_WITHIN_S", WITHIN_S)


class Replication:
    """A server's replication: whether its commits wait for a standby."""

    def __init__(self, connection: psycopg.AsyncConnection[Any], probing: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection
        self._probing = probing

    async def until_waiting(self, query: str = "%") -> int:
        """Wait until a session waits for a standby, except the one that probes, and return its process id."""
        probing = self._probing.info.backend_pid
        async with asyncio.timeout(WITHIN_S):
            while True:
                found = await (await self._connection.execute(_WAITING, (query, probing))).fetchone()
                if found is not None:
                    return int(found[0])
                await asyncio.sleep(0.02)

    async def waiting(self) -> list[int]:
        """Return the sessions that wait for a standby, except the one that probes."""
        cursor = await self._connection.execute(_WAITING, ("%", self._probing.info.backend_pid))
        return [pid for (pid,) in await cursor.fetchall()]

    async def cancel(self, pid: int) -> None:
        """Cancel the wait of a session, as an administrator may."""
        await self._connection.execute("SELECT pg_cancel_backend(%s)", (pid,))

    async def _require(self, standby: str) -> None:
        await self._connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{standby}'")
        await self._connection.execute("SELECT pg_reload_conf()")

    @asynccontextmanager
    async def lost(self) -> AsyncIterator[None]:
        """Have every commit wait until the block ends."""
        await self._require("nobody")
        probe: asyncio.Task[Any] | None = None
        # The server takes a moment to know it.
        async with asyncio.timeout(WITHIN_S):
            while not await self._probe_waits():
                if probe is None or probe.done():
                    emitted = self._probing.execute("SELECT pg_logical_emit_message(true, 'probe', '')")
                    probe = asyncio.create_task(emitted)
                await asyncio.sleep(0.02)
        try:
            yield
        finally:
            await self._require("")
            assert probe is not None
            await probe

    async def _probe_waits(self) -> bool:
        query = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND pid = %s"
        return await (await self._connection.execute(query, (self._probing.info.backend_pid,))).fetchone() is not None


@pytest.fixture
async def replication(server: EmbeddedPostgres) -> AsyncIterator[Replication]:
    async with (
        await psycopg.AsyncConnection.connect(server.dsn(), autocommit=True) as connection,
        await psycopg.AsyncConnection.connect(server.dsn(), autocommit=True) as probing,
    ):
        # So that it does not wait itself.
        await connection.execute("SET synchronous_commit = local")
        yield Replication(connection, probing)


async def a_repeated_command(opened: Opened, ledger: str) -> tuple[LookUp, Any]:
    tenant = await opened.begin(ledger)
    await opened.when(tenant, given.permission())
    first = await opened.when(tenant, given.generate(uuid7()), key="once")

    async def again() -> Any:
        result = await opened.when(tenant, given.generate(uuid7()), key="once")
        return result.position, result.recorded_at, result.replayed

    return again, (first.position, first.recorded_at, True)


async def a_command_that_changes_nothing(opened: Opened, ledger: str) -> tuple[LookUp, Any]:
    tenant = await opened.begin(ledger)
    first = await opened.when(tenant, given.permission())

    async def again() -> Any:
        result = await opened.when(tenant, given.permission())
        return result.position, result.appended

    return again, (first.position, 0)


async def a_repeat_that_the_append_finds(opened: Opened, ledger: str) -> tuple[LookUp, Any]:
    tenant = await opened.begin(ledger)
    key = uuid7().bytes
    await opened.api.writer.append(by(tenant, row(uuid7()), **keyed_by(key)))
    return partial(opened.api.writer.append, by(tenant, row(uuid7()), **keyed_by(key))), Replayed(1, 1)


async def a_key_that_was_created(opened: Opened, ledger: str) -> tuple[LookUp, Any]:
    tenant = await opened.begin(ledger)
    create = partial(opened.key_admin.create, tenant.ledger_id, role="auditor", idempotency_key="once")
    first = await create()

    async def again() -> Any:
        repeated = await create()
        return repeated.key.key_id, repeated.replayed

    return again, (first.key.key_id, True)


async def a_key_that_was_revoked(opened: Opened, ledger: str) -> tuple[LookUp, Any]:
    tenant = await opened.begin(ledger)
    other = await opened.another_key(tenant.ledger_id)
    revoke = partial(opened.key_admin.revoke, tenant.ledger_id, other.key.key_id)
    return revoke, await revoke()


async def a_key_that_works(opened: Opened, ledger: str) -> tuple[LookUp, Any]:
    tenant = await opened.begin(ledger)
    created = await opened.key_admin.create(tenant.ledger_id, role="auditor")
    return partial(opened.key_admin.works, created.text), True


async def an_erasure(opened: Opened, ledger: str) -> tuple[LookUp, Any]:
    tenant = await opened.begin(ledger, role="admin")
    await opened.when(tenant, given.permission())
    await opened.erase(tenant)

    async def state() -> Any:
        erasure = await opened.erasures.of(tenant.ledger_id, given.CREATOR)
        return erasure and erasure.state

    return state, "carried_out"


async def a_webhook_that_was_created(opened: Opened, ledger: str) -> tuple[LookUp, Any]:
    tenant = await opened.begin(ledger, role="admin")
    create = _creating_a_webhook(opened, Owner(tenant.ledger_id, tenant.key.key_id, all=True))
    first = await create()
    return create, (first[0], True)


async def progress_of_a_webhook(opened: Opened, ledger: str) -> tuple[LookUp, Any]:
    tenant = await opened.begin(ledger, role="admin")
    await _creating_a_webhook(opened, Owner(tenant.ledger_id, tenant.key.key_id, all=True))()
    store = DeliveryStore(opened.worker)
    async with opened.worker.connection() as connection:
        endpoints = await store.endpoints(connection)
    endpoint = next(one for one in endpoints if one.ledger_id == tenant.ledger_id)
    lease = (await store.take_over(endpoint)).lease
    write = partial(store.write, endpoint, lease, ProgressWrite(number=1), datetime.now(UTC))
    await write()
    return write, None


def _creating_a_webhook(opened: Opened, owner: Owner) -> LookUp:
    webhooks = WebhookSubscriptions(opened.api.database, opened.keyring)

    async def create() -> Any:
        created, _, repeated = await webhooks.create(
            owner,
            url="https://receiver.example/",
            description=None,
            types=[],
            creator_ids=[],
            after=0,
            request=IdempotentRequest("once", b"request".ljust(16)),
        )
        return created.webhook_id, repeated

    return create


async def a_page_for_kafka(opened: Opened, ledger: str) -> tuple[LookUp, Any]:
    tenant = await opened.begin(ledger)
    await opened.when(tenant, given.permission())

    def page() -> Any:
        with psycopg.connect(**session(opened.database.dsn(WORKER), WORKER)) as connection:
            # As the publisher has it, whose own commits are a copy for people.
            connection.execute("SET synchronous_commit = off")
            (destination,) = destinations([f"{ledger}=prefix"])
            return RecordReader(connection, destination).page({}).positions

    return partial(asyncio.to_thread, page), {tenant.ledger_id: 1}


@pytest.mark.parametrize(
    "recording",
    [
        a_repeated_command,
        a_command_that_changes_nothing,
        a_repeat_that_the_append_finds,
        a_key_that_was_created,
        a_key_that_was_revoked,
        a_key_that_works,
        an_erasure,
        a_webhook_that_was_created,
        progress_of_a_webhook,
        a_page_for_kafka,
    ],
)
@pytest.mark.usefixtures("patient")
async def test_it_is_answered_only_once_a_standby_has_it(
    opened: Opened, replication: Replication, recording: Callable[[Opened, str], Awaitable[tuple[LookUp, Any]]]
) -> None:
    look_up, expected = await recording(opened, recording.__name__)
    async with replication.lost():
        answering = asyncio.ensure_future(look_up())
        await replication.until_waiting()
        assert not answering.done()
    assert await answering == expected


async def test_while_no_standby_is_there_a_repeat_is_unavailable_and_reads_are_not(
    opened: Opened, replication: Replication, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "CONFIRM_WITHIN_S", 0.5)
    tenant = await opened.begin("reads")
    await opened.when(tenant, given.permission())
    async with replication.lost():
        # More than there are sessions.
        repeats = [opened.when(tenant, given.permission()) for _ in range(20)]
        refused = await asyncio.gather(*repeats, return_exceptions=True)
        assert {str(outcome) for outcome in refused} == {pool.UNCONFIRMED}
        assert await opened.events.head(tenant.ledger_id) == 1


async def test_a_commit_whose_wait_was_cancelled_is_not_acknowledged_before_a_standby_has_it(
    opened: Opened, replication: Replication
) -> None:
    """The server answers as if it had waited, with a warning."""
    tenant = await opened.begin("a-commit")
    before = count(opened)
    async with replication.lost():
        appending = sent(opened.api.writer, by(tenant, row(uuid7())))
        pid = await replication.until_waiting()
        await replication.cancel(pid)
        await replication.until_waiting("%confirm_commits%")
        assert not appending.done()
        assert count(opened) == before + 1
    outcome = await appending
    assert isinstance(outcome, Appended)
    assert (outcome.first, outcome.last) == (1, 1)
    assert count(opened) == before + 1


async def test_while_a_commit_waits_for_its_standby_no_other_is_begun(opened: Opened, replication: Replication) -> None:
    """Each would keep a session and its ledgers' locks, as long as the standby is away."""
    tenants = [await opened.begin(f"waiting-{number}") for number in range(3)]
    tokens = opened.api.database.tokens
    async with writing(
        opened.database, user=API, role=API, tokens=tokens, answer_within_s=0.5, resolve_within_s=0.5
    ) as writer:
        async with replication.lost():
            told = []
            for tenant in tenants:
                with pytest.raises(Unavailable) as refused:
                    await writer.append(by(tenant, row(uuid7())))
                told.append(str(refused.value))
            assert len(await replication.waiting()) == 1
        outcomes = [await writer.append(by(tenant, row(uuid7()))) for tenant in tenants]
    assert told == [IN_DOUBT, NOT_RECORDED, NOT_RECORDED]
    # The first one of the first ledger was recorded.
    assert [outcome.first for outcome in outcomes if isinstance(outcome, Appended)] == [2, 1, 1]


async def test_a_change_of_keys_whose_wait_was_cancelled_is_not_answered_before_a_standby_has_it(
    opened: Opened, replication: Replication
) -> None:
    tenant = await opened.begin("a-change-of-keys")
    async with replication.lost():
        creating = asyncio.ensure_future(opened.key_admin.create(tenant.ledger_id, role="auditor"))
        pid = await replication.until_waiting()
        await replication.cancel(pid)
        # The same session confirms it.
        await replication.until_waiting("%confirm_commits%")
        assert not creating.done()
    assert (await creating).text


async def test_a_look_up_writes_nothing_where_no_standby_is_waited_for(opened: Opened) -> None:
    # A transaction that writes takes a number.
    with psycopg.connect(opened.database.dsn(WORKER)) as connection:
        assert connection.execute("SELECT confirm_commits()").fetchone() == (True,)
        assert connection.execute("SELECT pg_current_xact_id_if_assigned()").fetchone() == (None,)
