"""What evidence is made from: a kept checkpoint, the entries up to it, and events with every stored column."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID

from domain.log_entry import ENTRY_BYTES, Bytes, StoredEvent, hashed
from domain.log_tiles import WIDTH, TreeEdge
from domain.merkle import InvalidProof, inclusion_parts, leaf_hash, range_parts, verify_range
from infra.proof.checkpoints import Checkpoint
from infra.proof.head_blocks import BLOCK_HEADS, HeadBlocks, ProvenHead
from infra.proof.notes import SignedNote, VerifierKey
from infra.proof.proofs import ProofFailed, Proofs
from projections.engine.array_columns import Bigints, Byteas, Uuids

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
# Earlier checkpoints with cosignatures that a bundle has at most, to bound the times of its events.
MAX_COSIGNED: Final = 48
# Checkpoints with a time stamp that a bundle has at most.
MAX_STAMPED: Final = 12
# How often heads are read again that are sealed at the same moment.
HEADS_READS: Final = 3
# Inclusion proofs that are made at a time, so that nobody else waits for long.
SOME_PROOFS: Final = 50
# Entries that a run has at most besides its own, so that it reaches to such a checkpoint.
MAX_BESIDE: Final = 10_000
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
        SELECT 1 AS rank, k.size, k.note, k.witnesses, true AS kept
        FROM evidence_checkpoints k JOIN log USING (ledger_id, generation)
        UNION ALL
        SELECT 2, w.size, w.note, w.witnesses, false FROM witnessed_checkpoints w JOIN log USING (ledger_id, generation)
        UNION ALL
        SELECT 3, log.checkpoint_size, log.checkpoint, 0, false FROM log
    )
    SELECT log.log_id, log.generation, log.origin, log.verifier_keys, known.note, known.witnesses, known.kept,
        ARRAY(SELECT k.verifier_key FROM witness_keys k WHERE k.ledger_id = log.ledger_id ORDER BY k.verifier_key),
        ARRAY(
            SELECT x.key FROM log_handovers h CROSS JOIN unnest(h.verifier_keys) WITH ORDINALITY AS x (key, place)
            WHERE h.ledger_id = log.ledger_id AND h.generation = log.generation
            ORDER BY h.size, x.place
        )
    FROM log CROSS JOIN known
    WHERE CASE WHEN %(size)s::bigint IS NULL THEN known.rank > 1 ELSE known.size = %(size)s END
    ORDER BY known.rank, known.size DESC
    LIMIT 1
"""

_KEEP: Final = """
    INSERT INTO evidence_checkpoints (ledger_id, generation, size, note, witnesses) VALUES (%s, %s, %s, %s, %s)
    ON CONFLICT DO NOTHING
"""
# One that was kept without cosignatures stays so: the same evidence has the same bytes.
_COSIGNED: Final = """
    SELECT x.size
    FROM (
        SELECT w.ledger_id, w.generation, w.size FROM witnessed_checkpoints w
        UNION
        SELECT k.ledger_id, k.generation, k.size FROM evidence_checkpoints k WHERE k.witnesses > 0
    ) x
    WHERE x.ledger_id = %(ledger)s AND x.generation = %(generation)s AND x.size BETWEEN 1 AND %(size)s - 1
    AND NOT EXISTS (
        SELECT FROM evidence_checkpoints k
        WHERE k.ledger_id = x.ledger_id AND k.generation = x.generation AND k.size = x.size AND k.witnesses = 0
    )
    ORDER BY x.size
"""
_KEEP_COSIGNED: Final = """
    INSERT INTO evidence_checkpoints (ledger_id, generation, size, note, witnesses)
    SELECT w.ledger_id, w.generation, w.size, w.note, w.witnesses
    FROM witnessed_checkpoints w
    WHERE w.ledger_id = %s AND w.generation = %s AND w.size = ANY (%s)
    ON CONFLICT DO NOTHING
"""
_HANDOVERS: Final = """
    SELECT h.size, h.note
    FROM log_handovers h
    WHERE h.ledger_id = %s AND h.generation = %s AND h.size < %s
    ORDER BY h.size
"""
# Those that were there when the checkpoint of the evidence was kept: the same evidence has the same bytes.
_STAMPED: Final = """
    SELECT s.size
    FROM stamped_checkpoints s
    JOIN evidence_checkpoints k ON k.ledger_id = s.ledger_id AND k.generation = s.generation AND k.size = %(size)s
    WHERE s.ledger_id = %(ledger)s AND s.generation = %(generation)s AND s.size <= %(size)s AND s.stored_at <= k.kept_at
    ORDER BY s.size
"""
_STAMPS: Final = """
    SELECT s.size, s.note, s.response
    FROM stamped_checkpoints s
    WHERE s.ledger_id = %s AND s.generation = %s AND s.size = ANY (%s)
    ORDER BY s.size
"""
_HEADS: Final = """
    SELECT s.upto, s.keys, s.root, s.position, s.blocks
    FROM sealed_heads s
    WHERE s.ledger_id = %b AND s.generation = %b AND s.position <= %b
"""
_BLOCKS: Final = """
    SELECT x.first, h.key, h.count, h.chain
    FROM unnest(%b::bytea[]) AS x (first)
    CROSS JOIN LATERAL (
        SELECT y.key, y.count, y.chain
        FROM log_heads y
        WHERE y.ledger_id = %b AND y.generation = %b AND y.key >= x.first
        ORDER BY y.key
        LIMIT %b
    ) h
    ORDER BY h.key
"""
_KEPT_COSIGNED: Final = """
    SELECT k.size, k.note
    FROM evidence_checkpoints k
    WHERE k.ledger_id = %s AND k.generation = %s AND k.size = ANY (%s) AND k.witnesses > 0
    ORDER BY k.size
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
        witness_keys: the verifier keys of the witnesses that have cosigned it.

    """

    ledger_id: int
    log_id: UUID
    generation: int
    origin: str
    verifier_keys: list[str]
    note: str
    checkpoint: Checkpoint
    witness_keys: Sequence[str] = ()

    @property
    def size(self) -> int:
        """How many events the checkpoint covers."""
        return self.checkpoint.size


