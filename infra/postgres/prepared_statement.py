"""A prepared statement whose parameters are arrays: prepared once in a session, then called many times.

A cursor of psycopg looks up with every call how to send each parameter and how to read each column. For the 34 arrays
of an append that took as long as deciding a command. Here the types are fixed when the statement is prepared, and calls
go straight to libpq, through psycopg's binding of it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from psycopg import errors
from psycopg.adapt import Transformer
from psycopg.pq import ExecStatus, Format

from projections.engine.array_columns import encoded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg.pq.abc import PGconn, PGresult

    from infra.postgres.pool import LedgerConnection
    from projections.engine.array_columns import Array

_FAILED: Final = (ExecStatus.FATAL_ERROR, ExecStatus.BAD_RESPONSE)


class Statement:
    """A prepared statement of one session. While a call runs, nothing else may be sent on the session."""

    def __init__(self, connection: LedgerConnection, name: str, columns: int) -> None:
        """Take the session, the statement's name and the number of its parameters; `prepare` sends it."""
        self._pgconn: PGconn = connection.pgconn
        self._name = name.encode()
        self._formats = [Format.BINARY] * columns
        self._rows = Transformer(connection)

    async def prepare(self, text: str, types: Sequence[type[Array]]) -> None:
        """Have the database parse the statement, whose parameters are `$1`, `$2` and so on.

        Raises:
            psycopg.Error: the database refuses it, or is away.

        """
        self._pgconn.send_prepare(self._name, text.encode(), [array.oid for array in types])
        await _answered(self._pgconn)

    async def call(self, columns: Sequence[Array]) -> list[Any]:
        """Execute it, and return its rows once it is committed. Cancelling the call closes the session.

        Raises:
            psycopg.Error: it had no effect; or, if the connection is closed now, it is not known whether it had.

        """
        self._pgconn.send_query_prepared(
            self._name, [encoded(column) for column in columns], self._formats, Format.BINARY
        )
        result = await _answered(self._pgconn)
        self._rows.set_pgresult(result)
        return self._rows.load_rows(0, result.ntuples, tuple)


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
