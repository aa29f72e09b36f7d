"""The command that imports a sheet without a server, and writes a report: the same sheet with two columns added.

It records as the API does, with a key of its own that is revoked afterwards.
"""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager, nullcontext
from typing import IO, TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from api.http.problems import Problem, malformed
from api.import_mappings import mapping_of
from api.import_run import FATES, Import
from api.imports import ImportQuery, digest_of, import_content, summary_content
from api.offline import (
    LedgerAddress,
    OfflineError,
    Progress,
    open_ledger,
    opened_file,
    refuse_taken,
    said,
    written_file,
)
from api.sheet_files import MAX_FILE_BYTES, MIB, ReadSheets, read_sheets
from api.spreadsheet_cells import BYTE_ORDER_MARK, csv_lines
from api.workbooks import WorkbookWriter
from domain.values import Actor, Policy
from infra.auth.access_log import AccessContext
from infra.imports.mappings import MappingNotFound, SheetMappings
from infra.postgres.roles import WORKER
from infra.runtime import runtime

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping
    from pathlib import Path

    from api.import_mappings import MappingBody
    from api.import_run import RowOutcome
    from domain.pasted import VideoIds
    from infra.runtime import Runtime

COMMAND: Final = "sparkledger import"
ADDED: Final = ("import_fate", "import_explanation")


def import_query(**given: Any) -> ImportQuery:
    """Return how a sheet is imported.

    Raises:
        ValueError: an option cannot be used; the message says why.

    """
    sent = {name: value for name, value in given.items() if value is not None and value is not False}
    sent = {name: "true" if value is True else str(value) for name, value in sent.items()}
    try:
        return ImportQuery.model_validate(sent)
    except ValidationError as error:
        raise ValueError(said(malformed("malformed_query", error, ImportQuery))) from None
    except Problem as problem:
        raise ValueError(said(problem)) from None


async def import_sheet(
    where: LedgerAddress,
    query: ImportQuery,
    path: Path,
    report: Path | None,
    say: Callable[[str], None],
    *,
    policy: Policy,
    video_ids: VideoIds,
) -> tuple[Import, list[str]]:
    """Import a sheet, or say what would become of each row; return the import, and lines that say how it was read.

    Raises:
        OfflineError: the report is there already, or a file cannot be read or written.
        SheetError: the file is no sheet that can be read.
        LookupError: there is no such ledger.
        Unavailable: the database is away; what was recorded by then is known when the sheet is imported again.

    """
    if report is not None:
        refuse_taken(report)
    with opened_file(path) as source:
        if source.seek(0, 2) > MAX_FILE_BYTES:
            raise OfflineError(f"{path} is larger than {MAX_FILE_BYTES // MIB} MiB. Import it in several files.")
        sha256 = digest_of(source)
        file = await read_sheets(source)
    with file:
        async with (
            open_ledger(where) as opened,
            _acting(where, opened.ledger_id, record=query.record) as (process, actor),
        ):
            mapping = None
            if query.mapping is not None:
                mapping = await _mapping(process, opened.ledger_id, query.mapping)
            run = Import(
                process.aggregates,
                process.handler,
                ledger_id=opened.ledger_id,
                actor=actor,
                policy=policy,
                file=file,
                file_sha256=sha256,
                options=query.options(video_ids, mapping),
            )
            described = list(_described(import_content(run, file, sha256)["import"]))
            parameters = query.model_dump(mode="json", exclude_unset=True) | {"sha256": sha256}
            access_id = await opened.record_access(COMMAND, parameters, "application/x-ndjson")
            progress, complete = Progress(say, "rows", run.rows), False
            try:
                with nullcontext(None) if report is None else _report(report, run, file) as write:
                    async for outcomes in run.outcomes():
                        if write is not None:
                            for outcome in outcomes:
                                write(outcome)
                        progress.reached(run.counts.total())
                complete = True
            finally:
                rows = run.counts.total()
                await opened.views.access_log.end(opened.ledger_id, access_id, rows=rows, complete=complete)
    progress.last()
    return run, described


def summary(run: Import) -> list[str]:
    """Say what became of the rows."""
    content = summary_content(run)["summary"]
    words = {
        "new": "new",
        "changed": "known, with more recorded of them" if run.recording else "known, and say more of their code",
        "known": "known already",
        "differs": "different from what is recorded",
        "refused": "refused by a rule",
        "unclear": "unclear",
    }
    lines = [f"{content[fate]:>9,}  {words[fate]}" for fate in FATES if content[fate]]
    if run.started is not None:
        return [*lines, f"Recorded as import {run.import_id}."]
    return [*lines, "Nothing was recorded." if run.recording else "Nothing was recorded: this was a dry run."]


