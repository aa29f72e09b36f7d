"""Kafka hindered, gone, killed: nothing is lost or comes twice, commands do not notice, and it goes on by itself."""

from __future__ import annotations

import signal

import pytest

import infra.delivery.kafka.lease
from infra.delivery.kafka import connection as client
from infra.delivery.kafka.connection import KafkaError, KafkaRecord, Producer
from infra.delivery.kafka.lease import Lease, LeaseLost
from infra.delivery.kafka.publication_status import destination_lags
from infra.delivery.kafka.topics import events_topic, progress_topic, topics
from infra.postgres.roles import WORKER
from projections.engine.advisory_locks import AdvisoryLock
from tests import given
from tests.conftest import TestDatabase
from tests.infra.delivery.kafka.fixtures import Restartable
from tests.infra.delivery.kafka.proxy import ADD_PARTITIONS_TO_TXN, END_TXN, PRODUCE, SwallowingProxy
from tests.infra.delivery.kafka.publishing import events, once_and_in_order, options, publishing
from tests.infra.opened import Opened, Tenant
from tests.infra.programs import running
from tests.waiting import until

pytestmark = pytest.mark.long("Kafka is away, hangs or is killed until time limits have passed")

_END_LEADERS = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND classid = %s"

# Publishes as a process of its own: a database's ledgers, to a broker, under a prefix.
PUBLISHER = """
import sys, threading
from infra.delivery.kafka.publication_status import destinations
from infra.delivery.kafka.publisher import Publisher
from tests.infra.delivery.kafka.publishing import options
dsn, bootstrap, prefix = sys.argv[1:]
(destination,) = destinations([f"*={prefix}"])
Publisher(dsn, destination, options(bootstrap)).start()
threading.Event().wait()
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Kafka is given seconds for, so that a test need not wait for the minutes of real life."""
    for name, seconds in (("REQUEST_S", 2), ("DELIVERY_S", 4), ("INIT_S", 5), ("COMMIT_S", 3), ("BOOTSTRAP_S", 2)):
        monkeypatch.setattr(client, name, seconds)
    monkeypatch.setattr("infra.delivery.kafka.publisher.RETRY_LONGEST_S", 1.0)


async def creators(opened: Opened, tenant: Tenant, names: str) -> None:
    """Switch the permission of a creator on for each letter: an event each, each of another key."""
    for name in names:
        await opened.when(tenant, given.permission(creator_id=f"creator-{name}"))


def failures(opened: Opened) -> int:
    ((errors,),) = opened.sql("SELECT coalesce(max(errors), 0) FROM publications")
    return int(errors)


@pytest.mark.parametrize(
    ("number", "arrives"),
    [(PRODUCE, False), (PRODUCE, True), (ADD_PARTITIONS_TO_TXN, False), (END_TXN, False), (END_TXN, True)],
    ids=["records lost", "records sent, answer lost", "transaction lost", "commit lost", "committed, answer lost"],
)
async def test_a_request_that_vanishes_costs_a_moment_and_no_event(
    own_kafka: Restartable, opened: Opened, prefix: str, number: int, arrives: bool
) -> None:
    tenant = await opened.begin()
    broker = own_kafka.broker
    with (
        SwallowingProxy(broker) as proxy,
        events(broker.plain, prefix) as topic,
        publishing(opened.database, broker.proxied, prefix) as publisher,
    ):
        await creators(opened, tenant, "abc")
        publisher.wake()
        topic.until(3)

        def once(api: int, _request: bytes) -> bool:
            return api == number and proxy.met == 0

        if arrives:
            proxy.cut_after = once
        else:
            proxy.swallow = once
        await creators(opened, tenant, "defgh")
        publisher.wake()
        topic.until(8)
        assert proxy.met == 1
        await creators(opened, tenant, "ijk")
        publisher.wake()
        received = topic.until(11)
        topic.poll()

    assert once_and_in_order(received, range(1, 12)) == []


async def test_while_kafka_is_away_commands_go_on_and_the_lag_shows(
    own_kafka: Restartable, opened: Opened, prefix: str
) -> None:
    tenant = await opened.begin()
    broker = own_kafka.broker
    with events(broker.plain, prefix) as topic, publishing(opened.database, broker.plain, prefix) as publisher:
        await creators(opened, tenant, "a")
        publisher.wake()
        topic.until(1)
        # The publisher may learn later than readers do that its transaction is committed.
        until(lambda: opened.sql("SELECT position FROM publications") == [(1,)])

        own_kafka.stop(signal.SIGKILL)
        await creators(opened, tenant, "bcde")
        publisher.wake()
        until(lambda: failures(opened) > 0, 60)
        ((state, error),) = opened.sql("SELECT state, error FROM publications")
        assert state == "retrying"
        assert error.startswith("is retried: ")
        (lag,) = await destination_lags(opened.api.database)
        assert (lag.published, lag.waiting) == (1, 4)

        own_kafka.start()
        received = topic.until(5, 60)
        until(lambda: opened.sql("SELECT state, error FROM publications") == [("publishing", None)], 30)
        topic.poll()

    assert once_and_in_order(received, range(1, 6)) == []


