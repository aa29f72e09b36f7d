"""The writer as its callers see it: given up, turned away, told at the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from infra.errors import Unavailable
from infra.eventstore import group_commit as writer_module
from infra.eventstore.append import Append, Appended
from infra.eventstore.append_statement import AppendStatement
from infra.eventstore.group_commit import NOT_RECORDED, GroupCommitWriter
from infra.ids import uuid7
from infra.postgres.roles import WORKER
from infra.postgres.session_tokens import SessionTokens
from tests.infra.eventstore.appends import appending, row, together, writing
from tests.infra.holding import count, locked, sent, until_it_waits
from tests.infra.opened import Opened


async def test_what_was_given_up_before_it_was_sent_is_not_recorded(opened: Opened) -> None:
    tenant = await opened.begin()
    async with writing(opened.database) as writer:
        async with locked(opened, tenant):
            first = sent(writer, appending(tenant.ledger_id, row(uuid7())))
            await until_it_waits(opened)
            second = sent(writer, appending(tenant.ledger_id, row(uuid7())))
            await asyncio.sleep(0)
            second.cancel()
        await first
        await writer.append(appending(tenant.ledger_id, row(uuid7())))
    assert second.cancelled()
    assert count(opened) == 2


async def test_what_was_given_up_after_it_was_sent_is_recorded_whole(opened: Opened) -> None:
    tenant = await opened.begin()
    stream = uuid7()
    async with writing(opened.database) as writer:
        async with locked(opened, tenant):
            first = sent(writer, appending(tenant.ledger_id, row(stream, 1), row(stream, 2)))
            await until_it_waits(opened)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
        await writer.append(appending(tenant.ledger_id, row(uuid7())))
    assert first.cancelled()
    assert count(opened) == 3


async def test_one_caller_of_a_batch_giving_up_never_touches_the_others(opened: Opened) -> None:
    tenant = await opened.begin()
    async with writing(opened.database) as writer:
        async with locked(opened, tenant):
            first = sent(writer, appending(tenant.ledger_id, row(uuid7())))
            await until_it_waits(opened)
            others = [sent(writer, appending(tenant.ledger_id, row(uuid7()))) for _ in range(10)]
            await asyncio.sleep(0)
            for given_up in others[::2]:
                given_up.cancel()
        outcomes = await asyncio.gather(first, *others[1::2])
    assert [outcome.first for outcome in outcomes if isinstance(outcome, Appended)] == [1, 2, 3, 4, 5, 6]


async def test_a_full_queue_turns_callers_away_and_serves_those_in_it(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "MAX_WAITING", 5)
    tenant = await opened.begin()
    async with writing(opened.database) as writer:
        async with locked(opened, tenant):
            first = sent(writer, appending(tenant.ledger_id, row(uuid7())))
            await until_it_waits(opened)
            waiting = [sent(writer, appending(tenant.ledger_id, row(uuid7()))) for _ in range(8)]
            turned_away = await asyncio.gather(*waiting[5:], return_exceptions=True)
        outcomes = await asyncio.gather(first, *waiting[:5])
    assert [str(error) for error in turned_away] == [writer_module.FULL] * 3
    assert {type(outcome) for outcome in outcomes} == {Appended}
    assert count(opened) == 6


@pytest.mark.parametrize("most", [4, writer_module.MAX_BATCH_CALLERS])
async def test_a_ledger_with_many_waiting_commands_leaves_others_their_turn(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(writer_module, "MAX_BATCH_CALLERS", most)
    busy, other = await opened.begin(), await opened.begin("other")
    order: list[int] = []

    def note(ledger_id: int) -> Callable[[object], None]:
        return lambda _: order.append(ledger_id)

    async with writing(opened.database) as writer:
        await writer.append(appending(busy.ledger_id, row(uuid7())))
        async with locked(opened, busy):
            first = sent(writer, appending(busy.ledger_id, row(uuid7())))
            await until_it_waits(opened)
            waiting = [(busy, sent(writer, appending(busy.ledger_id, row(uuid7())))) for _ in range(12)]
            waiting += [(other, sent(writer, appending(other.ledger_id, row(uuid7())))) for _ in range(2)]
            for tenant, task in waiting:
                task.add_done_callback(note(tenant.ledger_id))
        outcomes = await asyncio.gather(first, *(task for _, task in waiting))
    assert {type(outcome) for outcome in outcomes} == {Appended}
    assert order[:4].count(other.ledger_id) == 2
    positions = [outcome.first for outcome in outcomes[:13] if isinstance(outcome, Appended)]
    assert positions == list(range(2, 15)), "those of one ledger keep their order"


async def test_stopping_answers_who_is_being_recorded_and_who_waits(opened: Opened) -> None:
    tenant = await opened.begin()
    writer = GroupCommitWriter(opened.database.dsn(WORKER), WORKER)
    writer.start()
    async with locked(opened, tenant):
        first = sent(writer, appending(tenant.ledger_id, row(uuid7())))
        await until_it_waits(opened)
        second = sent(writer, appending(tenant.ledger_id, row(uuid7())))
        await asyncio.sleep(0)
        stopping = asyncio.create_task(writer.stop())
        await asyncio.sleep(0)
    await stopping
    assert isinstance(await first, Appended)
    with pytest.raises(Unavailable, match=r"is stopping\. Nothing was recorded"):
        await second
    assert count(opened) == 1


async def test_a_stopped_writer_turns_callers_away(opened: Opened) -> None:
    tenant = await opened.begin()
    async with writing(opened.database) as writer:
        pass
    with pytest.raises(Unavailable, match="is stopping"):
        await writer.append(appending(tenant.ledger_id, row(uuid7())))


async def test_a_writer_whose_database_is_away_says_so_and_serves_once_it_is_back(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = await opened.begin()
    async with writing(opened.database) as writer:
        there = writer._session["conninfo"]
        writer._session["conninfo"] = "host=/nowhere"
        outcomes = await together(writer, [appending(tenant.ledger_id, row(uuid7())) for _ in range(3)])
        writer._session["conninfo"] = there
        after = await writer.append(appending(tenant.ledger_id, row(uuid7())))
    assert [str(outcome) for outcome in outcomes] == [NOT_RECORDED] * 3
    assert isinstance(after, Appended)
    assert after.first == 1


async def test_a_database_that_refuses_writes_is_unavailable_and_serves_once_it_takes_them(opened: Opened) -> None:
    tenant = await opened.begin()
    async with writing(opened.database) as writer:
        await writer.append(appending(tenant.ledger_id, row(uuid7())))
        assert writer._connection is not None
        await writer._connection.execute("SET default_transaction_read_only = on")
        outcomes = await together(writer, [appending(tenant.ledger_id, row(uuid7())) for _ in range(3)])
        await writer._connection.execute("SET default_transaction_read_only = off")
        after = await writer.append(appending(tenant.ledger_id, row(uuid7())))
    assert [str(outcome) for outcome in outcomes] == [writer_module.REFUSED_WRITE] * 3
    assert isinstance(after, Appended)
    assert after.first == 2


async def test_a_defect_of_the_writer_is_told_to_its_callers_and_not_to_the_next(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that ended with it would leave every later caller waiting for ever."""
    tenant = await opened.begin()
    async with writing(opened.database) as writer:
        with monkeypatch.context() as patch:
            patch.delattr(GroupCommitWriter, "_still_known")
            outcomes = await together(writer, [appending(tenant.ledger_id, row(uuid7())) for _ in range(3)])
        after = await writer.append(appending(tenant.ledger_id, row(uuid7())))
    assert [type(outcome) for outcome in outcomes] == [AttributeError] * 3
    assert isinstance(after, Appended)


