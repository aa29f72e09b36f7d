"""A BagIt bag (RFC 8493) in a ZIP file, written piece by piece while it is sent. The same files give the same bytes.

Files are stored as they are, all with one time. `bag.note` is a signed note over the hash of the tag manifest, and so
over all files: by a key of its own, and with a text that no reader can take for a checkpoint of a log.
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Final, cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from infra.proof.checkpoints import ED25519, key_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from infra.crypto.envelope import LedgerKeys

# The earliest time that a ZIP file can state.
_TIME: Final = (1980, 1, 1, 0, 0, 0)
_MODE: Final = 0o100644 << 16
_UNIX: Final = 3
PAYLOAD: Final = "data/"
NOTE_TEXT: Final = "sparkledger evidence bag v1\n"


class BagSigner:
    """Signs bags, with a key that is never a log's."""

    def __init__(self, name: str, key: Ed25519PrivateKey) -> None:
        """Take the key and its name."""
        self._name = name
        self._key = key
        self._public = key.public_key().public_bytes_raw()

    @property
    def verifier_key(self) -> str:
        """The public key as verifiers expect it."""
        encoded = base64.b64encode(bytes([ED25519]) + self._public).decode()
        return f"{self._name}+{key_id(self._name, ED25519, self._public).hex()}+{encoded}"

    def sign(self, text: str) -> str:
        """Return the signed note of a text."""
        signature = key_id(self._name, ED25519, self._public) + self._key.sign(text.encode())
        return f"{text}\n— {self._name} {base64.b64encode(signature).decode()}\n"


def evidence_signer(keys: LedgerKeys, origin: str) -> BagSigner:
    """Return who signs the bundles of a ledger; its keys open in the API, and those of its log do not."""
    return BagSigner(f"{origin}/evidence", Ed25519PrivateKey.from_private_bytes(keys.derived("evidence")))


class Bag:
    """A bag that is being written."""

    def __init__(self, folder: str, signer: BagSigner, *, keep_bytes: int = 0) -> None:
        """Take the name of its one folder, who signs it, and up to how many bytes of files it keeps for a copy."""
        self._folder = folder
        self._signer = signer
        self._kept: dict[str, bytearray] | None = {}
        self._left = keep_bytes
        self._sink = _Sink()
        self._zip = zipfile.ZipFile(cast("IO[bytes]", self._sink), "w", zipfile.ZIP_STORED)
        self._hashes: dict[str, str] = {}
        self._bytes = 0

    @contextmanager
    def file(self, name: str, *, large: bool = False) -> Iterator[Callable[[bytes], None]]:
        """Write a file piece by piece; `large` if it may have gigabytes."""
        member = zipfile.ZipInfo(f"{self._folder}/{name}", _TIME)
        member.external_attr = _MODE
        member.create_system = _UNIX
        digest = hashlib.sha256()
        with self._zip.open(member, "w", force_zip64=large) as file:

            def write(piece: bytes) -> None:
                digest.update(piece)
                file.write(piece)
                self._keep(name, piece)
                if name.startswith(PAYLOAD):
                    self._bytes += len(piece)

            yield write
        self._hashes[name] = digest.hexdigest()

    def _keep(self, name: str, piece: bytes) -> None:
        if self._kept is not None:
            self._left -= len(piece)
            self._kept.setdefault(name, bytearray()).extend(piece)
            if self._left < 0:
                self._kept = None

    def copied(self) -> bytes | None:
        """Return the files that were written so far as a bag of their own; None if they are more than it keeps."""
        files, self._kept = self._kept, None
        if files is None:
            return None
        copy = Bag(self._folder, self._signer)
        for name, content in files.items():
            copy.add(name, bytes(content))
        copy.finish([])
        return copy.taken()

    def add(self, name: str, content: bytes) -> None:
        """Write a file that is at hand."""
        with self.file(name) as write:
            write(content)

    def finish(self, description: Sequence[tuple[str, str]]) -> None:
        """Write what makes the files a bag, and sign it.

        Args:
            description: names and values for `bag-info.txt`.

        """
        payload = [name for name in self._hashes if name.startswith(PAYLOAD)]
        described = [*description, ("Payload-Oxum", f"{self._bytes}.{len(payload)}")]
        self.add("bagit.txt", b"BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n")
        self.add("bag-info.txt", "".join(f"{name}: {value}\n" for name, value in described).encode())
        self.add("manifest-sha256.txt", self._manifest(payload))
        tags = [name for name in self._hashes if not name.startswith(PAYLOAD)]
        self.add("tagmanifest-sha256.txt", self._manifest(tags))
        self.add("bag.note", self._signer.sign(f"{NOTE_TEXT}{self._hashes['tagmanifest-sha256.txt']}\n").encode())
        self._zip.close()

    def taken(self) -> bytes:
        """Return the bytes that were written since this was last called."""
        return self._sink.taken()

    def _manifest(self, names: Sequence[str]) -> bytes:
        return "".join(f"{self._hashes[name]}  {name}\n" for name in sorted(names)).encode()


class _Sink:
    """What a ZIP file is written to; it cannot go back, so nothing that was written is needed again."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, piece: bytes, /) -> int:
        self._pieces.append(bytes(piece))
        return len(piece)

    def flush(self) -> None:
        """Do nothing: it is all in memory."""

    def taken(self) -> bytes:
        joined = b"".join(self._pieces)
        self._pieces.clear()
        return joined
