"""Seals the heads of each log: once an hour, or after 65,536 events, if anything happened.

The heads are kept in a table, and only those of keys with new events change. Their root is recorded as `HeadsSealed`,
an event like any other, so it is signed and witnessed with the rest. Nothing of this delays a command or the sealer.
Heads are read in the order of their keys, some thousand at a time, so memory does not grow with them.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import psycopg

from domain.heads import (
    FORMAT,
    KEY_BYTES,
    NO_EVENTS,
    VIDEO_SALT,
    Head,
    creator_key,
    head_leaf_hashes,
    heads_stream,
    stream_key,
    video_key,
)
from domain.log import Log
from domain.log_tiles import WIDTH, split_hashes
from domain.merkle import HASH_BYTES
from infra.errors import Unavailable
from infra.jobs.log_events import record
from infra.postgres.pool import SHORT, session
from infra.postgres.roles import WORKER
from infra.postgres.timelines import ServerConnection
from infra.proof.head_blocks import BLOCK_HEADS, HeadBlocks
from projections.engine.advisory_locks import AdvisoryLock
from projections.engine.array_columns import Bigints, Byteas

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from infra.runtime import Runtime

EVERY_S: Final = 3_600.0
EVERY_EVENTS: Final = 65_536
LOOK_EVERY_S: Final = 60.0
AWAY_S: Final = 5.0
# Events that are added at a time, and heads that are hashed at a time.
STRETCH: Final = 8_192
HASHED: Final = 32 * BLOCK_HEADS
# Of more new events, what they add is sorted before it is stored, in rounds of so many events: 38 MB at most.
FEW_EVENTS: Final = 8 * STRETCH
ROUND: Final = 32 * STRETCH
PARTS: Final = 64
_ADDED_BYTES: Final = KEY_BYTES + HASH_BYTES

# Logs of present generations with events that the newest heads do not have, besides those that record heads.
_DUE: Final = """
    SELECT l.ledger_id, l.name, l.log_id, t.generation, coalesce(s.upto, 0), t.checkpoint_size
    FROM ledgers l
    JOIN log_trees t ON t.ledger_id = l.ledger_id
    JOIN events f ON f.ledger_id = l.ledger_id AND f.position = 1
    LEFT JOIN sealed_heads s ON s.ledger_id = t.ledger_id AND s.generation = t.generation
    WHERE t.checkpoint_size > coalesce(s.position, 0) AND t.stopped IS NULL
    AND t.generation = (SELECT max(h.generation) FROM histories h WHERE h.ledger_id = l.ledger_id)
    AND (
        coalesce(s.sealed_at, f.recorded_at) <= clock_timestamp() - make_interval(secs => %s)
        OR t.checkpoint_size - coalesce(s.upto, 0) >= %s
    )
    ORDER BY l.ledger_id
"""
_EVENTS: Final = """
    SELECT uuid_send(e.stream_id), uuid_send(e.creator_stream), CASE e.type WHEN 'CodeGenerated' THEN e.video_id END
    FROM events e
    WHERE e.ledger_id = %b AND e.position > %b AND e.position <= %b
    ORDER BY e.position
"""
_TILES: Final = """
    SELECT t.index, t.hashes
    FROM log_tiles t
    WHERE t.ledger_id = %b AND t.generation = %b AND t.level = 0 AND t.index BETWEEN %b AND %b
    ORDER BY t.index
"""
_KNOWN: Final = "SELECT key, count, chain FROM log_heads WHERE ledger_id = %b AND generation = %b AND key = ANY (%b)"
_STORE: Final = """
    INSERT INTO log_heads (ledger_id, generation, key, count, chain)
    SELECT %b, %b, x.key, x.count, x.chain
    FROM unnest(%b::bytea[], %b::bigint[], %b::bytea[]) AS x (key, count, chain)
    ON CONFLICT (ledger_id, generation, key) DO UPDATE SET count = excluded.count, chain = excluded.chain
