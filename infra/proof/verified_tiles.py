"""The hashes of full tiles, as a complete pass has found them right, in a file outside the database.

If somebody changes rows and tiles and checkpoints in the database alike, the root that was signed last shows that
something was changed. These hashes, 32 bytes for 256 events, show where.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from domain.merkle import HASH_BYTES
from infra.proof.durable_file import write_durably

if TYPE_CHECKING:
    from pathlib import Path
    from uuid import UUID


class VerifiedTiles:
    """The hashes of the full tiles of one generation of a ledger's log."""

    def __init__(self, directory: Path, log_id: UUID, generation: int) -> None:
        """Take where the files are, and whose this one is."""
        self._path = directory / f"{log_id}.{generation}.tiles"

    def read(self) -> bytes:
        """Return the hashes; nothing if none were written, or they cannot be read."""
        try:
            hashes = self._path.read_bytes()
        except OSError:
            return b""
        return hashes[: len(hashes) // HASH_BYTES * HASH_BYTES]

    def write(self, hashes: bytes) -> None:
        """Replace them.

        Raises:
            OSError: they cannot be written.

        """
        write_durably(self._path, hashes)
