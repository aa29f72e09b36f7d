"""Key providers: they hold the master key, from the environment, a file or a service, and wrap other keys with it.

A key provider wraps and unwraps 32 bytes with a key that it names, bound to a purpose. Sparkledger needs no more of a
key management service. It also has the directory of the epoch keys, which are files in any case. The two here hold
their keys in memory. To use a cloud's service, add a third one:

    class CloudKeys:
        key_ids       short ids of the keys' names (`short_id(arn)`), first the one to wrap with from now on
        wrap          its Encrypt, with the key of that id and the purpose as encryption context
        unwrap        its Decrypt, with the same
        epochs        `EpochKeys` of the directory

and a branch in `key_provider`, and a setting in `infra/settings.py` that names the key. The keyring caches what is
unwrapped, so a service is asked once for each creator and process, not once for each command. A service that itself
rotates its key under one name needs no rotation here.
"""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Final, Protocol

from cryptography.exceptions import InvalidTag

from infra.crypto.envelope import (
    KEY_BYTES,
    MASTER_KEY_ID_BYTES,
    MasterKeyError,
    SealingKey,
    derived,
    fresh_key,
    not_given,
)
from infra.crypto.epochs import DIRECTORY_NAME, EpochKeys
from infra.crypto.key_files import MAX_FILE_BYTES, UnusableFile, read_private, signature, write_private

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pydantic import SecretStr

# In the data directory, unless a setting says otherwise.
FILE_NAME: Final = "master.key"
# A file with more lines than this is no file of master keys.
MAX_KEYS: Final = 16


class KeyProvider(Protocol):
    """Holds master keys, and wraps and unwraps other keys with them without giving them out."""

    @property
    def key_ids(self) -> Sequence[str]:
        """The short ids of its master keys, 16 hexadecimal digits each, the newest first."""

    @property
    def epochs(self) -> EpochKeys:
        """The epoch keys, which seal creators' keys once more. They are files whatever holds the master key."""

    async def wrap(self, key_id: str, key: bytes, purpose: str) -> bytes:
        """Encrypt a key with the master key of an id; `purpose` binds it to its place, so that rows cannot be swapped.

        Raises:
            MasterKeyError: it does not hold that master key.
            Unavailable: it cannot be reached.

        """

    async def unwrap(self, key_id: str, wrapped: bytes, purpose: str) -> bytes:
        """Decrypt a key that was wrapped with the master key of an id, for the same purpose.

        Raises:
            MasterKeyError: it does not hold that master key, or the wrapped key was altered.
            Unavailable: it cannot be reached.

        """


class MasterKey:
    """A `KeyProvider` that holds the master key in memory, and with it those that it replaces."""

    def __init__(self, key: bytes, *others: bytes, epochs: EpochKeys | None = None) -> None:
        """Take the master key's 32 bytes, and those of earlier ones that keys may still be wrapped with.

        Creators' keys need the epoch keys, too.
        """
        self._epochs = epochs
        self._wrapping: dict[str, SealingKey] = {}
        for known in (key, *others):
            if len(known) != KEY_BYTES or not any(known):  # all zeros: a file or variable that was never filled
                message = f"The master key must be {KEY_BYTES} random bytes in base64."
                raise MasterKeyError(message)
            key_id = derived(known, b"sparkledger master key id v1")[:MASTER_KEY_ID_BYTES].hex()
            self._wrapping[key_id] = SealingKey(derived(known, b"sparkledger wrap v1"))

    @classmethod
    def from_text(cls, text: str, *others: str, epochs: EpochKeys | None = None) -> MasterKey:
        """Read the keys from their base64 texts.

        Raises:
            MasterKeyError: one is not base64 of 32 bytes.

        """
        try:
            return cls(*(base64.b64decode(one, validate=True) for one in (text, *others)), epochs=epochs)
        except ValueError as error:  # also of text that is not ASCII
            message = f"The master key must be {KEY_BYTES} random bytes in base64."
            raise MasterKeyError(message) from error

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The short ids of the keys, the master key's first. They reveal nothing of the keys."""
        return tuple(self._wrapping)

    @property
    def epochs(self) -> EpochKeys:
        """The epoch keys.

        Raises:
            MasterKeyError: none were given.

        """
        if self._epochs is None:
            raise MasterKeyError("No directory of erasure keys was given.")
        return self._epochs

    async def wrap(self, key_id: str, key: bytes, purpose: str) -> bytes:
        """Encrypt a key with the master key of an id.

        Raises:
            MasterKeyError: that master key is not among those given.

        """
        return self._with(key_id).seal(key, purpose.encode())

    async def unwrap(self, key_id: str, wrapped: bytes, purpose: str) -> bytes:
        """Decrypt a key that was wrapped with the master key of an id, for the same purpose.

        Raises:
            MasterKeyError: that master key is not among those given, or the wrapped key was altered.

        """
        wrapping = self._with(key_id)
        try:
            return wrapping.unseal(wrapped, purpose.encode())
        except (InvalidTag, ValueError) as error:
            message = (
                f"The {purpose} cannot be unwrapped with its master key. It was changed or copied from another "
                "row. Restore it from a backup."
            )
            raise MasterKeyError(message) from error

    def _with(self, key_id: str) -> SealingKey:
        try:
            return self._wrapping[key_id]
        except KeyError:
            raise MasterKeyError(not_given(key_id, self.key_ids)) from None


