"""Turns of long work: others come between two of them, and many who work keep others no longer than one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from api.console import frame
from api.http import turns
from api.http.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping


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


async def test_other_work_goes_on_while_a_page_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "SHORT_TURN_S", 0.0)
    done: list[str] = []
    sent: list[MutableMapping[str, Any]] = []

    def parts() -> Iterator[str]:
        for number in range(3):
            done.append("page")
            yield f"part {number};"

    async def other() -> None:
        while len(done) < 6:
            if done[-1:] == ["page"]:
                done.append("other")
            await asyncio.sleep(0)

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def receive() -> MutableMapping[str, Any]:
        raise AssertionError

    page = frame._Rendered(parts(), 200, {})
    async with asyncio.timeout(60):
        await asyncio.gather(other(), page({"type": "http"}, receive, send))

    assert done == ["page", "other"] * 3
    assert sent[1]["body"] == b"part 0;part 1;part 2;"
    assert (b"content-length", b"21") in sent[0]["headers"]
