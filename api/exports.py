"""Exports of the audit trail: all events that are asked for, up to the head of when it began, in constant memory.

An export ends in a trailer: how many events, the first and the last position, what was asked, the position of the head
when it began and the one up to which was searched, the SHA-256 of every byte before it, and that of itself. A file
without one was cut off. In NDJSON the trailer is a last line of its own kind, `{"trailer": {…}}`. In CSV it is a last
row whose `position` is `end` and whose `body` holds it.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

import orjson
from fastapi import APIRouter, Query
from pydantic import Field, model_validator
from starlette.responses import Response

from api.access_log import record_access, subject_of_search
from api.event_content import CSV_COLUMNS, csv_head, csv_text, names_in, ndjson, row_content, with_proof
from api.event_filters import Filters
from api.event_search import SearchRange, index_stopped, query_of, search_events
from api.export_files import digest_of
from api.http.as_of import wait_for_log
from api.http.caller import Caller, allow
from api.http.problems import ahead_of_ledger, malformed_query
from api.http.query_params import AtLeast, Flag
from api.http.route import Operation, Route
from api.http.streaming_download import StreamingDownload, refuse_revoked
from api.spreadsheet_cells import BYTE_ORDER_MARK, csv_lines
from infra.eventstore.event_rows import POSITION
from projections import event_index
from projections.index_scan import END

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
    from uuid import UUID

    from api.event_content import KeyNames
    from api.event_search import NoteReader
    from api.query_language import ParsedQuery
    from infra.eventstore.event_rows import Row
    from infra.eventstore.histories import History
    from infra.proof.sealed_sizes import SealedSize
    from infra.views.reader import ViewReader


class ExportQuery(Filters):
    format: Annotated[Literal["ndjson", "csv"], Field(description="NDJSON (one JSON object a line) or CSV.")] = "ndjson"
    bom: Annotated[
        Flag | None,
        Field(description="Begin a CSV with a byte order mark, so that Excel reads it as UTF-8."),
    ] = None
    at_least: AtLeast = None

    @model_validator(mode="after")
    def _no_mark_before_lines(self) -> Self:
        if self.bom and self.format != "csv":
            raise malformed_query("bom", "Only a CSV can begin with a byte order mark. Send format=csv as well.")
        return self


Format = Literal["ndjson", "csv"]
MEDIA_TYPES: Final[Mapping[Format, str]] = {"ndjson": "application/x-ndjson", "csv": "text/csv; charset=utf-8"}
# Events that are read and sent at a time: others of the process wait as long as it takes to write them out.
PAGE_EVENTS: Final = 500
# A search for what is rare looks through so many pages' worth at a time, between two looks at who waits.
_BUDGET: Final = 4.0
# The first cell of a table's last row.
END_OF_TABLE: Final = "end"

router = APIRouter(route_class=Route, tags=["Audit"])


@dataclass(slots=True)
class Export:
    """One export, and how far it is.

    Attributes:
        ledger_id: the ledger.
        ledger: its name.
        history: that of its log.
        query: which events.
        parameters: the same as it was sent, for the trailer.
        format: of the export.
        bom: whether a table begins with a byte order mark, which counts as a part of it.
        head: the ledger's last position when it began; nothing later is exported.
        notes: reads notes, for a query that searches them.
        upto: the position up to which all is exported that was asked for: the head, or less where the history has
            stopped.
        began_at: when it began.
        sealed: how far the signed log went then; `proof` of each event says what follows from that.
        low: the position before the first that may be exported.
        high: the position after the last.
        events: how many were exported so far.
        first: the position of the first; None where there is none.
        last: the position of the last.

    """

    ledger_id: int
    ledger: str
    history: History
    query: ParsedQuery
    parameters: Mapping[str, Any]
    format: Format
    head: int
    began_at: datetime
    sealed: SealedSize
    bom: bool = False
    low: int = 0
    high: int = END
    notes: NoteReader | None = None
    upto: int = field(init=False)
    events: int = 0
    first: int | None = None
    last: int | None = None
    _bytes: int = 0
    _digest: Any = field(default_factory=hashlib.sha256)

    def __post_init__(self) -> None:
        """Begin with what the log itself has."""
        self.upto = self.head

    async def reach(self, views: ViewReader) -> None:
        """Wait until what is asked for can be found, before anything is sent: it would break the export off.

        Raises:
            Unavailable: the history has not been read so far, or has stopped before all that is asked for.

        """
        if self.query.conditions:
            wanted = min(self.head, self.high - 1)
            found = await views.reach(self.ledger_id, event_index.NAME, wanted)
            if found < wanted:
                self.upto = found
                if found <= self.low:
                    raise index_stopped(found)

    @property
    def complete(self) -> bool:
        """Whether all is exported that was asked for."""
        return self.upto == self.head

    async def pieces(
        self, views: ViewReader, key_names: KeyNames, go_on: Callable[[], Awaitable[None]] | None = None
    ) -> AsyncGenerator[bytes]:
        """Yield what an export consists of, the trailer last; `go_on` may end it before every page.

        Raises:
            Unavailable: the database is away.

        """
        if self.format == "csv":
            yield self._noted((BYTE_ORDER_MARK.encode() if self.bom else b"") + csv_head())
        pages = self._pages(views)
        # While one page is written out, the next is read.
        coming = asyncio.create_task(anext(pages, None))
        try:
            while (rows := await coming) is not None:
                coming = asyncio.create_task(anext(pages, None))
                if go_on is not None:
                    await go_on()
                names = await names_in(key_names, self.ledger_id, rows)
                contents = with_proof([row_content(row, names) for row in rows], self.sealed)
                yield self._noted((csv_text if self.format == "csv" else ndjson)(contents), rows)
                await asyncio.sleep(0)
        finally:
            coming.cancel()
        yield self._trailer()

    async def _pages(self, views: ViewReader) -> AsyncGenerator[Sequence[Row]]:
        within = SearchRange(self.low, min(self.high, self.upto + 1), budget=_BUDGET)
        while True:
            found = await search_events(views, self.ledger_id, self.query, within, PAGE_EVENTS, self.notes)
            if found.rows:
                yield found.rows
            if found.stopped_at is None and len(found.rows) < PAGE_EVENTS:
                return
            low = found.stopped_at if found.stopped_at is not None else found.rows[-1][POSITION]
            within = SearchRange(low, within.high, budget=_BUDGET)

    def _noted(self, piece: bytes, rows: Sequence[Row] = ()) -> bytes:
        self._digest.update(piece)
        self._bytes += len(piece)
        if rows:
            self.events += len(rows)
            self.first = rows[0][POSITION] if self.first is None else self.first
            self.last = rows[-1][POSITION]
        return piece

    def _trailer(self) -> bytes:
        content: dict[str, Any] = {
            "ledger": self.ledger,
            "log_id": self.history.log_id,
            "history": self.history.history,
            "query": self.parameters,
            "events": self.events,
            "first": self.first,
            "last": self.last,
            "head": self.head,
            "upto": self.upto,
            "began_at": self.began_at,
            "sealed": self.sealed.content(),
            "bytes": self._bytes,
            "sha256": self._digest.hexdigest(),
        }
        content["trailer_sha256"] = digest_of(content)
        if self.format == "ndjson":
            return orjson.dumps({"trailer": content}, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE)
        cells = {
            "position": END_OF_TABLE,
            "type": "trailer",
            "summary": (
                f"{self.events} events. The file is complete if the SHA-256 in the last cell matches everything above."
            ),
            "body": content,
        }
        return csv_lines([[cells.get(column) for column in CSV_COLUMNS]])


@router.get("/v1/exports/events", response_class=Response, operation_id="exportEvents")
@Operation(trace="recorded", answer_headers=("Ledger-Position",), lines=True, streams=True)
async def export_events(
    query: Annotated[ExportQuery, Query()],
    caller: Annotated[Caller, allow("operator", "auditor", "admin")],
) -> Response:
    """Export all matching events, oldest first, up to the last event recorded before the export began.

    The export is streamed and ends with a trailer. In NDJSON, it is a last line `{"trailer": {…}}`. In CSV, it is a
    last row whose `position` is `end`. The trailer has the id of the log and its history, the number of events, their
    first and last position, the query, the ledger's last position when the export began (`head`), the position up to
    which was searched (`upto`, less than `head` only if the searched view has stopped), how far the signed log went
    then (`sealed`, to which `proof` of each event refers), the SHA-256 of every byte
    before it, and the SHA-256 of its own other fields. An export without a trailer is incomplete. Exports are recorded
    in the access log before the first byte is sent.
    """
    caller.history.require_whole()
    caller.require_history(query.after, query.history)
    parsed = await query_of(caller, query.parsed())
    await wait_for_log(caller, query.at_least)
    services = caller.services
    head = await services.events.head(caller.ledger_id)
    if max(query.after or 0, *(query.positions or (0,))) > head:
        raise ahead_of_ledger(head)
    export = Export(
        ledger_id=caller.ledger_id,
        ledger=caller.key.ledger_name,
        history=caller.history,
        query=parsed,
        parameters=query.parameters(),
        format=query.format,
        head=head,
        began_at=services.now(),
        sealed=await caller.request.app.state.sealed_sizes.of(caller.ledger_id),
        bom=query.bom is True,
        low=query.after or 0,
        high=END if query.before is None else query.before,
        notes=services.aggregates.notes,
    )
    await export.reach(services.views)
    media_type = MEDIA_TYPES[query.format]
    access: list[UUID] = []

    async def begin() -> None:
        format_ = media_type.partition(";")[0]
        subject = subject_of_search(parsed)
        access.append(
            await record_access(caller, export.parameters, rows=0, format=format_, complete=None, subject=subject)
        )

    async def end(complete: bool) -> None:
        for access_id in access:
            await services.views.access_log.end(
                caller.ledger_id, access_id, rows=export.events, complete=complete and export.complete
            )

    name = f"{export.ledger}-events-{export.began_at:%Y%m%dT%H%M%SZ}.{query.format}".replace(":", "_")
    return StreamingDownload(
        caller,
        export.pieces(services.views, caller.request.app.state.key_names, functools.partial(refuse_revoked, caller)),
        begin=begin,
        end=end,
        headers={"Ledger-Position": str(export.upto), "Content-Disposition": f'attachment; filename="{name}"'},
        media_type=media_type,
    )
