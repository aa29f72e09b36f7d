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
from infra.proof import verify
from infra.proof.evidence_log import EvidenceRow

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

    from api.bag import BagSigner
    from infra.proof.evidence_log import EvidenceLog, SignedLog

FORMAT: Final = "sparkledger evidence 1"
_VERIFIER: Final = Path(verify.__file__).read_bytes()
# Events that the report lists; the others are in the files for programs and spreadsheets.
MAX_REPORTED: Final = 500
# A file of more events or entries is written so that it may have gigabytes.
LARGE: Final = 10_000


@dataclass(frozen=True, slots=True)
class Plan:
    """What a bundle is about and shows.

    Attributes:
        about: what it is about: a claim, which a verifier checks.
        wanted: the positions of the events that are shown.
        run: the first and the last position of the entries that are shown; all, where others are searched for.
        level: how much of an event is shown.
        answer: the answer to the question, if it is about one.
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
        bag, log, plan = Bag(self.name, self.signer), self.log, self.plan
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
        beside = await self.source.hashes_beside(log, first, last)
        run = {"first": first, "hashes": [base64.b64encode(one).decode() for one in beside]}
        bag.add("data/proof/run.json", _json(run))
        bag.add("data/proof/checkpoint", log.note.encode())
        bag.add("data/answer.json", _json(self._stated()))
        bag.add("data/keys/log.vkeys", "".join(f"{key}\n" for key in log.verifier_keys).encode())
        bag.add("data/keys/evidence.vkey", f"{self.signer.verifier_key}\n".encode())
        bag.add("data/keys/policy", f"log {log.verifier_keys[0]}\nquorum none\n".encode())
        bag.add("data/verify.py", _VERIFIER)
        certified = Certified(self.name, plan.about, log, plan.answer, seen.count, seen.by_type, self.software)
        bag.add("data/CERTIFICATION.md", certification(certified).encode())
        page = report_page(certified, plan.role, seen.first, withheld=seen.withheld, erased=seen.erased)
        bag.add("data/REPORT.html", page.encode())
        bag.finish(
            [
                ("Bag-Software-Agent", self.software),
                ("External-Identifier", self.name),
                ("External-Description", f"Evidence from the signed log {log.origin}, as of {log.size} events"),
            ]
        )
        yield bag.taken()

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
        log = self.log
        return {
            "format": FORMAT,
            "about": self.plan.about,
            "answer": self.plan.answer,
            "log": {
                "log_id": log.log_id,
                "origin": log.origin,
                "generation": log.generation,
                "size": log.size,
                "root": base64.b64encode(log.checkpoint.root).decode(),
            },
            "made_for": self.plan.role,
        }


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
