"""A prepared statement called past psycopg's cursors: what it returns, refuses, outlives, and what ends its session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest

from infra.postgres.pool import LedgerConnection, session
from infra.postgres.prepared_statement import Statement
from infra.postgres.roles import API
from projections.engine.array_columns import Array, Byteas, Ints, encoded
from tests.infra.opened import Opened
from tests.waiting import until

SUM = "SELECT sum(octet_length(b)), sum(n) FROM unnest($1::bytea[], $2::int[]) AS x (b, n)"
BY_ZERO = "SELECT 1 / x FROM unnest($1::int[]) AS x"
SLEEPING = "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query = 'SELECT pg_sleep(60)'"
# More than a socket takes at once.
LARGE = [b"x" * 1_000_000] * 8


def sent(*columns: Array) -> list[bytes]:
    return [encoded(column) for column in columns]


@pytest.fixture
async def connection(opened: Opened) -> AsyncIterator[LedgerConnection]:
    async with await LedgerConnection.connect(**session(opened.database.dsn(API), API)) as connection:
        yield connection


async def test_rows_come_back_as_values(connection: LedgerConnection) -> None:
    statement = Statement(connection, "sum", 2)
    await statement.prepare(SUM, (Byteas.oid, Ints.oid))
    assert await statement.call(sent(Byteas([b"ab", None]), Ints([1, 2]))) == [(2, 3)]
    assert await statement.call(sent(Byteas([None]), Ints([None]))) == [(None, None)]


async def test_what_no_socket_takes_at_once_arrives_whole(connection: LedgerConnection) -> None:
    statement = Statement(connection, "sum", 2)
    await statement.prepare(SUM, (Byteas.oid, Ints.oid))
    assert await statement.call(sent(Byteas(LARGE), Ints([1] * 8))) == [(8_000_000, 8)]


async def test_a_call_that_the_database_refuses_leaves_the_session_usable(connection: LedgerConnection) -> None:
    statement = Statement(connection, "by_zero", 1)
    await statement.prepare(BY_ZERO, (Ints.oid,))
    with pytest.raises(psycopg.errors.DivisionByZero):
        await statement.call(sent(Ints([0])))
    assert await statement.call(sent(Ints([1]))) == [(1,)]
    assert await (await connection.execute("SELECT 2")).fetchone() == (2,)


async def test_a_statement_that_cannot_be_prepared_says_why(connection: LedgerConnection) -> None:
    with pytest.raises(psycopg.errors.UndefinedFunction, match="there_is_none"):
        await Statement(connection, "none", 0).prepare("SELECT there_is_none()", ())


async def test_notices_on_the_way_are_no_answer(connection: LedgerConnection) -> None:
    said: list[str | None] = []
    connection.add_notice_handler(lambda notice: said.append(notice.message_primary))
    await connection.execute(
        "CREATE FUNCTION pg_temp.say() RETURNS int LANGUAGE plpgsql AS $$BEGIN RAISE NOTICE 'hm'; RETURN 7; END$$"
    )
    statement = Statement(connection, "say", 0)
    await statement.prepare("SELECT pg_temp.say()", ())
    assert await statement.call(()) == [(7,)]
    assert said == ["hm"]


async def test_whoever_is_cancelled_in_a_call_closes_the_session(opened: Opened, connection: LedgerConnection) -> None:
    """Its answer would else be taken for that of the next statement."""
    statement = Statement(connection, "sleep", 0)
    await statement.prepare("SELECT pg_sleep(60)", ())
    call = asyncio.create_task(statement.call(()))
    await asyncio.to_thread(until, lambda: opened.sql(SLEEPING) != [])
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert connection.closed


async def test_a_call_that_is_sent_when_another_one_ends_is_answered_too(connection: LedgerConnection) -> None:
    statement = Statement(connection, "sum", 2)
    await statement.prepare(SUM, (Byteas.oid, Ints.oid))
    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    answers: list[object] = []

    def ended(rows: list[object], error: Exception | None) -> None:
        answers.append(error or rows)
        if len(answers) < 3:
            statement.send(sent(Byteas([b"a"]), Ints([len(answers)])), ended)
        else:
            over.set_result(None)

    statement.send(sent(Byteas([b"a"]), Ints([0])), ended)
    await over
    assert answers == [[(1, 0)], [(1, 1)], [(1, 2)]]
    assert await (await connection.execute("SELECT 1")).fetchone() == (1,)


async def test_another_statement_that_is_sent_when_a_call_ends_is_answered_too(connection: LedgerConnection) -> None:
    first, second = Statement(connection, "first", 2), Statement(connection, "second", 2)
    for statement in (first, second):
        await statement.prepare(SUM, (Byteas.oid, Ints.oid))
    answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    parameters = sent(Byteas([b"a"]), Ints([1]))

    first.send(parameters, lambda *_: second.send(parameters, lambda rows, error: answer.set_result(error or rows)))
    assert await answer == [(1, 1)]
    assert await first.call(parameters) == [(1, 1)]


@pytest.mark.parametrize("columns", [[Byteas([b"ab"]), Ints([1])], [Byteas(LARGE), Ints([1] * 8)]])
async def test_a_session_that_was_ended_is_known_to_be_closed(
    opened: Opened, connection: LedgerConnection, columns: list[Byteas | Ints]
) -> None:
    statement = Statement(connection, "sum", 2)
    await statement.prepare(SUM, (Byteas.oid, Ints.oid))
    pid = connection.info.backend_pid
    opened.sql("SELECT pg_terminate_backend(%s, 5000)", pid)
    until(lambda: not opened.sql("SELECT 1 FROM pg_stat_activity WHERE pid = %s", pid))
    with pytest.raises(psycopg.Error):
        await statement.call(sent(*columns))
    assert connection.closed
