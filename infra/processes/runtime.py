"""What a process is wired of: the objects that talk to the database, opened together and closed in reverse."""

from __future__ import annotations

import gc
import resource
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from infra.auth.authenticator import CHANNEL, Authenticator
from infra.auth.denied_attempts import DeniedAttempts
from infra.auth.key_admin import KeyAdmin
from infra.crypto.keyring import Keyring
from infra.eventstore.aggregate_reader import AggregateReader
from infra.eventstore.command_handler import CommandHandler
from infra.eventstore.group_commit import GroupCommitWriter
from infra.eventstore.notifications import Listener, Notifier
from infra.eventstore.reader import EventReader
from infra.eventstore.repository import AggregateCache
from infra.postgres.pool import Database
from infra.views.reader import ViewReader

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from infra.auth.oidc_issuers import Issuer
    from infra.crypto.master_keys import KeyProvider

API: Final = "sparkledger_api"
WORKER: Final = "sparkledger_worker"
# Objects more than there were before a collection of the young, and of how many such before one of their elders.
GC_THRESHOLDS: Final = (20_000, 20, 100)


@dataclass(frozen=True, slots=True)
class Runtime:
    """The open parts of one process, in one role.

    Attributes:
        on_keys_changed: what else is called when keys have changed, here or elsewhere: whoever remembers anything of
            them adds itself.

    """

    database: Database
    writer: GroupCommitWriter
    keyring: Keyring
    events: EventReader
    aggregates: AggregateReader
    handler: CommandHandler
    denied_attempts: DeniedAttempts
    authenticator: Authenticator
    key_admin: KeyAdmin
    views: ViewReader
    on_keys_changed: list[Callable[[], None]] = field(default_factory=list)


@asynccontextmanager
async def runtime(
    conninfo: str, role: str, master_key: KeyProvider, issuers: Sequence[Issuer] = ()
) -> AsyncIterator[Runtime]:
    """Open everything a process needs, as the API or as a worker; a database that is away does not hinder it.

    Args:
        conninfo: where the database is, as a login that is or may become the role.
        role: `API`, which sees one ledger at a time, or `WORKER`, which sees all.
        master_key: who holds the key that the database's keys are wrapped with.
        issuers: whose bearer tokens are taken, for the API.

    """
    database = Database(conninfo, role)
    notifier = Notifier(conninfo, role)
    cache = AggregateCache()
    writer = GroupCommitWriter(conninfo, role, on_commit=notifier.committed, on_session=cache.begin)
    keyring = Keyring(database, master_key)
    events = EventReader(database)
    aggregates = AggregateReader(events, keyring, cache)
    denied_attempts = DeniedAttempts(database, keyring)
    authenticator = Authenticator(database, keyring, issuers)
    on_keys_changed: list[Callable[[], None]] = [authenticator.forget, keyring.forget_creators]

    def keys_changed() -> None:
        for told in on_keys_changed:
            told()

    keys = Listener(conninfo, role, keys_changed, channel=CHANNEL)
    await database.open()
    notifier.start()
    writer.start()
    if role == API:
        keys.start()
    try:
        yield Runtime(
            database=database,
            writer=writer,
            keyring=keyring,
            events=events,
            aggregates=aggregates,
            handler=CommandHandler(aggregates, writer, denied_attempts),
            denied_attempts=denied_attempts,
            authenticator=authenticator,
            key_admin=KeyAdmin(database, keyring, authenticator.forget),
            views=ViewReader(database),
            on_keys_changed=on_keys_changed,
        )
    finally:
        await authenticator.stop()
        await keys.stop()
        await writer.stop()
        await notifier.stop()
        await database.close()


def spare_the_collector(young: int = GC_THRESHOLDS[0]) -> None:
    """Keep the garbage collector from walking what stays: modules, and the aggregates that are remembered.

    With its defaults it walked all of them again and again, 150 ms at a time in which nobody was answered: it took a
    third of the commands a second, and the 99th percentile from 15 to 160 ms. `young` is how many objects there must
    be more than before until it looks at the young; views, which are handed events by the page, are a seventh slower
    with the default.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(young, *GC_THRESHOLDS[1:])


def allow_connections() -> None:
    """Let this process have as many connections as the system allows it; the usual 1,024 files are soon used up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):  # where the system counts otherwise, the limit stays as it is
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
