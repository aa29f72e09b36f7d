"""The eventsourcing library's own recorder interface over our log, for applications written with the library alone.

    PERSISTENCE_MODULE=tests.infra.eventstore.library_recorder
    LEDGER_DATABASE_URL=postgresql://…      a login that may become the API's role and the worker's
    LEDGER_NAME=orders                      the application's ledger; `sparkledger ledgers create orders` makes it

Positions of the ledger are the notification ids: dense, from 1, in the order of commits. Snapshots, where an
application wants them, go to a second ledger named `orders:snapshots`.

A row has columns that the library knows nothing of. Its events are recorded by `application` in the role and `library`
in the source, without an API key; the creator's stream is the event's own; the topic is the type; the stored state is
the clear body, byte for byte; with CIPHER_KEY, the library encrypts it before it comes here. Our own views read every
ledger of a database and stop at a type they do not know, so such an application belongs in a database of its own.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import psycopg
from eventsourcing.persistence import (
    AggregateRecorder,
    ApplicationRecorder,
    DatabaseError,
    InfrastructureFactory,
    InfrastructureFactoryError,
    IntegrityError,
    ListenNotifySubscription,
    Notification,
    NotSupportedError,
    OperationalError,
    ProcessRecorder,
    ProgrammingError,
    StoredEvent,
    Subscription,
    Tracking,
    TrackingRecorder,
)
from eventsourcing.utils import resolve_topic

from infra.errors import Unavailable
from infra.eventstore.append import Append, Appended, EventRow
from infra.ids import uuid7
from infra.postgres.pool import session
from infra.postgres.roles import WORKER
from tests.infra.eventstore.library_log import give_back, lend

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from eventsourcing.utils import Environment, EnvType

    from tests.infra.eventstore.library_log import SynchronousLog

# The library knows no keys, so what it records is recorded with a worker's login, as by the clock.
ROLE: Final = "clock"
SOURCE: Final = "clock"
SNAPSHOTS: Final = ":snapshots"

_EVENTS: Final = """
    SELECT stream_id, version, type, body
    FROM events
    WHERE ledger_id = %b AND stream_id = %b AND version > %b AND version <= %b
    ORDER BY version
    LIMIT %b
"""
_EVENTS_DESCENDING: Final = _EVENTS.replace("ORDER BY version", "ORDER BY version DESC")
_NOTIFICATIONS: Final = """
    SELECT stream_id, version, type, body, position
    FROM events
    WHERE ledger_id = %b AND position >= %b AND position <= %b AND (%b OR type = ANY (%b))
    ORDER BY position
    LIMIT %b
"""
_TRACK: Final = """
    INSERT INTO tracking AS t (ledger_id, application, position)
    VALUES (%s, %s, %s)
    ON CONFLICT (ledger_id, application) DO UPDATE SET position = excluded.position
    WHERE t.position < excluded.position
