"""The log for code that is not async: a loop in a thread of its own, with the process's one writer on it."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

import psycopg
from psycopg.conninfo import make_conninfo

from infra.eventstore.group_commit import GroupCommitWriter
from infra.eventstore.notifications import Listener, Notifier
from infra.postgres.pool import Database
from infra.postgres.roles import API

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from infra.eventstore.append import Append, Outcome
    from infra.postgres.pool import LedgerConnection

T = TypeVar("T")

# Readers look again this often, should a notification be lost.
POLL_S: Final = 1.0


class SynchronousLog:
    """A database's log, as threads use it; each call waits for its answer."""

    def __init__(self, conninfo: str) -> None:
        """Connect, as a login that may become the API's role; a database that is away is waited for."""
        self._loop = asyncio.new_event_loop()
        self._listeners: set[threading.Event] = set()
        self._accepted: set[str] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sparkledger log", daemon=True)
        self._thread.start()
        self._database, self._notifier, self._writer, self._listener, self._poll = self._wait(self._open(conninfo))

    async def _open(self, conninfo: str) -> tuple[Database, Notifier, GroupCommitWriter, Listener, asyncio.Task[None]]:
        database = Database(conninfo, API)
        notifier = Notifier(conninfo, API)
        writer = GroupCommitWriter(conninfo, API, on_commit=notifier.committed)
        listener = Listener(conninfo, API, self._heard)
        await database.open()
        notifier.start()
        writer.start()
        listener.start()
        return database, notifier, writer, listener, asyncio.create_task(self._look_again())

    def close(self) -> None:
        """Stop after what is being committed; callers that still wait are asked to come back."""
        self._wait(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        self._poll.cancel()
        with suppress(asyncio.CancelledError):
            await self._poll
        await self._writer.stop()
        await self._listener.stop()
        await self._notifier.stop()
        await self._database.close()

    def accept(self, types: set[str]) -> None:
        """Tell the database of the application's events, as `sparkledger migrate` tells it of the product's."""
        if not types <= self._accepted:
            with psycopg.connect(make_conninfo(self._database.conninfo), autocommit=True) as connection:
                for type_ in types:
                    connection.execute(
                        "INSERT INTO event_types VALUES (%s, 1, '{clock}') ON CONFLICT DO NOTHING", (type_,)
                    )
            self._accepted |= types

    def append(self, request: Append) -> Outcome:
        """Append, and wait until it is committed or refused; raises what `GroupCommitWriter.append` does."""
        return self._wait(self._writer.append(request))

    def rows(self, ledger_id: int, query: str, parameters: Sequence[Any]) -> list[Any]:
        """Run a query that changes nothing, bound to a ledger; raises `Unavailable`."""

        async def run(connection: LedgerConnection) -> list[Any]:
            cursor = connection.cursor(binary=True)
            await cursor.execute(query, parameters, prepare=True)
            return await cursor.fetchall()

        return self._wait(self._database.read(ledger_id, run))

    def change(self, ledger_id: int, statement: str, parameters: Sequence[Any]) -> int:
        """Run a statement once, bound to a ledger, and return how many rows it touched; raises `Unavailable`."""

        async def run() -> int:
            async with self._database.connection(ledger_id) as connection:
                return (await connection.execute(statement, parameters)).rowcount

        return self._wait(run())

    def listen(self, event: threading.Event) -> None:
        """Set an event whenever something was committed, by whatever process, and from time to time."""
        self._listeners.add(event)

    def unlisten(self, event: threading.Event) -> None:
        """Leave an event alone again."""
        self._listeners.discard(event)

    def _heard(self) -> None:
        # Of a copy: threads come and go meanwhile.
        for event in tuple(self._listeners):
            event.set()

    async def _look_again(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            self._heard()

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


_lent: dict[str, tuple[SynchronousLog, int]] = {}
_lending = threading.Lock()


def lend(conninfo: str) -> SynchronousLog:
    """Return this process's log on a database: all that ask for it share one, for two writers are slower than one."""
    with _lending:
        log, users = _lent.get(conninfo) or (SynchronousLog(conninfo), 0)
        _lent[conninfo] = (log, users + 1)
        return log


def give_back(conninfo: str) -> None:
    """End the use of a lent log; the last one closes it."""
    with _lending:
        log, users = _lent.pop(conninfo)
        if users > 1:
            _lent[conninfo] = (log, users - 1)
            return
    log.close()
