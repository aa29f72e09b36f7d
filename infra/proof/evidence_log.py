"""What evidence is made from: a kept checkpoint, the entries up to it, and events with every stored column."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID

from domain.log_entry import ENTRY_BYTES, Bytes, StoredEvent, hashed
from domain.log_tiles import WIDTH, TreeEdge
from domain.merkle import InvalidProof, leaf_hash, range_parts, verify_range
from infra.proof.checkpoints import Checkpoint
from infra.proof.proofs import ProofFailed, Proofs
from projections.engine.array_columns import Bigints, Uuids

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from infra.postgres.pool import Database, LedgerConnection

# Events that are read at a time.
PAGE_EVENTS: Final = 500
# Positions that a bundle finds by streams: of one creator with more events, the whole ledger is the evidence.
MAX_POSITIONS: Final = 1_000_000
# Events of a range that is not the whole ledger: their hashes are kept until its end.
MAX_RANGE: Final = 100_000
_NO_ROOT: Final = "the stored events do not lead to the signed root"
# Before each entry in a bundle of entries.
_LENGTH_BYTES: Final = 2

# The one that was kept for the size; else the newest that witnesses have cosigned, else the newest.
_CHECKPOINT: Final = """
    WITH log AS (
        SELECT l.log_id, t.ledger_id, t.generation, t.origin, t.verifier_keys, t.checkpoint, t.checkpoint_size
        FROM ledgers l
        JOIN log_trees t ON t.ledger_id = l.ledger_id
        WHERE l.ledger_id = %(ledger)s AND t.checkpoint IS NOT NULL
        AND t.generation = (SELECT max(h.generation) FROM histories h WHERE h.ledger_id = l.ledger_id)
    ), known AS (
        SELECT 1 AS rank, k.size, k.note, true AS kept
        FROM evidence_checkpoints k JOIN log USING (ledger_id, generation)
        UNION ALL
        SELECT 2, w.size, w.note, false FROM witnessed_checkpoints w JOIN log USING (ledger_id, generation)
        UNION ALL
        SELECT 3, log.checkpoint_size, log.checkpoint, false FROM log
    )
    SELECT log.log_id, log.generation, log.origin, log.verifier_keys, known.note, known.kept
    FROM log CROSS JOIN known
    WHERE CASE WHEN %(size)s::bigint IS NULL THEN known.rank > 1 ELSE known.size = %(size)s END
    ORDER BY known.rank, known.size DESC
    LIMIT 1
"""

_KEEP: Final = """
    INSERT INTO evidence_checkpoints (ledger_id, generation, size, note) VALUES (%s, %s, %s, %s)
    ON CONFLICT DO NOTHING
"""

_ENTRIES: Final = "SELECT entries, bundle FROM log_entries(%b, %b, %b, %b)"

_COLUMNS: Final = ", ".join(
    "octet_length(e.sealed), sha256(e.sealed)" if name == "sealed" else f"e.{name}" for name in StoredEvent._fields
)
_RANGE: Final = f"""
    SELECT {_COLUMNS}
    FROM events e
    WHERE e.ledger_id = %b AND e.position > %b AND e.position <= %b
    ORDER BY e.position
    LIMIT %b
"""
_AT: Final = f"""
    SELECT {_COLUMNS}
    FROM unnest(%b::bigint[]) AS x (position)
    JOIN events e ON e.ledger_id = %b AND e.position = x.position
    ORDER BY e.position
"""
_POSITIONS: Final = """
    SELECT e.position
    FROM events e
    WHERE e.ledger_id = %b AND e.stream_id = ANY (%b) AND e.position <= %b
    ORDER BY e.position
    LIMIT %b
"""
# By stream, for there is no index of types.
_ERASURES: Final = """
    SELECT e.stream_id, e.position
    FROM events e
    WHERE e.ledger_id = %b AND e.stream_id = ANY (%b) AND e.type = 'CreatorErased' AND e.position <= %b
