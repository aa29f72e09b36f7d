"""Signed notes and the keys that verify them, as C2SP has them: https://c2sp.org/signed-note.

    VerifierKey     a public key with its name, as people exchange it
    SignedNote      a text with lines of signatures, split and nothing believed yet
    Cosigner        signs checkpoints of others' logs: https://c2sp.org/tlog-cosignature

Bytes are matched by regular expressions: `str` has more line breaks, blanks and digits than the specification.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey

from infra.proof.checkpoints import ED25519, ML_DSA_44, Checkpoint, MalformedCheckpoint, cosigned, key_id

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

# The type of a key that signs others' checkpoints with a time.
ED25519_COSIGNATURE: Final = 0x04
MAX_NOTE_BYTES: Final = 65_536
# A verifier must accept 16. One with ML-DSA-44 has more than 3,000 bytes.
MAX_SIGNATURES: Final = 32

_KEY: Final = re.compile(r"([^\s+]{1,255})\+([0-9a-f]{8})\+([A-Za-z0-9+/]+={0,2})")
_SIGNATURE: Final = re.compile(rb"\xe2\x80\x94 ([^\s+]{1,1020}) ([A-Za-z0-9+/]+={0,2})")
_TIME: Final = struct.Struct(">Q")
_KEY_BYTES: Final = {ED25519: 32, ED25519_COSIGNATURE: 32, ML_DSA_44: 1312}


class MalformedNote(ValueError):
    """The text is not a signed note, or the key is not a verifier key."""


@dataclass(frozen=True, slots=True)
class Signature:
    """A line of a note."""

    name: str
    key_id: bytes
    signature: bytes
    line: str


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A public key for signed notes; the name is an origin or that of a witness."""

    name: str
    kind: int
    public: bytes

    @classmethod
    def parse(cls, text: str) -> VerifierKey:
        """Return the key of a text such as `name+c7b8a2f0+ATpz…`.

        Raises:
            MalformedNote: it is none, or of a type that is not known here.

        """
        found = _KEY.fullmatch(text)
        if found is None:
            raise MalformedNote("A verifier key has the form name+id+key.")
        name, id_, encoded = found.groups()
        decoded = _decoded(encoded)
        kind, public = decoded[0], decoded[1:]
        if len(public) != _KEY_BYTES.get(kind, -1) or key_id(name, kind, public).hex() != id_:
            raise MalformedNote("The verifier key is of an unknown type, or its id is not that of its key.")
        return cls(name, kind, public)

    @property
    def key_id(self) -> bytes:
        """The four bytes by which signatures name it."""
        return key_id(self.name, self.kind, self.public)

    @property
    def text(self) -> str:
        """The key as people exchange it."""
        encoded = base64.b64encode(bytes([self.kind]) + self.public).decode()
        return f"{self.name}+{self.key_id.hex()}+{encoded}"

    def signed_at(self, checkpoint: Checkpoint, signature: Signature) -> int | None:
        """Return when a checkpoint was signed, in seconds since 1970; None for a signature that has no time.

        Raises:
            InvalidSignature: the signature is not one of this key over this checkpoint.

        """
        raw = signature.signature
        if self.kind == ED25519:
            Ed25519PublicKey.from_public_bytes(self.public).verify(raw, checkpoint.text.encode())
            return None
        if len(raw) < _TIME.size:
            raise InvalidSignature
        (at,) = _TIME.unpack(raw[: _TIME.size])
        if self.kind == ED25519_COSIGNATURE:
            Ed25519PublicKey.from_public_bytes(self.public).verify(raw[_TIME.size :], _with_time(checkpoint, at))
        else:
            signed = cosigned(self.name, checkpoint, at)
            MLDSA44PublicKey.from_public_bytes(self.public).verify(raw[_TIME.size :], signed)
        return int(at)


@dataclass(frozen=True, slots=True)
class SignedNote:
    """A checkpoint with its signatures, none of which is verified yet."""

    checkpoint: Checkpoint
    signatures: tuple[Signature, ...]

    @classmethod
    def parse(cls, note: bytes) -> SignedNote:
        """Split a note.

        Raises:
            MalformedNote: it is not a signed note, not of a checkpoint, or too long.

        """
        text, separator, lines = note.rpartition(b"\n\n")
        if not separator or not lines.endswith(b"\n") or len(note) > MAX_NOTE_BYTES:
            raise MalformedNote("The text is not a signed note.")
        try:
            checkpoint = Checkpoint.parse(text + b"\n")
        except MalformedCheckpoint as error:
            raise MalformedNote("The note is not a checkpoint, or has more than three lines.") from error
        return cls(checkpoint, parse_signatures(lines))

    def by(self, key: VerifierKey) -> list[Signature]:
        """Return the signatures that name a key."""
        return [one for one in self.signatures if (one.name, one.key_id) == (key.name, key.key_id)]

    @property
    def text(self) -> str:
        """The note as one text."""
        return f"{self.checkpoint.text}\n{''.join(one.line for one in self.signatures)}"


def parse_signatures(lines: bytes) -> tuple[Signature, ...]:
    """Return the signatures of some lines, each with its line break.

    Raises:
        MalformedNote: one is none, or there are too many.

    """
    found: list[Signature] = []
    for line in lines.split(b"\n")[:-1]:
        match = _SIGNATURE.fullmatch(line)
        if match is None or len(found) == MAX_SIGNATURES:
            raise MalformedNote("A line of the note is not a signature, or there are too many.")
        try:
            name = match[1].decode()
            raw = _decoded(match[2].decode())
        except UnicodeDecodeError as error:
            raise MalformedNote("A line of the note is not UTF-8.") from error
        found.append(Signature(name, raw[:4], raw[4:], f"{line.decode()}\n"))
    return tuple(found)


class Cosigner:
    """Signs checkpoints of logs as a witness, with Ed25519 and the time."""

    def __init__(self, name: str, private: Ed25519PrivateKey) -> None:
        """Take the witness's name, and a key that signs nothing else."""
        self.key = VerifierKey(name, ED25519_COSIGNATURE, private.public_key().public_bytes_raw())
        self._private = private

    def cosign(self, checkpoint: Checkpoint, at: int) -> str:
        """Return the line of a cosignature; `at` is in seconds since 1970."""
        signature = _TIME.pack(at) + self._private.sign(_with_time(checkpoint, at))
        return f"— {self.key.name} {base64.b64encode(self.key.key_id + signature).decode()}\n"


def _with_time(checkpoint: Checkpoint, at: int) -> bytes:
    return f"cosignature/v1\ntime {at}\n{checkpoint.text}".encode()


def _decoded(text: str) -> bytes:
    """Decode base64, of whose several spellings one is right."""
    try:
        decoded = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise MalformedNote("The base64 is malformed.") from error
    if base64.b64encode(decoded).decode() != text or not decoded:
        raise MalformedNote("The base64 is not canonical.")
    return decoded
