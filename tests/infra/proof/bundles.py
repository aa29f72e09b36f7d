"""Evidence bundles of stories, without a database: made by the program's own code, or by a server that lies."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from api.bag import Bag, BagSigner
from api.evidence_bundle import Bundle, Plan, everything, of_streams
from api.evidence_lines import CSV_COLUMNS, table_lines
from api.spreadsheet_cells import csv_lines
from domain.log_entry import Bytes, StoredEvent, entry_of, hashed
from domain.merkle import inclusion_parts, leaf_hash, range_parts, root_of
from domain.recorded import RecordedEvent
from infra.eventstore.serialization import clear_body
from infra.proof import verify
from infra.proof.checkpoints import Checkpoint, LogSigner
from infra.proof.event_check import Doubtful, SpreadReading
from infra.proof.evidence_log import EvidenceRow, SignedLog, covering
from infra.proof.notes import Cosigner
from infra.proof.proofs import EventProof
from tests.given import Story

ORIGIN = "ledger.example/log/main/1"
LOG_ID = UUID("018f0000-0000-7000-8000-0000000000aa")
AT = 1_800_000_000


@dataclass
class Log:
    """A signed log in memory, whoever runs it."""

    rows: list[EvidenceRow]
    signer: LogSigner = field(
        default_factory=lambda: LogSigner(ORIGIN, Ed25519PrivateKey.generate(), MLDSA44PrivateKey.generate())
    )
    bag_signer: BagSigner = field(default_factory=lambda: BagSigner(f"{ORIGIN}/evidence", Ed25519PrivateKey.generate()))
    # What a sealer that lies puts into the tree in place of an entry, by position.
    forged: dict[int, bytes] = field(default_factory=dict)
    witnesses: list[Cosigner] = field(default_factory=list)
    # When witnesses have cosigned earlier checkpoints, by their size.
    cosigned_at: dict[int, int] = field(default_factory=dict)
    # Checkpoints and the time stamps over their bytes, by size.
    stamps: dict[int, tuple[str, bytes]] = field(default_factory=dict)
    # What was signed by the keys of before and after when they changed, by its size.
    handed_over: dict[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, story: Story) -> Log:
        """Seal all that happened in a story."""
        return cls([row_of(recorded, story.ledger.sealed.get(recorded.position)) for recorded in story.ledger.events])

    def entry(self, position: int) -> bytes:
        return self.forged.get(position) or entry_of(LOG_ID, self.rows[position - 1].event)

    def entries_of(self, first: int, last: int) -> list[bytes]:
        return [self.entry(position) for position in range(first, last + 1)]

    def signed(self, size: int | None = None) -> SignedLog:
        size = len(self.rows) if size is None else size
        root = root_of([leaf_hash(entry) for entry in self.entries_of(1, size)])
        checkpoint = Checkpoint(ORIGIN, size, root)
        note = self.signer.sign(checkpoint, AT)
        return SignedLog(1, LOG_ID, 1, ORIGIN, self.signer.verifier_keys, note, checkpoint)

    @property
    def keys(self) -> list[verify.Key]:
        return verify.vkeys([*self.signer.verifier_keys, self.bag_signer.verifier_key])

    def receipt(self, position: int, size: int | None = None) -> bytes:
        """Return what the recorder of an event was given."""
        signed = self.signed(size)
        leaves = [leaf_hash(entry) for entry in self.entries_of(1, signed.size)]
        parts = [root_of(leaves[part.start : part.stop]) for part in inclusion_parts(position - 1, signed.size)]
        proof = EventProof(b"", b"", self.entry(position), signed.checkpoint, parts, signed.note)
        return proof.tlog_proof(position).encode()

    # -- What the program reads of a log in the database.

    async def entries(self, _: SignedLog, first: int, last: int) -> AsyncGenerator[bytes]:
        yield b"".join(self.entries_of(first, last))

    async def hashes_beside(self, log: SignedLog, first: int, last: int) -> list[bytes]:
        if (first, last) == (1, log.size):
            return []
        leaves = [leaf_hash(entry) for entry in self.entries_of(1, log.size)]
        return [root_of(leaves[part.start : part.stop]) for part in range_parts(first - 1, last, log.size)]

    async def pages(self, _: SignedLog, wanted: Sequence[int]) -> AsyncGenerator[list[EvidenceRow]]:
        for position in wanted:
            yield [self.rows[position - 1]]

    async def erasures(self, log: SignedLog, creator_streams: Sequence[UUID]) -> dict[UUID, int]:
        events = [row.event for row in self.rows[: log.size]]
        return {
            event.stream_id: event.position
            for event in events
            if event.type == "CreatorErased" and event.stream_id in creator_streams
        }

    async def positions(self, log: SignedLog, streams: Sequence[UUID]) -> list[int]:
        return [row.event.position for row in self.rows[: log.size] if row.event.stream_id in streams]

    async def handovers(self, log: SignedLog) -> list[tuple[int, str]]:
        return [(size, note) for size, note in self.handed_over.items() if size < log.size]

    async def stamped(
        self, _: SignedLog, positions: Sequence[int], run: tuple[int, int]
    ) -> list[tuple[int, str, bytes]]:
        return [(size, *self.stamps[size]) for size in covering(sorted(self.stamps), positions, run)]

    async def cosigned_sizes(self, log: SignedLog) -> list[int]:
        return sorted(size for size in self.cosigned_at if size < log.size)

    async def cosigned(self, _: SignedLog, sizes: Sequence[int]) -> list[tuple[int, str]]:
        return [(size, self.cosign(self.signed(size), self.cosigned_at[size])) for size in sizes]

    def cosign(self, signed: SignedLog, at: int) -> str:
        """Return a checkpoint that all witnesses have cosigned at a time."""
        return signed.note + "".join(witness.cosign(signed.checkpoint, at) for witness in self.witnesses)

    # -- Bundles.

    def bundle(self, plan: Plan, size: int | None = None) -> dict[str, bytes]:
        """Return the files of a bundle that the program makes."""
        return files(self.zipped(plan, size))

    def zipped(self, plan: Plan, size: int | None = None) -> bytes:
        made = Bundle(self.signed(size), plan, self, self.bag_signer, "Sparkledger test")  # type: ignore[arg-type] # as much of a log as this needs

        async def collect() -> bytes:
            return b"".join([piece async for piece in made.pieces()])

        # Nothing here waits, so it needs no event loop, and a thread that has one can do it too.
        try:
            collect().send(None)
        except StopIteration as done:
            return bytes(done.value)
        raise AssertionError

    def plan(self, about: Mapping[str, Any], streams: Sequence[UUID] = (), **more: Any) -> Plan:
        """Return the plan of a bundle about streams, or about all of the log."""
        size = len(self.rows)
        wanted: Any = range(1, size + 1)
        if streams:
            wanted = [row.event.position for row in self.rows if row.event.stream_id in streams]
        return Plan(about, wanted, (1, size), more.pop("level", everything), "auditor", **more)

    def answer(self, stated: Mapping[str, Any], at: datetime, video: str, account: str, own: Sequence[UUID]) -> Plan:
        """Return the plan of a bundle about an answer: of its streams for a yes, and of everything for a no."""
        about = {"kind": "answer", "video_id": video, "advertiser_id": account, "at": at.isoformat()}
        given = {"summary": "", **{k: v.isoformat() if isinstance(v, datetime) else v for k, v in stated.items()}}
        if stated["authorized"]:
            return self.plan(about, own, answer=given)
        return self.plan(about, level=of_streams(frozenset(own)), answer=given)

    def written(self, folder: Path, bundle: Mapping[str, bytes]) -> Path:
        """Write a bundle whose manifests and signature are right, whatever its files say."""
        bag = Bag("bundle", self.bag_signer)
        for name, content in bundle.items():
            if name.startswith("data/"):
                bag.add(name, content)
        bag.finish([])
        path = folder / "bundle.zip"
        path.write_bytes(bag.taken())
        return path

    def verdicts(self, folder: Path, bundle: Mapping[str, bytes], **options: Any) -> verify.Report:
        """Return what the verifier says of a bundle to those who have the log's keys.

        What checks large bundles on all processors must say the same, or leave it to the verifier. The latter it may
        only of a bundle that does not hold.
        """
        path, options = self.written(folder, bundle), {"keys": self.keys} | options
        report = verify.verify(path, **options)
        try:
            assert spread(path, **options).lines == report.lines
        except Doubtful:
            assert not report.good
        return report


# Not what stands in its place while bundles and verdicts are gathered for other verifiers.
_VERIFY = verify.verify


class _Inline(Executor):
    """Runs everything at once, in this process."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*arguments, **options))
        return future


