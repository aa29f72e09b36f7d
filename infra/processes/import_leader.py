"""One of all workers of a server carries out imports: the one that holds a lock, for as long as it holds it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import psycopg

from infra.crypto.envelope import MasterKeyError
from infra.errors import Unavailable
from infra.imports.runs import ImportRun, ImportRuns
from infra.postgres.pool import SHORT, LedgerConnection, session
from infra.postgres.roles import WORKER
from projections.engine.advisory_locks import AdvisoryLock

if TYPE_CHECKING:
    from infra.runtime import Runtime

# How often the leader looks for an import, and how long others wait before they try to lead.
LOOK_EVERY_S: Final = 1.0
AWAY_S: Final = 5.0

# Carries out an import. Between its rows it awaits what it is given, which raises `Unavailable` where another worker
# leads.
CarriesOut = Callable[[ImportRun, Callable[[], Awaitable[None]]], Awaitable[None]]

_LEAD: Final = "SELECT pg_try_advisory_lock(%s) AND NOT pg_is_in_recovery()"
_ALIVE: Final = "SELECT 1"
_LOST: Final = "This worker has lost the session with which it leads."

log = logging.getLogger(__name__)


async def carry_out(opened: Runtime, load: Callable[[Runtime], CarriesOut]) -> None:
    """Carry out imports until cancelled, whenever this process is the one that does.

    Args:
        opened: a worker's runtime.
        load: returns what carries an import out; called once there is one, because it loads what no other part needs.

    """
    parameters = session(opened.database.conninfo, WORKER) | {"target_session_attrs": "primary"}
    runs = ImportRuns(opened.database, opened.keyring)
    loaded: CarriesOut | None = None
    while True:
        try:
            async with await LedgerConnection.connect(**parameters) as leading:
                while not await _leads(leading):  # noqa: ASYNC110 - the lock is the database's
                    await asyncio.sleep(AWAY_S)
                while True:
                    run = await runs.next()
                    if run is None:
                        await asyncio.sleep(LOOK_EVERY_S)
                    else:
                        if loaded is None:
                            loaded = await asyncio.to_thread(load, opened)
                        await loaded(run, lambda: _still_leads(leading))
                    await _still_leads(leading)
        except (Unavailable, MasterKeyError, LookupError, OSError, *SHORT) as error:
            log.warning("Imports are delayed: %s", " ".join(str(error).split()))
            await asyncio.sleep(AWAY_S)


async def _leads(connection: LedgerConnection) -> bool:
    row = await (await connection.execute(_LEAD, (AdvisoryLock.IMPORTS,))).fetchone()
    return row is not None and bool(row[0])


async def _still_leads(connection: LedgerConnection) -> None:
    """Ask whether the session is there: the lock is lost with it.

    Raises:
        Unavailable: it is not.

    """
    try:
        await connection.execute(_ALIVE)
    except psycopg.OperationalError as error:
        raise Unavailable(_LOST) from error
