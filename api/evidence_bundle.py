"""Evidence bundles: what is shown of which events, and the bag that is made of it, piece by piece.

    Plan       what the bundle is about, which events it shows, how much of each, and which entries lead to the root
    pieces     the bag: events, proof, keys, verifier and report, made while it is sent

A bundle is made as of a signed checkpoint, never as of the head. The same plan gives the same bytes.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import orjson

from api.bag import Bag
from api.evidence_lines import CSV_COLUMNS, Level, event_fields, ndjson_lines, table_lines
from api.evidence_report import Certified, certification, report_page
from api.spreadsheet_cells import csv_lines
from domain.log_entry import entry_of
from domain.merkle import InvalidProof, leaf_hash, verify_inclusion
from infra.proof import verify
from infra.proof.evidence_log import EvidenceRow, Heads, bounding
from infra.proof.proofs import ProofFailed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

    from api.bag import BagSigner
    from infra.proof.evidence_log import EvidenceLog, SignedLog

FORMAT: Final = "sparkledger evidence 1"
_VERIFIER: Final = Path(verify.__file__).read_bytes()
# Events that the report lists; the others are in the files for programs and spreadsheets.
MAX_REPORTED: Final = 500
# A bundle whose files are no larger is in its own report once more, which checks it when it is opened.
MAX_ENCLOSED_BYTES: Final = 512 * 1024
# A file of more events or entries is written so that it may have gigabytes.
LARGE: Final = 10_000


@dataclass(frozen=True, slots=True)
class Grounds:
    """What a short bundle about the same rests on.

    Attributes:
        keys: the heads that prove that no event before the run of entries is left out.
        positions: the events that they count, and others that the bundle shows, in order.
        video_salt: by what the head of a video is found. Every event since the heads is shown then, for no tag leads to
            the codes of a video.

    """

    keys: Sequence[bytes]
    positions: Sequence[int]
    video_salt: bytes | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a bundle is about and shows.

    Attributes:
        about: what it is about: a claim, which a verifier checks.
        wanted: the positions of the events that are shown.
        run: the first and the last position of the entries that are shown; all, where others are searched for.
        level: how much of an event is shown.
        answer: the answer to the question, if it is about one.
        grounds: what a short bundle about the same rests on, if it is about something that has one.
        heads: what proves that nothing before the run of entries is left out, if the run does not have all entries.
        not_short: why the bundle has all entries, if a short one was asked for.
        video_salt: by what the heads of videos are found, if the bundle shows all of them.
        bounded: the positions whose time is to be bounded by witnesses; by default those that are shown, and of a range
            its ends.
        with_creator_stream: whether its reader may know by what to find all events of a creator.
        role: for whom it was made.

    """

    about: Mapping[str, Any]
    wanted: range | Sequence[int]
    run: tuple[int, int]
    level: Callable[[EvidenceRow], Level]
    role: str
    answer: Mapping[str, Any] | None = None
    with_creator_stream: bool = True
    bounded: Sequence[int] = ()
    grounds: Grounds | None = None
    heads: Heads | None = None
    not_short: str | None = None
    video_salt: bytes | None = None

    @property
    def timed(self) -> Sequence[int]:
        """The positions whose time is to be bounded by witnesses, in ascending order."""
        if self.bounded or not isinstance(self.wanted, range):
            return self.bounded or self.wanted
        return (self.wanted[0], self.wanted[-1])


@dataclass(slots=True)
class _Seen:
    """What the report says of the events that were written."""

    count: int = 0
    withheld: int = 0
    by_type: dict[str, int] = field(default_factory=dict)
    first: list[dict[str, Any]] = field(default_factory=list)
    erased: int = 0

    def note(self, events: Sequence[dict[str, Any]]) -> None:
        for event in events:
            self.count += 1
            self.withheld += "body" not in event
            self.erased += "erased_by" in event
            self.by_type[event["type"]] = self.by_type.get(event["type"], 0) + 1
        # Of a bundle that shows events only to be complete, the report lists those that say something.
        said = [event for event in events if "body" in event]
        self.first += said[: MAX_REPORTED - len(self.first)]