def ends_at_once(*_: object) -> None:
    """End the process that is given this to do, as the system does where memory is short."""
    os._exit(1)


def spread(path: Path, **options: Any) -> verify.Report:
    """Verify a bundle as the program does a large one, but without other processes."""
    return _VERIFY(path, reading=partial(SpreadReading, executor=_Inline(), processes=2), **options)


def row_of(recorded: RecordedEvent, sealed: Mapping[str, Any] | None = None) -> EvidenceRow:
    """Return the row of an event as a ledger stores it."""
    body = clear_body(recorded.event)
    part = None if sealed is None else Bytes(64, hashed(repr(sorted(sealed)).encode()).sha256)
    event = StoredEvent(
        position=recorded.position,
        stream_id=recorded.stream_id,
        version=recorded.stream_version,
        event_id=recorded.event_id,
        type=recorded.type,
        type_version=recorded.type_version,
        recorded_at=recorded.recorded_at,
        effective_at=recorded.effective_at,
        creator_stream=recorded.creator_stream,
        actor_key=UUID(int=7),
        actor_role=recorded.actor.role,
        actor_subject=recorded.actor.subject,
        source=recorded.source,
        command_id=recorded.command_id,
        correlation_id=recorded.correlation_id,
        causation_id=recorded.causation_id,
        traceparent=None,
        creator_id=recorded.creator_id,
        video_id=recorded.video_id,
        key_id=None if part is None else UUID(int=8),
        format=1,
        commitment=None if part is None else b"\1" * 32,
        body=hashed(body),
        sealed=part,
    )
    return EvidenceRow(event, body)


