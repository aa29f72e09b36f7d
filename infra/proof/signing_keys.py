"""Signing keys: one file for each ledger, which only the sealer reads. A file holds an Ed25519 and an ML-DSA-44 key.

The keys are not in the database: anyone who restores or steals it cannot sign.
"""

from __future__ import annotations

import base64
import os
import re
import stat
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from infra.proof.checkpoints import LogSigner
from infra.proof.durable_file import write_durably
from infra.proof.errors import SealingStopped

if TYPE_CHECKING:
    from pathlib import Path
    from uuid import UUID

_FILE: Final = re.compile(r"ed25519 ([A-Za-z0-9+/]{43}=)\nml-dsa-44 ([A-Za-z0-9+/]{43}=)\n")
_MAX_BYTES: Final = 1_024


def key_path(directory: Path, log_id: UUID) -> Path:
    """Return the file of a log's keys. Names of ledgers may differ only in case, which some file systems ignore."""
    return directory / f"{log_id}.key"


def create_signer(directory: Path, log_id: UUID, origin: str) -> LogSigner:
    """Return the signer of a log that begins: with the keys of its ledger, made now if there are none."""
    path = key_path(directory, log_id)
    if not path.exists():
        keys = Ed25519PrivateKey.generate().private_bytes_raw(), MLDSA44PrivateKey.generate().private_bytes_raw()
        ed25519, ml_dsa = (base64.b64encode(key).decode() for key in keys)
        write_durably(path, f"ed25519 {ed25519}\nml-dsa-44 {ml_dsa}\n".encode())
    return load_signer(directory, log_id, origin)


def load_signer(directory: Path, log_id: UUID, origin: str) -> LogSigner:
    """Return the signer of a log that has signed before.

    Raises:
        SealingStopped: the file is missing, can be read by other users, or does not hold keys.

    """
    path = key_path(directory, log_id)
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
        found = _FILE.fullmatch(file.read(_MAX_BYTES).decode("latin-1"))
    if found is None:
        message = f"{path} does not contain signing keys. Restore it from a backup."
        raise SealingStopped(message)
    ed25519, ml_dsa = (base64.b64decode(text) for text in found.groups())
    return LogSigner(origin, Ed25519PrivateKey.from_private_bytes(ed25519), MLDSA44PrivateKey.from_seed_bytes(ml_dsa))
