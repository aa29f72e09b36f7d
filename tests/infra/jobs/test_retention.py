"""What is kept for a time only is forgotten then, and nothing before; one kind that fails holds up no other."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from infra.jobs.retention import KEEP_IDEMPOTENCY_HOURS, KEEP_REFUSAL_COUNTS_DAYS, purge
from infra.postgres.pool import Database
from infra.postgres.roles import WORKER
from tests import given
from tests.infra.opened import Opened, Tenant

AGED = """
    UPDATE commands SET recorded_at = now() - make_interval(hours => %s)
    WHERE key IN (SELECT key FROM commands LIMIT %s)
"""
COUNTED = """
    INSERT INTO refused_attempts (ledger_id, hour, reason, key_id, count)
    VALUES (%s, now() - make_interval(days => %s), 'code_expired', gen_random_uuid(), 1)
"""
NO_ROOM = """
    CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'no space left' USING ERRCODE = 'disk_full'; END $$;
    CREATE TRIGGER no_room BEFORE DELETE ON commands FOR EACH STATEMENT EXECUTE FUNCTION no_room()
"""


@pytest.fixture
async def worker(opened: Opened) -> AsyncIterator[Database]:
    database = Database(opened.database.dsn(WORKER), WORKER)
    await database.open()
    yield database
    await database.close()


async def commands_with_keys(opened: Opened, number: int) -> Tenant:
    tenant = await opened.begin()
    for n in range(number):
        await opened.when(tenant, given.permission(enabled=n % 2 == 0), key=f"key-{n}")
    return tenant


def keys(opened: Opened) -> int:
    ((count,),) = opened.sql("SELECT count(*) FROM commands")
    return int(count)


async def test_an_idempotency_key_is_kept_for_its_time_and_no_longer(opened: Opened, worker: Database) -> None:
    await commands_with_keys(opened, 6)
    opened.sql(AGED, KEEP_IDEMPOTENCY_HOURS + 1, 4)
    assert not await purge(worker)
    assert keys(opened) == 2
    opened.sql(AGED, KEEP_IDEMPOTENCY_HOURS - 1, 2)
    assert not await purge(worker)
    assert keys(opened) == 2


async def test_no_more_than_a_bounded_number_is_forgotten_at_once(opened: Opened, worker: Database) -> None:
    await commands_with_keys(opened, 6)
    opened.sql(AGED, KEEP_IDEMPOTENCY_HOURS + 1, 6)
    assert await purge(worker, 4)
    assert keys(opened) == 2
    assert not await purge(worker, 4)
    assert keys(opened) == 0


async def test_old_keys_are_found_by_an_index_however_often_their_room_was_used_again(opened: Opened) -> None:
    # A summary of blocks would tell less and less: what is purged makes room among what is young.
    ((definition,),) = opened.sql("SELECT pg_get_indexdef('commands_recorded'::regclass)")
    assert definition.endswith("USING btree (recorded_at)")


async def test_a_kind_that_cannot_be_forgotten_holds_up_no_other(
    opened: Opened, worker: Database, caplog: pytest.LogCaptureFixture
) -> None:
    tenant = await commands_with_keys(opened, 1)
    opened.sql(AGED, KEEP_IDEMPOTENCY_HOURS + 1, 1)
    opened.sql(COUNTED, tenant.ledger_id, KEEP_REFUSAL_COUNTS_DAYS + 1)
    opened.sql(NO_ROOM)
    assert not await purge(worker)
    assert opened.sql("SELECT 1 FROM refused_attempts") == []
    said = [record.getMessage() for record in caplog.records if record.name == "infra.jobs.retention"]
    assert len(said) == 1
    assert said[0].startswith("Old idempotency keys could not be deleted; this will be retried: no space left")
