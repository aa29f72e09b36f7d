"""Heads: for each stream, creator and video of a log, how many events it has, and a chain of hashes over them.

The heads of all events up to a position, sorted by key, are the leaves of a Merkle tree, whose root is an event of the
log. So a few hashes prove that the events which are shown of a code are all that it had, or that there were none. Of a
video, the events that generated its codes are counted.

    key     16 bytes: a hash of the id, so that those beside an absent key tell nothing
    chain   SHA-256(chain before ‖ leaf hash of the event), from 32 zero bytes on
    leaf    01 ‖ key ‖ u64 count ‖ chain
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final, NamedTuple
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Iterable

KEY_BYTES: Final = 16
FORMAT: Final = 2
# For what the salt of a ledger's videos is derived from the ledger's key.
VIDEO_SALT: Final = "heads of videos"


class Head(NamedTuple):
    """What is known of the events of one key."""

    events: int
    chain: bytes

    def after(self, leaves: Iterable[bytes]) -> Head:
        """Return the head after more events, of which these are the leaf hashes."""
        events, chain = self
        sha256 = hashlib.sha256
        for leaf in leaves:
            events, chain = events + 1, sha256(chain + leaf).digest()
        return Head(events, chain)


NO_EVENTS: Final = Head(0, bytes(32))


def stream_key(stream_id: UUID) -> bytes:
    """Return the key of a stream."""
    return hashlib.sha256(b"sparkledger/heads/stream/v1\n" + stream_id.bytes).digest()[:KEY_BYTES]


def creator_key(creator_stream: UUID) -> bytes:
    """Return the key of all events of a creator: those of the permission and of all codes."""
    return hashlib.sha256(b"sparkledger/heads/creator/v1\n" + creator_stream.bytes).digest()[:KEY_BYTES]


def video_key(salt: bytes, video_id: str) -> bytes:
    """Return the key of the codes of a video.

    Ids of videos are public, so the ledger's salt is hashed with them: nobody can try a head for videos without it.
    """
    return hashlib.sha256(b"sparkledger/heads/video/v1\n" + salt + video_id.encode()).digest()[:KEY_BYTES]


def heads_stream(log_id: UUID) -> UUID:
    """Return the stream in which the heads of a log are recorded: everyone who knows the log finds them."""
    return UUID(bytes=hashlib.sha256(b"sparkledger/heads/log/v1\n" + log_id.bytes).digest()[:16])


def head_leaf(key: bytes, head: Head) -> bytes:
    """Return a leaf of the tree of heads."""
    return b"\1" + key + head.events.to_bytes(8, "big") + head.chain


def head_leaf_hashes(heads: Iterable[tuple[bytes, int, bytes]]) -> list[bytes]:
    """Return the hashes of leaves, of which there can be millions: `merkle.leaf_hash` of each `head_leaf`."""
    sha256 = hashlib.sha256
    return [sha256(b"\0\1" + key + events.to_bytes(8, "big") + chain).digest() for key, events, chain in heads]