"""


class EvidenceRow(NamedTuple):
    """An event with every stored column, and the bytes of its clear body."""

    event: StoredEvent
    body: bytes


@dataclass(frozen=True, slots=True)
class SignedLog:
    """The log of a ledger as of one checkpoint.

    Attributes:
        note: the signed checkpoint, with the cosignatures that it was kept with.

    """

    ledger_id: int
    log_id: UUID
    generation: int
    origin: str
    verifier_keys: list[str]
    note: str
    checkpoint: Checkpoint

    @property
    def size(self) -> int:
        """How many events the checkpoint covers."""
        return self.checkpoint.size


class EvidenceLog:
    """Reads logs for evidence, up to a checkpoint."""

    def __init__(self, database: Database) -> None:
        """Take the sessions to read with."""
        self._database = database

    async def keep(self, ledger_id: int, size: int | None) -> SignedLog | None:
        """Return the log as of a checkpoint, which is kept from now on.

        Args:
            ledger_id: whose log.
            size: of a checkpoint that was kept before, or is the newest; None for the newest that witnesses have
                cosigned, or the newest if none has.

        Returns:
            The log; None if there is no such checkpoint.

        """

        async def choose(connection: LedgerConnection) -> SignedLog | None:
            found = await _chosen(connection, ledger_id, size)
            if found is None or found[0].size == 0 or found[1]:
                return None if found is None else found[0]
            log = found[0]
            await connection.execute(_KEEP, (ledger_id, log.generation, log.size, log.note))
            # Another may have kept it at the same moment, with other cosignatures.
            kept = await _chosen(connection, ledger_id, log.size)
            return log if kept is None else kept[0]

        return await self._database.read(ledger_id, choose)

    async def entries(self, log: SignedLog, first: int, last: int) -> AsyncGenerator[bytes]:
        """Yield the entries at positions `first` to `last`, joined, some hundred at a time.

        Raises:
            ProofFailed: they do not lead to the signed root. What was yielded before is no evidence then.

        """
        whole = (first, last) == (1, log.size)
        edge, leaves = TreeEdge(), list[bytes]()
        for begin in range(first, last + 1, WIDTH):
            bundle = await self._bundle(log, begin, min(begin + WIDTH - 1, last))
            size = _LENGTH_BYTES + ENTRY_BYTES
            entries = [bundle[i + _LENGTH_BYTES : i + size] for i in range(0, len(bundle), size)]
            hashes = [leaf_hash(entry) for entry in entries]
            if whole:
                edge.grow(hashes)
            else:
                leaves += hashes
            yield b"".join(entries)
        try:
            beside = await self.hashes_beside(log, first, last)
            if not whole:
                verify_range(first - 1, leaves, log.size, beside, log.checkpoint.root)
            elif edge.root != log.checkpoint.root:
                raise ProofFailed(_NO_ROOT)
        except InvalidProof as error:
            raise ProofFailed(_NO_ROOT) from error

    async def hashes_beside(self, log: SignedLog, first: int, last: int) -> list[bytes]:
        """Return the hashes of the tree beside a run of entries: with the run, they give the root."""
        if (first, last) == (1, log.size):
            return []
        parts = range_parts(first - 1, last, log.size)
        return await Proofs(self._database).hashes_of(log.ledger_id, log.generation, parts)

    async def pages(self, log: SignedLog, wanted: range | Sequence[int]) -> AsyncGenerator[list[EvidenceRow]]:
        """Yield events at positions, in ascending order."""
        for begin in range(0, len(wanted), PAGE_EVENTS):
            some = wanted[begin : begin + PAGE_EVENTS]
            if isinstance(wanted, range):
                found = await self._rows(log.ledger_id, _RANGE, (log.ledger_id, some[0] - 1, some[-1], PAGE_EVENTS))
            else:
                found = await self._rows(log.ledger_id, _AT, (Bigints(list(some)), log.ledger_id))
            rows = [_row(row) for row in found]
            if [row.event.position for row in rows] != list(some):
                raise ProofFailed(f"events {some[0]} to {some[-1]} are not all there")
            yield rows

    async def positions(self, log: SignedLog, streams: Sequence[UUID]) -> list[int]:
        """Return the positions of all events of streams."""
        parameters = (log.ledger_id, Uuids(streams), log.size, MAX_POSITIONS)
        return [row[0] for row in await self._rows(log.ledger_id, _POSITIONS, parameters)]

    async def erasures(self, log: SignedLog, creator_streams: Sequence[UUID]) -> dict[UUID, int]:
        """Return where creators were erased, by their streams."""
        if not creator_streams:
            return {}
        return dict(await self._rows(log.ledger_id, _ERASURES, (log.ledger_id, Uuids(creator_streams), log.size)))

    async def _bundle(self, log: SignedLog, first: int, last: int) -> bytes:
        ((count, bundle),) = await self._rows(log.ledger_id, _ENTRIES, (log.ledger_id, log.generation, first, last))
        if count != last - first + 1 or len(bundle) != count * (_LENGTH_BYTES + ENTRY_BYTES):
            raise ProofFailed(f"entries {first} to {last} are not all there")
        return bytes(bundle)

    async def _rows(self, ledger_id: int, query: str, parameters: Sequence[Any]) -> list[Any]:
        async def run(connection: LedgerConnection) -> list[Any]:
            cursor = connection.cursor(binary=True)
            await cursor.execute(query, parameters)
            return await cursor.fetchall()

        return await self._database.read(ledger_id, run)


async def _chosen(connection: LedgerConnection, ledger_id: int, size: int | None) -> tuple[SignedLog, bool] | None:
    cursor = connection.cursor(binary=True)
    await cursor.execute(_CHECKPOINT, {"ledger": ledger_id, "size": size})
    row = await cursor.fetchone()
    if row is None:
        return None
    log_id, generation, origin, keys, note, kept = row
    text, _, _ = note.partition("\n\n")
    checkpoint = Checkpoint.parse(f"{text}\n".encode())
    return SignedLog(ledger_id, log_id, generation, origin, keys, note, checkpoint), kept


def _row(row: Sequence[Any]) -> EvidenceRow:
    *columns, body, sealed_length, sealed_hash = row
    sealed = None if sealed_length is None else Bytes(sealed_length, sealed_hash)
    return EvidenceRow(StoredEvent._make((*columns, hashed(body), sealed)), body)
