"""A witness: it signs a checkpoint of a log only if it continues what it has signed of that log before.

The protocol is https://c2sp.org/tlog-witness. A witness knows the keys of some logs, and keeps the last checkpoint of
each in a file, which is on disk before a signature leaves. It has no database, and needs none of a ledger: a customer
or an auditor runs it elsewhere, out of reach of the ledger's operator.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import re
import stat
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from domain.merkle import EMPTY_ROOT, HASH_BYTES, InvalidProof, verify_consistency
from infra.proof.durable_file import write_durably
from infra.proof.notes import Cosigner, MalformedNote, SignedNote, VerifierKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from infra.proof.checkpoints import Checkpoint

MAX_PROOF_HASHES: Final = 63
MAX_REQUEST_BYTES: Final = 131_072
MAX_LOGS: Final = 10_000
SIZE_TYPE: Final = "text/x.tlog.size"
TEXT_TYPE: Final = "text/plain; charset=utf-8"

_OLD: Final = re.compile(rb"old (0|[1-9][0-9]{0,18})")
_HASH: Final = re.compile(rb"[A-Za-z0-9+/]{43}=")
_KEY_FILE: Final = re.compile(r"ed25519 ([A-Za-z0-9+/]{43}=)\n")


class WitnessError(Exception):
    """The witness cannot start; the message says why."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What is answered: the HTTP status, the type of the body, and the body."""

    status: int
    body: str
    media_type: str = TEXT_TYPE


