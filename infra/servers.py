"""The database servers of an installation: their file, their numbers, and on which of them a ledger is.

Each ledger has its home on one server, and no transaction ever touches two. A server has a number, which `migrate`
stores in its database, and from the number follows which ids its ledgers get: no two ledgers have the same. Ids of keys
are random. Names are compared on all servers when a ledger is created.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from infra.errors import Unavailable
from infra.postgres.roles import MOVER, WORKER
from infra.postgres.timelines import ServerConnection
from projections.engine.advisory_locks import AdvisoryLock

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from uuid import UUID

    from infra.postgres.pool import Database

MAX_SERVERS: Final = 1_000
MAX_FILE_BYTES: Final = 1024 * 1024
# How many ledgers a server can create. Server n gives the ids from n times this, plus one.
LEDGERS_OF_A_SERVER: Final = 1_000_000
CONNECT_TIMEOUT_S: Final = 5
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")

_LEDGERS: Final = "SELECT name, ledger_id FROM ledgers"
_LEAVING: Final = "SELECT d.target FROM departures d JOIN ledgers l USING (ledger_id) WHERE l.name = %s"
_HAS: Final = "SELECT 1 FROM ledgers WHERE name = %s"


class ServersError(Exception):
    """The servers cannot be one installation, or their file cannot be used. The message says what to do."""


# -- The file


def read_servers(path: Path) -> dict[str, str]:
    """Return the servers of a file by their names, in order: a line `name = URL` for each.

    Raises:
        ValueError: the file cannot be used; the message completes a sentence, and contains no URL.

    """
    servers: dict[str, str] = {}
    for number, line in enumerate(_content(path).splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, separator, url = (part.strip() for part in text.partition("="))
        if not separator or _NAME.fullmatch(name) is None:
            message = (
                f"names a file whose line {number} is not `name = URL`: a name has up to 32 lower-case letters, digits "
                "and hyphens"
            )
            raise ValueError(message)
        if name in servers:
            message = f"names a file that has the server {name} twice"
            raise ValueError(message)
        servers[name] = _checked(url, number)
    if not 1 <= len(servers) <= MAX_SERVERS:
        message = f"names a file with {len(servers):,} servers: 1 to {MAX_SERVERS:,} are possible"
        raise ValueError(message)
    return servers


def _content(path: Path) -> str:
    """Return a file that only its user can read and replace."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        message = f"names a file that cannot be read ({error.strerror})"
        raise ValueError(message) from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("names no file")
        if status.st_uid not in {os.geteuid(), 0}:
            message = (
                f"names a file that belongs to the user with id {status.st_uid}, who could lead this program to other "
                f"servers: run chown {os.geteuid()} {path}"
            )
            raise ValueError(message)
        if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            message = f"names a file that other users can read, and it contains passwords: run chmod 600 {path}"
            raise ValueError(message)
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ValueError("names a file that is too large")
    return content.decode("utf-8", "replace")


def _checked(url: str, number: int) -> str:
    try:
        if conninfo_to_dict(url):
            return url
    except psycopg.ProgrammingError:
        pass  # libpq's own message may quote the password
    message = f"names a file whose line {number} has no libpq connection string after the ="
    raise ValueError(message)


# -- Numbers


class _Known(NamedTuple):
    """What a server says of itself."""

    name: str | None
    number: int | None
    ledgers: dict[str, int]


def number_servers(owners: Mapping[str, str]) -> None:
    """Give each server a number where it has none, and check that the servers can be one installation.

    Args:
        owners: the servers by name, each as the owner of its tables.

    Raises:
        ServersError: they cannot.

    """
    with ExitStack() as opened:
        connections: dict[str, psycopg.Connection[Any]] = {}
        # In the order of names, so that two of these do not wait for each other.
        for name in sorted(owners):
            connections[name] = opened.enter_context(_connected(name, owners[name]))
            connections[name].execute("SELECT pg_advisory_lock(%s)", (AdvisoryLock.MIGRATION,))
        known = {name: _asked(connections[name]) for name in owners}
        _require_distinct(known)
        numbers = {one.number for one in known.values() if one.number is not None}
        for name, one in known.items():
            if one.number is None:
                number = _free_number(name, known, numbers)
                numbers.add(number)
                _store_number(connections[name], name, number, one.ledgers)


def _asked(connection: psycopg.Connection[Any]) -> _Known:
    row = connection.execute("SELECT name, number FROM this_server").fetchone()
    with connection.transaction():
        connection.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(WORKER)))
        ledgers = dict(connection.execute(_LEDGERS).fetchall())
    name, number = row or (None, None)
    return _Known(name, number, ledgers)


def _require_distinct(known: Mapping[str, _Known]) -> None:
    numbers: dict[int, str] = {}
    names: dict[str, str] = {}
    ids: dict[int, str] = {}
    for server, one in known.items():
        if one.name not in {None, server}:
            message = (
                f"The server named {server} calls itself {one.name}: it was migrated under that name. Name it so, and "
                "check that no two names have the same URL."
            )
            raise ServersError(message)
        if one.number is not None and (other := numbers.setdefault(one.number, server)) != server:
            message = f"The servers {other} and {server} have the same number: they were never one installation."
            raise ServersError(message)
        for ledger, ledger_id in one.ledgers.items():
            if (other := names.setdefault(ledger, server)) != server:
                message = (
                    f"The servers {other} and {server} both have a ledger {ledger}: they cannot be one installation."
                )
                raise ServersError(message)
            if (other := ids.setdefault(ledger_id, server)) != server:
                message = (
                    f"Ledger {ledger} of server {server} has the same id as one of server {other}, because both were "
                    "installations of their own: they cannot be one."
                )
                raise ServersError(message)


