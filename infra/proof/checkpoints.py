"""Checkpoints: the size and root of a log as a C2SP signed note, signed with Ed25519 and ML-DSA-44.

Checkpoints: https://c2sp.org/tlog-checkpoint. Notes: https://c2sp.org/signed-note. The ML-DSA-44 signature has the
format of a cosignature, https://c2sp.org/tlog-cosignature, which covers origin, size and root.
"""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from domain.merkle import HASH_BYTES

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

# The types of keys in signed notes.
ED25519: Final = 0x01
ML_DSA_44: Final = 0x06
# The length of an origin is one byte in what ML-DSA-44 signs.
MAX_ORIGIN_BYTES: Final = 255

# Bytes are matched: `str` has more line breaks and digits than the specification.
_TEXT: Final = re.compile(rb"([^\n]+)\n(0|[1-9][0-9]{0,18})\n([A-Za-z0-9+/]{43}=)\n")


class MalformedCheckpoint(ValueError):
    """The text is not a checkpoint."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of a log: its origin, which is its name for verifiers, its size and its root."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """The text that is signed."""
        return f"{self.origin}\n{self.size}\n{_base64(self.root)}\n"

    @classmethod
    def parse(cls, text: bytes) -> Checkpoint:
        """Return the checkpoint of a text, without signatures.

        Raises:
            MalformedCheckpoint: it is not the one text of a checkpoint.

        """
        found = _TEXT.fullmatch(text)
        if found is None:
            raise MalformedCheckpoint("The text is not a checkpoint.")
        try:
            checkpoint = cls(found[1].decode(), int(found[2]), base64.b64decode(found[3], validate=True))
        except ValueError as error:
            raise MalformedCheckpoint("The text is not a checkpoint.") from error
        # Base64 has several spellings of one root, of which one is written.
        if checkpoint.text.encode() != text or len(checkpoint.root) != HASH_BYTES:
            raise MalformedCheckpoint("The text is not the canonical text of a checkpoint.")
        return checkpoint


class LogSigner:
    """Signs the checkpoints of one log with its two keys; the name of both keys is the origin."""

    def __init__(self, origin: str, ed25519: Ed25519PrivateKey, ml_dsa: MLDSA44PrivateKey) -> None:
        """Take the origin and the private keys."""
        self.origin = origin
        self._ed25519 = ed25519
        self._ml_dsa = ml_dsa
        self._public = {
            ED25519: ed25519.public_key().public_bytes_raw(),
            ML_DSA_44: ml_dsa.public_key().public_bytes_raw(),
        }

    @property
    def verifier_keys(self) -> list[str]:
        """The public keys as verifiers expect them: name, key id and key."""
        return [
            f"{self.origin}+{key_id(self.origin, kind, key).hex()}+{_base64(bytes([kind]) + key)}"
            for kind, key in self._public.items()
        ]

    def sign(self, checkpoint: Checkpoint, at: int) -> str:
        """Return the signed note of a checkpoint of this log.

        Args:
            checkpoint: what to sign.
            at: the time of the ML-DSA-44 signature, in seconds since 1970. The Ed25519 signature has no time, so that
                signing the same checkpoint again yields the same.

        """
        if checkpoint.origin != self.origin:
            message = f"the keys of {self.origin} do not sign for {checkpoint.origin}"
            raise ValueError(message)
        text = checkpoint.text
        lines = (
            self._line(ED25519, self._ed25519.sign(text.encode())),
            self._line(ML_DSA_44, struct.pack(">Q", at) + self._ml_dsa.sign(cosigned(self.origin, checkpoint, at))),
        )
        return f"{text}\n{''.join(lines)}"

    def lines(self, checkpoint: Checkpoint, at: int) -> str:
        """Return the lines of the signatures alone."""
        return self.sign(checkpoint, at).partition("\n\n")[2]

    def _line(self, kind: int, signature: bytes) -> str:
        return f"— {self.origin} {_base64(key_id(self.origin, kind, self._public[kind]) + signature)}\n"


class LogSigners:
    """Signs the checkpoints of one log with each of its pairs of keys; there are two while one takes over."""

    def __init__(self, signers: Sequence[LogSigner]) -> None:
        """Take the signers of one origin, at least one, the oldest first."""
        self.signers = signers
        self.origin = signers[0].origin

    @property
    def verifier_keys(self) -> list[str]:
        """The public keys as verifiers expect them, the oldest pair first."""
        return [key for signer in self.signers for key in signer.verifier_keys]

    def only(self, verifier_keys: Collection[str]) -> LogSigners:
        """Return a signer with the pairs of these public keys alone.

        Raises:
            LookupError: there are none, or some have no private key here.

        """
        kept = [signer for signer in self.signers if not set(verifier_keys).isdisjoint(signer.verifier_keys)]
        if {key for signer in kept for key in signer.verifier_keys} != set(verifier_keys) or not kept:
            raise LookupError
        return LogSigners(kept)

    def sign(self, checkpoint: Checkpoint, at: int) -> str:
        """Return the signed note of a checkpoint of this log; `at` is in seconds since 1970."""
        first, *others = self.signers
        return first.sign(checkpoint, at) + "".join(one.lines(checkpoint, at) for one in others)


def key_id(name: str, kind: int, public_key: bytes) -> bytes:
    """Return the four bytes by which a signature names its key."""
    return hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + public_key).digest()[:4]


def cosigned(name: str, checkpoint: Checkpoint, at: int) -> bytes:
    """Return what an ML-DSA-44 key signs of a checkpoint: a subtree that begins with the log's first leaf."""
    signer, origin = name.encode(), checkpoint.origin.encode()
    return b"".join(
        (
            b"subtree/v1\n\0",
            bytes([len(signer)]) + signer,
            struct.pack(">Q", at),
            bytes([len(origin)]) + origin,
            struct.pack(">QQ", 0, checkpoint.size),
            checkpoint.root,
        )
    )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
