"""The expiry clock: what is due is recorded once, though others are at it too, and nothing wrong holds up the rest."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from domain.code import Code
from domain.values import Sealed
from infra.jobs import expiry_clock, expiry_figures
from infra.jobs.expiry_clock import ExpiryClock
from infra.jobs.expiry_figures import Figures, read_figures
from infra.postgres.roles import WORKER
from infra.runtime import Runtime, runtime
from projections.engine.advisory_locks import AdvisoryLock
from tests import given
from tests.given import CAMPAIGN, CODE, OTHER_CODE, OTHER_SECRET, VIDEO
from tests.infra.opened import MASTER_KEY, Opened, Tenant
from tests.projections.memory_log import until

pytestmark = pytest.mark.long("clocks wait for codes to end, and for each other")

DAY = timedelta(days=1)

OF_STREAM = "SELECT type FROM events WHERE stream_id = %s ORDER BY version"
OF_TYPE = "SELECT stream_id FROM events WHERE type = %s ORDER BY stream_id"
CLOCKS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'sparkledger expiry clock'
"""
END_CLOCKS = CLOCKS.replace("count(*)", "pg_terminate_backend(pid, 5000)")
LEADERS = f"""
    SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
    WHERE d.datname = current_database() AND l.locktype = 'advisory' AND l.granted
    AND l.objid = {AdvisoryLock.EXPIRY_CLOCK}
"""
# An event that nobody can read, and what makes it a note that everybody can: around the append, as a superuser can.
SPOIL = """
    INSERT INTO events (ledger_id, position, stream_id, version, event_id, type, type_version, recorded_at,
                        effective_at, creator_stream, actor_role, source, command_id, format, body)
    SELECT ledger_id, (SELECT max(position) + 1 FROM events WHERE ledger_id = e.ledger_id), stream_id, version + 1,
           gen_random_uuid(), 'Spoilt', 1, now(), now(), creator_stream, 'operator', 'operator', gen_random_uuid(), 1,
           'no JSON'
    FROM events e WHERE stream_id = %s ORDER BY version DESC LIMIT 1
"""
MEND = """
    ALTER TABLE events DISABLE TRIGGER USER;
    UPDATE events SET type = 'NoteAdded', body = '{"note_fingerprint":"a"}' WHERE type = 'Spoilt';
    ALTER TABLE events ENABLE TRIGGER USER
"""


@dataclass
class Worker:
    """A worker's clock, on a time of its own."""

    parts: Runtime
    clock: ExpiryClock
    ahead: timedelta = timedelta()

    def now(self) -> datetime:
        """What it takes the time for."""
        return datetime.now(UTC) + self.ahead


class Workers:
    """Starts workers on one database."""

    def __init__(self, opened: Opened, stack: AsyncExitStack) -> None:
        self._opened = opened
        self._stack = stack

    async def start(self, **ahead: float) -> Worker:
        """Start one whose clock is ahead, by what `timedelta` takes."""
        dsn = self._opened.database.dsn(WORKER)
        parts = await self._stack.enter_async_context(runtime(dsn, WORKER, MASTER_KEY))
        worker = Worker(parts, ExpiryClock(parts), timedelta(**ahead))
        parts.handler.now = worker.now
        return worker


@pytest.fixture
async def workers(opened: Opened) -> AsyncIterator[Workers]:
    """What starts workers."""
    async with AsyncExitStack() as stack:
        yield Workers(opened, stack)


@pytest.fixture
async def tenant(opened: Opened) -> Tenant:
    """A ledger in which the creator's permission is on."""
    tenant = await opened.begin()
    await opened.when(tenant, given.permission())
    return tenant


async def issue(opened: Opened, tenant: Tenant, count: int) -> list[UUID]:
    """Issue codes for videos of their own, numbered from 1."""
    code_ids = [UUID(int=tenant.ledger_id * 1000 + number) for number in range(1, count + 1)]
    for code_id in code_ids:
        secret = Sealed(f"#secret+of+code+{code_id.int}=")
        await opened.when(tenant, given.generate(code_id, video_id=f"video-{code_id.int}", secret=secret))
    await opened.apply()
    return code_ids


