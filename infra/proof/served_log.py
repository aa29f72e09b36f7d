"""Reads of signed logs as they are served: checkpoints, tiles, bundles of entries.

Row-level security decides what a session sees: the log of the ledger that it is bound to, and public logs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from domain.log_tiles import WIDTH, TileRequest
from domain.merkle import HASH_BYTES

if TYPE_CHECKING:
    from datetime import datetime

    from infra.postgres.pool import Database, LedgerConnection

# A tile may have grown since, and is served as far as it was asked for.
_TREE: Final = """
    SELECT ledger_id, generation, public, size, checkpoint
    FROM log_trees
    WHERE ledger = %s AND generation = %s
"""

_PUBLIC: Final = "SELECT ledger, generation FROM log_trees WHERE public"

_TILE: Final = """
    SELECT substring(hashes FROM 1 FOR %s)
    FROM log_tiles
    WHERE ledger_id = %s AND generation = %s AND level = %s AND index = %s AND length(hashes) >= %s
"""

_ENTRIES: Final = "SELECT entries, bundle FROM log_entries(%s, %s, %s, %s)"

_WITNESSED: Final = """
    SELECT note FROM witnessed_checkpoints WHERE ledger_id = %s AND generation = %s ORDER BY size DESC LIMIT 1
"""

_WITNESSES: Final = """
    SELECT w.witness, k.verifier_key, w.size, w.cosigned_at
    FROM log_witnesses w
    LEFT JOIN LATERAL (
        SELECT k.verifier_key FROM witness_keys k
        WHERE k.ledger_id = w.ledger_id AND starts_with(k.verifier_key, w.witness || '+')
        ORDER BY k.first_at DESC
        LIMIT 1
    ) k ON true
    WHERE w.ledger_id = %s AND w.generation = %s
    ORDER BY w.witness
"""

_SUMMARY: Final = """
    SELECT l.log_id, h.history, h.generation, t.origin, t.verifier_keys, t.checkpoint_size, t.checkpoint, t.stopped
    FROM ledgers l
    JOIN histories h ON h.ledger_id = l.ledger_id
    LEFT JOIN log_trees t ON t.ledger_id = h.ledger_id AND t.generation = h.generation
    WHERE l.ledger_id = %s
    ORDER BY h.generation DESC
    LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class ServedLog:
    """A log that a session may read.

    Attributes:
        size: how many events are in its tiles; the checkpoint may still be of fewer.
        checkpoint: the newest signed checkpoint; None while the log begins.

    """

    ledger_id: int
    generation: int
    public: bool
    size: int
    checkpoint: str | None


@dataclass(frozen=True, slots=True)
class LogSummary:
    """The log of a ledger in its present generation; without origin and keys until its sealer has begun it."""

    log_id: UUID
    history: UUID
    generation: int
    origin: str | None
    verifier_keys: list[str] | None
    size: int | None
    checkpoint: str | None
    stopped: str | None


@dataclass(frozen=True, slots=True)
class LogWitness:
    """A witness that is asked to cosign a log, and what it has cosigned; without a key before the first time."""

    name: str
    verifier_key: str | None
    size: int
    cosigned_at: datetime | None


class ServedLogs:
    """Reads logs for the API."""

    def __init__(self, database: Database) -> None:
        """Take the sessions to read with."""
        self._database = database

    async def find(self, ledger: str, generation: int, reader: int | None) -> ServedLog | None:
        """Return a log by the name of its ledger.

        Args:
            ledger: the name.
            generation: the generation of its log.
            reader: the ledger of the key that asks; None if there is no key, which sees public logs only.

        """
        row = await self._row(reader, _TREE, (ledger, generation))
        return None if row is None else ServedLog(*row)

    async def public(self) -> frozenset[tuple[str, int]]:
        """Return the public logs: the names of their ledgers, and their generations."""

        async def run(connection: LedgerConnection) -> frozenset[tuple[str, int]]:
            cursor = connection.cursor(binary=True)
            await cursor.execute(_PUBLIC)
            return frozenset(await cursor.fetchall())

        return await self._database.read(None, run)

    async def tile(self, log: ServedLog, wanted: TileRequest, reader: int | None) -> bytes | None:
        """Return a tile or a bundle of entries, or None if the log does not have it, or not as far."""
        level = wanted.level or 0
        if wanted.index * WIDTH + wanted.width > log.size >> (8 * level):
            return None
        if wanted.level is None:
            first = wanted.index * WIDTH + 1
            row = await self._row(reader, _ENTRIES, (log.ledger_id, log.generation, first, first + wanted.width - 1))
            return bytes(row[1]) if row is not None and row[0] == wanted.width else None
        length = wanted.width * HASH_BYTES
        place = (length, log.ledger_id, log.generation, level, wanted.index, length)
        row = await self._row(reader, _TILE, place)
        return None if row is None else bytes(row[0])

    async def witnessed(self, log: ServedLog, reader: int | None) -> str | None:
        """Return the newest checkpoint that witnesses have signed, or None if none has."""
        row = await self._row(reader, _WITNESSED, (log.ledger_id, log.generation))
        return None if row is None else str(row[0])

    async def summary(self, ledger_id: int) -> LogSummary:
        """Return what there is to know of a ledger's log.

        Raises:
            LookupError: there is no such ledger.

        """
        row = await self._row(ledger_id, _SUMMARY, (ledger_id,))
        if row is None:
            message = f"there is no ledger {ledger_id}"
            raise LookupError(message)
        return LogSummary(*row)

    async def witnesses(self, ledger_id: int, generation: int) -> list[LogWitness]:
        """Return the witnesses of a log."""

        async def run(connection: LedgerConnection) -> list[LogWitness]:
            cursor = connection.cursor(binary=True)
            await cursor.execute(_WITNESSES, (ledger_id, generation))
            return [LogWitness(*row) for row in await cursor.fetchall()]

        return await self._database.read(ledger_id, run)

    async def _row(self, reader: int | None, query: str, parameters: tuple[Any, ...]) -> Any:
        async def run(connection: LedgerConnection) -> Any:
            cursor = connection.cursor(binary=True)
            await cursor.execute(query, parameters)
            return await cursor.fetchone()

        return await self._database.read(reader, run)
