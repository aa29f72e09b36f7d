"""A consumer of Sparkledger's events: it reads them from Kafka into your own PostgreSQL, each exactly once.

Copy this file. It needs psycopg 3 and kafka-python 3.

    def handle(cursor, event):
        cursor.execute("INSERT INTO …", (event.subject, event.body["expires_at"]))

    Consumer("postgresql://…", "broker:9092", "sparkledger.code-events.v1", name="billing", handle=handle).run()

One transaction of your database contains what `handle` writes with its cursor, the position in the topic, and which
events are done. After a crash or a lost connection the consumer therefore continues behind the last committed event.
You may start as many processes with the same name as the topic has partitions. Kafka distributes the partitions; a
process that has lost one to another finds that its position has moved, and stops reading it.

    skipped        an event that is done already: it has the same `id` and the same version of its subject, for example
                   because everything was published again
    retried        an event for which `handle` raises, after 1 s, 2 s, 4 s …; its partition waits, and the others go on.
                   A database that is unavailable does not count as an attempt
    dead-lettered  an event that has failed `attempts` times. It is stored with the reason in
                   `sparkledger_dead_letters`; `redeliver` hands it to `handle` again once that is fixed. A record that
                   is not an event of Sparkledger is stored at once, with the topic as its `source` and partition and
                   offset as its `id`; `redeliver` skips it
    Gap            raised where an event of a code is missing: the topic or your tables are damaged, and continuing
                   would hide it. (Positions, in `sequence`, are spread over partitions, so one reader cannot check
                   those.)
    Forked         raised where a position or a version that is done has another event now, or where the ledger goes on
                   as another history: it was restored to an earlier state and continued from there. Your tables may
                   contain events that are no longer in its history. Once they follow, `accept_history` lets it go on
"""

from __future__ import annotations

import json
import logging
import threading
import time
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

# The lock is for processes that start at the same time: without it, two of them would create the same table.
SCHEMA = """
SELECT pg_advisory_xact_lock(7290130);
CREATE TABLE IF NOT EXISTS sparkledger_positions (
    consumer text, topic text, partition int, next_offset bigint NOT NULL, PRIMARY KEY (consumer, topic, partition));
CREATE TABLE IF NOT EXISTS sparkledger_events (
    consumer text, source text, subject text, version int, id text NOT NULL, at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer, source, subject, version));
ALTER TABLE sparkledger_events ADD COLUMN IF NOT EXISTS sequence bigint;
CREATE UNIQUE INDEX IF NOT EXISTS sparkledger_events_sequence ON sparkledger_events (consumer, source, sequence);
CREATE TABLE IF NOT EXISTS sparkledger_histories (
    consumer text, source text, history text, PRIMARY KEY (consumer, source, history));
CREATE TABLE IF NOT EXISTS sparkledger_streams (
    consumer text, source text, subject text, version int NOT NULL, last_id text NOT NULL,
    PRIMARY KEY (consumer, source, subject));
CREATE TABLE IF NOT EXISTS sparkledger_dead_letters (
    consumer text, source text, id text, headers jsonb NOT NULL, data jsonb NOT NULL, reason text NOT NULL,
    at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (consumer, source, id));
"""

LONGEST_PAUSE_S = 60.0
# How often the consumer checks for a topic that does not exist yet.
TOPIC_EVERY_S = 1.0
METADATA_MS = 5_000
POLL_MS = 500
BATCH_EVENTS_MAX = 200
REASON_CHARACTERS_MAX = 1000
# The limit for each text in an index of the tables, far above those of Sparkledger's events.
NAME_BYTES_MAX = 1000


@dataclass(frozen=True)
class Event:
    """One event. `attributes` are its CloudEvents attributes as strings; `data` is the event as the trail has it."""

    id: str
    source: str
    type: str
    subject: str
    sequence: int
    stream_version: int
    time: datetime
    attributes: Mapping[str, str]
    data: Mapping[str, Any]

    @property
    def body(self) -> Mapping[str, Any]:
        """What the type of the event has for fields."""
        body: Mapping[str, Any] = self.data["body"]
        return body


Handle = Callable[[psycopg.Cursor[Any], Event], None]


class Gap(Exception):
    """An event of a code, or of a creator, is missing before this one."""


class Forked(Exception):
    """What is done is no longer in the ledger's history, or the ledger goes on as another: it was restored."""


class _Moved(Exception):
    """Another process has read further in this partition."""


_NOT_AN_EVENTS_FAULT = (Gap, Forked, _Moved)


