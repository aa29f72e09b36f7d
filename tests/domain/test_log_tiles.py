"""Tiles of a growing tree, compared with the tree, and their paths, compared with the examples of tlog-tiles."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.log_tiles import (
    WIDTH,
    TileId,
    TileRequest,
    TreeEdge,
    parse_tile_path,
    split_hashes,
    subtree_hash,
    tile_number,
)
from domain.merkle import (
    EMPTY_ROOT,
    complete_subtrees,
    consistency_parts,
    inclusion_parts,
    join,
    leaf_hash,
    root_of,
    verify_consistency,
    verify_inclusion,
)

MANY = 2 * WIDTH**2 + 3 * WIDTH + 5
LEAVES = [leaf_hash(i.to_bytes(4, "big")) for i in range(MANY)]


def grown(*sizes: int) -> tuple[TreeEdge, dict[TileId, bytes]]:
    """Return a tree that grew in these steps, with its tiles."""
    edge, tiles = TreeEdge(), dict[TileId, bytes]()
    for size in sizes:
        for tile, hashes in edge.grow(LEAVES[edge.size : size]).items():
            assert hashes.startswith(tiles.get(tile, b"")), "a tile only grows at its end"
            tiles[tile] = hashes
    return edge, tiles


def proof_of(parts: list[range], tiles: dict[TileId, bytes]) -> list[bytes]:
    return [join([subtree_hash(subtree, tiles) for subtree in complete_subtrees(part)]) for part in parts]


@pytest.mark.parametrize("size", [0, 1, 2, 255, 256, 257, 511, 512, 513, 65_535, 65_536, 65_537, MANY])
def test_the_root_of_the_edge_is_that_of_the_tree(size: int) -> None:
    edge, tiles = grown(size)
    assert edge.root == root_of(LEAVES[:size])
    assert TreeEdge.from_tiles(size, tiles).root == edge.root


def test_an_empty_tree_has_no_tiles() -> None:
    assert grown(0)[1] == {}
    assert TreeEdge().root == EMPTY_ROOT


@given(st.lists(st.integers(0, 1_500), max_size=8))
@settings(max_examples=50, deadline=None)
def test_tiles_are_the_same_however_the_tree_grew(steps: list[int]) -> None:
    sizes = sorted(steps)
    edge, tiles = grown(*sizes)
    at_once = grown(*sizes[-1:])
    assert (edge.size, edge.root, tiles) == (at_once[0].size, at_once[0].root, at_once[1])


def test_tiles_have_the_widths_of_the_specification() -> None:
    _, tiles = grown(70_000)
    widths = {tile: len(hashes) // 32 for tile, hashes in tiles.items()}
    full = {TileId(0, i): 256 for i in range(273)} | {TileId(1, 0): 256}
    assert widths == full | {TileId(0, 273): 112, TileId(1, 1): 17, TileId(2, 0): 1}


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_proofs_are_made_of_tiles_of_a_larger_tree(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, MANY))
    index = data.draw(st.integers(0, size - 1))
    old = data.draw(st.integers(1, size))
    root = TreeEdge.from_tiles(size, ALL_TILES).root
    verify_inclusion(index, size, LEAVES[index], proof_of(inclusion_parts(index, size), ALL_TILES), root)
    old_root = TreeEdge.from_tiles(old, ALL_TILES).root
    verify_consistency(old, size, old_root, root, proof_of(consistency_parts(old, size), ALL_TILES))


_, ALL_TILES = grown(MANY)


def test_a_tile_that_is_missing_or_short_is_no_edge() -> None:
    edge, tiles = grown(300)
    for wrong in ({}, tiles | {TileId(0, 1): tiles[TileId(0, 1)][:-32]}):
        with pytest.raises(LookupError):
            TreeEdge.from_tiles(300, wrong)
    with pytest.raises(ValueError, match="does not fit"):
        TreeEdge(301, [tiles[TileId(0, 1)], tiles[TileId(1, 0)]])
    assert edge.size == 300


def test_hashes_of_a_tile_are_its_leaves() -> None:
    assert split_hashes(grown(3)[1][TileId(0, 0)]) == LEAVES[:3]


@pytest.mark.parametrize(
    ("index", "number"), [(0, "000"), (67, "067"), (999, "999"), (1000, "x001/000"), (1234067, "x001/x234/067")]
)
def test_a_number_is_written_in_groups_of_three(index: int, number: str) -> None:
    assert tile_number(index) == number
    assert parse_tile_path(f"0/{number}") == TileRequest(0, index, 256)
    assert parse_tile_path(f"entries/{number}.p/255") == TileRequest(None, index, 255)


@pytest.mark.parametrize(
    "path",
    [
        *(
            "",
            "0",
            "0/",
            "0/0",
            "0/00",
            "0/0000",
            "0/1000",
            "0/x000/000",
            "0/001/000",
            "0/x001/x000",
            "8/000",
            "00/000",
        ),
        *(
            "0/000.p/0",
            "0/000.p/256",
            "0/000.p/01",
            "0/000.p/",
            "0/000.p/+1",
            "0/000/",
            "/0/000",
            "0/\u0661\u0661\u0661",
        ),
        *("entries/000\n", "Entries/000", "-1/000", "0/000.p/1/", "0/x999/x999/x999/x999/x999/x999/x999/999"),
    ],
)
def test_any_other_spelling_is_no_path(path: str) -> None:
    assert parse_tile_path(path) is None
