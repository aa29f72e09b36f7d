"""What is noticed when a log has lost its end, what stops then, and how it goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from domain.log import Log
from infra.errors import Unavailable
from infra.eventstore.histories import UNCHECKED, HistoryChanged
from infra.jobs.anchor import MISSING, AnchorFile, Anchoring, check_once
from infra.jobs.log_restart import Restarted, restart
from infra.postgres.roles import API, WORKER
from infra.runtime import runtime
from tests import given
from tests.infra.opened import MASTER_KEY, Opened, Tenant
from tests.waiting import until

pytestmark = pytest.mark.anyio


@pytest.fixture
def file(tmp_path: Path) -> AnchorFile:
    return AnchorFile(tmp_path / "anchors" / "anchor.json")


async def check(opened: Opened, file: AnchorFile) -> None:
    """Compare the logs with their anchors once, as a worker that begins."""
    await check_once(opened.database.dsn(WORKER), file)


async def record(opened: Opened, tenant: Tenant, number: int = 1, who: str = "creator") -> None:
    """Record events, one of a creator each."""
    for _ in range(number):
        head = await opened.events.head(tenant.ledger_id)
        await opened.when(tenant, given.permission(creator_id=f"{who}-{head}"))


def lose(opened: Opened, tenant: Tenant, after: int) -> None:
    """Take the newest events away, as a restored backup or a standby that lagged behind lacks them."""
    with_triggers_off = "SET session_replication_role = replica"
    opened.sql(f"{with_triggers_off}; DELETE FROM events WHERE ledger_id = {tenant.ledger_id} AND position > {after}")


def restarted_database(opened: Opened) -> None:
    """Let the database look like another one than was checked."""
    opened.sql("UPDATE history_checks SET database = 'before'")


@asynccontextmanager
async def fresh_process(opened: Opened, tenant: Tenant) -> AsyncIterator[Opened]:
    """Another API process, which has appended nothing yet."""
    async with runtime(opened.database.dsn(API), API, MASTER_KEY) as api:
        other = Opened(opened.database, api, opened.key_admin, opened.ledger_admin, opened.worker)
        other.present(tenant.ledger_id, tenant.key.key_id)
        yield other


async def problem(opened: Opened, tenant: Tenant) -> str | None:
    opened.api.histories.forget()
    return (await opened.api.histories.of(tenant.ledger_id)).problem


async def test_a_ledger_that_was_never_anchored_is_new_and_is_anchored_at_its_last_event(
    opened: Opened, file: AnchorFile
) -> None:
    tenant = await opened.begin()
    await check(opened, file)
    assert file.read() == {}
    await record(opened, tenant, 3)

    await check(opened, file)

    history = await opened.api.histories.of(tenant.ledger_id)
    (last,) = await opened.events.at_positions(tenant.ledger_id, [3])
    ((log_id, anchor),) = file.read().items()
    assert (log_id, anchor.history, anchor.generation) == (history.log_id, history.history, 1)
    assert (anchor.position, anchor.event_id, anchor.recorded_at) == (3, last.event_id, last.recorded_at)
    assert opened.sql("SELECT ledger_id FROM anchored_ledgers") == [(tenant.ledger_id,)]


async def test_a_log_that_ends_before_its_anchor_is_neither_written_nor_handed_out(
    opened: Opened, file: AnchorFile
) -> None:
    tenant = await opened.begin()
    await record(opened, tenant, 3)
    await check(opened, file)
    before = file.read()

    lose(opened, tenant, after=2)
    await check(opened, file)

    assert "names event" in str(await problem(opened, tenant))
    with pytest.raises(Unavailable, match="sparkledger ledgers restart main --accept-loss"):
        (await opened.api.histories.of(tenant.ledger_id)).require_whole()
    async with fresh_process(opened, tenant) as other:
        with pytest.raises(Unavailable, match="position 3, and the database ends at position 2"):
            await record(other, tenant)
    assert file.read() == before
    assert await opened.events.head(tenant.ledger_id) == 2


async def test_a_log_that_grew_again_after_a_loss_is_noticed(opened: Opened, file: AnchorFile) -> None:
    tenant = await opened.begin()
    await record(opened, tenant, 3)
    await check(opened, file)
    lose(opened, tenant, after=1)
    opened.sql("DELETE FROM anchored_ledgers")  # as in a backup from before the first anchor: nothing stops an append
    opened.sql("DELETE FROM history_checks")
    async with fresh_process(opened, tenant) as other:
        await record(other, tenant, 4, "somebody-else")

    await check(opened, file)

    assert "has another event there" in str(await problem(opened, tenant))
    done = await restart(opened.database.dsn(), MASTER_KEY, "main", None)
    assert done.common_position == 1


async def test_a_missing_anchor_is_no_first_run(opened: Opened, file: AnchorFile) -> None:
    tenant = await opened.begin()
    await record(opened, tenant)
    await check(opened, file)
    kept = file.path.read_bytes()
    file.path.unlink()

    await check(opened, file)
    assert await problem(opened, tenant) == MISSING

    file.path.write_bytes(kept)
    await check(opened, file)
    assert await problem(opened, tenant) is None


async def test_a_malformed_anchor_file_stops_what_it_may_have_named_and_is_kept(
    opened: Opened, file: AnchorFile
) -> None:
    tenant, other = await opened.begin("one"), await opened.begin("two")
    await record(opened, tenant)
    await check(opened, file)
    file.path.write_text("{")
    await record(opened, other)

    await check(opened, file)

    assert "cannot be read" in str(await problem(opened, tenant))
    assert await problem(opened, other) is None
    assert file.path.read_text() == "{"


async def test_a_database_that_nobody_has_looked_at_waits_for_the_worker(opened: Opened, file: AnchorFile) -> None:
    tenant = await opened.begin()
    await record(opened, tenant)
    await check(opened, file)
    restarted_database(opened)

    async with fresh_process(opened, tenant) as other:
        with pytest.raises(Unavailable, match=UNCHECKED[:40]):
            await record(other, tenant)
        await check(opened, file)
        await record(other, tenant)


async def test_a_process_that_finds_its_own_last_event_waits_for_nobody(opened: Opened, file: AnchorFile) -> None:
    tenant = await opened.begin()
    await record(opened, tenant)
    await check(opened, file)
    restarted_database(opened)
    opened.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'sparkledger_api'")

    await record(opened, tenant)

    assert await opened.events.head(tenant.ledger_id) == 2


async def test_a_process_that_misses_its_own_last_event_stops_before_anybody_has_looked(opened: Opened) -> None:
    tenant = await opened.begin()
    await record(opened, tenant, 2)
    lose(opened, tenant, after=1)
    opened.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'sparkledger_api'")

    with pytest.raises(Unavailable, match="position 2, which was recorded"):
        await opened.when(tenant, given.permission(creator_id="somebody"))
    assert await opened.events.head(tenant.ledger_id) == 1


async def test_a_log_goes_on_as_the_next_generation_and_its_readers_are_told(opened: Opened, file: AnchorFile) -> None:
    tenant = await opened.begin()
    await record(opened, tenant, 3)
    await check(opened, file)
    first = await opened.api.histories.of(tenant.ledger_id)
    lost = file.read()[first.log_id]
    lose(opened, tenant, after=2)
    await check(opened, file)

    done = await restart(opened.database.dsn(), MASTER_KEY, "main", "a disk broke")

    assert done == Restarted(3, 2, done.history, 2)
    (recorded,) = await opened.events.at_positions(tenant.ledger_id, [3])
    assert (recorded.type, recorded.stream_id, recorded.actor.role) == ("LogRestarted", first.log_id, "admin")
    event: Any = recorded.event
    assert isinstance(event, Log.Restarted)
    assert (event.generation, event.history, event.previous_history) == (2, str(done.history), str(first.history))
    assert (event.common_position, event.lost_position, event.lost_event_id) == (2, 3, str(lost.event_id))
    assert event.reason == "a disk broke"
    opened.api.histories.forget()
    now = await opened.api.histories.of(tenant.ledger_id)
    assert (now.log_id, now.history, now.generation, now.problem) == (first.log_id, done.history, 2, None)
    with pytest.raises(HistoryChanged) as changed:
        now.require(first.history)
    assert (changed.value.current, changed.value.common_position) == (done.history, 2)
    await record(opened, tenant)
    # The next anchor is of the new history, and the one of before stops nobody.
    await check(opened, file)
    assert await problem(opened, tenant) is None
    assert (file.read()[first.log_id].history, file.read()[first.log_id].position) == (done.history, 4)


async def test_of_several_restarts_the_least_common_position_is_told(opened: Opened) -> None:
    tenant = await opened.begin()
    first = (await opened.api.histories.of(tenant.ledger_id)).history
    await record(opened, tenant, 2)
    second = await restart(opened.database.dsn(), MASTER_KEY, "main", None)
    await record(opened, tenant, 2)
    third = await restart(opened.database.dsn(), MASTER_KEY, "main", None)

    opened.api.histories.forget()
    now = await opened.api.histories.of(tenant.ledger_id)

    assert (now.history, now.generation) == (third.history, 3)
    assert now.common == {first: 2, second.history: 5}


async def test_a_generation_that_was_lost_whole_is_not_numbered_again(opened: Opened, file: AnchorFile) -> None:
    tenant = await opened.begin()
    await record(opened, tenant, 2)
    lost = await restart(opened.database.dsn(), MASTER_KEY, "main", None)
    await check(opened, file)
    # A backup from before the restart.
    lose(opened, tenant, after=2)
    opened.sql("DELETE FROM histories WHERE generation = 2")
    opened.sql("DELETE FROM anchored_ledgers")
    opened.sql("DELETE FROM history_checks")
    await check(opened, file)
    assert "generation 2, which this database has never had" in str(await problem(opened, tenant))

    done = await restart(opened.database.dsn(), MASTER_KEY, "main", None)

    opened.api.histories.forget()
    now = await opened.api.histories.of(tenant.ledger_id)
    assert (done.generation, now.common[lost.history]) == (3, 2)
    await check(opened, file)
    assert await problem(opened, tenant) is None


async def test_a_restart_needs_the_ledger(opened: Opened) -> None:
    with pytest.raises(LookupError, match="no ledger named nowhere"):
        await restart(opened.database.dsn(), MASTER_KEY, "nowhere", None)


async def test_a_worker_without_a_file_relies_on_the_one_that_leads_and_takes_over_from_it(
    opened: Opened, file: AnchorFile, tmp_path: Path
) -> None:
    tenant = await opened.begin()
    await record(opened, tenant)
    conninfo = opened.database.dsn(WORKER)
    own = AnchorFile(tmp_path / "other.json")
    leading = asyncio.create_task(Anchoring(conninfo, file, 0.05).run())
    await asyncio.to_thread(until, lambda: bool(file.read()))
    standing_by = asyncio.create_task(Anchoring(conninfo, own, 0.05).run())
    try:
        await asyncio.to_thread(until, lambda: bool(own.read()))
        assert own.read() == file.read()
        leading.cancel()
        await asyncio.gather(leading, return_exceptions=True)
        restarted_database(opened)
        await asyncio.to_thread(until, lambda: opened.sql("SELECT database FROM history_checks") != [("before",)])
        assert await problem(opened, tenant) is None
    finally:
        for task in (leading, standing_by):
            task.cancel()
        await asyncio.gather(leading, standing_by, return_exceptions=True)


async def test_the_file_is_for_its_owner_alone(file: AnchorFile) -> None:
    file.write({})
    file.write({})
    assert file.path.stat().st_mode & 0o777 == 0o600


async def test_a_file_that_cannot_be_written_stops_nobody(opened: Opened, tmp_path: Path) -> None:
    tenant = await opened.begin()
    await record(opened, tenant)
    (tmp_path / "in the way").write_text("")

    await check(opened, AnchorFile(tmp_path / "in the way" / "anchor.json"))

    assert await problem(opened, tenant) is None
    assert opened.sql("SELECT ledger_id FROM anchored_ledgers") == []
