"""Compares what callers were told with what the log holds. It knows the table of events, and nothing of what fills it.

Each writer puts a mark of its own into the body of each event of a command, the same mark in every attempt at that
command, and notes what it was told. Then, for each command:

- told that it is recorded, it is there exactly once, whole, at the positions and up to the version it was told;
- told that it is not, it is not there, unless a later attempt was recorded;
- told nothing, it is there whole or not at all.

And for each ledger: positions are 1 … N, streams are dense, time never runs backwards, nothing is there that nobody
sent, and what was acknowledged before something else was begun stands before it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate, pairwise
from operator import attrgetter
from typing import Literal
from uuid import UUID

import psycopg


@dataclass(frozen=True, slots=True)
class Told:
    """What one attempt at a command was told.

    Attributes:
        mark: the command's, in each of its events.
        events: how many it has.
        answer: `unknown` where there was none, or none that says what became of it.
        first, last: its positions, where it is recorded.
        version: of its stream after it, where the caller was told that.
        began, ended: when it was sent and answered, on a clock that never jumps; 0 where nobody looked.

    """

    ledger_id: int
    mark: str
    events: int
    answer: Literal["recorded", "refused", "unknown"]
    first: int = 0
    last: int = 0
    version: int | None = None
    began: float = 0.0
    ended: float = 0.0


@dataclass(frozen=True, slots=True)
class Held:
    """One event of the log, as far as this checker looks."""

    ledger_id: int
    position: int
    stream_id: UUID
    version: int
    event_id: UUID
    recorded_at: datetime
    mark: str | None


def held(dsn: str, mark: str) -> list[Held]:
    """Read the whole log; `mark` is the SQL that takes a command's mark out of the column `body`."""
    query = f"""
        SELECT ledger_id, position, stream_id, version, event_id, recorded_at, {mark}
        FROM events
        ORDER BY ledger_id, position
    """
    with psycopg.connect(dsn) as connection:
        return [Held(*row) for row in connection.execute(query).fetchall()]


def problems(told: Sequence[Told], log: Sequence[Held]) -> list[str]:
    """Return what is wrong, in sentences; nothing where log and callers agree."""
    by_ledger: dict[int, list[Held]] = defaultdict(list)
    for event in log:
        by_ledger[event.ledger_id].append(event)
    found = [problem for ledger_id, events in by_ledger.items() for problem in _ledger(ledger_id, events)]
    marked: dict[tuple[int, str], list[Held]] = defaultdict(list)
    for event in log:
        if event.mark is not None:
            marked[event.ledger_id, event.mark].append(event)
    sent: dict[tuple[int, str], list[Told]] = defaultdict(list)
    for attempt in told:
        sent[attempt.ledger_id, attempt.mark].append(attempt)
    for ledger_id, mark in marked.keys() - sent.keys():
        found.append(f"ledger {ledger_id}: nobody sent {mark}")
    for (ledger_id, mark), attempts in sent.items():
        there = marked.get((ledger_id, mark), [])
        found += [f"ledger {ledger_id}: {mark} {problem}" for problem in _command(attempts, there)]
    return found + list(_order(told))


def unseen(seen: Sequence[int], last: int) -> list[str]:
    """Return what is wrong with the positions that a reader saw, where it should have seen 1 … last."""
    found = [f"{later} came after {earlier}" for earlier, later in pairwise(seen) if later != earlier + 1]
    if seen and seen[0] != 1:
        found.append(f"the first was {seen[0]}")
    if len(seen) != last or (seen and seen[-1] != last):
        found.append(f"{len(seen)} were seen, up to {seen[-1] if seen else 0}, of {last}")
    return found


def _ledger(ledger_id: int, events: Sequence[Held]) -> Iterator[str]:
    for expected, event in enumerate(events, 1):
        if event.position != expected:
            yield f"ledger {ledger_id}: position {event.position} stands where {expected} should"
            break
    for earlier, later in pairwise(events):
        if later.recorded_at < earlier.recorded_at:
            yield f"ledger {ledger_id}: {later.position} was recorded before {earlier.position}"
    versions: dict[UUID, int] = {}
    for event in events:
        expected = versions.get(event.stream_id, event.version - 1 if event.version in {0, 1} else 0) + 1
        if event.version != expected:
            yield f"ledger {ledger_id}: {event.position} has version {event.version}, not {expected}"
        versions[event.stream_id] = event.version
    if len({event.event_id for event in events}) != len(events):
        yield f"ledger {ledger_id}: an event stands twice"


def _command(attempts: Sequence[Told], there: Sequence[Held]) -> Iterator[str]:
    recorded = [attempt for attempt in attempts if attempt.answer == "recorded"]
    places = {(attempt.first, attempt.last) for attempt in recorded}
    positions = [event.position for event in there]
    if len(places) > 1:
        yield f"was told {len(places)} different answers: {sorted(places)}"
    for first, last in places:
        if positions != list(range(first, last + 1)):
            yield f"was told {first}-{last} and stands at {positions}"
    if {attempt.version for attempt in recorded} - {None, *[event.version for event in there[-1:]]}:
        yield "was told another version than it has"
    if recorded:
        if len(there) != recorded[0].events:
            yield f"is acknowledged and has {len(there)} of {recorded[0].events} events"
    elif there and all(attempt.answer == "refused" for attempt in attempts):
        yield f"was refused and stands at {positions}"
    elif len(there) not in {0, attempts[0].events}:
        yield f"was not acknowledged and has {len(there)} of {attempts[0].events} events"
    if there and positions[-1] - positions[0] + 1 != len(positions):
        yield f"does not stand in one piece: {positions}"


def _order(told: Iterable[Told]) -> Iterator[str]:
    """Find what stands before something that had been acknowledged before it was begun."""
    timed = [attempt for attempt in told if attempt.began]
    began: dict[tuple[int, str], float] = {}
    by_ledger: dict[int, dict[str, Told]] = defaultdict(dict)
    for attempt in sorted(timed, key=attrgetter("began")):
        # From its first attempt, which may have been the one recorded, to its first acknowledgement.
        began.setdefault((attempt.ledger_id, attempt.mark), attempt.began)
        if attempt.answer == "recorded":
            by_ledger[attempt.ledger_id].setdefault(attempt.mark, attempt)
    for ledger_id, commands in by_ledger.items():
        ended = sorted(commands.values(), key=attrgetter("ended"))
        moments = [command.ended for command in ended]
        highest = list(accumulate((command.last for command in ended), max))
        for command in commands.values():
            before = bisect_left(moments, began[ledger_id, command.mark])
            if before and highest[before - 1] > command.first:
                yield f"ledger {ledger_id}: {command.mark} stands before what was acknowledged before it was begun"
