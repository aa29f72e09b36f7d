"""Merkle trees over a growing list, and their proofs, as RFC 6962 and RFC 9162 define them.

    leaf_hash, node_hash, root_of             the tree
    inclusion_parts, consistency_parts, …     what a proof consists of, as parts of the tree
    complete_subtrees, join                   a part as complete subtrees, whose hashes never change, and their join
    verify_inclusion, verify_consistency, …   the verification; each raises InvalidProof or returns nothing

A part is a range of leaves, `range(begin, end)`. Anyone who has the hashes of complete subtrees, as tiles do, makes a
proof from any size of the tree without reading a leaf. Leaves are numbered from 0.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HASH_BYTES: Final = 32
EMPTY_ROOT: Final = hashlib.sha256().digest()
# A size fits into 64 bits with a sign, as positions do.
MAX_SIZE: Final = 2**63 - 1

_LEAF: Final = b"\x00"
_NODE: Final = b"\x01"


class InvalidProof(ValueError):
    """The proof is not valid."""


@dataclass(frozen=True, slots=True)
class Subtree:
    """A complete subtree: the `index`-th of those with 2**level leaves."""

    level: int
    index: int


def leaf_hash(entry: bytes) -> bytes:
    """Return the hash of a leaf."""
    return hashlib.sha256(_LEAF + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of a node."""
    return hashlib.sha256(_NODE + left + right).digest()


def root_of(hashes: Sequence[bytes]) -> bytes:
    """Return the root of the tree that has these leaf hashes."""
    if not hashes:
        return EMPTY_ROOT
    row = list(hashes)
    # A node without a sibling moves up as it is, which gives the tree of the recursive definition.
    while len(row) > 1:
        above = [node_hash(row[i], row[i + 1]) for i in range(0, len(row) - 1, 2)]
        if len(row) % 2:
            above.append(row[-1])
        row = above
    return row[0]


# -- What a proof consists of.


def inclusion_parts(index: int, size: int) -> list[range]:
    """Return the parts whose hashes prove that a leaf is in the tree of `size` leaves, in the order of the proof.

    Raises:
        IndexError: the tree has no such leaf.

    """
    if not 0 <= index < size:
        message = f"a tree of {size} leaves has no leaf {index}"
        raise IndexError(message)
    parts: list[range] = []
    begin, end = 0, size
    while end - begin > 1:
        middle = begin + _split(end - begin)
        if index < middle:
            parts.append(range(middle, end))
            end = middle
        else:
            parts.append(range(begin, middle))
            begin = middle
    return parts[::-1]


def consistency_parts(old: int, new: int) -> list[range]:
    """Return the parts whose hashes prove that the tree of `old` leaves is the beginning of that of `new` leaves.

    Raises:
        IndexError: not 0 < old <= new. Every tree continues the empty one, so there is nothing to prove.

    """
    if not 0 < old <= new:
        message = f"a tree of {new} leaves does not continue one of {old} leaves provably"
        raise IndexError(message)
    parts: list[range] = []
    begin, end = 0, new
    # Whether the part at hand is the whole old tree, whose root the verifier has.
    whole = True
    while end != old:
        middle = begin + _split(end - begin)
        if old <= middle:
            parts.append(range(middle, end))
            end = middle
        else:
            parts.append(range(begin, middle))
            begin = middle
            whole = False
    if not whole:
        parts.append(range(begin, end))
    return parts[::-1]


def range_parts(begin: int, end: int, size: int) -> list[range]:
    """Return the parts whose hashes prove that leaves `begin` to `end` - 1 are in the tree, from left to right.

    The whole range costs at most two hashes for each level of the tree, however many leaves it has.

    Raises:
        IndexError: the range is empty, or the tree does not have it.

    """
    _check_range(begin, end, size)

    def parts(low: int, high: int) -> Iterator[range]:
        if high <= begin or low >= end:
            yield range(low, high)
        elif low < begin or high > end:
            middle = low + _split(high - low)
            yield from parts(low, middle)
            yield from parts(middle, high)

    return list(parts(0, size))


def complete_subtrees(part: range) -> list[Subtree]:
    """Return the complete subtrees that a part consists of, from left to right.

    A part begins where a complete subtree of at least its size could begin, as all parts of proofs do, and the whole
    tree does.
    """
    subtrees: list[Subtree] = []
    begin = part.start
    while begin < part.stop:
        level = (part.stop - begin).bit_length() - 1
        subtrees.append(Subtree(level, begin >> level))
        begin += 1 << level
    return subtrees


