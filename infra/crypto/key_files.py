"""Files that hold keys: written whole or not at all, and read only if nobody else can read or replace them."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final, NamedTuple

from infra.crypto.envelope import MasterKeyError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# A longer file is no file of keys.
MAX_FILE_BYTES: Final = 4_096


class UnusableFile(MasterKeyError):
    """The file cannot be used, whatever it holds."""


class KeyFile(NamedTuple):
    """What a file of keys holds, and what distinguishes it from a file that replaced it."""

    content: bytes
    signature: tuple[int, int]


def read_private(path: Path) -> KeyFile:
    """Read a file of keys.

    Raises:
        UnusableFile: it is missing, belongs to somebody else, or can be read by others.

    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        message = f"The key file {path} cannot be read: {error.strerror}. Restore it, or name another file."
        raise UnusableFile(message) from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if status.st_uid not in {os.geteuid(), 0}:
            message = (
                f"{path} belongs to the user with id {status.st_uid}, who could replace the key. Run as that user, or "
                f"run: chown {os.geteuid()} {path}"
            )
            raise UnusableFile(message)
        if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            mode = f"{stat.S_IMODE(status.st_mode):04o}"
            message = f"{path} has mode {mode}, so other users can read it. Run: chmod 600 {path}"
            raise UnusableFile(message)
        return KeyFile(file.read(MAX_FILE_BYTES + 1), signature(status))


def signature(status: os.stat_result) -> tuple[int, int]:
    """Return what distinguishes a file from one that replaced it."""
    return status.st_ino, status.st_mtime_ns


def write_private(path: Path, texts: Sequence[str]) -> None:
    """Write all keys or none, one a line, to a file that only its owner may read; it survives a crash."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)  # left by a killed process with the same id
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.writelines(f"{text}\n" for text in texts)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)
    sync_directory(path.parent)  # before anything is wrapped with a key that a power failure would lose


def sync_directory(directory: Path) -> None:
    """Make what was created, renamed or removed in a directory survive a crash."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