def told(opened: Opened, code_id: UUID = CODE) -> str:
    """Return the types of all that is recorded of a code."""
    return " ".join(type_ for (type_,) in opened.sql(OF_STREAM, code_id))


def recorded(opened: Opened, type_: str) -> list[UUID]:
    """Return the codes of which something was recorded, as often as it was, in order of their numbers."""
    return [stream_id for (stream_id,) in opened.sql(OF_TYPE, type_)]


async def test_an_expiry_is_recorded_by_the_clock_at_the_windows_end_and_frees_the_video(
    opened: Opened, workers: Workers, tenant: Tenant
) -> None:
    begun = datetime.now(UTC)
    campaign = replace(CAMPAIGN, starts_at=begun + DAY, ends_at=begun + 90 * DAY)
    for command in (given.generate(), given.share(), given.redeem(), given.launch(campaign)):
        await opened.when(tenant, command)
    await opened.apply()
    worker = await workers.start(days=31)
    assert await worker.clock.record_due() == 1
    stream = await opened.aggregates.code_stream(tenant.ledger_id, CODE)
    ended, expired = stream[-2:]
    assert given.types([ended, expired]) == ["CampaignEnded", "Expired"]
    assert isinstance(expired.event, Code.Expired)
    assert ended.effective_at == expired.effective_at == expired.event.expires_at
    assert (expired.source, expired.actor.key_id, expired.actor.role) == ("clock", "clock", "clock")
    assert ended.command_id == expired.command_id
    opened.handler.now = worker.now
    await opened.when(tenant, given.generate(OTHER_CODE, secret=OTHER_SECRET))
    assert told(opened, OTHER_CODE) == "CodeGenerated", "the video is free"


async def test_reminders_are_recorded_when_their_thresholds_are_crossed_and_then_the_expiry(
    opened: Opened, workers: Workers, tenant: Tenant
) -> None:
    await opened.when(tenant, given.generate())
    worker = await workers.start()
    counts = []
    for days in (15, 16, 20, 24, 29, 30):
        worker.ahead = days * DAY + timedelta(hours=1)
        await opened.apply()
        counts.append(await worker.clock.record_due())
    assert counts == [0, 1, 0, 1, 1, 1]
    stream = await opened.aggregates.code_stream(tenant.ledger_id, CODE)
    reminders = [(given.body(r), r.effective_at) for r in stream if r.type == "ExpiryApproaching"]
    assert [(body["days_left"], body["expires_at"] - crossed_at) for body, crossed_at in reminders] == [
        (14, 14 * DAY),
        (7, 7 * DAY),
        (1, DAY),
    ]
    assert told(opened) == "CodeGenerated" + 3 * " ExpiryApproaching" + " Expired"


async def test_a_worker_that_was_down_records_the_most_urgent_reminder_alone(
    opened: Opened, workers: Workers, tenant: Tenant
) -> None:
    await issue(opened, tenant, 3)
    worker = await workers.start(days=29.5)
    assert await worker.clock.record_due() == 3
    page = await opened.events.page(tenant.ledger_id, after=4)
    assert [given.body(r)["days_left"] for r in page] == [1, 1, 1]


async def test_what_the_view_has_not_heard_of_is_not_recorded_again(
    opened: Opened, workers: Workers, tenant: Tenant
) -> None:
    code_ids = await issue(opened, tenant, 5)
    worker = await workers.start(days=31)
    assert [await worker.clock.record_due() for _ in range(3)] == [5, 0, 0]
    begun_again = await workers.start(days=31)
    assert await begun_again.clock.record_due() == 0
    await opened.apply()
    assert [await clock.record_due() for clock in (worker.clock, begun_again.clock)] == [0, 0]
    assert recorded(opened, "Expired") == code_ids


async def test_two_clocks_at_once_record_everything_once(opened: Opened, workers: Workers, tenant: Tenant) -> None:
    code_ids = await issue(opened, tenant, 40)
    pair = [await workers.start(days=29.5) for _ in range(2)]
    assert sum(await asyncio.gather(*(worker.clock.record_due() for worker in pair))) == 40
    await opened.apply()
    for worker in pair:
        worker.ahead = 31 * DAY
    assert sum(await asyncio.gather(*(worker.clock.record_due() for worker in pair))) == 40
    assert recorded(opened, "ExpiryApproaching") == code_ids
    assert recorded(opened, "Expired") == code_ids


