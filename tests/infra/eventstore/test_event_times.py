"""The two times of an event: when the ledger learned it, which never runs backwards, and when it was true."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from domain.errors import Refused
from infra.errors import Unavailable
from infra.eventstore.append import Appended
from infra.eventstore.group_commit import GroupCommitWriter
from infra.ids import uuid7
from tests import given
from tests.infra.eventstore.appends import appending, row, together, writing
from tests.infra.holding import locked, until_it_waits
from tests.infra.opened import RECORD, Opened, Tenant

# How far back the clock has jumped.
AHEAD = timedelta(hours=2)


async def appended(writer: GroupCommitWriter, tenant: Tenant, **fields: object) -> Appended:
    outcome = await writer.append(appending(tenant.ledger_id, row(uuid7()), **fields))
    assert isinstance(outcome, Appended)
    return outcome


def record_ahead(opened: Opened, tenant: Tenant) -> datetime:
    """Record an event as a server with a clock two hours ahead would have, and return when."""
    ahead = datetime.now(UTC) + AHEAD
    opened.record_at(tenant, 1, ahead)
    return ahead


async def test_recorded_at_does_not_decrease_when_the_clock_has_jumped_back(opened: Opened) -> None:
    tenant = await opened.begin()
    ahead = record_ahead(opened, tenant)
    async with writing(opened.database) as writer:
        outcomes = [await appended(writer, tenant) for _ in range(3)]
    assert [outcome.recorded_at for outcome in outcomes] == [ahead] * 3
    assert opened.sql("SELECT DISTINCT recorded_at FROM events") == [(ahead,)]


async def test_a_ledger_whose_clock_jumped_back_does_not_hold_up_the_others_of_its_batch(opened: Opened) -> None:
    jumped, other = await opened.begin("jumped"), await opened.begin("other")
    ahead = record_ahead(opened, jumped)
    async with writing(opened.database) as writer:
        outcomes = await together(writer, [appending(t.ledger_id, row(uuid7())) for t in (jumped, other)])
    moments = [outcome.recorded_at for outcome in outcomes if isinstance(outcome, Appended)]
    assert moments[0] == ahead
    assert moments[1] < ahead


async def test_recorded_at_moves_on_once_the_clock_has_caught_up(opened: Opened) -> None:
    tenant = await opened.begin()
    async with writing(opened.database) as writer:
        moments = [(await appended(writer, tenant)).recorded_at for _ in range(10)]
    assert all(earlier < later for earlier, later in pairwise(moments))


async def test_what_takes_effect_on_recording_bears_the_moment_of_recording(opened: Opened) -> None:
    tenant = await opened.begin()
    ahead = record_ahead(opened, tenant)
    done = await opened.when(tenant, given.permission())
    creator: Any = done.aggregate
    assert (done.recorded_at, creator.modified_on) == (ahead, ahead)
    assert opened.sql("SELECT effective_at FROM events WHERE position = 2") == [(ahead,)]


async def test_what_is_recorded_late_bears_the_moment_it_was_true(opened: Opened) -> None:
    tenant = await opened.begin()
    long_ago = datetime(2024, 2, 29, 23, 59, 59, 999_999, tzinfo=UTC)
    done = await opened.when(tenant, given.permission(), effective_at=long_ago)
    creator: Any = done.aggregate
    assert creator.modified_on == long_ago
    (effective_at, recorded_at) = opened.sql("SELECT effective_at, recorded_at FROM events")[0]
    assert effective_at == long_ago
    assert recorded_at == done.recorded_at > long_ago


async def test_the_end_of_a_window_is_effective_when_it_ended(opened: Opened) -> None:
    tenant = await opened.begin()
    await opened.when(tenant, given.permission())
    code: Any = (await opened.when(tenant, given.generate())).aggregate
    end = code.window.expires_at
    opened.handler.now = lambda: end + timedelta(days=3)
    await opened.when(tenant, given.record_due())
    assert opened.sql("SELECT effective_at FROM events WHERE type = 'Expired'") == [(end,)]


async def test_a_moment_is_turned_into_the_last_position_recorded_by_then(opened: Opened) -> None:
    tenant = await opened.begin()
    # Two events share a moment, as those of one batch do.
    for position, seconds in enumerate([0, 10, 10, 20], 1):
        opened.record_at(tenant, position, given.NOW + timedelta(seconds=seconds))
    asked = {-1: 0, 0: 1, 9: 1, 10: 3, 19: 3, 20: 4, 86_400: 4}
    told = {
        seconds: await opened.events.position_at(tenant.ledger_id, given.NOW + timedelta(seconds=seconds))
        for seconds in asked
    }
    assert told == asked


async def test_in_an_empty_ledger_every_moment_is_before_the_first_position(opened: Opened) -> None:
    tenant = await opened.begin()
    assert await opened.events.position_at(tenant.ledger_id, given.NOW) == 0


async def test_a_moment_of_just_now_waits_for_the_appends_under_way(opened: Opened) -> None:
    """An append takes its moment before its commit: a query that did not wait could get another answer later."""
    tenant = await opened.begin()
    store = opened.events
    moment = datetime.now(UTC)
    async with locked(opened, tenant) as under_way:
        await under_way.execute(RECORD, (tenant.ledger_id, 1, moment))
        asked = asyncio.create_task(store.position_at(tenant.ledger_id, moment))
        await until_it_waits(opened, function="position_at")
        # One of long ago cannot change any more, so it does not wait.
        assert await store.position_at(tenant.ledger_id, moment - AHEAD) == 0
    assert await asked == 1


async def test_a_moment_that_the_databases_clock_has_not_passed_is_waited_for(opened: Opened) -> None:
    """The caller may have a clock that is ahead: an answer at once would be another a moment later."""
    tenant = await opened.begin()
    store = opened.events
    moment = datetime.now(UTC) + timedelta(seconds=0.5)
    before = await store.position_at(tenant.ledger_id, moment)
    async with writing(opened.database) as writer:
        outcome = await appended(writer, tenant)
    assert outcome.recorded_at > moment
    assert await store.position_at(tenant.ledger_id, moment) == before
    with pytest.raises(Unavailable):
        await store.position_at(tenant.ledger_id, moment + AHEAD)


async def test_a_session_bound_to_another_ledger_learns_no_position(opened: Opened) -> None:
    one, two = await opened.begin("one"), await opened.begin("two")
    opened.record_at(one, 1, given.NOW)
    async with opened.api.database.connection(two.ledger_id) as connection:
        cursor = await connection.execute("SELECT position_at(%s, %s)", (one.ledger_id, given.NOW))
        assert await cursor.fetchone() == (0,)


async def test_as_of_a_past_moment_stays_the_same_after_a_clock_that_jumped_back(opened: Opened) -> None:
    """Were the next event to bear the earlier clock, what was known at that earlier time would change afterwards."""
    tenant = await opened.begin()
    record_ahead(opened, tenant)
    store = opened.events
    moment = datetime.now(UTC)
    before = await store.position_at(tenant.ledger_id, moment)
    async with writing(opened.database) as writer:
        await appended(writer, tenant)
    assert await store.position_at(tenant.ledger_id, moment) == before


async def test_a_process_whose_clock_is_behind_says_that_a_window_has_ended(opened: Opened) -> None:
    """Decided by its own clock again and again, the command would seem to lose a race that nobody else is in."""
    tenant = await opened.begin()
    await opened.when(tenant, given.permission())
    ended = datetime.now(UTC) - timedelta(minutes=30)
    await opened.when(tenant, given.generate(days=7, starts_at=ended - timedelta(days=7)))
    opened.handler.now = lambda: datetime.now(UTC) - timedelta(hours=1)
    with pytest.raises(Refused) as refused:
        await opened.when(tenant, given.redeem())
    assert refused.value.code == "code_expired"


@pytest.mark.parametrize("neighbours", [0, 3])
async def test_a_window_that_ended_by_the_time_of_its_ledger_has_ended_though_the_clock_jumped_back(
    opened: Opened, neighbours: int
) -> None:
    tenant = await opened.begin()
    await opened.when(tenant, given.permission())
    ends = datetime.now(UTC) + timedelta(hours=1)
    await opened.when(tenant, given.generate(days=7, starts_at=ends - timedelta(days=7)))
    opened.record_at(tenant, 3, datetime.now(UTC) + AHEAD)
    others = [await opened.begin(f"other-{number}") for number in range(neighbours)]
    redeemed, *_ = await asyncio.gather(
        opened.when(tenant, given.redeem()),
        *(opened.when(other, given.permission()) for other in others),
        return_exceptions=True,
    )
    assert isinstance(redeemed, Refused)
    assert redeemed.code == "code_expired"
