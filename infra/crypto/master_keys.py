"""Who holds the master key, and wraps other keys with it: this process's environment, a file, or a service.

A key provider is all that Sparkledger asks of a key management service: it wraps and unwraps 32 bytes with a key that
it names, bound to a purpose. The two here hold their keys in memory. To add a cloud's service, add a third one here:

    class CloudKeys:
        key_ids       a short id made of the key's name (`short_id(arn)`), the key to wrap with from now on first
        wrap          its Encrypt: the key of that id, with the purpose as encryption context
        unwrap        its Decrypt: the same

then give `key_provider` a branch for it and `infra/settings.py` the setting that names the key. What is unwrapped stays
in `keyring`'s bounded memory, so a service is asked once for a creator and process, not once for a command. A
service that rotates its key by itself, under one name, needs no rotation here.
"""

from __future__ import annotations

import base64
import hashlib
import os
import stat
from typing import TYPE_CHECKING, Final, Protocol

from infra.crypto.envelope import MASTER_KEY_ID_BYTES, MasterKey, MasterKeyError, fresh_key

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from infra.settings import Settings

# In the data directory, where no setting says otherwise.
FILE_NAME: Final = "master.key"
# A file with more lines than this is no file of master keys.
MAX_KEYS: Final = 16
MAX_FILE_BYTES: Final = 4_096


class KeyProvider(Protocol):
    """Whoever holds master keys: wraps and unwraps other keys with them, and never hands them out."""

    @property
    def key_ids(self) -> Sequence[str]:
        """The short ids of the master keys that it can use, 16 hexadecimal digits each; the newest first."""

    async def wrap(self, key_id: str, key: bytes, purpose: str) -> bytes:
        """Encrypt a key with the master key of an id; `purpose` binds it to its place, so that rows cannot be swapped.

        Raises:
            MasterKeyError: it does not hold that master key.
            Unavailable: it cannot be asked now.

        """

    async def unwrap(self, key_id: str, wrapped: bytes, purpose: str) -> bytes:
        """Decrypt a key that was wrapped with the master key of an id, for the same purpose.

        Raises:
            MasterKeyError: it does not hold that master key, or what was wrapped was changed.
            Unavailable: it cannot be asked now.

        """


class MasterKeyFile:
    """Master keys in a file, one a line, the newest first. It is read again where an id is asked for that is new."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            MasterKeyError: it is absent, can be read by others, or does not hold master keys.

        """
        self.path = path
        self._seen: tuple[int, int] | None = None
        self._keys = self._read()

    @property
    def key_ids(self) -> Sequence[str]:
        """The short ids of the master keys that were in the file when it was last read; the newest first."""
        return self._keys.key_ids

    async def wrap(self, key_id: str, key: bytes, purpose: str) -> bytes:
        """Encrypt a key with the master key of an id; raises `MasterKeyError` where the file has none."""
        self._look_for(key_id)
        return await self._keys.wrap(key_id, key, purpose)

    async def unwrap(self, key_id: str, wrapped: bytes, purpose: str) -> bytes:
        """Decrypt a key that was wrapped with the master key of an id; raises `MasterKeyError` where that fails."""
        self._look_for(key_id)
        return await self._keys.unwrap(key_id, wrapped, purpose)

    def add(self) -> str:
        """Put a fresh master key before the others, and return its id; the file is whole at every moment."""
        texts = self._texts()
        _write(self.path, [_fresh_text(), *texts])
        self._keys = self._read()
        return self._keys.key_ids[0]

    def _look_for(self, key_id: str) -> None:
        """Read the file again where it has changed, for a rotation may have added the key."""
        if key_id not in self._keys.key_ids and self.path.exists() and self._seen != _signature(self.path.stat()):
            self._keys = self._read()

    def _read(self) -> MasterKey:
        try:
            return MasterKey.from_text(*self._texts())
        except (MasterKeyError, UnicodeDecodeError, TypeError) as error:
            if isinstance(error, _Refused):
                raise
            message = (
                f"{self.path} does not contain a master key. Restore the file that was created with this database."
            )
            raise MasterKeyError(message) from error

    def _texts(self) -> list[str]:
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            message = (
                f"The master key file {self.path} cannot be read: {error.strerror}. Restore it, or name another file."
            )
            raise _Refused(message) from error
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                mode = f"{stat.S_IMODE(status.st_mode):04o}"
                message = f"{self.path} has mode {mode}, so other users can read it. Run: chmod 600 {self.path}"
                raise _Refused(message)
            self._seen = _signature(status)
            lines = file.read(MAX_FILE_BYTES + 1).decode("ascii").splitlines()
        texts = [line.strip() for line in lines if line.strip()]
        return texts if len(texts) <= MAX_KEYS else []


class _Refused(MasterKeyError):
    """The file cannot be used, whatever it holds."""


def key_provider(settings: Settings) -> KeyProvider:
    """Return who holds the master key, as the settings say; with none of them, a file made in the data directory.

    Raises:
        MasterKeyError: the file cannot be used.

    """
    if settings.master_key is not None:
        given = (settings.master_key, settings.master_key_previous)
        return MasterKey.from_text(*(key.get_secret_value() for key in given if key is not None))
    if settings.master_key_file is not None:
        return MasterKeyFile(settings.master_key_file)
    path = settings.data_dir / FILE_NAME
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, [_fresh_text()])
    return MasterKeyFile(path)


def _signature(status: os.stat_result) -> tuple[int, int]:
    """Return what tells a file from the one that takes its place."""
    return status.st_ino, status.st_mtime_ns


def short_id(name: str) -> str:
    """Return the short id of a master key that a service knows by a name."""
    return hashlib.sha256(name.encode()).digest()[:MASTER_KEY_ID_BYTES].hex()


def _fresh_text() -> str:
    return base64.b64encode(fresh_key()).decode()


def _write(path: Path, texts: Sequence[str]) -> None:
    """Write keys, whole or not at all, readable by their owner alone."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)  # left by a process of this number that was killed
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.writelines(f"{text}\n" for text in texts)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # before anything is wrapped with a key that a power cut would take back
    finally:
        os.close(directory)
