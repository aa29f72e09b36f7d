"""Advisory locks: none of the program's blocks another, and each number is defined in one place."""

from __future__ import annotations

import re
from collections import Counter
from itertools import permutations
from pathlib import Path

import psycopg
import pytest

from projections import codes
from projections.engine.advisory_locks import AdvisoryLock
from projections.engine.projector import Connect, Projector
from tests.conftest import TestDatabase

ROOT = Path(__file__).parents[3]
NUMBER = re.compile(r"\b72_?90_?1\d\d\b|\b7_290_1\d\d(?:_\d+)?\b")


def test_no_two_locks_share_a_number() -> None:
    assert {number: count for number, count in Counter(AdvisoryLock.__members__.values()).items() if count > 1} == {}


def test_numbers_are_only_in_the_enum_and_in_the_migration_that_takes_the_same_lock() -> None:
    sources = [
        path
        for package in ("domain", "projections", "infra", "api")
        for path in (ROOT / package).rglob("*")
        if path.suffix in {".py", ".sql"} and path.name != "advisory_locks.py"
    ]
    written = {(path.name, number) for path in sources for number in NUMBER.findall(path.read_text(encoding="utf-8"))}
    assert written == {("0009_erasure.sql", str(int(AdvisoryLock.ERASURE)))}


@pytest.mark.parametrize("keys", ["%s", "%s, hashtext('codes')", "%s, 1"])
def test_two_sessions_hold_any_two_locks_of_the_same_second_key_at_once(database: TestDatabase, keys: str) -> None:
    locks = [lock for lock in AdvisoryLock.__members__.values() if keys == "%s" or lock < 2**31]
    try_lock = f"SELECT pg_try_advisory_xact_lock({keys})"
    with (
        psycopg.connect(database.dsn(), autocommit=True) as one,
        psycopg.connect(database.dsn(), autocommit=True) as other,
    ):
        for first, second in permutations(range(len(locks)), 2):
            with one.transaction(), other.transaction():
                assert one.execute(try_lock, (locks[first],)).fetchone() == (True,)
                assert other.execute(try_lock, (locks[second],)).fetchone() == (True,), (locks[first], locks[second])


async def test_a_view_is_created_while_a_publisher_leads_a_prefix_of_the_same_name(
    database: TestDatabase, connect: Connect
) -> None:
    lead = "SELECT pg_try_advisory_lock(%s, hashtext(%s))"
    with psycopg.connect(database.dsn("sparkledger_worker"), autocommit=True) as publisher:
        assert publisher.execute(lead, (AdvisoryLock.KAFKA_PUBLISHER, codes.NAME)).fetchone() == (True,)
        async with await connect() as connection:
            await Projector(codes.VIEW, connection).create(indexes=False)
