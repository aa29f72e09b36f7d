"""The log as Kafka records: pages of events after given positions, as records for the three topics."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

import orjson
import psycopg

from domain.code import replay_code
from domain.creator import Creator
from infra.delivery.cloud_events import binary_headers, cloud_event
from infra.delivery.kafka.code_state import CodeStates, state_json
from infra.delivery.kafka.connection import KafkaRecord, partition_of
from infra.delivery.kafka.publication_status import OF_DESTINATION
from infra.delivery.kafka.topics import PARTITIONS, events_topic, progress_topic, state_topic
from infra.eventstore.reader import COLUMNS, to_recorded
from infra.eventstore.serialization import UnreadableEvent
from projections.engine.array_columns import Bigints, Ints, Uuids

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet
    from uuid import UUID

    from domain.recorded import RecordedEvent
    from infra.delivery.kafka.publication_status import Destination

# The largest number of events in one transaction. A transaction waits for a few milliseconds, which many events share.
PAGE_EVENTS_MAX: Final = 3_000

_STATE_HEADERS: Final = [("content-type", b"application/json")]

_AFTER: Final = (
    """
    SELECT l.ledger_id, l.name, e.traceparent,
           NOT EXISTS (
               SELECT FROM events n
               WHERE n.ledger_id = e.ledger_id AND n.stream_id = e.stream_id AND n.version = e.version + 1
           ),
    """
    + COLUMNS
    + f"""
    FROM ledgers l
    LEFT JOIN unnest(%b, %b) AS known (ledger_id, position) ON known.ledger_id = l.ledger_id
    LEFT JOIN anchored_ledgers a ON a.ledger_id = l.ledger_id
    LEFT JOIN history_checks c ON c.ledger_id = l.ledger_id AND c.database = (SELECT database_identity())
    LEFT JOIN arrivals r ON r.ledger_id = l.ledger_id
    CROSS JOIN LATERAL (
        SELECT * FROM events e
        WHERE e.ledger_id = l.ledger_id AND e.position > coalesce(known.position, 0)
        ORDER BY e.position
        LIMIT %b
    ) e
    WHERE {OF_DESTINATION}
    -- Until it is decided what holds, nothing is handed out of a ledger that may have lost events.
    AND CASE WHEN c.ledger_id IS NULL THEN a.ledger_id IS NULL ELSE c.problem IS NULL END
    -- How far another server has published a ledger that came from there is read in Kafka first.
    AND (r.ledger_id IS NULL OR known.ledger_id IS NOT NULL)
    ORDER BY l.ledger_id, e.position
    LIMIT %b
"""
)

# Asked after a page was read: what is published, no failover may lose, because progress names it.
_HISTORIES: Final = """
    SELECT DISTINCT ON (h.ledger_id) h.ledger_id, h.history, (SELECT confirm_commits())
    FROM histories h
    WHERE h.ledger_id = ANY (%b)
    ORDER BY h.ledger_id, h.generation DESC
"""

_ERASED: Final = """
    SELECT stream_id
    FROM events
    WHERE ledger_id = %b AND stream_id = ANY (%b) AND position <= %b AND type = 'CreatorErased'
"""

_OF_CREATORS: Final = (
    "SELECT"
    + COLUMNS
    + """
    FROM (
        SELECT * FROM events
        WHERE ledger_id = %b AND creator_stream = ANY (%b) AND type = 'CodeGenerated' AND position <= %b
        ORDER BY position
    ) g
    CROSS JOIN LATERAL (
        SELECT * FROM events e
        WHERE e.ledger_id = g.ledger_id AND e.stream_id = g.stream_id AND e.position <= %b
        ORDER BY e.version
    ) e
    ORDER BY g.position, e.version
"""
)

_BEFORE_VERSIONS: Final = (
    "SELECT"
    + COLUMNS
    + """
    FROM unnest(%b, %b) AS x (stream_id, version)
    CROSS JOIN LATERAL (
        SELECT * FROM events e
        WHERE e.ledger_id = %b AND e.stream_id = x.stream_id AND e.version < x.version
        ORDER BY e.version
    ) e
