"""A dossier as it is answered: its sections one after another, as one JSON object or as a file of NDJSON.

    json      a part of each section, and which sections have more
    ndjson    all of it, streamed, with a trailer that says that it is whole

Whatever the sections read, a dossier is one entry of the access log: what it is about, and how many entries it had.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import orjson
from starlette.responses import Response

from api.access_log import record_access
from api.export_files import DOSSIER, digest_of
from api.http.media_types import JSON, NDJSON
from api.http.responses import answer
from api.http.streaming_download import StreamingDownload, refuse_revoked

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from api.http.caller import Caller
    from infra.auth.access_log import AccessSubject

Kind = Literal["creator", "code", "video", "brand", "advertiser", "key"]
# Entries that are read at a time.
PAGE_ENTRIES: Final = 200


@dataclass(frozen=True, slots=True)
class Section:
    """One section of a dossier: its name, and its entries, a page at a time."""

    name: str
    pages: AsyncGenerator[Sequence[Mapping[str, Any]]]


@dataclass(slots=True)
class Dossier:
    """A dossier that is being made.

    Attributes:
        kind, id: what it is about.
        subject: the same, as the access log has it.
        position: the last position of the ledger when it was begun: what was recorded by then is in it.
        left_out: the sections that the caller may not read, with why.
        evidence: the body with which `POST /v1/evidence` gives the proofs of it; None if there is no such bundle.
        entries: how many were made so far.

    """

    caller: Caller
    kind: Kind
    id: str
    subject: AccessSubject
    position: int
    made_at: datetime
    sections: Sequence[Section]
    left_out: Mapping[str, str] = field(default_factory=dict)
    evidence: Mapping[str, Any] | None = None
    entries: int = 0

    async def answer(self, limit: int) -> Response:
        """Answer with at most `limit` entries of each section."""
        parts = [await self._part(section, limit) for section in self.sections]
        await record_access(self.caller, self._parameters("json"), rows=self.entries, format=JSON, subject=self.subject)
        complete = all(part["complete"] for part in parts)
        content = {**self._head(), "complete": complete, "sections": parts}
        return answer(content, 200, {"Ledger-Position": str(self.position)})

    async def file(self) -> Response:
        """Answer with the whole dossier, as a file.

        What is wrong with what is asked for is answered instead: the first page of each section is read before.
        """
        services, ledger_id = self.caller.services, self.caller.ledger_id
        access: list[UUID] = []

        async def begin() -> None:
            parameters = self._parameters("ndjson")
            access.append(
                await record_access(self.caller, parameters, rows=0, format=NDJSON, complete=None, subject=self.subject)
            )

        async def end(complete: bool) -> None:
            for access_id in access:
                await services.views.access_log.end(ledger_id, access_id, rows=self.entries, complete=complete)

        kept = "".join(c if c.isascii() and (c.isalnum() or c in "-.") else "_" for c in self.id)
        name = f"{self.caller.key.ledger_name}-{self.kind}-{kept[:80]}-{self.made_at:%Y%m%dT%H%M%SZ}.ndjson"
        headers = {
            "Ledger-Position": str(self.position),
            "Content-Disposition": f'attachment; filename="{name.replace(":", "_")}"',
        }
        firsts: list[Sequence[Mapping[str, Any]]] = [await _first(one.pages) for one in self.sections]
        lines = self._lines(firsts)
        return StreamingDownload(self.caller, lines, begin=begin, end=end, headers=headers, media_type=NDJSON)

    async def _part(self, section: Section, limit: int) -> dict[str, Any]:
        entries: list[Mapping[str, Any]] = []
        async for page in section.pages:
            entries += page
            if len(entries) > limit:
                break
        await section.pages.aclose()
        shown = entries[:limit]
        self.entries += len(shown)
        return {"name": section.name, "complete": len(entries) <= limit, "entries": shown}

    async def _lines(self, firsts: Sequence[Sequence[Mapping[str, Any]]]) -> AsyncGenerator[bytes]:
        digest, size, counts = hashlib.sha256(), 0, dict.fromkeys((one.name for one in self.sections), 0)
        first = _line({"dossier": self._head()})
        digest.update(first)
        size += len(first)
        yield first
        for section, begun in zip(self.sections, firsts, strict=True):
            async for page in _from(begun, section.pages):
                await refuse_revoked(self.caller)
                piece = b"".join(_line({"section": section.name, "entry": entry}) for entry in page)
                digest.update(piece)
                size += len(piece)
                counts[section.name] += len(page)
                self.entries += len(page)
                yield piece
        trailer: dict[str, Any] = {
            "list": DOSSIER,
            "rows": 1 + self.entries,
            "sections": counts,
            "position": self.position,
            "bytes": size,
            "sha256": digest.hexdigest(),
        }
        trailer["trailer_sha256"] = digest_of(trailer)
        yield _line({"trailer": trailer})

    def _parameters(self, format_: str) -> dict[str, Any]:
        return {"kind": self.kind, "id": self.id, "format": format_}

    def _head(self) -> dict[str, Any]:
        history = self.caller.history
        return {
            "kind": self.kind,
            "id": self.id,
            "ledger": self.caller.key.ledger_name,
            "log_id": history.log_id,
            "history": history.history,
            "position": self.position,
            "made_at": self.made_at,
            "made_for": self.caller.role,
            "left_out": [{"section": name, "why": why} for name, why in self.left_out.items()],
            "evidence": self.evidence,
        }


async def _first(pages: AsyncGenerator[Sequence[Mapping[str, Any]]]) -> Sequence[Mapping[str, Any]]:
    """Return the first page, if there is one. (`anext` with a default fails in Python 3.11.)"""
    async for page in pages:
        return page
    return ()


async def _from(
    first: Sequence[Mapping[str, Any]], rest: AsyncGenerator[Sequence[Mapping[str, Any]]]
) -> AsyncGenerator[Sequence[Mapping[str, Any]]]:
    if first:
        yield first
    async for page in rest:
        yield page


def _line(content: Mapping[str, Any]) -> bytes:
    return orjson.dumps(content, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE)