@pytest.mark.parametrize(
    ("limit", "value", "batches"),
    [
        ("MAX_BATCH_CALLERS", 4, [1, 4, 4, 2]),
        # Each of them counts for about 400 bytes.
        ("MAX_BATCH_BYTES", 1_200, [1, 3, 3, 3, 1]),
    ],
)
async def test_a_batch_is_bounded(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, batches: list[int]
) -> None:
    monkeypatch.setattr(writer_module, limit, value)
    tenant = await opened.begin()
    sizes = counted_batches(monkeypatch)
    async with writing(opened.database) as writer:
        async with locked(opened, tenant):
            first = sent(writer, appending(tenant.ledger_id, row(uuid7(), body=b"")))
            await until_it_waits(opened)
            others = [sent(writer, appending(tenant.ledger_id, row(uuid7(), body=b""))) for _ in range(10)]
            await asyncio.sleep(0)
        await asyncio.gather(first, *others)
    assert sizes == batches


async def test_half_of_those_who_send_one_command_after_another_decide_while_the_other_half_is_committed(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = await opened.begin()
    sizes = counted_batches(monkeypatch)
    async with writing(opened.database) as writer:

        async def sends() -> None:
            for _ in range(5):
                await writer.append(appending(tenant.ledger_id, row(uuid7())))

        await asyncio.gather(*(sends() for _ in range(16)))
    large = [number for number, size in enumerate(sizes) if size > 8]
    assert not {number + 1 for number in large} & set(large), sizes
    assert sum(sizes) == 80


async def test_those_who_come_back_share_a_batch_while_another_process_appends_too(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next batch must wait for the other process's commit anyway; smaller ones would take both longer."""
    tenant = await opened.begin()
    async with writing_beside_another(opened, tenant.ledger_id) as writer:
        sizes = counted_batches(monkeypatch)
        await asyncio.gather(*(sends_twice(writer, tenant.ledger_id, turns) for turns in (0, 0, 1, 1, 2, 2)))
    assert sizes == [6, 6]


async def test_a_process_whose_other_one_appends_elsewhere_sends_halves_again(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, own = await opened.begin("shared"), await opened.begin("own")
    async with writing_beside_another(opened, shared.ledger_id) as writer:
        await writer.append(appending(shared.ledger_id, row(uuid7())))
        sizes = counted_batches(monkeypatch)
        await asyncio.gather(*(sends_twice(writer, own.ledger_id, turns) for turns in (0, 0, 1, 1, 2, 2)))
    assert sizes[0] == 6
    assert max(sizes[1:]) <= 3


@asynccontextmanager
async def writing_beside_another(opened: Opened, ledger_id: int) -> AsyncIterator[GroupCommitWriter]:
    """Yield a writer that has appended to a ledger, to which another one has appended since."""
    async with writing(opened.database) as writer, writing(opened.database) as other:
        await writer.append(appending(ledger_id, row(uuid7())))
        await other.append(appending(ledger_id, row(uuid7())))
        yield writer


async def sends_twice(writer: GroupCommitWriter, ledger_id: int, turns: int) -> None:
    """Append, and again so many turns of the event loop later."""
    await writer.append(appending(ledger_id, row(uuid7())))
    for _ in range(turns):
        await asyncio.sleep(0)
    await writer.append(appending(ledger_id, row(uuid7())))


async def test_whoever_does_not_come_back_holds_nobody_up_while_another_process_appends_too(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = await opened.begin()
    async with writing_beside_another(opened, tenant.ledger_id) as writer:
        sizes = counted_batches(monkeypatch)
        await together(writer, [appending(tenant.ledger_id, row(uuid7())) for _ in range(6)])
        outcome = await writer.append(appending(tenant.ledger_id, row(uuid7())))
    assert isinstance(outcome, Appended)
    assert sizes == [6, 1]


async def test_one_caller_of_each_ledger_finds_out_that_the_database_is_short_of_something(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were each caller tried by itself, a lock that is held would hold the writer up for each of them."""
    held_up, free = await opened.begin("held-up"), await opened.begin("free")
    sizes = counted_batches(monkeypatch)
    async with locked(opened, held_up), writing(opened.database, options=" -c lock_timeout=200") as writer:
        requests = [appending(tenant.ledger_id, row(uuid7())) for tenant in (held_up, free) for _ in range(3)]
        outcomes = await together(writer, requests)
    assert [type(outcome) for outcome in outcomes] == [*[Unavailable] * 3, *[Appended] * 3]
    assert sizes == [6, 3, 3]


def counted_batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return what becomes the number of callers in each batch that is sent."""
    sizes: list[int] = []
    send = AppendStatement.send

    def counted(statement: AppendStatement, batch: list[Append], tokens: SessionTokens, done: Any) -> None:
        sizes.append(len(batch))
        send(statement, batch, tokens, done)

    monkeypatch.setattr(AppendStatement, "send", counted)
    return sizes


async def test_readers_are_woken_once_for_each_batch_that_recorded_something(opened: Opened) -> None:
    tenant = await opened.begin()
    stream = uuid7()
    woken: list[None] = []
    async with writing(opened.database, on_commit=lambda: woken.append(None)) as writer:
        await writer.append(appending(tenant.ledger_id, row(stream)))
        await together(writer, [appending(tenant.ledger_id, row(uuid7())) for _ in range(5)])
        await writer.append(appending(tenant.ledger_id, row(stream)))
    assert len(woken) == 2


async def test_whoever_gave_up_keeps_nobody_out_of_a_full_queue(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "MAX_WAITING", 5)
    tenant = await opened.begin()
    async with writing(opened.database) as writer:
        async with locked(opened, tenant):
            first = sent(writer, appending(tenant.ledger_id, row(uuid7())))
            await until_it_waits(opened)
            given_up = [sent(writer, appending(tenant.ledger_id, row(uuid7()))) for _ in range(5)]
            await asyncio.sleep(0)
            assert writer.obstacle == writer_module.FULL
            for request in given_up:
                request.cancel()
            await asyncio.sleep(0)
            assert writer.obstacle is None
            last = sent(writer, appending(tenant.ledger_id, row(uuid7())))
            await asyncio.sleep(0)
        outcomes = await asyncio.gather(first, last)
    assert {type(outcome) for outcome in outcomes} == {Appended}
    assert count(opened) == 2


async def test_an_append_that_was_replaced_while_it_was_prepared_is_prepared_anew(opened: Opened) -> None:
    tenant = await opened.begin()
    async with writing(opened.database) as writer:
        await writer.append(appending(tenant.ledger_id, row(uuid7())))
        ((definition,),) = opened.sql("SELECT pg_get_functiondef('append'::regproc)")
        ((arguments,),) = opened.sql("SELECT pg_get_function_identity_arguments('append'::regproc)")
        opened.sql(f"DROP FUNCTION append({arguments})")
        opened.sql(definition.replace("actual integer", "actual bigint", 1))
        opened.sql("GRANT EXECUTE ON FUNCTION append TO sparkledger_api")
        opened.sql("ALTER FUNCTION append OWNER TO sparkledger_log")
        outcomes = await together(writer, [appending(tenant.ledger_id, row(uuid7())) for _ in range(3)])
    assert [str(outcome) for outcome in outcomes if not isinstance(outcome, Appended)] == []
    assert count(opened) == 4


async def test_why_commands_are_turned_away_is_logged_once_and_not_for_each(
    opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    tenant = await opened.begin()
    async with locked(opened, tenant), writing(opened.database, options=" -c lock_timeout=50") as writer:
        for _ in range(2):
            await together(writer, [appending(tenant.ledger_id, row(uuid7())) for _ in range(3)])
    said = [record.getMessage() for record in caplog.records if record.name == writer_module.__name__]
    assert len(said) == 1
    assert said[0].startswith("Commands are being refused: canceling statement due to lock timeout")
