"""Trees and proofs, compared with the definition of RFC 6962, and with vectors that others' verifiers pass."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.merkle import (
    EMPTY_ROOT,
    InvalidProof,
    complete_subtrees,
    consistency_parts,
    inclusion_parts,
    join,
    leaf_hash,
    node_hash,
    range_parts,
    root_of,
    verify_consistency,
    verify_inclusion,
    verify_range,
)

LARGEST = 300
LEAVES = [leaf_hash(b"leaf %d" % i) for i in range(LARGEST)]
OTHER = leaf_hash(b"another leaf")

VECTORS = json.loads((Path(__file__).parent / "merkle_vectors.json").read_text())
# Its roots have 12 bytes, and it wants them accepted as equal. A verifier that checks lengths cannot.
NO_HASHES = "additional/sizes-are-equal-one-and-proof-is-empty"


# -- The definition, word by word: RFC 6962, 2.1.


@cache
def naive_root(begin: int, end: int) -> bytes:
    if begin == end:
        return hashlib.sha256(b"").digest()
    if end - begin == 1:
        return LEAVES[begin]
    k = largest_power_below(end - begin)
    left, right = naive_root(begin, begin + k), naive_root(begin + k, end)
    return hashlib.sha256(b"\x01" + left + right).digest()


def naive_path(m: int, begin: int, end: int) -> list[bytes]:
    if end - begin == 1:
        return []
    k = largest_power_below(end - begin)
    if m < k:
        return [*naive_path(m, begin, begin + k), naive_root(begin + k, end)]
    return [*naive_path(m - k, begin + k, end), naive_root(begin, begin + k)]


def naive_subproof(m: int, begin: int, end: int, *, whole: bool) -> list[bytes]:
    if m == end - begin:
        return [] if whole else [naive_root(begin, end)]
    k = largest_power_below(end - begin)
    if m <= k:
        return [*naive_subproof(m, begin, begin + k, whole=whole), naive_root(begin + k, end)]
    return [*naive_subproof(m - k, begin + k, end, whole=False), naive_root(begin, begin + k)]


def largest_power_below(n: int) -> int:
    k = 1
    while k * 2 < n:
        k *= 2
    return k


# -- What is tested makes its proofs of complete subtrees alone, as tiles hold them.


@cache
def subtree_hash(level: int, index: int) -> bytes:
    if level == 0:
        return LEAVES[index]
    return node_hash(subtree_hash(level - 1, 2 * index), subtree_hash(level - 1, 2 * index + 1))


@cache
def part_hash(part: range) -> bytes:
    return join([subtree_hash(subtree.level, subtree.index) for subtree in complete_subtrees(part)])


def proof_of(parts: list[range]) -> list[bytes]:
    return [part_hash(part) for part in parts]


def damaged(proof: Sequence[bytes]) -> list[list[bytes]]:
    """Return what a proof must not be: each hash changed, one left out, one added."""
    changed = [[*proof[:i], OTHER, *proof[i + 1 :]] for i in range(len(proof))]
    shorter = [[*proof[:i], *proof[i + 1 :]] for i in range(len(proof))]
    return [*changed, *shorter, [*proof, OTHER], [OTHER, *proof]]


@pytest.mark.parametrize("size", range(LARGEST + 1))
def test_the_root_is_that_of_the_definition(size: int) -> None:
    assert root_of(LEAVES[:size]) == naive_root(0, size)
    assert part_hash(range(size)) == naive_root(0, size)


@pytest.mark.parametrize("size", range(1, LARGEST + 1))
def test_every_leaf_is_proven_by_the_path_of_the_definition(size: int) -> None:
    root = naive_root(0, size)
    for index in range(size):
        proof = proof_of(inclusion_parts(index, size))
        assert proof == naive_path(index, 0, size)
        verify_inclusion(index, size, LEAVES[index], proof, root)


@pytest.mark.parametrize("new", range(1, LARGEST + 1))
def test_every_growth_is_proven_by_the_proof_of_the_definition(new: int) -> None:
    for old in range(1, new + 1):
        proof = proof_of(consistency_parts(old, new))
        assert proof == naive_subproof(old, 0, new, whole=True)
        verify_consistency(old, new, naive_root(0, old), naive_root(0, new), proof)


sizes = st.integers(1, LARGEST)


@pytest.mark.long("Hypothesis damages each hash and each leaf of hundreds of proofs")
@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_range_is_proven_with_at_most_two_hashes_a_level(data: st.DataObject) -> None:
    size = data.draw(sizes)
    begin = data.draw(st.integers(0, size - 1))
    end = data.draw(st.integers(begin + 1, size))
    root, leaves = naive_root(0, size), LEAVES[begin:end]
    proof = proof_of(range_parts(begin, end, size))
    assert len(proof) <= 2 * size.bit_length()
    verify_range(begin, leaves, size, proof, root)
    for wrong in damaged(proof):
        with pytest.raises(InvalidProof):
            verify_range(begin, leaves, size, wrong, root)
    for wrong_leaves in damaged(leaves):
        with pytest.raises(InvalidProof):
            verify_range(begin, wrong_leaves, size, proof, root)
    if begin != 0 or end != size:
        shifted = begin - 1 if begin else begin + 1
        with pytest.raises(InvalidProof):
            verify_range(shifted, leaves, size, proof, root)


def test_every_range_of_small_trees_is_proven() -> None:
    for size in range(1, 34):
        for begin in range(size):
            for end in range(begin + 1, size + 1):
                proof = proof_of(range_parts(begin, end, size))
                verify_range(begin, LEAVES[begin:end], size, proof, naive_root(0, size))


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_damaged_proof_of_inclusion_is_refused(data: st.DataObject) -> None:
    size = data.draw(sizes)
    index = data.draw(st.integers(0, size - 1))
    root, proof = naive_root(0, size), proof_of(inclusion_parts(index, size))
    for wrong in damaged(proof):
        with pytest.raises(InvalidProof):
            verify_inclusion(index, size, LEAVES[index], wrong, root)
    for leaf, wanted in ((OTHER, root), (LEAVES[index], OTHER)):
        with pytest.raises(InvalidProof):
            verify_inclusion(index, size, leaf, proof, wanted)
    other = data.draw(st.integers(-1, LARGEST).filter(lambda other: other != index))
    with pytest.raises(InvalidProof):
        verify_inclusion(other, size, LEAVES[index], proof, root)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_damaged_proof_of_consistency_is_refused(data: st.DataObject) -> None:
    new = data.draw(sizes)
    old = data.draw(st.integers(1, new))
    roots, proof = (naive_root(0, old), naive_root(0, new)), proof_of(consistency_parts(old, new))
    for wrong in damaged(proof):
        with pytest.raises(InvalidProof):
            verify_consistency(old, new, *roots, wrong)
    for wrong_roots in ((OTHER, roots[1]), (roots[0], OTHER)):
        with pytest.raises(InvalidProof):
            verify_consistency(old, new, *wrong_roots, proof)


@pytest.mark.parametrize(("old", "new"), [(0, 0), (0, 1), (-1, 1), (2, 1)])
def test_the_empty_tree_and_a_larger_one_are_continued_by_no_proof(old: int, new: int) -> None:
    with pytest.raises(IndexError):
        consistency_parts(old, new)
    with pytest.raises(InvalidProof):
        verify_consistency(old, new, EMPTY_ROOT, EMPTY_ROOT, [])


@pytest.mark.parametrize(("begin", "end", "size"), [(0, 0, 0), (0, 0, 1), (1, 1, 2), (-1, 1, 2), (1, 3, 2)])
def test_a_range_that_the_tree_does_not_have_has_no_proof(begin: int, end: int, size: int) -> None:
    with pytest.raises(IndexError):
        range_parts(begin, end, size)
    with pytest.raises(InvalidProof):
        verify_range(begin, LEAVES[: max(end - begin, 0)], size, [], EMPTY_ROOT)


@pytest.mark.parametrize(("index", "size"), [(0, 0), (1, 1), (-1, 1)])
def test_a_leaf_that_the_tree_does_not_have_has_no_proof(index: int, size: int) -> None:
    with pytest.raises(IndexError):
        inclusion_parts(index, size)


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_a_hash_of_another_length_is_refused(length: int) -> None:
    short = bytes(length)
    proof = proof_of(inclusion_parts(1, 3))
    root = naive_root(0, 3)
    for leaf, siblings, wanted in (
        (short, proof, root),
        (LEAVES[1], [proof[0], short], root),
        (LEAVES[1], proof, short),
    ):
        with pytest.raises(InvalidProof):
            verify_inclusion(1, 3, leaf, siblings, wanted)
    with pytest.raises(InvalidProof):
        verify_consistency(1, 1, short, short, [])


def decoded(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def proofs(vector: dict[str, Any]) -> list[bytes]:
    return [decoded(one) for one in vector["proof"] or []]


def accepts(vector: dict[str, Any]) -> bool:
    try:
        if "leafIdx" in vector:
            leaf, root = decoded(vector["leafHash"]), decoded(vector["root"])
            verify_inclusion(vector["leafIdx"], vector["treeSize"], leaf, proofs(vector), root)
        else:
            roots = decoded(vector["root1"]), decoded(vector["root2"])
            verify_consistency(vector["size1"], vector["size2"], *roots, proofs(vector))
    except InvalidProof:
        return False
    return True


@pytest.mark.parametrize("kind", ["inclusion", "consistency"])
def test_a_vector_of_others_is_accepted_or_refused_as_they_say(kind: str) -> None:
    vectors = {name: vector for name, vector in VECTORS[kind].items() if name != NO_HASHES}
    assert len(vectors) == {"inclusion": 98, "consistency": 97}[kind]
    assert {name: accepts(vector) for name, vector in vectors.items()} == {
        name: not vector["wantErr"] for name, vector in vectors.items()
    }


def test_the_one_vector_with_roots_that_are_no_hashes_is_refused() -> None:
    assert not VECTORS["consistency"][NO_HASHES]["wantErr"]
    assert not accepts(VECTORS["consistency"][NO_HASHES])
