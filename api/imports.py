"""The route that imports sheets: first as a dry run, which records nothing, and then for good."""

from __future__ import annotations

import asyncio
import hashlib
import re
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import IO, TYPE_CHECKING, Annotated, Any, Final, Literal, Self
from zoneinfo import ZoneInfo

import orjson
from fastapi import APIRouter, Query, Request
from pydantic import Field, StringConstraints, model_validator
from starlette.responses import Response

from api.access_log import access_of, record_access
from api.authorization_batch import Upload
from api.http import headers
from api.http.caller import Caller, allow
from api.http.fields import SingleLine
from api.http.places import MIB
from api.http.problems import Problem, malformed_body, malformed_query
from api.http.query_params import Flag, Number, QueryModel
from api.http.responses import answer, replay_header
from api.http.route import Operation, Route
from api.http.streaming_download import StreamingDownload, refuse_revoked
from api.import_mappings import MappingBody, mapping_of, refusals_as_problems
from api.import_run import FATES, Import, ImportOptions
from api.import_runs import NDJSON, ImportAccepted, run_content
from api.sheet_cells import MAX_DAYS, MAX_TERMS_CHARACTERS, Reading, is_time_zone
from api.sheet_columns import FIELDS, column_index, column_letters
from api.sheet_files import SheetError, read_sheets
from domain.values import ID_PATTERN, Policy
from infra.errors import KeyNoLongerValid, Unavailable
from infra.imports.runs import TooManyRuns

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from uuid import UUID

    from api.import_run import RowOutcome
    from api.sheet_columns import Field as SheetField
    from api.sheet_files import ReadSheets
    from domain.pasted import VideoIds

XLSX: Final = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
MEDIA_TYPES: Final = (XLSX, "text/csv", "text/tab-separated-values")
_COLUMN: Final = re.compile(r"(?P<field>[a-z_]+)=(?P<letters>[A-Za-z]{0,3})")
_BLOCK: Final = MIB
_REQUEST_NAME_BYTES: Final = 16
# Of what is stored of a request for the worker.
_ASKED_VERSION: Final = 1
_NEWER: Final = "A newer version of the program has accepted this import. Update the worker."
# Larger sheets are left to the worker. So many rows take a few seconds.
MAX_ROWS_OF_A_REQUEST: Final = 2_000

# No schema: what a file is follows from its content, and a row that says too little is answered with that.
_BODY: Final = {
    "requestBody": {
        "required": True,
        "content": {
            media_type: {"schema": {}, "example": f"Creator{separator}Video{separator}Spark Code\n"}
            if separator
            else {"schema": {"type": "string", "format": "binary"}}
            for media_type, separator in zip(MEDIA_TYPES, ("", ",", "\t"), strict=True)
        },
    }
}

router = APIRouter(route_class=Route, tags=["Commands"])


