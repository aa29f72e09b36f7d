"""Ledgers in which much is recorded late: every view is rebuilt with the rows that it had."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import given as for_all
from hypothesis import strategies as st

from projections import VIEWS
from projections.engine import checkpoints, rebuild
from projections.engine.projector import Connect, Projector
from projections.engine.view import View
from tests.projections.conftest import Cursor
from tests.projections.late import recorded_late
from tests.projections.memory_log import MemoryLog, rows


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@for_all(seed=st.integers(0, 10**6), live_page=st.integers(1, 20), rebuild_page=st.integers(1, 100))
async def test_rebuilt_rows_are_those_that_were_there(
    view: View[Any], connect: Connect, worker: Cursor, seed: int, live_page: int, rebuild_page: int
) -> None:
    log = MemoryLog(recorded_late(seed, 60))
    async with await connect() as connection:
        live = Projector(view, connection)
        await live.create(indexes=True)
        await live.find()
        await live.apply_all(log, live_page)
    before = await rows(worker, view)
    await rebuild.rebuild(view, log, connect, page_events=rebuild_page)
    assert await rows(worker, view) == before
    for table in view.tables:
        await table.drop(worker)
    await checkpoints.delete(worker, [view.name])
