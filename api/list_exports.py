"""Exports of lists (codes, permissions, shares, redemptions, campaigns, figures, accesses) as CSV, XLSX or NDJSON.

An export is the list's own pages, one after another, with the same filters and the same rights: what a key sees in a
list is what it can export. Rows are read a page at a time, so each is as of the position up to which its page covers
the ledger. The trailer has the first and the last of these positions. If they are the same, the export is as of one
moment.

CSV and NDJSON are sent while they are read. A workbook is a ZIP file, whose parts are written first: it is made on
disk, and sent when it is whole.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import re
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import IO, TYPE_CHECKING, Annotated, Any, Final, Literal, Self, get_args

import orjson
from fastapi import APIRouter, Query
from pydantic import BaseModel, Field, model_validator
from starlette.responses import Response

from api import access_log, campaigns, code_list, figures, permissions, redemptions, shares
from api.access_log import record_access
from api.export_files import digest_of
from api.http.caller import Caller, allow
from api.http.problems import malformed_query
from api.http.query_params import AtLeast, Flag, QueryModel
from api.http.route import Operation, Route
from api.http.streaming_download import StreamingDownload, refuse_revoked
from api.spreadsheet_cells import BYTE_ORDER_MARK, csv_lines
from api.workbooks import WorkbookWriter

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from uuid import UUID

Format = Literal["csv", "xlsx", "ndjson"]
CSV: Final = "text/csv; charset=utf-8"
XLSX: Final = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
NDJSON: Final = "application/x-ndjson"
MEDIA_TYPES: Final[Mapping[Format, str]] = {"csv": CSV, "xlsx": XLSX, "ndjson": NDJSON}
# Rows that are read at a time. Others of the process wait as long as it takes to write them out.
PAGE_ROWS: Final = 500
# Rows that are written to a workbook between two looks at who waits: one takes a tenth of a millisecond.
_WRITTEN_AT_ONCE: Final = 100
_BLOCK_BYTES: Final = 256 * 1024
# The first cell of a table's last row.
END_OF_TABLE: Final = "end"
_MOMENT: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+Z")


class ListFormat(QueryModel):
    format: Annotated[Format, Field(description="CSV, an XLSX workbook, or NDJSON (one JSON object a line).")] = "csv"
    bom: Annotated[
        Flag | None,
        Field(description="Begin a CSV with a byte order mark, so that Excel reads it as UTF-8."),
    ] = None

    @model_validator(mode="after")
    def _no_mark_before_others(self) -> Self:
        if self.bom and self.format != "csv":
            raise malformed_query("bom", "Only a CSV can begin with a byte order mark. Send format=csv as well.")
        return self


class WaitingFormat(ListFormat):
    at_least: AtLeast = None


class CodesExport(WaitingFormat, code_list.CodesFilters):
    pass


class PermissionsExport(WaitingFormat, permissions.PermissionsFilters):
    pass


class SharesExport(WaitingFormat, shares.SharesFilters):
    pass


class RedemptionsExport(WaitingFormat, redemptions.RedemptionsFilters):
    pass


class CampaignsExport(WaitingFormat, campaigns.CampaignsFilters):
    pass


class FiguresExport(WaitingFormat, figures.FiguresFilters):
    pass


class AccessesExport(ListFormat, access_log.AccessesFilters):
    pass


@dataclass(frozen=True, slots=True)
class ListSource:
    """A list as it is exported.

    Attributes:
        name: its name, in its answers too.
        entry: the model of an entry.
        query: the model of its query.
        read: its route, which answers a page.
        next: the name of the next page's cursor in an answer.

    """

    name: str
    entry: type[BaseModel]
    query: type[QueryModel]
    read: Callable[[Any, Caller], Awaitable[Response]]
    next: str = "next"

    def columns(self) -> list[tuple[str, ...]]:
        """Return the columns of a table: the path to each value in an entry."""
        return list(_paths(self.entry))

    async def page(self, caller: Caller, asked: Mapping[str, Any], cursor: str | None, limit: int) -> ListPage:
        """Return a page as the list's route answers it.

        Args:
            caller: who asks.
            asked: the filters, validated; those that this list does not have are left out.
            cursor: the `next` of the page before.
            limit: how many entries at most.

        """
        known = {name: value for name, value in asked.items() if name in self.query.model_fields}
        model: Any = self.query
        answer = await self.read(model.model_construct(**known, limit=limit, cursor=cursor), caller)
        content: dict[str, Any] = orjson.loads(bytes(answer.body))
        following: str | None = content[self.next]
        position = answer.headers.get("ledger-position")
        return ListPage(
            content[self.name],
            None if following is None else following.partition(".")[2],
            None if position is None else int(position),
        )


@dataclass(frozen=True, slots=True)
class ListPage:
    """A page of a list: its entries, the cursor of the next one, and the position up to which it covers the ledger."""

    entries: Sequence[dict[str, Any]]
    next: str | None
    position: int | None


CODES: Final = ListSource("codes", code_list.CodeInList, code_list.CodesQuery, code_list.list_codes)
PERMISSIONS: Final = ListSource(
    "permissions", permissions.PermissionInList, permissions.PermissionsQuery, permissions.list_permissions
)
SHARES: Final = ListSource("shares", shares.ShareInList, shares.SharesQuery, shares.list_shares)
REDEMPTIONS: Final = ListSource(
    "redemptions", redemptions.RedemptionInList, redemptions.RedemptionsQuery, redemptions.list_redemptions
)
CAMPAIGNS: Final = ListSource("campaigns", campaigns.CampaignInList, campaigns.CampaignsQuery, campaigns.list_campaigns)
FIGURES: Final = ListSource("figures", figures.FigureEntry, figures.FiguresQuery, figures.list_figures)
ACCESSES: Final = ListSource(
    "accesses", access_log.AccessEntry, access_log.AccessesQuery, access_log.list_accesses, "next_cursor"
)

router = APIRouter(route_class=Route, tags=["Reads"])
_OPERATION: Final = Operation(
    trace="recorded", answer_headers=("Ledger-Position",), other_formats=tuple(MEDIA_TYPES.values()), streams=True
)


@router.get("/v1/exports/codes", response_class=Response, operation_id="exportCodes")
@_OPERATION
async def export_codes(
    query: Annotated[CodesExport, Query()],
    caller: Annotated[Caller, allow("creator", "brand", "operator", "auditor", "admin")],
) -> Response:
    """Export the list of codes, as CSV, XLSX or NDJSON. The filters and what a key sees are those of the list.

    A CSV ends with a row whose first cell is `end`, NDJSON with a line `{"trailer": {…}}`, and a workbook has a second
    sheet: how many rows there are, the query, and the positions up to which the first and the last page covered the
    ledger.
    """
    return await _export(CODES, query, caller)


@router.get("/v1/exports/permissions", response_class=Response, operation_id="exportPermissions")
@_OPERATION
async def export_permissions(
    query: Annotated[PermissionsExport, Query()],
    caller: Annotated[Caller, allow("creator", "operator", "auditor", "admin")],
) -> Response:
    """Export the list of permissions, as CSV, XLSX or NDJSON, like the export of codes."""
    return await _export(PERMISSIONS, query, caller)


@router.get("/v1/exports/shares", response_class=Response, operation_id="exportShares")
@_OPERATION
async def export_shares(
    query: Annotated[SharesExport, Query()],
    caller: Annotated[Caller, allow("creator", "brand", "operator", "auditor", "admin")],
) -> Response:
    """Export the list of shares, as CSV, XLSX or NDJSON, like the export of codes."""
    return await _export(SHARES, query, caller)


@router.get("/v1/exports/redemptions", response_class=Response, operation_id="exportRedemptions")
@_OPERATION
async def export_redemptions(
    query: Annotated[RedemptionsExport, Query()],
    caller: Annotated[Caller, allow("creator", "brand", "operator", "auditor", "admin")],
) -> Response:
    """Export the list of redemptions and refused attempts, as CSV, XLSX or NDJSON, like the export of codes."""
    return await _export(REDEMPTIONS, query, caller)


@router.get("/v1/exports/campaigns", response_class=Response, operation_id="exportCampaigns")
@_OPERATION
async def export_campaigns(
    query: Annotated[CampaignsExport, Query()],
    caller: Annotated[Caller, allow("creator", "brand", "operator", "auditor", "admin")],
) -> Response:
    """Export the list of campaigns, as CSV, XLSX or NDJSON, like the export of codes."""
    return await _export(CAMPAIGNS, query, caller)


@router.get("/v1/exports/figures", response_class=Response, operation_id="exportFigures")
@_OPERATION
async def export_figures(
    query: Annotated[FiguresExport, Query()],
    caller: Annotated[Caller, allow("creator", "brand", "operator", "auditor", "admin")],
) -> Response:
    """Export figures by creator, brand, advertiser account, video or month, like the export of codes."""
    return await _export(FIGURES, query, caller)


@router.get("/v1/exports/accesses", response_class=Response, operation_id="exportAccesses")
@_OPERATION
async def export_accesses(
    query: Annotated[AccessesExport, Query()],
    caller: Annotated[Caller, allow("operator", "auditor", "admin")],
) -> Response:
    """Export the access log, as CSV, XLSX or NDJSON, like the export of codes."""
    return await _export(ACCESSES, query, caller)


@dataclass(slots=True)
class ListExport:
    """One export of a list, and how far it is.

    Attributes:
        rows: how many were exported so far.
        position_first, position_last: up to which the first and the last page covered the ledger.

    """

    source: ListSource
    caller: Caller
    filters: QueryModel
    format: Format
    parameters: Mapping[str, Any]
    began_at: datetime
    bom: bool = False
    at_least: int | None = None
    rows: int = 0
    position_first: int | None = None
    position_last: int | None = None
    _first: ListPage | None = None
    _bytes: int = 0
    _digest: Any = field(default_factory=hashlib.sha256)

    async def begin(self) -> None:
        """Read the first page: what is wrong with what is asked for is answered instead of an export.

        Raises:
            Problem, Refused, Unavailable: what the list itself raises.

        """
        self._first = await self._read(None)

    def reached(self) -> Mapping[str, str]:
        """Return the header that says up to which position the first page covered the ledger."""
        position = None if self._first is None else self._first.position
        return {} if position is None else {"Ledger-Position": str(position)}

    async def pieces(self) -> AsyncGenerator[bytes]:
        """Yield what the export consists of.

        Raises:
            Unavailable: the database is away, or the key was revoked.

        """
        made = self._workbook() if self.format == "xlsx" else self._lines()
        async for piece in made:
            yield piece

    async def _lines(self) -> AsyncGenerator[bytes]:
        columns = self.source.columns()
        table = self.format == "csv"
        if table:
            mark = BYTE_ORDER_MARK.encode() if self.bom else b""
            yield self._noted(mark + csv_lines([_names(columns)]))
        async for page in self._pages():
            if table:
                yield self._noted(csv_lines([_cells(entry, columns) for entry in page]))
            else:
                yield self._noted(b"".join(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE) for entry in page))
        trailer = self._trailer() | {"bytes": self._bytes, "sha256": self._digest.hexdigest()}
        trailer["trailer_sha256"] = digest_of(trailer)
        if table:
            yield csv_lines([[END_OF_TABLE, *[""] * (len(columns) - 2), trailer]])
        else:
            yield orjson.dumps({"trailer": trailer}, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE)

    async def _workbook(self) -> AsyncGenerator[bytes]:
        columns = self.source.columns()
        with tempfile.TemporaryFile() as file:
            await self._write_workbook(file, columns)
            file.seek(0)
            while piece := file.read(_BLOCK_BYTES):
                yield piece

    async def _write_workbook(self, file: IO[bytes], columns: Sequence[tuple[str, ...]]) -> None:
        book = WorkbookWriter(file)
        try:
            book.begin_sheet(self.source.name, _names(columns))
            async for page in self._pages():
                for number, entry in enumerate(page, 1):
                    book.write([_typed(value) for value in _cells(entry, columns)])
                    if number % _WRITTEN_AT_ONCE == 0:
                        await asyncio.sleep(0)
            book.begin_sheet("export", ("name", "value"))
            for name, value in self._trailer().items():
                book.write((name, value))
        finally:
            # It is compressed now, which takes a moment.
            await asyncio.shield(asyncio.to_thread(book.close))

    async def _pages(self) -> AsyncGenerator[Sequence[dict[str, Any]]]:
        """Yield the pages of the list, as its route answers them."""
        cursor: str | None = None
        while True:
            await refuse_revoked(self.caller)
            page = await self._read(cursor) if self._first is None else self._first
            self._first = None
            self.position_last = page.position
            if self.position_first is None:
                self.position_first = self.position_last
            self.rows += len(page.entries)
            if page.entries:
                yield page.entries
            cursor = page.next
            if cursor is None:
                return

    async def _read(self, cursor: str | None) -> ListPage:
        own = set(type(self.filters).model_fields) - {"format", "bom", "at_least"}
        asked = {name: getattr(self.filters, name) for name in own} | {"at_least": self.at_least}
        return await self.source.page(self.caller, asked, cursor, PAGE_ROWS)

    def _noted(self, piece: bytes) -> bytes:
        self._digest.update(piece)
        self._bytes += len(piece)
        return piece

    def _trailer(self) -> dict[str, Any]:
        history = self.caller.history
        return {
            "list": self.source.name,
            "ledger": self.caller.key.ledger_name,
            "log_id": str(history.log_id),
            "history": str(history.history),
            "query": self.parameters,
            "rows": self.rows,
            "position_first": self.position_first,
            "position_last": self.position_last,
            "began_at": self.began_at,
        }


async def _export(source: ListSource, query: Any, caller: Caller) -> Response:
    services = caller.services
    parameters = query.model_dump(mode="json", by_alias=True, exclude_unset=True)
    export = ListExport(
        source=source,
        caller=caller,
        filters=query,
        format=query.format,
        parameters=parameters,
        began_at=services.now(),
        bom=query.bom is True,
        at_least=getattr(query, "at_least", None),
    )
    await export.begin()
    media_type = MEDIA_TYPES[export.format]
    access: list[UUID] = []

    async def begin() -> None:
        format_ = media_type.partition(";")[0]
        access.append(await record_access(caller, parameters, rows=0, format=format_, complete=None))

    async def end(complete: bool) -> None:
        for access_id in access:
            await services.views.access_log.end(caller.ledger_id, access_id, rows=export.rows, complete=complete)

    name = f"{caller.key.ledger_name}-{source.name}-{export.began_at:%Y%m%dT%H%M%SZ}.{export.format}".replace(":", "_")
    return StreamingDownload(
        caller,
        export.pieces(),
        begin=begin,
        end=end,
        headers={**export.reached(), "Content-Disposition": f'attachment; filename="{name}"'},
        media_type=media_type,
    )


@functools.cache
def _paths(model: type[BaseModel]) -> tuple[tuple[str, ...], ...]:
    """Return the path to each value that a model's JSON has."""
    found: list[tuple[str, ...]] = []
    for name, declared in model.model_fields.items():
        kinds = (declared.annotation, *get_args(declared.annotation))
        inner = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        found += [(name,)] if inner is None else [(name, *path) for path in _paths(inner)]
    return tuple(found)


def _names(columns: Sequence[tuple[str, ...]]) -> list[str]:
    return ["_".join(path) for path in columns]


def _cells(entry: Mapping[str, Any], columns: Sequence[tuple[str, ...]]) -> list[Any]:
    return [_cell(entry, path) for path in columns]


def _cell(entry: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        entry = None if entry is None else entry.get(name)
    if isinstance(entry, list):
        return " ".join(map(str, entry))  # ids have no spaces
    return orjson.dumps(entry).decode() if isinstance(entry, dict) else entry


def _typed(value: Any) -> Any:
    """Return a value as a cell of a workbook has it: a time as a time."""
    if isinstance(value, str) and _MOMENT.fullmatch(value):
        return datetime.fromisoformat(value)
    return value
