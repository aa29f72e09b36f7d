"""Key and ledger commands of the command line, and the keys of the first start.

Each takes the connection string of a login that may become the worker's role, and the provider of the master key.
"""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from infra.auth.access_log import AccessContext
from infra.auth.key_admin import KeyAdmin
from infra.auth.ledger_admin import LedgerAdmin, LedgerExists
from infra.crypto.envelope import fresh_key
from infra.crypto.keyring import API_KEYS, Keyring
from infra.postgres.pool import Database
from infra.postgres.roles import WORKER
from infra.servers import ServersError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from datetime import datetime
    from uuid import UUID

    from domain.values import Role
    from infra.auth.api_keys import ApiKey, Subjects
    from infra.auth.ledger_admin import LedgerSize
    from infra.crypto.master_keys import KeyProvider

FIRST_LEDGER: Final = "main"
FIRST_NAME: Final = "administrator"

_REPLACED: Final = (
    "SPARKLEDGER_ADMIN_KEY has changed: it replaces the first admin key ({key_id}), and the one from before no longer "
    "works."
)
_ENDED: Final = (
    "SPARKLEDGER_ADMIN_KEY is a key that was replaced, revoked or has expired. It does not work: choose another, or "
    "remove the setting."
)

_FIRST_START: Final = AccessContext(route="sparkledger migrate")


class _Opened(NamedTuple):
    keys: KeyAdmin
    ledgers: LedgerAdmin
    keyring: Keyring


@asynccontextmanager
async def _as_worker(conninfo: str, key_provider: KeyProvider) -> AsyncIterator[_Opened]:
    database = Database(conninfo, WORKER, size=1)
    keyring = Keyring(database, key_provider)
    await database.open()
    try:
        yield _Opened(KeyAdmin(database, keyring), LedgerAdmin(database, keyring), keyring)
    finally:
        await database.close()


class FirstKeys(NamedTuple):
    """What became of the administrator's key at a start.

    Attributes:
        generated: the key that was generated now, and is shown this once.
        notice: what an operator should know.

    """

    generated: str | None = None
    notice: str | None = None


async def first_keys(conninfo: str, key_provider: KeyProvider, admin_key: str | None) -> FirstKeys:
    """Create the first ledger and its administrator's key, where they are missing.

    A setting with another text replaces the text of the key that the first start made: it keeps its id, the text from
    before ends at once, and the access log has it.

    Args:
        conninfo: the database, as a login that may become the worker's role.
        key_provider: the provider of the master key.
        admin_key: the text of the administrator's key, if the administrator chose one.

    Raises:
        MasterKeyError: the database's keys are wrapped with another master key.

    """
    async with _as_worker(conninfo, key_provider) as opened:
        try:
            ledger_id = await opened.ledgers.create(FIRST_LEDGER)
        except LedgerExists:
            ledger_id = await opened.ledgers.id_of(FIRST_LEDGER)
        # A wrong master key is found out now, and not by the first command.
        await opened.keyring.ledger(ledger_id)
        if admin_key is None and await opened.keys.keys(ledger_id, limit=1):
            return FirstKeys()
        if admin_key is not None:
            works = await opened.keys.works(admin_key)
            if works is not None:
                return FirstKeys(notice=None if works else _ENDED)
            first = await opened.keys.first_key(ledger_id, FIRST_NAME)
            if first is not None:
                await opened.keys.rotate(ledger_id, first, overlap_s=0, text=admin_key, context=_FIRST_START)
                return FirstKeys(notice=_REPLACED.format(key_id=first))
        _, text, _ = await opened.keys.create(
            ledger_id, role="admin", name=FIRST_NAME, text=admin_key, context=_FIRST_START
        )
        return FirstKeys(generated=text if admin_key is None else None)


async def share_hashing(conninfos: Mapping[str, str], key_provider: KeyProvider) -> None:
    """Give all servers the same key to hash API keys with, so that each process finds each key.

    Args:
        conninfos: the servers by name, each as a login that may become the worker's role.
        key_provider: the provider of the master key.

    Raises:
        ServersError: two of them have different ones.

    """
    source: tuple[str, bytes] | None = None
    without = []
    for name, conninfo in conninfos.items():
        async with _as_worker(conninfo, key_provider) as opened:
            key = await opened.keyring.shared(API_KEYS)
        if key is None:
            without.append(name)
        elif source is None:
            source = name, key
        elif source[1] != key:
            message = (
                f"The servers {source[0]} and {name} hash API keys in different ways, because both were installations "
                "of their own: they cannot be one."
            )
            raise ServersError(message)
    key = fresh_key() if source is None else source[1]
    for name in without:
        async with _as_worker(conninfos[name], key_provider) as opened:
            await opened.keyring.share(API_KEYS, key)


