"""The tree of a log in the database: what the sealer reads and writes, over the one session that lets it lead."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from domain.log_tiles import WIDTH, TileId, TreeEdge, split_hashes
from infra.proof.checkpoints import Checkpoint
from infra.proof.errors import Overtaken, SealingStopped
from infra.proof.log_keys import KEY_CHANGES, KeyChange
from infra.proof.stored_events import stored_events
from projections.engine.array_columns import Bigints, Byteas, Ints

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import psycopg

    from domain.log_entry import StoredEvent

# Every ledger with the generation of its log that is sealed now, and where its events end.
_LEDGERS: Final = """
    SELECT l.ledger_id, l.name, l.log_id, h.generation, coalesce((
        SELECT e.position FROM events e WHERE e.ledger_id = l.ledger_id ORDER BY e.position DESC LIMIT 1
    ), 0), (
        SELECT d.message FROM log_differences d
        WHERE d.ledger_id = l.ledger_id AND d.generation = h.generation AND d.resolved_at IS NULL
        ORDER BY d.found_at LIMIT 1
    )
    FROM ledgers l
    CROSS JOIN LATERAL (
        SELECT h.generation FROM histories h WHERE h.ledger_id = l.ledger_id ORDER BY h.generation DESC LIMIT 1
    ) h
    ORDER BY l.ledger_id
"""

_TREE: Final = """
    SELECT origin, verifier_keys, size, root, checkpoint_size
    FROM log_trees
    WHERE ledger_id = %s AND generation = %s
"""

_BEGIN: Final = """
    INSERT INTO log_trees (ledger_id, generation, ledger, origin, verifier_keys, public, size, root)
    VALUES (%s, %s, %s, %s, %s, %s, 0, %s)
"""

_TILES: Final = """
    SELECT t.level, t.index, t.hashes
    FROM unnest(%b::int[], %b::bigint[]) AS x (level, index)
    JOIN log_tiles t ON t.ledger_id = %b AND t.generation = %b AND t.level = x.level AND t.index = x.index
"""

# Compare and set: only anyone who saw the tree as it is makes it larger.
_GROW: Final = """
    UPDATE log_trees SET size = %b, root = %b WHERE ledger_id = %b AND generation = %b AND size = %b
"""

# A tile that is there already must be the beginning of the new one.
_WRITE_TILES: Final = """
    INSERT INTO log_tiles AS t (ledger_id, generation, level, index, hashes)
    SELECT %b, %b, x.level, x.index, x.hashes
    FROM unnest(%b::int[], %b::bigint[], %b::bytea[]) AS x (level, index, hashes)
    ON CONFLICT (ledger_id, generation, level, index) DO UPDATE SET hashes = excluded.hashes
    WHERE substring(excluded.hashes FROM 1 FOR length(t.hashes)) = t.hashes
"""

_SERVED: Final = """
    SELECT checkpoint, checkpoint_size, verifier_keys
    FROM log_trees
    WHERE ledger_id = %s AND generation = %s AND checkpoint IS NOT NULL
"""

# The served checkpoint never becomes smaller, whatever a sealer that was paused still writes.
_PUBLISH: Final = """
    UPDATE log_trees
    SET checkpoint = %s, checkpoint_size = %s, checkpoint_at = clock_timestamp(), stopped = NULL
    WHERE ledger_id = %s AND generation = %s AND coalesce(checkpoint_size, -1) < %s
"""

# A checkpoint that is signed by other keys than the same one before.
_CHANGE_KEYS: Final = """
    UPDATE log_trees
    SET verifier_keys = %s, checkpoint = %s, checkpoint_size = %s, checkpoint_at = clock_timestamp()
    WHERE ledger_id = %s AND generation = %s AND coalesce(checkpoint_size, -1) <= %s
"""
_HAND_OVER: Final = """
    INSERT INTO log_handovers (ledger_id, generation, size, verifier_keys, note) VALUES (%s, %s, %s, %s, %s)
    ON CONFLICT DO NOTHING
