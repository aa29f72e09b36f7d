"""SIGKILL of the publisher, again and again under load: a subscriber has every event once, in order, none missing."""

from __future__ import annotations

import sys

from tests.faults.durable import SHORT, Scene
from tests.infra.delivery.kafka.broker import Broker
from tests.infra.delivery.kafka.fixtures import kafka, prefix
from tests.infra.delivery.kafka.kills import kill_again_and_again

__all__ = ["kafka", "prefix"]

KILLS = 4 if SHORT else 20


def test_a_publisher_killed_again_and_again_publishes_every_event_once(
    scene: Scene, kafka: Broker, prefix: str
) -> None:
    counts = kill_again_and_again(scene, kafka, prefix, KILLS)

    sys.stdout.write(
        f"{counts.kills} kills; {counts.events} events; {counts.committed} committed records; "
        f"{counts.uncommitted} records of transactions that a kill cut off\n"
    )
    assert counts.problems == []
    assert counts.committed == counts.events
    # Some kill came in the midst of a transaction; otherwise it was no test.
    assert counts.uncommitted > 0
