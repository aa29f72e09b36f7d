"""Publishes ledgers to Kafka: every event once, in order, to whoever reads what is committed.

    waiting ──wins the lease──▶ ready ──a page, a transaction──▶ publishing …
       ▲                          │ whatever goes wrong: the producer is abandoned, the lease let go
       └──────────────────────────┘ wait, and begin again

The order of beginning is its correctness. First the lease, an advisory lock in PostgreSQL, which spares fights. Then a
new producer, whose `init_transactions` fences every older one: from there on nothing of theirs can be committed. Only
then is read how far the ledgers are published, from the progress that stands in the transactions of the events
themselves, up to the stable end. It names the last event by its id, and the log must have that event at that position;
where it does not, publishing stops and says what to do, for going on would tell subscribers another history.

The page's events, the codes' new states and the progress are one transaction. What is not known to be committed is
asked for again by the next beginning, never assumed.
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
    is_empty,
    last_values,
)
from infra.delivery.kafka.publication_status import OF_DESTINATION, PublicationStatusWriter, destinations
from infra.delivery.kafka.records import RecordReader, UnreadableEvent
from infra.delivery.kafka.topics import TopicProblem, events_topic, progress_topic, state_topic, topics
from infra.postgres.pool import session
from infra.postgres.single_thread_executor import SingleThreadExecutor
from infra.processes.runtime import WORKER
from projections.engine.advisory_locks import AdvisoryLock
from projections.engine.array_columns import Bigints, Ints

if TYPE_CHECKING:
    from collections.abc import Mapping

    from infra.delivery.kafka.publication_status import Destination, PublicationState
    from infra.delivery.kafka.topics import Topic
    from infra.settings import Settings

# Between attempts to lead, and between looks at the log by a publisher that nobody wakes.
POLL_S: Final = 1.0
# After a failure: the first pause, and the longest. After a stop that a person must mend: always the longest.
RETRY_FIRST_S: Final = 0.5
RETRY_LONGEST_S: Final = 10.0

_LEAD: Final = "SELECT pg_try_advisory_lock(%s, hashtext(%s))"

_LEDGERS: Final = f"""
    SELECT l.name, l.ledger_id, coalesce((SELECT max(e.position) FROM events e WHERE e.ledger_id = l.ledger_id), 0)
    FROM ledgers l
    WHERE {OF_DESTINATION}
"""

_EVENT_AT: Final = "SELECT event_id FROM events WHERE ledger_id = %s AND position = %s"

_TOLD: Final = """
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
    """What Kafka says of how far a ledger is published does not fit the log."""


# What a person must mend: trying again changes nothing until then.
_STOPPED: Final = (BrokerRefused, TopicProblem, ProgressMismatch, UnreadableEvent)


