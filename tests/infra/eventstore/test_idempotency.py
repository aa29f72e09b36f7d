"""Idempotency keys: the same request again is told the same answer, and nothing is recorded twice."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from domain.commands import Ledger
from domain.errors import Refused
from domain.values import When
from infra.errors import IdempotencyMismatch, IdempotencyRunning
from infra.eventstore.command_handler import CommandResult
from tests import given
from tests.infra.opened import Opened, Tenant, opening


async def generated(opened: Opened) -> Tenant:
    tenant = await opened.begin()
    await opened.when(tenant, given.permission())
    await opened.when(tenant, given.generate())
    return tenant


def told(done: CommandResult[Any]) -> tuple[CommandResult[Any], dict[str, Any], str]:
    """Return an answer to the last field, and the state that the caller is shown."""
    aggregate: Any = done.aggregate
    fields = {name: value for name, value in vars(aggregate).items() if name != "_pending_events"}
    state = aggregate.state(done.recorded_at) if hasattr(aggregate, "state") else ""
    return done._replace(aggregate=None, replayed=False), fields, state


@pytest.mark.parametrize(
    "command",
    [
        given.permission(creator_id="creator-2"),
        given.generate(given.OTHER_CODE, video_id="video-2", secret=given.OTHER_SECRET),
        given.extend(days=60),
        given.share(note="for the summer campaign"),
        given.redeem(),
        given.reveal(),
        given.note(),
        given.revoke(),
    ],
    ids=["permission", "generate", "extend", "share", "redeem", "reveal", "note", "revoke"],
)
async def test_the_same_request_is_told_the_same_to_the_last_field(opened: Opened, command: given.Command) -> None:
    tenant = await generated(opened)
    first = await opened.when(tenant, command, "key-1")
    again = await opened.when(tenant, command, "key-1")
    assert told(again) == told(first)
    assert (first.replayed, again.replayed) == (False, True)


async def test_a_command_of_several_events_is_told_again_whole(opened: Opened) -> None:
    tenant = await generated(opened)
    await opened.when(tenant, given.redeem())
    starts_at = opened.handler.now() + timedelta(days=1)
    campaign = replace(given.CAMPAIGN, starts_at=starts_at, ends_at=starts_at + timedelta(days=90))
    await opened.when(tenant, given.launch(campaign))
    first = await opened.when(tenant, given.revoke(force=True), "key-1")
    again = await opened.when(tenant, given.revoke(force=True), "key-1")
    assert first.appended == 2
    assert told(again) == told(first)


async def test_what_happened_since_does_not_change_the_answer(opened: Opened) -> None:
    tenant = await generated(opened)
    first = await opened.when(tenant, given.share(), "key-1")
    await opened.when(tenant, given.redeem())
    await opened.when(tenant, given.revoke())
    assert told(await opened.when(tenant, given.share(), "key-1")) == told(first)


async def test_a_repeat_that_would_be_refused_now_is_told_its_first_answer(opened: Opened) -> None:
    tenant = await generated(opened)
    first = await opened.when(tenant, given.extend(days=60), "key-1")
    await opened.when(tenant, given.permission(enabled=False))
    assert told(await opened.when(tenant, given.extend(days=60), "key-1")) == told(first)


async def test_a_repeat_after_a_restart_is_told_its_first_answer(opened: Opened) -> None:
    tenant = await generated(opened)
    first = await opened.when(tenant, given.share(), "key-1")
    async with opening(opened.database) as restarted:
        assert told(await restarted.when(tenant, given.share(), "key-1")) == told(first)


async def test_a_repeat_records_nothing(opened: Opened) -> None:
    tenant = await generated(opened)
    for _ in range(3):
        await opened.when(tenant, given.reveal(), "key-1")
    assert opened.sql("SELECT count(*) FROM events WHERE type = 'CodeRevealed'") == [(1,)]


async def test_the_same_key_with_another_body_is_a_mismatch(opened: Opened) -> None:
    tenant = await generated(opened)
    await opened.when(tenant, given.reveal(), "key-1", body="one")
    with pytest.raises(IdempotencyMismatch):
        await opened.when(tenant, given.reveal(), "key-1", body="two")


async def test_the_same_key_with_another_body_that_would_be_refused_is_a_mismatch_too(opened: Opened) -> None:
    tenant = await generated(opened)
    await opened.when(tenant, given.revoke(), "key-1", body="one")
    with pytest.raises(IdempotencyMismatch):
        await opened.when(tenant, given.extend(days=60), "key-1", body="two")


async def test_the_same_key_of_another_api_key_is_another_request(opened: Opened) -> None:
    tenant = await generated(opened)
    other = await opened.another_key(tenant.ledger_id)
    first = await opened.when(tenant, given.reveal(), "key-1")
    second = await opened.when(other, given.reveal(), "key-1")
    assert (second.replayed, second.position) == (False, first.position + 1)


async def test_while_the_first_is_running_the_second_is_told_so(opened: Opened) -> None:
    tenant = await generated(opened)
    running, may_go_on = asyncio.Event(), asyncio.Event()

    async def slow(ledger: Ledger, when: When) -> Any:
        running.set()
        await may_go_on.wait()
        return await given.reveal()(ledger, when)

    first = asyncio.create_task(opened.handler.handle(tenant.request("key-1"), slow))
    await running.wait()
    with pytest.raises(IdempotencyRunning):
        await opened.when(tenant, given.reveal(), "key-1")
    may_go_on.set()
    assert (await first).appended == 1


async def test_two_processes_that_run_the_same_request_at_once_record_it_once(opened: Opened) -> None:
    """Neither knows of the other: the log's own transaction decides."""
    tenant = await generated(opened)
    async with opening(opened.database) as other:
        for n in range(20):
            answers = await asyncio.gather(
                opened.when(tenant, given.reveal(), f"key-{n}"), other.when(tenant, given.reveal(), f"key-{n}")
            )
            assert told(answers[0]) == told(answers[1])
            assert sorted(answer.replayed for answer in answers) == [False, True]


