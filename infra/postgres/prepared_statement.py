"""A statement that a session prepares once and then calls again and again, with columns for parameters.

psycopg's cursors learn with every call how each of its parameters is sent and each column of its rows is read: for the
34 columns of an append that took as long as deciding a command. Here both are known from the beginning, and what is
left is libpq itself, as psycopg opens it.
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
    """One statement of one session; nothing else may be sent on the session while a call is under way."""

    def __init__(self, connection: LedgerConnection, name: str, columns: int) -> None:
        """Take the session; `prepare` makes it."""
        self._pgconn: PGconn = connection.pgconn
        self._name = name.encode()
        self._formats = [Format.BINARY] * columns
        self._rows = Transformer(connection)

    async def prepare(self, text: str, types: Sequence[type[Array]]) -> None:
        """Send the statement's text, whose parameters are `$1`, `$2` …, to be planned.

        Raises:
            psycopg.Error: the database refuses it, or is away.

        """
        self._pgconn.send_prepare(self._name, text.encode(), [array.oid for array in types])
        await _answered(self._pgconn)

    async def call(self, columns: Sequence[Array]) -> list[Any]:
        """Carry it out, and return its rows once what it did is committed; cancelled, it closes the session.

        Raises:
            psycopg.Error: nothing was done; or, where the connection is closed now, it is not known whether it was.

        """
        self._pgconn.send_query_prepared(
            self._name, [encoded(column) for column in columns], self._formats, Format.BINARY
        )
        result = await _answered(self._pgconn)
        self._rows.set_pgresult(result)
        return self._rows.load_rows(0, result.ntuples, tuple)


async def _answered(pgconn: PGconn) -> PGresult:
    """Wait until the server is ready for the next statement: only then is this one committed."""
    try:
        results = await _results(pgconn)
    except BaseException:
        # Cancelled, for example: nothing else can be sent on a session whose answer nobody took.
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
    """Wait until there is something to read, or room to write."""
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