async def _mapping(process: Runtime, ledger_id: int, name: str) -> MappingBody:
    try:
        return mapping_of(await SheetMappings(process.database).find(ledger_id, name))
    except MappingNotFound:
        raise OfflineError(f"No mapping is saved under the name {name} in this ledger.") from None
    except Problem as problem:
        raise OfflineError(said(problem)) from None


@asynccontextmanager
async def _acting(where: LedgerAddress, ledger_id: int, *, record: bool) -> AsyncIterator[tuple[Runtime, Actor]]:
    """Open what records, and who does: every event must name a key, so one is created and revoked afterwards."""
    async with runtime(where.place.owner, WORKER, where.master_key) as process:
        if not record:
            yield process, Actor("none", "admin")
            return
        context = AccessContext(route=COMMAND)
        key, _, _ = await process.key_admin.create(ledger_id, role="admin", name="command line", context=context)
        try:
            yield process, Actor(str(key.key_id), "admin")
        finally:
            await process.key_admin.revoke(ledger_id, key.key_id, context=context)


def _described(content: Mapping[str, Any]) -> Iterator[str]:
    """Say how a sheet is read."""
    for sheet in content["sheets"]:
        name = f"Sheet {sheet['name']}" if sheet["name"] else "The sheet"
        if not sheet["columns"]:
            yield f"{name} is not read: no row names columns that are known."
            continue
        named = ", ".join(f"{letters} {field}" for field, letters in sheet["columns"].items())
        rest = f" Not read: {', '.join(sheet['not_read'])}." if sheet["not_read"] else ""
        roster = sheet.get("roster")
        joined = f" Others are joined with it; {roster['rows_not_used']:,} of its rows are not used." if roster else ""
        yield f"{name}, below row {sheet['header']}: {named}.{rest}{joined}"
    for name in content["hidden"]:
        yield f"Sheet {name} is hidden, and not read."


@contextmanager
def _report(path: Path, run: Import, file: ReadSheets) -> Iterator[Callable[[RowOutcome], None]]:
    """Write a report, which is there whole or not at all."""
    with written_file(path) as target:
        if path.suffix.lower() == ".xlsx":
            with WorkbookWriter(target) as book:
                yield _Report(run, file, book=book).write
        else:
            yield _Report(run, file, table=target).write


class _Report:
    """The same sheet with two columns added: what became of each row, and why."""

    def __init__(
        self, run: Import, file: ReadSheets, *, book: WorkbookWriter | None = None, table: IO[bytes] | None = None
    ) -> None:
        self._book = book
        self._table = table
        self._sheets = run.sheets
        self._heads = _heads(run, file)
        self._sheet = -1
        if table is not None:
            table.write(BYTE_ORDER_MARK.encode())

    def write(self, outcome: RowOutcome) -> None:
        sheet = outcome.row.sheet
        head = self._heads[sheet]
        if sheet != self._sheet:
            self._sheet = sheet
            self._begin(self._sheets[sheet].name, [*head, *ADDED])
        cells: list[Any] = [*outcome.row.cells, *[""] * (len(head) - len(outcome.row.cells))][: len(head)]
        self._row([*cells, outcome.fate, explanation(outcome)])

    def _begin(self, name: str, head: list[str]) -> None:
        if self._book is not None:
            self._book.begin_sheet(name or "Import", head)
        else:
            self._row(head)

    def _row(self, cells: list[Any]) -> None:
        if self._book is not None:
            self._book.write(cells)
        elif self._table is not None:
            self._table.write(csv_lines([cells]))


def explanation(outcome: RowOutcome) -> str:
    """Say in a few sentences what became of a row."""
    said = [] if outcome.detail is None else [outcome.detail]
    if outcome.column is not None:
        said.insert(0, f"Cell {outcome.column}{outcome.row.number}:")
    said += [
        f"{one.field} is {one.recorded or 'not stated'} in the ledger and {one.sheet} here."
        for one in outcome.differences
    ]
    if outcome.conflict_id is not None:
        said.append(f"See {outcome.conflict_id}.")
    return " ".join(said)


def _heads(run: Import, file: ReadSheets) -> list[list[str]]:
    """Return the names of the columns of each sheet, as wide as its widest row."""
    widths = [0] * len(run.sheets)
    heads: list[list[str]] = [[] for _ in run.sheets]
    for row in file:
        widths[row.sheet] = max(widths[row.sheet], len(row.cells))
        columns = run.sheets[row.sheet].columns
        if columns is not None and row.number == columns.header:
            heads[row.sheet] = row.cells
    return [[*head, *[""] * (width - len(head))] for head, width in zip(heads, widths, strict=True)]
