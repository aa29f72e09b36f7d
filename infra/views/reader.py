"""Reads of views: bound to one ledger, with the position that the view has read, and a wait for a wanted position."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import psycopg

from infra.auth.access_log import AccessLog
from infra.errors import Unavailable
from infra.eventstore.authorization_evidence import EvidenceReader
from infra.eventstore.event_rows import EventRows
from projections.engine.checkpoints import position_reached
from projections.engine.runner import ViewBehind, ViewStopped, wait_for_position

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from psycopg import AsyncCursor

    from infra.postgres.pool import Database, LedgerConnection

T = TypeVar("T")

_TOO_LONG: Final = "The query took too long and was stopped. Narrow it with a filter, such as creator_id or video_id."

AT_LEAST_WAIT_S: Final = 5.0
# A view that has stopped waits for an operator; one that is being rebuilt takes as long.
LATER_S: Final = 60


class ViewReader:
    """The read side of a database.

    Attributes:
        event_rows: events of the log, in bulk.
        evidence: the events that decide whether a video was authorized.
        access_log: who read the events.

    """

    def __init__(self, database: Database) -> None:
        """Take the database to read from."""
        self._database = database
        self.event_rows = EventRows(database)
        self.evidence = EvidenceReader(database)
        self.access_log = AccessLog(database)

    async def read(
        self,
        ledger_id: int,
        query: Callable[[AsyncCursor[Any]], Awaitable[T]],
        *,
        view: str,
        also: Sequence[str] = (),
        at_least: int | None = None,
    ) -> tuple[T, int]:
        """Run a query on a view for a ledger; `also` names other views that it reads too.

        Returns:
            The result, and the position up to which all the views had read the ledger: the rows are at least that new.

        Raises:
            Unavailable: a view did not reach `at_least` in time, or stopped before it; the query took too long; or the
                database cannot be reached.

        """
        if at_least is not None:
            deadline = time.monotonic() + AT_LEAST_WAIT_S
            for name in (view, *also):
                await self.wait(ledger_id, name, at_least, max(0.0, deadline - time.monotonic()))

        async def run(connection: LedgerConnection) -> tuple[T, int]:
            async with connection.cursor() as cursor:
                position = await position_reached(cursor, ledger_id, view, *also)
                return await query(cursor), position

        try:
            return await self._database.read(ledger_id, run)
        except psycopg.errors.UndefinedColumn as older:
            # A new version of the view is being built, and the old one is still read.
            raise Unavailable(f"View {view} is being rebuilt. Try again later.", retry_after=LATER_S) from older
        except Unavailable as unavailable:
            if isinstance(unavailable.__cause__, psycopg.errors.QueryCanceled):
                raise Unavailable(_TOO_LONG, retry_after=LATER_S) from unavailable
            raise

    async def wait(self, ledger_id: int, view: str, position: int, timeout_s: float = AT_LEAST_WAIT_S) -> None:
        """Wait until a view has read a ledger up to a position.

        Raises:
            Unavailable: it did not in time, or stopped before it, or the database cannot be reached.

        """
        try:
            await wait_for_position(lambda: self._cursor(ledger_id), view, ledger_id, position, timeout_s=timeout_s)
        except ViewStopped as stopped:
            raise Unavailable(
                f"{stopped} Retry without at_least, or with a smaller value.", retry_after=LATER_S
            ) from stopped
        except ViewBehind as behind:
            raise Unavailable(f"{behind} Try again in a moment, or with a smaller at_least.") from behind

    async def reach(self, ledger_id: int, view: str, position: int) -> int:
        """Wait until a view has read a ledger up to a position, and return how far it has read: less if it has stopped.

        Raises:
            Unavailable: it did not in time and has not stopped, or the database cannot be reached.

        """
        try:
            return await wait_for_position(
                lambda: self._cursor(ledger_id), view, ledger_id, position, timeout_s=AT_LEAST_WAIT_S
            )
        except ViewStopped as stopped:
            return stopped.reached
        except ViewBehind as behind:
            raise Unavailable(f"{behind} Try again in a moment.") from behind

    @asynccontextmanager
    async def _cursor(self, ledger_id: int) -> AsyncIterator[AsyncCursor[Any]]:
        async with self._database.connection(ledger_id) as connection, connection.cursor() as cursor:
            yield cursor
