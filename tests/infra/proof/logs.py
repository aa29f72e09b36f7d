"""A small log in memory, with its keys: what a witness is asked to sign."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from domain.merkle import complete_subtrees, consistency_parts, join, leaf_hash, root_of
from infra.proof.checkpoints import Checkpoint, LogSigner
from infra.proof.notes import VerifierKey


class MemoryLog:
    """A log of numbered leaves; `fork` are the leaves from some index on that differ from those of others."""

    def __init__(self, origin: str = "log.example/main/1", signer: LogSigner | None = None, fork: int = 10**9) -> None:
        self.signer = signer or LogSigner(origin, Ed25519PrivateKey.generate(), MLDSA44PrivateKey.generate())
        self.origin = self.signer.origin
        self._fork = fork

    @property
    def keys(self) -> list[VerifierKey]:
        """Its public keys."""
        return [VerifierKey.parse(text) for text in self.signer.verifier_keys]

    @property
    def path(self) -> str:
        """The name of its file at a witness."""
        return f"{hashlib.sha256(self.origin.encode()).hexdigest()}.checkpoint"

    def leaves(self, size: int) -> list[bytes]:
        """Return its first leaves."""
        return [leaf_hash(b"%d%s" % (i, b" other" if i >= self._fork else b"")) for i in range(size)]

    def checkpoint(self, size: int) -> Checkpoint:
        """Return its checkpoint at a size."""
        return Checkpoint(self.origin, size, root_of(self.leaves(size)))

    def note(self, size: int) -> str:
        """Return its signed checkpoint at a size."""
        return self.signer.sign(self.checkpoint(size), 1_700_000_000)

    def request(self, old: int, new: int, note: str | None = None, proof: Sequence[bytes] | None = None) -> bytes:
        """Return the request to sign the checkpoint of a size."""
        if proof is None:
            proof = self.proof(old, new) if 0 < old < new else []
        lines = "".join(f"{base64.b64encode(one).decode()}\n" for one in proof)
        return f"old {old}\n{lines}\n{note or self.note(new)}".encode()

    def proof(self, old: int, new: int) -> list[bytes]:
        """Return the consistency proof."""
        leaves = self.leaves(new)
        return [
            join([root_of(leaves[s.index << s.level : (s.index + 1) << s.level]) for s in complete_subtrees(part)])
            for part in consistency_parts(old, new)
        ]
