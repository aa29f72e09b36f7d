"""Changes of the database by a superuser: what finds them, and where. docs/proof.md has the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest

from domain.merkle import root_of
from infra.jobs.log_restart import restart
from infra.proof.sealer import SealerSettings
from tests import given
from tests.infra.opened import MASTER_KEY, Opened, Tenant
from tests.infra.proof.auditing import Auditor, record, stopped, tamper, verified
from tests.infra.proof.sealing import seal, watching

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


@pytest.mark.long("the log is checked after a change of each column")
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
        execute(opened, statements)
        running.minute()
        assert expected in found(opened)


def execute(opened: Opened, statements: str) -> None:
    """Run several statements in one session, as a superuser."""
    with psycopg.connect(opened.database.dsn(), autocommit=True) as connection:
        connection.execute(statements)


async def test_rows_tiles_and_checkpoint_that_are_replaced_alike_are_found_by_what_is_outside_the_database(
    opened: Opened, settings: SealerSettings
) -> None:
    tenant = await opened.begin()
    record(opened, tenant, 600)
    with watching(opened, settings) as running:
        running.seal_and_look()
    [(keys,)] = opened.sql("SELECT verifier_keys FROM log_trees")
    tamper(opened, "UPDATE events SET body = '{}' WHERE position = 300")
    opened.sql("TRUNCATE log_trees, log_tiles")
    # The forger has no key of the log, and computes everything else again.
    seal(opened, SealerSettings(settings.signing_dir.with_name("forged"), settings.log_name))
    opened.sql("UPDATE log_trees SET verifier_keys = %s", keys)
    with watching(opened, settings) as running:
        running.minute()
        assert found(opened) == [("events", 257, "events and log_tiles"), ("tree", None, "log_tiles.hashes")]
        record(opened, tenant, 601)
        running.step()
    assert "Events 257 to 512 of ledger main are not those that were sealed" in str(stopped(opened, tenant))


@pytest.mark.parametrize("also_its_size", [False, True])
async def test_an_older_checkpoint_that_is_served_again_is_found(
    opened: Opened, settings: SealerSettings, also_its_size: bool
) -> None:
    tenant = await opened.begin()
    record(opened, tenant, 300)
    with watching(opened, settings) as running:
        running.seal_and_look()
        [(older, size)] = opened.sql("SELECT checkpoint, checkpoint_size FROM log_trees")
        record(opened, tenant, 400)
        running.seal_and_look()
        opened.sql("UPDATE log_trees SET checkpoint = %s", older)
        if also_its_size:
            opened.sql("UPDATE log_trees SET checkpoint_size = %s", size)
        running.minute()
        running.minute()
    assert found(opened) == [("tree", None, "log_trees.checkpoint")]


async def test_a_key_that_sealed_parts_need_is_gone_only_if_the_log_says_so(
    opened: Opened, settings: SealerSettings
) -> None:
    tenant = await opened.begin()
    await opened.when(tenant, given.permission())
    await opened.when(tenant, given.generate())
    with watching(opened, settings) as running:
        running.seal_and_look()
        opened.sql("ALTER TABLE creator_keys DISABLE TRIGGER ALL")
        opened.sql("CREATE TABLE kept AS SELECT * FROM creator_keys")
        opened.sql("UPDATE creator_keys SET wrapped = NULL, erased_at = now()")
        running.minute()
        assert found(opened) == [("keys", 2, "creator_keys.wrapped")]
        opened.sql("DELETE FROM creator_keys")
        opened.sql("INSERT INTO creator_keys SELECT * FROM kept")
        running.minute()
        assert found(opened) == []
        await opened.erase(tenant)
        running.seal_and_look()
        assert found(opened) == []


async def test_what_was_found_does_not_stop_the_next_generation_and_the_old_one_stays_verifiable(
    opened: Opened, settings: SealerSettings
) -> None:
    tenant = await opened.begin()
    record(opened, tenant, 600)
    with watching(opened, settings) as running:
        running.seal_and_look()
        auditor = Auditor(opened, tenant)
        assert auditor.check() == 600
        tamper(opened, "DELETE FROM events WHERE position > 580")
        running.minute()
        assert found(opened) == [("events", 581, "events")]
        opened.sql("ALTER TABLE events ENABLE TRIGGER ALL")
        await restart(opened.database.dsn(), MASTER_KEY, "main", "a loss")
        record(opened, tenant, 700)
        running.seal_and_look()
        running.seal_and_look()
        assert opened.sql("SELECT is_sealing_stopped()") == [(False,)]
    assert Auditor(opened, tenant, generation=2).check() == 700
    [(note, keys)] = opened.sql("SELECT checkpoint, verifier_keys FROM log_trees WHERE generation = 1")
    assert root_of(auditor.tile_hashes()) == verified(note, keys).root == auditor.seen[0].root
