"""What holds for every view in the list."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
import pytest

from projections import VIEWS, codes
from projections.engine.projector import Connect
from projections.engine.runner import create_missing
from projections.engine.table import Table
from tests import given
from tests.conftest import TestDatabase
from tests.projections.conftest import Cursor, Followed
from tests.projections.memory_log import MemoryLog, happening, rows


def test_each_view_and_each_table_has_a_name_of_its_own() -> None:
    names = [view.name for view in VIEWS]
    tables = [table.name for view in VIEWS for table in view.tables]
    assert len(set(names)) == len(names)
    assert len(set(tables)) == len(tables)
    assert [view.table.name for view in VIEWS] == names


async def test_a_table_has_its_rows_fields_as_columns_then_what_is_derived_from_them(
    connect: Connect, worker: Cursor
) -> None:
    await create_missing(connect, VIEWS)
    for table in (table for view in VIEWS for table in view.tables):
        await worker.execute(
            "SELECT attname, attgenerated <> '' FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0"
            " ORDER BY attnum",
            (f"views.{table.name}",),
        )
        derived = ["stage"] if table is codes.CODES else []
        assert await worker.fetchall() == [(c, False) for c in table.columns] + [(c, True) for c in derived]
        assert table.columns[0] == table.key[0] == "ledger_id"


async def test_the_api_sees_its_own_ledger_and_may_write_nothing(
    database: TestDatabase, follow: Followed, api: Cursor
) -> None:
    named = given.advertiser()
    log = MemoryLog(given.after(happening(1, 60), named), given.after(happening(2, 60), named))
    unbound = await psycopg.AsyncConnection.connect(database.dsn("sparkledger_api"), autocommit=True)
    for view in VIEWS:
        await follow(view, log)
        for table, found in (await rows(api, view)).items():
            assert {row[0] for row in found} == {1}
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await api.execute(f"DELETE FROM views.{table}".encode())
        assert not any((await rows(unbound.cursor(), view)).values()), "a session bound to no ledger sees nothing"
    await unbound.close()


async def test_rows_do_not_depend_on_where_pages_end(worker: Cursor, follow: Followed) -> None:
    log = MemoryLog(happening(7, 60))
    for view in VIEWS:
        await follow(view, log)
        before = await rows(worker, view)
        for length in (1, 2, 1000):
            suffix = f"_by_{length}"
            for table in view.tables:
                await table.create(worker, suffix)
            for start in range(0, len(log.events()), length):
                changes = await view.fold(worker, log.events()[start : start + length], suffix)
                for statement in view.statements(changes, suffix):
                    await statement.execute(worker)
            assert await rows(worker, view, suffix=suffix) == before


async def test_an_event_that_the_domain_learns_later_finds_the_handler_of_its_kind() -> None:
    from domain.code import Code
    from projections import codes, event_index, redemptions

    class Paused(Code.Changed):
        TOPIC = "PausedForThisTest"

    assert codes.VIEW._handler(Paused) == (None, codes.changed)
    assert event_index.VIEW._handler(Paused) == (event_index.indexed, None)
    assert redemptions.VIEW._handler(Paused) == (None, None)


@dataclass(slots=True)
class EveryType:
    ledger_id: int
    name: str
    number: int | None
    flag: bool | None
    text: str | None
    moment: datetime | None
    uuid: UUID | None
    ids: set[str]
    document: dict[str, Any] | None


EVERY_TYPE = Table(
    "every_type",
    EveryType,
    key=("ledger_id", "name"),
    ddl="""
        CREATE TABLE {table} (
            ledger_id   int NOT NULL,
            name        text NOT NULL,
            number      bigint,
            flag        boolean,
            text        text,
            moment      timestamptz,
            uuid        uuid,
            ids         text[] NOT NULL,
            document    jsonb,
            PRIMARY KEY (ledger_id, name)
        )
    """,
)
WHOLE = EveryType(
    *(1, "whole", -(2**40), True, 'quotes " and \\ and ’', datetime(1999, 12, 31, 23, 59, 59, 999999, UTC)),
    *(UUID(int=7), {"b", "a:@.-_"}, {"deep": [1, None, "ü"]}),
)
EMPTY = EveryType(1, "empty", None, None, None, None, None, set(), None)
OTHER = EveryType(2, "whole", 0, False, "", datetime(2026, 1, 1, tzinfo=UTC), UUID(int=0), {"a"}, {})


@pytest.mark.parametrize("binary", [False, True])
async def test_a_row_is_read_as_it_was_written(binary: bool, connect: Connect) -> None:
    async with await connect() as connection:
        await connection.execute("SET timezone = UTC")
        cur = connection.cursor(binary=binary)
        await EVERY_TYPE.create(cur)
        await EVERY_TYPE.write(cur, [WHOLE, EMPTY, OTHER])
        keys = [(1, "whole"), (1, "empty"), (2, "whole"), (2, "empty")]
        assert await EVERY_TYPE.load(cur, keys) == [WHOLE, EMPTY, OTHER]
        changed = EveryType(1, "whole", 1, False, None, None, None, {"c"}, None)
        await EVERY_TYPE.write(cur, [changed])
        assert await EVERY_TYPE.load(cur, [(1, "whole")]) == [changed]


def test_a_row_may_hold_only_what_a_column_can() -> None:
    @dataclass
    class Odd:
        ledger_id: int
        ratio: complex

    with pytest.raises(KeyError, match="complex"):
        Table("odd", Odd, key=("ledger_id", "ratio"), ddl="")
