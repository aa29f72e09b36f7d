"""The first start: the master key, the first ledger, the administrator's key."""

from __future__ import annotations

import base64
import os
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

from infra.database import Database
from infra.identity import ApiKey, Identity, LedgerExists, Subjects
from infra.runtime import WORKER
from infra.vault import MasterKey, MasterKeyError, fresh_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path
    from uuid import UUID

    from domain.values import Role
    from infra.settings import Settings

FIRST_LEDGER: Final = "main"


def master_key(settings: Settings) -> MasterKey:
    """Return the configured master key, or the one in the data directory, made there on the first start.

    Raises:
        MasterKeyError: the file does not hold a key.

    """
    if settings.master_key is not None:
        return MasterKey.from_text(settings.master_key.get_secret_value())
    path = settings.data_dir / "master.key"
    try:
        return MasterKey.from_text(path.read_text(encoding="ascii").strip())
    except FileNotFoundError:
        return MasterKey.from_text(_make(path))
    except (MasterKeyError, UnicodeDecodeError) as error:
        message = f"{path} does not hold a master key. Put back the one that this data directory was made with."
        raise MasterKeyError(message) from error


def _make(path: Path) -> str:
    """Write a fresh master key, whole or not at all, readable by its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = base64.b64encode(fresh_key()).decode()
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)
    return text


@asynccontextmanager
async def _as_worker(conninfo: str, key: MasterKey) -> AsyncIterator[Identity]:
    database = Database(conninfo, WORKER, size=1)
    await database.open()
    try:
        yield Identity(database, key)
    finally:
        await database.close()


async def first_keys(conninfo: str, key: MasterKey, admin_key: str | None) -> str | None:
    """Begin the first ledger, and give it an administrator.

    Args:
        conninfo: the database, as a login that may become the worker's role; here and below.
        key: the master key.
        admin_key: the administrator's own choice of key, added if it is not known yet; else one is generated once.

    Returns:
        The generated key, to be shown now or never; nothing on a later start.

    Raises:
        MasterKeyError: the database's keys are wrapped with another master key.

    """
    async with _as_worker(conninfo, key) as identity:
        try:
            ledger_id = await identity.create_ledger(FIRST_LEDGER)
        except LedgerExists:
            ledger_id = await identity.ledger_id(FIRST_LEDGER)
        # Another master key than the database's is found out now, and not by the first command.
        await identity.unwrap_ledger(ledger_id)
        if admin_key is not None:
            if not await identity.known(admin_key):
                await identity.create(ledger_id, role="admin", name="administrator", text=admin_key)
            return None
        if await identity.keys(ledger_id):
            return None
        _, text, _ = await identity.create(ledger_id, role="admin", name="administrator")
        return text


async def mint(
    conninfo: str,
    key: MasterKey,
    ledger: str,
    role: Role,
    name: str | None,
    subjects: Subjects | None = None,
    *,
    create: bool = False,
) -> tuple[ApiKey, str]:
    """Mint a key for a ledger by name, beginning the ledger if asked to; return it and its text.

    Raises:
        LookupError: there is no such ledger.

    """
    async with _as_worker(conninfo, key) as identity:
        if create:
            with suppress(LedgerExists):
                await identity.create_ledger(ledger)
        ledger_id = await identity.ledger_id(ledger)
        minted, text, _ = await identity.create(ledger_id, role=role, name=name, subjects=subjects)
        return minted, text


async def begin_ledger(conninfo: str, key: MasterKey, name: str) -> str:
    """Begin a ledger and return its first admin key.

    Raises:
        LedgerExists: the name is taken.

    """
    async with _as_worker(conninfo, key) as identity:
        ledger_id = await identity.create_ledger(name)
        _, text, _ = await identity.create(ledger_id, role="admin", name="administrator")
        return text


async def list_ledgers(conninfo: str, key: MasterKey) -> list[tuple[int, str]]:
    """List all ledgers as id and name."""
    async with _as_worker(conninfo, key) as identity:
        return await identity.ledgers()


async def list_keys(conninfo: str, key: MasterKey, ledger: str) -> list[ApiKey]:
    """List a ledger's keys, newest first.

    Raises:
        LookupError: there is no such ledger.

    """
    async with _as_worker(conninfo, key) as identity:
        return await identity.keys(await identity.ledger_id(ledger))


async def revoke_key(conninfo: str, key: MasterKey, ledger: str, key_id: UUID) -> None:
    """Revoke a ledger's key.

    Raises:
        LookupError: there is no such ledger or key.

    """
    async with _as_worker(conninfo, key) as identity:
        if not await identity.revoke(await identity.ledger_id(ledger), key_id):
            message = f"Ledger {ledger} has no such key. `sparkledger keys list` shows those it has."
            raise LookupError(message)
