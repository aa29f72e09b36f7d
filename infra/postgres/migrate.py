"""Bring a database up to the program: its roles, then each numbered migration once, in order."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from domain.event_types import EVENT_TYPES
from infra.postgres.roles import LOG, MOVER, ROLES
from infra.postgres.timelines import ServerConnection
from projections.engine.advisory_locks import AdvisoryLock

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class MigrationError(Exception):
    """The database cannot be brought to this program's state."""


def migrations() -> Iterator[tuple[int, str, str]]:
    """Yield each migration as its number, its name and its SQL, in order."""
    for file in sorted(files("infra.postgres.migrations").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".sql"):
            number, _, name = file.name.removesuffix(".sql").partition("_")
            yield int(number), name, file.read_text(encoding="utf-8")


# An issuer, a ledger that its tokens open, and the roles that they give there.
IssuerGrant = tuple[str, str, list[str]]


def migrate(
    conninfo: str, passwords: dict[str, str] | None = None, issuers: Sequence[IssuerGrant] | None = None
) -> list[str]:
    """Create what is missing, as the database's owner.

    Args:
        conninfo: where, as a user that may create roles and owns the database.
        passwords: by role; a role with a password may log in with it, one without may where the server trusts it.
        issuers: what the tokens that the API accepts open; the database then trusts it to have verified them. None
            leaves what it trusts as it is.

    Returns:
        The names of the migrations applied now.

    Raises:
        MigrationError: the database was migrated by a newer program.

    """
    applied = []
    with ServerConnection.connect(conninfo, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", (AdvisoryLock.MIGRATION,))
        _create_roles(connection, passwords or {})
        connection.execute(
            "CREATE TABLE IF NOT EXISTS migrations (number int PRIMARY KEY, name text NOT NULL, sha256 text NOT NULL,"
            " applied_at timestamptz NOT NULL DEFAULT now())"
        )
        connection.execute("GRANT SELECT ON migrations TO sparkledger_api, sparkledger_worker")
        done = {row[0] for row in connection.execute("SELECT number FROM migrations").fetchall()}
        known = list(migrations())
        _refuse_other_formats(connection, known)
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
                    row = (number, name, _sha256(text))
                    connection.execute("INSERT INTO migrations (number, name, sha256) VALUES (%s, %s, %s)", row)
                applied.append(f"{number:04d}_{name}")
        _write_event_types(connection)
        _write_issuers(connection, issuers)
    return applied


def require_migrated(conninfo: str) -> None:
    """Refuse a database that lacks a migration; one that is away may come back, and is not refused.

    Raises:
        MigrationError: a migration is missing, or a type of event.

    """
    try:
        with ServerConnection.connect(conninfo, connect_timeout=5, autocommit=True) as connection:
            done = {row[0] for row in connection.execute("SELECT number FROM migrations").fetchall()}
            _refuse_other_formats(connection, list(migrations()))
            types = {(row[0], row[1]) for row in connection.execute("SELECT type, type_version FROM event_types")}
    except psycopg.OperationalError:
        return
    except psycopg.errors.UndefinedTable:
        done, types = set(), set()
    missing = [f"{number:04d}_{name}" for number, name, _ in migrations() if number not in done]
    if missing:
        message = f"The database lacks the migrations {', '.join(missing)}. Run `sparkledger migrate` first."
        raise MigrationError(message)
    unknown = sorted({type_ for type_, version, _ in event_types() if (type_, version) not in types})
    if unknown:
        message = f"The database does not know the events {', '.join(unknown)} yet. Run `sparkledger migrate` first."
        raise MigrationError(message)


def _refuse_other_formats(connection: psycopg.Connection, known: list[tuple[int, str, str]]) -> None:
    """Refuse a database whose migrations had the same numbers and other texts: until 1.0 they may be rewritten."""
    column = "SELECT 1 FROM information_schema.columns WHERE table_name = 'migrations' AND column_name = 'sha256'"
    told = connection.execute(column).fetchone() is not None
    applied: dict[int, str] = {}
    if told:
        applied = dict(connection.execute("SELECT number, sha256 FROM migrations").fetchall())
    if told and all(applied.get(number, _sha256(text)) == _sha256(text) for number, _, text in known):
        return
    message = (
        "The database was created by another version of this program, from before 1.0 and with another "
        "format. Use a new database: set SPARKLEDGER_DATA_DIR to an empty directory, or "
        "SPARKLEDGER_DATABASE_URL to an empty database. To read the old one, start the version that created "
        "it."
    )
    raise MigrationError(message)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def event_types() -> Iterator[tuple[str, int, list[str]]]:
    """Yield every version of every event that this program records: its type, the version, and who records it."""
    for type_, kind in EVENT_TYPES.items():
        for version in range(1, getattr(kind, "class_version", 1) + 1):
            yield type_, version, list(vars(kind)["RECORDED_BY"])


def _write_event_types(connection: psycopg.Connection) -> None:
    """Tell the database which events it accepts. What an older program beside this one records stays accepted."""
    for row in event_types():
        connection.execute(
            "INSERT INTO event_types (type, type_version, roles) VALUES (%s, %s, %s)"
            " ON CONFLICT (type, type_version) DO UPDATE SET roles = excluded.roles",
            row,
        )


def _write_issuers(connection: psycopg.Connection, issuers: Sequence[IssuerGrant] | None) -> None:
    if issuers is None:
        return
    with connection.transaction():
        connection.execute("DELETE FROM trusted_issuers")
        for grant in issuers:
            connection.execute("INSERT INTO trusted_issuers (issuer, ledger, roles) VALUES (%s, %s, %s)", grant)


def _create_roles(connection: psycopg.Connection, passwords: dict[str, str]) -> None:
    for role in ROLES:
        name = sql.Identifier(role)
        if connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (role,)).fetchone() is None:
            # Those that own the append and move ledgers may not log in at all.
            login = sql.SQL("NOLOGIN" if role in {LOG, MOVER} else "LOGIN")
            connection.execute(sql.SQL("CREATE ROLE {} {}").format(name, login))
        connection.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(name))
        if role in passwords:
            connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(name, sql.Literal(passwords[role])))
