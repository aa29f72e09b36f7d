"""What tests of views share: sessions of both roles, and a view brought up to date without a runner."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

import psycopg
import pytest

from projections.engine.projector import Connect, Projector
from projections.engine.view import View
from tests.conftest import TestDatabase
from tests.infra.session_tokens import bound_to
from tests.projections.memory_log import MemoryLog

Cursor = psycopg.AsyncCursor[Any]


class Followed(Protocol):
    """Brings a view up to date with a log, in pages of so many events."""

    async def __call__(self, view: View[Any], log: MemoryLog, page_events: int = 3) -> None: ...


@pytest.fixture
def connect(database: TestDatabase) -> Connect:
    """Open sessions of the worker's, as a worker does."""

    async def session() -> psycopg.AsyncConnection[Any]:
        options = "-c lock_timeout=5000 -c timezone=UTC"
        return await psycopg.AsyncConnection.connect(
            database.dsn("sparkledger_worker"), autocommit=True, options=options
        )

    return session


@pytest.fixture
async def worker(connect: Connect) -> AsyncIterator[Cursor]:
    """A cursor that sees every ledger."""
    async with await connect() as connection:
        yield connection.cursor()


@pytest.fixture
async def api(database: TestDatabase) -> AsyncIterator[Cursor]:
    """A cursor of the API's, bound to ledger 1."""
    dsn = database.dsn("sparkledger_api")
    options = f"-c sparkledger.ledger={bound_to(database, 1)} -c timezone=UTC"
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True, options=options) as connection:
        yield connection.cursor()


@pytest.fixture
def follow(connect: Connect) -> Followed:
    """Bring a view up to date with a log, creating it where it never began, and stop."""

    async def followed(view: View[Any], log: MemoryLog, page_events: int = 3) -> None:
        async with await connect() as connection:
            projector = Projector(view, connection)
            await projector.prepare()
            await projector.create(indexes=True)
            await projector.find()
            await projector.apply_all(log, page_events=page_events)

    return followed
