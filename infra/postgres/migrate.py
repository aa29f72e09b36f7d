"""Bring a database up to the program: its roles, then each numbered migration once, in order."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from infra.postgres.roles import LOG, ROLES
from projections.engine.advisory_locks import AdvisoryLock

if TYPE_CHECKING:
    from collections.abc import Iterator


class MigrationError(Exception):
    """The database cannot be brought to this program's state."""


def migrations() -> Iterator[tuple[int, str, str]]:
    """Yield each migration as its number, its name and its SQL, in order."""
    for file in sorted(files("infra.postgres.migrations").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".sql"):
            number, _, name = file.name.removesuffix(".sql").partition("_")
            yield int(number), name, file.read_text(encoding="utf-8")


def migrate(conninfo: str, passwords: dict[str, str] | None = None) -> list[str]:
    """Create what is missing, as the database's owner.

    Args:
        conninfo: where, as a user that may create roles and owns the database.
        passwords: by role; a role with a password may log in with it, one without may where the server trusts it.

    Returns:
        The names of the migrations applied now.

    Raises:
        MigrationError: the database was migrated by a newer program.

    """
    applied = []
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", (AdvisoryLock.MIGRATION,))
        _create_roles(connection, passwords or {})
        connection.execute(
            "CREATE TABLE IF NOT EXISTS migrations ("
            " number int PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        connection.execute("GRANT SELECT ON migrations TO sparkledger_api, sparkledger_worker")
        done = {row[0] for row in connection.execute("SELECT number FROM migrations").fetchall()}
        known = list(migrations())
        unknown = done - {number for number, _, _ in known}
        if unknown:
            message = (
                f"The database was migrated by a newer version of this program (migration {max(unknown)}). Start "
                "that version, or restore a database of this version."
            )
            raise MigrationError(message)
        for number, name, text in known:
            if number not in done:
                with connection.transaction():
                    connection.execute(text)
                    connection.execute("INSERT INTO migrations (number, name) VALUES (%s, %s)", (number, name))
                applied.append(f"{number:04d}_{name}")
    return applied


def require_migrated(conninfo: str) -> None:
    """Refuse a database that lacks a migration; one that is away may come back, and is not refused.

    Raises:
        MigrationError: a migration is missing.

    """
    try:
        with psycopg.connect(conninfo, connect_timeout=5, autocommit=True) as connection:
            done = {row[0] for row in connection.execute("SELECT number FROM migrations").fetchall()}
    except psycopg.OperationalError:
        return
    except psycopg.errors.UndefinedTable:
        done = set()
    missing = [f"{number:04d}_{name}" for number, name, _ in migrations() if number not in done]
    if missing:
        message = f"The database lacks the migrations {', '.join(missing)}. Run `sparkledger migrate` first."
        raise MigrationError(message)


def _create_roles(connection: psycopg.Connection, passwords: dict[str, str]) -> None:
    for role in ROLES:
        name = sql.Identifier(role)
        if connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (role,)).fetchone() is None:
            # Only the role that owns the append may not log in at all.
            login = sql.SQL("NOLOGIN" if role == LOG else "LOGIN")
            connection.execute(sql.SQL("CREATE ROLE {} {}").format(name, login))
        connection.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(name))
        if role in passwords:
            connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(name, sql.Literal(passwords[role])))
