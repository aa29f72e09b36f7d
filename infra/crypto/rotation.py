"""Rotation of the master key, while everything runs.

    1. give every process both master keys         it wraps with the one that the database names as present
    2. `rotate` names the new one as present       from now on nothing is stored under the old one
    3. `rotate` wraps again what is under the old  in batches; events are not touched, as they name creators' keys
    4. take the old one from the processes         restart them with the new one

A rotation that was killed is started again, and skips what is already wrapped with the new key. The wrapped keys
themselves do not change. So a rotation does not protect from somebody who had the old master key and a copy of the
database. Only the login of the tables' owner can rotate: the database lets no other write over a stored key.

`change_epoch` is the other way in which stored keys are wrapped again, for erasures. Both hold the same lock.
"""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, LiteralString
from uuid import UUID

import psycopg

from infra.crypto.envelope import MASTER_KEY_ID_BYTES, MasterKeyError, SealingKey, not_given
from infra.crypto.epochs import epoch_id_of, missing, unsealed
from infra.crypto.keyring import (
    begin_epoch,
    creator_key_unwrapped_with,
    creator_key_wrapped_with,
    creator_purpose,
    fingerprint_purpose,
    shared_purpose,
    sheet_purpose,
    unwrapped_with,
    wrapped_with,
)
from infra.crypto.master_keys import MasterKeyFile
from infra.postgres.pool import LedgerConnection, session
from infra.postgres.roles import WORKER
from infra.postgres.timelines import ServerConnection
from projections.engine.advisory_locks import AdvisoryLock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from infra.crypto.epochs import EpochKeys
    from infra.crypto.master_keys import KeyProvider

BATCH_ROWS: Final = 200
# Keys whose epoch changes with one statement: nothing but this machine's processor is asked.
EPOCH_BATCH_ROWS: Final = 1_000
# One rotation or change of the epoch at a time: two could each store what the other one no longer looks for.
_LOCK: Final = "SELECT pg_try_advisory_lock(%s)"
_UNLOCK: Final = "SELECT pg_advisory_unlock(%s)"

_REWRAP: Final = "SELECT rewrap_keys(%s, %s, %s, %s, %s)"

_OF_OTHER_EPOCHS: Final = """
    SELECT ledger_id, key_id, wrapped
    FROM creator_keys
    WHERE (ledger_id, key_id) > (%s, %s)
    AND substring(wrapped FROM 9 FOR 8) <> %s
    ORDER BY ledger_id, key_id
    LIMIT %s
"""
# Sheets of ledgers in which no erasure is under way. One that begins from now on ends the epoch that is present now.
_SHEETS_OF_OTHER_EPOCHS: Final = """
    SELECT r.import_id, r.sealed_key
    FROM import_runs r
    WHERE r.import_id > %s
    AND r.ended_at IS NULL
    AND substring(r.sealed_key FROM 1 FOR 8) <> %s
    AND EXISTS (SELECT FROM ledgers l WHERE l.ledger_id = r.ledger_id) -- that this server serves
    AND NOT EXISTS (SELECT FROM erasures d WHERE d.ledger_id = r.ledger_id AND d.carried_out_at IS NULL)
    ORDER BY r.import_id
    LIMIT %s
"""
_SEAL_SHEET: Final = "UPDATE import_runs SET sealed_key = %s WHERE import_id = %s AND sealed_key = %s"
# Standbys, and archives that are fed by replication, that may not have everything yet, and have not had their time. How
# far one is, a login without the role pg_read_all_stats does not see.
_BEHIND: Final = """
    SELECT EXISTS (
        SELECT FROM pg_stat_replication s
        WHERE s.flush_lsn IS NULL OR s.flush_lsn < pg_current_wal_lsn()
    )
    AND EXISTS (
        SELECT FROM key_epochs e
        WHERE e.present AND e.began_at > clock_timestamp() - make_interval(secs => %s)
    )
"""
STANDBY_S: Final = 300
_ENDED_EPOCHS: Final = "SELECT epoch_id FROM key_epochs WHERE NOT present AND destroyed_at IS NULL ORDER BY number"

Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Wrapped:
    """A column of wrapped keys.

    Attributes:
        table: its table.
        column: its name.
        key: the columns of the table's primary key, each with the least value that it can have.
        purpose_column: a further column that the purpose needs; otherwise the last column of the key.
        purpose: what a row's key is bound to, from the values of `key` and `purpose_column`.
        in_epochs: whether the key of an epoch seals it, too.

    """

    table: str
    column: str
    key: dict[str, Any]
    purpose_column: str
    purpose: Callable[[Key], str]
    in_epochs: bool = False