@dataclass(slots=True)
class Bundle:
    """A bundle that is being made.

    Attributes:
        shown: how many events were written so far.

    """

    log: SignedLog
    plan: Plan
    source: EvidenceLog
    signer: BagSigner
    software: str
    shown: int = 0

    @property
    def name(self) -> str:
        """The name of its folder, and of the file without its suffix."""
        about = verify.describe(dict(self.plan.about)).replace(":", "-").replace("/", "-")
        kept = "".join(c if c.isascii() and (c.isalnum() or c in "-._") else "_" for c in about)
        return f"sparkledger-evidence-{kept[:80]}-{self.log.size}"

    async def pieces(self) -> AsyncGenerator[bytes]:
        """Yield the bundle.

        Raises:
            ProofFailed: what is stored does not fit the signed log; what was yielded before is no bundle.
            Unavailable: the database is away.

        """
        bag, log, plan = Bag(self.name, self.signer, keep_bytes=MAX_ENCLOSED_BYTES), self.log, self.plan
        first, last = plan.run
        seen = _Seen()
        large = max(len(plan.wanted), last - first) > LARGE
        with bag.file("data/events.ndjson", large=large) as write:
            async for events in self._events():
                write(ndjson_lines(events))
                seen.note(events)
                self.shown = seen.count
                yield bag.taken()
        with bag.file("data/events.csv", large=large) as write:
            write(csv_lines([CSV_COLUMNS]))
            async for events in self._events():
                write(table_lines(events))
                yield bag.taken()
        with bag.file("data/proof/entries.bin", large=large) as write:
            async for entries in self.source.entries(log, first, last):
                write(entries)
                yield bag.taken()
        own = await self._own_positions()
        async for name, content in self._of_the_log(own):
            bag.add(name, content)
        if plan.heads is not None:
            early = sorted({p for p in (*plan.wanted, *own) if p < first})
            with bag.file("data/proof/early.ndjson", large=len(early) > LARGE) as write:
                async for lines in self._early(early):
                    write(lines)
                    yield bag.taken()
        beside = await self.source.hashes_beside(log, first, last)
        run = {"first": first, "hashes": [base64.b64encode(one).decode() for one in beside]}
        bag.add("data/proof/run.json", _json(run))
        bag.add("data/proof/checkpoint", log.note.encode())
        bounds = bounding(await self.source.cosigned_sizes(log), plan.timed, plan.run)
        for size, note in await self.source.cosigned(log, bounds):
            bag.add(f"data/proof/cosigned/{size}", note.encode())
        for size, note, response in await self.source.stamped(log, plan.timed, plan.run):
            bag.add(f"data/proof/stamped/{size}", note.encode())
            bag.add(f"data/proof/stamped/{size}.tsr", response)
        bag.add("data/answer.json", _json(self._stated()))
        bag.add("data/keys/log.vkeys", "".join(f"{key}\n" for key in log.verifier_keys).encode())
        bag.add("data/keys/evidence.vkey", f"{self.signer.verifier_key}\n".encode())
        bag.add("data/keys/witnesses.vkeys", "".join(f"{key}\n" for key in log.witness_keys).encode())
        bag.add("data/keys/policy", policy_of(log).encode())
        enclosed = bag.copied()
        bag.add("data/verify.py", _VERIFIER)
        certified = Certified(
            self.name, plan.about, log, plan.answer, seen.count, seen.by_type, self.software, self._form
        )
        bag.add("data/CERTIFICATION.md", certification(certified).encode())
        page = report_page(
            certified, plan.role, seen.first, withheld=seen.withheld, erased=seen.erased, enclosed=enclosed
        )
        bag.add("data/REPORT.html", page.encode())
        bag.finish(
            [
                ("Bag-Software-Agent", self.software),
                ("External-Identifier", self.name),
                ("External-Description", f"Evidence from the signed log {log.origin}, as of {log.size} events"),
            ]
        )
        yield bag.taken()

    @property
    def _form(self) -> str:
        """Which entries of the log the bundle has, and why."""
        plan, heads = self.plan, self.plan.heads
        if heads is not None:
            return f"since event {heads.upto:,}, and before it the heads that event {heads.position:,} seals"
        if plan.not_short is not None:
            return f"all. The short form was asked for, but {plan.not_short}"
        first, last = plan.run
        return "all" if (first, last) == (1, self.log.size) else f"{first:,} to {last:,}"

    async def _own_positions(self) -> list[int]:
        """Return the positions of the events of the log itself that the bundle has."""
        own = await self.source.positions(self.log, [self.log.log_id])
        first, last = self.plan.run
        return own if self.plan.heads is not None else [position for position in own if first <= position <= last]

    async def _of_the_log(self, own: Sequence[int]) -> AsyncGenerator[tuple[str, bytes]]:
        """Yield what the log says of itself: of its keys, and of its heads if they are in the place of entries."""
        log, heads = self.log, self.plan.heads
        lines = [ndjson_lines(map(_of_the_log, rows)) async for rows in self.source.pages(log, own)]
        if lines:
            yield "data/proof/log.ndjson", b"".join(lines)
        for size, note in await self.source.handovers(log):
            yield f"data/proof/keys/{size}", note.encode()
        if heads is None:
            return
        proven = [
            {
                "index": one.place,
                "key": one.key.hex(),
                "count": one.head.events,
                "chain": one.head.chain.hex(),
                "hashes": [base64.b64encode(part).decode() for part in one.hashes],
            }
            for one in heads.proven
        ]
        salt = {} if heads.video_salt is None else {"video_salt": heads.video_salt.hex()}
        yield "data/proof/heads.json", _json({"keys": heads.keys, **salt, "heads": proven})
        async for rows in self.source.pages(log, [heads.position]):
            sealed = (event_fields(row, Level.ALL, with_creator_stream=False) for row in rows)
            yield "data/proof/heads.ndjson", ndjson_lines(sealed)

    async def _early(self, positions: Sequence[int]) -> AsyncGenerator[bytes]:
        """Yield the entries of events before the run, each with its proof, as lines."""
        log = self.log
        proofs = self.source.inclusion(log, positions)
        async for rows in self.source.pages(log, positions):
            lines = []
            for row in rows:
                hashes = await anext(proofs)
                of_entry = entry_of(log.log_id, row.event)
                try:
                    verify_inclusion(row.event.position - 1, log.size, leaf_hash(of_entry), hashes, log.checkpoint.root)
                except InvalidProof as error:
                    raise ProofFailed(str(error)) from error
                encoded = [base64.b64encode(one).decode() for one in (of_entry, *hashes)]
                proof = {"position": row.event.position, "entry": encoded[0], "hashes": encoded[1:]}
                lines.append(orjson.dumps(proof, option=orjson.OPT_APPEND_NEWLINE))
            yield b"".join(lines)

    async def _events(self) -> AsyncGenerator[list[dict[str, Any]]]:
        """Yield what is shown of the events, a page at a time."""
        with_creator, wanted = self.plan.with_creator_stream, self.plan.wanted
        shown = wanted if isinstance(wanted, range) else frozenset(wanted)
        async for rows in self.source.pages(self.log, wanted):
            sealed = {row.event.creator_stream for row in rows if with_creator and row.event.sealed is not None}
            erased = await self.source.erasures(self.log, sorted(sealed))
            events = []
            for row in rows:
                erased_by = erased.get(row.event.creator_stream) if row.event.sealed is not None else None
                if erased_by is not None and erased_by not in shown:
                    erased_by = None
                level = self.plan.level(row)
                events.append(event_fields(row, level, with_creator_stream=with_creator, erased_by=erased_by))
            yield events

    def _stated(self) -> dict[str, Any]:
        """Return what the bundle states. All of it is a claim, until it is verified."""
        log, salt = self.log, self.plan.video_salt
        return {
            "format": FORMAT,
            "about": self.plan.about,
            "answer": self.plan.answer,
            "entries": self._form,
            "log": {
                "log_id": log.log_id,
                "origin": log.origin,
                "generation": log.generation,
                "size": log.size,
                "root": base64.b64encode(log.checkpoint.root).decode(),
                **({} if salt is None else {"video_salt": salt.hex()}),
            },
            "made_for": self.plan.role,
        }


