"""The publisher to Kafka: `read_committed` readers see every event of its ledgers once and in order.

    waiting ──gets the lease──▶ ready ──one transaction for each page──▶ publishing …
       ▲                          │ on any failure: abandon the producer, release the lease
       └──────────────────────────┘ pause, and start again

The order of the first steps makes this correct:

1. A lease in PostgreSQL, so that publishers do not compete. A publisher that is frozen loses it by time.
2. A new producer. Its `init_transactions` fences every older producer, which can commit nothing more.
3. Only then the progress of each ledger, read from Kafka up to the last stable offset. It was written in the same
   transactions as the events, and names the last event by its id. If the log has another event at that position,
   publishing stops and says what to do, because going on would give subscribers another history.

Each transaction contains a page of events, the new states of their codes, and the progress. Where it is unknown whether
a transaction was committed, the next start reads it from Kafka.
"""

from __future__ import annotations

import logging
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import orjson
import psycopg

from infra.delivery.kafka.connection import (
    BrokerRefused,
    KafkaError,
    Producer,
    classified_errors,
    client_options,
    compression,
    is_empty,
    last_values,
)
from infra.delivery.kafka.lease import Lease, LeaseLost
from infra.delivery.kafka.publication_status import OF_DESTINATION, PublicationStatusWriter, destinations
from infra.delivery.kafka.records import HistoryContinued, RecordReader, UnpublishableEvent
from infra.delivery.kafka.topics import TopicProblem, events_topic, progress_topic, state_topic, topics
from infra.postgres.pool import session
from infra.postgres.roles import WORKER
from infra.postgres.single_thread_executor import SingleThreadExecutor
from infra.postgres.timelines import ServerConnection
from projections.engine.array_columns import Bigints, Ints

if TYPE_CHECKING:
    from collections.abc import Mapping

    from infra.delivery.kafka.publication_status import Destination, PublicationState
    from infra.delivery.kafka.topics import Topic
    from infra.settings import Settings

# Between attempts to get the lease, and between reads of the log without a notification.
POLL_S: Final = 1.0
# The first pause after a failure, and the longest. After a problem that a person must fix, it is always the longest.
RETRY_FIRST_S: Final = 0.5
RETRY_LONGEST_S: Final = 10.0

_LEDGERS: Final = f"""
    SELECT l.name, l.ledger_id, coalesce((SELECT max(e.position) FROM events e WHERE e.ledger_id = l.ledger_id), 0)
    FROM ledgers l
    WHERE {OF_DESTINATION}
"""

_ARRIVED: Final = f"""
    SELECT l.ledger_id, r.source_number, r.fenced
    FROM arrivals r
    JOIN ledgers l ON l.ledger_id = r.ledger_id
    WHERE {OF_DESTINATION}
"""

_EVENT_AT: Final = "SELECT event_id FROM events WHERE ledger_id = %s AND position = %s"

_STATE_EXPECTED: Final = """
    SELECT EXISTS (
        SELECT
        FROM unnest(%b, %b) AS published (ledger_id, position)
        JOIN events e ON e.ledger_id = published.ledger_id AND e.position <= published.position
        WHERE e.stream_id <> e.creator_stream
          AND NOT EXISTS (
              SELECT FROM events n
              WHERE n.ledger_id = e.ledger_id AND n.stream_id = e.stream_id AND n.version = e.version + 1
          )
    )
"""

log = logging.getLogger(__name__)


class ProgressMismatch(Exception):
    """The progress in Kafka does not match the log."""


# Problems that a person must fix. Retries do not help until then.
_NEEDS_A_PERSON: Final = (BrokerRefused, TopicProblem, ProgressMismatch, UnpublishableEvent)