async def create_key(
    conninfo: str,
    key_provider: KeyProvider,
    ledger: str,
    role: Role,
    name: str | None,
    subjects: Subjects | None = None,
    *,
    expires_at: datetime | None = None,
    may_reveal: bool = True,
    create: bool = False,
) -> tuple[ApiKey, str]:
    """Create a key for a ledger by name, and first the ledger where `create` asks for it; return the key and its text.

    Raises:
        LookupError: there is no such ledger.
        ValueError: the role cannot have these subjects.
        Refused: `creator_erased`, where the key would act only for erased creators.

    """
    async with _as_worker(conninfo, key_provider) as opened:
        if create:
            with suppress(LedgerExists):
                await opened.ledgers.create(ledger)
        ledger_id = await opened.ledgers.id_of(ledger)
        created, text, _ = await opened.keys.create(
            ledger_id,
            role=role,
            name=name,
            subjects=subjects,
            expires_at=expires_at,
            may_reveal=may_reveal,
            context=AccessContext(route="sparkledger keys create"),
        )
        return created, text


async def create_ledger(conninfo: str, key_provider: KeyProvider, name: str) -> str:
    """Create a ledger, and return the text of its first admin key.

    Raises:
        LedgerExists: the name is taken.

    """
    async with _as_worker(conninfo, key_provider) as opened:
        ledger_id = await opened.ledgers.create(name)
        context = AccessContext(route="sparkledger ledgers create")
        _, text, _ = await opened.keys.create(ledger_id, role="admin", name=FIRST_NAME, context=context)
        return text


async def list_ledgers(conninfo: str, key_provider: KeyProvider) -> list[LedgerSize]:
    """Return every ledger and how large it is, oldest first."""
    async with _as_worker(conninfo, key_provider) as opened:
        return await opened.ledgers.ledgers()


async def find_ledger(conninfo: str, key_provider: KeyProvider, name: str) -> tuple[int, bytes]:
    """Return a ledger's id by its name, and the token that binds a session of the API to it.

    Raises:
        LookupError: there is no such ledger.

    """
    async with _as_worker(conninfo, key_provider) as opened:
        return await opened.ledgers.named(name)


async def list_keys(conninfo: str, key_provider: KeyProvider, ledger: str) -> list[ApiKey]:
    """List a ledger's keys, newest first.

    Raises:
        LookupError: there is no such ledger.

    """
    async with _as_worker(conninfo, key_provider) as opened:
        return await opened.keys.keys(await opened.ledgers.id_of(ledger))


async def rotate_key(conninfo: str, key_provider: KeyProvider, ledger: str, key_id: UUID, overlap_s: int) -> str:
    """Give a ledger's key a new text, and return it; the present text works for `overlap_s` more seconds.

    Raises:
        LookupError: there is no such ledger or key.
        KeyNotRotatable: the key is revoked or expired, or is a token identity.

    """
    async with _as_worker(conninfo, key_provider) as opened:
        context = AccessContext(route="sparkledger keys rotate")
        ledger_id = await opened.ledgers.id_of(ledger)
        try:
            _, text, _ = await opened.keys.rotate(ledger_id, key_id, overlap_s=overlap_s, context=context)
        except LookupError as error:
            raise _no_such_key(ledger) from error
        return text


async def revoke_key(conninfo: str, key_provider: KeyProvider, ledger: str, key_id: UUID) -> None:
    """Revoke a ledger's key.

    Raises:
        LookupError: there is no such ledger or key.

    """
    async with _as_worker(conninfo, key_provider) as opened:
        context = AccessContext(route="sparkledger keys revoke")
        if not await opened.keys.revoke(await opened.ledgers.id_of(ledger), key_id, context=context):
            raise _no_such_key(ledger)


def _no_such_key(ledger: str) -> LookupError:
    return LookupError(f"Ledger {ledger} has no such key. `sparkledger keys list` shows its keys.")
