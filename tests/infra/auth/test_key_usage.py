"""The use of keys: the first is recorded before the answer, the last in the background."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from infra.auth.key_usage import KeyUsage
from tests.infra.opened import Opened
from tests.waiting import WITHIN_S


def now() -> datetime:
    return datetime.now(UTC)


async def test_a_first_use_that_cannot_be_recorded_opens_nothing(opened: Opened) -> None:
    tenant = await opened.begin()
    _, text, _ = await opened.key_admin.create(tenant.ledger_id, role="auditor")
    opened.sql("REVOKE INSERT ON accesses FROM sparkledger_api")
    for _ in range(2):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await opened.api.authenticator.authenticate(text, now())


async def test_the_last_use_is_written_beside(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.auth.key_usage.GATHER_S", 0.01)
    tenant = await opened.begin()
    _, text, _ = await opened.key_admin.create(tenant.ledger_id, role="auditor")
    moment = now()
    for seconds in (0, 10):
        await opened.api.authenticator.authenticate(text, moment + timedelta(seconds=seconds))

    async def last_used() -> datetime | None:
        return (await opened.key_admin.keys(tenant.ledger_id))[0].last_used_at

    async with asyncio.timeout(WITHIN_S):
        while await last_used() != moment + timedelta(seconds=10):  # noqa: ASYNC110 - what is waited for
            await asyncio.sleep(0.01)


async def test_a_use_is_written_once_a_minute_and_for_a_bounded_number_of_keys(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.auth.key_usage.MAX_PENDING", 2)
    tenants = [await opened.begin(f"ledger-{n}") for n in range(3)]
    uses, moment = KeyUsage(opened.api.database), now()
    noted = []
    for seconds in (0, 30, 59, 61):
        uses.note(tenants[0].key, moment + timedelta(seconds=seconds))
        noted.append((uses._pending[tenants[0].key.key_id][1] - moment).seconds)
    for tenant in tenants:
        uses.note(tenant.key, moment)
    assert noted == [0, 0, 0, 61]
    assert len(uses._pending) == 2
    await uses.stop()
