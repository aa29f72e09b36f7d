"""Reading views: bound to one ledger, with how far the view has read, after waiting for it where asked to."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

from infra.errors import Unavailable
from projections.runner import Behind, wait_for
from projections.view import reached

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from psycopg import AsyncCursor

    from infra.database import Database, LedgerConnection

T = TypeVar("T")

AT_LEAST_WAIT_S: Final = 5.0


class Views:
    """The read side of a database."""

    def __init__(self, database: Database) -> None:
        """Take the sessions to read with."""
        self._database = database

    async def read(
        self,
        ledger_id: int,
        query: Callable[[AsyncCursor[Any]], Awaitable[T]],
        *,
        view: str,
        at_least: int | None = None,
    ) -> tuple[T, int]:
        """Run a view's query for a ledger.

        Returns:
            Its result, and the position up to which the view had read the ledger: the rows are at least that new.

        Raises:
            Unavailable: the view did not reach `at_least` in time, or the database is away.

        """
        if at_least is not None:
            try:
                await wait_for(lambda: self._cursor(ledger_id), view, ledger_id, at_least, timeout_s=AT_LEAST_WAIT_S)
            except Behind as behind:
                raise Unavailable(f"{behind} Ask again in a moment, or with a smaller at_least.") from behind

        async def run(connection: LedgerConnection) -> tuple[T, int]:
            async with connection.cursor() as cursor:
                position = await reached(cursor, ledger_id, view)
                return await query(cursor), position

        return await self._database.read(ledger_id, run)

    @asynccontextmanager
    async def _cursor(self, ledger_id: int) -> AsyncIterator[AsyncCursor[Any]]:
        async with self._database.connection(ledger_id) as connection, connection.cursor() as cursor:
            yield cursor