class Witness:
    """Signs checkpoints, and keeps the last one of each log."""

    def __init__(self, directory: Path, name: str, now: Callable[[], int]) -> None:
        """Take the directory of the witness's own state, its name, and its clock in seconds since 1970.

        The directory has the key, made on the first start, a file for each log, and the list of logs in the file
        `logs`: a verifier key in each line. It is read again when it has changed.

        Raises:
            WitnessError: another process has the directory, or something in it cannot be used.

        """
        self._directory = directory
        self._now = now
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._descriptor = os.open(directory / "witness.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            raise WitnessError(f"Another witness uses {directory}.") from error
        self._cosigner = Cosigner(name, _private_key(directory / "witness.key"))
        self._logs: dict[str, list[VerifierKey]] = {}
        self._logs_changed: int | None = None
        # Checking and keeping are one step: of two requests at once, the second is compared with the first's.
        self._lock = threading.Lock()
        self.read_logs()

    @property
    def key(self) -> VerifierKey:
        """The key that verifies its signatures."""
        return self._cosigner.key

    def close(self) -> None:
        """Give the directory back."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def read_logs(self) -> None:
        """Read the list of logs, if it has changed.

        Raises:
            WitnessError: a line is not a verifier key.

        """
        path = self._directory / "logs"
        try:
            changed = path.stat().st_mtime_ns
            if changed == self._logs_changed:
                return
            lines = path.read_text(encoding="utf-8").split("\n")
        except FileNotFoundError:
            return
        logs: dict[str, list[VerifierKey]] = {}
        for number, line in enumerate(lines, 1):
            if line.strip() and not line.startswith("#"):
                try:
                    key = VerifierKey.parse(line.strip())
                except MalformedNote as error:
                    raise WitnessError(f"Line {number} of {path}: {error}") from error
                logs.setdefault(key.name, []).append(key)
        if len(logs) > MAX_LOGS:
            raise WitnessError(f"{path} names more than {MAX_LOGS} logs.")
        self._logs, self._logs_changed = logs, changed

    def add_checkpoint(self, request: bytes) -> Reply:
        """Sign a checkpoint if it continues the last one; it is on disk before this returns."""
        try:
            old, proof, note = _parsed(request)
        except MalformedNote as error:
            return Reply(400, f"{error}\n")
        checkpoint = note.checkpoint
        keys = self._logs.get(checkpoint.origin, [])
        refusal = _refusal(note, keys, old)
        if refusal is not None:
            return refusal
        with self._lock:
            last = self._last(checkpoint.origin)
            size = 0 if last is None else last.checkpoint.size
            if old != size:
                return Reply(409, f"{size}\n", SIZE_TYPE)
            if not _continues(None if last is None else last.checkpoint, checkpoint, proof):
                return Reply(422, f"The checkpoint does not continue the one of {size} leaves that was signed last.\n")
            line = self._cosigner.cosign(checkpoint, self._now())
            signatures = [one.line for one in note.signatures if _is_signed(SignedNote(checkpoint, (one,)), keys)]
            kept = f"{checkpoint.text}\n{''.join(signatures)}{line}"
            write_durably(self._path(checkpoint.origin), kept.encode())
        return Reply(200, line)

    def checkpoint(self, origin_hash: str) -> Reply:
        """Return the last checkpoint of a log, by the SHA-256 of its origin in hexadecimal."""
        for origin in self._logs:
            if _hash_of(origin) == origin_hash:
                last = self._last(origin)
                if last is not None:
                    return Reply(200, last.text)
        return Reply(404, "This witness has signed no checkpoint of the log.\n")

    def _last(self, origin: str) -> SignedNote | None:
        try:
            return SignedNote.parse(self._path(origin).read_bytes())
        except FileNotFoundError:
            return None

    def _path(self, origin: str) -> Path:
        return self._directory / f"{_hash_of(origin)}.checkpoint"


def _hash_of(origin: str) -> str:
    return hashlib.sha256(origin.encode()).hexdigest()


def _parsed(request: bytes) -> tuple[int, list[bytes], SignedNote]:
    """Return the old size, the consistency proof and the checkpoint of a request."""
    head, separator, note = request.partition(b"\n\n")
    first, *lines = head.split(b"\n")
    old = _OLD.fullmatch(first)
    if old is None or not separator or len(lines) > MAX_PROOF_HASHES:
        raise MalformedNote("The request must be `old SIZE`, at most 63 hashes, an empty line and a checkpoint.")
    proof: list[bytes] = []
    for line in lines:
        decoded = base64.b64decode(line, validate=True) if _HASH.fullmatch(line) else b""
        if base64.b64encode(decoded) != line or len(decoded) != HASH_BYTES:
            raise MalformedNote("A hash of the proof is not 32 bytes in base64.")
        proof.append(decoded)
    return int(old[1]), proof, SignedNote.parse(note)


def _refusal(note: SignedNote, keys: list[VerifierKey], old: int) -> Reply | None:
    """Return why a checkpoint is refused, whatever was signed before; None if it is not."""
    if not keys:
        return Reply(404, "This witness does not know the log.\n")
    if not _is_signed(note, keys):
        return Reply(403, "No key that is known of the log has signed the checkpoint.\n")
    if old > note.checkpoint.size:
        return Reply(400, "The old size is larger than the checkpoint's.\n")
    return None


def _is_signed(note: SignedNote, keys: Iterable[VerifierKey]) -> bool:
    """Tell whether a known key has signed, and no signature that names a known key is wrong."""
    signed = False
    for key in keys:
        for signature in note.by(key):
            try:
                key.signed_at(note.checkpoint, signature)
            except InvalidSignature:
                return False
            signed = True
    return signed


def _continues(last: Checkpoint | None, checkpoint: Checkpoint, proof: list[bytes]) -> bool:
    """Tell whether a checkpoint continues the last one. A tree without leaves is continued by every other."""
    if last is None or last.size == 0:
        return not proof and (checkpoint.size > 0 or checkpoint.root == EMPTY_ROOT)
    if last.size == checkpoint.size:
        return not proof and last.root == checkpoint.root
    try:
        verify_consistency(last.size, checkpoint.size, last.root, checkpoint.root, proof)
    except InvalidProof:
        return False
    return True


def _private_key(path: Path) -> Ed25519PrivateKey:
    """Return the witness's key, made now if there is none."""
    if not path.exists():
        key = base64.b64encode(Ed25519PrivateKey.generate().private_bytes_raw()).decode()
        write_durably(path, f"ed25519 {key}\n".encode())
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise WitnessError(f"Other users can read {path}. Run: chmod 600 {path}")
    found = _KEY_FILE.fullmatch(path.read_text(encoding="ascii", errors="replace"))
    if found is None:
        raise WitnessError(f"{path} does not contain the key of a witness. Restore it from a backup.")
    return Ed25519PrivateKey.from_private_bytes(base64.b64decode(found[1]))
