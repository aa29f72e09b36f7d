"""What a database server must be, so that what is promised holds. Each process looks once, when it starts.

A server that forgets what it has acknowledged, a standby that lags behind, and a pooler that forgets how a session was
set would all seem to work. So a process that finds one does not start, and says in one line what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict

from infra.postgres.pool import IDLE_TIMEOUT_MS, LOCK_TIMEOUT_MS, POOLED, STATEMENT_TIMEOUT_MS, session
from infra.postgres.timelines import ServerConnection

if TYPE_CHECKING:
    from collections.abc import Mapping

# On a server for tests, this setting says that its data may be lost: sparkledger.may_lose_data = on.
MAY_LOSE_DATA: Final = "sparkledger.may_lose_data"

# Those of the settings of `session` whose loss nobody would notice: in the units of `pg_settings`.
_OF_A_SESSION: Final[Mapping[str, str]] = {
    "statement_timeout": str(STATEMENT_TIMEOUT_MS),
    "lock_timeout": str(LOCK_TIMEOUT_MS),
    "idle_in_transaction_session_timeout": str(IDLE_TIMEOUT_MS),
    "default_transaction_isolation": "read committed",
    "enable_seqscan": "off",
    "TimeZone": "UTC",
}
# Settings without which a commit can be lost that was acknowledged, with the values that lose it.
_LOSES: Final[Mapping[str, frozenset[str]]] = {
    "fsync": frozenset({"off"}),
    "full_page_writes": frozenset({"off"}),
    "synchronous_commit": frozenset({"off", "local"}),
}
_SETTINGS: Final = "SELECT name, setting FROM pg_settings WHERE name = ANY (%s)"
_SERVER: Final = f"""
    SELECT pg_backend_pid(), pg_is_in_recovery(), current_user, coalesce(current_setting('{MAY_LOSE_DATA}', true), '')
"""

_DROPPED: Final = (
    "The database, or a pooler before it, ignores the settings of our sessions: {what}. Connect to PostgreSQL itself, "
    "by its own host and port."
)
_STANDBY: Final = (
    "The database is a standby, which takes no writes. Name the primary in the database URL; or all servers, with "
    "target_session_attrs=primary."
)
_FORGETS: Final = (
    "PostgreSQL runs with {name} = {value}, so it can lose commands that were acknowledged. Set {name} = on, for the "
    "server and for our logins."
)


class UnsuitableServer(Exception):
    """The database server would lose or mix up what is recorded."""


def require_suitable_server(conninfo: str, role: str) -> None:
    """Refuse a server or pooler with which something would be lost or mixed up.

    One that cannot be reached may come back, and is not refused.

    Args:
        conninfo: the database, as a login that is or may become the role.
        role: whose rights the process will have.

    Raises:
        UnsuitableServer: it is unsuitable.

    """
    try:
        with ServerConnection.connect(**session(conninfo, role)) as connection:
            problem = _problem(connection, role)
    except psycopg.OperationalError as error:
        # How a pooler refuses what it does not know. There is no code for it.
        if "unsupported startup parameter" in str(error):
            raise UnsuitableServer(POOLED) from error
        return
    if problem is not None and not (problem == _STANDBY and _chooses(conninfo)):
        raise UnsuitableServer(problem)


def _problem(connection: psycopg.Connection[Any], role: str) -> str | None:
    """Return the first thing that is wrong; None if nothing is."""
    row = connection.execute(_SERVER).fetchone()
    assert row is not None  # noqa: S101 - a SELECT without a FROM answers one row
    pid, in_recovery, user, may_lose = row
    if pid != connection.info.backend_pid:
        return POOLED
    found = dict(connection.execute(_SETTINGS, ([*_OF_A_SESSION, *_LOSES],)).fetchall())
    dropped = [f"{name} is {found.get(name)}" for name, value in _OF_A_SESSION.items() if found.get(name) != value]
    if user != role:
        dropped.append(f"the role is {user}")
    if dropped:
        return _DROPPED.format(what=", ".join(dropped))
    if in_recovery:
        return _STANDBY
    for name, values in _LOSES.items():
        if found.get(name) in values and may_lose != "on":
            return _FORGETS.format(name=name, value=found[name])
    return None


def _chooses(conninfo: str) -> bool:
    """Return whether the URL names several servers, of which another one may be the primary."""
    hosts = conninfo_to_dict(conninfo)
    return any("," in str(hosts.get(name, "")) for name in ("host", "hostaddr", "port"))
