"""Turns of long work: others come between two of them, and many who work keep others no longer than one."""

from __future__ import annotations

import asyncio

import pytest

from api.http import turns
from api.http.turns import Turns


async def test_a_turn_that_is_not_over_goes_on_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TURN_S", 3600)
    others: list[str] = []
    asyncio.get_running_loop().call_soon(others.append, "somebody else")

    await Turns().begin().give_way()

    assert others == []


async def test_others_come_between_two_turns_of_one_and_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TURN_S", 0)
    monkeypatch.setattr(turns, "PAUSE_S", 0)
    done: list[str] = []

    async def work(name: str) -> None:
        turn = shared.begin()
        for _ in range(5):
            done.append(name)
            await turn.give_way()

    async def others() -> None:
        while done.count("a") + done.count("b") < 10:
            done.append("others")
            await asyncio.sleep(0)

    shared = Turns()
    await asyncio.gather(work("a"), work("b"), others())

    between = "".join(name if name in "ab" else " " for name in done).split()
    # Both begin in the same round; from then on each comes by itself.
    assert between == ["ab", *(name for _ in range(4) for name in "ab")]
