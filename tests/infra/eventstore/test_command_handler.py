"""Commands that race each other on a real log: what the rules promise holds, in whatever order they come."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest

from domain import commands
from domain.commands import Ledger
from domain.creator import Creator
from domain.errors import Refused
from domain.values import Sealed, When
from infra.errors import KeyNoLongerValid
from infra.eventstore.command_handler import CommandResult
from infra.ids import uuid7
from tests import given
from tests.infra.opened import Opened, Tenant, opening


async def permitted(opened: Opened, creator_id: str = given.CREATOR) -> Tenant:
    tenant = await opened.begin()
    await opened.when(tenant, given.permission(creator_id=creator_id))
    return tenant


def fresh_code(
    number: int = 0, *, video_id: str = given.VIDEO, secret: str | None = None, **facts: Any
) -> given.Command:
    """Return the command that generates a code with an id of its own, and a secret of its own if none is given."""
    text = Sealed(secret or f"#secret/number+{number:04}=of-many")
    return given.generate(uuid7(), video_id=video_id, secret=text, **facts)


async def outcomes(*commands: Any) -> Counter[str]:
    """Carry commands out at once, and count what came of each: `done`, or the code of its refusal."""
    came = await asyncio.gather(*commands, return_exceptions=True)
    return Counter(
        one.code if isinstance(one, Refused) else "done" if isinstance(one, CommandResult) else repr(one)
        for one in came
    )


async def test_of_32_codes_for_one_video_at_once_one_is_generated(opened: Opened) -> None:
    tenant = await permitted(opened)
    came = await outcomes(*(opened.when(tenant, fresh_code(n)) for n in range(32)))
    assert came == {"done": 1, "live_code_exists": 31}


async def test_of_32_codes_for_one_video_from_two_processes_one_is_generated(opened: Opened) -> None:
    tenant = await permitted(opened)
    async with opening(opened.database) as other:
        came = await outcomes(*((opened, other)[n % 2].when(tenant, fresh_code(n)) for n in range(32)))
    assert came == {"done": 1, "live_code_exists": 31}


async def test_of_32_codes_with_one_secret_at_once_one_is_generated(opened: Opened) -> None:
    tenant = await permitted(opened)
    same = "#one/secret+for-all=A1B2"
    came = await outcomes(
        *(opened.when(tenant, fresh_code(video_id=f"video-{n}", secret=same)) for n in range(32)),
    )
    assert came == {"done": 1, "secret_exists": 31}


async def test_32_first_switches_of_one_creator_at_once_make_one_stream(opened: Opened) -> None:
    tenant = await opened.begin()

    def enable_in_a_stream_of_its_own(stream_id: UUID) -> given.Command:
        return lambda ledger, when: commands.set_permission(
            ledger, given.CREATOR, enabled=True, stream_id=stream_id, when=when
        )

    came = await outcomes(*(opened.when(tenant, enable_in_a_stream_of_its_own(uuid7())) for _ in range(32)))
    assert came == {"done": 32}
    assert opened.sql("SELECT count(DISTINCT stream_id), count(*) FROM events") == [(1, 1)]


async def test_a_ledger_does_not_see_anothers_video_or_secret(opened: Opened) -> None:
    tenants = [await opened.begin("one"), await opened.begin("two")]
    for tenant in tenants:
        await opened.when(tenant, given.permission())
        await opened.when(tenant, fresh_code(secret="#one/secret+for-both=A1B2"))
    assert opened.sql("SELECT count(*) FROM events WHERE type = 'CodeGenerated' GROUP BY ledger_id") == [(1,), (1,)]


async def test_a_revoked_code_frees_its_video(opened: Opened) -> None:
    tenant = await permitted(opened)
    await opened.when(tenant, given.generate())
    await opened.when(tenant, given.revoke())
    done = await opened.when(tenant, fresh_code(2))
    assert done.appended == 1


async def test_a_revoked_codes_secret_stays_taken(opened: Opened) -> None:
    tenant = await permitted(opened)
    await opened.when(tenant, given.generate())
    await opened.when(tenant, given.revoke())
    with pytest.raises(Refused) as refused:
        await opened.when(tenant, fresh_code(secret=str(given.SECRET)))
    assert refused.value.code == "secret_exists"


async def test_an_ended_code_that_nobody_recorded_as_expired_leaves_its_video_to_one_of_32(opened: Opened) -> None:
    tenant = await permitted(opened)
    ended = opened.handler.now() - timedelta(days=31)
    await opened.when(tenant, given.permission(), effective_at=ended)
    await opened.when(tenant, given.generate(starts_at=ended, days=30), effective_at=ended)
    came = await outcomes(*(opened.when(tenant, fresh_code(n)) for n in range(1, 33)))
    assert came == {"done": 1, "live_code_exists": 31}


async def test_of_32_late_codes_of_the_same_time_one_is_recorded(opened: Opened) -> None:
    tenant = await permitted(opened)
    ended = opened.handler.now() - timedelta(days=60)
    await opened.when(tenant, given.permission(), effective_at=ended)
    late = (opened.when(tenant, fresh_code(n), effective_at=ended + n * timedelta(hours=1)) for n in range(32))
    assert await outcomes(*late) == {"done": 1, "live_code_exists": 31}


async def test_of_32_codes_that_replace_the_same_one_at_once_one_does_and_is_answered(opened: Opened) -> None:
    tenant = await permitted(opened)
    await opened.when(tenant, given.generate())
    came = await asyncio.gather(
        *(opened.when(tenant, fresh_code(n, supersedes=given.CODE), f"key-{n}") for n in range(32)),
        return_exceptions=True,
    )
    (done,) = [one for one in came if isinstance(one, CommandResult)]
    assert {one.code for one in came if isinstance(one, Refused)} == {"code_superseded"}
    events = await opened.events.page(tenant.ledger_id)
    assert given.types(events[2:]) == ["Superseded", "CodeGenerated"]
    assert done.aggregate is not None
    assert (done.appended, done.position, done.aggregate.supersedes) == (2, 4, str(given.CODE))
    repository = await opened.aggregates.repository(tenant.ledger_id)
    codes = (await repository.of_video(given.VIDEO)).codes
    assert [(code.id, code.version) for code in codes] == [(given.CODE, 2), (done.aggregate.id, 1)]


async def test_a_replacement_that_is_asked_for_again_answers_with_the_new_code(opened: Opened) -> None:
    tenant = await permitted(opened)
    await opened.when(tenant, given.generate())
    first = await opened.when(tenant, fresh_code(supersedes=given.CODE), "once")
    again = await opened.when(tenant, fresh_code(supersedes=given.CODE), "once")
    assert (again.replayed, again.position) == (True, first.position)
    assert again.aggregate == first.aggregate


async def test_no_code_is_generated_after_the_switch_off_was_recorded(opened: Opened) -> None:
    """The precondition, made to matter: the permission goes off between the reading and the append."""
    tenant = await permitted(opened)
    generate = fresh_code()
    attempts = 0

    async def decide(ledger: Ledger, when: When) -> Any:
        nonlocal attempts
        attempts += 1
        decision = await generate(ledger, when)
        if attempts == 1:
            await opened.when(tenant, given.permission(enabled=False))
        return decision

    with pytest.raises(Refused) as refused:
        await opened.handler.handle(tenant.request(), decide)
    assert (refused.value.code, attempts) == ("permission_disabled", 2)


async def test_codes_and_a_switch_off_at_once_leave_no_code_after_the_switch(opened: Opened) -> None:
    tenant = await permitted(opened)
    generate = [opened.when(tenant, fresh_code(n, video_id=f"video-{n}")) for n in range(32)]
    came = await outcomes(*generate[:16], opened.when(tenant, given.permission(enabled=False)), *generate[16:])
    assert came["done"] + came["permission_disabled"] == 33
    off = "SELECT position FROM events WHERE type = 'PermissionDisabled'"
    assert opened.sql(f"SELECT count(*) FROM events WHERE type = 'CodeGenerated' AND position > ({off})") == [(0,)]


async def test_a_switch_that_32_throw_at_once_alternates(opened: Opened) -> None:
    tenant = await permitted(opened)
    await outcomes(*(opened.when(tenant, given.permission(enabled=n % 2 == 0)) for n in range(32)))
    types = [type_ for (type_,) in opened.sql("SELECT type FROM events ORDER BY position")]
    assert all(one != other for one, other in pairwise(types))


async def test_a_key_revoked_between_the_door_and_the_log_records_nothing(opened: Opened) -> None:
    tenant = await permitted(opened)
    await opened.key_admin.revoke(tenant.ledger_id, tenant.key.key_id)
    with pytest.raises(KeyNoLongerValid):
        await opened.when(tenant, fresh_code())
    assert opened.sql("SELECT max(position) FROM events") == [(1,)]


async def test_a_key_that_expired_meanwhile_records_nothing(opened: Opened) -> None:
    tenant = await permitted(opened)
    opened.sql("UPDATE api_keys SET expires_at = now() WHERE key_id = %s", tenant.key.key_id)
    with pytest.raises(KeyNoLongerValid):
        await opened.when(tenant, fresh_code())


async def test_what_is_recorded_says_who_asked_and_by_what(opened: Opened) -> None:
    tenant = await opened.begin(role="admin")
    done = await opened.when(tenant, given.permission(), correlation_id="order-66", traceparent="00-4bf9-00f0-01")
    assert isinstance(done.aggregate, Creator)
    columns = "actor_key, actor_role, actor_subject, source, correlation_id, traceparent, creator_stream, stream_id"
    assert opened.sql(f"SELECT {columns} FROM events") == [
        (
            tenant.key.key_id,
            "admin",
            None,
            "operator",
            "order-66",
            "00-4bf9-00f0-01",
            done.aggregate.id,
            done.aggregate.id,
        )
    ]


async def test_an_event_of_a_code_names_its_creator_and_its_video(opened: Opened) -> None:
    tenant = await permitted(opened)
    await opened.when(tenant, fresh_code())
    assert opened.sql("SELECT type, creator_id, video_id FROM events ORDER BY position") == [
        ("PermissionEnabled", given.CREATOR, None),
        ("CodeGenerated", given.CREATOR, given.VIDEO),
    ]


async def causes(opened: Opened) -> list[tuple[str, str]]:
    """Return the types of events that follow from another one, each with the type of that one."""
    return opened.sql(
        "SELECT e.type, c.type FROM events e JOIN events c ON c.event_id = e.causation_id ORDER BY e.position"
    )


async def campaign(opened: Opened, *further: given.Command, days: int) -> tuple[Tenant, given.Clock]:
    """Let a campaign run since some days ago, and return the clock, which stands at that time."""
    tenant = await opened.begin()
    opened.handler.now = clock = given.Clock(datetime.now(UTC) - timedelta(days=days))
    long = replace(given.CAMPAIGN, starts_at=clock.now, ends_at=clock.now + timedelta(days=300))
    for command in (given.permission(), given.generate(), given.redeem(), *further, given.launch(long)):
        await opened.when(tenant, command, effective_at=clock.now)
    return tenant, clock


@pytest.mark.parametrize("cached", [True, False])
async def test_a_cause_that_was_recorded_earlier_is_found(opened: Opened, *, cached: bool) -> None:
    tenant, clock = await campaign(opened, given.extend(days=60), days=61)
    clock.forward(days=61)
    if not cached:
        opened.aggregates.cache.reset(opened.aggregates.cache.writer_session)
    await opened.when(tenant, given.record_due())

    assert await causes(opened) == [("CampaignEnded", "Expired"), ("Expired", "Extended")]


async def test_what_a_command_names_as_its_cause_is_recorded_where_nothing_closer_is_known(opened: Opened) -> None:
    tenant, _ = await campaign(opened, days=2)
    named = UUID(int=7)
    await opened.when(tenant, given.revoke(force=True), causation_id=named)

    assert await causes(opened) == [("CampaignEnded", "Revoked")]
    assert opened.sql("SELECT type FROM events WHERE causation_id = %s", named) == [("Revoked",)]
