"""Proofs from the tiles of a signed log, each verified before it is handed out.

A proof of an event is made for the newest checkpoint, in the form of https://c2sp.org/tlog-proof.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from domain.log_entry import UnencodableEvent, content, entry, envelope
from domain.log_tiles import TileId, TreeEdge, subtree_hash, tile_of
from domain.merkle import (
    InvalidProof,
    complete_subtrees,
    consistency_parts,
    inclusion_parts,
    join,
    leaf_hash,
    verify_consistency,
    verify_inclusion,
)
from infra.proof.checkpoints import Checkpoint
from infra.proof.stored_events import stored_event
from projections.engine.array_columns import Bigints, Ints

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from uuid import UUID

    from infra.postgres.pool import Database, LedgerConnection

_LOG: Final = """
    SELECT l.log_id, t.generation, t.checkpoint
    FROM ledgers l
    JOIN log_trees t ON t.ledger_id = l.ledger_id
    WHERE l.ledger_id = %s AND t.checkpoint IS NOT NULL
    AND t.generation = (SELECT max(h.generation) FROM histories h WHERE h.ledger_id = l.ledger_id)
"""

_TILES: Final = """
    SELECT t.level, t.index, t.hashes
    FROM unnest(%b::int[], %b::bigint[]) AS x (level, index)
    JOIN log_tiles t ON t.ledger_id = %b AND t.generation = %b AND t.level = x.level AND t.index = x.index