def _of_the_log(row: EvidenceRow) -> dict[str, Any]:
    """Return what everyone is shown of an event of the log itself: what became of its keys, and of others the type."""
    level = Level.ALL if row.event.type.startswith("LogKey") else Level.ENVELOPE
    return event_fields(row, level, with_creator_stream=False)


def policy_of(log: SignedLog) -> str:
    """Return a tlog-policy file: the log's key, and all witnesses that have cosigned the checkpoint.

    It is for programs of others, and to begin a policy of one's own with.
    """
    names = [f"w{number}" for number, _ in enumerate(log.witness_keys, 1)]
    witnesses = [f"witness {name} {key}" for name, key in zip(names, log.witness_keys, strict=True)]
    group = [f"group witnesses all {' '.join(names)}", "quorum witnesses"] if names else ["quorum none"]
    return "".join(f"{line}\n" for line in (f"log {log.verifier_keys[0]}", *witnesses, *group))


def with_erasures(positions: Sequence[int], erasures: Mapping[UUID, int]) -> list[int]:
    """Return positions together with those of the erasures that concern them, in order."""
    return sorted({*positions, *erasures.values()})


def by_position(levels: Mapping[int, Level]) -> Callable[[EvidenceRow], Level]:
    """Return a rule that shows some events as given, and of the others the envelope."""
    return lambda row: levels.get(row.event.position, Level.ENVELOPE)


def everything(_: EvidenceRow) -> Level:
    """Show all of every event."""
    return Level.ALL


def of_streams(streams: frozenset[UUID]) -> Callable[[EvidenceRow], Level]:
    """Return the rule for a no: all of some streams, of each other code which video it is of, and else the envelope."""

    def level(row: EvidenceRow) -> Level:
        if row.event.stream_id in streams:
            return Level.ALL
        return Level.CONTENT if row.event.type == "CodeGenerated" else Level.ENVELOPE

    return level


def _json(content: object) -> bytes:
    return orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE)
