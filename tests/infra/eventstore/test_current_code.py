"""A code as it stands now: always as of the last commit, and read again only when it has changed."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from domain.code import Code
from infra.eventstore.current_code import CurrentCodes
from infra.ids import uuid7
from infra.postgres.pool import Database
from tests import given
from tests.infra.opened import Opened, Tenant, opening


class Queries:
    """Counts the queries of a process, and says which of them read a whole stream."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, opened: Opened) -> None:
        self.all = self.streams = 0
        read, streams = Database.read, opened.events.streams

        async def counted(database: Database, *args: Any) -> Any:
            self.all += database is opened.api.database
            return await read(database, *args)

        async def counted_streams(*args: Any) -> Any:
            self.streams += 1
            return await streams(*args)

        monkeypatch.setattr(Database, "read", counted)
        monkeypatch.setattr(opened.events.stream, "_fetch", counted_streams)

    def taken(self) -> tuple[int, int]:
        """Return both counts, and begin again."""
        counts = (self.all, self.streams)
        self.all = self.streams = 0
        return counts


async def generated(opened: Opened) -> tuple[Tenant, UUID]:
    """Begin a ledger with a code that another process has generated."""
    code_id = uuid7()
    async with opening(opened.database) as other:
        tenant = await other.begin()
        await other.when(tenant, given.permission())
        await other.when(tenant, given.generate(code_id))
    opened.present(tenant.ledger_id, tenant.key.key_id)
    return tenant, code_id


async def test_a_code_is_read_once_and_then_only_asked_whether_it_has_changed(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant, code_id = await generated(opened)
    codes, queries = CurrentCodes(opened.api.database, opened.aggregates), Queries(monkeypatch, opened)
    first = await codes.find(tenant.ledger_id, code_id)
    assert queries.taken() == (1, 1)
    again = await codes.find(tenant.ledger_id, code_id)
    assert queries.taken() == (1, 0)
    assert again is first


async def test_what_another_process_records_is_in_the_next_answer(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant, code_id = await generated(opened)
    codes = CurrentCodes(opened.api.database, opened.aggregates)
    before = await codes.find(tenant.ledger_id, code_id)
    async with opening(opened.database) as other:
        result = await other.when(tenant, given.revoke(code_id))
    queries = Queries(monkeypatch, opened)
    after = await codes.find(tenant.ledger_id, code_id)
    assert queries.taken() == (2, 1)
    assert before is not None
    assert after is not None
    assert isinstance(before.aggregate, Code)
    assert isinstance(after.aggregate, Code)
    assert (before.aggregate.revoked_at, after.position) == (None, result.position)
    assert after.aggregate.revoked_at is not None
    stream = await opened.aggregates.code_stream(tenant.ledger_id, code_id)
    assert after.event_ids == tuple(recorded.event_id for recorded in stream)


async def test_a_code_that_this_process_generated_itself_is_not_read_at_all(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant, code_id = await opened.begin(), uuid7()
    await opened.when(tenant, given.permission())
    await opened.when(tenant, given.generate(code_id))
    codes, queries = CurrentCodes(opened.api.database, opened.aggregates), Queries(monkeypatch, opened)
    found = await codes.find(tenant.ledger_id, code_id)
    assert queries.taken() == (1, 0)
    assert found is not None
    assert found.aggregate.id == code_id


async def test_what_is_no_code_is_not_found(opened: Opened) -> None:
    tenant = await opened.begin()
    creator = (await opened.when(tenant, given.permission())).aggregate
    assert creator is not None
    codes = CurrentCodes(opened.api.database, opened.aggregates)
    assert await codes.find(tenant.ledger_id, uuid7()) is None
    assert await codes.find(tenant.ledger_id, creator.id) is None
    opened.aggregates.cache.reset(0)
    assert await codes.find(tenant.ledger_id, creator.id) is None


async def test_a_code_of_another_ledger_is_not_found(opened: Opened) -> None:
    tenant, code_id = await generated(opened)
    codes = CurrentCodes(opened.api.database, opened.aggregates)
    assert await codes.find(tenant.ledger_id, code_id) is not None
    another = await opened.begin("another")
    assert await codes.find(another.ledger_id, code_id) is None
