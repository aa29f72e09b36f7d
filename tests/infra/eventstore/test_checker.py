"""The checker must be able to fail: each kind of wrong log is shown to it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from tests.infra.eventstore.checker import Held, Told, problems, unseen

ONE, TWO = UUID(int=1), UUID(int=2)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def event(position: int, mark: str, stream: UUID = ONE, version: int = 1, seconds: int = 0) -> Held:
    return Held(1, position, stream, version, UUID(int=100 + position), NOON + timedelta(seconds=seconds), mark)


# Two commands: the first has two events.
LOG = [event(1, "a", version=1), event(2, "a", version=2), event(3, "b", stream=TWO, seconds=5)]
A = Told(1, "a", 2, "recorded", 1, 2, version=2, began=1.0, ended=2.0)
B = Told(1, "b", 1, "recorded", 3, 3, version=1, began=3.0, ended=4.0)


@pytest.mark.parametrize(
    "told",
    [
        [A, B],
        # Whole or not at all, where nobody was told.
        [A, replace(B, answer="unknown")],
        [A, B, Told(1, "c", 1, "unknown")],
        [A, B, Told(1, "c", 1, "refused")],
        # Told again, and told only by a later attempt.
        [A, B, replace(A, began=9.0, ended=9.1)],
        [replace(A, answer="unknown"), A, replace(B, answer="refused"), B],
        # Recorded by an attempt that was not answered, and acknowledged after what came later.
        [replace(A, answer="unknown"), B, replace(A, began=5.0, ended=6.0)],
    ],
)
def test_it_accepts(told: list[Told]) -> None:
    assert problems(told, LOG) == []


@pytest.mark.parametrize(
    ("told", "log", "problem"),
    [
        ([A, B], [], "and stands at []"),
        ([A, B], LOG[:2], "b was told 3-3 and stands at []"),
        ([A, B], [LOG[0], LOG[2]], "position 3 stands where 2 should"),
        ([A, B], [*LOG, event(4, "b", stream=TWO, version=2, seconds=6)], "b was told 3-3 and stands at [3, 4]"),
        ([A, B], [LOG[0], LOG[1], event(3, "b", stream=TWO, version=3)], "has version 3, not 1"),
        ([A, B], [*LOG, event(4, "c", version=3, seconds=6)], "nobody sent c"),
        ([A, replace(B, first=4, last=4)], LOG, "b was told 4-4 and stands at [3]"),
        ([A, replace(B, version=2)], LOG, "b was told another version than it has"),
        ([A, B, replace(B, first=1, last=1)], LOG, "b was told 2 different answers"),
        ([replace(A, answer="refused"), B], LOG, "a was refused and stands at [1, 2]"),
        ([replace(A, events=3), B], LOG, "a is acknowledged and has 2 of 3 events"),
        ([replace(A, answer="unknown", events=3), B], LOG, "a was not acknowledged and has 2 of 3 events"),
        (
            [A, B],
            [LOG[0], event(2, "b", stream=TWO), event(3, "a", version=2)],
            "a does not stand in one piece: [1, 3]",
        ),
        ([A, B], [LOG[0], LOG[1], replace(LOG[2], recorded_at=NOON - timedelta(seconds=1))], "3 was recorded before 2"),
        ([A, B], [LOG[0], LOG[1], replace(LOG[2], event_id=LOG[0].event_id)], "an event stands twice"),
        (
            [replace(A, began=5.0, ended=6.0), B],
            LOG,
            "a stands before what was acknowledged before it was begun",
        ),
    ],
)
def test_it_finds(told: list[Told], log: list[Held], problem: str) -> None:
    assert any(problem in found for found in problems(told, log)), problems(told, log)


def test_a_reader_that_saw_everything_once_is_accepted() -> None:
    assert unseen([1, 2, 3], 3) == []


@pytest.mark.parametrize("seen", [[1, 2], [1, 3], [1, 2, 2, 3], [2, 3], [1, 3, 2], []])
def test_a_reader_that_did_not_is_found_out(seen: list[int]) -> None:
    assert unseen(seen, 3) != []
