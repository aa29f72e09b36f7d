"""Places that all ledgers share: shares, and whose turn it is."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from api.http.places import Places, UploadBytes
from api.http.problems import Problem
from infra.errors import Unavailable


def key(number: int) -> UUID:
    return UUID(int=number)


def places(most: int = 4, of_a_ledger: int = 2, of_a_key: int = 2, wait_s: float = 60) -> Places:
    made = Places("exports in progress", most, of_a_ledger, of_a_key)
    made.wait_s = wait_s
    return made


async def rounds(number: int = 5) -> None:
    """Let those go on who can."""
    for _ in range(number):
        await asyncio.sleep(0)


async def test_a_key_that_has_its_share_is_refused_at_once() -> None:
    shared = places(of_a_key=1)
    async with shared.place(1, key(1)):
        with pytest.raises(Problem) as refused:
            await shared.enter(1, key(1))
    assert (refused.value.code, refused.value.headers) == ("too_many_requests", {"Retry-After": "10"})
    assert refused.value.detail == (
        "This key already has 1 exports in progress, which is the maximum. Try again when one has ended."
    )


async def test_a_ledger_gets_its_share_and_leaves_the_rest_however_many_keys_it_has() -> None:
    shared = places(wait_s=0)
    for number in (1, 2):
        await shared.enter(1, key(number))
    with pytest.raises(Problem, match="This ledger already has 2 exports in progress"):
        await shared.enter(1, key(3))
    for number in (4, 5):
        await shared.enter(2, key(number))
    with pytest.raises(Unavailable, match="This server already has 4 exports in progress"):
        await shared.enter(3, key(6))
    figures = shared.figures()
    assert (figures.held, figures.waiting) == ({1: 2, 2: 2}, {})
    assert figures.keys == {key(number): 1 for number in (1, 2, 4, 5)}


async def test_a_free_place_goes_to_the_ledger_that_holds_the_fewest() -> None:
    shared = places(most=3, of_a_ledger=2)
    for ledger_id, number in ((1, 1), (1, 2), (2, 3)):
        await shared.enter(ledger_id, key(number))
    got: list[int] = []

    async def wait(ledger_id: int, number: int) -> None:
        await shared.enter(ledger_id, key(number))
        got.append(number)

    waiting = [asyncio.create_task(wait(*who)) for who in ((2, 10), (2, 11), (3, 12), (3, 13))]
    await rounds()
    assert shared.figures().waiting == {2: 2, 3: 2}
    for number in (1, 2):
        shared.leave(1, key(number))
        await rounds()
    # The ledger without a place comes first, though the other has waited longer; then both hold one.
    assert got == [12, 10]
    shared.leave(2, key(3))
    await rounds()
    assert got == [12, 10, 13]
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_who_leaves_the_queue_takes_no_place() -> None:
    shared = places(most=1, of_a_ledger=1)
    await shared.enter(1, key(1))
    gone, given, last = (asyncio.create_task(shared.enter(2, key(number))) for number in (2, 3, 4))
    await rounds()
    gone.cancel()
    await rounds()
    shared.leave(1, key(1))
    given.cancel()  # in the moment in which it gets its place
    await asyncio.gather(gone, given, return_exceptions=True)
    await last
    assert (shared.figures().held, shared.figures().keys) == ({2: 1}, {key(4): 1})
    shared.leave(2, key(4))
    assert (shared.figures().held, shared.figures().keys, shared.figures().waiting) == ({}, {}, {})


def test_what_is_kept_of_uploads_is_bounded_for_each_ledger_and_for_all() -> None:
    kept = UploadBytes(100, 60)
    kept.keep(1, 60)
    with pytest.raises(Problem) as refused:
        kept.keep(1, 1)
    assert (refused.value.code, refused.value.status_code) == ("too_many_requests", 429)
    kept.keep(2, 40)
    with pytest.raises(Unavailable):
        kept.keep(3, 1)
    kept.drop(1, 60)
    kept.keep(3, 1)
    assert kept.figures().held == {2: 40, 3: 1}