"""

_STOP: Final = "UPDATE log_trees SET stopped = %s WHERE ledger_id = %s AND generation = %s"
_RESUME: Final = "UPDATE log_trees SET stopped = NULL, public = %s WHERE ledger_id = %s AND generation = %s"


@dataclass(frozen=True, slots=True)
class LedgerLog:
    """A ledger, and the generation of its log that is sealed now.

    Attributes:
        log_id: what names the log for ever, through all generations.
        head: the position of the ledger's last event, 0 before the first.
        difference: what a check has found that is not as it was signed, if anything.

    """

    ledger_id: int
    name: str
    log_id: UUID
    generation: int
    head: int = field(compare=False)
    difference: str | None = field(compare=False, default=None)


@dataclass(frozen=True, slots=True)
class StoredTree:
    """A tree as it is stored, without its tiles."""

    origin: str
    verifier_keys: list[str]
    size: int
    root: bytes
    checkpoint_size: int | None


class TreeStore:
    """Reads events, and reads and writes trees, over one session."""

    def __init__(self, connection: psycopg.Connection) -> None:
        """Take the session that holds the sealer's lock: what it writes, it writes as the one leader."""
        self._connection = connection
        self._cursor = connection.cursor(binary=True)

    def ledgers(self) -> list[LedgerLog]:
        """Return every ledger."""
        return [LedgerLog(*row) for row in self._cursor.execute(_LEDGERS, prepare=True)]

    def tree(self, log: LedgerLog) -> StoredTree | None:
        """Return a log's tree, or None if the log has not begun."""
        row = self._cursor.execute(_TREE, (log.ledger_id, log.generation)).fetchone()
        return None if row is None else StoredTree(*row)

    def served(self, log: LedgerLog) -> tuple[str, int, list[str]] | None:
        """Return the checkpoint that is served, its size and the log's verifier keys; None before the first."""
        row = self._cursor.execute(_SERVED, (log.ledger_id, log.generation)).fetchone()
        return None if row is None else (row[0], row[1], row[2])

    def begin(self, log: LedgerLog, origin: str, verifier_keys: list[str], root: bytes, *, public: bool) -> None:
        """Begin a log with an empty tree."""
        row = (log.ledger_id, log.generation, log.name, origin, verifier_keys, public, root)
        self._connection.execute(_BEGIN, row)

    def tiles(self, log: LedgerLog, tiles: Iterable[TileId]) -> dict[TileId, bytes]:
        """Return tiles, without those that are missing."""
        wanted = list(tiles)
        if not wanted:
            return {}
        parameters = (
            Ints([tile.level for tile in wanted]),
            Bigints([tile.index for tile in wanted]),
            log.ledger_id,
            log.generation,
        )
        rows = self._cursor.execute(_TILES, parameters)
        return {TileId(level, index): hashes for level, index, hashes in rows}

    def grow(self, log: LedgerLog, before: int, edge: TreeEdge, tiles: Mapping[TileId, bytes]) -> None:
        """Write a larger tree and its tiles in one transaction.

        Raises:
            Overtaken: the tree no longer has the size `before`.
            SealingStopped: a stored tile has other hashes.

        """
        with self._connection.transaction():
            parameters: Sequence[Any] = (edge.size, edge.root, log.ledger_id, log.generation, before)
            if self._cursor.execute(_GROW, parameters, prepare=True).rowcount != 1:
                raise Overtaken(f"The log of ledger {log.name} no longer has {before} events.")
            parameters = (
                log.ledger_id,
                log.generation,
                Ints([tile.level for tile in tiles]),
                Bigints([tile.index for tile in tiles]),
                Byteas(list(tiles.values())),
            )
            if self._cursor.execute(_WRITE_TILES, parameters, prepare=True).rowcount != len(tiles):
                raise SealingStopped(f"A stored tile of ledger {log.name} has other hashes than its events.")

    def publish(self, log: LedgerLog, note: str, size: int) -> None:
        """Publish a signed checkpoint, if it is larger than the one that is served."""
        self._connection.execute(_PUBLISH, (note, size, log.ledger_id, log.generation, size))

    def key_changes(self, log: LedgerLog, upto: int) -> list[KeyChange]:
        """Return what was recorded of a log's keys, up to a position."""
        return [KeyChange(*row) for row in self._connection.execute(KEY_CHANGES, (log.ledger_id, log.log_id, upto))]

    def change_keys(self, log: LedgerLog, before: Sequence[str], after: Sequence[str], notes: tuple[str, str]) -> None:
        """Let other keys sign a log from now on.

        Args:
            log: the log.
            before: the verifier keys that signed it.
            after: those that sign it from now on.
            notes: the newest checkpoint, signed by both, and signed by those of after alone, which is served.

        """
        handover, served = notes
        size = Checkpoint.parse(served.partition("\n\n")[0].encode() + b"\n").size
        with self._connection.transaction():
            self._connection.execute(_HAND_OVER, (log.ledger_id, log.generation, size, list(before), handover))
            place = (log.ledger_id, log.generation)
            self._connection.execute(_CHANGE_KEYS, (list(after), served, size, *place, size))

    def stop(self, log: LedgerLog, reason: str) -> None:
        """Write down why a log is not sealed any more."""
        self._connection.execute(_STOP, (reason, log.ledger_id, log.generation))

    def resume(self, log: LedgerLog, *, public: bool) -> None:
        """Write down that a log is sealed, and whether it is public."""
        self._connection.execute(_RESUME, (public, log.ledger_id, log.generation))

    def events(self, log: LedgerLog, after: int, limit: int) -> list[StoredEvent]:
        """Return a ledger's events after a position, oldest first."""
        return list(stored_events(self._cursor, log.ledger_id, after, limit))


def last_tile(store: TreeStore, log: LedgerLog, size: int) -> tuple[int, list[bytes]]:
    """Return the first leaf and the leaf hashes of the last tile that a tree of this size has begun.

    Raises:
        SealingStopped: the tile is missing or too short.

    """
    if size == 0:
        return 0, []
    first = (size - 1) // WIDTH * WIDTH
    tile = TileId(0, first // WIDTH)
    hashes = split_hashes(store.tiles(log, [tile]).get(tile, b""))[: size - first]
    if len(hashes) != size - first:
        raise SealingStopped(f"Tile 0/{tile.index} of ledger {log.name} is missing or too short.")
    return first, hashes
