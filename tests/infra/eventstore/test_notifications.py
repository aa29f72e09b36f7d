"""Waking readers: whatever the database refuses for a while, who listens is told again once it does not."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

import infra.eventstore.notifications
from infra.eventstore.notifications import Listener
from infra.postgres.pool import LedgerConnection
from infra.postgres.roles import API
from tests.infra.opened import Opened


class Promoted(Listener):
    """Listens at a server that was a standby when it was first asked."""

    was_standby = True

    async def _use(self, connection: LedgerConnection) -> None:
        if self.was_standby:
            self.was_standby = False
            raise psycopg.errors.ReadOnlySqlTransaction("cannot execute LISTEN during recovery")
        await super()._use(connection)


async def test_who_listens_at_a_standby_is_told_of_commits_once_it_is_promoted(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infra.eventstore.notifications, "RETRY_S", 0.01)
    heard = asyncio.Event()
    listener = Promoted(opened.database.dsn(API), API, heard.set)
    listener.start()
    try:
        async with asyncio.timeout(10):
            await heard.wait()
    finally:
        await listener.stop()
