"""What tests of Kafka share: one broker for the whole run, and a publisher of a test's own ledgers."""

from __future__ import annotations

import os
import shutil
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.absent import absent
from tests.infra.delivery.kafka.broker import Broker, NoKafka, shared, start, stop
from tests.places import directory, shared_directory

__all__ = ["Restartable", "kafka", "own_kafka", "prefix"]


@pytest.fixture(scope="session")
def kafka() -> Iterator[Broker]:
    """A broker, one for all processes of the test run; or that of SPARKLEDGER_TEST_KAFKA, in the clear alone."""
    theirs = os.environ.get("SPARKLEDGER_TEST_KAFKA")
    if theirs:
        yield Broker(plain=theirs)
        return
    # Under xdist the workers' parent is the process that outlives them all.
    controller = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    try:
        with shared(shared_directory(f"kafka-{controller}"), controller) as broker:
            yield broker
    except NoKafka as reason:
        absent(str(reason))


class Restartable:
    """A broker that a test may stop, kill and start again, on the same ports and with what it held."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.broker = start(directory)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it, cleanly or by SIGKILL."""
        stop(self.broker, number)

    def start(self) -> None:
        """Start it again."""
        self.broker = start(self.directory)


@pytest.fixture(scope="module")
def own_kafka() -> Iterator[Restartable]:
    """A broker of a module's own, to be stopped, killed and hindered; each test leaves it running."""
    place = directory("own-kafka")
    try:
        own = Restartable(place)
    except NoKafka as reason:
        absent(str(reason))
    yield own
    own.stop()
    shutil.rmtree(place)


@pytest.fixture
def prefix() -> str:
    """How this test's topics begin."""
    return f"test-{uuid.uuid4().hex[:12]}"