def join(hashes: Sequence[bytes]) -> bytes:
    """Return the hash of a part from the hashes of its complete subtrees; that of no part at all is the empty root."""
    if not hashes:
        return EMPTY_ROOT
    joined = hashes[-1]
    for left in reversed(hashes[:-1]):
        joined = node_hash(left, joined)
    return joined


# -- Verification. Each checks the length of every hash first, so that no two readings of one proof exist.


def verify_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes], root: bytes) -> None:
    """Verify that a leaf hash is leaf `index` of the tree with `size` leaves and this root (RFC 9162, 2.1.3.2).

    Raises:
        InvalidProof: it is not proven.

    """
    _check_hashes(leaf, root, *proof)
    if not 0 <= index < size <= MAX_SIZE:
        raise InvalidProof("The tree has no such leaf.")
    hashed = leaf
    for sibling, is_left in zip(proof, _sides(index, size - 1, len(proof)), strict=True):
        hashed = node_hash(sibling, hashed) if is_left else node_hash(hashed, sibling)
    if hashed != root:
        raise InvalidProof("The proof leads to another root.")


def verify_consistency(old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> None:
    """Verify that the tree of `new` leaves begins with that of `old` leaves (RFC 9162, 2.1.4.2).

    The empty tree is refused: its root proves nothing, so anyone who starts from it must say so and not call this.

    Raises:
        InvalidProof: it is not proven.

    """
    _check_hashes(old_root, new_root, *proof)
    if not 0 < old <= new <= MAX_SIZE:
        raise InvalidProof("A tree only continues a smaller one that has a leaf.")
    if old == new:
        if proof or old_root != new_root:
            raise InvalidProof("Trees of the same size are the same, and need no proof.")
        return
    if not proof:
        raise InvalidProof("The proof is empty.")
    node, last = old - 1, new - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    # A complete tree is a node of the larger one, so its root is not sent again.
    first, *siblings = (old_root, *proof) if node == 0 else proof
    of_old = of_new = first
    for sibling, is_left in zip(siblings, _sides(node, last, len(siblings)), strict=True):
        if is_left:
            of_old, of_new = node_hash(sibling, of_old), node_hash(sibling, of_new)
        else:
            of_new = node_hash(of_new, sibling)
    if (of_old, of_new) != (old_root, new_root):
        raise InvalidProof("The proof leads to other roots.")


def verify_range(begin: int, leaves: Sequence[bytes], size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Verify that leaf hashes are all leaves from `begin` on, without a gap, of the tree with this root.

    Raises:
        InvalidProof: it is not proven.

    """
    _check_hashes(root, *leaves, *proof)
    end = begin + len(leaves)
    if not 0 <= begin < end <= size <= MAX_SIZE:
        raise InvalidProof("The tree has no such leaves.")
    if len(proof) != len(range_parts(begin, end, size)):
        raise InvalidProof("The proof has the wrong length.")
    outside = iter(proof)

    def hashed(low: int, high: int) -> bytes:
        if high <= begin or low >= end:
            return next(outside)
        if begin <= low and high <= end:
            return root_of(leaves[low - begin : high - begin])
        middle = low + _split(high - low)
        left = hashed(low, middle)
        return node_hash(left, hashed(middle, high))

    if hashed(0, size) != root:
        raise InvalidProof("The proof leads to another root.")


def _split(size: int) -> int:
    """Return the largest power of two below `size`: where a tree of that size divides."""
    return 1 << (size - 1).bit_length() - 1


def _sides(node: int, last: int, length: int) -> list[bool]:
    """Return whether each hash of a proof is to the left of the path from a node up; `last` is the row's last node.

    Raises:
        InvalidProof: the path does not have this length.

    """
    sides: list[bool] = []
    while last:
        is_left = bool(node & 1) or node == last
        if is_left:
            # The last node of a row may have no sibling there: it moves up until it has one.
            while not node & 1:
                node, last = node >> 1, last >> 1
        sides.append(is_left)
        node, last = node >> 1, last >> 1
    if len(sides) != length:
        raise InvalidProof("The proof has the wrong length.")
    return sides


def _check_range(begin: int, end: int, size: int) -> None:
    if not 0 <= begin < end <= size:
        message = f"a tree of {size} leaves has no leaves from {begin} to {end}"
        raise IndexError(message)


def _check_hashes(*hashes: bytes) -> None:
    if any(len(one) != HASH_BYTES for one in hashes):
        raise InvalidProof("A hash has 32 bytes.")