"""
# Beyond any version and any position.
_LAST_VERSION: Final = 2**31 - 1
_LAST_POSITION: Final = 2**62


class LedgerAggregateRecorder(AggregateRecorder):
    """Events of a ledger by stream, each version once, in whatever order they come: what snapshots need."""

    def __init__(self, log: SynchronousLog, ledger_id: int) -> None:
        """Take the log, and the ledger to record in."""
        self.log = log
        self.ledger_id = ledger_id

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int] | None:
        """Record events, all or none.

        Raises:
            IntegrityError: a version is taken.
            OperationalError: the database is away; nothing else is certain, so read before sending them again.

        """
        self._insert(stored_events, (), kwargs)
        return None

    def _insert(
        self, stored_events: Sequence[StoredEvent], preconditions: Sequence[tuple[UUID, int]], options: dict[str, Any]
    ) -> list[int]:
        given = [name for name, value in options.items() if value is not None]
        if given:
            raise NotSupportedError(f"This recorder cannot record {', '.join(given)} together with events.")
        if not stored_events:
            return []
        request = Append(
            ledger_id=self.ledger_id,
            events=[_row(event) for event in stored_events],
            expected_versions=preconditions,
            claims=(),
            role=ROLE,
            source=SOURCE,
            command_id=uuid7(),
        )
        self.log.accept({event.topic for event in stored_events})
        with _library_errors():
            outcome = self.log.append(request)
        if not isinstance(outcome, Appended):
            raise IntegrityError("Another writer has recorded these versions, or versions before them are missing.")
        return list(range(outcome.first, outcome.last + 1))

    def select_events(
        self,
        originator_id: UUID | str,
        *,
        gt: int | None = None,
        lte: int | None = None,
        desc: bool = False,
        limit: int | None = None,
    ) -> Sequence[StoredEvent]:
        """Read a stream, or the part of it with gt < version <= lte."""
        bounds = (-1 if gt is None else gt, _LAST_VERSION if lte is None else lte)
        rows = self._rows(
            _EVENTS_DESCENDING if desc else _EVENTS, (self.ledger_id, _stream_id(originator_id), *bounds, limit)
        )
        return [StoredEvent(*row) for row in rows]

    def _rows(self, query: str, parameters: Sequence[Any]) -> list[Any]:
        with _library_errors():
            return self.log.rows(self.ledger_id, query, parameters)


class LedgerApplicationRecorder(LedgerAggregateRecorder, ApplicationRecorder):
    """A ledger as an application's sequence: each stream without gaps, each event with its position."""

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int] | None:
        """Record events, all or none, and return their positions.

        Raises:
            IntegrityError: a stream does not stand right before its first event here.
            OperationalError: the database is away; nothing else is certain, so read before sending them again.

        """
        return self._insert(stored_events, _preconditions(stored_events), kwargs)

    def select_notifications(
        self,
        start: int | None,
        limit: int,
        stop: int | None = None,
        topics: Sequence[str] = (),
        *,
        inclusive_of_start: bool = True,
    ) -> Sequence[Notification]:
        """Read events by position, from `start` up to and including `stop`."""
        first = 1 if start is None else start if inclusive_of_start else start + 1
        last = _LAST_POSITION if stop is None else stop
        rows = self._rows(_NOTIFICATIONS, (self.ledger_id, first, last, not topics, list(topics), limit))
        return [Notification(*row) for row in rows]

    def max_notification_id(self) -> int | None:
        """Return the last position."""
        last: int | None = self._rows("SELECT max(position) FROM events WHERE ledger_id = %b", (self.ledger_id,))[0][0]
        return last

    def subscribe(self, gt: int | None = None, topics: Sequence[str] = ()) -> Subscription[ApplicationRecorder]:
        """Follow the ledger from a position on."""
        return LedgerSubscription(self, gt, topics)


class LedgerSubscription(ListenNotifySubscription[LedgerApplicationRecorder]):
    """Follows a ledger, woken by each commit of whatever process."""

    def __init__(self, recorder: LedgerApplicationRecorder, gt: int | None, topics: Sequence[str]) -> None:
        """Begin to read past a position."""
        super().__init__(recorder=recorder, gt=gt, topics=topics)
        recorder.log.listen(self._has_been_notified)
        # For what was committed between the first look and now.
        self._has_been_notified.set()

    def stop(self) -> None:
        """End."""
        super().stop()
        self._recorder.log.unlisten(self._has_been_notified)


class LedgerTrackingRecorder(TrackingRecorder):
    """How far other applications' events have been processed."""

    def __init__(self, log: SynchronousLog, ledger_id: int) -> None:
        """Take the log, and the ledger whose application tracks others."""
        self.log = log
        self.ledger_id = ledger_id

    def insert_tracking(self, tracking: Tracking) -> None:
        """Move an application's position forward.

        Raises:
            IntegrityError: it stands there already, or further.

        """
        with _library_errors():
            moved = self.log.change(
                self.ledger_id, _TRACK, (self.ledger_id, tracking.application_name, tracking.notification_id)
            )
        if not moved:
            raise IntegrityError(f"{tracking.application_name} was tracked up to {tracking.notification_id} already.")

    def max_tracking_id(self, application_name: str) -> int | None:
        """Return how far an application's events have been processed."""
        query = "SELECT position FROM tracking WHERE ledger_id = %b AND application = %b"
        with _library_errors():
            rows = self.log.rows(self.ledger_id, query, (self.ledger_id, application_name))
        return rows[0][0] if rows else None


