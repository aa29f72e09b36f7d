"""Connections to PostgreSQL: a pool of sessions, each bound to one ledger at a time by row-level security.

The binding is a setting of the session, and the program remembers it, so that an ordinary read is one statement. That
is safe only if nobody else uses the session. A pooler lends one session to several clients in turn. So each connection
is asked once, when it is made, whether the session at its other end is its own.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeVar

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout, TooManyRequests

from infra.ending import stop_if_cancelled
from infra.errors import Unavailable
from infra.postgres.damage import OF_THE_DATABASE, Damage
from infra.postgres.session_tokens import SessionTokens
from infra.postgres.timelines import PLACE, Place, Servers, cut_in_loop, require_newest, shut_down, wanted_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from typing import Self

T = TypeVar("T")

# The limits of a session.
STATEMENT_TIMEOUT_MS: Final = 10_000
LOCK_TIMEOUT_MS: Final = 5_000
IDLE_TIMEOUT_MS: Final = 60_000
CONNECT_TIMEOUT_S: Final = 5
VANISHED_MS: Final = 30_000
POOL_WAIT_S: Final = 5
POOL_SIZE: Final = 6
# Of the API: one ledger's slow reads leave sessions for the others.
SHARED_POOL_SIZE: Final = 8

# Errors of a database that cannot serve now. A standby, or a server short of disk, may refuse only to write; one that a
# ledger has left refuses to write to that ledger.
SHORT: Final = (psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction)
AWAY: Final = "The database cannot be reached. Try again in a moment."
UNCONFIRMED: Final = (
    "No standby of the database confirms that it has what was found, so a failover could lose it. "
    "Try again in a moment."
)

# How long a look-up waits for a standby, longer than for a session, and how many do so at once: the other sessions are
# for reads, which need no standby.
CONFIRM_WITHIN_S: Final = 8
CONFIRMING_AT_ONCE: Final = 2

# Errors after which the session is still alive: a second attempt would only add load.
_NOT_DEAD: Final = (
    PoolTimeout,
    TooManyRequests,
    psycopg.errors.QueryCanceled,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.DeadlockDetected,
)

POOLED: Final = (
    "The database URL leads to a connection pooler, such as pgbouncer, which lends sessions to several clients and "
    "forgets how they were set. Name PostgreSQL's own host and port instead: each process keeps a dozen sessions at "
    "most, and needs no pooler."
)

# No ledger's id. A session has it while its ledger changes, and keeps it if that is cancelled.
_UNKNOWN: Final = -1


class PooledSession(psycopg.OperationalError):
    """The session at the other end of a connection belongs to a pooler."""


class UnconfirmedCommit(psycopg.OperationalError):
    """The wait of a commit for its standby was cancelled, so a failover may lose it."""


class LedgerConnection(psycopg.AsyncConnection[Any]):
    """A session of its own, and the ledger that its row-level security is bound to.

    Attributes:
        ledger_id: that ledger; None if it is bound to none.
        unconfirmed: whether the server has warned of something. A commit whose wait for a standby was cancelled
            succeeds with a warning, in the language of the server.
        place: the server, as it was when the session began.
        watched_by: what the event loop tells that the session's socket can be read; None while it tells nobody.

    """

    ledger_id: int | None = None
    unconfirmed = False
    place: Place | None = None
    watched_by: object = None
    _loop: asyncio.AbstractEventLoop

    @classmethod
    async def connect(cls, conninfo: str = "", **settings: Any) -> Self:
        """Connect to PostgreSQL itself; of several servers, to the newest primary.

        Raises:
            PooledSession: a pooler answered.
            FormerPrimary: another server was promoted in the place of the one that answered.
            NoPrimary: none of several servers can be used.

        """
        servers = Servers.named(conninfo)
        if servers is not None:
            conninfo = await servers.choose_async(wanted_server(conninfo, settings))
        connection = await super().connect(conninfo, **settings)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                row = await (await connection.execute(f"SELECT pg_backend_pid(), {PLACE}")).fetchone()
        except BaseException as error:
            await connection.close()
            if isinstance(error, TimeoutError):
                message = "the server has not answered in time"
                raise psycopg.OperationalError(message) from None
            raise
        if row is None or not _is_own(connection, row[0]):
            await connection.close()
            raise PooledSession(POOLED)
        connection.place = Place(*row[1:])
        try:
            require_newest(connection.place)
        except BaseException:
            await connection.close()
            raise
        if servers is not None:
            connection.keep_in(servers)

        def noticed(notice: psycopg.errors.Diagnostic) -> None:
            if notice.severity_nonlocalized == "WARNING":
                connection.unconfirmed = True

        connection.add_notice_handler(noticed)
        return connection

    def keep_in(self, servers: Servers) -> None:
        """Have the session cut as soon as its server is a former primary."""
        self._loop = asyncio.get_running_loop()
        servers.keep(self)

    def cut(self) -> None:
        """Let its user find the session lost; called from another thread."""
        cut_in_loop(self._loop, self._cut)

    def _cut(self) -> None:
        if not self.closed:
            shut_down(self.fileno())

    async def confirm(self) -> None:
        """Wait until no failover can lose what this session has seen.

        Raises:
            UnconfirmedCommit: the wait was cancelled.

        """
        self.unconfirmed = False
        await self.execute("SELECT confirm_commits()")
        if self.unconfirmed:
            message = "the wait for the standby was cancelled"
            raise UnconfirmedCommit(message)

    @cached_property
    def reused(self) -> psycopg.AsyncCursor[Any]:
        """A cursor for many queries: a new cursor would look up again how each type of parameter is sent."""
        return self.cursor(binary=True)

    async def bind(self, ledger_id: int | None, tokens: SessionTokens) -> None:
        """Bind the session to a ledger, or to none; costs a statement only where it was bound otherwise."""
        if self.ledger_id != ledger_id:
            self.ledger_id = _UNKNOWN
            setting = tokens.setting(ledger_id)
            await self.execute("SELECT set_config('sparkledger.ledger', %s, false)", (setting,))
            self.ledger_id = ledger_id


def _is_own(connection: LedgerConnection, pid: int) -> bool:
    """Return whether a session's process is the one that was named to us at the start: a pooler names another one."""
    return connection.info.backend_pid == pid


