"""What the consumer that users copy does where a ledger was restored: it stops, whatever the restore left the same."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from sparkledger_consumer import SCHEMA, Consumer, Event, Forked

from tests.conftest import TestDatabase

LEDGER = "/ledgers/main"


@pytest.fixture
def cursor(database: TestDatabase) -> Iterator[psycopg.Cursor[Any]]:
    with psycopg.connect(database.dsn()) as connection:
        connection.execute(SCHEMA)
        yield connection.cursor()


@pytest.fixture
def consumer(database: TestDatabase) -> Consumer:
    return Consumer(database.dsn(), "nobody:1", "nothing", name="ours", handle=lambda _cursor, _event: None)


def event(sequence: int, subject: str, *, id_: str, history: str | None = "first", version: int = 1) -> Event:
    attributes = {} if history is None else {"ledgerhistory": history}
    return Event(id_, LEDGER, "t", subject, sequence, version, datetime(2026, 3, 1, tzinfo=UTC), attributes, {})


def test_an_event_that_is_done_is_skipped(consumer: Consumer, cursor: psycopg.Cursor[Any]) -> None:
    assert consumer._is_new(cursor, event(1, "codes/a", id_="one"))
    assert not consumer._is_new(cursor, event(1, "codes/a", id_="one"))


def test_another_event_at_a_position_that_is_done_is_a_fork_whatever_it_is_about(
    consumer: Consumer, cursor: psycopg.Cursor[Any]
) -> None:
    consumer._is_new(cursor, event(1, "codes/a", id_="one"))
    with pytest.raises(Forked, match="position 1"):
        consumer._is_new(cursor, event(1, "codes/b", id_="another"))


def test_a_position_is_of_one_ledger(consumer: Consumer, cursor: psycopg.Cursor[Any]) -> None:
    consumer._is_new(cursor, event(1, "codes/a", id_="one"))
    other = event(1, "codes/b", id_="two", history="other")
    assert consumer._is_new(cursor, Event(**{**vars(other), "source": "/ledgers/other"}))


def test_another_history_stops_the_consumer_until_somebody_accepts_it(
    consumer: Consumer, cursor: psycopg.Cursor[Any]
) -> None:
    consumer._is_new(cursor, event(1, "codes/a", id_="one"))
    cursor.connection.commit()
    with pytest.raises(Forked, match="history second"):
        consumer._is_new(cursor, event(2, "codes/b", id_="two", history="second"))
    cursor.connection.rollback()

    consumer.accept_history(LEDGER, "second")

    assert consumer._is_new(cursor, event(2, "codes/b", id_="two", history="second"))
    # Another partition may still hold events of before.
    assert consumer._is_new(cursor, event(3, "codes/c", id_="three"))


def test_an_event_from_before_there_were_histories_is_taken(consumer: Consumer, cursor: psycopg.Cursor[Any]) -> None:
    assert consumer._is_new(cursor, event(1, "codes/a", id_="one", history=None))
