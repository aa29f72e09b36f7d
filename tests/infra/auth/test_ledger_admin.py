"""Administration of ledgers: a name is taken once, and an unknown one is refused by name."""

from __future__ import annotations

import psycopg
import pytest

from infra.auth.ledger_admin import LedgerExists
from tests.conftest import TestDatabase
from tests.infra.opened import Opened


async def test_a_ledgers_name_is_taken_once(opened: Opened) -> None:
    await opened.ledger_admin.create("main")
    with pytest.raises(LedgerExists):
        await opened.ledger_admin.create("main")


async def test_an_unknown_ledger_is_named_in_the_refusal(opened: Opened) -> None:
    with pytest.raises(LookupError, match="no ledger named elsewhere"):
        await opened.ledger_admin.id_of("elsewhere")


@pytest.mark.parametrize("name", [".", "..", "", "a b"])
def test_the_database_itself_takes_no_name_that_an_address_could_not_hold(database: TestDatabase, name: str) -> None:
    with psycopg.connect(database.dsn()) as connection, pytest.raises(psycopg.errors.CheckViolation):
        connection.execute("INSERT INTO ledgers (name, fingerprint_key) VALUES (%s, '')", (name,))