class Publisher:
    """Publishes the ledgers of one destination, in a thread of its own."""

    def __init__(
        self,
        conninfo: str,
        destination: Destination,
        options: Mapping[str, Any],
        *,
        replication_factor: int = -1,
        compression: str | None = None,
        public_url: str | None = None,
    ) -> None:
        """Prepare the publisher; `start` starts it.

        Args:
            conninfo: the database, with a login that has the worker's role or may take it.
            destination: the ledgers, and the prefix of their topics.
            options: the connection to Kafka, from `infra.delivery.kafka.connection.client_options`.
            replication_factor: the copies of topics that are created; -1 leaves that to the brokers.
            compression: how records are compressed; None for not at all.
            public_url: where the API is reached, if known.

        """
        self._conninfo = conninfo
        self._destination = destination
        self._options = options
        self._replication_factor = replication_factor
        self._compression = compression
        self._public_url = public_url
        self._events = events_topic(destination.prefix)
        self._state = state_topic(destination.prefix)
        self._progress = progress_topic(destination.prefix)
        self._stopping = threading.Event()
        self._woken = threading.Event()
        self._pause_s = RETRY_FIRST_S
        self._logged = ""
        self._thread = threading.Thread(target=self._run, name=f"publisher of {destination.prefix}", daemon=True)

    def start(self) -> None:
        """Start publishing."""
        self._thread.start()

    def wake(self) -> None:
        """Read the log now, because an event was committed."""
        self._woken.set()

    def stop(self, timeout_s: float) -> None:
        """End after the current transaction. If that takes longer, its thread is left to end with the process."""
        self._stopping.set()
        self._woken.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with (
                    Lease(self._conninfo, self._destination.prefix) as lease,
                    ServerConnection.connect(**session(self._conninfo, WORKER)) as connection,
                ):
                    # The status is a copy for people, so it may be lost.
                    connection.execute("SET synchronous_commit = off")
                    self._publish_while_leading(connection, lease)
            except psycopg.OperationalError as error:
                self._log_change(logging.WARNING, f"is waiting for the database: {' '.join(str(error).split())}")
            except Exception:
                # A defect must not end the thread silently.
                log.exception("Publishing to %s failed and is restarted", self._destination.prefix)
            self._stopping.wait(self._pause_s)
            self._pause_s = min(2 * self._pause_s, RETRY_LONGEST_S)

    def _publish_while_leading(self, connection: psycopg.Connection[Any], lease: Lease) -> None:
        """Wait for the lease, and publish until something fails; write the failure to the status."""
        status = PublicationStatusWriter(connection, self._destination)
        while not self._stopping.is_set():
            if lease.take():
                break
            self._stopping.wait(POLL_S)
        else:
            return
        try:
            status.register_ledgers()
            with classified_errors():
                self._publish(connection, status, lease)
        except LeaseLost:
            self._log_change(logging.WARNING, "was taken over by another process")
        except HistoryContinued as continued:
            # The next start compares what is published with the log.
            self._log_change(logging.WARNING, f"starts again. {continued}")
        except _NEEDS_A_PERSON as error:
            self._pause_s = RETRY_LONGEST_S
            self._failed(status, lease, "stopped", logging.ERROR, f"has stopped. {error}")
        except KafkaError as error:
            self._failed(status, lease, "retrying", logging.WARNING, f"is retried: {_explained(error)}")

    def _publish(self, connection: psycopg.Connection[Any], status: PublicationStatusWriter, lease: Lease) -> None:
        log_reader = RecordReader(connection, self._destination, public_url=self._public_url)
        with topics(self._options, self._replication_factor) as checked:
            checked.ensure([self._progress])
        row = connection.execute("SELECT number FROM this_server").fetchone()
        several = row is not None
        producer = Producer(self._options, self._transactional_id(0 if row is None else row[0]), self._compression)
        read_ahead = SingleThreadExecutor(f"reader for {self._destination.prefix}")
        try:
            arrived = self._arrived(connection) if several else {}
            self._fence_sources(arrived)
            # A ledger that came from another server is read once it is known how far that has published it.
            positions = dict.fromkeys(arrived, 0) | self._resume(connection)
            if arrived:
                connection.execute("UPDATE arrivals SET fenced = true WHERE ledger_id = ANY (%s)", (list(arrived),))
            self._woken.clear()
            # Before the status says `publishing`, because an event that cannot be read would stop publishing at once.
            page = log_reader.page(positions)
            status.advance(positions)
            status.mark_publishing()
            self._log_change(logging.INFO, "is done by this process")
            while not self._stopping.is_set():
                lease.require()
                while page.records and not self._stopping.is_set():
                    lease.require()
                    # The next page is read while this one is sent.
                    self._woken.clear()
                    positions |= page.positions
                    next_page = read_ahead.begin(partial(log_reader.page, dict(positions)))
                    producer.commit(page.records)
                    status.advance(page.positions)
                    self._pause_s = RETRY_FIRST_S
                    page = next_page.result()
                self._woken.wait(POLL_S)
                self._woken.clear()
                if several and self._arrived(connection).keys() - positions.keys():
                    raise HistoryContinued("A ledger has come from another server.")
                page = log_reader.page(positions)
        finally:
            read_ahead.leave()
            producer.abandon()

    def _transactional_id(self, server: int) -> str:
        """Return the id by which the publishers of a destination fence each other: those of one server alone."""
        return f"{self._destination.prefix}.publisher" + (f".{server}" if server else "")

    def _arrived(self, connection: psycopg.Connection[Any]) -> dict[int, tuple[int, bool]]:
        """Return the ledgers that came from other servers: the number of each server, and whether it was fenced."""
        rows = connection.execute(_ARRIVED, self._destination.parameters).fetchall()
        return {ledger_id: (server, fenced) for ledger_id, server, fenced in rows}

    def _fence_sources(self, arrived: Mapping[int, tuple[int, bool]]) -> None:
        """End what the publishers of other servers have begun, of ledgers that came from there.

        They go on with their other ledgers. What they have published of these is known then, and not published again.
        """
        for server in sorted({server for server, fenced in arrived.values() if not fenced}):
            Producer(self._options, self._transactional_id(server), self._compression).abandon()

    def _resume(self, connection: psycopg.Connection[Any]) -> dict[int, int]:
        """Return how far each ledger is published. Older producers must be fenced before.

        Raises:
            ProgressMismatch, TopicProblem: a person must decide.
            KafkaError: the brokers cannot be reached.

        """
        progress = last_values(self._options, self._progress.name)
        with topics(self._options, self._replication_factor) as checked:
            checked.ensure([self._events, self._state], missing=self._reason_not_to_create(progress))
        # Progress is written only together with events.
        empty = is_empty(self._options, self._events.name)
        if not progress and not empty:
            message = (
                f"Topic {self._events.name} contains events, but {self._progress.name} does not say how far they "
                f"go. {self._remedy}"
            )
            raise ProgressMismatch(message)
        if progress and empty:
            raise ProgressMismatch(self._emptied(self._events))
        positions = {}
        for name, ledger_id, head in connection.execute(_LEDGERS, self._destination.parameters).fetchall():
            value = progress.get(name.encode())
            if value is not None:
                positions[ledger_id] = self._checked(connection, name, ledger_id, head, orjson.loads(value))
        if positions and is_empty(self._options, self._state.name) and _state_expected(connection, positions):
            raise ProgressMismatch(self._emptied(self._state))
        return positions

    def _checked(
        self, connection: psycopg.Connection[Any], name: str, ledger_id: int, head: int, progress: Mapping[str, Any]
    ) -> int:
        """Return the position of the progress, if the log has the event there that the progress names."""
        position = int(progress["position"])
        if position > head:
            message = (
                f"Ledger {name} is published up to position {position} but ends at {head}. This database was "
                f"restored to an earlier state, or it is another database. {self._remedy}"
            )
            raise ProgressMismatch(message)
        row = connection.execute(_EVENT_AT, (ledger_id, position)).fetchone()
        if row is None or row[0] != UUID(progress["event_id"]):
            message = (
                f"The event at position {position} of ledger {name} is not the published one. This database was "
                f"restored to an earlier state and then written to, or it is another database. {self._remedy}"
            )
            raise ProgressMismatch(message)
        return position

    def _reason_not_to_create(self, progress: Mapping[bytes, bytes]) -> str:
        if not progress:
            return ""
        return f"{self._progress.name} says that it had events. {self._remedy}"

    def _emptied(self, topic: Topic) -> str:
        return (
            f"Topic {topic.name} is empty, but {self._progress.name} says that it had records. It was emptied, or "
            f"deleted and created again. {self._remedy}"
        )

    @property
    def _remedy(self) -> str:
        names = ", ".join(topic.name for topic in (self._events, self._state, self._progress))
        return (
            "Restore what is missing. Or publish everything again: under another prefix in "
            f"SPARKLEDGER_KAFKA_LEDGERS, or after deleting {names}."
        )

    def _failed(
        self, status: PublicationStatusWriter, lease: Lease, state: PublicationState, level: int, change: str
    ) -> None:
        self._log_change(level, change)
        # Of one who was fenced, the status says nothing: it is another one's.
        if lease.held:
            status.mark_failed(state, change)

    def _log_change(self, level: int, change: str) -> None:
        """Log a change once, and not again while nothing changes."""
        if change != self._logged:
            log.log(level, "Publishing to %s %s", self._destination.prefix, change)
            self._logged = change


