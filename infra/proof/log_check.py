"""Checks of a log against what was signed: its rows against its tiles, its tiles against its roots, its keys.

    events   every row still has the leaf hash that was sealed, none is missing, none was moved
    tree     tiles of all levels follow from the rows, and lead to the root that was signed last and is served
    keys     the keys that sealed parts and actors name are there, and gone only where the log says so

Nothing here needs a master key. What does is in `infra.jobs.sealed_check`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from domain.changed_column import StoredRow, changed_column
from domain.log_entry import UnencodableEvent, entry_of, hashed
from domain.log_tiles import WIDTH, TileId, TreeEdge, split_hashes, subtree_hash, tile_of
from domain.merkle import HASH_BYTES, complete_subtrees, join, leaf_hash, root_of
from infra.eventstore.differences import Difference
from infra.proof.checkpoints import Checkpoint, MalformedCheckpoint
from infra.proof.stored_events import stored_events

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import psycopg

    from domain.log_entry import StoredEvent
    from infra.proof.tree_store import LedgerLog, TreeStore

# Events that are compared at a time.
STRETCH: Final = 8 * WIDTH
# Events on each side of a changed one whose values are tried in its columns.
NEIGHBOURS: Final = 20

_ROW: Final = "SELECT body, sealed FROM events WHERE ledger_id = %b AND position = %b"
_SAME_STREAM: Final = """
    SELECT position FROM events WHERE ledger_id = %b AND stream_id = %b AND position <> %b ORDER BY version LIMIT 20
"""

# Keys that events name. The key of a sealed part is gone only if the log says that the creator is erased. The role of a
# key never changes, unless it is the row of a token's bearer.
_KEYS: Final = """
    SELECT e.position, CASE
        WHEN e.key_id IS NOT NULL AND k.key_id IS NULL THEN 'creator_keys.key_id'
        WHEN k.wrapped IS NULL AND k.key_id IS NOT NULL AND NOT EXISTS (
            SELECT FROM events x
            WHERE x.ledger_id = e.ledger_id AND x.stream_id = e.creator_stream AND x.type = 'CreatorErased'
        ) THEN 'creator_keys.wrapped'
        WHEN e.actor_key IS NOT NULL AND a.key_id IS NULL THEN 'api_keys.key_id'
        WHEN a.kind = 'key' AND a.role <> e.actor_role THEN 'api_keys.role'
    END
    FROM events e
    LEFT JOIN creator_keys k ON k.ledger_id = e.ledger_id AND k.key_id = e.key_id
    LEFT JOIN api_keys a ON a.ledger_id = e.ledger_id AND a.key_id = e.actor_key
    WHERE e.ledger_id = %b AND e.position > %b AND e.position <= %b
    AND (
        (e.key_id IS NOT NULL AND k.key_id IS NULL)
        OR (k.key_id IS NOT NULL AND k.wrapped IS NULL AND NOT EXISTS (
            SELECT FROM events x
            WHERE x.ledger_id = e.ledger_id AND x.stream_id = e.creator_stream AND x.type = 'CreatorErased'
        ))
        OR (e.actor_key IS NOT NULL AND a.key_id IS NULL)
        OR (a.kind = 'key' AND a.role <> e.actor_role)
    )
    ORDER BY e.position
    LIMIT 1
