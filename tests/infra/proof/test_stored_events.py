"""Every column of the stored events is in the entries, whichever columns the table has."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import psycopg
import pytest

from domain.log_entry import StoredEvent, UnencodableEvent, entry_of
from infra.proof.stored_events import stored_events
from tests import given
from tests.infra.opened import Opened, Tenant

LOG_ID = UUID("018f0000-0000-7000-8000-0000000000aa")

COLUMNS = "SELECT column_name FROM information_schema.columns WHERE table_name = 'events' AND table_schema = 'public'"
# A value for what may be absent, by the type of the column; and how to change any value a little.
VALUES = {"uuid": "gen_random_uuid()", "text": "'text'", "bytea": "sha256('')"}
CHANGES = {
    "uuid": "gen_random_uuid()",
    "text": "{column} || ' '",
    "bytea": "set_byte({column}, 0, get_byte({column}, 0) # 1)",
    "integer": "{column} + 1",
    "bigint": "{column} + 1",
    "smallint": "{column} + 1",
    "timestamp with time zone": "{column} + interval '1 microsecond'",
}
TYPE = "SELECT data_type FROM information_schema.columns WHERE table_name = 'events' AND column_name = %s"


@pytest.fixture
async def tenant(opened: Opened) -> Tenant:
    """A ledger whose second event, a generated code, has a value in every column."""
    tenant = await opened.begin()
    await opened.when(tenant, given.permission())
    await opened.when(tenant, given.generate())
    opened.sql("ALTER TABLE events DISABLE TRIGGER ALL")
    for (column,) in opened.sql(COLUMNS):
        [(type_,)] = opened.sql(TYPE, column)
        if type_ in VALUES:
            opened.sql(f"UPDATE events SET {column} = {VALUES[type_]} WHERE {column} IS NULL AND position = 2")
    [absent] = opened.sql("SELECT num_nulls(e.*) FROM events e WHERE position = 2")
    assert absent == (0,)
    return tenant


def entry_at_2(cursor: psycopg.Cursor[Any], tenant: Tenant) -> bytes | None:
    """Return the entry of the event at position 2, or None if there is none, or it cannot be encoded."""
    events = [event for event in stored_events(cursor, tenant.ledger_id, 0, 10) if event.position == 2]
    try:
        return entry_of(LOG_ID, events[0]) if events else None
    except UnencodableEvent:
        return None


async def test_an_entry_has_every_column_of_the_table(opened: Opened) -> None:
    columns = {column for (column,) in opened.sql(COLUMNS)}
    # The ledger is in the entry by its log's id.
    assert {*StoredEvent._fields, "ledger_id"} == columns


async def test_a_change_of_any_column_as_a_superuser_changes_the_entry(opened: Opened, tenant: Tenant) -> None:
    unchanged = []
    with psycopg.connect(opened.database.dsn(), autocommit=True) as connection:
        cursor = connection.cursor(binary=True)
        before = entry_at_2(cursor, tenant)
        assert before is not None
        for (column,) in opened.sql(COLUMNS):
            [(type_,)] = opened.sql(TYPE, column)
            for change in filter(None, (CHANGES[type_].format(column=column), "NULL" if type_ in VALUES else "")):
                with connection.transaction(force_rollback=True):
                    try:
                        with connection.transaction():
                            connection.execute(f"UPDATE events SET {column} = {change} WHERE position = 2")
                    except (psycopg.errors.NotNullViolation, psycopg.errors.CheckViolation):
                        continue
                    if entry_at_2(cursor, tenant) == before:
                        unchanged.append((column, change))
    assert unchanged == []