async def test_a_publisher_that_starts_before_kafka_begins_when_it_is_there(
    own_kafka: Restartable, opened: Opened, prefix: str
) -> None:
    own_kafka.stop()
    tenant = await opened.begin()
    await creators(opened, tenant, "ab")
    with publishing(opened.database, own_kafka.broker.plain, prefix):
        until(lambda: failures(opened) > 0, 60)
        own_kafka.start()
        with events(own_kafka.broker.plain, prefix) as topic:
            received = topic.until(2, 60)

    assert once_and_in_order(received, [1, 2]) == []


async def test_a_lost_database_connection_costs_a_moment_and_no_event(
    own_kafka: Restartable, opened: Opened, prefix: str
) -> None:
    tenant = await opened.begin()
    with (
        events(own_kafka.broker.plain, prefix) as topic,
        publishing(opened.database, own_kafka.broker.plain, prefix) as publisher,
    ):
        for count, name in enumerate("abcd", 1):
            await creators(opened, tenant, name)
            publisher.wake()
            received = topic.until(count)
            opened.sql(_END_LEADERS, AdvisoryLock.KAFKA_PUBLISHER)

    assert once_and_in_order(received, range(1, 5)) == []


async def test_a_second_publisher_waits_and_takes_over_within_seconds(
    own_kafka: Restartable, opened: Opened, prefix: str
) -> None:
    tenant = await opened.begin()
    with (
        events(own_kafka.broker.plain, prefix) as topic,
        publishing(opened.database, own_kafka.broker.plain, prefix) as first,
    ):
        await creators(opened, tenant, "a")
        topic.until(1)
        with publishing(opened.database, own_kafka.broker.plain, prefix) as second:
            first.stop(10)
            await creators(opened, tenant, "b")
            second.wake()
            received = topic.until(2, 10)

    assert once_and_in_order(received, [1, 2]) == []


async def test_a_frozen_publisher_is_replaced_within_15_seconds_and_publishes_nothing_when_it_goes_on(
    own_kafka: Restartable, opened: Opened, prefix: str
) -> None:
    tenant = await opened.begin()
    program = (opened.database.dsn(WORKER), own_kafka.broker.plain, prefix)
    with running(PUBLISHER, *program) as first, events(own_kafka.broker.plain, prefix) as topic:
        try:
            await creators(opened, tenant, "a")
            topic.until(1)
            first.process.send_signal(signal.SIGSTOP)
            with publishing(opened.database, own_kafka.broker.plain, prefix):
                await creators(opened, tenant, "b")
                topic.until(2, 15)
                first.process.send_signal(signal.SIGCONT)
                for count, name in enumerate("cdef", 3):
                    await creators(opened, tenant, name)
                    received = topic.until(count)
                assert opened.sql("SELECT state, error FROM publications") == [("publishing", None)]
                (generation,) = opened.sql("SELECT generation FROM publisher_leases")
        finally:
            first.process.send_signal(signal.SIGCONT)

    assert once_and_in_order(received, range(1, 7)) == []
    assert generation == (2,)


def test_a_lease_is_held_by_one_publisher_and_taken_over_at_once_from_one_that_died(database: TestDatabase) -> None:
    dsn = database.dsn(WORKER)
    with Lease(dsn, "acme") as waiting, Lease(dsn, "acme") as third, Lease(dsn, "globex") as other:
        with Lease(dsn, "acme") as first:
            assert (first.take(), waiting.take(), third.take(), other.take()) == (True, False, False, True)
        until(waiting.take)
        assert (third.take(), waiting.held) == (False, True)


def test_a_lease_that_is_not_renewed_is_taken_over_and_its_holder_notices(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infra.delivery.kafka.lease, "RENEW_S", 0.05)
    dsn = database.dsn(WORKER)
    with Lease(dsn, "acme") as first, Lease(dsn, "acme") as second:
        assert first.take()
        monkeypatch.setattr(infra.delivery.kafka.lease, "LEASE_S", -1.0)
        assert second.take()
        until(lambda: not first.held)
        with pytest.raises(LeaseLost):
            first.require()
        second.require()


def test_whoever_was_fenced_can_commit_nothing_any_more(own_kafka: Restartable, prefix: str) -> None:
    reached = options(own_kafka.broker.plain)
    with topics(reached, -1) as found:
        found.ensure([events_topic(prefix), progress_topic(prefix)])
    message = KafkaRecord(events_topic(prefix).name, 0, b"key", b"{}", [], 0)
    older = Producer(reached, f"{prefix}.publisher")
    older.commit([message])
    newer = Producer(reached, f"{prefix}.publisher")

    with pytest.raises(KafkaError):
        older.commit([message])
    newer.commit([message])
    for producer in (older, newer):
        producer.abandon()

    with events(own_kafka.broker.plain, prefix) as topic:
        assert len(topic.until(2)) == 2
        assert topic.poll() == []