"""
_KEY_PROBLEMS: Final = {
    "creator_keys.key_id": "the key of its sealed part is not in the table of keys",
    "creator_keys.wrapped": "the key of its sealed part was removed, and no erasure of the creator is recorded",
    "api_keys.key_id": "the API key that recorded it is not in the table of keys",
    "api_keys.role": "the API key that recorded it had another role then",
}


@dataclass(slots=True)
class Pass:
    """A pass over a whole log: it follows the rows from the first on, and knows the tree that they make.

    Attributes:
        size: how far it goes: the size that was signed last when it began.
        root: the root that was signed for this size.
        began_at: when it began.

    """

    size: int
    root: bytes
    began_at: datetime
    edge: TreeEdge = field(default_factory=TreeEdge)

    @property
    def complete(self) -> bool:
        """Whether everything was compared."""
        return self.edge.size >= self.size


class LogCheck:
    """Compares over one session, which sees every ledger."""

    def __init__(self, connection: psycopg.Connection, store: TreeStore, named: dict[bytes, str | None]) -> None:
        """Take the session, what reads trees over it, and what is known already of rows that were changed."""
        self._named = named
        self._cursor: psycopg.Cursor[Any] = connection.cursor(binary=True)
        self._store = store

    def stretch(self, ledger: LedgerLog, after: int, upto: int) -> tuple[list[bytes], Difference | None]:
        """Compare the events after a position, at most `STRETCH`, with their leaf hashes and their keys.

        Returns:
            The leaf hashes of the rows, as far as they are right, and the first difference.

        """
        upto = min(upto, after + STRETCH)
        sealed = self._leaves(ledger, after, upto)
        events = list(stored_events(self._cursor, ledger.ledger_id, after, upto - after))
        right: list[bytes] = []
        for position in range(after + 1, upto + 1):
            i = position - after - 1
            event = events[i] if i < len(events) else None
            if event is None or event.position != position:
                message = f"Event {position} of ledger {ledger.name} is missing."
                return right, Difference("events", position, "events", message)
            if i >= len(sealed):
                message = f"The tiles of ledger {ledger.name} do not have the hash of event {position}."
                return right, Difference("tree", position, "log_tiles.hashes", message)
            try:
                leaf = leaf_hash(entry_of(ledger.log_id, event))
            except UnencodableEvent:
                leaf = b""
            if leaf != sealed[i]:
                return right, self._changed(ledger, events, i, sealed[i])
            right.append(leaf)
        return right, self._keys(ledger, after, upto)

    def roots(self, ledger: LedgerLog, signed: Checkpoint, resigned: str) -> Difference | None:
        """Compare what the tiles lead to with the checkpoint that was signed last, and what is served with that.

        Args:
            ledger: whose log.
            signed: the checkpoint that was signed last, from outside the database.
            resigned: the same, signed again with all keys: Ed25519 gives the same signature for the same text.

        """
        size = signed.size
        root = self._root_at(ledger, size)
        if root != signed.root:
            message = f"The tiles of ledger {ledger.name} do not lead to the root that was signed at {size} events."
            return Difference("tree", None, "log_tiles.hashes", message)
        served = self._store.served(ledger)
        if served is None:
            return None
        note, served_size, _ = served
        try:
            checkpoint = Checkpoint.parse(note.partition("\n\n")[0].encode() + b"\n")
        except MalformedCheckpoint:
            checkpoint = None
        problem = None
        if checkpoint is None or checkpoint.origin != signed.origin or checkpoint.size != served_size:
            problem = "is not one of this log"
        elif checkpoint.size > size:
            # It was signed after the file was read.
            return None
        elif checkpoint.size == size and _first_signature(note) not in resigned.split("\n"):
            problem = f"is not the one that was signed at {size} events"
        elif checkpoint.root != self._root_at(ledger, checkpoint.size):
            problem = f"has another root than the tiles at {checkpoint.size} events"
        if problem is None:
            return None
        message = f"The checkpoint of ledger {ledger.name} that is served {problem}."
        return Difference("tree", None, "log_trees.checkpoint", message)

    def advance(self, ledger: LedgerLog, one: Pass, found: bytearray, known: bytes) -> Difference | None:
        """Take a pass a stretch further; at its end, compare the root of the rows with the one that was signed.

        Args:
            ledger: whose log.
            one: the pass.
            found: the hashes of its full tiles, to which those of this stretch are added.
            known: the hashes of full tiles that were right before.

        """
        after = one.edge.size
        leaves, difference = self.stretch(ledger, after, one.size)
        if difference is not None:
            return difference
        grown = one.edge.grow(leaves)
        stored = self._store.tiles(ledger, grown)
        for tile, hashes in sorted(grown.items()):
            if tile.level == 0 and len(hashes) == WIDTH * HASH_BYTES:
                place = tile.index * HASH_BYTES
                found += root_of(split_hashes(hashes))
                if known[place : place + HASH_BYTES] not in {b"", bytes(found[place:])}:
                    first, last = tile.index * WIDTH + 1, (tile.index + 1) * WIDTH
                    message = (
                        f"Events {first} to {last} of ledger {ledger.name} are not those that were sealed: their rows "
                        "and the tiles were both changed."
                    )
                    return Difference("events", first, "events and log_tiles", message)
            if not stored.get(tile, b"").startswith(hashes):
                message = (
                    f"Tile {tile.level}/{tile.index} of ledger {ledger.name} does not follow from the events up to "
                    f"position {one.edge.size}."
                )
                return Difference("tree", None, "log_tiles.hashes", message)
        if one.complete and one.edge.root != one.root:
            message = (
                f"The {one.size} events of ledger {ledger.name} do not have the root that was signed: rows and tiles "
                "were both changed."
            )
            return Difference("events", None, "events and log_tiles", message)
        return None

    def _keys(self, ledger: LedgerLog, after: int, upto: int) -> Difference | None:
        row = self._cursor.execute(_KEYS, (ledger.ledger_id, after, upto), prepare=True).fetchone()
        if row is None:
            return None
        position, place = row
        message = f"Event {position} of ledger {ledger.name} and {place} differ: {_KEY_PROBLEMS[place]}."
        return Difference("keys", position, place, message)

    def _leaves(self, ledger: LedgerLog, after: int, upto: int) -> list[bytes]:
        """Return the sealed leaf hashes of the positions after `after`, up to the first that is missing."""
        tiles = [TileId(0, index) for index in range(after // WIDTH, (upto - 1) // WIDTH + 1)]
        stored = self._store.tiles(ledger, tiles)
        found: list[bytes] = []
        for tile in tiles:
            hashes = split_hashes(stored.get(tile, b""))
            found += hashes
            if len(hashes) < WIDTH:
                break
        return found[after % WIDTH :][: upto - after]

    def _changed(self, ledger: LedgerLog, events: Sequence[StoredEvent], i: int, leaf: bytes) -> Difference:
        """Say what is wrong with a row that does not have its leaf hash."""
        event = events[i]
        position = event.position
        row = self._cursor.execute(_ROW, (ledger.ledger_id, position)).fetchone()
        column = None
        if row is not None:
            body, sealed = row
            now = event._replace(body=hashed(body), sealed=None if sealed is None else hashed(sealed))
            # To find out takes seconds, and the same row is compared again each minute.
            known = hashlib.sha256(f"{now}{leaf!r}".encode()).digest()
            if known not in self._named:
                self._named.clear()
                related = [*events[max(0, i - NEIGHBOURS) : i], *events[i + 1 : i + 1 + NEIGHBOURS]]
                same = self._cursor.execute(_SAME_STREAM, (ledger.ledger_id, event.stream_id, position)).fetchall()
                for (other,) in same:
                    related += stored_events(self._cursor, ledger.ledger_id, other - 1, 1)
                self._named[known] = changed_column(ledger.log_id, StoredRow(now, body, sealed), leaf, related)
            column = self._named[known]
        where = "its row was changed" if column is None else f"its column {column} was changed"
        message = f"Event {position} of ledger {ledger.name} is not the one that was sealed: {where}."
        return Difference("events", position, "events" if column is None else f"events.{column}", message)

    def _root_at(self, ledger: LedgerLog, size: int) -> bytes | None:
        subtrees = complete_subtrees(range(size))
        tiles = self._store.tiles(ledger, {tile_of(subtree)[0] for subtree in subtrees})
        try:
            return join([subtree_hash(subtree, tiles) for subtree in subtrees])
        except LookupError:
            return None


def _first_signature(note: str) -> str:
    return note.partition("\n\n")[2].partition("\n")[0]
