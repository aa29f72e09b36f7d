"""What a process is wired of: the objects that talk to the database, opened together and closed in reverse."""

from __future__ import annotations

import gc
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from infra.database import Database
from infra.event_store import EventStore
from infra.identity import Identity
from infra.keyring import Keyring
from infra.ledger import Ledgers
from infra.refusals import Refusals
from infra.views import Views
from infra.wake import Notifier
from infra.writer import Writer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from infra.vault import MasterKey

API: Final = "sparkledger_api"
WORKER: Final = "sparkledger_worker"
# Objects more than there were before a collection of the young, and of how many such before one of their elders.
GC_THRESHOLDS: Final = (20_000, 20, 100)


@dataclass(frozen=True, slots=True)
class Runtime:
    """The open parts of one process, in one role."""

    database: Database
    ledgers: Ledgers
    identity: Identity
    views: Views


@asynccontextmanager
async def runtime(conninfo: str, role: str, master_key: MasterKey) -> AsyncIterator[Runtime]:
    """Open everything a process needs, as the API or as a worker; a database that is away does not hinder it.

    Args:
        conninfo: where the database is, as a login that is or may become the role.
        role: `API`, which sees one ledger at a time, or `WORKER`, which sees all.
        master_key: the key that the database's keys are wrapped with.

    """
    database = Database(conninfo, role)
    notifier = Notifier(conninfo, role)
    writer = Writer(conninfo, role, on_commit=notifier.committed)
    await database.open()
    notifier.start()
    writer.start()
    try:
        yield Runtime(
            database=database,
            ledgers=Ledgers(EventStore(database), writer, Keyring(database, master_key), Refusals(database)),
            identity=Identity(database, master_key),
            views=Views(database),
        )
    finally:
        await writer.stop()
        await notifier.stop()
        await database.close()


def spare_the_collector() -> None:
    """Keep the garbage collector from walking what stays: modules, and the aggregates that are remembered.

    With its defaults it walked all of them again and again, 150 ms at a time in which nobody was answered: it took a
    third of the commands a second, and the 99th percentile from 15 to 160 ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
