"""How the stored fields of a ledger's alerts are sealed: addresses, which are people's, and names that people gave."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from infra.crypto.envelope import SealingKey

if TYPE_CHECKING:
    from uuid import UUID

    from infra.crypto.envelope import LedgerKeys

SealedAlertField = Literal["address", "name", "calendar"]

_PURPOSE: Final = "alerts v1"


class AlertSealer:
    """Seals and unseals fields under a key derived from the ledger's own."""

    __slots__ = ("_sealing",)

    def __init__(self, keys: LedgerKeys) -> None:
        """Take the ledger's keys."""
        self._sealing = SealingKey(keys.derived(_PURPOSE))

    def seal(self, field: SealedAlertField, text: str, owner_id: UUID) -> bytes:
        """Encrypt a field for storage, bound to its rule or calendar, and to its name."""
        return self._sealing.seal(text.encode(), field.encode() + b"\0" + owner_id.bytes)

    def seal_optional(self, field: SealedAlertField, text: str | None, owner_id: UUID) -> bytes | None:
        """Encrypt a field that may be absent."""
        return None if text is None else self.seal(field, text, owner_id)

    def unseal(self, field: SealedAlertField, sealed: bytes, owner_id: UUID) -> str:
        """Decrypt a stored field.

        Raises:
            InvalidTag: it was altered, or copied from elsewhere.

        """
        return self._sealing.unseal(sealed, field.encode() + b"\0" + owner_id.bytes).decode()

    def unseal_optional(self, field: SealedAlertField, sealed: bytes | None, owner_id: UUID) -> str | None:
        """Decrypt a field that may be absent."""
        return None if sealed is None else self.unseal(field, sealed, owner_id)
