"""For a minute, two processes of 32 writers each, and readers that follow them: nobody misses anything."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.faults.durable import SHORT, durable
from tests.infra.eventstore.tailing import tailed
from tests.infra.opened import opening

SECONDS = 5 if SHORT else 60


async def test_readers_see_every_event_once_and_in_order_for_a_minute(tmp_path: Path) -> None:
    with durable() as database:
        async with opening(database) as opened:
            ledgers = [(await opened.begin(f"ledger-{n}")).ledger_id for n in range(3)]
        result = await tailed(database, ledgers, tmp_path, seconds=SECONDS)
        sys.stdout.write(f"{SECONDS} s: {result.counts()}\n")
        assert result.problems() == []
        assert len(result.log) > 100 * SECONDS
        assert {told.answer for told in result.told} == {"recorded", "refused"}
