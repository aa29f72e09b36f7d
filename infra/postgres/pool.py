"""Connections to PostgreSQL: a pool whose sessions are bound to one ledger at a time, and what a lost one means."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeVar

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout, TooManyRequests

from infra.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

T = TypeVar("T")

# The limits of a session, sent when it begins.
STATEMENT_TIMEOUT_MS: Final = 10_000
LOCK_TIMEOUT_MS: Final = 5_000
CONNECT_TIMEOUT_S: Final = 5
VANISHED_MS: Final = 30_000
POOL_WAIT_S: Final = 5
POOL_SIZE: Final = 6

# What the database says when it cannot serve now; a standby, or a server short of disk, may refuse only to write.
SHORT: Final = (psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction)
AWAY: Final = "The database cannot be reached. Try again in a moment."


_NOT_DEAD: Final = (
    PoolTimeout,
    TooManyRequests,
    psycopg.errors.QueryCanceled,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.DeadlockDetected,
)


# No ledger's id: what a session is bound to while that changes, and after whoever changed it was cancelled.
_UNKNOWN: Final = -1


class LedgerConnection(psycopg.AsyncConnection[Any]):
    """A session that remembers which ledger its row-level security is bound to, None where it is bound to none."""

    ledger_id: int | None = None

    @cached_property
    def reused(self) -> psycopg.AsyncCursor[Any]:
        """A cursor to use again and again: a new one learns how each parameter is sent anew."""
        return self.cursor(binary=True)

    async def bind(self, ledger_id: int | None) -> None:
        """Bind the session to a ledger, or to none; costs a statement only where it was bound otherwise."""
        if self.ledger_id != ledger_id:
            self.ledger_id = _UNKNOWN
            setting = "" if ledger_id is None else str(ledger_id)
            await self.execute("SELECT set_config('sparkledger.ledger', %s, false)", (setting,))
            self.ledger_id = ledger_id


# For sessions that call `append`: its statements read by index, whatever the tables held when they were planned.
APPENDING: Final = (
    " -c plan_cache_mode=force_generic_plan -c enable_hashjoin=off -c enable_mergejoin=off -c enable_bitmapscan=off"
)


def session(
    conninfo: str, role: str, *, statement_timeout_ms: int = STATEMENT_TIMEOUT_MS, more_options: str = ""
) -> dict[str, Any]:
    """Return what every connection is made with: the role whose rights it has, its limits, its time zone."""
    options = (
        f"-c role={role} -c statement_timeout={statement_timeout_ms} -c lock_timeout={LOCK_TIMEOUT_MS}"
        " -c timezone=UTC -c idle_in_transaction_session_timeout=60000"
        # A machine that vanished holds its locks, a lease included, until the server notices.
        f" -c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"
        f" -c tcp_user_timeout={VANISHED_MS}"
        # The append decides in statements after its lock, each with a snapshot of its own.
        r" -c default_transaction_isolation=read\ committed"
        # A ledger starts out empty, and a plan made then would go on reading whole tables when it no longer is.
        " -c enable_seqscan=off"
        f"{more_options}"
    )
    return {
        "conninfo": conninfo,
        "autocommit": True,
        "options": options,
        "connect_timeout": CONNECT_TIMEOUT_S,
        "application_name": "sparkledger",
        # A server that vanished without a word is noticed within half a minute: by keepalives while nothing is asked of
        # it, and by what it does not acknowledge while something is.
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": VANISHED_MS,
    }


class Database:
    """A bounded pool of sessions in one role."""

    def __init__(self, conninfo: str, role: str, *, size: int = POOL_SIZE) -> None:
        """Prepare the pool; `open` connects it."""
        self.conninfo = conninfo
        self.role = role
        settings = session(conninfo, role)
        self._pool: AsyncConnectionPool[LedgerConnection] = AsyncConnectionPool(
            settings.pop("conninfo"),
            connection_class=LedgerConnection,
            kwargs=settings,
            min_size=1,
            max_size=size,
            max_waiting=1000,
            timeout=POOL_WAIT_S,
            open=False,
        )

    async def open(self) -> None:
        """Begin connecting; a database that is away is no reason not to start."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        """Close every session."""
        await self._pool.close()

    @asynccontextmanager
    async def connection(self, ledger_id: int | None = None) -> AsyncIterator[LedgerConnection]:
        """Lend a session, bound to a ledger; to none where none is given, whoever had it before.

        Raises:
            Unavailable: none became free in time, or the database is away.

        """
        try:
            async with self._pool.connection() as connection:
                await connection.bind(ledger_id)
                yield connection
        except (PoolTimeout, *SHORT) as error:
            raise Unavailable(AWAY) from error

    async def read(self, ledger_id: int | None, query: Callable[[LedgerConnection], Awaitable[T]]) -> T:
        """Run a query that changes nothing, once more where its session turns out to be dead.

        Raises:
            Unavailable: the database is away, or the query took too long.

        """
        try:
            async with self.connection(ledger_id) as connection:
                return await query(connection)
        except Unavailable as unavailable:
            # A full pool, a lock or a slow statement would only be made worse by asking again.
            cause = unavailable.__cause__
            if not isinstance(cause, psycopg.OperationalError) or isinstance(cause, _NOT_DEAD):
                raise
        # After a restart of the server every pooled session is dead: drop those, then ask a new one.
        await self._pool.check()
        async with self.connection(ledger_id) as connection:
            return await query(connection)
