"""A clock that jumps back in mid-load: recorded_at never decreases, and what was known at a moment stays known."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta

import psycopg

from tests.faults.commands import MARK
from tests.faults.durable import SHORT, Scene
from tests.infra.eventstore.checker import held

JUMPS = 2 if SHORT else 5
COMMANDS_BETWEEN = 300 if SHORT else 2_000
AHEAD = timedelta(hours=1)


def test_time_does_not_run_backwards_when_the_clock_jumps_back(scene: Scene) -> None:
    ahead: list[datetime] = []
    known: dict[datetime, int] = {}
    with scene.telling("one") as one, scene.telling("two") as two:
        for number in range(1, JUMPS + 1):
            scene.until_acknowledged(COMMANDS_BETWEEN)
            # To the ledger, whose last event is an hour ahead now, the server's clock has jumped back by an hour.
            ahead.append(record_ahead(scene, number * AHEAD))
            known |= positions_at(scene, ahead)
        scene.until_acknowledged(COMMANDS_BETWEEN)
        scene.stop.touch()
        assert [program.rest() for program in (one, two)] == [["done"], ["done"]]

    assert scene.problems() == []
    last = ahead[-1]
    assert {moment: at for moment, at in positions_at(scene, ahead).items() if moment != last} == {
        moment: at for moment, at in known.items() if moment != last
    }
    events = [event for event in held(scene.database.dsn(), MARK) if event.ledger_id == scene.writes[0].ledger_id]
    after = [event for event in events if event.recorded_at >= ahead[0]]
    assert {event.recorded_at for event in after} == set(ahead)
    sys.stdout.write(f"{JUMPS} jumps; {len(events)} events in the ledger, {len(after)} of them after the first jump\n")
    assert len(after) > COMMANDS_BETWEEN


def record_ahead(scene: Scene, ahead: timedelta) -> datetime:
    """Record an event as a server whose clock is ahead would, under the lock that an append takes."""
    ledger_id = scene.writes[0].ledger_id
    with psycopg.connect(scene.database.dsn()) as connection:
        connection.execute("SELECT 1 FROM ledgers WHERE ledger_id = %s FOR UPDATE", (ledger_id,))
        row = connection.execute(
            "INSERT INTO events (ledger_id, position, stream_id, version, event_id, type, type_version, recorded_at,"
            " effective_at, creator_stream, actor_role, source, command_id, format, body)"
            " SELECT ledger_id, max(position) + 1, gen_random_uuid(), 1, gen_random_uuid(), 'Tested', 1, now() + %s,"
            " now(), gen_random_uuid(), 'operator', 'operator', gen_random_uuid(), 1, '{}'"
            " FROM events WHERE ledger_id = %s GROUP BY ledger_id RETURNING recorded_at",
            (ahead, ledger_id),
        ).fetchone()
    assert row is not None
    moment: datetime = row[0]
    return moment


def positions_at(scene: Scene, moments: list[datetime]) -> dict[datetime, int]:
    """Return how far the ledger was known at each moment, and right before it."""
    with psycopg.connect(scene.database.dsn()) as connection:
        asked = [asked for moment in moments for asked in (moment - timedelta(microseconds=1), moment)]
        query = "SELECT moment, position_at(%s, moment) FROM unnest(%s::timestamptz[]) AS m (moment)"
        rows = connection.execute(query, (scene.writes[0].ledger_id, asked)).fetchall()
    return dict[datetime, int](rows)
