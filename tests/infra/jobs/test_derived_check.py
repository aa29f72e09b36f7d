"""What stands beside the log is compared with it: sealed parts, keys, claims and views."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from infra.jobs.derived_check import DerivedCheck
from infra.postgres.pool import LedgerConnection, session
from infra.postgres.roles import WORKER
from tests import given
from tests.infra.opened import Opened, Tenant

OPEN = "SELECT part, position, place FROM log_differences WHERE resolved_at IS NULL ORDER BY part, place"


@dataclass
class Checking:
    """A check over one session, without its rests."""

    check: DerivedCheck
    connection: LedgerConnection
    opened: Opened

    async def found(self) -> list[Any]:
        """Compare everything, and return the differences that are open."""

        async def rest(_: float) -> None:
            """Go on at once."""

        await self.check.minute(self.connection, rest)
        return self.opened.sql(OPEN)


@asynccontextmanager
async def checking(opened: Opened) -> AsyncIterator[Checking]:
    dsn = opened.database.dsn(WORKER)
    async with await LedgerConnection.connect(**session(dsn, WORKER)) as connection:
        yield Checking(DerivedCheck(dsn, opened.keyring), connection, opened)


@pytest.fixture
async def tenant(opened: Opened) -> Tenant:
    """A ledger with a story of two codes of one video, in which every view has rows."""
    tenant = await opened.begin()
    await opened.when(tenant, given.permission())
    now = datetime.now(UTC)
    campaign = replace(given.CAMPAIGN, starts_at=now + timedelta(days=1), ends_at=now + timedelta(days=9))
    for command in (
        *(
            given.generate(),
            given.share(note="for spring"),
            given.redeem(),
            given.advertiser(),
            given.note(),
        ),
        *(given.launch(campaign), given.extend(days=60), given.end(), given.revoke()),
        *(given.generate(given.OTHER_CODE, secret=given.OTHER_SECRET), given.permission(enabled=False), given.bind()),
    ):
        await opened.when(tenant, command)
    await opened.apply()
    opened.sql("ALTER TABLE events DISABLE TRIGGER ALL")
    return tenant


async def test_what_nobody_changed_has_no_difference(opened: Opened, tenant: Tenant) -> None:
    async with checking(opened) as running:
        assert await running.found() == []
        [(parts,)] = opened.sql("SELECT array_agg(part ORDER BY part) FROM log_checks WHERE covered_since IS NOT NULL")
        assert parts == ["claims", "commitments", "views"]


async def test_a_secret_that_is_attached_meanwhile_makes_no_difference(opened: Opened) -> None:
    tenant = await opened.begin()
    without = given.generate(secret=None, expires_at=datetime.now(UTC) + timedelta(days=30))
    for command in (given.permission(), without):
        await opened.when(tenant, command)
    await opened.apply()
    attached = False

    async def rest(_: float) -> None:
        """Attach it after the first stretch of events, before claims are counted."""
        nonlocal attached
        if not attached:
            attached = True
            await opened.when(tenant, given.attach())

    async with checking(opened) as running:
        await running.check.minute(running.connection, rest)
        assert (attached, opened.sql(OPEN)) == (True, [])
        await opened.apply()
        # By now it is among the events, and expected.
        assert await running.found() == []
        opened.sql("DELETE FROM claims WHERE claim IN (SELECT claim FROM claims ORDER BY claim)")
        assert [part for part, _, _ in await running.found()] == ["claims"]


OTHER = "00000000-0000-7000-8000-00000000abcd"
CHANGES: dict[str, tuple[str, tuple[str, int | None, str]]] = {
    "a commitment": (
        "UPDATE events SET commitment = sha256('') WHERE position = 2",
        ("commitments", 2, "events.commitment"),
    ),
    "a sealed part": (
        "UPDATE events SET sealed = set_byte(sealed, 40, get_byte(sealed, 40) # 1) WHERE position = 2",
        ("commitments", 2, "events.sealed"),
    ),
    "a sealed part of another event": (
        "UPDATE events SET sealed = (SELECT sealed FROM events WHERE position = 2) WHERE position = 3",
        ("commitments", 3, "events.sealed"),
    ),
    "a wrapped key": (
        """
        ALTER TABLE creator_keys DISABLE TRIGGER ALL;
        UPDATE creator_keys SET wrapped = set_byte(wrapped, 50, get_byte(wrapped, 50) # 1)
        """,
        ("commitments", 2, "creator_keys.wrapped"),
    ),
    "the holder of a secret": (
        f"UPDATE claims SET stream_id = '{given.OTHER_CODE}' WHERE stream_id = '{given.CODE}'",
        ("claims", 2, "claims.stream_id"),
    ),
    "a claim that is removed": (
        "DELETE FROM claims WHERE stream_id = (SELECT stream_id FROM events WHERE position = 1)",
        ("claims", 1, "claims.stream_id"),
    ),
    "a claim of a stream that is none": (
        f"INSERT INTO claims SELECT ledger_id, '\\x01', '{OTHER}' FROM ledgers",
        ("claims", None, "claims"),
    ),
    "a claim more": (
        f"INSERT INTO claims SELECT ledger_id, '\\x01', '{given.CODE}' FROM ledgers",
        ("claims", None, "claims"),
    ),
    "a row of a view": (
        "UPDATE views.codes SET expires_at = expires_at + interval '1 day' WHERE generated_position = 2",
        ("views", 10, "views.codes.expires_at"),
    ),
    "a row of a view that is removed": (
        "DELETE FROM views.redemptions",
        ("views", None, "views.redemptions"),
    ),
}


@pytest.mark.parametrize("what", CHANGES)
async def test_what_somebody_changed_is_found_where_it_is(opened: Opened, tenant: Tenant, what: str) -> None:
    statements, expected = CHANGES[what]
    with psycopg.connect(opened.database.dsn(), autocommit=True) as superuser:
        superuser.execute(statements)
    opened.keyring.forget_creators()
    async with checking(opened) as running:
        assert expected in await running.found()


async def test_what_is_right_again_is_resolved(opened: Opened, tenant: Tenant) -> None:
    async with checking(opened) as running:
        opened.sql("UPDATE views.codes SET masked = 'x' || masked")
        assert await running.found() == [("views", 10, "views.codes.masked")]
        opened.sql("UPDATE views.codes SET masked = substring(masked FROM 2)")
        assert await running.found() == []


async def test_erased_creators_are_no_difference(opened: Opened, tenant: Tenant) -> None:
    await opened.erase(tenant)
    await opened.apply()
    async with checking(opened) as running:
        assert await running.found() == []


async def test_sealed_parts_are_compared_before_their_key_is_destroyed(opened: Opened, tenant: Tenant) -> None:
    opened.sql("UPDATE events SET commitment = sha256('') WHERE position = 3")
    await opened.erase(tenant)
    assert opened.sql("SELECT wrapped FROM creator_keys") == [(None,)], "the erasure is carried out all the same"
    assert opened.sql(OPEN) == [("commitments", 3, "events.commitment")]
