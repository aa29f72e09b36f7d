"""What tests of the log share: a database opened by the API's role, with ledgers and keys to write in them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.conftest import TestDatabase
from tests.infra.opened import Opened, opening


@pytest.fixture
async def opened(database: TestDatabase) -> AsyncIterator[Opened]:
    """A fresh database, opened by the API's role."""
    async with opening(database) as fresh:
        yield fresh
