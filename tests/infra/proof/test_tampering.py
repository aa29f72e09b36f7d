"""Whoever changes the database as a superuser: what finds it, and where. docs/proof.md has the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest

from infra.proof.sealer import SealerSettings
from tests import given
from tests.infra.opened import Opened, Tenant
from tests.infra.proof.auditing import record, stopped, tamper
from tests.infra.proof.sealing import watching

COLUMNS = """
    SELECT column_name, data_type FROM information_schema.columns
    WHERE table_name = 'events' AND table_schema = 'public' ORDER BY ordinal_position
"""
# A value for what may be absent, by the type of the column; and one byte, or one step, less or more.
VALUES = {"uuid": "gen_random_uuid()", "text": "'a text'", "bytea": "sha256('')"}
CHANGES = {
    "uuid": "encode(set_byte(uuid_send({0}), 5, get_byte(uuid_send({0}), 5) # 64), 'hex')::uuid",
    "text": "overlay({0} placing '~' from 2 for 1)",
    "bytea": "set_byte({0}, length({0}) - 2, get_byte({0}, length({0}) - 2) # 1)",
    "integer": "{0} + 1",
    "bigint": "{0} + 1000",
    "smallint": "{0} + 1",
    "timestamp with time zone": "{0} - interval '1 day'",
}
OPEN = """
    SELECT part, position, place, message FROM log_differences WHERE resolved_at IS NULL ORDER BY part
"""


@pytest.fixture
def settings(tmp_path: Path) -> SealerSettings:
    return SealerSettings(tmp_path / "signing", "ledger.example/log")


@pytest.fixture
async def tenant(opened: Opened) -> Tenant:
    """A ledger whose second event, a generated code, has a value in every column."""
    tenant = await opened.begin()
    await opened.when(tenant, given.permission())
    await opened.when(tenant, given.generate())
    opened.sql("ALTER TABLE events DISABLE TRIGGER ALL")
    for column, type_ in opened.sql(COLUMNS):
        if type_ in VALUES:
            opened.sql(f"UPDATE events SET {column} = {VALUES[type_]} WHERE {column} IS NULL AND position = 2")
    return tenant


def found(opened: Opened) -> list[tuple[str, int | None, str]]:
    """Return the differences that are open."""
    return [(part, position, place) for part, position, place, _ in opened.sql(OPEN)]


async def test_a_change_of_any_column_is_found_with_its_position_and_the_column(
    opened: Opened, tenant: Tenant, settings: SealerSettings
) -> None:
    record(opened, tenant, 5)
    opened.sql("CREATE TABLE kept AS SELECT * FROM events")
    named: dict[str, Any] = {}
    with watching(opened, settings) as running:
        running.seal_and_look()
        assert found(opened) == []
        for column, type_ in opened.sql(COLUMNS):
            opened.sql("ALTER TABLE events DROP CONSTRAINT IF EXISTS events_check")
            opened.sql(f"UPDATE events SET {column} = {CHANGES[type_].format(column)} WHERE position = 2")
            running.minute()
            named[column] = found(opened)
            opened.sql("DELETE FROM events")
            opened.sql("INSERT INTO events SELECT * FROM kept")
            running.minute()
            assert found(opened) == []
    expected: dict[str, Any] = {column: [("events", 2, f"events.{column}")] for column in named}
    # The row is not at its place any more.
    expected["ledger_id"] = expected["position"] = [("events", 2, "events")]
    assert named == expected


LAST = "SELECT found_at - right_at < interval '1 minute' FROM log_differences WHERE part = 'events'"


async def test_what_is_restored_is_sealed_again_and_what_was_found_stays_on_record(
    opened: Opened, tenant: Tenant, settings: SealerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.proof.sealer.STOPPED_AGAIN_S", 0)
    record(opened, tenant, 600)
    with watching(opened, settings) as running:
        running.seal_and_look()
        tamper(opened, "UPDATE events SET source = 'brand' WHERE position = 7")
        running.minute()
        record(opened, tenant, 601)
        running.step()
        assert stopped(opened, tenant) == (
            "Event 7 of ledger main is not the one that was sealed: its column source was changed."
        )
        assert opened.sql("SELECT is_sealing_stopped()") == [(True,)]
        assert opened.sql("SELECT differences, waiting FROM log_figures()") == [(1, 1)]
        assert opened.sql(LAST) == [(True,)]
        tamper(opened, "UPDATE events SET source = 'operator' WHERE position = 7")
        running.minute()
        running.step()
    assert stopped(opened, tenant) is None
    assert opened.sql("SELECT differences, waiting FROM log_figures()") == [(0, 0)]
    [(message, resolved)] = opened.sql("SELECT message, resolved_at IS NOT NULL FROM log_differences")
    assert (message.split(":")[0], resolved) == ("Event 7 of ledger main is not the one that was sealed", True)


async def test_a_difference_that_is_removed_from_the_database_still_stops_the_sealer(
    opened: Opened, tenant: Tenant, settings: SealerSettings
) -> None:
    record(opened, tenant, 600)
    with watching(opened, settings) as running:
        running.seal_and_look()
        tamper(opened, "UPDATE events SET source = 'brand' WHERE position = 7")
        running.minute()
        opened.sql("DELETE FROM log_differences")
        record(opened, tenant, 601)
        running.step()
        assert "Event 7 of ledger main" in str(stopped(opened, tenant))


SWAP = """
    UPDATE events SET position = CASE position WHEN {0} THEN -1 WHEN {1} THEN -2 END WHERE position IN ({0}, {1});
    UPDATE events SET position = CASE position WHEN -1 THEN {1} WHEN -2 THEN {0} END WHERE position < 0