class LedgerFactory(InfrastructureFactory[LedgerTrackingRecorder]):
    """Makes recorders on the ledger that the environment names."""

    LEDGER_DATABASE_URL: Final = "LEDGER_DATABASE_URL"
    LEDGER_NAME: Final = "LEDGER_NAME"

    def __init__(self, env: Environment | EnvType | None) -> None:
        """Read where the ledger is; it is looked up when a recorder is made."""
        super().__init__(env)
        self._conninfo = self._setting(self.LEDGER_DATABASE_URL)
        self._name = self._setting(self.LEDGER_NAME)
        self._log: SynchronousLog | None = None

    def aggregate_recorder(self, purpose: str = "events") -> AggregateRecorder:
        """Make a recorder of snapshots, in the ledger beside the application's own."""
        return LedgerAggregateRecorder(self._lent(), self._ledger_id(SNAPSHOTS if purpose == "snapshots" else ""))

    def application_recorder(self) -> ApplicationRecorder:
        """Make the application's recorder."""
        return LedgerApplicationRecorder(self._lent(), self._ledger_id())

    def tracking_recorder(
        self, tracking_recorder_class: type[LedgerTrackingRecorder] | None = None
    ) -> LedgerTrackingRecorder:
        """Make a tracking recorder, of the class given here or in TRACKING_RECORDER_TOPIC."""
        if tracking_recorder_class is None:
            topic = self.env.get(self.TRACKING_RECORDER_TOPIC)
            tracking_recorder_class = resolve_topic(topic) if topic else LedgerTrackingRecorder
        return tracking_recorder_class(self._lent(), self._ledger_id())

    def process_recorder(self) -> ProcessRecorder:
        """Refuse: a ledger records events alone, and what is derived from them belongs in a view."""
        raise NotSupportedError("A ledger does not record positions together with events. Derive a view instead.")

    def close(self) -> None:
        """End the use of the process's log."""
        if self._log is not None:
            self._log = None
            give_back(self._conninfo)

    def _lent(self) -> SynchronousLog:
        if self._log is None:
            self._log = lend(self._conninfo)
        return self._log

    def _ledger_id(self, suffix: str = "") -> int:
        """Look the ledger up with the worker's rights: the API sees only the one that it is bound to."""
        name = self._name + suffix
        try:
            with psycopg.connect(**session(self._conninfo, WORKER)) as connection:
                row = connection.execute("SELECT ledger_id FROM ledgers WHERE name = %s", (name,)).fetchone()
        except psycopg.Error as error:
            self.close()
            raise InfrastructureFactoryError(f"The database of {self.LEDGER_DATABASE_URL} does not serve.") from error
        if row is None:
            self.close()
            raise InfrastructureFactoryError(
                f"There is no ledger named {name}. `sparkledger ledgers create {name}` makes one."
            )
        return int(row[0])

    def _setting(self, name: str) -> str:
        value = self.env.get(name)
        if not value:
            raise InfrastructureFactoryError(f"{name} is not set.")
        return value


def _row(event: StoredEvent) -> EventRow:
    stream_id = _stream_id(event.originator_id)
    return EventRow(
        stream_id=stream_id,
        version=event.originator_version,
        event_id=uuid7(),
        type=event.topic,
        type_version=1,  # the library keeps a class's version in the state
        effective_at=None,
        creator_stream=stream_id,
        causation_id=None,
        key_id=None,
        commitment=None,
        body=event.state,
        sealed=None,
    )


def _stream_id(originator_id: UUID | str) -> UUID:
    if isinstance(originator_id, UUID):
        return originator_id
    raise ProgrammingError("A ledger's streams are named by UUIDs, not by text.")


def _preconditions(stored_events: Sequence[StoredEvent]) -> list[tuple[UUID, int]]:
    """Return where each stream must stand: right before its first event; the others follow one by one."""
    first: dict[UUID, int] = {}
    last: dict[UUID, int] = {}
    for event in stored_events:
        stream_id, version = _stream_id(event.originator_id), event.originator_version
        if version != last.get(stream_id, version - 1) + 1:
            raise IntegrityError("Versions of a stream must follow one another.")
        first.setdefault(stream_id, version)
        last[stream_id] = version
    return [(stream_id, version - 1) for stream_id, version in first.items()]


@contextmanager
def _library_errors() -> Iterator[None]:
    """Raise what the library's callers expect."""
    try:
        yield
    except Unavailable as unavailable:
        raise OperationalError(unavailable.detail) from unavailable
    except psycopg.errors.IntegrityError as error:
        raise IntegrityError("A version is taken.") from error
    except psycopg.Error as error:
        raise DatabaseError(str(error)) from error