class ImportQuery(QueryModel):
    record: Annotated[
        Flag, Field(description="Record the rows. Default: only say what would become of each row, and record nothing.")
    ] = False
    dates: Annotated[
        Literal["dmy", "mdy"] | None,
        Field(description="The order of day and month in days such as 03/04/2026. Default: such a row is unclear."),
    ] = None
    time_zone: Annotated[
        str,
        StringConstraints(max_length=64),
        Field(
            description="The time zone of days, and of times without an offset, by its IANA name.",
            examples=["America/Los_Angeles"],
        ),
    ] = "UTC"
    days: Annotated[
        Number | None,
        Field(description="The length of every window of which a row states only one end, in days.", examples=[30]),
    ] = None
    terms: Annotated[
        SingleLine | None,
        Field(
            max_length=MAX_TERMS_CHARACTERS,
            description="The version of TikTok's advertising terms that the creators accepted, for rows that do not "
            "say which.",
            examples=["2026-01"],
        ),
    ] = None
    permission: Annotated[
        Flag,
        Field(
            description="State that the ad authorization of every creator was on when their codes were generated. It "
            "is recorded where nothing is recorded for that time. A column `permission` says it for one row."
        ),
    ] = False
    columns: Annotated[
        str | None,
        StringConstraints(max_length=500),
        Field(
            description="Which column is what, if its name does not say it: `field=LETTERS`, separated by commas. "
            f"Without letters, the field is not read. Fields: {', '.join(FIELDS)}.",
            examples=["secret=F,video_id=C,note="],
        ),
    ] = None
    header: Annotated[
        Number | None, Field(description="The number of the row that names the columns. Default: it is found.")
    ] = None
    mapping: Annotated[
        str | None,
        StringConstraints(pattern=ID_PATTERN),
        Field(
            description="The name of a saved mapping by which the sheet is read. What this request says itself counts "
            "before it.",
            examples=["agency-north"],
        ),
    ] = None
    record_differences: Annotated[
        Flag,
        Field(description="With `record`: record on each code in what its row contradicts it, as a note."),
    ] = False

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if self.days is not None and self.days > MAX_DAYS:
            raise malformed_query("days", f"A window has at most {MAX_DAYS:,} days.")
        if self.record_differences and not self.record:
            raise malformed_query("record_differences", "Differences are recorded only with `record=true`.")
        if not is_time_zone(self.time_zone):
            raise malformed_query("time_zone", "Unknown time zone. Use an IANA name, such as Europe/Berlin.")
        given_columns(self.columns)
        return self

    def options(self, video_ids: VideoIds, mapping: MappingBody | None = None) -> ImportOptions:
        """Return how the sheet is imported: as this says it, else as its mapping does."""
        said = self
        columns = given_columns(self.columns)
        named: dict[SheetField, str] = {}
        if mapping is not None:
            kept = {
                name: getattr(mapping, name) for name in mapping.model_fields_set - self.model_fields_set - {"columns"}
            }
            # Null says nothing, as if it were left out.
            said = self.model_copy(update={name: value for name, value in kept.items() if value is not None})
            for field, name in (mapping.columns or {}).items():
                if field not in columns and name is None:
                    columns[field] = None
                elif field not in columns and name is not None:
                    named[field] = name
        reading = Reading(
            dates=said.dates,
            zone=ZoneInfo(said.time_zone),
            length=None if said.days is None else timedelta(days=said.days),
            terms_version=said.terms,
            permission=said.permission,
            video_ids=video_ids,
        )
        return ImportOptions(
            reading, said.record, said.record_differences, columns, said.header, named=named, mapping=self.mapping
        )


@dataclass(frozen=True, slots=True)
class Asked:
    """What an import asks for, as it is stored for the worker, which may have other settings, or another version.

    NOTE: imports that wait have it stored. Where it changes, raise `_ASKED_VERSION`, and go on reading what is stored.

    Attributes:
        query: the parameters of the request.
        mapping: what its mapping said then.
        policy: what the rules left to configuration.
        video_ids: which ids videos can have.
        request: a hash of the Idempotency-Key with which it was sent.

    """

    query: ImportQuery
    mapping: MappingBody | None
    policy: Policy
    video_ids: VideoIds
    request: str | None = None

    @property
    def options(self) -> ImportOptions:
        """How the sheet is imported."""
        return self.query.options(self.video_ids, self.mapping)

    def stored(self) -> dict[str, Any]:
        """Return it as it is stored."""
        sent = self.query.model_dump(mode="json", exclude_unset=True)
        return {
            "version": _ASKED_VERSION,
            "query": {
                name: "true" if value is True else str(value)
                for name, value in sent.items()
                if value is not None and value is not False
            },
            "mapping": None if self.mapping is None else self.mapping.model_dump(mode="json", exclude_unset=True),
            "policy": asdict(self.policy),
            "video_ids": self.video_ids,
            **({} if self.request is None else {"request": self.request}),
        }

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Self:
        """Return what was stored.

        Raises:
            Unavailable: a newer version has stored it, so a worker of that version carries it out.

        """
        if stored["version"] > _ASKED_VERSION:
            raise Unavailable(_NEWER)
        mapping, policy = stored["mapping"], stored["policy"]
        return cls(
            ImportQuery.model_validate(stored["query"]),
            None if mapping is None else MappingBody.model_validate(mapping),
            Policy(**policy | {"allowed_days": tuple(policy["allowed_days"])}),
            stored["video_ids"],
            stored.get("request"),
        )


def given_columns(text: str | None) -> dict[SheetField, int | None]:
    """Read which columns the caller names.

    Raises:
        Problem: it names no field or no column, or one of them twice.

    """
    given: dict[SheetField, int | None] = {}
    for part in text.split(",") if text else ():
        found = _COLUMN.fullmatch(part.strip())
        field = None if found is None else next((one for one in FIELDS if one == found["field"]), None)
        if found is None or field is None:
            raise malformed_query("columns", f"Expected field=LETTERS. The fields are {', '.join(FIELDS)}.")
        column = column_index(found["letters"]) if found["letters"] else None
        if field in given or (column is not None and column in given.values()):
            raise malformed_query("columns", "A field or a column is named twice.")
        given[field] = column
    return given


