"""The view of advertisers: whose each account is, and since when."""

from __future__ import annotations

from datetime import timedelta

from psycopg.sql import SQL

from projections import advertisers
from projections.advertisers import OwnershipRow
from tests import given
from tests.given import ADVERTISER, BRAND, NOW
from tests.projections.conftest import Cursor, Followed
from tests.projections.memory_log import MemoryLog

DAY = timedelta(days=1)


async def found(cur: Cursor) -> list[OwnershipRow]:
    query = SQL("SELECT {} FROM views.advertisers t WHERE ledger_id = %(ledger_id)s ORDER BY position")
    return await advertisers.OWNERSHIPS.fetch(cur, query.format(advertisers.OWNERSHIPS.select()), {"ledger_id": 1})


async def test_every_statement_of_whose_an_account_is_has_a_row(follow: Followed, api: Cursor) -> None:
    story = given.after(given.unknown(), given.advertiser()).later(days=3)
    story.when(given.advertiser(brand_id="brand-2"), effective_at=NOW + DAY)
    story.when(given.advertiser("advertiser-2"))
    await follow(advertisers.VIEW, MemoryLog(story))
    assert await found(api) == [
        OwnershipRow(1, 1, ADVERTISER, BRAND, NOW),
        OwnershipRow(1, 2, ADVERTISER, "brand-2", NOW + DAY),
        OwnershipRow(1, 3, "advertiser-2", BRAND, NOW + 3 * DAY),
    ]


async def test_another_ledgers_accounts_are_hidden(follow: Followed, api: Cursor) -> None:
    await follow(advertisers.VIEW, MemoryLog(given.unknown(), given.after(given.unknown(), given.advertiser())))
    assert await found(api) == []
