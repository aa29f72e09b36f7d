"""Tiles: the hashes of a growing Merkle tree, kept in pieces of 256 as C2SP's tlog-tiles defines them.

A tile of level L holds hashes of complete subtrees with 256**L leaves. Only its full tiles are hashed into the level
above. Tiles only grow at their end and are never changed, and one hash of each level at a time is all that is needed
to go on. https://c2sp.org/tlog-tiles
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from domain.merkle import HASH_BYTES, Subtree, join, root_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

WIDTH: Final = 256
# So many levels hold a tree of any size that fits into 64 bits.
MAX_LEVEL: Final = 7
_LEVELS_OF_A_TILE: Final = 8

# Groups of three digits, all but the last with an x.
_PATH: Final = re.compile(r"(entries|[0-7])/((?:x[0-9]{3}/){0,6}[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?")


@dataclass(frozen=True, slots=True, order=True)
class TileId:
    """The `index`-th tile of a level."""

    level: int
    index: int


@dataclass(frozen=True, slots=True)
class TileRequest:
    """A tile as it is asked for: its level, None for the bundle of entries itself, and how many hashes or entries."""

    level: int | None
    index: int
    width: int


def tile_number(index: int) -> str:
    """Return the number of a tile as paths have it: 1234067 is `x001/x234/067`."""
    groups = [f"{index % 1000:03d}"]
    while index := index // 1000:
        groups.insert(0, f"x{index % 1000:03d}")
    return "/".join(groups)


def parse_tile_path(path: str) -> TileRequest | None:
    """Return what the path after `tile/` asks for, or None if it is not the one spelling of a tile."""
    found = _PATH.fullmatch(path)
    if found is None:
        return None
    level, number, width = found.groups()
    index = int(number.replace("x", "").replace("/", ""))
    wanted = WIDTH if width is None else int(width)
    if tile_number(index) != number or (width is not None and wanted >= WIDTH):
        return None
    return TileRequest(None if level == "entries" else int(level), index, wanted)


def tile_of(subtree: Subtree) -> tuple[TileId, range]:
    """Return the tile that holds a complete subtree, and which of its hashes are in the subtree."""
    level, within = divmod(subtree.level, _LEVELS_OF_A_TILE)
    first = subtree.index << within
    return TileId(level, first // WIDTH), range(first % WIDTH, first % WIDTH + (1 << within))


def subtree_hash(subtree: Subtree, tiles: Mapping[TileId, bytes]) -> bytes:
    """Return the hash of a complete subtree from the tiles.

    Raises:
        LookupError: the tile is not among them, or is too short.

    """
    tile, part = tile_of(subtree)
    hashes = split_hashes(tiles[tile][part.start * HASH_BYTES : part.stop * HASH_BYTES])
    if len(hashes) < len(part):
        message = f"tile {tile.level}/{tile.index} ends before hash {part.stop}"
        raise LookupError(message)
    return root_of(hashes)


def split_hashes(tile: bytes) -> list[bytes]:
    """Return the hashes of a tile."""
    return [tile[i : i + HASH_BYTES] for i in range(0, len(tile), HASH_BYTES)]


class TreeEdge:
    """The right edge of a tree: its size, and the last tile of each level as far as it is filled.

    This is all that it takes to add to the tree, and to know its root.
    """

    def __init__(self, size: int = 0, partial: Sequence[bytes] = ()) -> None:
        """Take the size, and for each level from 0 the hashes of its last tile if that is not full.

        Raises:
            ValueError: the tiles do not have the lengths of a tree of this size.

        """
        self.size = size
        self._partial = [*partial, *(b"" for _ in range(MAX_LEVEL + 1 - len(partial)))]
        for level, tile in enumerate(self._partial):
            if len(tile) != (size >> (_LEVELS_OF_A_TILE * level)) % WIDTH * HASH_BYTES:
                message = f"the last tile of level {level} does not fit a tree of {size} leaves"
                raise ValueError(message)

    @staticmethod
    def tiles_of(size: int) -> list[TileId]:
        """Return the tiles that make the edge of a tree of this size: those that are begun and not full."""
        counts = [size >> (_LEVELS_OF_A_TILE * level) for level in range(MAX_LEVEL + 1)]
        return [TileId(level, count // WIDTH) for level, count in enumerate(counts) if count % WIDTH]

    @classmethod
    def from_tiles(cls, size: int, tiles: Mapping[TileId, bytes]) -> TreeEdge:
        """Return the edge of a tree of this size from tiles, which may be filled further.

        Raises:
            LookupError: a tile is missing, or too short.

        """
        partial = [b""] * (MAX_LEVEL + 1)
        for tile in cls.tiles_of(size):
            wanted = (size >> (_LEVELS_OF_A_TILE * tile.level)) % WIDTH * HASH_BYTES
            if len(tiles[tile]) < wanted:
                message = f"tile {tile.level}/{tile.index} is too short for a tree of {size} leaves"
                raise LookupError(message)
            partial[tile.level] = tiles[tile][:wanted]
        return cls(size, partial)

    def grow(self, leaves: Iterable[bytes]) -> dict[TileId, bytes]:
        """Append leaf hashes, and return every tile that is new or longer now."""
        grown: dict[TileId, bytes] = {}
        row = list(leaves)
        before, self.size = self.size, self.size + len(row)
        for level in range(MAX_LEVEL + 1):
            if not row:
                break
            first = (before >> (_LEVELS_OF_A_TILE * level)) // WIDTH
            hashes = split_hashes(self._partial[level]) + row
            row = []
            for i in range(0, len(hashes), WIDTH):
                tile = hashes[i : i + WIDTH]
                grown[TileId(level, first + i // WIDTH)] = b"".join(tile)
                if len(tile) == WIDTH:
                    row.append(root_of(tile))
            self._partial[level] = b"".join(hashes[len(row) * WIDTH :])
        return grown

    @property
    def root(self) -> bytes:
        """The root of the tree."""
        subtrees: list[bytes] = []
        for tile in reversed(self._partial):
            hashes = split_hashes(tile)
            begin = 0
            while begin < len(hashes):
                width = 1 << ((len(hashes) - begin).bit_length() - 1)
                subtrees.append(root_of(hashes[begin : begin + width]))
                begin += width
        return join(subtrees)
