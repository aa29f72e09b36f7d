"""The tree of heads in blocks of 256: of each the first key and the root, so that a proof reads a block or two.

Heads are sorted by key, and a new key moves all that follow. So the tree is made again each time that heads are sealed,
and the blocks are kept in one value: 48 bytes for each 256 heads.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Final, NamedTuple

from domain.heads import KEY_BYTES, Head, head_leaf
from domain.merkle import HASH_BYTES, inclusion_parts, leaf_hash, root_of
from infra.proof.proofs import ProofFailed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BLOCK_HEADS: Final = 256
_STORED_BYTES: Final = KEY_BYTES + HASH_BYTES

Row = tuple[bytes, int, bytes]


class ProvenHead(NamedTuple):
    """A head in the tree of heads: its place and its proof."""

    place: int
    key: bytes
    head: Head
    hashes: Sequence[bytes]


class HeadBlocks:
    """The blocks of a tree of heads.

    Attributes:
        heads: how many heads there are.

    """

    def __init__(self, stored: bytes = b"", heads: int = 0) -> None:
        """Take the blocks as they are stored, and how many heads they have."""
        self.heads = heads
        pieces = [stored[i : i + _STORED_BYTES] for i in range(0, len(stored), _STORED_BYTES)]
        self._first = [piece[:KEY_BYTES] for piece in pieces]
        self._roots = [piece[KEY_BYTES:] for piece in pieces]

    @property
    def stored(self) -> bytes:
        """The blocks as they are stored."""
        return b"".join(part for block in zip(self._first, self._roots, strict=True) for part in block)

    @property
    def root(self) -> bytes:
        """The root of the tree."""
        return root_of(self._roots)

    def grow(self, keys: Sequence[bytes], leaves: Sequence[bytes]) -> None:
        """Add heads, in the order of their keys; only the last call may bring a number that fills no block."""
        for begin in range(0, len(keys), BLOCK_HEADS):
            self._first.append(bytes(keys[begin]))
            self._roots.append(root_of(leaves[begin : begin + BLOCK_HEADS]))
        self.heads += len(keys)

    def beginnings(self, keys: Sequence[bytes]) -> dict[int, bytes]:
        """Return the first keys of the blocks in which keys are, or would be, each with the block after it, by number.

        A key that there is not can lie between two blocks.
        """
        places = {max(bisect_right(self._first, key) - 1, 0) for key in keys}
        wanted = sorted(places | {place + 1 for place in places})
        return {place: self._first[place] for place in wanted if place < len(self._first)}

    def proven(self, blocks: Mapping[int, Sequence[Row]], keys: Sequence[bytes]) -> list[ProvenHead]:
        """Return the proofs of heads, and for each key that there is not those of its neighbours.

        Args:
            blocks: the heads of the blocks that `beginnings` names, by number.
            keys: those that are wanted.

        Raises:
            ProofFailed: these are not the heads of the tree.

        """
        known: dict[int, tuple[bytes, Head]] = {}
        leaves: dict[int, bytes] = {}
        for number, rows in blocks.items():
            hashes = [leaf_hash(head_leaf(bytes(key), Head(count, bytes(chain)))) for key, count, chain in rows]
            if root_of(hashes) != self._roots[number]:
                raise ProofFailed("the stored heads are not those that were sealed")
            for place, (row, leaf) in enumerate(zip(rows, hashes, strict=True), number * BLOCK_HEADS):
                known[place] = bytes(row[0]), Head(row[1], bytes(row[2]))
                leaves[place] = leaf
        places = {key: place for place, (key, _) in known.items()}
        wanted = set[int]()
        for key in keys:
            if key in places:
                wanted.add(places[key])
            else:
                after = min((place for place, (other, _) in known.items() if other > key), default=self.heads)
                before = max((place for place, (other, _) in known.items() if other < key), default=-1)
                wanted |= {before, after} & known.keys()
        of_parts: dict[range, bytes] = {}

        def hash_of(part: range) -> bytes:
            if part not in of_parts:
                if part.start in leaves and len(part) <= BLOCK_HEADS:
                    of_parts[part] = root_of([leaves[place] for place in part])
                else:
                    ends = -(-part.stop // BLOCK_HEADS)
                    of_parts[part] = root_of(self._roots[part.start // BLOCK_HEADS : ends])
            return of_parts[part]

        return [
            ProvenHead(place, *known[place], [hash_of(part) for part in inclusion_parts(place, self.heads)])
            for place in sorted(wanted)
        ]
