"""The evidence of authorization decisions, however much of it there is."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from infra.eventstore import authorization_evidence
from infra.eventstore.authorization_evidence import Asked, EvidenceReader


class ManyRows:
    """A database that answers with rows that have no event."""

    def __init__(self, rows: int) -> None:
        self._rows = [(7, None)] * rows

    async def read(self, _ledger_id: int, _run: object) -> list[Any]:
        return self._rows


async def test_others_have_their_turn_while_much_evidence_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authorization_evidence, "TURN_S", -1.0)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    others = asyncio.create_task(other())
    asked = Asked("7312345678901234567", "adv-7001", b"", b"")
    found = await EvidenceReader(cast("Any", ManyRows(1_000))).of_all(1, [asked])
    others.cancel()

    assert found[asked].position == 7
    assert turns >= 1_000
