"""The routes of imports that the worker carries out: how far each is, its report, and an end to it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final
from uuid import UUID

import orjson
from fastapi import APIRouter, Query
from pydantic import Field
from starlette.responses import Response

from api.access_log import access_of, record_access
from api.http import answer_fields as answered
from api.http import headers
from api.http.caller import Caller, allow
from api.http.cursors import MAX_KEY, decode, encode
from api.http.models import Answer
from api.http.pagination import page_answer, page_of
from api.http.problems import Problem
from api.http.query_params import LIMIT, Limit, NextCursor, QueryModel
from api.http.responses import answer
from api.http.route import Operation, Route
from api.http.streaming_download import StreamingDownload
from api.import_run import FATES
from domain.errors import Unknown
from infra.imports.runs import RunNotFound, RunState

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from infra.imports.runs import ImportRun

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
_SCOPE: Final = "imports"
# What the report of an import says at its end that did not judge all rows.
_STOPPED: Final = frozenset({"import_id", "state", "error", "rows", "rows_done", *FATES})


class ImportAnswer(Answer):
    import_id: Annotated[UUID, Field(description="The import. Its events name it.")]
    state: Annotated[
        RunState,
        Field(
            description="`waiting` for the worker, `running`, `ended`, `failed` or `cancelled`. What was recorded "
            "stays in every case."
        ),
    ]
    rows: Annotated[answered.Count, Field(description="How many rows of data the sheet has.")]
    rows_done: Annotated[answered.Count, Field(description="How many of them were judged and recorded so far.")]
    new: Annotated[answered.Count, Field(description="Of these, rows whose code was not known.")]
    changed: Annotated[answered.Count, Field(description="Rows that said more of a known code.")]
    known: Annotated[answered.Count, Field(description="Rows of which everything was recorded already.")]
    differs: Annotated[answered.Count, Field(description="Rows that contradict what is recorded.")]
    refused: Annotated[answered.Count, Field(description="Rows that a rule refused.")]
    unclear: Annotated[answered.Count, Field(description="Rows that leave open what they mean.")]
    error: Annotated[str | None, Field(description="Why it failed or was cancelled, and what to do.")]
    sha256: Annotated[str, Field(description="The SHA-256 of the file.")]
    key_id: Annotated[UUID, Field(description="The id of the API key that sent it.")]
    cancelled_by: Annotated[UUID | None, Field(description="The id of the API key that cancelled it.")]
    requested_at: Annotated[answered.Moment, Field(description="When it was sent.")]
    started_at: Annotated[answered.Moment | None, Field(description="When the worker began.")]
    ended_at: Annotated[answered.Moment | None, Field(description="When it ended.")]


class ImportAccepted(ImportAnswer):
    read: Annotated[
        dict[str, Any],
        Field(alias="import", description="How the sheet is read, as in the first line of a response with its rows."),
    ]


class ImportsAnswer(Answer):
    imports: Annotated[list[ImportAnswer], Field(description="Newest first.")]
    next: Annotated[str | None, Field(description="The cursor of the next page, or null on the last page.")]


class ImportsQuery(QueryModel):
    limit: Limit = LIMIT
    cursor: NextCursor = None


router = APIRouter(route_class=Route, tags=["Commands"])


@router.get("/v1/imports", response_model=ImportsAnswer, operation_id="listImports")
async def list_imports(
    query: Annotated[ImportsQuery, Query()], caller: Annotated[Caller, allow("operator", "auditor", "admin")]
) -> Response:
    """List the imports that were left to the worker, newest first. They are kept for 30 days after their end.

    Smaller imports are answered at once. Those that recorded something are in the audit trail, as `ImportStarted`.
    """
    before = UUID(int=MAX_KEY if query.cursor is None else decode(query.cursor, _SCOPE, MAX_KEY))
    found = await caller.services.import_runs.page(caller.ledger_id, before, query.limit + 1)
    page = page_of(found, query.limit, lambda run: encode(run.import_id.int, _SCOPE))
    return page_answer(caller, "imports", page, run_content)


@router.get("/v1/imports/{import_id}", response_model=ImportAnswer, operation_id="readImport")
@Operation(refusals=(404,))
async def read_import(import_id: str, caller: Annotated[Caller, allow("operator", "auditor", "admin")]) -> Response:
    """Read how far an import is that was left to the worker."""
    return answer(run_content(await _found(caller, import_id)))


@router.get("/v1/imports/{import_id}/report", response_class=Response, operation_id="readImportReport")
@Operation(refusals=(404,), trace="recorded", other_formats=(NDJSON,))
async def read_import_report(
    import_id: str, caller: Annotated[Caller, allow("operator", "auditor", "admin")]
) -> Response:
    """Read what became of the rows of an import that was left to the worker, as `POST /v1/imports` answers it.

    While the import is under way, the report has the rows so far, and no summary. If it failed or was cancelled, the
    last line is `{"stopped": {…}}` in place of the summary. The titles of sheets are left out.
    """
    run = await _found(caller, import_id)
    access: list[UUID] = []

    async def begin() -> None:
        parameters = {"import_id": str(run.import_id)}
        access.append(await record_access(caller, parameters, rows=0, format=NDJSON, complete=None))

    async def end(complete: bool) -> None:
        for access_id in access:
            await caller.services.views.access_log.end(
                caller.ledger_id, access_id, rows=run.rows_done, complete=complete
            )

    return StreamingDownload(caller, _report(caller, run), begin=begin, end=end, headers={}, media_type=NDJSON)


async def _report(caller: Caller, run: ImportRun) -> AsyncGenerator[bytes]:
    async for lines in caller.services.import_runs.report(run):
        yield lines
    if run.state in {"failed", "cancelled"}:
        stopped = {name: value for name, value in run_content(run).items() if name in _STOPPED}
        yield orjson.dumps({"stopped": stopped}, option=orjson.OPT_APPEND_NEWLINE)


@router.delete(
    "/v1/imports/{import_id}",
    status_code=204,
    response_class=Response,
    operation_id="cancelImport",
)
@Operation(refusals=(404,), trace="recorded")
async def cancel_import(import_id: str, caller: Annotated[Caller, allow("operator", "admin")]) -> Response:
    """Cancel an import that was left to the worker. It stops within some hundred rows, and what was recorded stays.

    An import that has ended stays as it is.
    """
    with _unknown_as_problem():
        run_id = headers.path_uuid(import_id, "import")
        access = await access_of(caller, {"import_id": str(run_id)}, rows=0, format=JSON)
        await caller.services.import_runs.cancel(caller.ledger_id, caller.key.key_id, run_id, access)
    return Response(status_code=204)


def run_content(run: ImportRun) -> dict[str, Any]:
    """Return how far an import is."""
    return {
        "import_id": run.import_id,
        "state": run.state,
        "rows": run.rows,
        "rows_done": run.rows_done,
        **{fate: run.counts.get(fate, 0) for fate in FATES},
        "error": run.error,
        "sha256": run.file_sha256,
        "key_id": run.key_id,
        "cancelled_by": run.cancelled_by,
        "requested_at": run.requested_at,
        "started_at": run.started_at,
        "ended_at": run.ended_at,
    }


async def _found(caller: Caller, import_id: str) -> ImportRun:
    with _unknown_as_problem():
        return await caller.services.import_runs.find(caller.ledger_id, headers.path_uuid(import_id, "import"))


@contextmanager
def _unknown_as_problem() -> Iterator[None]:
    try:
        yield
    except (RunNotFound, Unknown):
        raise Problem("import_unknown") from None