"""
)


class UnpublishableEvent(Exception):
    """An event that this version of the program cannot read, and so cannot publish."""


class HistoryContinued(Exception):
    """A ledger goes on as another history than at the start, so its progress must be compared with the log again."""


@dataclass(slots=True)
class RecordPage:
    """Records to be published together, and the last position of each ledger among them."""

    records: list[KafkaRecord] = field(default_factory=list)
    positions: dict[int, int] = field(default_factory=dict)


class RecordReader:
    """Reads the events of a destination's ledgers, with the worker's role."""

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        destination: Destination,
        *,
        page_events: int = PAGE_EVENTS_MAX,
        public_url: str | None = None,
    ) -> None:
        """Take the publisher's connection, and where the API is reached, if that is known."""
        self._cursor = connection.cursor(binary=True)
        self._destination = destination
        self._page_events = page_events
        self._public_url = public_url
        # The history of each ledger when it was first read.
        self._known_histories: dict[int, UUID] = {}
        self._states = CodeStates(self._streams_before)
        self._events = events_topic(destination.prefix).name
        self._state = state_topic(destination.prefix).name
        self._progress = progress_topic(destination.prefix).name

    def page(self, positions: Mapping[int, int]) -> RecordPage:
        """Return the records after the given positions, by ledger and then by position; none where there are no events.

        Raises:
            UnpublishableEvent: the first event cannot be read. A later one ends the page before it.
            HistoryContinued: the positions may be of another history.
            psycopg.OperationalError: the database is unavailable.

        """
        self._known_histories |= self._histories(positions.keys() - self._known_histories.keys())
        known = (Ints(list(positions)), Bigints(list(positions.values())))
        limit = self._page_events
        self._cursor.execute(_AFTER, (*known, limit, *self._destination.parameters, limit), prepare=True)
        page = RecordPage()
        found = self._cursor.fetchall()
        histories = self._histories({row[0] for row in found})
        for (ledger_id, ledger_name), rows in groupby(found, key=itemgetter(0, 1)):
            history = histories[ledger_id]
            if self._known_histories.setdefault(ledger_id, history) != history:
                message = f"Ledger {ledger_name} goes on as another history."
                raise HistoryContinued(message)
            read: list[RecordedEvent] = []
            newest: set[int] = set()
            try:
                for row in rows:
                    recorded = _decode(ledger_name, row)
                    page.records.append(self._event_record(recorded, ledger_name, history, row[2], row[-1]))
                    read.append(recorded)
                    if row[3]:
                        newest.add(recorded.position)
            except UnpublishableEvent:
                if not page.records:
                    raise
            if read:
                page.records += self._state_records(ledger_id, ledger_name, read, newest)
                page.records.append(self._progress_record(ledger_name, history, read[-1]))
                page.positions[ledger_id] = read[-1].position
        self._states.evict()
        return page

    def _event_record(
        self, recorded: RecordedEvent, ledger_name: str, history: UUID, traceparent: str | None, stored: bytes
    ) -> KafkaRecord:
        event = cloud_event(
            recorded, ledger_name, history, traceparent=traceparent, stored=stored, public_url=self._public_url
        )
        key = event.key.encode()
        partition = partition_of(key, PARTITIONS)
        return KafkaRecord(self._events, partition, key, event.data, binary_headers(event), _timestamp_ms(recorded))

    def _state_records(
        self, ledger_id: int, ledger_name: str, read: Sequence[RecordedEvent], newest: AbstractSet[int]
    ) -> Iterator[KafkaRecord]:
        published = self._states.apply(ledger_id, read, newest)
        upto = read[-1].position
        erased = self._erased(ledger_id, {last.creator_stream for last in published}, upto)
        for last in published:
            content = self._states.content(ledger_name, last, creator_erased=last.creator_stream in erased)
            yield self._state_record(last, content)
        erased_now = {recorded.stream_id for recorded in read if isinstance(recorded.event, Creator.Erased)}
        if erased_now:
            told = {last.stream_id for last in published}
            for stream in self._streams_of_creators(ledger_id, erased_now, upto):
                if stream[-1].stream_id not in told:
                    content = state_json(replay_code(stream), ledger_name, stream[-1], creator_erased=True)
                    yield self._state_record(stream[-1], content)

    def _state_record(self, last: RecordedEvent, content: bytes) -> KafkaRecord:
        key = str(last.stream_id).encode()
        return KafkaRecord(
            self._state, partition_of(key, PARTITIONS), key, content, _STATE_HEADERS, _timestamp_ms(last)
        )

    def _erased(self, ledger_id: int, creators: AbstractSet[UUID], upto: int) -> AbstractSet[UUID]:
        """Return which creators are erased, by what is published."""
        if not creators:
            return frozenset()
        self._cursor.execute(_ERASED, (ledger_id, Uuids(list(creators)), upto), prepare=True)
        return {row[0] for row in self._cursor.fetchall()}

    def _streams_of_creators(
        self, ledger_id: int, creators: AbstractSet[UUID], upto: int
    ) -> Iterator[Sequence[RecordedEvent]]:
        """Yield the streams of all codes of some creators, as far as they are published."""
        self._cursor.execute(_OF_CREATORS, (ledger_id, Uuids(list(creators)), upto, upto), prepare=True)
        # By place: a row becomes an event only where its code's turn has come.
        for _, rows in groupby(self._cursor.fetchall(), key=itemgetter(4)):
            yield [to_recorded(row) for row in rows]

    def _progress_record(self, ledger_name: str, history: UUID, last: RecordedEvent) -> KafkaRecord:
        """Return the record of a ledger's progress. Its event id differs in another log of the same length."""
        value = orjson.dumps({"position": last.position, "event_id": last.event_id, "history": history})
        return KafkaRecord(self._progress, 0, ledger_name.encode(), value, _STATE_HEADERS, _timestamp_ms(last))

    def _histories(self, ledger_ids: AbstractSet[int]) -> Mapping[int, UUID]:
        """Return the present history of each ledger, once no failover can lose what was read before."""
        if not ledger_ids:
            return {}
        self._cursor.execute(_HISTORIES, (Ints(sorted(ledger_ids)),), prepare=True)
        return {row[0]: row[1] for row in self._cursor.fetchall()}

    def _streams_before(self, ledger_id: int, versions: Mapping[UUID, int]) -> Mapping[UUID, Sequence[RecordedEvent]]:
        columns = (Uuids(list(versions)), Ints(list(versions.values())))
        self._cursor.execute(_BEFORE_VERSIONS, (*columns, ledger_id), prepare=True)
        found: dict[UUID, list[RecordedEvent]] = {}
        for row in self._cursor:
            found.setdefault(row[4], []).append(to_recorded(row))
        return found


def _decode(ledger_name: str, row: Sequence[Any]) -> RecordedEvent:
    recorded = to_recorded(row[4:])
    if isinstance(recorded.event, UnreadableEvent):
        message = (
            f"The event at position {row[4]} of ledger {ledger_name} cannot be read: {recorded.event.reason} Start a "
            "version of this program that can read it."
        )
        raise UnpublishableEvent(message)
    return recorded


def _timestamp_ms(recorded: RecordedEvent) -> int:
    """Return when an event was recorded, but never a time in the future, which brokers would refuse."""
    return int(min(recorded.recorded_at.timestamp(), time.time()) * 1000)
