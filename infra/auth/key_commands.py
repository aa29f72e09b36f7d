"""Key and ledger commands of the command line, and the keys of the first start."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

from infra.auth.authenticator import Authenticator, LedgerExists
from infra.auth.key_admin import AccessContext
from infra.postgres.pool import Database
from infra.processes.runtime import WORKER

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime
    from uuid import UUID

    from domain.values import Role
    from infra.auth.api_keys import ApiKey, Subjects
    from infra.crypto.master_keys import KeyProvider

FIRST_LEDGER: Final = "main"

_FIRST_START: Final = AccessContext(route="sparkledger migrate")


@asynccontextmanager
async def _as_worker(conninfo: str, key: KeyProvider) -> AsyncIterator[Authenticator]:
    database = Database(conninfo, WORKER, size=1)
    await database.open()
    try:
        yield Authenticator(database, key)
    finally:
        await database.close()


async def first_keys(conninfo: str, key: KeyProvider, admin_key: str | None) -> str | None:
    """Begin the first ledger, and give it an administrator.

    Args:
        conninfo: the database, as a login that may become the worker's role; here and below.
        key: who holds the master key.
        admin_key: the administrator's own choice of key, added if it is not known yet; else one is generated once.

    Returns:
        The generated key, to be shown now or never; nothing on a later start.

    Raises:
        MasterKeyError: the database's keys are wrapped with another master key.

    """
    async with _as_worker(conninfo, key) as authenticator:
        try:
            ledger_id = await authenticator.create_ledger(FIRST_LEDGER)
        except LedgerExists:
            ledger_id = await authenticator.ledger_id(FIRST_LEDGER)
        # Another master key than the database's is found out now, and not by the first command.
        await authenticator.unwrap_ledger(ledger_id)
        if admin_key is not None:
            if not await authenticator.known(admin_key):
                await authenticator.create(
                    ledger_id, role="admin", name="administrator", text=admin_key, context=_FIRST_START
                )
            return None
        if await authenticator.keys(ledger_id, limit=1):
            return None
        _, text, _ = await authenticator.create(ledger_id, role="admin", name="administrator", context=_FIRST_START)
        return text


async def create_key(
    conninfo: str,
    key: KeyProvider,
    ledger: str,
    role: Role,
    name: str | None,
    subjects: Subjects | None = None,
    *,
    expires_at: datetime | None = None,
    may_reveal: bool = True,
    create: bool = False,
) -> tuple[ApiKey, str]:
    """Mint a key for a ledger by name, beginning the ledger if asked to; return it and its text.

    Raises:
        LookupError: there is no such ledger.
        ValueError: the role does not go with the subjects.
        Refused: `creator_erased`, where it would act for erased creators alone.

    """
    async with _as_worker(conninfo, key) as authenticator:
        if create:
            with suppress(LedgerExists):
                await authenticator.create_ledger(ledger)
        ledger_id = await authenticator.ledger_id(ledger)
        minted, text, _ = await authenticator.create(
            ledger_id,
            role=role,
            name=name,
            subjects=subjects,
            expires_at=expires_at,
            may_reveal=may_reveal,
            context=AccessContext(route="sparkledger keys create"),
        )
        return minted, text


async def create_ledger(conninfo: str, key: KeyProvider, name: str) -> str:
    """Begin a ledger and return its first admin key.

    Raises:
        LedgerExists: the name is taken.

    """
    async with _as_worker(conninfo, key) as authenticator:
        ledger_id = await authenticator.create_ledger(name)
        context = AccessContext(route="sparkledger ledgers create")
        _, text, _ = await authenticator.create(ledger_id, role="admin", name="administrator", context=context)
        return text


async def list_ledgers(conninfo: str, key: KeyProvider) -> list[tuple[int, str]]:
    """List all ledgers as id and name."""
    async with _as_worker(conninfo, key) as authenticator:
        return await authenticator.ledgers()


async def find_ledger(conninfo: str, key: KeyProvider, name: str) -> int:
    """Return a ledger's id by its name.

    Raises:
        LookupError: there is no such ledger.

    """
    async with _as_worker(conninfo, key) as authenticator:
        return await authenticator.ledger_id(name)


async def list_keys(conninfo: str, key: KeyProvider, ledger: str) -> list[ApiKey]:
    """List a ledger's keys, newest first.

    Raises:
        LookupError: there is no such ledger.

    """
    async with _as_worker(conninfo, key) as authenticator:
        return await authenticator.keys(await authenticator.ledger_id(ledger))


async def rotate_key(conninfo: str, key: KeyProvider, ledger: str, key_id: UUID, overlap_s: int) -> str:
    """Give a ledger's key another text, and return that; the one it had works on for so many seconds.

    Raises:
        LookupError: there is no such ledger or key.
        KeyNotRotatable: it is no longer valid, or stands for the bearer of tokens.

    """
    async with _as_worker(conninfo, key) as authenticator:
        context = AccessContext(route="sparkledger keys rotate")
        ledger_id = await authenticator.ledger_id(ledger)
        try:
            _, text, _ = await authenticator.rotate(ledger_id, key_id, overlap_s=overlap_s, context=context)
        except LookupError as error:
            raise _no_such_key(ledger) from error
        return text


async def revoke_key(conninfo: str, key: KeyProvider, ledger: str, key_id: UUID) -> None:
    """Revoke a ledger's key.

    Raises:
        LookupError: there is no such ledger or key.

    """
    async with _as_worker(conninfo, key) as authenticator:
        context = AccessContext(route="sparkledger keys revoke")
        if not await authenticator.revoke(await authenticator.ledger_id(ledger), key_id, context=context):
            raise _no_such_key(ledger)


def _no_such_key(ledger: str) -> LookupError:
    return LookupError(f"Ledger {ledger} has no such key. `sparkledger keys list` shows those it has.")
