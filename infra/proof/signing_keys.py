"""Signing keys: one file for each ledger, which only the sealer reads: pairs of an Ed25519 and an ML-DSA-44 key.

There is one pair, and two while one takes over from the other: then the older one comes first. The keys are not in the
database: anyone who restores or steals it cannot sign.
"""

from __future__ import annotations

import base64
import os
import re
import stat
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from infra.proof.checkpoints import LogSigner, LogSigners
from infra.proof.durable_file import write_durably
from infra.proof.errors import SealingStopped

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path
    from uuid import UUID

_PAIR: Final = r"ed25519 ([A-Za-z0-9+/]{43}=)\nml-dsa-44 ([A-Za-z0-9+/]{43}=)\n"
_FILE: Final = re.compile(f"(?:{_PAIR}){{1,2}}")
_MAX_BYTES: Final = 1_024


def key_path(directory: Path, log_id: UUID) -> Path:
    """Return the file of a log's keys. Names of ledgers may differ only in case, which some file systems ignore."""
    return directory / f"{log_id}.key"


def create_signer(directory: Path, log_id: UUID, origin: str) -> LogSigners:
    """Return the signer of a log that begins: with the keys of its ledger, made now if there are none."""
    path = key_path(directory, log_id)
    if not path.exists():
        write_durably(path, _fresh_pair())
    return load_signer(directory, log_id, origin)


def load_signer(directory: Path, log_id: UUID, origin: str) -> LogSigners:
    """Return the signer of a log that has signed before, with all pairs of the file.

    Raises:
        SealingStopped: the file is missing, can be read by other users, or does not hold keys.

    """
    pairs = re.findall(_PAIR, _content(key_path(directory, log_id)))
    return LogSigners([_signer(origin, ed25519, ml_dsa) for ed25519, ml_dsa in pairs])


def add_pair(directory: Path, log_id: UUID, origin: str) -> LogSigner:
    """Add a pair that takes over from the present one, and return it; it is on disk then.

    Raises:
        SealingStopped: the file cannot be used.

    """
    path = key_path(directory, log_id)
    write_durably(path, _content(path).encode() + _fresh_pair())
    return load_signer(directory, log_id, origin).signers[-1]


def replace_pairs(directory: Path, log_id: UUID, origin: str) -> LogSigner:
    """Put a new pair in the place of all that there are, which nobody can use any more, and return it."""
    write_durably(key_path(directory, log_id), _fresh_pair())
    return load_signer(directory, log_id, origin).signers[-1]


def destroy_pairs(directory: Path, log_id: UUID, origin: str, retired: Collection[str]) -> None:
    """Destroy the pairs of a file that have any of these verifier keys, as long as others are left.

    Raises:
        SealingStopped: the file cannot be used.

    """
    path = key_path(directory, log_id)
    pairs = re.findall(_PAIR, _content(path))
    kept = [one for one in pairs if set(retired).isdisjoint(_signer(origin, *one).verifier_keys)]
    if 0 < len(kept) < len(pairs):
        write_durably(path, "".join(_text(*one) for one in kept).encode())


def _content(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        message = (
            f"The signing key {path} cannot be read: {error.strerror}. Restore it from a backup. If it is lost, begin "
            "a log with another key: sparkledger ledgers restart LEDGER --accept-loss"
        )
        raise SealingStopped(message) from error
    with os.fdopen(descriptor, "rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            message = f"{path} has mode {mode:04o}, so other users can read it. Run: chmod 600 {path}"
            raise SealingStopped(message)
        content = file.read(_MAX_BYTES).decode("latin-1")
    if _FILE.fullmatch(content) is None:
        message = f"{path} does not contain signing keys. Restore it from a backup."
        raise SealingStopped(message)
    return content


def _fresh_pair() -> bytes:
    keys = Ed25519PrivateKey.generate().private_bytes_raw(), MLDSA44PrivateKey.generate().private_bytes_raw()
    return _text(*(base64.b64encode(key).decode() for key in keys)).encode()


def _text(ed25519: str, ml_dsa: str) -> str:
    return f"ed25519 {ed25519}\nml-dsa-44 {ml_dsa}\n"


def _signer(origin: str, ed25519: str, ml_dsa: str) -> LogSigner:
    keys: Sequence[bytes] = [base64.b64decode(text) for text in (ed25519, ml_dsa)]
    return LogSigner(origin, Ed25519PrivateKey.from_private_bytes(keys[0]), MLDSA44PrivateKey.from_seed_bytes(keys[1]))