@router.post(
    "/v1/imports",
    response_class=Response,
    responses={202: {"model": ImportAccepted}},
    openapi_extra=_BODY,
    operation_id="importSheet",
)
@Operation(
    trace="recorded",
    refusals=(404, 409),
    answer_headers=("Location", "Idempotent-Replayed"),
    other_formats=(NDJSON,),
)
async def import_sheet(
    query: Annotated[ImportQuery, Query()],
    request: Request,
    caller: Annotated[Caller, allow("operator", "admin")],
) -> Response:
    """Import a sheet of codes: a CSV or TSV in UTF-8, or an XLSX workbook. By default, this is a dry run.

    The response is NDJSON: a first line `{"import": {…}}` says how the sheet is read, then comes a line for each row,
    and a last line `{"summary": {…}}`. A response without a summary is incomplete: send the sheet again. A row's `fate`
    is `new`, `changed` (known, and more is recorded of it), `known`, `differs` (it contradicts what is recorded),
    `refused` or `unclear`. With `record=true`, rows that are new or changed are recorded, each whole or not at all.
    Importing the same sheet again records nothing.

    With `record=true`, a sheet of more than 2,000 rows is left to the worker. The response is 202 then, as JSON, and
    `GET /v1/imports/{import_id}` says how far the import is. The same sheet with the same parameters and key names the
    same import until it has ended, and with the same `Idempotency-Key` for as long as it is listed.
    """
    # Other imports record nothing when they are repeated, but a malformed one is a mistake.
    idempotency_key = headers.idempotency_key(request)
    mapping = None
    if query.mapping is not None:
        with refusals_as_problems():
            mapping = mapping_of(await caller.services.mappings.find(caller.ledger_id, query.mapping))
    if headers.media_type(request) not in MEDIA_TYPES:
        raise Problem("unsupported_media_type", f"Send the sheet as `Content-Type: {'`, `'.join(MEDIA_TYPES)}`.")
    upload = await Upload.begin(caller)
    try:
        await upload.receive(lambda _: None)
        sha256 = digest_of(upload.file)
        file = await read_sheets(upload.file)
        run = await _prepared(caller, query, mapping, file, sha256)
        if run.recording and run.rows > MAX_ROWS_OF_A_REQUEST:
            with file:
                asked = Asked(
                    query,
                    mapping,
                    caller.services.policy,
                    caller.services.settings.video_ids,
                    None if idempotency_key is None else _request_name(caller, idempotency_key),
                )
                return await _later(caller, asked, run, upload.file, import_content(run, file, sha256))
    except SheetError as error:
        raise malformed_body("", str(error)) from None
    finally:
        upload.close()
    return _answer(caller, query, run, file, sha256)


async def _prepared(
    caller: Caller, query: ImportQuery, mapping: MappingBody | None, file: ReadSheets, sha256: str
) -> Import:
    """Find the columns and count the rows of a file, in a thread: it may have many rows.

    Raises:
        SheetError: it has no columns that are known, or not those of its mapping.

    """
    try:
        return await asyncio.to_thread(
            Import,
            caller.services.aggregates,
            caller.services.handler,
            ledger_id=caller.ledger_id,
            actor=caller.actor(None),
            policy=caller.services.policy,
            file=file,
            file_sha256=sha256,
            options=query.options(caller.services.settings.video_ids, mapping),
        )
    except BaseException:
        file.__exit__()
        raise


async def _later(caller: Caller, asked: Asked, run: Import, sheet: IO[bytes], read: dict[str, Any]) -> Response:
    """Leave an import to the worker, and answer how its sheet is read."""
    sha256 = read["import"]["sha256"]
    parameters = asked.query.model_dump(mode="json", exclude_unset=True) | {"sha256": sha256}
    try:
        import_id, replayed = await caller.services.import_runs.add(
            run.import_id,
            caller.ledger_id,
            key_id=caller.key.key_id,
            role=caller.role,
            asked=asked.stored(),
            file=sheet,
            file_sha256=sha256,
            rows=run.rows,
            first_line=line(_without_names(read)),
            access=await access_of(caller, parameters, rows=run.rows, format=NDJSON),
        )
    except TooManyRuns:
        raise Problem("too_many_imports") from None
    stored = await caller.services.import_runs.find(caller.ledger_id, import_id)
    read["import"]["import_id"] = import_id
    location = {"Location": f"/v1/imports/{import_id}"}
    return answer(run_content(stored) | read, 202, location | replay_header(replayed))


