"""Rotation of the master key, while everything runs.

    1. give every process both master keys         it wraps with the one that the database names as present
    2. `rotate` names the new one as present       from now on nothing is stored under the old one
    3. `rotate` wraps again what is under the old  in batches; events are not touched, as they name creators' keys
    4. take the old one from the processes         restart them with the new one

A rotation that was killed is started again, and skips what is already wrapped with the new key. The wrapped keys
themselves do not change. So a rotation does not protect from somebody who had the old master key and a copy of the
database.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import psycopg

from infra.crypto.envelope import MASTER_KEY_ID_BYTES, MasterKeyError, not_given
from infra.crypto.keyring import creator_purpose, fingerprint_purpose, shared_purpose, unwrapped_with, wrapped_with
from infra.crypto.master_keys import MasterKeyFile
from infra.postgres.pool import LedgerConnection, session
from infra.postgres.roles import WORKER
from projections.engine.advisory_locks import AdvisoryLock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from infra.crypto.master_keys import KeyProvider

BATCH_ROWS: Final = 200
# One rotation at a time: a second one would do the same work again.
_LOCK: Final = "SELECT pg_try_advisory_lock(%s)"

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

    """

    table: str
    column: str
    key: dict[str, Any]
    purpose_column: str
    purpose: Callable[[Key], str]


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
        conninfo: the database, as a login that is or may become the worker's role.
        key_provider: holds the new master key, first, and those that keys are wrapped with now.
        say: receives lines of progress.

    Returns:
        The new master key's id; None where there was nothing to do.

    Raises:
        MasterKeyError: a master key that keys are wrapped with was not given, or another rotation is under way.
        OperationalError: the database cannot be reached; what is wrapped again stays so.

    """
    async with await LedgerConnection.connect(**session(conninfo, WORKER, statement_timeout_ms=0)) as connection:
        cursor = await connection.execute(_LOCK, (AdvisoryLock.MASTER_KEY_ROTATION,))
        if (await cursor.fetchone() or (False,))[0] is not True:
            raise MasterKeyError("Another rotation of the master key is in progress. Wait for it, or stop it.")
        try:
            new = await _wanted(connection, key_provider)
            if new is None:
                return None
            await _name_present(connection, new)
            for wrapped in WRAPPED:
                await _rewrap(connection, key_provider, new, wrapped, say)
            await connection.execute(
                "UPDATE master_keys SET released_at = now() WHERE NOT present AND released_at IS NULL"
            )
        finally:
            with suppress(psycopg.Error):  # a session that was lost has let go of it
                await connection.execute("SELECT pg_advisory_unlock(%s)", (AdvisoryLock.MASTER_KEY_ROTATION,))
    return new


async def states(conninfo: str, key_provider: KeyProvider) -> list[MasterKeyState]:
    """Return each master key that wraps keys or that was given; raises `OperationalError`."""
    async with await LedgerConnection.connect(**session(conninfo, WORKER, statement_timeout_ms=0)) as connection:
        return await _states(connection, key_provider)


def require_master_keys(conninfo: str, role: str, key_provider: KeyProvider) -> None:
    """Refuse to run without the present master key, or without one that still wraps keys.

    A database that cannot be reached may come back, and is not refused. One without any keys accepts any master key.

    Raises:
        MasterKeyError: a master key is missing.

    """
    try:
        with psycopg.connect(conninfo, connect_timeout=5, autocommit=True, options=f"-c role={role}") as connection:
            needed = connection.execute(
                "SELECT master_key_id FROM master_keys WHERE present OR released_at IS NULL ORDER BY present DESC"
            ).fetchall()
    except psycopg.OperationalError:
        return
    for (key_id,) in needed:
        if key_id not in key_provider.key_ids:
            raise MasterKeyError(not_given(key_id, key_provider.key_ids))


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


async def _name_present(connection: LedgerConnection, key_id: str) -> None:
    """Name the present master key; waits for transactions that are storing a key under another one."""
    async with connection.transaction():
        await connection.execute(
            "UPDATE master_keys SET present = false WHERE present AND master_key_id <> %s", (key_id,)
        )
        await connection.execute(
            "INSERT INTO master_keys AS m (master_key_id, present) VALUES (%s, true)"
            " ON CONFLICT (master_key_id) DO UPDATE SET present = true, since = now(), released_at = NULL"
            " WHERE NOT m.present",
            (key_id,),
        )


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
    # A key that was changed or destroyed meanwhile stays as it is.
    update = f"UPDATE {wrapped.table} SET {wrapped.column} = %s WHERE ({columns}) = ({after}) AND {wrapped.column} = %s"
    place: Sequence[Any] = list(wrapped.key.values())
    done = 0
    while True:
        rows = await (await connection.execute(select, (*place, bytes.fromhex(new)))).fetchall()
        if not rows:
            return
        rewrapped = []
        for *key, purpose_value, old in rows:
            purpose = wrapped.purpose((*key, purpose_value))
            plain = await unwrapped_with(key_provider, old, purpose)
            rewrapped.append((await wrapped_with(key_provider, new, plain, purpose), *key, old))
        async with connection.transaction():
            for parameters in rewrapped:
                done += (await connection.execute(update, parameters)).rowcount
        place = rows[-1][: len(wrapped.key)]
        say(f"{wrapped.table}: {done:,} keys wrapped again")