class Publisher:
    """Publishes one destination's ledgers, in a thread of its own, for as long as it runs."""

    def __init__(
        self, conninfo: str, destination: Destination, options: Mapping[str, Any], *, replication_factor: int = -1
    ) -> None:
        """Prepare; `start` begins.

        Args:
            conninfo: the database, as a login that is or may become the worker's role.
            destination: which ledgers, and to which topics.
            options: how Kafka is reached, from `infra.delivery.kafka.connection.client_options`.
            replication_factor: copies of topics that are created; -1 leaves it to the brokers.

        """
        self._conninfo = conninfo
        self._destination = destination
        self._options = options
        self._replication_factor = replication_factor
        self._events = events_topic(destination.prefix)
        self._state = state_topic(destination.prefix)
        self._progress = progress_topic(destination.prefix)
        self._stopping = threading.Event()
        self._woken = threading.Event()
        self._pause_s = RETRY_FIRST_S
        self._said = ""
        self._thread = threading.Thread(target=self._run, name=f"publisher of {destination.prefix}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """Tell that something was committed."""
        self._woken.set()

    def stop(self, timeout_s: float) -> None:
        """End after the transaction under way; one that takes longer is left behind with its thread."""
        self._stopping.set()
        self._woken.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with psycopg.connect(**session(self._conninfo, WORKER)) as connection:
                    # What it writes down is a copy for people.
                    connection.execute("SET synchronous_commit = off")
                    self._lead(connection)
            except psycopg.OperationalError as error:
                self._say(logging.WARNING, f"is waiting for the database: {' '.join(str(error).split())}")
            except Exception:
                # Its own defect must not end it silently.
                log.exception("Publishing to %s failed and is restarted", self._destination.prefix)
            self._stopping.wait(self._pause_s)
            self._pause_s = min(2 * self._pause_s, RETRY_LONGEST_S)

    def _lead(self, connection: psycopg.Connection[Any]) -> None:
        """Wait for the lease, and publish while it holds; whatever goes wrong with Kafka is written down."""
        standing = PublicationStatusWriter(connection, self._destination)
        while not self._stopping.is_set():
            won = connection.execute(_LEAD, (AdvisoryLock.KAFKA_PUBLISHER, self._destination.prefix)).fetchone()
            if won is not None and won[0]:
                break
            self._stopping.wait(POLL_S)
        else:
            return
        try:
            standing.meet()
            with classified_errors():
                self._publish(connection, standing)
        except _STOPPED as error:
            self._failed(standing, "stopped", logging.ERROR, f"has stopped. {error}")
            self._pause_s = RETRY_LONGEST_S
        except KafkaError as error:
            self._failed(standing, "retrying", logging.WARNING, f"is retried: {_in_words(error)}")

    def _publish(self, connection: psycopg.Connection[Any], standing: PublicationStatusWriter) -> None:
        outgoing = RecordReader(connection, self._destination)
        with topics(self._options, self._replication_factor) as found:
            found.ensure([self._progress])
        producer = Producer(self._options, f"{self._destination.prefix}.publisher")
        reader = SingleThreadExecutor(f"reader for {self._destination.prefix}")
        try:
            positions = self._resume(connection)
            self._woken.clear()
            # Before it is said that all is well: an event that cannot be read would only stop it again.
            page = outgoing.page(positions)
            standing.advance(positions)
            standing.go_on()
            self._say(logging.INFO, "is done by this process")
            while not self._stopping.is_set():
                while page.messages and not self._stopping.is_set():
                    # The next page is read while this one is on its way.
                    self._woken.clear()
                    positions |= page.positions
                    ahead = reader.begin(partial(outgoing.page, dict(positions)))
                    producer.commit(page.messages)
                    standing.advance(page.positions)
                    self._pause_s = RETRY_FIRST_S
                    page = ahead.result()
                self._woken.wait(POLL_S)
                self._woken.clear()
                page = outgoing.page(positions)
        finally:
            reader.leave()
            producer.abandon()

    def _resume(self, connection: psycopg.Connection[Any]) -> dict[int, int]:
        """Return how far each ledger is published, once it is certain that nobody else can still publish.

        Raises:
            ProgressProblem, TopicProblem: a person must decide.
            KafkaError: the brokers cannot be reached.

        """
        progress = last_values(self._options, self._progress.name)
        with topics(self._options, self._replication_factor) as found:
            found.ensure([self._events, self._state], missing=self._why_not_to_create(progress))
        # Progress is written with events, and with nothing else.
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
            said = progress.get(name.encode())
            if said is not None:
                positions[ledger_id] = self._checked(connection, name, ledger_id, head, orjson.loads(said))
        if positions and is_empty(self._options, self._state.name) and _has_told(connection, positions):
            raise ProgressMismatch(self._emptied(self._state))
        return positions

    def _checked(
        self, connection: psycopg.Connection[Any], name: str, ledger_id: int, head: int, said: Mapping[str, Any]
    ) -> int:
        """Return the position that progress names, if the log has the event there that progress names too."""
        position = int(said["position"])
        if position > head:
            message = (
                f"Ledger {name} is published up to position {position} but ends at {head}. This database was "
                f"restored to an earlier state, or it is another database. {self._remedy}"
            )
            raise ProgressMismatch(message)
        row = connection.execute(_EVENT_AT, (ledger_id, position)).fetchone()
        if row is None or row[0] != UUID(said["event_id"]):
            message = (
                f"The event at position {position} of ledger {name} is not the published one. This database was "
                f"restored to an earlier state and then written to, or it is another database. {self._remedy}"
            )
            raise ProgressMismatch(message)
        return position

    def _why_not_to_create(self, progress: Mapping[bytes, bytes]) -> str:
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

    def _failed(self, standing: PublicationStatusWriter, state: PublicationState, level: int, what: str) -> None:
        self._say(level, what)
        standing.fail(state, what)

    def _say(self, level: int, what: str) -> None:
        """Log a change, and not each time that nothing has changed."""
        if what != self._said:
            log.log(level, "Publishing to %s %s", self._destination.prefix, what)
            self._said = what


def publishers(conninfo: str, settings: Settings) -> list[Publisher]:
    """Return a publisher for each destination of the settings; none where no Kafka is named.

    `conninfo` is the database, as a login that is or may become the worker's role.
    """
    if not settings.kafka_bootstrap_servers:
        return []
    options = client_options(settings)
    return [
        Publisher(conninfo, destination, options, replication_factor=settings.kafka_replication_factor)
        for destination in destinations(settings.kafka_ledgers)
    ]


def _has_told(connection: psycopg.Connection[Any], positions: Mapping[int, int]) -> bool:
    """Tell whether the topic of states must hold a code's, when ledgers are published that far.

    A code that changes again further on may not have been told of yet, and then is told of when that is published.
    """
    columns = (Ints(list(positions)), Bigints(list(positions.values())))
    row = connection.execute(_TOLD, columns, binary=True).fetchone()
    return row is not None and bool(row[0])


def _in_words(error: KafkaError) -> str:
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if "bootstrap" not in said:
        return said
    # A broker may hang up on a wrong login without a word that its client would hear.
    return (
        f"Kafka cannot be reached, or closes the connection ({said}). Check that it is running, and check "
        "SPARKLEDGER_KAFKA_BOOTSTRAP_SERVERS, SPARKLEDGER_KAFKA_SECURITY_PROTOCOL, "
        "SPARKLEDGER_KAFKA_SASL_USERNAME and its password."
    )
