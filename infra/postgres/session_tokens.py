"""The tokens that bind a session to a ledger, and a caller of `append` to its key, as `authenticate` hands them out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from infra.recent_cache import RecentCache

if TYPE_CHECKING:
    from uuid import UUID

# Those of the keys that were presented last: far more than can have a command under way.
MAX_KEYS: Final = 100_000


class SessionTokens:
    """What this process may prove to the database.

    A worker has none of these tokens: what it does on its own needs no proof. In place of the token of a key that has
    sent an import, it presents that import, while it carries it out.
    """

    def __init__(self) -> None:
        """Begin with no token."""
        self._ledgers: dict[int, bytes] = {}
        self._keys: RecentCache[int, bytes] = RecentCache(MAX_KEYS)

    def admit_ledger(self, ledger_id: int, token: bytes) -> None:
        """Remember the token of a ledger; there are as many as ledgers."""
        self._ledgers[ledger_id] = token

    def admit_key(self, key_id: UUID, token: bytes) -> None:
        """Remember the token of a key that was presented."""
        self._keys.put(key_id.int, token)

    def setting(self, ledger_id: int | None) -> str:
        """Return what `sparkledger.ledger` is set to: the ledger and its token, or nothing."""
        return "" if ledger_id is None else f"{ledger_id}:{self._ledgers.get(ledger_id, b'').hex()}"

    def key(self, key_id: UUID | None) -> bytes | None:
        """Return the token of a key; None for the clock, which has no key."""
        return None if key_id is None else self._keys.get(key_id.int)
