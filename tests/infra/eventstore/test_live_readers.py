"""A live reader misses nothing: the short form of what tests/faults does for a minute."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.infra.eventstore.tailing import tailed
from tests.infra.opened import Opened


@pytest.mark.long("two processes write as fast as they can")
async def test_readers_see_every_event_of_two_busy_processes_once_and_in_order(opened: Opened, tmp_path: Path) -> None:
    ledgers = [(await opened.begin(f"ledger-{n}")).ledger_id for n in range(3)]
    result = await tailed(opened.database, ledgers, tmp_path, seconds=3)
    sys.stdout.write(f"{result.counts()}\n")
    assert result.problems() == []
    assert len(result.log) > 500
    assert {told.answer for told in result.told} == {"recorded", "refused"}