"""
_ALL: Final = "SELECT key, count, chain FROM log_heads WHERE ledger_id = %s AND generation = %s ORDER BY key"
_SEALED: Final = """
    INSERT INTO sealed_heads (ledger_id, generation, upto, keys, root, blocks, position)
    VALUES (%s, %s, %s, %s, %s, %s, %s)
    ON CONFLICT (ledger_id, generation) DO UPDATE
    SET upto = excluded.upto, keys = excluded.keys, root = excluded.root, blocks = excluded.blocks,
        position = excluded.position, sealed_at = clock_timestamp()
"""
_LEAD: Final = "SELECT pg_try_advisory_lock(%s) AND NOT pg_is_in_recovery()"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Due:
    """A log whose heads are to be sealed up to a position."""

    ledger_id: int
    name: str
    log_id: UUID
    generation: int
    after: int
    upto: int


class HeadsJob:
    """Seals the heads of all logs, for as long as it runs."""

    def __init__(self, opened: Runtime, every_s: float = EVERY_S) -> None:
        """Take the runtime of a worker, and the seconds between two heads of a log."""
        self._opened = opened
        self._every_s = every_s
        self._session = session(opened.database.conninfo, WORKER) | {"application_name": "sparkledger heads"}

    async def run(self) -> None:
        """Seal heads until cancelled. While the database is away, it retries."""
        while True:
            try:
                await self.round()
                await asyncio.sleep(LOOK_EVERY_S)
            except (Unavailable, *SHORT) as error:
                log.warning("Heads are sealed later: %s", " ".join(str(error).split()))
                await asyncio.sleep(AWAY_S)

    async def round(self) -> None:
        """Seal the heads of each log that is due."""
        connection = await asyncio.to_thread(ServerConnection.connect, **self._session | {"autocommit": False})
        try:
            due = await asyncio.to_thread(_look, connection, self._every_s)
            for one in due:
                try:
                    await self._seal(connection, one)
                except LookupError as error:
                    # The others must not wait for one whose log is damaged.
                    log.warning("The heads of ledger %s are sealed later: %s", one.name, error)
                    await asyncio.to_thread(connection.rollback)
        finally:
            await asyncio.to_thread(connection.close)

    async def _seal(self, connection: psycopg.Connection, due: _Due) -> None:
        """Bring the heads of a log up to date, record their root, and only then keep them."""
        salt = (await self._opened.keyring.ledger(due.ledger_id)).derived(VIDEO_SALT)
        blocks = await asyncio.to_thread(_bring_up, connection, due, salt)
        facts = {
            "generation": due.generation,
            "upto": due.upto,
            "root": base64.b64encode(blocks.root).decode(),
            "keys": blocks.heads,
            "format": FORMAT,
            "video_salt_hash": base64.b64encode(hashlib.sha256(salt).digest()).decode(),
        }
        stream = heads_stream(due.log_id)
        position = await record(self._opened, due.ledger_id, None, stream, [(Log.HeadsSealed, facts)], role="clock")
        await asyncio.to_thread(_keep, connection, due, blocks, position)


def _look(connection: psycopg.Connection, every_s: float) -> list[_Due]:
    """Return the logs that are due; none if another process does this."""
    with connection.transaction():
        leads = connection.execute(_LEAD, (AdvisoryLock.HEADS,)).fetchone()
        if leads is None or not leads[0]:
            return []
        rows = connection.execute(_DUE, (every_s, EVERY_EVENTS)).fetchall()
    return [_Due(*row) for row in rows]


def _bring_up(connection: psycopg.Connection, due: _Due, salt: bytes) -> HeadBlocks:
    """Add all events to the heads, in a transaction that goes on; return the tree of all heads.

    Raises:
        LookupError: events or tiles are missing.

    """
    if due.upto - due.after <= FEW_EVENTS:
        for after in range(due.after, due.upto, STRETCH):
            _store(connection, due, _by_key(_added(connection, due, salt, after)), fresh=after == 0)
    else:
        for after in range(due.after, due.upto, ROUND):
            _add_many(connection, due, salt, after)
    blocks = HeadBlocks()
    with connection.cursor("heads", binary=True) as cursor:
        cursor.execute(_ALL, (due.ledger_id, due.generation))
        while rows := cursor.fetchmany(HASHED):
            blocks.grow([row[0] for row in rows], head_leaf_hashes(rows))
    return blocks


def _added(connection: psycopg.Connection, due: _Due, salt: bytes, after: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the key of each head that a stretch of events adds to, with the hash that is added."""
    cursor = connection.cursor(binary=True)
    first, upto = after // WIDTH, min(after + STRETCH, due.upto)
    tiles = cursor.execute(_TILES, (due.ledger_id, due.generation, first, (upto - 1) // WIDTH)).fetchall()
    leaves = [leaf for _, hashes in tiles for leaf in split_hashes(hashes)][after - first * WIDTH :]
    events = cursor.execute(_EVENTS, (due.ledger_id, after, upto)).fetchall()
    if len(events) != upto - after or len(leaves) < len(events):
        raise LookupError(f"events or tiles of ledger {due.name} are missing")
    for (stream_id, creator_stream, video_id), leaf in zip(events, leaves, strict=False):
        yield _stream_key(stream_id), leaf
        yield _creator_key(creator_stream), leaf
        if video_id is not None:
            yield video_key(salt, video_id), leaf


@lru_cache(maxsize=STRETCH)
def _stream_key(stream_id: bytes) -> bytes:
    return stream_key(UUID(bytes=stream_id))


@lru_cache(maxsize=STRETCH)
def _creator_key(creator_stream: bytes) -> bytes:
    return creator_key(UUID(bytes=creator_stream))


def _by_key(added: Iterable[tuple[bytes, bytes]]) -> dict[bytes, list[bytes]]:
    by_key: dict[bytes, list[bytes]] = {}
    for key, leaf in added:
        by_key.setdefault(key, []).append(leaf)
    return by_key


def _add_many(connection: psycopg.Connection, due: _Due, salt: bytes, after: int) -> None:
    """Add a round of events in the order of their keys: neighbours in the index are written together."""
    parts = [bytearray() for _ in range(PARTS)]
    for begin in range(after, min(after + ROUND, due.upto), STRETCH):
        for key, leaf in _added(connection, due, salt, begin):
            parts[key[0] * PARTS >> 8] += key + leaf
    # PostgreSQL stores one part while the next is taken apart.
    with ThreadPoolExecutor(1) as executor:
        stored = executor.submit(_store, connection, due, {}, fresh=True)
        for part in parts:
            pieces = [bytes(part[i : i + _ADDED_BYTES]) for i in range(0, len(part), _ADDED_BYTES)]
            part.clear()
            by_key = _by_key((piece[:KEY_BYTES], piece[KEY_BYTES:]) for piece in pieces)
            stored.result()
            stored = executor.submit(_store, connection, due, by_key, fresh=after == 0)
        stored.result()


def _store(connection: psycopg.Connection, due: _Due, added: Mapping[bytes, Sequence[bytes]], *, fresh: bool) -> None:
    """Add to heads; `fresh`, where none of their keys is stored."""
    cursor = connection.cursor(binary=True)
    keys = sorted(added)  # neighbours in the index are then written together
    place: tuple[Any, ...] = (due.ledger_id, due.generation)
    stored = [] if fresh else cursor.execute(_KNOWN, (*place, Byteas(keys))).fetchall()
    known = {key: Head(events, chain) for key, events, chain in stored}
    heads = [known.get(key, NO_EVENTS).after(added[key]) for key in keys]
    columns = Byteas(keys), Bigints([head.events for head in heads]), Byteas([head.chain for head in heads])
    cursor.execute(_STORE, (*place, *columns))


def _keep(connection: psycopg.Connection, due: _Due, blocks: HeadBlocks, position: int) -> None:
    place = (due.ledger_id, due.generation, due.upto)
    connection.execute(_SEALED, (*place, blocks.heads, blocks.root, blocks.stored, position))
    connection.commit()