class Consumer:
    """Hands each event to `handle` exactly once."""

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
        """Prepare the consumer; `run` runs it.

        Args:
            database: the connection string of your PostgreSQL.
            bootstrap_servers: the brokers as host:port, separated by commas.
            topic: the topic of events.
            name: the name of this consumer, in Kafka and in your tables.
            handle: processes one event. It must write only with the cursor that it gets.
            attempts: how often an event is tried before it becomes a dead letter.
            pause_s: seconds before the second attempt, doubled before each further one.
            kafka: further settings of kafka-python, for logins and TLS.

        """
        self._database = database
        self._topic = topic
        self._name = name
        self._handle = handle
        self._attempts = attempts
        self._pause_s = pause_s
        self._kafka = {
            # The partitions of a killed process go to others after this time.
            "session_timeout_ms": 10_000,
            **kafka,
            "bootstrap_servers": bootstrap_servers.split(","),
            "group_id": name,
            # The defaults would return aborted events, skip older events, and commit events that are not done.
            "isolation_level": "read_committed",
            "auto_offset_reset": "earliest",
            "enable_auto_commit": False,
            "allow_auto_create_topics": False,
            "max_poll_records": BATCH_EVENTS_MAX,
            # With the default, a client that found no partitions at first would look again after five minutes.
            "metadata_max_age_ms": METADATA_MS,
        }
        self._stop = threading.Event()

    def stop(self) -> None:
        """End `run` after the current event or batch."""
        self._stop.set()

    def run(self) -> None:
        """Read until `stop` is called. While the database or the brokers are unavailable, try again and again.

        Raises:
            Gap: an event is missing.
            Forked: an event that is done is no longer in the ledger's history.

        """
        pause_s = self._pause_s
        while not self._stop.is_set():
            try:
                with psycopg.connect(self._database) as connection, self._polling(connection) as reading:
                    while not self._stop.is_set():
                        for partition, records in reading.poll().items():
                            self._apply(connection, reading, partition, records)
                            pause_s = self._pause_s
                        for partition, failing in reading.due():
                            self._one_by_one(connection, reading, partition, failing)
            except (psycopg.OperationalError, KafkaConnectionError, KafkaTimeoutError, _Moved) as error:
                log.warning("%s starts again in %.0f s: %s", self._name, pause_s, error)
                self._stop.wait(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def redeliver(self) -> int:
        """Hand the dead letters to `handle` again, oldest first; return how many are done now.

        The first one that fails again ends this, and remains a dead letter. Records that are not events are skipped.
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
                except Exception as error:  # noqa: BLE001 - a foreign record may be wrong in any way
                    log.warning("%s skips %s of %s, which is not an event: %s", self._name, event_id, source, error)
                    continue
                with connection.transaction(), connection.cursor() as cursor:
                    cursor.execute(
                        "DELETE FROM sparkledger_dead_letters WHERE (consumer, source, id) = (%s, %s, %s)",
                        (self._name, source, event_id),
                    )
                    # Another process that redelivers at the same time waits here, and then finds no row.
                    if cursor.rowcount == 1:
                        self._handle(cursor, event)
                        done += 1
        return done

    def accept_history(self, source: str, history: str) -> None:
        """Read on in another history of a ledger, now that your tables follow it.

        Args:
            source: the ledger, as in `Event.source`.
            history: the history, as `Forked` names it.

        """
        with psycopg.connect(self._database) as connection:
            connection.execute(SCHEMA)
            connection.execute(
                "INSERT INTO sparkledger_histories (consumer, source, history) VALUES (%s, %s, %s)"
                " ON CONFLICT DO NOTHING",
                (self._name, source, history),
            )

    @contextmanager
    def _polling(self, connection: psycopg.Connection[Any]) -> Iterator[_Reading]:
        """Open a consumer, and yield what reads the next records of each partition."""
        connection.execute(SCHEMA)
        connection.commit()
        consumer = _connected(self._kafka)
        try:
            # A client that subscribes before the partitions are known would be assigned none of them for minutes.
            while not consumer.partitions_for_topic(self._topic) and not self._stop.wait(TOPIC_EVERY_S):
                log.warning("%s waits for the topic %s", self._name, self._topic)
            self._forget_recreated_topic(connection, consumer)
            reading = _Reading(consumer, connection, self._name)
            consumer.subscribe([self._topic], listener=reading)
            yield reading
        finally:
            with suppress(Exception):
                consumer.close(autocommit=False)

    def _forget_recreated_topic(self, connection: psycopg.Connection[Any], consumer: Any) -> None:
        """Forget the positions in a topic that is shorter than they are: it was deleted and published again."""
        read = connection.execute(
            "SELECT partition, next_offset FROM sparkledger_positions WHERE (consumer, topic) = (%s, %s)",
            (self._name, self._topic),
        ).fetchall()
        ends = consumer.end_offsets([TopicPartition(self._topic, partition) for partition, _ in read]) if read else {}
        if any(next_offset > ends[TopicPartition(self._topic, partition)] for partition, next_offset in read):
            log.warning("%s reads %s from its beginning, because it was published again", self._name, self._topic)
            connection.execute(
                "DELETE FROM sparkledger_positions WHERE (consumer, topic) = (%s, %s)", (self._name, self._topic)
            )
        connection.commit()

    def _apply(
        self, connection: psycopg.Connection[Any], reading: _Reading, partition: Any, records: Sequence[Any]
    ) -> None:
        """Apply a batch in one transaction; where an event fails, apply each event in a transaction of its own."""
        try:
            with connection.transaction(), connection.cursor() as cursor:
                for record in records:
                    self._once(cursor, record)
                self._move(cursor, partition, records[0].offset, records[-1].offset + 1)
        except _NOT_AN_EVENTS_FAULT:
            raise
        except Exception as error:  # noqa: BLE001 - whatever failed, each event is tried by itself now
            _raise_if_closed(connection, error)
            self._one_by_one(connection, reading, partition, _Failing(records, 1, self._pause_s))

    def _one_by_one(
        self, connection: psycopg.Connection[Any], reading: _Reading, partition: Any, failing: _Failing
    ) -> None:
        """Apply each event in a transaction of its own; one that fails waits, with all behind it in its partition.

        An event that fails `attempts` times is stored as a dead letter. In the next run it has all attempts again.
        """
        attempt, pause_s = failing.attempt, failing.pause_s
        for number, record in enumerate(failing.records):
            if not self._tried(connection, partition, record, attempt, pause_s):
                left = _Failing(failing.records[number:], attempt + 1, min(2 * pause_s, LONGEST_PAUSE_S))
                reading.hold(partition, left, pause_s)
                return
            attempt, pause_s = 1, self._pause_s
        reading.release(partition)

    def _tried(
        self, connection: psycopg.Connection[Any], partition: Any, record: Any, attempt: int, pause_s: float
    ) -> bool:
        """Try an event; return false where it failed and is to be tried again."""
        try:
            event_of(record)
        except Exception as error:
            log.exception("%s stores a record that is not an event as a dead letter", self._name)
            with connection.transaction(), connection.cursor() as cursor:
                self._add_foreign_record(cursor, partition, record, f"{type(error).__name__}: {error}")
                self._move(cursor, partition, record.offset, record.offset + 1)
            return True
        try:
            with connection.transaction(), connection.cursor() as cursor:
                self._once(cursor, record)
                self._move(cursor, partition, record.offset, record.offset + 1)
        except _NOT_AN_EVENTS_FAULT:
            raise
        except Exception as error:
            _raise_if_closed(connection, error)
            reason = f"{type(error).__name__}: {error}"
            if attempt < self._attempts:
                log.warning("%s retries an event in %.1f s: %s", self._name, pause_s, _text(reason))
                return False
            log.exception("%s stores an event as a dead letter after %d attempts", self._name, attempt)
        else:
            return True
        with connection.transaction(), connection.cursor() as cursor:
            try:
                with connection.transaction():
                    self._add_dead_letter(cursor, record, reason)
            except psycopg.DataError:
                # It contains what PostgreSQL cannot store as text, such as U+0000. Sparkledger's events never do.
                self._add_foreign_record(cursor, partition, record, reason)
            self._move(cursor, partition, record.offset, record.offset + 1)
        return True

    def _once(self, cursor: psycopg.Cursor[Any], record: Any) -> None:
        event = event_of(record)
        if self._is_new(cursor, event):
            self._handle(cursor, event)

    def _is_new(self, cursor: psycopg.Cursor[Any], event: Event) -> bool:
        """Mark an event as done; return whether it was not done before, and check that none is missing before it."""
        self._check_history(cursor, event)
        cursor.execute(
            "INSERT INTO sparkledger_events (consumer, source, subject, version, id, sequence)"
            " VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
            (self._name, event.source, event.subject, event.stream_version, event.id, event.sequence),
        )
        if cursor.rowcount == 0:
            # The same position and the same version of its subject: either of them may be another event's now.
            cursor.execute(
                "SELECT id FROM sparkledger_events WHERE (consumer, source) = (%s, %s)"
                " AND ((subject, version) = (%s, %s) OR sequence = %s)",
                (self._name, event.source, event.subject, event.stream_version, event.sequence),
            )
            for done in cursor.fetchall():
                _raise_if_forked(event, done)
            return False
        cursor.execute(
            "SELECT last_id, version FROM sparkledger_streams WHERE (consumer, source, subject) = (%s, %s, %s)"
            " FOR UPDATE",
            (self._name, event.source, event.subject),
        )
        row = cursor.fetchone()
        version = row[1] if row else 0
        if event.stream_version <= version:
            # The row of this event was deleted as an old one, so only the id of the last event can be compared.
            if event.stream_version == version:
                _raise_if_forked(event, row)
            return False
        if event.stream_version != version + 1:
            message = (
                f"{event.subject} of {event.source} goes from version {version} to {event.stream_version}: events in "
                "between are missing. Read the topic from its beginning into empty tables, or find out what lost them."
            )
            raise Gap(message)
        cursor.execute(
            "INSERT INTO sparkledger_streams (consumer, source, subject, version, last_id) VALUES (%s, %s, %s, %s, %s)"
            " ON CONFLICT (consumer, source, subject)"
            " DO UPDATE SET version = excluded.version, last_id = excluded.last_id",
            (self._name, event.source, event.subject, event.stream_version, event.id),
        )
        return True

    def _check_history(self, cursor: psycopg.Cursor[Any], event: Event) -> None:
        """Raise where the ledger goes on as a history that nobody has accepted; the first one needs nobody."""
        history = event.attributes.get("ledgerhistory")
        if history is None:
            return
        cursor.execute(
            "SELECT bool_or(history = %s) FROM sparkledger_histories WHERE (consumer, source) = (%s, %s)",
            (history, self._name, event.source),
        )
        (accepted,) = cursor.fetchone() or (None,)
        if accepted is None:
            cursor.execute(
                "INSERT INTO sparkledger_histories (consumer, source, history) VALUES (%s, %s, %s)"
                " ON CONFLICT DO NOTHING",
                (self._name, event.source, history),
            )
        elif not accepted:
            message = (
                f"{event.source} goes on as history {history}: it was restored to an earlier state. Events that are "
                "done may no longer be in it. Let your tables follow, then call accept_history with this source and "
                "this history."
            )
            raise Forked(message)

    def _move(self, cursor: psycopg.Cursor[Any], partition: Any, first: int, next_offset: int) -> None:
        """Write the position in a partition, unless another process has read further than where this batch began."""
        cursor.execute(
            "INSERT INTO sparkledger_positions AS p (consumer, topic, partition, next_offset) VALUES (%s, %s, %s, %s)"
            " ON CONFLICT (consumer, topic, partition) DO UPDATE SET next_offset = excluded.next_offset"
            " WHERE p.next_offset <= %s",
            (self._name, partition.topic, partition.partition, next_offset, first),
        )
        if cursor.rowcount == 0:
            message = f"another process has read further in partition {partition.partition}"
            raise _Moved(message)

    def _add_dead_letter(self, cursor: psycopg.Cursor[Any], record: Any, reason: str) -> None:
        event = event_of(record)
        if self._is_new(cursor, event):
            headers = {name: value.decode() for name, value in record.headers}
            self._insert_dead_letter(cursor, event.source, event.id, headers, event.data, reason)

    def _add_foreign_record(self, cursor: psycopg.Cursor[Any], partition: Any, record: Any, reason: str) -> None:
        """Store a record that is not an event under its partition and offset, with its value as text."""
        headers = {_text(name): None if value is None else _text(value) for name, value in record.headers}
        data = None if record.value is None else _text(record.value)
        self._insert_dead_letter(
            cursor, partition.topic, f"{partition.partition}/{record.offset}", headers, data, reason
        )

    def _insert_dead_letter(
        self, cursor: psycopg.Cursor[Any], source: str, event_id: str, headers: Any, data: Any, reason: str
    ) -> None:
        cursor.execute(
            "INSERT INTO sparkledger_dead_letters (consumer, source, id, headers, data, reason)"
            " VALUES (%s, %s, %s, %s, %s, %s)"
            # A record of a deleted topic with the same name may have had this offset.
            " ON CONFLICT (consumer, source, id) DO UPDATE"
            " SET headers = excluded.headers, data = excluded.data, reason = excluded.reason, at = excluded.at",
            (
                *(self._name, source, event_id),
                *(json.dumps(headers), json.dumps(data), _text(reason)[:REASON_CHARACTERS_MAX]),
            ),
        )


def _raise_if_closed(connection: psycopg.Connection[Any], error: Exception) -> None:
    """Raise where the connection was lost, because the error is then not the event's fault.

    The class of the error does not show it: PostgreSQL also has operational errors for a lock that is not available, or
    a value that is too long for an index.
    """
    if connection.closed:
        message = f"the connection was lost: {error}"
        raise psycopg.OperationalError(message) from error


def _raise_if_forked(event: Event, done: Any) -> None:
    """Raise where the event that is done at a version, whose id is first in the given row, is another one."""
    if done is not None and done[0] != event.id:
        message = (
            f"Version {event.stream_version} of {event.subject} of {event.source}, or position {event.sequence}, was "
            f"done as {done[0]} and is {event.id} now: the ledger was restored to an earlier state, or is another one. "
            "Later events that are done are no longer in its history. Read the topic from its beginning into empty "
            "tables, or restore the newer ledger."
        )
        raise Forked(message)


def _connected(kafka: Mapping[str, Any]) -> Any:
    """Connect; where that fails, end the client's thread, which would otherwise go on trying beside the next one."""
    started: list[Any] = []

    def client(**settings: Any) -> Any:
        started.append(KafkaNetClient(**settings))
        return started[-1]

    try:
        return KafkaConsumer(**kafka, kafka_client=client)
    except BaseException:
        for left in started:
            left.close()
        raise


@dataclass(frozen=True)
class _Failing:
    """Records of a partition, the first of which has failed: its next attempt, and the pause after that."""

    records: Sequence[Any]
    attempt: int
    pause_s: float


class _Reading(ConsumerRebalanceListener):  # type: ignore[misc] # its base has no types
    """The partitions that Kafka assigns to this process, from the positions in the database on.

    A partition whose event has failed is paused until its next attempt; the others are read.
    """

    def __init__(self, consumer: Any, connection: psycopg.Connection[Any], name: str) -> None:
        self._consumer = consumer
        self._connection = connection
        self._name = name
        self._failed: Exception | None = None
        self._held: dict[Any, tuple[float, _Failing]] = {}

    def poll(self) -> Mapping[Any, Sequence[Any]]:
        """Return the next records of each partition.

        Raises:
            psycopg.OperationalError: the database was unavailable when partitions were assigned.

        """
        due_ms = [1000 * (due - time.monotonic()) for due, _ in self._held.values()]
        timeout_ms = max(0, min([POLL_MS, *due_ms]))
        polled: Mapping[Any, Sequence[Any]] = self._consumer.poll(timeout_ms=timeout_ms)
        if self._failed is not None:
            # The records may begin at any offset, so they are not used.
            raise self._failed
        return polled

    def hold(self, partition: Any, failing: _Failing, pause_s: float) -> None:
        """Read nothing more of a partition until the first of these records has had its next attempt."""
        self._consumer.pause(partition)
        self._held[partition] = time.monotonic() + pause_s, failing

    def due(self) -> list[tuple[Any, _Failing]]:
        """Return what is to be tried again now."""
        now = time.monotonic()
        return [(partition, failing) for partition, (due, failing) in self._held.items() if due <= now]

    def release(self, partition: Any) -> None:
        """Read on in a partition."""
        if self._held.pop(partition, None) is not None:
            self._consumer.resume(partition)

    def on_partitions_revoked(self, revoked: Any) -> None:
        """Forget what waits: positions are in the database, and anyone who reads on begins there."""
        for partition in revoked:
            self._held.pop(partition, None)

    def on_partitions_assigned(self, assigned: Any) -> None:
        try:
            self._seek(assigned)
        except Exception as error:  # noqa: BLE001 - Kafka's client would replace it by an error of its own
            self._failed = error

    def _seek(self, assigned: Any) -> None:
        for partition in assigned:
            row = self._connection.execute(
                "SELECT next_offset FROM sparkledger_positions WHERE (consumer, topic, partition) = (%s, %s, %s)",
                (self._name, partition.topic, partition.partition),
            ).fetchone()
            self._connection.commit()
            # Of a partition that this process had before, the client remembers that it was paused.
            self._held.pop(partition, None)
            self._consumer.resume(partition)
            if row is None:
                self._consumer.seek_to_beginning(partition)
            else:
                self._consumer.seek(TopicPartition(partition.topic, partition.partition), row[0])


def event_of(record: Any) -> Event:
    """Return the event of a Kafka record in CloudEvents' binary mode."""
    return _event({name: value.decode() for name, value in record.headers}, json.loads(record.value))


def _text(value: str | bytes) -> str:
    """Return any value as text that PostgreSQL can store."""
    encoded = value.encode("utf-8", "replace") if isinstance(value, str) else value
    return encoded.decode("utf-8", "replace").replace("\0", "\ufffd")


def _event(headers: Mapping[str, str], data: Any) -> Event:
    if not isinstance(data, dict):
        message = "the value is not a JSON object"
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
