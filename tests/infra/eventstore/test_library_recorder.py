"""The library's own test cases, unmodified, and an ordinary application of the library, on our log."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from eventsourcing.application import AggregateNotFoundError, Application
from eventsourcing.domain import Aggregate, event
from eventsourcing.persistence import (
    InfrastructureFactoryError,
    IntegrityError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    StoredEvent,
    Tracking,
)

# As a module: what is imported by name would be collected as a test of this file.
from eventsourcing.tests import application as application_cases
from eventsourcing.tests import persistence as cases

from infra.auth.key_commands import create_ledger
from infra.postgres.roles import API
from tests.conftest import TestDatabase
from tests.infra.eventstore.library_log import SynchronousLog
from tests.infra.eventstore.library_recorder import (
    LedgerAggregateRecorder,
    LedgerApplicationRecorder,
    LedgerFactory,
    LedgerTrackingRecorder,
)
from tests.infra.opened import MASTER_KEY
from tests.waiting import WITHIN_S, until


@pytest.fixture
def log(database: TestDatabase) -> Iterator[SynchronousLog]:
    """The log of a fresh database, for threads."""
    log = SynchronousLog(database.dsn())
    yield log
    log.close()


def new_ledger(database: TestDatabase, name: str | None = None) -> int:
    name = name or f"ledger-{uuid4()}"
    asyncio.run(create_ledger(database.dsn(), MASTER_KEY, name))
    with psycopg.connect(database.dsn()) as connection:
        row = connection.execute("SELECT ledger_id FROM ledgers WHERE name = %s", (name,)).fetchone()
    assert row is not None
    return int(row[0])


class OnALedger:
    """What every test case asks for: a recorder with nothing in it, hence a new ledger for each."""

    database: TestDatabase
    log: SynchronousLog

    @pytest.fixture(autouse=True)
    def _given(self, database: TestDatabase, log: SynchronousLog) -> None:
        self.database = database
        self.log = log


class TestApplicationRecorder(OnALedger, cases.ApplicationRecorderTestCase[LedgerApplicationRecorder]):
    def create_recorder(self) -> LedgerApplicationRecorder:
        return LedgerApplicationRecorder(self.log, new_ledger(self.database))

    def test_insert_subscribe(self) -> None:
        # The library leaves this one to readers that can follow.
        self.optional_test_insert_subscribe()


class TestNonInterleavingNotificationIds(OnALedger, cases.NonInterleavingNotificationIDsBaseCase):
    def create_recorder(self) -> LedgerApplicationRecorder:
        return LedgerApplicationRecorder(self.log, new_ledger(self.database))


class TestTrackingRecorder(OnALedger, cases.TrackingRecorderTestCase):
    def create_recorder(self) -> LedgerTrackingRecorder:
        return LedgerTrackingRecorder(self.log, new_ledger(self.database))


class TestAggregateRecorder(OnALedger, cases.AggregateRecorderTestCase):
    def create_recorder(self) -> LedgerAggregateRecorder:
        return LedgerAggregateRecorder(self.log, new_ledger(self.database))


class TestExampleApplication(application_cases.ExampleApplicationTestCase):
    """The library's example: bank accounts, with snapshots."""

    expected_factory_topic = "tests.infra.eventstore.library_recorder:LedgerFactory"

    @pytest.fixture(autouse=True)
    def _given(self, database: TestDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
        new_ledger(database, "accounts")
        new_ledger(database, "accounts:snapshots")
        for name, value in environment(database, "accounts").items():
            monkeypatch.setenv(name, value)


# ── an ordinary application ──


class Dog(Aggregate):
    @event("Registered")
    def __init__(self, name: str) -> None:
        self.name = name
        self.tricks: list[str] = []

    @event("TrickAdded")
    def add_trick(self, trick: str) -> None:
        self.tricks.append(trick)


class Kennel(Application[UUID]):
    def register(self, name: str) -> UUID:
        dog = Dog(name)
        self.save(dog)
        return dog.id

    def teach(self, dog_id: UUID, trick: str) -> None:
        dog: Dog = self.repository.get(dog_id)
        dog.add_trick(trick)
        self.save(dog)


def environment(database: TestDatabase, ledger: str = "kennel") -> dict[str, str]:
    return {
        "PERSISTENCE_MODULE": "tests.infra.eventstore.library_recorder",
        "LEDGER_DATABASE_URL": database.dsn(),
        "LEDGER_NAME": ledger,
    }


@pytest.fixture
def kennel(database: TestDatabase) -> Iterator[Kennel]:
    new_ledger(database, "kennel")
    with Kennel(environment(database)) as kennel:
        yield kennel


def test_an_application_finds_again_what_it_saved(kennel: Kennel, database: TestDatabase) -> None:
    fido = kennel.register("Fido")
    kennel.teach(fido, "roll over")
    kennel.teach(fido, "play dead")
    with Kennel(environment(database)) as restarted:
        dog: Dog = restarted.repository.get(fido)
    assert (dog.name, dog.version, dog.tricks) == ("Fido", 3, ["roll over", "play dead"])


def test_an_application_finds_nothing_that_was_never_saved(kennel: Kennel) -> None:
    with pytest.raises(AggregateNotFoundError):
        kennel.repository.get(uuid4())


def test_its_notifications_are_the_ledgers_positions(kennel: Kennel) -> None:
    for name in ("Fido", "Rex", "Bella"):
        kennel.register(name)
    assert [item.id for item in kennel.notification_log["1,10"].items] == [1, 2, 3]


def test_several_aggregates_are_saved_in_one_go(kennel: Kennel) -> None:
    dogs = [Dog("Fido"), Dog("Rex")]
    dogs[0].add_trick("roll over")
    recordings = kennel.save(*dogs)
    assert [recording.notification.id for recording in recordings] == [1, 2, 3]


def test_of_two_that_changed_one_aggregate_the_later_is_refused(kennel: Kennel) -> None:
    fido = kennel.register("Fido")
    first: Dog = kennel.repository.get(fido)
    second: Dog = kennel.repository.get(fido)
    first.add_trick("roll over")
    second.add_trick("play dead")
    kennel.save(first)
    with pytest.raises(IntegrityError):
        kennel.save(second)


def test_a_save_of_several_is_refused_whole(kennel: Kennel) -> None:
    fido = kennel.register("Fido")
    stale: Dog = kennel.repository.get(fido)
    kennel.teach(fido, "roll over")
    stale.add_trick("play dead")
    rex = Dog("Rex")
    with pytest.raises(IntegrityError):
        kennel.save(rex, stale)
    with pytest.raises(AggregateNotFoundError):
        kennel.repository.get(rex.id)


def test_a_follower_is_told_of_what_another_application_saves(kennel: Kennel, database: TestDatabase) -> None:
    names: list[Any] = []
    following = kennel.recorder.subscribe()

    def follow() -> None:
        with following:
            names.extend(vars(kennel.mapper.to_domain_event(told)).get("name") for told in following)

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        with Kennel(environment(database)) as other:
            for name in ("Fido", "Rex"):
                other.register(name)
            until(lambda: names == ["Fido", "Rex"])
    finally:
        following.stop()
        thread.join()


def test_those_who_begin_to_listen_together_are_all_told(log: SynchronousLog) -> None:
    class Interrupted(threading.Event):
        """Lets another thread begin to listen in the middle of its own beginning."""

        other: threading.Event | None = None

        def __hash__(self) -> int:
            if self.other is None:
                self.other = threading.Event()
                thread = threading.Thread(target=log.listen, args=(self.other,))
                thread.start()
                thread.join()
            return id(self)

    one = Interrupted()
    log.listen(one)
    assert one.other is not None
    assert one.wait(WITHIN_S)
    assert one.other.wait(WITHIN_S)


def test_applications_of_one_process_share_one_writer(kennel: Kennel, database: TestDatabase) -> None:
    with Kennel(environment(database)) as other:
        assert isinstance(other.recorder, LedgerApplicationRecorder)
        assert isinstance(kennel.recorder, LedgerApplicationRecorder)
        assert other.recorder.log is kennel.recorder.log
    kennel.register("Fido")


def test_what_it_stores_in_the_columns_that_the_library_does_not_know(kennel: Kennel, database: TestDatabase) -> None:
    fido = kennel.register("Fido")
    columns = "stream_id, creator_stream, actor_key, actor_role, source, type, type_version, sealed"
    with psycopg.connect(database.dsn()) as connection:
        rows = connection.execute(f"SELECT {columns} FROM events").fetchall()
    topic = "tests.infra.eventstore.test_library_recorder:Dog.Registered"
    assert rows == [(fido, fido, None, "clock", "clock", topic, 1, None)]


# ── what it refuses ──


def test_an_unset_variable_is_named() -> None:
    with pytest.raises(InfrastructureFactoryError, match="LEDGER_DATABASE_URL is not set"):
        LedgerFactory({})


def test_an_unknown_ledger_is_refused_with_how_to_make_it(database: TestDatabase) -> None:
    with pytest.raises(InfrastructureFactoryError, match="`sparkledger ledgers create kennel` makes one"):
        Kennel(environment(database))


def test_a_database_that_is_away_is_named() -> None:
    elsewhere = {
        "LEDGER_DATABASE_URL": "host=/nowhere",
        "LEDGER_NAME": "kennel",
        "PERSISTENCE_MODULE": "tests.infra.eventstore.library_recorder",
    }
    with pytest.raises(InfrastructureFactoryError, match="LEDGER_DATABASE_URL does not serve"):
        Kennel(elsewhere)


def test_a_stream_that_is_named_by_text_is_refused(log: SynchronousLog, database: TestDatabase) -> None:
    recorder = LedgerApplicationRecorder(log, new_ledger(database))
    with pytest.raises(ProgrammingError, match="named by UUIDs"):
        recorder.insert_events([StoredEvent("fido", 1, "topic", b"state")])


def test_a_gap_between_versions_is_refused(log: SynchronousLog, database: TestDatabase) -> None:
    recorder = LedgerApplicationRecorder(log, new_ledger(database))
    stream = uuid4()
    with pytest.raises(IntegrityError):
        recorder.insert_events([StoredEvent(stream, version, "topic", b"state") for version in (1, 3)])
    assert recorder.max_notification_id() is None


def test_positions_together_with_events_are_refused(log: SynchronousLog, database: TestDatabase) -> None:
    recorder = LedgerApplicationRecorder(log, new_ledger(database))
    with pytest.raises(NotSupportedError, match="cannot record tracking together with events"):
        recorder.insert_events([StoredEvent(uuid4(), 1, "topic", b"state")], tracking=Tracking("upstream", 1))


def test_a_database_that_goes_away_is_an_operational_error(log: SynchronousLog, database: TestDatabase) -> None:
    recorder = LedgerApplicationRecorder(log, new_ledger(database))
    log._writer._session["conninfo"] = "host=/nowhere"
    with pytest.raises(OperationalError, match=r"cannot be reached\. Nothing was recorded"):
        recorder.insert_events([StoredEvent(uuid4(), 1, "topic", b"state")])


def test_the_adapter_has_no_more_rights_than_the_api(log: SynchronousLog, database: TestDatabase) -> None:
    recorder = LedgerApplicationRecorder(log, new_ledger(database))
    assert recorder._rows("SELECT current_user::text", ()) == [(API,)]
