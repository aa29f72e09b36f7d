"""The checkpoint of a log that was signed last, kept in a file outside the database.

It is written before a checkpoint is signed. So whatever becomes of the database, the sealer knows what it has signed,
and signs nothing that contradicts it. The file is as old as the database if both are restored from one backup: keep
it, or at least a copy, elsewhere.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from infra.proof.checkpoints import Checkpoint, MalformedCheckpoint
from infra.proof.durable_file import write_durably
from infra.proof.errors import Overtaken, SealingStopped

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from uuid import UUID

_LOCK: Final = "signed.lock"


class LastCheckpoint:
    """The last checkpoint of one generation of a ledger's log."""

    def __init__(self, directory: Path, log_id: UUID, generation: int) -> None:
        """Take where the files are, and whose this one is."""
        self.path = directory / f"{log_id}.{generation}.signed"

    def read(self) -> Checkpoint | None:
        """Return it, or None if there is no file.

        Raises:
            SealingStopped: the file cannot be read, or does not hold a checkpoint.

        """
        try:
            return Checkpoint.parse(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, MalformedCheckpoint) as error:
            message = f"The file {self.path} cannot be used: {error} Restore it from a backup."
            raise SealingStopped(message) from error

    def advance(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint that is about to be signed; when this returns, it is on disk.

        Raises:
            Overtaken: another sealer has signed a larger checkpoint.
            SealingStopped: the same size was signed with another root.

        """
        with self._locked():
            before = self.read()
            if before == checkpoint:
                return
            if before is not None and before.size > checkpoint.size:
                raise Overtaken(f"The checkpoint in {self.path} is at {before.size}, past {checkpoint.size}.")
            if before is not None and (before.size == checkpoint.size or before.origin != checkpoint.origin):
                message = f"The checkpoint in {self.path} is not that of the log at {checkpoint.size} events."
                raise SealingStopped(message)
            write_durably(self.path, checkpoint.text.encode())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other sealers of this machine from writing between our reading and our writing."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.path.parent / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
