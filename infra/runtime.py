"""The runtime of a process: the objects that use the database, opened together and closed in reverse order."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from infra.auth.authenticator import CHANNEL, Authenticator
from infra.auth.denied_attempts import DeniedAttempts
from infra.auth.key_admin import KeyAdmin
from infra.auth.read_log import ReadLog
from infra.crypto.keyring import Keyring
from infra.eventstore.aggregate_reader import AggregateReader
from infra.eventstore.command_handler import CommandHandler
from infra.eventstore.group_commit import GroupCommitWriter
from infra.eventstore.histories import Histories, HistoryGuard
from infra.eventstore.notifications import Listener, Notifier
from infra.eventstore.reader import EventReader
from infra.eventstore.repository import AggregateCache
from infra.postgres.pool import POOL_SIZE, SHARED_POOL_SIZE, Database
from infra.postgres.roles import API
from infra.views.reader import ViewReader

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from infra.auth.oidc_issuers import Issuer
    from infra.crypto.master_keys import KeyProvider


@dataclass(frozen=True, slots=True)
class Runtime:
    """The open parts of one process, in one role.

    Attributes:
        on_keys_changed: called when keys have changed, in this process or another; every cache of keys adds itself.

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
    reads: ReadLog
    views: ViewReader
    histories: Histories
    on_keys_changed: list[Callable[[], None]] = field(default_factory=list)


@asynccontextmanager
async def runtime(
    conninfo: str,
    role: str,
    master_key: KeyProvider,
    issuers: Sequence[Issuer] = (),
    *,
    guarded: bool = True,
    sessions: int = SHARED_POOL_SIZE,
    sessions_of_a_ledger: int = POOL_SIZE,
) -> AsyncIterator[Runtime]:
    """Open everything that an API process or a worker needs; it succeeds even while the database cannot be reached.

    Args:
        conninfo: where the database is, as a login that is or may become the role.
        role: `API`, which sees one ledger at a time, or `WORKER`, which sees all.
        master_key: the provider of the key that the database's keys are wrapped with.
        issuers: the issuers whose tokens the API accepts.
        guarded: whether nothing is appended to a log that may have lost events; false only for who decides about that.
        sessions: of an API process, how many the pool has at most.
        sessions_of_a_ledger: how many of these one ledger has at a time.

    """
    # One process of the API serves all ledgers; a worker divides its work by itself.
    database = (
        Database(conninfo, role, size=sessions, size_of_a_ledger=sessions_of_a_ledger)
        if role == API
        else Database(conninfo, role)
    )
    notifier = Notifier(conninfo, role)
    cache = AggregateCache()
    writer = GroupCommitWriter(
        conninfo,
        role,
        tokens=database.tokens,
        guard=HistoryGuard(database.tokens) if guarded else None,
        on_commit=notifier.committed,
        on_session=cache.reset,
        damage=database.damage,
    )
    keyring = Keyring(database, master_key)
    events = EventReader(database)
    histories = Histories(database)
    aggregates = AggregateReader(events, keyring, cache)
    denied_attempts = DeniedAttempts(database, keyring)
    authenticator = Authenticator(database, keyring, issuers)
    reads = ReadLog(database)
    on_keys_changed: list[Callable[[], None]] = [authenticator.forget, keyring.forget_creators, histories.forget]

    def keys_changed() -> None:
        for forget in on_keys_changed:
            forget()

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
            reads=reads,
            views=ViewReader(database),
            histories=histories,
            on_keys_changed=on_keys_changed,
        )
    finally:
        await reads.stop()
        await authenticator.stop()
        await keys.stop()
        await writer.stop()
        await notifier.stop()
        await database.close()