def _without_names(read: dict[str, Any]) -> dict[str, Any]:
    """Return how a sheet is read without the titles of sheets: they may name people, and no erasure reaches them."""
    said = read["import"]
    sheets = [{name: value for name, value in sheet.items() if name != "name"} for sheet in said["sheets"]]
    return {"import": {name: value for name, value in said.items() if name != "hidden"} | {"sheets": sheets}}


def _request_name(caller: Caller, idempotency_key: str) -> str:
    """Return a hash by which a repeated request is known; keyed, as nobody else is to test guesses at what it is of."""
    return hashlib.blake2b(
        idempotency_key.encode(), digest_size=_REQUEST_NAME_BYTES, key=caller.key.request_key, person=b"imports"
    ).hexdigest()


def _answer(caller: Caller, query: ImportQuery, run: Import, file: ReadSheets, sha256: str) -> Response:
    parameters = query.model_dump(mode="json", exclude_unset=True) | {"sha256": sha256}
    access: list[UUID] = []

    async def begin() -> None:
        access.append(await record_access(caller, parameters, rows=0, format=NDJSON, complete=None))

    async def end(complete: bool) -> None:
        file.__exit__()
        for access_id in access:
            await caller.services.views.access_log.end(
                caller.ledger_id, access_id, rows=run.counts.total(), complete=complete
            )

    return StreamingDownload(
        caller, _pieces(caller, run, file, sha256), begin=begin, end=end, headers={}, media_type=NDJSON
    )


async def _pieces(caller: Caller, run: Import, file: ReadSheets, sha256: str) -> AsyncGenerator[bytes]:
    yield line(import_content(run, file, sha256))
    try:
        async for outcomes in run.outcomes():
            yield b"".join(line(row_content(outcome)) for outcome in outcomes)
            await refuse_revoked(caller)
    except KeyNoLongerValid as error:
        raise Unavailable(str(error)) from None
    yield line(summary_content(run))


def line(content: Mapping[str, Any]) -> bytes:
    """Return a line of the answer."""
    return orjson.dumps(content, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE)


def import_content(run: Import, file: ReadSheets, sha256: str) -> dict[str, Any]:
    """Return how a sheet is read."""
    sheets = [
        {
            "sheet": number,
            "name": sheet.name,
            "header": None if sheet.columns is None else sheet.columns.header,
            "columns": {}
            if sheet.columns is None
            else {field: column_letters(index) for field, index in sheet.columns.fields.items()},
            "not_read": [] if sheet.columns is None else [column_letters(index) for index in sheet.columns.not_read],
            # Only of a sheet that the others are joined with.
            **({"roster": {"rows_not_used": run.not_used[number - 1]}} if number - 1 in run.not_used else {}),
        }
        for number, sheet in enumerate(run.sheets, 1)
    ]
    return {
        "import": {
            "import_id": run.import_id,
            "sha256": sha256,
            "recording": run.recording,
            "mapping": run.mapping,
            "rows": run.rows,
            "sheets": sheets,
            "hidden": file.hidden,
        }
    }


def row_content(outcome: RowOutcome) -> dict[str, Any]:
    """Return what became of a row; what there is nothing to say of is left out."""
    content: dict[str, Any] = {"sheet": outcome.row.sheet + 1, "row": outcome.row.number, "fate": outcome.fate}
    said = outcome._asdict()
    for name in ("code_id", "position", "field", "column", "reason", "detail", "conflict_id"):
        if said[name] is not None:
            content[name] = said[name]
    if outcome.differences:
        content["differences"] = [difference._asdict() for difference in outcome.differences]
    return content


def summary_content(run: Import) -> dict[str, Any]:
    """Return how many rows had each fate."""
    recorded = run.started is not None
    return {
        "summary": {
            "import_id": run.import_id if recorded else None,
            "recorded": recorded,
            "rows": run.counts.total(),
            **{fate: run.counts[fate] for fate in FATES},
        }
    }


def digest_of(file: IO[bytes]) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    file.seek(0)
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()
