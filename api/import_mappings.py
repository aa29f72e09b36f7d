"""The routes of mappings: how the sheets of one source are read, saved under a name and used by later imports."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self
from uuid import UUID

from fastapi import APIRouter
from pydantic import ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from api.access_log import record_access
from api.http import answer_fields as answered
from api.http import headers
from api.http.caller import Caller, allow
from api.http.fields import SingleLine
from api.http.models import Answer, Body
from api.http.problems import Problem, malformed_query
from api.http.responses import answer
from api.http.route import Operation, Route
from api.sheet_cells import MAX_DAYS, MAX_TERMS_CHARACTERS, is_time_zone
from api.sheet_columns import FIELDS, HEADER_ROWS, normal_name
from api.sheet_columns import Field as SheetField
from infra.imports.mappings import MappingNotFound, TooManyMappings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from infra.imports.mappings import SavedMapping

JSON: Final = "application/json"
MAX_NAME_CHARACTERS: Final = 128

ColumnName = Annotated[
    SingleLine,
    StringConstraints(min_length=1, max_length=MAX_NAME_CHARACTERS),
    Field(examples=["Kode"]),
]


class MappingBody(Body):
    """How the sheets of a source are read. What is left out is as in an import without a mapping."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    columns: Annotated[
        dict[SheetField, ColumnName | None] | None,
        Field(
            description="Which column is what, by the name in the sheet. Case, spaces and punctuation make no "
            "difference. Null: the field is not read.",
            max_length=len(FIELDS),
            examples=[{"secret": "Kode", "note": None}],
        ),
    ] = None
    header: Annotated[
        int | None,
        Field(ge=1, le=HEADER_ROWS, description="The number of the row that names the columns.", examples=[3]),
    ] = None
    dates: Annotated[
        Literal["dmy", "mdy"] | None, Field(description="The order of day and month in days such as 03/04/2026.")
    ] = None
    time_zone: Annotated[
        SingleLine | None,
        StringConstraints(max_length=64),
        Field(description="The time zone of days and times, by its IANA name.", examples=["Europe/Berlin"]),
    ] = None
    days: Annotated[
        int | None,
        Field(
            ge=1,
            le=MAX_DAYS,
            description="The length of every window of which a row states only one end, in days.",
            examples=[30],
        ),
    ] = None
    terms: Annotated[
        SingleLine | None,
        StringConstraints(min_length=1, max_length=MAX_TERMS_CHARACTERS),
        Field(
            description="The version of the advertising terms, for rows that do not say which.", examples=["2026-01"]
        ),
    ] = None
    permission: Annotated[
        bool, Field(description="State that every creator's ad authorization was on when their codes were generated.")
    ] = False

    @field_validator("columns")
    @classmethod
    def _each_once(cls, columns: dict[SheetField, str | None] | None) -> dict[SheetField, str | None] | None:
        names = [normal_name(name) for name in (columns or {}).values() if name is not None]
        if len(set(names)) < len(names) or "" in names:
            raise PydanticCustomError("column_twice", "Each column needs a name with a letter or digit, and one field.")
        return columns

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if self.time_zone is not None and not is_time_zone(self.time_zone):
            raise PydanticCustomError("time_zone", "Unknown time zone. Use an IANA name, such as Europe/Berlin.")
        if not self.model_fields_set:
            raise PydanticCustomError("empty", "Say at least one thing that differs from an import without a mapping.")
        return self


class MappingAnswer(Answer):
    name: Annotated[str, Field(description="The name of the mapping.", examples=["agency-north"])]
    columns: Annotated[
        dict[str, str | None] | None, Field(description="Which column is what, by the name in the sheet.")
    ]
    header: Annotated[int | None, Field(description="The number of the row that names the columns.")]
    dates: Annotated[str | None, Field(description="The order of day and month.", examples=["dmy"])]
    time_zone: Annotated[str | None, Field(description="The time zone.", examples=["Europe/Berlin"])]
    days: Annotated[int | None, Field(description="The length of windows in days.", examples=[30])]
    terms: Annotated[str | None, Field(description="The version of the terms.", examples=["2026-01"])]
    permission: Annotated[bool, Field(description="Whether ad authorizations are stated to have been on.")]
    saved_at: Annotated[answered.Moment, Field(description="When it was saved last.")]
    key_id: Annotated[UUID, Field(description="The id of the API key that saved it last.")]