async def test_a_clock_that_jumps_back_records_nothing_twice(opened: Opened, workers: Workers, tenant: Tenant) -> None:
    await issue(opened, tenant, 2)
    worker = await workers.start()
    for days in (24, 17, 31, 16, 29.5, 31):
        worker.ahead = timedelta(days=days)
        await worker.clock.record_due()
        await opened.apply()
    page = await opened.events.page(tenant.ledger_id, after=3)
    assert sorted(given.types(page)) == ["Expired"] * 2 + ["ExpiryApproaching"] * 2


async def test_the_longest_due_come_first_and_ledgers_take_turns(
    opened: Opened, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expiry_clock, "BATCH", 2)
    tenants = [await opened.begin(name) for name in ("busy", "quiet")]
    for tenant, count in zip(tenants, (5, 1), strict=True):
        await opened.when(tenant, given.permission())
        await issue(opened, tenant, count)
    worker = await workers.start(days=31)
    taken: list[tuple[int, list[UUID]]] = []
    record = worker.clock._recorder.record

    async def watched(ledger_id: int, code_ids: Sequence[UUID]) -> Any:
        taken.append((ledger_id, list(code_ids)))
        return await record(ledger_id, code_ids)

    monkeypatch.setattr(worker.clock._recorder, "record", watched)
    assert await worker.clock.record_due() == 6
    busy, quiet = (tenant.ledger_id for tenant in tenants)
    first = [UUID(int=busy * 1000 + number) for number in range(1, 6)]
    assert taken == [
        (busy, first[:2]),
        (quiet, [UUID(int=quiet * 1000 + 1)]),
        (busy, first[2:4]),
        (busy, first[4:]),
    ]


async def test_ledgers_take_turns_from_one_look_to_the_next(
    opened: Opened, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expiry_clock, "BATCH", 1)
    monkeypatch.setattr(expiry_clock, "LOOK_EVERY_S", 0)  # a look ends after one batch
    tenants = [await opened.begin(name) for name in ("one", "two", "three")]
    for tenant in tenants:
        await opened.when(tenant, given.permission())
        await issue(opened, tenant, 2)
    worker = await workers.start(days=31)
    for _ in range(6):
        assert await worker.clock.record_due() == 1
    page = opened.sql("SELECT ledger_id FROM events WHERE type = 'Expired' ORDER BY recorded_at")
    assert [ledger_id for (ledger_id,) in page] == 2 * [tenant.ledger_id for tenant in tenants]