def files(data: bytes) -> dict[str, bytes]:
    """Return the files of a bundle."""
    with zipfile.ZipFile(io.BytesIO(data)) as bundle:
        return {name.partition("/")[2]: bundle.read(name) for name in bundle.namelist()}


def shown(bundle: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """Return the events that a bundle shows."""
    return [json.loads(line) for line in bundle["data/events.ndjson"].splitlines()]


def showing(bundle: Mapping[str, bytes], change: Callable[[list[dict[str, Any]]], object]) -> dict[str, bytes]:
    """Return a bundle that shows other events, in both of its files."""
    events = shown(bundle)
    change(events)
    lines = [json.dumps(event, ensure_ascii=False, separators=(",", ":")) + "\n" for event in events]
    table = csv_lines([CSV_COLUMNS]) + table_lines(events)
    return {**bundle, "data/events.ndjson": "".join(lines).encode(), "data/events.csv": table}


def stating(bundle: Mapping[str, bytes], **changed: Any) -> dict[str, bytes]:
    """Return a bundle that states something else."""
    stated = json.loads(bundle["data/answer.json"]) | changed
    return {**bundle, "data/answer.json": (json.dumps(stated, ensure_ascii=False, indent=2) + "\n").encode()}


def bad(report: verify.Report) -> list[str]:
    """Return the verdicts that are not good."""
    return [text for mark, text in report.lines if mark == "no"]