@dataclass(frozen=True, slots=True)
class Heads:
    """The heads of a log as an event of it has sealed them, as far as they were asked for.

    Attributes:
        upto: the position up to which they say everything.
        keys: how many heads there are.
        position: of the event.
        proven: those that were asked for, and for one that there is not its neighbours, in order.
        video_salt: by what heads of videos are found, if one was asked for.

    """

    upto: int
    keys: int
    position: int
    proven: Sequence[ProvenHead]
    video_salt: bytes | None = None


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
            log, _, witnesses = found
            await connection.execute(_KEEP, (ledger_id, log.generation, log.size, log.note, witnesses))
            # Another may have kept it at the same moment, with other cosignatures.
            kept = await _chosen(connection, ledger_id, log.size)
            return log if kept is None else kept[0]

        return await self._database.read(ledger_id, choose)

    async def cosigned_sizes(self, log: SignedLog) -> list[int]:
        """Return the sizes of earlier checkpoints that witnesses have cosigned, in ascending order."""

        async def read(connection: LedgerConnection) -> list[int]:
            place = {"ledger": log.ledger_id, "generation": log.generation, "size": log.size}
            return [row[0] for row in await (await connection.execute(_COSIGNED, place)).fetchall()]

        return await self._database.read(log.ledger_id, read)

    async def cosigned(self, log: SignedLog, sizes: Sequence[int]) -> list[tuple[int, str]]:
        """Return checkpoints of these sizes with their cosignatures; they are kept from now on."""

        async def keep(connection: LedgerConnection) -> list[tuple[int, str]]:
            place = (log.ledger_id, log.generation, list(sizes))
            await connection.execute(_KEEP_COSIGNED, place)
            return list(await (await connection.execute(_KEPT_COSIGNED, place)).fetchall())

        return await self._database.read(log.ledger_id, keep) if sizes else []

    async def stamped(
        self, log: SignedLog, positions: Sequence[int], run: tuple[int, int]
    ) -> list[tuple[int, str, bytes]]:
        """Return checkpoints with their time stamps: for each event the first that covers it, as far as a run shows."""

        async def read(connection: LedgerConnection) -> list[tuple[int, str, bytes]]:
            place = {"ledger": log.ledger_id, "generation": log.generation, "size": log.size}
            found = [row[0] for row in await (await connection.execute(_STAMPED, place)).fetchall()]
            sizes = covering(found, positions, run)
            if not sizes:
                return []
            cursor = connection.cursor(binary=True)
            await cursor.execute(_STAMPS, (log.ledger_id, log.generation, sizes))
            return list(await cursor.fetchall())

        return await self._database.read(log.ledger_id, read)

    async def heads(self, log: SignedLog, wanted: Sequence[bytes]) -> Heads | None:
        """Return the newest heads, with proofs of those with these keys; None if this checkpoint covers none.

        Raises:
            ProofFailed: the stored heads are not those that were sealed.

        """

        async def read(connection: LedgerConnection) -> Heads | None:
            cursor = connection.cursor(binary=True)
            await cursor.execute(_HEADS, (log.ledger_id, log.generation, log.size))
            sealed = await cursor.fetchone()
            if sealed is None:
                return None
            upto, keys, root, position, stored = sealed
            blocks = HeadBlocks(stored, keys)
            if blocks.root != root:
                raise ProofFailed("the stored blocks of heads are not those that were sealed")
            first = blocks.beginnings(wanted)
            of_block: dict[bytes, list[Any]] = {}
            await cursor.execute(_BLOCKS, (Byteas(list(first.values())), log.ledger_id, log.generation, BLOCK_HEADS))
            for begins, *row in await cursor.fetchall():
                of_block.setdefault(begins, []).append(row)
            rows = {number: of_block.get(begins, []) for number, begins in first.items()}
            return Heads(upto, keys, position, blocks.proven(rows, wanted))

        # Each statement has a snapshot of its own, and the next heads may be sealed between two.
        for _ in range(HEADS_READS - 1):
            try:
                return await self._database.read(log.ledger_id, read)
            except ProofFailed:
                continue
        return await self._database.read(log.ledger_id, read)

    async def inclusion(self, log: SignedLog, positions: Sequence[int]) -> AsyncGenerator[list[bytes]]:
        """Yield the proof of each entry at these positions, which the caller verifies."""
        for begin in range(0, len(positions), SOME_PROOFS):
            some = positions[begin : begin + SOME_PROOFS]
            parts = [inclusion_parts(position - 1, log.size) for position in some]
            hashes = await Proofs(self._database).hashes_of(
                log.ledger_id, log.generation, [part for of_one in parts for part in of_one]
            )
            ends = 0
            for of_one in parts:
                ends += len(of_one)
                yield hashes[ends - len(of_one) : ends]

    async def handovers(self, log: SignedLog) -> list[tuple[int, str]]:
        """Return what was signed before when the log's keys changed: by those of before and those of after."""

        async def read(connection: LedgerConnection) -> list[tuple[int, str]]:
            cursor = await connection.execute(_HANDOVERS, (log.ledger_id, log.generation, log.size))
            return list(await cursor.fetchall())

        return await self._database.read(log.ledger_id, read)

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


