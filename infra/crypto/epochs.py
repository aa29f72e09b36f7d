"""Epoch keys: files outside the database, without which no creator's key can be unwrapped, and which erasures destroy.

A destroyed row stays in PostgreSQL's write-ahead log, in archives of it, in standbys and in backups, and anyone who
also has the master key could open it there. So every creator's key is sealed twice: with the master key, and then with
the key of the present epoch. An erasure ends the epoch: the other creators' keys are sealed with the key of a new one,
and the old key is destroyed. Copies of the row from before can then be opened by nobody. Operators know an epoch's key
as the erasure key.

    erasure-keys/0f3a….key    the present epoch: 32 bytes in base64, readable only by its owner
    erasure-keys/77c1….key    an earlier one, until the erasure that ends it is carried out

All processes of a database share the directory. Nothing of it is kept in memory longer than it takes to open one key.
"""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag

from infra.crypto.envelope import KEY_BYTES, MasterKeyError, SealingKey, derived, fresh_key
from infra.crypto.key_files import read_private, sync_directory, write_private

if TYPE_CHECKING:
    from pathlib import Path

# In the data directory, unless a setting says otherwise.
DIRECTORY_NAME: Final = "erasure-keys"
EPOCH_ID_BYTES: Final = 8
_SUFFIX: Final = ".key"


class EpochKeyMissing(MasterKeyError):
    """The key of an epoch is not there: the epoch ended a moment ago, or the directory is not the right one."""


class EpochKeys:
    """The epoch keys in a directory."""

    def __init__(self, directory: Path) -> None:
        """Take the directory, which is made when the first key is added."""
        self.directory = directory

    def add(self) -> str:
        """Make the key of a new epoch, and return its id; it survives a crash once this returns."""
        made = not self.directory.exists()
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if made:
            sync_directory(self.directory.parent)
        epoch_id = os.urandom(EPOCH_ID_BYTES).hex()
        write_private(self._path(epoch_id), [base64.b64encode(fresh_key()).decode()])
        return epoch_id

    def has(self, epoch_id: str) -> bool:
        """Return whether the key of an epoch is there."""
        return self._path(epoch_id).exists()

    def seal(self, epoch_id: str, wrapped: bytes, purpose: str) -> bytes:
        """Seal a wrapped key for storage: the id of the epoch, and then the ciphertext.

        Raises:
            MasterKeyError: the key of the epoch is missing or cannot be used.

        """
        return bytes.fromhex(epoch_id) + self.key(epoch_id).seal(wrapped, purpose.encode())

    def unseal(self, stored: bytes, purpose: str) -> bytes:
        """Return the wrapped key that was sealed for the same purpose.

        Raises:
            MasterKeyError: the key of its epoch is missing or cannot be used, or what is stored was altered.

        """
        return unsealed(self.key(epoch_id_of(stored)), stored, purpose)

    def key(self, epoch_id: str) -> SealingKey:
        """Read the key of an epoch.

        Raises:
            EpochKeyMissing: it is not there.
            MasterKeyError: it cannot be used.

        """
        path = self._path(epoch_id)
        if not path.exists():
            raise EpochKeyMissing(missing(epoch_id, self.directory))
        try:
            key = base64.b64decode(read_private(path).content.strip(), validate=True)
        except ValueError:
            key = b""
        if len(key) != KEY_BYTES:
            message = f"{path} does not contain an erasure key. Restore it from its backup."
            raise MasterKeyError(message)
        return SealingKey(derived(key, b"sparkledger epoch v1"))

    def destroy(self, epoch_id: str) -> None:
        """Overwrite the key of an epoch and remove its file; if a crash came between, this finishes it."""
        path = self._path(epoch_id)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return
        try:
            os.pwrite(descriptor, os.urandom(os.fstat(descriptor).st_size), 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        path.unlink(missing_ok=True)
        sync_directory(self.directory)

    def _path(self, epoch_id: str) -> Path:
        return self.directory / f"{epoch_id}{_SUFFIX}"


def epoch_id_of(stored: bytes) -> str:
    """Return the id of the epoch that a wrapped key is sealed in."""
    return stored[:EPOCH_ID_BYTES].hex()


def unsealed(key: SealingKey, stored: bytes, purpose: str) -> bytes:
    """Unseal a wrapped key with the key of its epoch; raises `MasterKeyError` where it was altered."""
    try:
        return key.unseal(stored[EPOCH_ID_BYTES:], purpose.encode())
    except (InvalidTag, ValueError) as error:
        message = f"The {purpose} cannot be opened with the key of its epoch. It was changed. Restore it from a backup."
        raise MasterKeyError(message) from error


def missing(epoch_id: str, directory: Path) -> str:
    """Return the error message for an epoch key that is needed and is not there."""
    return (
        f"The erasure key {epoch_id} is not in {directory.absolute()}. All processes of a database share this "
        "directory: set SPARKLEDGER_ERASURE_KEY_DIR to it. If it was lost, restore it from its backup."
    )