# For sessions that call `append`: its statements use indexes, whatever the tables held when they were planned.
APPENDING: Final = (
    " -c plan_cache_mode=force_generic_plan -c enable_hashjoin=off -c enable_mergejoin=off -c enable_bitmapscan=off"
)


def session(
    conninfo: str, role: str, *, statement_timeout_ms: int = STATEMENT_TIMEOUT_MS, more_options: str = ""
) -> dict[str, Any]:
    """Return the parameters of a connection: the role whose rights it has, its limits, its time zone."""
    options = (
        f"-c role={role} -c statement_timeout={statement_timeout_ms} -c lock_timeout={LOCK_TIMEOUT_MS}"
        f" -c timezone=UTC -c idle_in_transaction_session_timeout={IDLE_TIMEOUT_MS}"
        # A client that vanished holds its locks and leases until the server notices.
        f" -c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"
        f" -c tcp_user_timeout={VANISHED_MS}"
        # After its lock, the append reads in new statements, each with a snapshot of its own.
        r" -c default_transaction_isolation=read\ committed"
        # A plan that was made for an empty table would still scan the whole table when it is large.
        " -c enable_seqscan=off"
        f"{more_options}"
    )
    return {
        "conninfo": conninfo,
        "autocommit": True,
        "options": options,
        "connect_timeout": CONNECT_TIMEOUT_S,
        "application_name": "sparkledger",
        # A server that vanished is noticed within half a minute: by keepalives while the session is idle, and by
        # missing acknowledgements while it is in use.
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": VANISHED_MS,
    }


class Database:
    """A bounded pool of sessions in one role."""

    def __init__(self, conninfo: str, role: str, *, size: int = POOL_SIZE, size_of_a_ledger: int | None = None) -> None:
        """Prepare the pool; `open` connects it.

        Args:
            conninfo: the database.
            role: whose rights the sessions have.
            size: how many sessions there are at most.
            size_of_a_ledger: how many of them are lent for one ledger at a time; None for all.

        """
        self.conninfo = conninfo
        self.role = role
        self._size_of_a_ledger = size_of_a_ledger or size
        self._shares: dict[int, asyncio.Semaphore] = {}
        self._confirming = asyncio.Semaphore(CONFIRMING_AT_ONCE)
        self.tokens = SessionTokens()
        self.damage = Damage()
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
        """Begin to connect. It succeeds even while the database cannot be reached."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        """Close every session."""
        await self._pool.close()

    @asynccontextmanager
    async def connection(self, ledger_id: int | None = None) -> AsyncIterator[LedgerConnection]:
        """Lend a session that is bound to a ledger, or to none if none is given.

        Raises:
            Unavailable: no session became free in time, the database is away, or what it stores is damaged.

        """
        share = await self._share(ledger_id)
        try:
            async with self._pool.connection() as connection:
                await connection.bind(ledger_id, self.tokens)
                connection.unconfirmed = False
                yield connection
                if connection.unconfirmed:
                    await connection.confirm()
        except OF_THE_DATABASE as error:
            raise self.damage.found(error) or error from error
        except (PoolTimeout, *SHORT) as error:
            raise Unavailable(AWAY) from error
        finally:
            if share is not None:
                share.release()

    async def _share(self, ledger_id: int | None) -> asyncio.Semaphore | None:
        """Wait until the ledger has fewer sessions than it may have; return what is released when one is given back."""
        if ledger_id is None:
            return None
        share = self._shares.get(ledger_id)
        if share is None:
            # There are as many as ledgers.
            share = self._shares[ledger_id] = asyncio.Semaphore(self._size_of_a_ledger)
        if not share.locked():
            await share.acquire()
            return share
        try:
            async with asyncio.timeout(POOL_WAIT_S):
                await share.acquire()
        except TimeoutError:
            raise Unavailable(AWAY) from None
        return share

    async def look_up(self, ledger_id: int | None, query: Callable[[LedgerConnection], Awaitable[T]]) -> T:
        """Run a query that selects `confirm_commits()` with what it finds.

        Raises:
            Unavailable: no standby confirmed it in time, or as `read` raises it.

        """
        try:
            async with asyncio.timeout(CONFIRM_WITHIN_S), self._confirming:
                return await self.read(ledger_id, query)
        except TimeoutError:
            raise Unavailable(UNCONFIRMED) from None

    async def read(self, ledger_id: int | None, query: Callable[[LedgerConnection], Awaitable[T]]) -> T:
        """Run a query that changes nothing; if its session turns out to be dead, run it once more.

        Raises:
            Unavailable: the database is away, or the query took too long.

        """
        try:
            async with self.connection(ledger_id) as connection:
                return await query(connection)
        except Unavailable as unavailable:
            cause = unavailable.__cause__
            if not isinstance(cause, psycopg.OperationalError) or isinstance(cause, _NOT_DEAD):
                raise
        # After a restart of the server every pooled session is dead: drop them, then use a new one.
        await self._pool.check()
        # The pool takes a cancellation for the failure of the connection that it is checking, and goes on.
        stop_if_cancelled()
        async with self.connection(ledger_id) as connection:
            return await query(connection)
