from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.infra.delivery.kafka.fixtures import kafka, own_kafka, prefix

__all__ = ["kafka", "own_kafka", "prefix"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A client that was given up leaves its sockets to the collector, which complains of them here alone."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"))


@pytest.fixture(autouse=True)
def left_behind() -> Iterator[None]:
    """Let the collector find them in the test that left them."""
    yield
    gc.collect()