class MappingsAnswer(Answer):
    mappings: Annotated[list[MappingAnswer], Field(description="Sorted by name.")]


router = APIRouter(route_class=Route, tags=["Commands"])


@router.get("/v1/imports/mappings", response_model=MappingsAnswer, operation_id="listMappings")
async def list_mappings(caller: Annotated[Caller, allow("operator", "auditor", "admin")]) -> Response:
    """List the mappings of imports, by name. There are at most 200."""
    found = await caller.services.mappings.all(caller.ledger_id)
    return answer({"mappings": [_content(mapping) for mapping in found]})


@router.get("/v1/imports/mappings/{name}", response_model=MappingAnswer, operation_id="readMapping")
@Operation(refusals=(404,))
async def read_mapping(name: str, caller: Annotated[Caller, allow("operator", "auditor", "admin")]) -> Response:
    """Read a mapping of imports."""
    with refusals_as_problems():
        return answer(_content(await caller.services.mappings.find(caller.ledger_id, headers.path_id(name))))


@router.put("/v1/imports/mappings/{name}", response_model=MappingAnswer, operation_id="saveMapping")
@Operation(
    refusals=(409,),
    trace="recorded",
    example={"columns": {"secret": "Kode", "video_id": "Clip", "note": None}, "dates": "dmy"},
)
async def save_mapping(name: str, body: MappingBody, caller: Annotated[Caller, allow("operator", "admin")]) -> Response:
    """Save how the sheets of a source are read, in place of what was saved under this name.

    `POST /v1/imports?mapping=NAME` reads a sheet that way. What the import itself says counts before the mapping.
    """
    headers.idempotency_key(caller.request)  # a repeat changes nothing, but a malformed one is a mistake
    content = body.model_dump(mode="json", exclude_unset=True)
    with refusals_as_problems():
        saved = await caller.services.mappings.save(caller.ledger_id, caller.key.key_id, headers.path_id(name), content)
    await record_access(caller, {"name": name}, rows=1, format=JSON)
    return answer(_content(saved))


@router.delete("/v1/imports/mappings/{name}", status_code=204, response_class=Response, operation_id="deleteMapping")
@Operation(refusals=(404,), trace="recorded")
async def delete_mapping(name: str, caller: Annotated[Caller, allow("operator", "admin")]) -> Response:
    """Delete a mapping. What was imported with it stays."""
    with refusals_as_problems():
        await caller.services.mappings.delete(caller.ledger_id, caller.key.key_id, headers.path_id(name))
    await record_access(caller, {"name": name}, rows=0, format=JSON)
    return Response(status_code=204)


def mapping_of(saved: SavedMapping) -> MappingBody:
    """Return what a saved mapping says.

    Raises:
        Problem: it was saved by a version of the program that allowed more.

    """
    try:
        return MappingBody.model_validate(dict(saved.content))
    except ValidationError:
        raise malformed_query(
            "mapping", "This mapping was saved by a version that allowed more. Read it, and save it again."
        ) from None


@contextmanager
def refusals_as_problems() -> Iterator[None]:
    """Turn what the store refuses into problems."""
    try:
        yield
    except MappingNotFound:
        raise Problem("mapping_unknown") from None
    except TooManyMappings:
        raise Problem("too_many_mappings") from None


def _content(saved: SavedMapping) -> dict[str, Any]:
    content: Mapping[str, Any] = saved.content
    return {
        "name": saved.name,
        **{name: content.get(name) for name in ("columns", "header", "dates", "time_zone", "days", "terms")},
        "permission": content.get("permission", False),
        "saved_at": saved.saved_at,
        "key_id": saved.key_id,
    }