def publishers(conninfo: str, settings: Settings) -> list[Publisher]:
    """Return a publisher for each destination of the settings; none where the settings name no Kafka.

    `conninfo` is the database, with a login that has the worker's role or may take it.
    """
    if not settings.kafka_bootstrap_servers:
        return []
    options = client_options(settings)
    return [
        Publisher(
            conninfo,
            destination,
            options,
            replication_factor=settings.kafka_replication_factor,
            compression=compression(settings),
            public_url=settings.public_url,
        )
        for destination in destinations(settings.kafka_ledgers)
    ]


def _state_expected(connection: psycopg.Connection[Any], positions: Mapping[int, int]) -> bool:
    """Return whether the topic of states must contain a state when ledgers are published that far.

    The state of a code that changes again further on in the log may not be published yet.
    """
    columns = (Ints(list(positions)), Bigints(list(positions.values())))
    row = connection.execute(_STATE_EXPECTED, columns, binary=True).fetchone()
    return row is not None and bool(row[0])


def _explained(error: KafkaError) -> str:
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if "bootstrap" not in text:
        return text
    # Some brokers answer a wrong login by closing the connection.
    return (
        f"Kafka cannot be reached, or closes the connection ({text}). Check that it is running, and check "
        "SPARKLEDGER_KAFKA_BOOTSTRAP_SERVERS, SPARKLEDGER_KAFKA_SECURITY_PROTOCOL, "
        "SPARKLEDGER_KAFKA_SASL_USERNAME and its password."
    )
