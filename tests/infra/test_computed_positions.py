"""Queries that find an event by a position which they compute use an index, in spite of row-level security."""

from __future__ import annotations

import re

import pytest

from infra.delivery.webhooks import subscriptions
from infra.postgres.pool import LedgerConnection
from infra.proof import sealed_sizes
from infra.views import status
from tests.infra.opened import Opened
from tests.infra.proof.auditing import record

pytestmark = pytest.mark.anyio

# What is compared row by row: no index has found these.
ROW_BY_ROW = re.compile(r"(Filter|Hash Cond|Merge Cond): .*\bposition\b")


@pytest.mark.parametrize(
    "query",
    [sealed_sizes._NEWEST.replace("%s", "%(ledger_id)s"), status._IN_ONE, subscriptions._LIST],
    ids=["how far a log is sealed", "how far views have read", "how far webhooks are"],
)
async def test_no_event_is_compared_row_by_row(query: str, opened: Opened) -> None:
    tenant = await opened.begin()
    record(opened, tenant, 1_000)
    opened.sql("ANALYZE events")
    values = {"ledger_id": tenant.ledger_id, "key_id": None}

    async def explain(connection: LedgerConnection) -> list[str]:
        rows = await connection.execute(f"EXPLAIN {query}".encode(), values)
        return [line for (line,) in await rows.fetchall()]

    plan = await opened.api.database.read(tenant.ledger_id, explain)
    assert any("on events" in line for line in plan)
    assert [line for line in plan if ROW_BY_ROW.search(line.replace('"', ""))] == []