async def test_a_request_that_was_abandoned_may_be_sent_again(opened: Opened) -> None:
    tenant = await generated(opened)
    running = asyncio.Event()

    async def endless(ledger: Ledger, when: When) -> Any:
        running.set()
        await asyncio.Event().wait()
        raise AssertionError("nobody wakes it")

    first = asyncio.create_task(opened.handler.handle(tenant.request("key-1"), endless))
    await running.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert (await opened.when(tenant, given.reveal(), "key-1")).replayed is False


async def test_a_refusal_is_not_kept(opened: Opened) -> None:
    tenant = await generated(opened)
    await opened.when(tenant, given.permission(enabled=False))
    with pytest.raises(Refused, match="ad authorization is off"):
        await opened.when(tenant, given.extend(days=60), "key-1")
    await opened.when(tenant, given.permission(enabled=True))
    assert (await opened.when(tenant, given.extend(days=60), "key-1")).appended == 1


async def test_a_refusal_that_is_recorded_is_not_kept_either(opened: Opened) -> None:
    tenant = await opened.begin()
    await opened.when(tenant, given.permission())
    starts_at = opened.handler.now() + timedelta(days=5)
    await opened.when(tenant, given.generate(starts_at=starts_at))
    with pytest.raises(Refused, match="has not started"):
        await opened.when(tenant, given.redeem(), "key-1")
    opened.handler.now = lambda: starts_at
    done = await opened.when(tenant, given.redeem(), "key-1")
    assert (done.appended, done.replayed) == (1, False)


async def test_what_records_nothing_is_not_kept(opened: Opened) -> None:
    tenant = await generated(opened)
    await opened.when(tenant, given.share())
    await opened.when(tenant, given.share(), "key-1")
    assert opened.sql("SELECT count(*) FROM commands") == [(0,)]


async def test_the_log_keeps_no_body_and_no_key_in_clear(opened: Opened) -> None:
    tenant = await generated(opened)
    await opened.when(tenant, given.reveal(), "key-that-is-nobodys-business")
    (kept,) = opened.sql("SELECT c::text FROM commands c")[0]
    assert "business" not in kept
    assert len(opened.sql("SELECT key FROM commands")[0][0]) == 16
