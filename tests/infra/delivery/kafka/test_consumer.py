"""The consumer that users copy: each event once into one's own database, whatever fails, and its example."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from example_service import TABLES
from kafka import KafkaProducer  # type: ignore[import-untyped]
from sparkledger_consumer import SCHEMA, Consumer, Event, Forked, Gap, _text

from infra.delivery.kafka.connection import partition_of
from infra.delivery.kafka.topics import events_topic, topics
from tests import given
from tests.conftest import TestDatabase
from tests.infra.delivery.kafka.broker import Broker
from tests.infra.delivery.kafka.publishing import options, publishing
from tests.infra.opened import Opened
from tests.infra.programs import ROOT
from tests.waiting import until

WITHIN_S = 90.0


class Reading:
    """A consumer that runs in a thread, with a table of its own to write to."""

    def __init__(
        self, database: TestDatabase, kafka: Broker, prefix: str, fail: Any = None, application: str = "reading"
    ) -> None:
        self.sql = database.sql
        self.sql("CREATE TABLE IF NOT EXISTS handled (n serial, subject text, sequence bigint)")
        self.fail = fail or (lambda _event: None)
        self.tried: list[int] = []
        dsn = f"{database.dsn()} application_name={application}"
        # A group of this test's own: once Kafka misses a member that died in another test, partitions move.
        self.name = f"ours-{prefix}"
        self.consumer = Consumer(
            dsn, kafka.plain, events_topic(prefix).name, name=self.name, handle=self.handle, attempts=3, pause_s=0.05
        )
        self.error: BaseException | None = None

    def handle(self, cursor: psycopg.Cursor[Any], event: Event) -> None:
        self.tried.append(event.sequence)
        cursor.execute("INSERT INTO handled (subject, sequence) VALUES (%s, %s)", (event.subject, event.sequence))
        self.fail(event)

    def run(self) -> None:
        try:
            self.consumer.run()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self.run, daemon=True)
        thread.start()
        yield
        self.consumer.stop()
        thread.join(20)

    def handled(self) -> list[int]:
        return [sequence for (sequence,) in self.sql("SELECT sequence FROM handled ORDER BY sequence")]


def headers_of(
    sequence: int, version: int, subject: str = "codes/1", event_id: str = "", history: str = ""
) -> list[tuple[str, bytes]]:
    """Return the headers of an event."""
    attributes = {"ledgerhistory": history} if history else {}
    attributes |= {
        "specversion": "1.0",
        "id": event_id or f"id-{sequence}",
        "source": "/ledgers/main",
        "type": "sparkledger.Shared.v1",
        "subject": subject,
        "time": "2026-11-22T21:44:03.563474Z",
        "sequence": f"{sequence:019}",
        "streamversion": str(version),
    }
    return [(f"ce_{name}", value.encode()) for name, value in attributes.items()]


def waiting(connection: psycopg.Connection[Any]) -> int:
    """Return how many sessions of this database wait for another one."""
    row = connection.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    ).fetchone()
    assert row is not None
    return int(row[0])


@contextmanager
def sender(kafka: Broker, prefix: str, value: bytes = b"{}") -> Iterator[Any]:
    """Yield what sends events of our own making, as a damaged topic might hold, to a topic that it creates."""
    with topics(options(kafka.plain), -1) as found:
        found.ensure([events_topic(prefix)])
    producer = KafkaProducer(bootstrap_servers=kafka.plain)

    def sending(sequence: int, version: int, subject: str = "codes/1", event_id: str = "", history: str = "") -> None:
        headers = headers_of(sequence, version, subject, event_id, history)
        producer.send(events_topic(prefix).name, value, subject.encode(), headers).get(10)

    yield sending
    producer.close()


@pytest.fixture
def send(kafka: Broker, prefix: str) -> Iterator[Any]:
    with sender(kafka, prefix) as sending:
        yield sending


def test_each_event_is_handled_once_also_when_it_comes_twice(
    database: TestDatabase, kafka: Broker, prefix: str, send: Any
) -> None:
    reading = Reading(database, kafka, prefix)
    send(1, 1)
    send(2, 2)
    send(2, 2)
    send(3, 1, "codes/2")
    with reading.running():
        until(lambda: len(reading.handled()) == 3, WITHIN_S)
        send(4, 3)
        until(lambda: reading.handled() == [1, 2, 3, 4], WITHIN_S)


@pytest.mark.parametrize("schema", [SCHEMA, TABLES], ids=["consumer", "example"])
def test_processes_that_start_at_once_make_their_tables_once(database: TestDatabase, schema: str) -> None:
    def make() -> None:
        with psycopg.connect(database.dsn()) as connection:
            connection.execute(schema)

    with psycopg.connect(database.dsn(), autocommit=True) as watching, ThreadPoolExecutor(8) as threads:
        with psycopg.connect(database.dsn()) as first:
            first.execute(schema)
            others = [threads.submit(make) for _ in range(8)]
            until(lambda: waiting(watching) == 8)
        for other in others:
            other.result(WITHIN_S)


def test_it_goes_on_where_it_was(database: TestDatabase, kafka: Broker, prefix: str, send: Any) -> None:
    send(1, 1)
    first = Reading(database, kafka, prefix)
    with first.running():
        until(lambda: first.handled() == [1], WITHIN_S)
    send(2, 2)
    second = Reading(database, kafka, prefix)
    with second.running():
        until(lambda: second.handled() == [1, 2], WITHIN_S)
    assert second.tried == [2]


def test_it_waits_for_a_topic_that_is_not_there_yet(database: TestDatabase, kafka: Broker, prefix: str) -> None:
    reading = Reading(database, kafka, prefix)
    with reading.running():
        until(lambda: bool(reading.sql("SELECT to_regclass('sparkledger_positions')")[0][0]), WITHIN_S)
        with sender(kafka, prefix) as sending:
            sending(1, 1)
            until(lambda: reading.handled() == [1], WITHIN_S)


def test_what_fails_is_tried_again_and_nothing_of_it_stays(
    database: TestDatabase, kafka: Broker, prefix: str, send: Any
) -> None:
    def fail(event: Event) -> None:
        if event.sequence == 2 and reading.tried.count(2) < 3:
            raise ValueError("not yet")

    reading = Reading(database, kafka, prefix, fail)
    for number in (1, 2, 3):
        send(number, number)
    with reading.running():
        until(lambda: reading.handled() == [1, 2, 3], WITHIN_S)
    assert reading.sql("SELECT count(*) FROM sparkledger_dead_letters") == [(0,)]


def test_an_event_that_fails_holds_up_its_own_partition_alone(
    database: TestDatabase, kafka: Broker, prefix: str, send: Any
) -> None:
    def fail(event: Event) -> None:
        if event.sequence == 1 and not mended.is_set():
            raise ValueError("not yet")

    mended = threading.Event()
    reading = Reading(database, kafka, prefix, fail)
    # Until it is mended, no further attempt would come in the time of this test but the one that it is given below.
    reading.consumer._pause_s, reading.consumer._attempts = 1.0, 1_000
    send(1, 1)
    send(2, 2)
    others = [name for name in range(2, 40) if partition_of(b"codes/%d" % name, 12) != partition_of(b"codes/1", 12)]
    with reading.running():
        until(lambda: 1 in reading.tried, WITHIN_S)
        for sequence, name in enumerate(others, 3):
            send(sequence, 1, f"codes/{name}")
        until(lambda: reading.handled() == list(range(3, 3 + len(others))), WITHIN_S)
        mended.set()
        until(lambda: reading.handled() == list(range(1, 3 + len(others))), WITHIN_S)
    assert reading.error is None
    assert reading.sql("SELECT subject FROM handled WHERE sequence < 3 ORDER BY n") == [("codes/1",)] * 2


def test_what_fails_again_and_again_is_a_dead_letter_with_its_reason_until_it_is_redelivered(
    database: TestDatabase, kafka: Broker, prefix: str, send: Any
) -> None:
    def fail(event: Event) -> None:
        if event.sequence == 2:
            raise ValueError("no such advertiser")

    reading = Reading(database, kafka, prefix, fail)
    for number in (1, 2, 3):
        send(number, number)
    with reading.running():
        until(lambda: reading.handled() == [1, 3], WITHIN_S)
    assert reading.sql("SELECT source, id, reason FROM sparkledger_dead_letters") == [
        ("/ledgers/main", "id-2", "ValueError: no such advertiser")
    ]

    reading.fail = lambda _event: None
    assert reading.consumer.redeliver() == 1
    assert reading.handled() == [1, 2, 3]
    assert reading.sql("SELECT count(*) FROM sparkledger_dead_letters") == [(0,)]


def test_a_dead_letter_that_two_redeliver_at_once_is_handled_once(database: TestDatabase) -> None:
    dsn = database.dsn()
    handling, goes_on = threading.Event(), threading.Event()
    handled: list[str] = []

    def handle(_: Any, event: Event) -> None:
        handled.append(event.id)
        handling.set()
        assert goes_on.wait(WITHIN_S)

    consumer = Consumer(dsn, "nobody:1", "nothing", name="ours", handle=handle)
    with psycopg.connect(dsn, autocommit=True) as connection, ThreadPoolExecutor(2) as threads:
        connection.execute(SCHEMA)
        connection.execute(
            "INSERT INTO sparkledger_dead_letters (consumer, source, id, headers, data, reason)"
            " VALUES ('ours', '/ledgers/main', 'id-1', %s, '{}', 'not yet')",
            (json.dumps({name: value.decode() for name, value in headers_of(1, 1)}),),
        )
        first = threads.submit(consumer.redeliver)
        assert handling.wait(WITHIN_S)
        second = threads.submit(consumer.redeliver)
        until(lambda: waiting(connection) == 1)
        goes_on.set()

        assert (first.result(WITHIN_S), second.result(WITHIN_S)) == (1, 0)
    assert handled == ["id-1"]


def test_a_record_that_is_no_event_is_a_dead_letter_by_its_place_and_the_rest_goes_on(
    database: TestDatabase, kafka: Broker, prefix: str, send: Any
) -> None:
    topic = events_topic(prefix).name
    reading = Reading(database, kafka, prefix)
    send(1, 1)
    producer = KafkaProducer(bootstrap_servers=kafka.plain)
    foreign: list[tuple[bytes | None, list[tuple[str, bytes]]]] = [
        (b"{}", []),
        (b"\xff\x00", [("theirs", b"\x00")]),
        (None, [("ce_id", b"\xff")]),
        (b"[]", [("ce_id", b"x")]),
    ]
    for value, headers in foreign:
        producer.send(topic, value, b"codes/1", headers, partition=0).get(10)
    producer.close()
    send(2, 2)
    with reading.running():
        until(lambda: reading.handled() == [1, 2], WITHIN_S)
        # Which partition is read first is Kafka's affair.
        until(lambda: reading.sql("SELECT count(*) FROM sparkledger_dead_letters") == [(4,)], WITHIN_S)

    assert reading.error is None
    letters = reading.sql("SELECT source, id, headers, data, reason FROM sparkledger_dead_letters ORDER BY at, id")
    first = int(letters[0][1].partition("/")[2])
    assert [(source, event_id) for source, event_id, *_ in letters] == [(topic, f"0/{first + n}") for n in range(4)]
    assert [(headers, data) for _, _, headers, data, _ in letters] == [
        ({}, "{}"),
        ({"theirs": "\ufffd"}, "\ufffd\ufffd"),
        ({"ce_id": "\ufffd"}, None),
        ({"ce_id": "x"}, "[]"),
    ]
    assert letters[0][4] == "KeyError: 'id'"
    assert reading.consumer.redeliver() == 0
    assert reading.sql("SELECT count(*) FROM sparkledger_dead_letters") == [(4,)]


def test_what_the_database_cannot_hold_is_a_dead_letter_too(
    database: TestDatabase, kafka: Broker, prefix: str, send: Any
) -> None:
    def fail(event: Event) -> None:
        if event.sequence == 1:
            raise ValueError("\0")

    reading = Reading(database, kafka, prefix, fail)
    send(1, 1)
    send(2, 1, "codes/2", "\0")
    send(3, 1, "codes/3", secrets.token_hex(5_000))
    send(4, 1, "codes/4")
    with reading.running():
        until(lambda: reading.handled() == [4], WITHIN_S)
        until(lambda: reading.sql("SELECT count(*) FROM sparkledger_dead_letters") == [(3,)], WITHIN_S)
    assert reading.error is None
    assert reading.sql("SELECT reason FROM sparkledger_dead_letters WHERE id = 'id-1'") == [("ValueError: \ufffd",)]


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        # Incompressible, so that no index of PostgreSQL takes it.
        ("INSERT INTO names SELECT string_agg(gen_random_uuid()::text, '') FROM generate_series(1, 200)", "Program"),
        ("SET LOCAL statement_timeout = 1; SELECT pg_sleep(60)", "QueryCanceled"),
    ],
    ids=["limit exceeded", "cancelled"],
)
def test_what_the_database_refuses_to_do_for_an_event_is_no_outage_but_a_dead_letter(
    database: TestDatabase,
    kafka: Broker,
    prefix: str,
    send: Any,
    query: str,
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def handle(cursor: psycopg.Cursor[Any], event: Event) -> None:
        reading.handle(cursor, event)
        if event.sequence == 2:
            cursor.execute(query)

    reading = Reading(database, kafka, prefix)
    reading.consumer._handle = handle
    reading.sql("CREATE TABLE names (name text PRIMARY KEY)")
    for number in (1, 2, 3):
        send(number, number)
    with reading.running():
        until(lambda: reading.handled() == [1, 3], WITHIN_S)

    ((event_id, why),) = reading.sql("SELECT id, reason FROM sparkledger_dead_letters")
    assert event_id == "id-2"
    assert why.startswith(reason)
    assert "as a dead letter after 3 attempts" in caplog.text
    # Once with the others, and at last three times by itself. Kafka may assign the partition again in between.
    assert reading.tried[:2] == [1, 2]
    assert reading.tried[-4:] == [2, 2, 2, 3]


@pytest.mark.long("a lost session is waited for, several times")
@pytest.mark.parametrize("mine", [False, True], ids=["as it is raised", "as an error of my own"])
def test_a_connection_that_is_lost_while_an_event_is_handled_is_no_fault_of_the_event(
    database: TestDatabase, kafka: Broker, prefix: str, send: Any, *, mine: bool
) -> None:
    def handle(cursor: psycopg.Cursor[Any], event: Event) -> None:
        reading.handle(cursor, event)
        if event.sequence == 2 and reading.tried.count(2) <= 5:
            try:
                cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")
            except psycopg.OperationalError as error:
                if mine:
                    raise ValueError from error
                raise

    reading = Reading(database, kafka, prefix)
    reading.consumer._handle = handle
    for number in (1, 2, 3):
        send(number, number)
    with reading.running():
        until(lambda: reading.handled() == [1, 2, 3], WITHIN_S)

    assert reading.sql("SELECT count(*) FROM sparkledger_dead_letters") == [(0,)]
    assert reading.error is None


def test_text_that_no_database_holds_is_kept_with_marks_in_its_place() -> None:
    assert [_text(said) for said in ("\0\ud800", b"\xff")] == ["\ufffd?", "\ufffd"]


def test_what_fails_when_it_is_told_to_stop_is_left_for_the_next_run(
    database: TestDatabase, kafka: Broker, prefix: str, send: Any
) -> None:
    send(1, 1)

    def fail(_: Event) -> None:
        reading.consumer.stop()
        raise ValueError

    reading = Reading(database, kafka, prefix, fail)
    with reading.running():
        until(lambda: reading.tried != [], WITHIN_S)
    assert reading.sql("SELECT count(*) FROM sparkledger_dead_letters") == [(0,)]
    again = Reading(database, kafka, prefix)
    with again.running():
        until(lambda: again.handled() == [1], WITHIN_S)


def test_a_topic_that_was_deleted_and_published_anew_is_read_from_its_beginning(
    database: TestDatabase, kafka: Broker, prefix: str, send: Any
) -> None:
    for number in (1, 2, 3):
        send(number, number)
    before = Reading(database, kafka, prefix)
    with before.running():
        until(lambda: before.handled() == [1, 2, 3], WITHIN_S)
    # As if the topic that was read had been longer than the one that is there now.
    before.sql("UPDATE sparkledger_positions SET next_offset = next_offset + 100 RETURNING 1")
    send(4, 4)
    after = Reading(database, kafka, prefix)
    with after.running():
        until(lambda: after.handled() == [1, 2, 3, 4], WITHIN_S)
    assert after.tried == [4]


def test_a_database_that_was_away_when_partitions_move_to_another_process_is_waited_for(
    database: TestDatabase, kafka: Broker, prefix: str, send: Any, caplog: pytest.LogCaptureFixture
) -> None:
    first = Reading(database, kafka, prefix, application="first")
    second = Reading(database, kafka, prefix, application="second")
    send(1, 1)
    with first.running():
        until(lambda: first.handled() == [1], WITHIN_S)
        # It has nothing to do, and does not notice until Kafka assigns the partitions again.
        second.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'first'")
        with second.running():
            until(lambda: f"{second.name} starts again in" in caplog.text, WITHIN_S)
            for number in range(2, 30):
                send(number, 1, f"codes/{number}")
            until(lambda: first.handled() == list(range(1, 30)), WITHIN_S)

    assert (first.error, second.error) == (None, None)


def test_a_gap_in_a_codes_versions_stops_it(database: TestDatabase, kafka: Broker, prefix: str, send: Any) -> None:
    reading = Reading(database, kafka, prefix)
    send(1, 1)
    with reading.running():
        until(lambda: reading.handled() == [1], WITHIN_S)
        send(3, 3)
        until(lambda: reading.error is not None, WITHIN_S)

    assert isinstance(reading.error, Gap)
    assert str(reading.error).startswith("codes/1 of /ledgers/main goes from version 1 to 3: ")
    assert reading.handled() == [1]


def read_again_from_the_beginning(reading: Reading, *, pruned: bool = False) -> None:
    """As after the topic was deleted and published again; where old events were deleted, none is known by its id."""
    reading.sql("DELETE FROM sparkledger_positions RETURNING 1")
    if pruned:
        reading.sql("DELETE FROM sparkledger_events RETURNING 1")


@pytest.mark.parametrize("pruned", [False, True], ids=["known by their ids", "known by their versions"])
def test_events_that_are_published_anew_are_skipped(
    database: TestDatabase, kafka: Broker, prefix: str, send: Any, *, pruned: bool
) -> None:
    for number in (1, 2, 3):
        send(number, number)
    before = Reading(database, kafka, prefix)
    with before.running():
        until(lambda: before.handled() == [1, 2, 3], WITHIN_S)
    read_again_from_the_beginning(before, pruned=pruned)
    send(4, 4)
    after = Reading(database, kafka, prefix)
    with after.running():
        until(lambda: after.handled() == [1, 2, 3, 4], WITHIN_S)
    assert after.tried == [4]
    assert after.error is None


@pytest.mark.parametrize(
    ("version", "pruned"),
    [(3, False), (2, False), (3, True)],
    ids=["the last version", "an earlier version", "the last version, the others forgotten"],
)
def test_another_event_at_a_version_that_was_done_stops_it(
    database: TestDatabase, kafka: Broker, prefix: str, send: Any, version: int, *, pruned: bool
) -> None:
    for number in (1, 2, 3):
        send(number, number)
    before = Reading(database, kafka, prefix)
    with before.running():
        until(lambda: before.handled() == [1, 2, 3], WITHIN_S)
    # A restored ledger went on from the version before.
    if pruned:
        before.sql("DELETE FROM sparkledger_events RETURNING 1")
    send(version, version, event_id="another")
    after = Reading(database, kafka, prefix)
    with after.running():
        until(lambda: after.error is not None, WITHIN_S)

    assert isinstance(after.error, Forked)
    assert str(after.error).startswith(
        f"Version {version} of codes/1 of /ledgers/main, or position {version}, was done as id-{version} and is another"
    )
    assert after.handled() == [1, 2, 3]


@pytest.mark.long("a program is killed again and again")
async def test_the_example_ends_with_the_same_table_however_often_it_is_killed(
    kafka: Broker, opened: Opened, prefix: str
) -> None:
    tenant = await opened.begin()
    await opened.when(tenant, given.permission())
    opened.sql("CREATE SCHEMA ads")
    dsn = f"{opened.database.dsn()} options='-c search_path=ads'"
    environment = {**os.environ, "KAFKA": kafka.plain, "DATABASE_URL": dsn, "TOPIC": events_topic(prefix).name}
    command = [sys.executable, "example_service.py"]

    def example() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, env=environment, cwd=ROOT / "docs" / "consumer")

    def allowed() -> list[Any]:
        if opened.sql("SELECT to_regclass('ads.allowed')") == [(None,)]:
            return []
        return opened.sql("SELECT video_id, advertiser_id, until FROM ads.allowed ORDER BY 1, 2")

    with publishing(opened.database, kafka.plain, prefix) as publisher:
        await opened.when(tenant, given.generate())
        await opened.when(tenant, given.redeem())
        publisher.wake()
        with example() as process:
            until(lambda: len(allowed()) == 1, 60)
            process.kill()
        await opened.when(tenant, given.redeem(advertiser_id="another"))
        done = await opened.when(tenant, given.extend(days=60))
        publisher.wake()
        assert done.aggregate is not None
        end = done.aggregate.window.expires_at
        with example() as process:
            until(lambda: allowed() == [("video-1", "advertiser-1", end), ("video-1", "another", end)], 60)
            await opened.when(tenant, given.revoke())
            publisher.wake()
            until(lambda: allowed() == [], 60)
            process.terminate()
            assert process.wait(20) == 0