class MasterKeyFile:
    """A file with a master key on each line, the newest first; it is read again when an id is not found in memory."""

    def __init__(self, path: Path, epochs: EpochKeys | None = None) -> None:
        """Read the file; creators' keys need the epoch keys, too.

        Raises:
            MasterKeyError: the file is missing, can be read or replaced by others, or does not hold master keys.

        """
        self.path = path
        self._epochs = epochs
        self._seen: tuple[int, int] | None = None
        self._keys = self._read()

    @property
    def key_ids(self) -> Sequence[str]:
        """The short ids of the master keys that were in the file when it was last read; the newest first."""
        return self._keys.key_ids

    @property
    def epochs(self) -> EpochKeys:
        """The epoch keys."""
        return self._keys.epochs

    async def wrap(self, key_id: str, key: bytes, purpose: str) -> bytes:
        """Encrypt a key with the master key of an id; raises `MasterKeyError` where the file has none."""
        self._look_for(key_id)
        return await self._keys.wrap(key_id, key, purpose)

    async def unwrap(self, key_id: str, wrapped: bytes, purpose: str) -> bytes:
        """Decrypt a key that was wrapped with the master key of an id; raises `MasterKeyError` where that fails."""
        self._look_for(key_id)
        return await self._keys.unwrap(key_id, wrapped, purpose)

    def add(self) -> str:
        """Add a new master key before the others, and return its id; a crash leaves the old file or the new one."""
        texts = self._texts()
        write_private(self.path, [_fresh_text(), *texts])
        self._keys = self._read()
        return self._keys.key_ids[0]

    def _look_for(self, key_id: str) -> None:
        """Read the file again if it has changed, because a rotation may have added the key."""
        if key_id not in self._keys.key_ids and self.path.exists() and self._seen != signature(self.path.stat()):
            self._keys = self._read()

    def _read(self) -> MasterKey:
        try:
            return MasterKey.from_text(*self._texts(), epochs=self._epochs)
        except (MasterKeyError, UnicodeDecodeError, TypeError) as error:
            if isinstance(error, UnusableFile):
                raise
            message = (
                f"{self.path} does not contain a master key. Restore the file that was created with this database."
            )
            raise MasterKeyError(message) from error

    def _texts(self) -> list[str]:
        read = read_private(self.path)
        self._seen = read.signature
        texts = [line.strip() for line in read.content.decode("ascii").splitlines() if line.strip()]
        return texts if len(texts) <= MAX_KEYS and len(read.content) <= MAX_FILE_BYTES else []


class KeySettings(Protocol):
    """The settings that choose a key provider."""

    @property
    def master_key(self) -> SecretStr | None: ...
    @property
    def master_key_previous(self) -> SecretStr | None: ...
    @property
    def master_key_file(self) -> Path | None: ...
    @property
    def erasure_key_dir(self) -> Path | None: ...
    @property
    def data_dir(self) -> Path: ...


def key_provider(settings: KeySettings) -> KeyProvider:
    """Return the key provider that the settings choose; by default a file in the data directory, made on first use.

    The epoch keys are in the data directory, too, unless a setting says otherwise.

    Raises:
        MasterKeyError: the file cannot be used.

    """
    epochs = EpochKeys(settings.erasure_key_dir or settings.data_dir / DIRECTORY_NAME)
    if settings.master_key is not None:
        given = (settings.master_key, settings.master_key_previous)
        return MasterKey.from_text(*(key.get_secret_value() for key in given if key is not None), epochs=epochs)
    if settings.master_key_file is not None:
        return MasterKeyFile(settings.master_key_file, epochs)
    path = settings.data_dir / FILE_NAME
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_private(path, [_fresh_text()])
    return MasterKeyFile(path, epochs)


def short_id(name: str) -> str:
    """Return the short id of a master key that a service knows by name."""
    return hashlib.sha256(name.encode()).digest()[:MASTER_KEY_ID_BYTES].hex()


def _fresh_text() -> str:
    return base64.b64encode(fresh_key()).decode()