def bounding(sizes: Sequence[int], positions: Sequence[int], run: tuple[int, int]) -> list[int]:
    """Return which of these sizes lie next to events, before and after, as far as a run of entries shows their roots.

    Args:
        sizes: of checkpoints that witnesses have cosigned, in ascending order.
        positions: the events whose time is to be bounded, in ascending order.
        run: the first and the last position of the entries.

    """
    usable = [size for size in sizes if max(run[0] - 1, 1) <= size <= run[1]]
    beside = {bisect_left(usable, position) + offset for position in positions for offset in (-1, 0)}
    chosen = [usable[place] for place in sorted(beside) if 0 <= place < len(usable)]
    every = -(-len(chosen) // MAX_COSIGNED)
    return chosen if every <= 1 else sorted({*chosen[::every], chosen[-1]})


def covering(sizes: Sequence[int], positions: Sequence[int], run: tuple[int, int]) -> list[int]:
    """Return the first of these sizes that covers each event, as far as a run of entries shows their roots."""
    usable = [size for size in sizes if run[0] <= size <= run[1]]
    chosen = sorted({usable[at] for p in positions if (at := bisect_left(usable, p)) < len(usable)})
    every = -(-len(chosen) // MAX_STAMPED)
    return chosen if every <= 1 else sorted({*chosen[::every], chosen[-1]})


def reaching(sizes: Sequence[int], run: tuple[int, int]) -> tuple[int, int]:
    """Return a run of entries that reaches to the next cosigned checkpoints on both sides, if they are near."""
    first, last = run
    before, after = bisect_left(sizes, first) - 1, bisect_left(sizes, last)
    if before >= 0 and first - sizes[before] <= MAX_BESIDE:
        first = sizes[before] + 1
    if after < len(sizes) and sizes[after] - last <= MAX_BESIDE:
        last = sizes[after]
    return first, last


async def _chosen(connection: LedgerConnection, ledger_id: int, size: int | None) -> tuple[SignedLog, bool, int] | None:
    cursor = connection.cursor(binary=True)
    await cursor.execute(_CHECKPOINT, {"ledger": ledger_id, "size": size})
    row = await cursor.fetchone()
    if row is None:
        return None
    log_id, generation, origin, keys, note, witnesses, kept, witness_keys, former = row
    parsed = SignedNote.parse(note.encode())
    # Those that signed this checkpoint: an older one has the signatures of keys that were retired since.
    keys, cosigners = (
        [key for key in dict.fromkeys(some) if parsed.by(VerifierKey.parse(key))]
        for some in ([*former, *keys], witness_keys)
    )
    return SignedLog(ledger_id, log_id, generation, origin, keys, note, parsed.checkpoint, cosigners), kept, witnesses


def _row(row: Sequence[Any]) -> EvidenceRow:
    *columns, body, sealed_length, sealed_hash = row
    sealed = None if sealed_length is None else Bytes(sealed_length, sealed_hash)
    return EvidenceRow(StoredEvent._make((*columns, hashed(body), sealed)), body)
