"""A connection lost in mid-commit: every caller learns what became of its events, by looking, never by guessing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import psycopg
import pytest

from domain.errors import Refused
from infra.errors import Unavailable
from infra.eventstore import group_commit as writer_module
from infra.eventstore.append import Append, Appended, ConcurrencyConflict, Mismatch, Replayed
from infra.eventstore.group_commit import GroupCommitWriter
from infra.ids import uuid7
from infra.postgres.embedded.server import EmbeddedPostgres
from infra.postgres.migrate import migrate
from infra.postgres.roles import API
from tests import given
from tests.infra.eventstore.appends import appending, by, keyed_by, row, together, writing
from tests.infra.holding import count, locked, sent, until_it_waits
from tests.infra.opened import Opened, Tenant, opening
from tests.infra.proxy import Proxy, proxied

# In the body of an event whose append is to be cut.
MARKED = b'{"mark": "cut here"}'


def marked(request: bytes) -> bool:
    return MARKED in request


def once(proxy: Proxy) -> Any:
    """Return what says yes to the first request with the mark alone."""
    return lambda request: proxy.cuts == 0 and marked(request)


def requests(tenant: Tenant, number: int = 5) -> list[Append]:
    return [by(tenant, row(uuid7(), body=MARKED)) for _ in range(number)]


@pytest.fixture
async def tenant(opened: Opened) -> Tenant:
    return await opened.begin()


@pytest.fixture
async def proxy_and_writer(
    opened: Opened, tenant: Tenant, tmp_path: Path
) -> AsyncIterator[tuple[Proxy, GroupCommitWriter]]:
    """A writer that reaches the database through a proxy, and has written one event."""
    async with proxied(opened.database.dsn(API), tmp_path) as (proxy, dsn):
        writer = GroupCommitWriter(dsn, API, tokens=opened.api.database.tokens, resolve_within_s=1.0)
        writer.start()
        await writer.append(by(tenant, row(uuid7())))
        yield proxy, writer
        await writer.stop()


def positions(outcomes: list[Any]) -> list[tuple[int, int]]:
    return [(outcome.first, outcome.last) for outcome in outcomes if isinstance(outcome, Appended)]


# The login: the API's own role, or a superuser that takes it on.
@pytest.mark.parametrize("user", [API, "postgres"])
async def test_a_session_ended_before_its_commit_is_retried(opened: Opened, tenant: Tenant, user: str) -> None:
    async with writing(opened.database, user=user, role=API, tokens=opened.api.database.tokens) as writer:
        async with locked(opened, tenant):
            first = sent(writer, by(tenant, row(uuid7())))
            pid = await until_it_waits(opened)
            opened.sql("SELECT pg_terminate_backend(%s, 5000)", pid)
            others = [sent(writer, request) for request in requests(tenant)]
        outcomes = await asyncio.gather(first, *others)
    assert positions(list(outcomes)) == [(n, n) for n in range(1, 7)]
    assert count(opened) == 6


async def test_a_commit_whose_answer_was_lost_is_answered(
    opened: Opened, tenant: Tenant, proxy_and_writer: tuple[Proxy, GroupCommitWriter]
) -> None:
    proxy, writer = proxy_and_writer
    proxy.hold_reply = once(proxy)
    outcomes = await together(writer, requests(tenant))
    assert proxy.cuts == 1
    assert positions(outcomes) == [(n, n) for n in range(2, 7)]
    assert count(opened) == 6


async def test_a_request_that_never_arrived_is_retried(
    opened: Opened, tenant: Tenant, proxy_and_writer: tuple[Proxy, GroupCommitWriter]
) -> None:
    proxy, writer = proxy_and_writer
    proxy.cut_request = once(proxy)
    outcomes = await together(writer, requests(tenant))
    assert proxy.cuts == 1
    assert positions(outcomes) == [(n, n) for n in range(2, 7)]
    assert count(opened) == 6


async def test_a_server_that_never_answers_is_given_up_and_the_request_is_retried(
    opened: Opened, tenant: Tenant, tmp_path: Path
) -> None:
    """As one that is frozen: its connection stays open."""
    async with proxied(opened.database.dsn(API), tmp_path) as (proxy, dsn):
        writer = GroupCommitWriter(dsn, API, tokens=opened.api.database.tokens, answer_within_s=1.0)
        writer.start()
        await writer.append(by(tenant, row(uuid7())))
        swallowed: list[bytes] = []

        def swallow(request: bytes) -> bool:
            if marked(request) and not swallowed:
                swallowed.append(request)
                return True
            return False

        proxy.swallow = swallow
        outcomes = await together(writer, requests(tenant))
        await writer.stop()
    assert len(swallowed) == 1
    assert positions(outcomes) == [(n, n) for n in range(2, 7)]
    assert count(opened) == 6


async def test_each_caller_of_a_lost_batch_gets_the_answer_that_is_its_own(
    opened: Opened, tenant: Tenant, proxy_and_writer: tuple[Proxy, GroupCommitWriter]
) -> None:
    proxy, writer = proxy_and_writer
    stream, key = uuid7(), b"k" * 16
    await writer.append(by(tenant, row(stream), **keyed_by(key)))
    proxy.hold_reply = once(proxy)
    outcomes = await together(
        writer,
        [
            *requests(tenant, 1),
            by(tenant, row(stream, 1, body=MARKED)),
            by(tenant, row(uuid7(), 1, body=MARKED), **keyed_by(key)),
            by(tenant, row(uuid7(), 1, body=MARKED), row(uuid7(), 1, body=MARKED)),
            *requests(tenant, 1),
        ],
    )
    assert proxy.cuts == 1
    assert outcomes[1:3] == [ConcurrencyConflict(), Replayed(2, 2)]
    assert positions(outcomes) == [(3, 3), (4, 5), (6, 6)]
    assert count(opened) == 6


async def test_a_misused_key_in_a_lost_batch_is_still_a_mismatch(
    opened: Opened, tenant: Tenant, proxy_and_writer: tuple[Proxy, GroupCommitWriter]
) -> None:
    proxy, writer = proxy_and_writer
    await writer.append(by(tenant, row(uuid7()), **keyed_by(b"k" * 16)))
    proxy.hold_reply = once(proxy)
    request = by(tenant, row(uuid7(), body=MARKED), **keyed_by(b"k" * 16, b"another"))
    assert await writer.append(request) == Mismatch()


@pytest.mark.parametrize("user", [API, "postgres"])
async def test_a_lost_session_that_would_still_commit_is_ended_before_anyone_looks(
    opened: Opened, tenant: Tenant, tmp_path: Path, user: str
) -> None:
    """It waits for a lock and does not notice that nobody listens: a look-up alone would see nothing, then it commits.

    A writer that only looked would send the events again, and tell their caller of a conflict with itself.
    """
    async with proxied(opened.database.dsn(user), tmp_path) as (proxy, dsn):
        writer = GroupCommitWriter(dsn, API, tokens=opened.api.database.tokens)
        writer.start()
        async with locked(opened, tenant):
            appends = [sent(writer, request) for request in requests(tenant)]
            lost = await until_it_waits(opened)
            await proxy.close()
            await until_it_waits(opened, other_than=lost)
            assert opened.sql("SELECT 1 FROM pg_stat_activity WHERE pid = %s", lost) == []
        outcomes = await asyncio.gather(*appends)
        await writer.stop()
    assert positions(list(outcomes)) == [(n, n) for n in range(1, 6)]
    assert count(opened) == 5


async def test_a_database_that_stays_away_leaves_callers_with_an_unknown_fate_within_the_bound(
    opened: Opened, tenant: Tenant, proxy_and_writer: tuple[Proxy, GroupCommitWriter]
) -> None:
    proxy, writer = proxy_and_writer

    def cut_and_refuse(request: bytes) -> bool:
        proxy.refusing = proxy.refusing or marked(request)
        return marked(request)

    proxy.hold_reply = cut_and_refuse
    began = monotonic()
    outcomes = await together(writer, requests(tenant))
    took = monotonic() - began
    assert {str(outcome) for outcome in outcomes} == {writer_module.IN_DOUBT}
    assert {type(outcome) for outcome in outcomes} == {Unavailable}
    assert took < 3
    # They were committed, which a retry with an idempotency key would be told.
    assert count(opened) == 6


async def test_a_writer_serves_again_after_a_fate_stayed_unknown(
    opened: Opened, tenant: Tenant, proxy_and_writer: tuple[Proxy, GroupCommitWriter]
) -> None:
    proxy, writer = proxy_and_writer
    proxy.refusing = True
    await proxy.close()
    await together(writer, requests(tenant))
    proxy.refusing = False
    assert isinstance(await writer.append(by(tenant, row(uuid7()))), Appended)


async def test_what_the_connection_breaks_on_every_time_is_given_up_and_hinders_nobody(
    opened: Opened, tenant: Tenant, proxy_and_writer: tuple[Proxy, GroupCommitWriter]
) -> None:
    proxy, writer = proxy_and_writer
    proxy.cut_request = marked
    with pytest.raises(Unavailable, match="Nothing was recorded"):
        await writer.append(*requests(tenant, 1))
    assert proxy.cuts == writer_module.MAX_SENT
    assert isinstance(await writer.append(by(tenant, row(uuid7()))), Appended)
    assert count(opened) == 2


async def test_a_caller_that_gives_up_while_its_fate_is_looked_for_hinders_nobody(
    opened: Opened, tenant: Tenant, proxy_and_writer: tuple[Proxy, GroupCommitWriter]
) -> None:
    proxy, writer = proxy_and_writer
    proxy.refusing = True
    proxy.hold_reply = once(proxy)
    appends = [sent(writer, request) for request in requests(tenant)]
    await proxy.replied.wait()
    appends[0].cancel()
    proxy.refusing = False
    outcomes = await asyncio.gather(*appends[1:])
    assert positions(list(outcomes)) == [(n, n) for n in range(3, 7)]
    assert count(opened) == 6


async def test_stopping_while_the_database_is_away_does_not_wait_out_the_bound(
    opened: Opened, tenant: Tenant, tmp_path: Path
) -> None:
    async with proxied(opened.database.dsn(API), tmp_path) as (proxy, dsn):
        writer = GroupCommitWriter(dsn, API, tokens=opened.api.database.tokens, resolve_within_s=60)
        writer.start()
        await writer.append(by(tenant, row(uuid7())))
        proxy.refusing = True
        proxy.hold_reply = once(proxy)
        appends = [sent(writer, request) for request in requests(tenant)]
        await proxy.replied.wait()
        async with asyncio.timeout(5):
            await writer.stop()
    assert {str(outcome) for outcome in await asyncio.gather(*appends, return_exceptions=True)} == {
        writer_module.IN_DOUBT
    }


async def test_a_new_session_that_got_an_old_ones_process_id_is_not_ended(opened: Opened, tenant: Tenant) -> None:
    """A process id alone may name another session by now."""
    async with writing(opened.database, user=API, role=API, tokens=opened.api.database.tokens) as writer:
        await writer.append(by(tenant, row(uuid7())))
        async with await psycopg.AsyncConnection.connect(opened.database.dsn(API), autocommit=True) as another:
            assert writer._backend is not None
            writer._backend = (another.info.backend_pid, writer._backend[1])
            assert writer._connection is not None
            opened.sql("SELECT pg_terminate_backend(%s, 5000)", writer._connection.info.backend_pid)
            await together(writer, requests(tenant))
            assert await (await another.execute("SELECT 1")).fetchone() == (1,)


async def test_what_was_remembered_before_a_connection_was_lost_decides_nothing_after_it(opened: Opened) -> None:
    """After a failover the log may have lost its end, and have given the same versions to other events since."""
    tenant = await opened.begin(role="admin")
    await opened.when(tenant, given.permission())
    done = await opened.when(tenant, given.permission(enabled=False))
    await opened.when(tenant, given.permission())
    # As a replica has it that lacks the last event, and whose writer recorded something else: the permission is off.
    with psycopg.connect(opened.database.dsn(), autocommit=True) as connection:
        connection.execute("ALTER TABLE events DISABLE TRIGGER events_are_append_only")
        connection.execute("DELETE FROM events WHERE position = %s", (done.position + 1,))
    async with opening(opened.database) as other:
        other.present(tenant.ledger_id, tenant.key.key_id)
        await other.when(tenant, given.erase())
    opened.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name LIKE %s",
        "sparkledger%",
    )

    with pytest.raises(Refused) as refused:
        await opened.when(tenant, given.generate(uuid7()))
    assert refused.value.code == "creator_erased"

    assert [row[0] for row in opened.sql("SELECT type FROM events ORDER BY position")][2:] == ["CreatorErased"]


@pytest.fixture
def standby(server_path: Path) -> Iterator[EmbeddedPostgres]:
    """A server that waits for a primary to tell it more, and can be read meanwhile."""
    directory = server_path / "cluster"
    with EmbeddedPostgres(directory) as server:
        migrate(server.dsn())
    (server.cluster.directory / "standby.signal").touch()
    with EmbeddedPostgres(directory) as server:
        yield server


async def test_a_standby_is_neither_written_to_nor_asked_what_became_of_an_append(standby: EmbeddedPostgres) -> None:
    """It would refuse the one, and for the other show a log that lags, so that what is recorded is told not to be."""
    writer = GroupCommitWriter(standby.dsn(API), API)
    writer.start()
    with pytest.raises(Unavailable, match="Nothing was recorded"):
        await writer.append(appending(1, row(uuid7())))
    await writer.stop()
