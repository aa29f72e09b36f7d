"""The lock between erasures and the writing of names: no name of an erased creator is stored again.

No key is created that acts only for erased creators, and no token that does is accepted. A transaction that is about to
store a name first blocks the erasures of its ledger, and only then checks who is erased.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from projections.engine.advisory_locks import AdvisoryLock

if TYPE_CHECKING:
    from collections.abc import Collection

    from infra.crypto.envelope import LedgerKeys
    from infra.postgres.pool import LedgerConnection

_KEEP_OFF: Final = "SELECT pg_advisory_xact_lock_shared(%s, %s)"

# A creator counts as erased from the event on, whether or not the erasure was carried out.
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
    """Keep the erasures of a ledger from being carried out until the transaction ends."""
    await connection.execute(_KEEP_OFF, (AdvisoryLock.ERASURE, ledger_id))


async def all_erased(
    connection: LedgerConnection, ledger_id: int, keys: LedgerKeys, creator_ids: Collection[str]
) -> bool:
    """Return whether there are `creator_ids` and all are erased; the answer holds until the transaction ends."""
    if not creator_ids:
        return False
    await block_erasures(connection, ledger_id)
    claims = [keys.claim("creator", creator_id) for creator_id in creator_ids]
    row = await (await connection.execute(_ERASED, (ledger_id, claims))).fetchone()
    return row is not None and row[0] == len(claims)