# Everything that the master key wraps. A rotation does not touch what ledgers' and creators' keys seal.
WRAPPED: Final = (
    Wrapped("shared_keys", "wrapped", {"purpose": ""}, "purpose", lambda key: shared_purpose(key[0])),
    Wrapped("ledgers", "fingerprint_key", {"ledger_id": 0}, "name", lambda key: fingerprint_purpose(key[1])),
    Wrapped(
        "creator_keys",
        "wrapped",
        {"ledger_id": 0, "key_id": UUID(int=0)},
        "key_id",
        lambda key: creator_purpose(key[0], key[1]),
        in_epochs=True,
    ),
)


@dataclass(frozen=True, slots=True)
class MasterKeyState:
    """One master key: whether it is the present one, whether it was given, and how many keys it wraps."""

    key_id: str
    present: bool
    given: bool
    keys: int


async def rotate(conninfo: str, key_provider: KeyProvider, say: Callable[[str], None]) -> str | None:
    """Make the key provider's first master key the present one, and wrap everything with it.

    Where everything is wrapped with that one already, a master key file gets a new key first; with any other key
    provider there is nothing to do.

    Args:
        conninfo: the database, as the owner of its tables.
        key_provider: holds the new master key, first, and those that keys are wrapped with now.
        say: receives lines of progress.

    Returns:
        The new master key's id; None where there was nothing to do.

    Raises:
        MasterKeyError: a master key that keys are wrapped with was not given, or another rotation is under way, or the
            login is not the owner's.
        OperationalError: the database cannot be reached; what is wrapped again stays so.

    """
    async with await LedgerConnection.connect(**session(conninfo, WORKER, statement_timeout_ms=0)) as connection:
        if not await _is_true(connection, "SELECT is_owner()"):
            raise MasterKeyError(
                "Only the owner of the tables can replace the master key. Set SPARKLEDGER_MIGRATION_DATABASE_URL."
            )
        async with _alone(connection) as alone:
            if not alone:
                raise MasterKeyError(
                    "Another rotation of the master key is in progress, or an erasure is being carried out. Wait for "
                    "it, or stop it."
                )
            new = await _wanted(connection, key_provider)
            if new is None:
                return None
            await connection.execute("SELECT name_master_key(%s)", (new,))
            for wrapped in WRAPPED:
                await _rewrap(connection, key_provider, new, wrapped, say)
            await connection.execute("SELECT release_master_keys()")
    return new


async def change_epoch(conninfo: str, key_provider: KeyProvider) -> bool:
    """Begin a new epoch if an erasure needs it, seal every creator's key in it, and destroy the keys of those before.

    Keys of sheets that wait to be imported are sealed in it, too, but for those of ledgers in which somebody was
    erased: a row may be the person's.

    Each step can be the last one before a crash: the next call goes on there. The keys are not destroyed before every
    standby has what was sealed again, or has had five minutes for it: one that takes over too early would have only
    keys that nobody can open.

    Args:
        conninfo: the database, as a login that is or may become the worker's role.
        key_provider: has the epoch keys; the master key is not used.

    Returns:
        False where a rotation, or another change of the epoch, is under way, or a standby is behind.

    Raises:
        MasterKeyError: the key of an epoch that a creator's key is sealed in is missing.
        OperationalError: the database cannot be reached; what is sealed again stays so.

    """
    async with (
        await LedgerConnection.connect(
            **session(conninfo, WORKER, statement_timeout_ms=0, more_options=" -c synchronous_commit=on")
        ) as connection,
        _alone(connection) as alone,
    ):
        if not alone:
            return False
        present = await begin_epoch(connection, key_provider.epochs)
        await _seal_in(connection, key_provider.epochs, present)
        await _seal_sheets_in(connection, key_provider.epochs, present)
        if await _is_true(connection, _BEHIND, STANDBY_S):
            return False
        # What was sealed again may be the work of a process that has died, and be on no standby yet.
        await connection.confirm()
        ended = [row[0] for row in await (await connection.execute(_ENDED_EPOCHS)).fetchall()]
        for epoch_id in ended:
            key_provider.epochs.destroy(epoch_id)
        await connection.execute("SELECT end_key_epochs(%s)", (ended,))
        return True


