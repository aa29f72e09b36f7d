from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults import durable
from tests.faults.durable import SHORT, Scene

# They start everything that there is, and clients or a cluster beside it: minutes of work for a machine.
collect_ignore = ["test_asynchronous.py", "test_chaos.py", "test_patroni.py", "test_upgrade.py"] if SHORT else []


@pytest.fixture
def scene() -> Iterator[Scene]:
    """Ledgers on a PostgreSQL of the test's own, with fsync on."""
    with durable.scene() as prepared:
        yield prepared