async def test_a_command_that_comes_first_is_what_counts(
    opened: Opened, workers: Workers, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    due, revoked = await issue(opened, tenant, 2)
    worker = await workers.start(days=29.5)
    streams = worker.parts.events.streams

    async def overtaken(ledger_id: int, stream_ids: Sequence[UUID]) -> Any:
        read = await streams(ledger_id, stream_ids)
        monkeypatch.undo()
        await opened.when(tenant, given.revoke(revoked))
        await opened.when(tenant, given.share(due))
        return read

    monkeypatch.setattr(worker.parts.events, "streams", overtaken)
    assert await worker.clock.record_due() == 1
    assert told(opened, due) == "CodeGenerated Shared ExpiryApproaching"
    assert told(opened, revoked) == "CodeGenerated Revoked"


async def test_an_expiry_recorded_late_leaves_the_video_to_the_code_that_took_it(
    opened: Opened, workers: Workers, tenant: Tenant
) -> None:
    await opened.when(tenant, given.generate())
    await opened.apply()
    worker = await workers.start(days=31)
    opened.handler.now = worker.now
    await opened.when(tenant, given.generate(OTHER_CODE, secret=OTHER_SECRET))
    assert await worker.clock.record_due() == 1
    assert told(opened) == "CodeGenerated Expired"
    repository = await opened.aggregates.repository(tenant.ledger_id)
    assert [code.id for code in (await repository.of_video(VIDEO)).codes] == [CODE, OTHER_CODE]


async def test_a_code_that_was_over_when_it_was_recorded_expires_too(
    opened: Opened, workers: Workers, tenant: Tenant
) -> None:
    await opened.when(tenant, given.generate(starts_at=datetime.now(UTC) - 40 * DAY))
    await opened.apply()
    worker = await workers.start()
    assert await worker.clock.record_due() == 1
    assert told(opened) == "CodeGenerated Expired"


# What cannot be recorded.


class Monotonic:
    """Stands for module `time`: a clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """Return seconds since some moment."""
        return self.now


@pytest.fixture
def monotonic(monkeypatch: pytest.MonkeyPatch) -> Monotonic:
    """The time that pauses are measured by."""
    standing = Monotonic()
    monkeypatch.setattr(expiry_clock, "time", standing)
    return standing


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the clock said that somebody should look into."""
    return [r.getMessage() for r in caplog.records if r.name == expiry_clock.__name__ and r.levelno >= logging.WARNING]


async def test_a_stream_that_cannot_be_read_holds_nobody_up_and_is_tried_ever_less_often(
    opened: Opened, workers: Workers, tenant: Tenant, monotonic: Monotonic, caplog: pytest.LogCaptureFixture
) -> None:
    code_ids = await issue(opened, tenant, 5)
    spoilt = code_ids.pop(2)
    opened.sql(SPOIL, spoilt)
    worker = await workers.start(days=31)
    assert await worker.clock.record_due() == 4
    assert recorded(opened, "Expired") == code_ids
    failures = [worker.clock.figures.failures]
    for seconds in (0.9, 0.2, 1.8, 0.3, 3.8, 0.3):
        monotonic.now += seconds
        assert await worker.clock.record_due() == 0
        failures.append(worker.clock.figures.failures)
    assert failures == [1, 1, 2, 2, 3, 3, 4]
    (line,) = said(caplog)
    assert str(spoilt) in line
    assert worker.clock.figures.failing == 1

    opened.sql(MEND)
    monotonic.now += expiry_clock.FAILED_LONGEST_S
    assert await worker.clock.record_due() == 1
    assert worker.clock.figures.failing == 0
    assert told(opened, spoilt) == "CodeGenerated NoteAdded Expired"


async def test_a_code_that_cannot_be_decided_holds_nobody_up(
    opened: Opened, workers: Workers, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    code_ids = await issue(opened, tenant, 3)
    expire = Code.expire

    def broken(code: Code, *, now: datetime) -> None:
        if code.id == code_ids[0]:
            raise ZeroDivisionError
        expire(code, now=now)

    monkeypatch.setattr(Code, "expire", broken)
    worker = await workers.start(days=31)
    assert await worker.clock.record_due() == 2
    assert worker.clock.figures.failures == 1


async def test_a_ledger_that_cannot_be_written_to_holds_no_other_up_and_is_tried_again(
    opened: Opened,
    workers: Workers,
    tenant: Tenant,
    monotonic: Monotonic,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = await opened.begin("other")
    await opened.when(other, given.permission())
    await issue(opened, tenant, 3)
    await issue(opened, other, 3)
    worker = await workers.start(days=31)
    keys = worker.parts.keyring.ledger

    async def locked_away(ledger_id: int) -> Any:
        if ledger_id == tenant.ledger_id:
            raise LookupError("the key is gone")
        return await keys(ledger_id)

    monkeypatch.setattr(worker.parts.keyring, "ledger", locked_away)
    assert [await worker.clock.record_due() for _ in range(3)] == [3, 0, 0]
    monotonic.now += 2 * expiry_clock.AWAY_S
    assert await worker.clock.record_due() == 0
    assert len(said(caplog)) == 1
    monkeypatch.setattr(worker.parts.keyring, "ledger", keys)
    monotonic.now += 2 * expiry_clock.AWAY_S
    assert await worker.clock.record_due() == 3


async def test_what_waits_to_be_tried_again_is_bounded_and_met_again(
    opened: Opened, workers: Workers, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expiry_clock, "MAX_WAITING", 2)
    await issue(opened, tenant, 5)
    worker = await workers.start(days=31)
    with monkeypatch.context() as patch:
        patch.setattr(Code, "expire", lambda *_, **__: 1 / 0)
        assert await worker.clock.record_due() == 0
        assert worker.clock.figures.failing == 2
    assert await worker.clock.record_due() == 3


# Leading, and the figures.


@asynccontextmanager
async def leading(worker: Worker) -> AsyncIterator[None]:
    """Let a worker's clock run until the block ends."""
    task = asyncio.create_task(worker.clock.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_one_clock_leads_and_another_takes_over_when_it_ends(
    opened: Opened, workers: Workers, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expiry_clock, "LEAD_EVERY_S", 0.01)
    code_ids = await issue(opened, tenant, 2)
    first, second = [await workers.start() for _ in range(2)]
    async with AsyncExitStack() as stack:
        async with leading(first):
            await until(lambda: leaders(opened) == 1)
            await stack.enter_async_context(leading(second))
            first.ahead = 29.5 * DAY
            await until(lambda: recorded(opened, "ExpiryApproaching") == code_ids)
            second.ahead = 31 * DAY
            await until(lambda: clocks(opened) == 2)
            assert leaders(opened) == 1
            assert second.clock.figures == Figures()
        await opened.apply()
        await until(lambda: recorded(opened, "Expired") == code_ids)


async def test_a_clock_that_lost_its_lease_takes_it_again(
    opened: Opened, workers: Workers, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expiry_clock, "AWAY_S", 0.01)
    code_ids = await issue(opened, tenant, 2)
    worker = await workers.start()
    async with leading(worker):
        await until(lambda: leaders(opened) == 1)
        opened.sql(END_CLOCKS)
        await until(lambda: leaders(opened) == 1)
        worker.ahead = 31 * DAY
        await until(lambda: recorded(opened, "Expired") == code_ids)


async def test_a_clock_waits_for_a_view_that_is_not_there_yet(
    opened: Opened, workers: Workers, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expiry_clock, "AWAY_S", 0.01)
    await opened.when(tenant, given.generate())
    worker = await workers.start(days=31)
    async with leading(worker):
        await until(lambda: worker.clock._away)
        await opened.apply()
        await until(lambda: recorded(opened, "Expired") == [CODE])


async def test_the_figures_say_what_was_recorded_what_failed_and_what_is_due_next(
    opened: Opened, workers: Workers, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expiry_figures, "WRITE_EVERY_S", 0.0)
    code_ids = await issue(opened, tenant, 3)
    (generated,) = await opened.events.at_positions(tenant.ledger_id, [2])
    end = given.body(generated)["expires_at"]
    worker = await workers.start()
    async with leading(worker):
        await known(opened, Figures(next_due_at=end - 14 * DAY))
        worker.ahead = 29.5 * DAY
        await until(lambda: recorded(opened, "ExpiryApproaching") == code_ids)
        await opened.apply()
        await known(opened, Figures(reminders=3, next_due_at=end))
        opened.sql(SPOIL, code_ids[0])
        worker.ahead = 31 * DAY
        await until(lambda: recorded(opened, "Expired") == code_ids[1:])
        await until(lambda: worker.clock.figures.failures > 1)
    figures = await read_figures(opened.api.database)
    assert (figures.expiries, figures.reminders, figures.failing, figures.next_due_at) == (2, 3, 1, end)
    assert figures.late_s(end + timedelta(seconds=90)) == 90
    assert figures.late_s(end - DAY) == 0

    begun_again = await workers.start(days=31)
    opened.sql(MEND)
    async with leading(begun_again):
        await until(lambda: recorded(opened, "Expired") == code_ids)
        await until(lambda: opened.sql("SELECT expiries FROM expiry_clock") == [(3,)])


async def known(opened: Opened, figures: Figures) -> None:
    """Wait until the API knows these figures."""

    async def are_known() -> bool:
        return await read_figures(opened.api.database) == figures

    await until(are_known)


def leaders(opened: Opened) -> int:
    """Count the sessions that hold the lease."""
    return int(opened.sql(LEADERS)[0][0])


def clocks(opened: Opened) -> int:
    """Count the sessions that hold the lease or want it."""
    return int(opened.sql(CLOCKS)[0][0])
