"""A prepared statement with binary parameters: prepared once in a session, then called many times.

A cursor of psycopg looks up with every call how to send each parameter and how to read each column. Here the types are
fixed when the statement is prepared, and calls go straight to libpq, through psycopg's binding of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from psycopg import errors
from psycopg.adapt import Transformer
from psycopg.pq import ExecStatus, Format

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg.pq.abc import PGconn, PGresult

    from infra.postgres.pool import LedgerConnection

# Called with the rows, or with an error.
Done = Callable[[list[Any], Exception | None], None]

_FAILED: Final = (ExecStatus.FATAL_ERROR, ExecStatus.BAD_RESPONSE)


class Statement:
    """A prepared statement of one session. While a call runs, nothing else may be sent on the session."""

    def __init__(self, connection: LedgerConnection, name: str, parameters: int) -> None:
        """Take the session, the statement's name and the number of its parameters; `prepare` sends it."""
        self._connection = connection
        self._pgconn: PGconn = connection.pgconn
        self._name = name.encode()
        self._formats = [Format.BINARY] * parameters
        self._rows = Transformer(connection)
        self._results: list[PGresult] = []
        self._done: Done | None = None
        self._socket = -1
        self._flushed = True
        self._sent_at = 0.0

    async def prepare(self, text: str, types: Sequence[int]) -> None:
        """Have the database parse the statement, whose parameters `$1`, `$2` and so on have the types with these ids.

        Raises:
            psycopg.Error: the database refuses it, or is away.

        """
        self._pgconn.send_prepare(self._name, text.encode(), list(types))
        await _answered(self._pgconn)

    async def call(self, parameters: Sequence[bytes]) -> list[Any]:
        """Execute it, and return its rows once it is committed. Cancelling the call closes the session.

        Raises:
            psycopg.Error: it had no effect; or, if the connection is closed now, it is not known whether it had.

        """
        answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()

        def done(rows: list[Any], error: Exception | None) -> None:
            if answer.done():  # it was cancelled in the same turn of the loop in which the result came
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(rows)

        self.send(parameters, done)
        try:
            return await answer
        except asyncio.CancelledError:
            if self._done is not None:
                self._end()
                self._pgconn.finish()
            raise

    def send(self, parameters: Sequence[bytes], done: Done) -> None:
        """Execute it, and call back with its rows once it is committed, or with an error as `call` raises it.

        No task waits meanwhile: with one command at a time, to wake one takes as long as deciding the command.

        Raises:
            psycopg.Error: as `call` raises it.

        """
        pgconn = self._pgconn
        pgconn.send_query_prepared(self._name, parameters, self._formats, Format.BINARY)
        try:
            self._flushed = not pgconn.flush()
        except BaseException:
            pgconn.finish()
            raise
        loop = asyncio.get_running_loop()
        self._done, self._socket, self._sent_at = done, pgconn.socket, loop.time()
        if self._connection.watched_by is not self:
            self._connection.watched_by = self
            loop.add_reader(self._socket, self._ready)
        if not self._flushed:
            loop.add_writer(self._socket, self._ready)

    def give_up(self, after_s: float) -> None:
        """Close the session if a call has had no answer for so long; then it is not known whether it had an effect.

        A server that is frozen, or waits for a standby, keeps its connections and says nothing.
        """
        if self._done is not None and asyncio.get_running_loop().time() - self._sent_at > after_s:
            done, _ = self._end()
            self._pgconn.finish()
            done([], errors.OperationalError(f"the server has not answered for {after_s:g} s"))

    def _ready(self) -> None:
        """Go on where the socket can be read, or written."""
        try:
            if not self._finished():
                return
        except Exception as error:  # noqa: BLE001 - the caller that waits for the result gets it
            # Nothing else can be sent on a session whose result was not read.
            done, _ = self._end()
            self._pgconn.finish()
            done([], error)
            return
        done, results = self._taken()
        try:
            try:
                rows = self._loaded(results)
            except Exception as error:  # noqa: BLE001 - as above
                done([], error)
            else:
                done(rows, None)
        finally:
            # Often the next call follows at once, and to begin and end watching a socket takes longer than to send.
            if self._done is None:
                self._unwatch()

    def _finished(self) -> bool:
        """Send and read what can be now; tell whether the server is ready for the next statement."""
        pgconn = self._pgconn
        pgconn.consume_input()
        if not self._flushed and not pgconn.flush():
            self._flushed = True
            asyncio.get_running_loop().remove_writer(self._socket)
        while not pgconn.is_busy():
            result = pgconn.get_result()
            if result is None:
                return True
            self._results.append(result)
        return False

    def _loaded(self, results: Sequence[PGresult]) -> list[Any]:
        for result in results:
            if result.status in _FAILED:
                raise errors.error_from_result(result)
        self._rows.set_pgresult(results[-1])
        return self._rows.load_rows(0, results[-1].ntuples, tuple)

    def _end(self) -> tuple[Done, list[PGresult]]:
        """Stop waiting for the socket, which may be closed already; return who waits, and what was read."""
        self._unwatch()
        if not self._flushed:
            asyncio.get_running_loop().remove_writer(self._socket)
        return self._taken()

    def _unwatch(self) -> None:
        if self._connection.watched_by is self:
            self._connection.watched_by = None
            asyncio.get_running_loop().remove_reader(self._socket)

    def _taken(self) -> tuple[Done, list[PGresult]]:
        """Return who waits, and what was read: the call is over."""
        done, results = self._done, self._results
        assert done is not None  # noqa: S101 - it is called once for each call
        self._done, self._results = None, []
        return done, results


async def _answered(pgconn: PGconn) -> PGresult:
    """Wait until the server is ready for the next statement; only then is this one committed."""
    try:
        results = await _results(pgconn)
    except BaseException:
        # Nothing else can be sent on a session whose result was not read, for example after a cancellation.
        pgconn.finish()
        raise
    for result in results:
        if result.status in _FAILED:
            raise errors.error_from_result(result)
    return results[-1]


async def _results(pgconn: PGconn) -> list[PGresult]:
    while pgconn.flush():
        await _ready(pgconn, to_write=True)
        pgconn.consume_input()
    results: list[PGresult] = []
    while True:
        while pgconn.is_busy():
            await _ready(pgconn)
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:
            return results
        results.append(result)


async def _ready(pgconn: PGconn, *, to_write: bool = False) -> None:
    """Wait until the socket can be read, or written."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    socket = pgconn.socket
    loop.add_reader(socket, wake)
    if to_write:
        loop.add_writer(socket, wake)
    try:
        await ready
    finally:
        loop.remove_reader(socket)
        if to_write:
            loop.remove_writer(socket)
