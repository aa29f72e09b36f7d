"""A few kills of the publisher under load, for every test run; `tests/faults` has the long form."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.durable import Scene
from tests.faults.durable import scene as prepared
from tests.infra.delivery.kafka.broker import Broker
from tests.infra.delivery.kafka.kills import kill_again_and_again


@pytest.fixture
def scene() -> Iterator[Scene]:
    with prepared() as ready:
        yield ready


@pytest.mark.long("publishers start and are killed while others write")
def test_three_kills_under_load_lose_repeat_and_disorder_nothing(scene: Scene, kafka: Broker, prefix: str) -> None:
    counts = kill_again_and_again(scene, kafka, prefix, kills=3)

    assert counts.problems == []
    assert counts.committed == counts.events
    assert counts.uncommitted > 0
