"""Reads Sparkledger's events from Kafka into your own PostgreSQL, each exactly once. Copy this file; it needs
psycopg 3 and kafka-python 3.

    def handle(cursor, event):
        cursor.execute("INSERT INTO …", (event.subject, event.data["expires_at"]))

    Consumer("postgresql://…", "broker:9092", "sparkledger.code-events.v1", name="billing", handle=handle).run()

What `handle` writes with its cursor, how far the topic was read, and which events are done are one transaction of your
database: after a crash, or a lost connection, reading goes on behind the last event that counted. Start as many
processes with the same name as the topic has partitions: Kafka shares the partitions out, and whoever lost one to
another process finds that it was moved, and lets go.

    skipped        an event that was done before: the same `id` at the same version of its subject, as after everything
                   was published anew
    tried again    where `handle` raises, after 1 s, 2 s, 4 s …; but a database that is away is waited for
    dead-lettered  after `attempts` of them, with the reason, in the table `sparkledger_dead_letters`; `redeliver` hands
                   them to `handle` once more, after it was mended. A record that is no event of Sparkledger's is one
                   at once: its `source` is the topic, its `id` partition and offset, and `redeliver` leaves it alone
    Gap            raised where an event of a code is missing: somebody's topic or table is damaged, and going on would
                   hide it. (Positions, in `sequence`, are spread over partitions: no single reader can check those.)
    Forked         raised where another event stands at a version that was done: the ledger was restored to an earlier
                   day, went on from there, and was published anew. Your tables hold what never was in its history
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from kafka import ConsumerRebalanceListener, KafkaConsumer, TopicPartition  # type: ignore[import-untyped]
from kafka.errors import KafkaConnectionError, KafkaTimeoutError  # type: ignore[import-untyped]
from kafka.net.compat import KafkaNetClient  # type: ignore[import-untyped]

log = logging.getLogger(__name__)

# Several processes that start at once would each find a table missing, and all but one fail to make it.
SCHEMA = """
SELECT pg_advisory_xact_lock(7290130);
CREATE TABLE IF NOT EXISTS sparkledger_positions (
    consumer text, topic text, partition int, next_offset bigint NOT NULL, PRIMARY KEY (consumer, topic, partition));
CREATE TABLE IF NOT EXISTS sparkledger_events (
    consumer text, source text, subject text, version int, id text NOT NULL, at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer, source, subject, version));
CREATE TABLE IF NOT EXISTS sparkledger_streams (
    consumer text, source text, subject text, version int NOT NULL, last_id text NOT NULL,
    PRIMARY KEY (consumer, source, subject));
CREATE TABLE IF NOT EXISTS sparkledger_dead_letters (
    consumer text, source text, id text, headers jsonb NOT NULL, data jsonb NOT NULL, reason text NOT NULL,
    at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (consumer, source, id));
