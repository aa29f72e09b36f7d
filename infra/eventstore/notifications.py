"""Notifications of commits: one NOTIFY for all commits of a process in a short time, and listeners.

A NOTIFY in the append's own transaction would serialise all commits of the database, so it is sent after the commit. A
lost NOTIFY only delays readers until their next poll.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

import psycopg

from infra.ending import cancelled
from infra.postgres.pool import LedgerConnection, session
from infra.postgres.prepared_statement import Statement

if TYPE_CHECKING:
    from collections.abc import Callable

CHANNEL: Final = "sparkledger_events"
RETRY_S: Final = 1.0
# The shortest time between two NOTIFY statements. Each is a transaction of its own: one for every command would cost as
# much as the commands.
NOTIFY_EVERY_S: Final = 0.01

log = logging.getLogger(__name__)


class _Loop:
    """A task with a connection of its own, which reconnects when the connection is lost."""

    def __init__(self, conninfo: str, role: str, name: str, more_options: str = "") -> None:
        self._session = {
            **session(conninfo, role, more_options=more_options),
            "application_name": f"sparkledger {name}",
        }
        self._name = name
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the task."""
        self._task = asyncio.create_task(self._run(), name=self._name)

    async def stop(self) -> None:
        """End the task, and close its connection."""
        if self._task is not None:
            await cancelled([self._task])
            if not self._task.cancelled():
                self._task.result()  # raises why it ended by itself

    async def _run(self) -> None:
        while True:
            try:
                async with await LedgerConnection.connect(**self._session) as connection:
                    await self._use(connection)
            except psycopg.Error as error:
                # A standby refuses LISTEN until it is promoted, so that is retried as well.
                log.warning("The %s lost its connection and reconnects: %s", self._name, str(error).strip())
                await asyncio.sleep(RETRY_S)

    async def _use(self, connection: LedgerConnection) -> None:
        raise NotImplementedError


class Notifier(_Loop):
    """Notifies the listeners in all processes that something was committed."""

    def __init__(self, conninfo: str, role: str) -> None:
        """Prepare; `start` connects."""
        # A NOTIFY that is lost with the server only delays readers, so it need not wait for the disk.
        super().__init__(conninfo, role, "notifier", " -c synchronous_commit=off")
        self._committed = asyncio.Event()

    def committed(self) -> None:
        """Have listeners notified; calls before the next NOTIFY are merged."""
        self._committed.set()

    async def _use(self, connection: LedgerConnection) -> None:
        notify = Statement(connection, "notify", 0)
        await notify.prepare(f"NOTIFY {CHANNEL}", ())
        while True:
            await self._committed.wait()
            self._committed.clear()
            await notify.call(())
            await asyncio.sleep(NOTIFY_EVERY_S)


class Listener(_Loop):
    """Calls back when any process has notified a channel."""

    def __init__(self, conninfo: str, role: str, heard: Callable[[], None], *, channel: str = CHANNEL) -> None:
        """Prepare; `start` listens, by default for commits. `heard` is also called after each reconnection."""
        super().__init__(conninfo, role, "listener")
        self._heard = heard
        self._channel = channel

    async def _use(self, connection: LedgerConnection) -> None:
        await connection.execute(f"LISTEN {self._channel}")
        self._heard()  # something may have been committed before
        async for _ in connection.notifies():
            self._heard()