def _free_number(name: str, known: Mapping[str, _Known], numbers: set[int]) -> int:
    """Return a number whose ids nobody else has given."""
    own = {_block(ledger_id) for ledger_id in known[name].ledgers.values()}
    others = {
        _block(ledger_id) for other, one in known.items() if other != name for ledger_id in one.ledgers.values()
    } | numbers
    number = min(own, default=None)
    if number is None:
        number = next(candidate for candidate in range(MAX_SERVERS + len(others) + 1) if candidate not in others)
    if len(own) > 1 or number in others:
        message = (
            f"The ids of ledgers of server {name} are those that another server gives, because both were installations "
            "of their own: they cannot be one."
        )
        raise ServersError(message)
    return number


def _block(ledger_id: int) -> int:
    return (ledger_id - 1) // LEDGERS_OF_A_SERVER


def _store_number(connection: psycopg.Connection[Any], name: str, number: int, ledgers: Mapping[str, int]) -> None:
    first = number * LEDGERS_OF_A_SERVER + 1
    limits = {
        "first": sql.Literal(first),
        "last": sql.Literal(first + LEDGERS_OF_A_SERVER - 1),
        "next": sql.Literal(max(ledgers.values(), default=first - 1) + 1),
    }
    with connection.transaction():
        connection.execute("INSERT INTO this_server (name, number) VALUES (%s, %s)", (name, number))
        connection.execute(
            sql.SQL(
                "ALTER TABLE ledgers ALTER COLUMN ledger_id SET MINVALUE {first} SET MAXVALUE {last}"
                " SET START WITH {first} RESTART WITH {next}"
            ).format(**limits)
        )


# -- Ledgers


def home_of(owners: Mapping[str, str], ledger: str) -> str:
    """Return the name of the server that a ledger is on.

    Args:
        owners: the servers by name, each as the owner of its tables.
        ledger: the name of the ledger.

    Raises:
        LookupError: it is on none.
        Unavailable: a server cannot be asked, and no other has it.

    """
    away: Unavailable | None = None
    for name, conninfo in owners.items():
        try:
            with _connected(name, conninfo, WORKER) as connection:
                if connection.execute(_HAS, (ledger,)).fetchone() is not None:
                    return name
        except Unavailable as error:
            away = error
    if away is not None:
        raise away
    message = f"There is no ledger named {ledger}. `sparkledger ledgers list` shows all ledgers."
    raise LookupError(message)


@contextmanager
def new_ledger_name(owners: Mapping[str, str], ledger: str) -> Iterator[bool]:
    """Keep others from creating a ledger of this name on any server; yield whether none has it yet.

    A ledger that moves is found on both servers, although for a moment neither serves it.

    Args:
        owners: the servers by name, each as the owner of its tables.
        ledger: the name.

    Raises:
        Unavailable: a server cannot be asked.

    """
    with ExitStack() as opened:
        connections = []
        for name in sorted(owners):
            connection = opened.enter_context(_connected(name, owners[name], MOVER))
            connection.execute("SELECT pg_advisory_lock(%s, hashtext(%s))", (AdvisoryLock.LEDGER_NAME, ledger))
            connections.append(connection)
        yield all(connection.execute(_HAS, (ledger,)).fetchone() is None for connection in connections)


# -- Moves


def leaving(name: str, owner: str, ledger: str, target: str) -> bool:
    """Return whether a ledger is leaving this server for another one, or has left it.

    Args:
        name: of the server.
        owner: how to reach it as the owner of its tables.
        ledger: the name of the ledger.
        target: the name of the other server.

    Raises:
        Unavailable: the server cannot be asked.

    """
    with _connected(name, owner, MOVER) as connection:
        row = connection.execute(_LEAVING, (ledger,)).fetchone()
    return row is not None and row[0] == target


class Departure(NamedTuple):
    """Where a ledger has gone: the server, and the number of the copy there."""

    target: str
    stage: UUID


async def departed(source: Database, ledger_id: int) -> Departure | None:
    """Return where a ledger has gone from a server; None if it serves it still.

    Raises:
        Unavailable: the database is away, or a failover could still take back that it has gone.

    """
    async with source.connection() as connection:
        row = await (await connection.execute("SELECT target, stage FROM departure_of(%s)", (ledger_id,))).fetchone()
    return None if row is None or row[0] is None else Departure(*row)


async def arrived(target: Database, ledger_id: int, stage: UUID) -> bool:
    """Let a server serve a ledger that has gone from its source; return whether the server has that copy.

    Raises:
        Unavailable: the database is away.

    """
    async with target.connection() as connection:
        row = await (await connection.execute("SELECT complete_arrival(%s, %s)", (ledger_id, stage))).fetchone()
    return row is not None and bool(row[0])


def _connected(name: str, conninfo: str, role: str | None = None) -> psycopg.Connection[Any]:
    options: dict[str, Any] = {} if role is None else {"options": f"-c role={role}"}
    try:
        return ServerConnection.connect(conninfo, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S, **options)
    except psycopg.OperationalError as error:
        # libpq's own text names host, user and cause, never a password.
        raise Unavailable(f"Server {name} cannot be reached: {' '.join(str(error).split())}") from error