async def _seal_in(connection: LedgerConnection, epochs: EpochKeys, present: str) -> None:
    """Seal every creator's key in the present epoch, in batches; what the master key wraps is not opened."""
    place: tuple[int, UUID] = (0, UUID(int=0))
    into, keys = epochs.key(present), dict[str, SealingKey]()
    while True:
        parameters = (*place, bytes.fromhex(present), EPOCH_BATCH_ROWS)
        rows = await (await connection.execute(_OF_OTHER_EPOCHS, parameters)).fetchall()
        if not rows:
            return
        fresh = []
        for ledger_id, key_id, stored in rows:
            sealed, purpose = stored[MASTER_KEY_ID_BYTES:], creator_purpose(ledger_id, key_id)
            epoch_id = epoch_id_of(sealed)
            key = keys.get(epoch_id) or keys.setdefault(epoch_id, epochs.key(epoch_id))
            again = bytes.fromhex(present) + into.seal(unsealed(key, sealed, purpose), purpose.encode())
            fresh.append(stored[:MASTER_KEY_ID_BYTES] + again)
        ledgers, ids, old = (list(column) for column in zip(*rows, strict=True))
        await connection.execute(_REWRAP, ("creator_keys", ledgers, [str(key_id) for key_id in ids], old, fresh))
        place = rows[-1][:2]


async def _seal_sheets_in(connection: LedgerConnection, epochs: EpochKeys, present: str) -> None:
    """Seal the keys of sheets in the present epoch. One that does not open is left: its import fails, and says so."""
    place, into = UUID(int=0), epochs.key(present)
    while True:
        parameters = (place, bytes.fromhex(present), BATCH_ROWS)
        rows = await (await connection.execute(_SHEETS_OF_OTHER_EPOCHS, parameters)).fetchall()
        if not rows:
            return
        for import_id, stored in rows:
            purpose = sheet_purpose(import_id)
            with suppress(MasterKeyError):
                fresh = bytes.fromhex(present) + into.seal(epochs.unseal(stored, purpose), purpose.encode())
                await connection.execute(_SEAL_SHEET, (fresh, import_id, stored))
        place = rows[-1][0]


async def states(conninfo: str, key_provider: KeyProvider) -> list[MasterKeyState]:
    """Return each master key that wraps keys or that was given; raises `OperationalError`."""
    async with await LedgerConnection.connect(**session(conninfo, WORKER, statement_timeout_ms=0)) as connection:
        return await _states(connection, key_provider)


def require_master_keys(conninfo: str, role: str, key_provider: KeyProvider) -> None:
    """Refuse to run without the present master key, or without one that still wraps keys.

    The same for the keys of epochs. A database that cannot be reached may come back, and is not refused. One without
    any keys accepts any master key.

    Raises:
        MasterKeyError: a master key is missing, or the key of an epoch.

    """
    try:
        with ServerConnection.connect(
            conninfo, connect_timeout=5, autocommit=True, options=f"-c role={role}"
        ) as connection:
            needed = connection.execute(
                "SELECT master_key_id FROM master_keys WHERE present OR released_at IS NULL ORDER BY present DESC"
            ).fetchall()
            present = connection.execute("SELECT epoch_id FROM key_epochs WHERE present").fetchone()
    except psycopg.OperationalError:
        return
    for (key_id,) in needed:
        if key_id not in key_provider.key_ids:
            raise MasterKeyError(not_given(key_id, key_provider.key_ids))
    if present is not None and not key_provider.epochs.has(present[0]):
        raise MasterKeyError(missing(present[0], key_provider.epochs.directory))


