"""Waking readers: one coalesced NOTIFY per process after commits, never inside the append, and a listener.

A NOTIFY in the append's own transaction would serialise every commit of the database. A lost one costs only the poll
that readers fall back on.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import psycopg

from infra.postgres.pool import LedgerConnection, session
from infra.postgres.prepared_statement import Statement

if TYPE_CHECKING:
    from collections.abc import Callable

CHANNEL: Final = "sparkledger_events"
RETRY_S: Final = 1.0
# Readers are told at once after a pause, and this often while commits follow on each other: each NOTIFY is a
# transaction of its own, and with one command after another they would cost as much as the commands.
NOTIFY_EVERY_S: Final = 0.01

log = logging.getLogger(__name__)


class _Loop:
    """A task with a connection of its own that is begun again when the connection is lost."""

    def __init__(self, conninfo: str, role: str, name: str, more_options: str = "") -> None:
        self._session = {
            **session(conninfo, role, more_options=more_options),
            "application_name": f"sparkledger {name}",
        }
        self._name = name
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name=self._name)

    async def stop(self) -> None:
        """End, and close the connection."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            try:
                async with await LedgerConnection.connect(**self._session) as connection:
                    await self._use(connection)
            except psycopg.Error as error:
                # Also what it will not do now: a standby refuses to listen until it is promoted.
                log.warning("The %s lost its connection and reconnects: %s", self._name, str(error).strip())
                await asyncio.sleep(RETRY_S)

    async def _use(self, connection: LedgerConnection) -> None:
        raise NotImplementedError


class Notifier(_Loop):
    """Tells readers in all processes that something was committed."""

    def __init__(self, conninfo: str, role: str) -> None:
        """Prepare; `start` connects."""
        # What is lost with the server costs no more than a poll: no NOTIFY waits for the disk, or makes appends wait.
        super().__init__(conninfo, role, "notifier", " -c synchronous_commit=off")
        self._committed = asyncio.Event()

    def committed(self) -> None:
        """Note that something was committed; many before the next NOTIFY are one."""
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
    """Calls back whenever something was committed, by whatever process."""

    def __init__(self, conninfo: str, role: str, heard: Callable[[], None], *, channel: str = CHANNEL) -> None:
        """Prepare; `start` listens, for events unless another channel is named."""
        super().__init__(conninfo, role, "listener")
        self._heard = heard
        self._channel = channel

    async def _use(self, connection: LedgerConnection) -> None:
        await connection.execute(f"LISTEN {self._channel}")
        self._heard()  # what was committed while nobody listened
        async for _ in connection.notifies():
            self._heard()
