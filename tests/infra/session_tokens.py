"""The tokens that an API process gets with a key, as a superuser reads them, for tests that present no key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

import psycopg
from psycopg.conninfo import make_conninfo

from infra.postgres.pool import Database
from infra.postgres.session_tokens import SessionTokens
from tests.conftest import TestDatabase

# Asks a database as its superuser, and returns the rows.
Ask = Callable[[str, Sequence[Any]], list[Any]]


def present(database: Database, ledger_id: int, key_id: UUID | None = None) -> None:
    """Let a pool's process prove that a ledger, and a key of it, were presented to it."""
    with psycopg.connect(make_conninfo(database.conninfo, user="postgres"), autocommit=True) as connection:
        admit(database.tokens, lambda query, given: connection.execute(query, given).fetchall(), ledger_id, key_id)


def admit(tokens: SessionTokens, ask: Ask, ledger_id: int, key_id: UUID | None = None) -> None:
    """Admit a ledger, and a key of it, to a process's tokens."""
    tokens.admit_ledger(ledger_id, bytes(ask("SELECT ledger_token(%s)", (ledger_id,))[0][0]))
    if key_id is not None:
        tokens.admit_key(key_id, bytes(ask("SELECT key_token(%s, %s)", (ledger_id, key_id))[0][0]))


def present_all(database: Database) -> None:
    """Let a pool's process prove every ledger and key that there is by now."""
    with psycopg.connect(make_conninfo(database.conninfo, user="postgres"), autocommit=True) as connection:
        keys = connection.execute("SELECT ledger_id, key_id FROM api_keys").fetchall()
    for ledger_id, key_id in keys:
        present(database, ledger_id, key_id)


def bound_to(database: TestDatabase, ledger_id: int) -> str:
    """Return what `sparkledger.ledger` must be for a session of the API to see a ledger."""
    tokens = SessionTokens()
    admit(tokens, database.sql, ledger_id)
    return tokens.setting(ledger_id)