@asynccontextmanager
async def _alone(connection: LedgerConnection) -> AsyncIterator[bool]:
    """Keep rotations and changes of the epoch out; False where one is under way."""
    alone = await _is_true(connection, _LOCK, AdvisoryLock.MASTER_KEY_ROTATION)
    try:
        yield alone
    finally:
        with suppress(psycopg.Error):  # a session that was lost has let go of it
            if alone:
                await connection.execute(_UNLOCK, (AdvisoryLock.MASTER_KEY_ROTATION,))


async def _is_true(connection: LedgerConnection, query: LiteralString, *parameters: Any) -> bool:
    row = await (await connection.execute(query, parameters)).fetchone()
    return row is not None and bool(row[0])


async def _wanted(connection: LedgerConnection, key_provider: KeyProvider) -> str | None:
    """Return the id of the master key to wrap everything with, added now to a master key file; None if all is done."""
    first, found = key_provider.key_ids[0], await _states(connection, key_provider)
    for state in found:
        if state.keys and not state.given:
            raise MasterKeyError(not_given(state.key_id, key_provider.key_ids))
    if any(state.present != (state.key_id == first) or (state.keys and state.key_id != first) for state in found):
        return first  # the rotation has not started, or was interrupted
    return key_provider.add() if isinstance(key_provider, MasterKeyFile) else None


async def _states(connection: LedgerConnection, key_provider: KeyProvider) -> list[MasterKeyState]:
    counts: dict[str, int] = {}
    for wrapped in WRAPPED:
        cursor = await connection.execute(
            f"SELECT encode(substring({wrapped.column} FROM 1 FOR {MASTER_KEY_ID_BYTES}), 'hex'), count(*)"
            f" FROM {wrapped.table} WHERE {wrapped.column} IS NOT NULL GROUP BY 1"
        )
        for key_id, count in await cursor.fetchall():
            counts[key_id] = counts.get(key_id, 0) + count
    cursor = await connection.execute("SELECT master_key_id FROM master_keys WHERE present")
    present = {row[0] for row in await cursor.fetchall()}
    given = set(key_provider.key_ids)
    known = dict.fromkeys([*present, *key_provider.key_ids, *counts])
    return [MasterKeyState(key_id, key_id in present, key_id in given, counts.get(key_id, 0)) for key_id in known]


async def _rewrap(
    connection: LedgerConnection, key_provider: KeyProvider, new: str, wrapped: Wrapped, say: Callable[[str], None]
) -> None:
    """Wrap the keys of a column again, in the order of its primary key, with one commit a batch."""
    columns = ", ".join(wrapped.key)
    after = ", ".join(["%s"] * len(wrapped.key))
    select = (
        f"SELECT {columns}, {wrapped.purpose_column}, {wrapped.column} FROM {wrapped.table}"
        f" WHERE ({columns}) > ({after}) AND substring({wrapped.column} FROM 1 FOR {MASTER_KEY_ID_BYTES}) <> %s"
        f" ORDER BY {columns} LIMIT {BATCH_ROWS}"
    )
    row = await (await connection.execute("SELECT epoch_id FROM key_epochs WHERE present")).fetchone()
    place: Sequence[Any] = list(wrapped.key.values())
    done = 0
    while True:
        rows = await (await connection.execute(select, (*place, bytes.fromhex(new)))).fetchall()
        if not rows:
            return
        ledgers, ids, read, fresh = [], [], [], []
        for *key, purpose_value, old in rows:
            purpose = wrapped.purpose((*key, purpose_value))
            if wrapped.in_epochs:
                assert row is not None  # noqa: S101 - there is a creator's key, so there is an epoch
                plain = await creator_key_unwrapped_with(key_provider, old, purpose)
                fresh.append(await creator_key_wrapped_with(key_provider, new, row[0], plain, purpose))
            else:
                plain = await unwrapped_with(key_provider, old, purpose)
                fresh.append(await wrapped_with(key_provider, new, plain, purpose))
            ledgers.append(key[0] if "ledger_id" in wrapped.key else None)
            ids.append(str(key[-1]))
            read.append(old)
        # A key that was changed or removed meanwhile stays as it is.
        cursor = await connection.execute(_REWRAP, (wrapped.table, ledgers, ids, read, fresh))
        done += (await cursor.fetchone() or (0,))[0]
        place = rows[-1][: len(wrapped.key)]
        say(f"{wrapped.table}: {done:,} keys wrapped again")
