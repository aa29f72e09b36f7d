"""Creators who were erased, as those see them who write down what names a person.

No key is made that acts for erased creators alone, and no bearer of tokens is let in who does: so no name of theirs
comes back. Whoever is about to write keeps erasures from being carried out meanwhile, and only then looks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from projections.engine.advisory_locks import AdvisoryLock

if TYPE_CHECKING:
    from collections.abc import Collection

    from infra.crypto.envelope import LedgerKeys
    from infra.postgres.pool import LedgerConnection

_KEEP_OFF: Final = "SELECT pg_advisory_xact_lock_shared(%s, %s)"

# From the event on, whether or not its deed is done.
_ERASED: Final = """
    SELECT count(*)
    FROM claims c
    WHERE c.ledger_id = %s
    AND c.claim = ANY (%s)
    AND EXISTS (
        SELECT 1
        FROM events e
        WHERE e.ledger_id = c.ledger_id
        AND e.stream_id = c.stream_id
        AND e.type = 'CreatorErased'
    )
"""


async def block_erasures(connection: LedgerConnection, ledger_id: int) -> None:
    """Keep erasures of a ledger from being carried out until the transaction ends."""
    await connection.execute(_KEEP_OFF, (AdvisoryLock.ERASURE, ledger_id))


async def all_erased(
    connection: LedgerConnection, ledger_id: int, keys: LedgerKeys, creator_ids: Collection[str]
) -> bool:
    """Tell whether there are creators here and all of them were erased; stays so until the transaction ends."""
    if not creator_ids:
        return False
    await block_erasures(connection, ledger_id)
    claims = [keys.claim("creator", creator_id) for creator_id in creator_ids]
    row = await (await connection.execute(_ERASED, (ledger_id, claims))).fetchone()
    return row is not None and row[0] == len(claims)