"""
INSERT_AT_300 = """
    UPDATE events SET position = -position WHERE position >= 300;
    UPDATE events SET position = 1 - position WHERE position < 0;
    CREATE TEMP TABLE forged AS SELECT * FROM events WHERE position = 10;
    UPDATE forged SET position = 300, stream_id = gen_random_uuid(), event_id = gen_random_uuid();
    INSERT INTO events SELECT * FROM forged
"""
FLIP = "UPDATE log_tiles SET hashes = set_byte(hashes, 5, get_byte(hashes, 5) # 1) WHERE level = {} AND index = 0"
ROWS: dict[str, tuple[str, tuple[str, int | None, str]]] = {
    "the tail is deleted": ("DELETE FROM events WHERE position > 590", ("events", 591, "events")),
    "a row is deleted": ("DELETE FROM events WHERE position = 300", ("events", 300, "events")),
    "two rows are swapped": (SWAP.format(300, 301), ("events", 300, "events")),
    "a row is inserted": (INSERT_AT_300, ("events", 300, "events")),
    "an event is dated back": (
        "UPDATE events SET recorded_at = recorded_at - interval '3 days' WHERE position = 300",
        ("events", 300, "events.recorded_at"),
    ),
    "events are dated back to another time": (
        "UPDATE events SET recorded_at = '2020-02-02 02:02:02.123456' WHERE position >= 300",
        ("events", 300, "events.recorded_at"),
    ),
    "a body is replaced": ("UPDATE events SET body = '{}' WHERE position = 300", ("events", 300, "events")),
    "a tile is changed": (FLIP.format(0), ("events", 1, "events")),
    "a tile of a higher level is changed": (FLIP.format(1), ("tree", None, "log_tiles.hashes")),
    "a tile is deleted": ("DELETE FROM log_tiles WHERE level = 0 AND index = 1", ("tree", 257, "log_tiles.hashes")),
}


@pytest.mark.parametrize("what", ROWS)
async def test_changed_rows_and_tiles_are_found_at_their_position_within_the_next_minute(
    opened: Opened, settings: SealerSettings, what: str
) -> None:
    tenant = await opened.begin()
    statements, expected = ROWS[what]
    record(opened, tenant, 600)
    with watching(opened, settings) as running:
        running.seal_and_look()
        assert found(opened) == []
        opened.sql("ALTER TABLE events DISABLE TRIGGER ALL")
        opened.sql("ALTER TABLE events DROP CONSTRAINT events_position_check")
        execute(opened, statements)
        running.minute()
        assert expected in found(opened)


def execute(opened: Opened, statements: str) -> None:
    """Run several statements in one session, as a superuser."""
    with psycopg.connect(opened.database.dsn(), autocommit=True) as connection:
        connection.execute(statements)