"""

LONGEST_PAUSE_S = 60.0
# How often it looks for a topic that is not there yet, and for a change of those that are.
TOPIC_EVERY_S = 1.0
METADATA_MS = 5_000
POLL_MS = 500
BATCH_EVENTS_MAX = 200
REASON_CHARACTERS_MAX = 1000
# Of each name that an index of the tables holds, far beyond those that Sparkledger gives.
NAME_BYTES_MAX = 1000


@dataclass(frozen=True)
class Event:
    """One event. `attributes` are all its CloudEvents attributes, as texts; `data` is its body."""

    id: str
    source: str
    type: str
    subject: str
    sequence: int
    stream_version: int
    time: datetime
    attributes: Mapping[str, str]
    data: Mapping[str, Any]


Handle = Callable[[psycopg.Cursor[Any], Event], None]


class Gap(Exception):
    """An event of a code, or of a creator, is missing before this one."""


class Forked(Exception):
    """Another event stands at a version of a code, or of a creator, that was done: the ledger was taken back."""


class _Moved(Exception):
    """Another process has read this partition further."""


_NO_FAULT_OF_AN_EVENT = (Gap, Forked, _Moved)


class Consumer:
    """Hands each event to `handle` once."""

    def __init__(
        self,
        database: str,
        bootstrap_servers: str,
        topic: str,
        *,
        name: str,
        handle: Handle,
        attempts: int = 5,
        pause_s: float = 1.0,
        **kafka: Any,
    ) -> None:
        """Prepare; `run` runs.

        Args:
            database: your PostgreSQL, as a connection string.
            bootstrap_servers: the brokers, as host:port, several separated by commas.
            topic: the topic of events.
            name: what this consumer is called, in Kafka and in your tables.
            handle: what is to be done; it must only write with the cursor that it is handed.
            attempts: how often an event is tried before it becomes a dead letter.
            pause_s: seconds before the second attempt; doubled before each further one.
            kafka: more settings of kafka-python, for logins and TLS.

        """
        self._database = database
        self._topic = topic
        self._name = name
        self._handle = handle
        self._attempts = attempts
        self._pause_s = pause_s
        self._kafka = {
            # Whoever was killed gives its partitions up after so long.
            "session_timeout_ms": 10_000,
            **kafka,
            "bootstrap_servers": bootstrap_servers.split(","),
            "group_id": name,
            # Its defaults would show events of transactions that were aborted, skip those of before, and forget ours.
            "isolation_level": "read_committed",
            "auto_offset_reset": "earliest",
            "enable_auto_commit": False,
            "allow_auto_create_topics": False,
            "max_poll_records": BATCH_EVENTS_MAX,
            # A client that shared the partitions out before it knew of any would look again in five minutes.
            "metadata_max_age_ms": METADATA_MS,
        }
        self._stop = threading.Event()

    def stop(self) -> None:
        """End `run` after the events in hand."""
        self._stop.set()

    def run(self) -> None:
        """Read until `stop` is called; a database or a broker that is away is waited for.

        Raises:
            Gap: an event is missing.
            Forked: an event that was done is not the ledger's any more.

        """
        pause_s = self._pause_s
        while not self._stop.is_set():
            try:
                with psycopg.connect(self._database) as connection, self._reading(connection) as poll:
                    while not self._stop.is_set():
                        for partition, records in poll().items():
                            self._take_in(connection, partition, records)
                            pause_s = self._pause_s
            except (psycopg.OperationalError, KafkaConnectionError, KafkaTimeoutError, _Moved) as error:
                log.warning("%s begins again in %.0f s: %s", self._name, pause_s, error)
                self._stop.wait(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def redeliver(self) -> int:
        """Hand the dead letters to `handle` once more, oldest first; return how many it has done now.

        The first that fails again ends it, and stays where it is. So does what is no event, but it ends nothing.
        """
        done = 0
        with psycopg.connect(self._database) as connection:
            letters = connection.execute(
                "SELECT source, id, headers, data FROM sparkledger_dead_letters WHERE consumer = %s ORDER BY at",
                (self._name,),
            ).fetchall()
            connection.commit()
            for source, event_id, headers, data in letters:
                try:
                    event = _event(headers, data)
                except Exception as error:  # noqa: BLE001 - somebody else's record may be wrong in any way
                    log.warning("%s leaves %s of %s, which is no event: %s", self._name, event_id, source, error)
                    continue
                with connection.transaction(), connection.cursor() as cursor:
                    cursor.execute(
                        "DELETE FROM sparkledger_dead_letters WHERE (consumer, source, id) = (%s, %s, %s)",
                        (self._name, source, event_id),
                    )
                    # Whoever redelivers at the same time has waited here for the other, and finds it done.
                    if cursor.rowcount == 1:
                        self._handle(cursor, event)
                        done += 1
        return done

    @contextmanager
    def _reading(self, connection: psycopg.Connection[Any]) -> Iterator[Callable[[], Mapping[Any, Sequence[Any]]]]:
        """Lend what returns the next records of each partition."""
        connection.execute(SCHEMA)
        connection.commit()
        consumer = _connected(self._kafka)
        try:
            # A topic whose partitions are not known yet would be shared out without any of them, and nothing be read
            # until the client looks again, in minutes.
            while not consumer.partitions_for_topic(self._topic) and not self._stop.wait(TOPIC_EVERY_S):
                log.warning("%s waits for the topic %s", self._name, self._topic)
            self._forget_another_topic(connection, consumer)
            going_on = _GoOn(consumer, connection, self._name)
            consumer.subscribe([self._topic], listener=going_on)
            yield going_on.poll
        finally:
            with suppress(Exception):
                consumer.close(autocommit=False)

    def _forget_another_topic(self, connection: psycopg.Connection[Any], consumer: Any) -> None:
        """Begin anew where a partition ends before it was read to: the topic was deleted, and published anew."""
        read = connection.execute(
            "SELECT partition, next_offset FROM sparkledger_positions WHERE (consumer, topic) = (%s, %s)",
            (self._name, self._topic),
        ).fetchall()
        ends = consumer.end_offsets([TopicPartition(self._topic, partition) for partition, _ in read]) if read else {}
        if any(next_offset > ends[TopicPartition(self._topic, partition)] for partition, next_offset in read):
            log.warning("%s reads %s from its beginning: it was published anew", self._name, self._topic)
            connection.execute(
                "DELETE FROM sparkledger_positions WHERE (consumer, topic) = (%s, %s)", (self._name, self._topic)
            )
        connection.commit()

    def _take_in(self, connection: psycopg.Connection[Any], partition: Any, records: Sequence[Any]) -> None:
        """Take a batch in as one transaction; from an event that fails, go on with each in one of its own."""
        try:
            with connection.transaction(), connection.cursor() as cursor:
                for record in records:
                    self._once(cursor, record)
                self._move(cursor, partition, records[0].offset, records[-1].offset + 1)
        except _NO_FAULT_OF_AN_EVENT:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it was, each event is tried by itself now
            _refuse_closed(connection, error)
            for record in records:
                if not self._patiently(connection, partition, record):
                    return

    def _patiently(self, connection: psycopg.Connection[Any], partition: Any, record: Any) -> bool:
        """Try one event again and again; where that does not help, keep it as a dead letter and go on.

        Return false where `stop` came in between: it is left for the next run, with all its attempts.
        """
        try:
            event_of(record)
        except Exception as error:
            log.exception("%s gives a record up that is no event", self._name)
            with connection.transaction(), connection.cursor() as cursor:
                self._bury_foreign(cursor, partition, record, f"{type(error).__name__}: {error}")
                self._move(cursor, partition, record.offset, record.offset + 1)
            return True
        pause_s = self._pause_s
        for attempt in range(1, self._attempts + 1):
            try:
                with connection.transaction(), connection.cursor() as cursor:
                    self._once(cursor, record)
                    self._move(cursor, partition, record.offset, record.offset + 1)
                return True
            except _NO_FAULT_OF_AN_EVENT:
                raise
            except Exception as error:
                _refuse_closed(connection, error)
                reason = f"{type(error).__name__}: {error}"
                if attempt == self._attempts:
                    log.exception("%s gives an event up after %d attempts", self._name, attempt)
                    break
                log.warning("%s tries an event again in %.1f s: %s", self._name, pause_s, _text(reason))
                if self._stop.wait(pause_s):
                    return False
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        with connection.transaction(), connection.cursor() as cursor:
            try:
                with connection.transaction():
                    self._bury(cursor, record, reason)
            except psycopg.DataError:
                # It holds what PostgreSQL's texts cannot, such as U+0000: none of Sparkledger's do.
                self._bury_foreign(cursor, partition, record, reason)
            self._move(cursor, partition, record.offset, record.offset + 1)
        return True

    def _once(self, cursor: psycopg.Cursor[Any], record: Any) -> None:
        event = event_of(record)
        if self._is_new(cursor, event):
            self._handle(cursor, event)

    def _is_new(self, cursor: psycopg.Cursor[Any], event: Event) -> bool:
        """Note the event as done; tell whether it was not yet, and that none of its code is missing before it."""
        cursor.execute(
            "INSERT INTO sparkledger_events (consumer, source, subject, version, id) VALUES (%s, %s, %s, %s, %s)"
            " ON CONFLICT DO NOTHING",
            (self._name, event.source, event.subject, event.stream_version, event.id),
        )
        if cursor.rowcount == 0:
            cursor.execute(
                "SELECT id FROM sparkledger_events WHERE (consumer, source, subject, version) = (%s, %s, %s, %s)",
                (self._name, event.source, event.subject, event.stream_version),
            )
            _refuse_another(event, cursor.fetchone())
            return False
        cursor.execute(
            "SELECT last_id, version FROM sparkledger_streams WHERE (consumer, source, subject) = (%s, %s, %s)"
            " FOR UPDATE",
            (self._name, event.source, event.subject),
        )
        row = cursor.fetchone()
        version = row[1] if row else 0
        if event.stream_version <= version:
            # Its row was deleted as an old one: what is left to compare is the last event's id.
            if event.stream_version == version:
                _refuse_another(event, row)
            return False
        if event.stream_version != version + 1:
            message = (
                f"{event.subject} of {event.source} goes from version {version} to {event.stream_version}: events in "
                "between are missing. Read the topic from its beginning into empty tables, or look for who lost them."
            )
            raise Gap(message)
        cursor.execute(
            "INSERT INTO sparkledger_streams (consumer, source, subject, version, last_id) VALUES (%s, %s, %s, %s, %s)"
            " ON CONFLICT (consumer, source, subject)"
            " DO UPDATE SET version = excluded.version, last_id = excluded.last_id",
            (self._name, event.source, event.subject, event.stream_version, event.id),
        )
        return True

    def _move(self, cursor: psycopg.Cursor[Any], partition: Any, first: int, next_offset: int) -> None:
        """Note how far the partition was read, unless somebody else has read it beyond where this batch began."""
        cursor.execute(
            "INSERT INTO sparkledger_positions AS p (consumer, topic, partition, next_offset) VALUES (%s, %s, %s, %s)"
            " ON CONFLICT (consumer, topic, partition) DO UPDATE SET next_offset = excluded.next_offset"
            " WHERE p.next_offset <= %s",
            (self._name, partition.topic, partition.partition, next_offset, first),
        )
        if cursor.rowcount == 0:
            message = f"another process has read partition {partition.partition} further"
            raise _Moved(message)

    def _bury(self, cursor: psycopg.Cursor[Any], record: Any, reason: str) -> None:
        event = event_of(record)
        if self._is_new(cursor, event):
            headers = {name: value.decode() for name, value in record.headers}
            self._keep(cursor, event.source, event.id, headers, event.data, reason)

    def _bury_foreign(self, cursor: psycopg.Cursor[Any], partition: Any, record: Any, reason: str) -> None:
        """Keep what cannot be read as an event by where it stands, with its value as a text."""
        headers = {_text(name): None if value is None else _text(value) for name, value in record.headers}
        data = None if record.value is None else _text(record.value)
        self._keep(cursor, partition.topic, f"{partition.partition}/{record.offset}", headers, data, reason)

    def _keep(
        self, cursor: psycopg.Cursor[Any], source: str, event_id: str, headers: Any, data: Any, reason: str
    ) -> None:
        cursor.execute(
            "INSERT INTO sparkledger_dead_letters (consumer, source, id, headers, data, reason)"
            " VALUES (%s, %s, %s, %s, %s, %s)"
            # Another record may have stood there, in a topic of that name that was deleted.
            " ON CONFLICT (consumer, source, id) DO UPDATE"
            " SET headers = excluded.headers, data = excluded.data, reason = excluded.reason, at = excluded.at",
            (
                *(self._name, source, event_id),
                *(json.dumps(headers), json.dumps(data), _text(reason)[:REASON_CHARACTERS_MAX]),
            ),
        )


def _refuse_closed(connection: psycopg.Connection[Any], error: Exception) -> None:
    """Let an error pass as an event's own, unless the connection is gone: that, and not its class, tells an outage.

    PostgreSQL's operational errors are also those of a lock that is not had, or a value too long for an index.
    """
    if connection.closed:
        message = f"the connection was lost: {error}"
        raise psycopg.OperationalError(message) from error


def _refuse_another(event: Event, done: Any) -> None:
    """Let an event pass that was done at its version, by its id, which comes first in the given row."""
    if done is not None and done[0] != event.id:
        message = (
            f"Version {event.stream_version} of {event.subject} of {event.source} was done as {done[0]} and is "
            f"{event.id} now: the ledger was restored to an earlier day, or is another. What was done since is not its "
            "history any more. Read the topic from its beginning into empty tables, or bring the newer ledger back."
        )
        raise Forked(message)


def _connected(kafka: Mapping[str, Any]) -> Any:
    """Connect; where that fails, end the thread that the client began, which would go on trying beside the next."""
    begun: list[Any] = []

    def client(**settings: Any) -> Any:
        begun.append(KafkaNetClient(**settings))
        return begun[-1]

    try:
        return KafkaConsumer(**kafka, kafka_client=client)
    except BaseException:
        for left in begun:
            left.close()
        raise


class _GoOn(ConsumerRebalanceListener):  # type: ignore[misc] # its base has no types
    """Begins each partition that Kafka hands to this process where the database says that it was left."""

    def __init__(self, consumer: Any, connection: psycopg.Connection[Any], name: str) -> None:
        self._consumer = consumer
        self._connection = connection
        self._name = name
        self._failed: Exception | None = None

    def poll(self) -> Mapping[Any, Sequence[Any]]:
        """Return the next records of each partition.

        Raises:
            psycopg.OperationalError: the database was away when partitions were handed to this process.

        """
        polled: Mapping[Any, Sequence[Any]] = self._consumer.poll(timeout_ms=POLL_MS)
        if self._failed is not None:
            # What was polled may begin anywhere.
            raise self._failed
        return polled

    def on_partitions_revoked(self, revoked: Any) -> None:
        """Nothing: what is done is written down."""

    def on_partitions_assigned(self, assigned: Any) -> None:
        try:
            self._begin(assigned)
        except Exception as error:  # noqa: BLE001 - Kafka's client would raise it as one of its own, which tells nothing
            self._failed = error

    def _begin(self, assigned: Any) -> None:
        for partition in assigned:
            row = self._connection.execute(
                "SELECT next_offset FROM sparkledger_positions WHERE (consumer, topic, partition) = (%s, %s, %s)",
                (self._name, partition.topic, partition.partition),
            ).fetchone()
            self._connection.commit()
            if row is None:
                self._consumer.seek_to_beginning(partition)
            else:
                self._consumer.seek(TopicPartition(partition.topic, partition.partition), row[0])


def event_of(record: Any) -> Event:
    """Return the event of a Kafka record in CloudEvents' binary mode."""
    return _event({name: value.decode() for name, value in record.headers}, json.loads(record.value))


def _text(said: str | bytes) -> str:
    """Return what PostgreSQL takes as a text, whatever it was."""
    encoded = said.encode("utf-8", "replace") if isinstance(said, str) else said
    return encoded.decode("utf-8", "replace").replace("\0", "\ufffd")


def _event(headers: Mapping[str, str], data: Any) -> Event:
    if not isinstance(data, dict):
        message = "the value is no JSON object"
        raise TypeError(message)
    attributes = {name.removeprefix("ce_"): value for name, value in headers.items() if name.startswith("ce_")}
    if any(len(attributes[name].encode()) > NAME_BYTES_MAX for name in ("id", "source", "subject")):
        message = f"id, source or subject is longer than {NAME_BYTES_MAX} bytes"
        raise ValueError(message)
    return Event(
        id=attributes["id"],
        source=attributes["source"],
        type=attributes["type"],
        subject=attributes["subject"],
        sequence=int(attributes["sequence"]),
        stream_version=int(attributes["streamversion"]),
        time=datetime.fromisoformat(attributes["time"]),
        attributes=attributes,
        data=data,
    )