"""


class ProofFailed(Exception):
    """The stored event or tree does not fit the signed log."""


@dataclass(frozen=True, slots=True)
class EventProof:
    """What proves that an event is in the log: its layers, and its leaf's inclusion in a signed tree.

    Attributes:
        hashes: the proof, from the leaf up.
        note: the signed checkpoint that it leads to.

    """

    content: bytes
    envelope: bytes
    entry: bytes
    checkpoint: Checkpoint
    hashes: Sequence[bytes]
    note: str

    def tlog_proof(self, position: int) -> str:
        """Return the proof as a file that verifiers of others read; `extra` is the entry, so nothing else is needed."""
        hashes = "".join(f"{base64.b64encode(one).decode()}\n" for one in self.hashes)
        extra = base64.b64encode(self.entry).decode()
        return f"c2sp.org/tlog-proof@v1\nextra {extra}\nindex {position - 1}\n{hashes}\n{self.note}"


@dataclass(frozen=True, slots=True)
class ConsistencyProof:
    """What proves that the log of size `new` continues that of size `old`."""

    old: int
    new: int
    old_root: bytes
    new_root: bytes
    hashes: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class _Log:
    log_id: UUID
    generation: int
    note: str

    @property
    def checkpoint(self) -> Checkpoint:
        text, _, _ = self.note.partition("\n\n")
        return Checkpoint.parse(f"{text}\n".encode())


class Proofs:
    """Makes proofs for one ledger at a time."""

    def __init__(self, database: Database) -> None:
        """Take the sessions to read with."""
        self._database = database

    async def of_event(self, ledger_id: int, position: int) -> EventProof | None:
        """Return the proof of the event at a position; None if no checkpoint covers it yet.

        Raises:
            ProofFailed: the stored event is not the one that was sealed.

        """

        async def make(connection: LedgerConnection) -> EventProof | None:
            log = await _log(connection, ledger_id)
            if log is None or not 0 < position <= log.checkpoint.size:
                return None
            event = await stored_event(connection, ledger_id, position)
            checkpoint = log.checkpoint
            parts = inclusion_parts(position - 1, checkpoint.size)
            hashes = await _hashes(connection, ledger_id, log.generation, parts)
            try:
                if event is None:
                    message = f"event {position} is missing"
                    raise ProofFailed(message)
                of_content = content(event)
                of_envelope = envelope(log.log_id, event, hashlib.sha256(of_content).digest())
                of_entry = entry(event, hashlib.sha256(of_envelope).digest())
                verify_inclusion(position - 1, checkpoint.size, leaf_hash(of_entry), hashes, checkpoint.root)
            except (InvalidProof, UnencodableEvent) as error:
                raise ProofFailed(str(error)) from error
            return EventProof(of_content, of_envelope, of_entry, checkpoint, hashes, log.note)

        return await self._database.read(ledger_id, make)

    async def of_consistency(self, ledger_id: int, old: int, new: int | None) -> ConsistencyProof | None:
        """Return the proof that the log continues an older state; None if no checkpoint covers the new size yet.

        Args:
            ledger_id: whose log.
            old: the older size, at least 1.
            new: the newer size; None for that of the newest checkpoint.

        Raises:
            ProofFailed: the stored tree does not fit the newest checkpoint.

        """

        async def make(connection: LedgerConnection) -> ConsistencyProof | None:
            log = await _log(connection, ledger_id)
            if log is None:
                return None
            checkpoint = log.checkpoint
            size = checkpoint.size if new is None else new
            if not 0 < old <= size <= checkpoint.size:
                return None
            hashes = await _hashes(connection, ledger_id, log.generation, consistency_parts(old, size))
            roots = [await _root(connection, ledger_id, log, at) for at in (old, size)]
            to_signed = await _hashes(connection, ledger_id, log.generation, consistency_parts(size, checkpoint.size))
            try:
                verify_consistency(old, size, roots[0], roots[1], hashes)
                verify_consistency(size, checkpoint.size, roots[1], checkpoint.root, to_signed)
            except InvalidProof as error:
                raise ProofFailed(str(error)) from error
            return ConsistencyProof(old, size, roots[0], roots[1], hashes)

        return await self._database.read(ledger_id, make)

    async def hashes_of(self, ledger_id: int, generation: int, parts: Sequence[range]) -> list[bytes]:
        """Return the hashes of parts of the tree, which the caller verifies.

        Raises:
            ProofFailed: a tile is missing.

        """

        async def make(connection: LedgerConnection) -> list[bytes]:
            return await _hashes(connection, ledger_id, generation, parts)

        return await self._database.read(ledger_id, make)


async def _log(connection: LedgerConnection, ledger_id: int) -> _Log | None:
    cursor = connection.cursor(binary=True)
    await cursor.execute(_LOG, (ledger_id,))
    row = await cursor.fetchone()
    return None if row is None else _Log(*row)


async def _hashes(connection: LedgerConnection, ledger_id: int, generation: int, parts: Sequence[range]) -> list[bytes]:
    """Return the hashes of parts of the tree."""
    subtrees = [complete_subtrees(part) for part in parts]
    # Proofs of several leaves have most of their large subtrees in common.
    wanted = {one for part in subtrees for one in part}
    tiles = await _tiles(connection, ledger_id, generation, {tile_of(one)[0] for one in wanted})
    try:
        hashes = {one: subtree_hash(one, tiles) for one in wanted}
        return [join([hashes[one] for one in part]) for part in subtrees]
    except LookupError as error:
        raise ProofFailed(f"a tile is missing: {error}") from error


async def _root(connection: LedgerConnection, ledger_id: int, log: _Log, size: int) -> bytes:
    tiles = await _tiles(connection, ledger_id, log.generation, TreeEdge.tiles_of(size))
    try:
        return TreeEdge.from_tiles(size, tiles).root
    except LookupError as error:
        raise ProofFailed(f"a tile is missing: {error}") from error


async def _tiles(
    connection: LedgerConnection, ledger_id: int, generation: int, wanted: Iterable[TileId]
) -> dict[TileId, bytes]:
    tiles = list(wanted)
    if not tiles:
        return {}
    cursor = connection.cursor(binary=True)
    columns = Ints([tile.level for tile in tiles]), Bigints([tile.index for tile in tiles])
    await cursor.execute(_TILES, (*columns, ledger_id, generation))
    return {TileId(level, index): hashes for level, index, hashes in await cursor.fetchall()}
