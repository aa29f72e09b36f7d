"""The access log: who read the audit trail, how a read is recorded, and the route that lists them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self
from uuid import UUID

import orjson
from fastapi import APIRouter, Query
from pydantic import BeforeValidator, Field, StringConstraints, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute

from api.http import answer_fields as answered
from api.http.caller import Caller, allow
from api.http.cursors import decode_two_way, link_header, neighbours, two_way_cursors, with_history
from api.http.denied_attempts import DeniedReason
from api.http.fields import CreatorName, Moment, VideoId
from api.http.models import Answer
from api.http.problems import malformed_query
from api.http.query_params import LIMIT, CodeId, EitherCursor, Exact, Flag, Limit, QueryModel, refuse_empty
from api.http.reads import PLACE, subject_of
from api.http.responses import answer
from api.http.route import Operation, Route
from api.http.validation_messages import ROUTE_EXPECTED, ROUTE_PATTERN
from domain.values import Role
from infra.auth.access_log import FIRST, GROUPED_ROLE, LAST, MACHINE_ROLE, Access, AccessFilter, AccessSubject
from infra.crypto.sealed_terms import seal_search_terms, unseal_search_terms
from projections.index_scan import Among

if TYPE_CHECKING:
    from collections.abc import Mapping

    from api.query_language import ParsedQuery
    from infra.auth.access_log import AccessRow


class AccessActor(Answer):
    key_id: Annotated[UUID | None, Field(description="The id of the API key. Null for the command line.")]
    key_name: Annotated[str | None, Field(description="The name of the key.")]
    role: Annotated[Role | Literal["machine"], Field(description="The role in which the key read.")]


class AccessEntry(Answer):
    access_id: Annotated[UUID, Field(description="The access.")]
    at: Annotated[answered.Moment, Field(description="When it was requested.")]
    actor: Annotated[AccessActor, Field(description="Who asked.")]
    route: Annotated[str, Field(description="What for.", examples=["GET /v1/events"])]
    query: Annotated[dict[str, Any], Field(description="The parameters of the request.")]
    format: Annotated[str, Field(description="The media type of the response.", examples=["text/csv"])]
    reads: Annotated[
        int,
        Field(
            ge=1,
            description=(
                "The number of equal reads: of lists, single codes and lookups in this minute, and for subscriber keys "
                "in this hour. Otherwise 1."
            ),
        ),
    ]
    rows: Annotated[int, Field(ge=0, description="The number of events, questions or entries in the responses.")]
    complete: Annotated[
        bool | None,
        Field(description="Whether the response was complete. Null while it is in progress, or if unknown."),
    ]
    ended_at: Annotated[answered.Moment | None, Field(description="When the response ended.")]
    request_id: Annotated[str | None, Field(description="Names the request in our logs.")]
    code_id: Annotated[UUID | None, Field(description="The code that was read or asked for, if it was one.")]
    creator_id: Annotated[str | None, Field(description="The creator of what was read, or who was asked for.")]
    video_id: Annotated[str | None, Field(description="The video of what was read, or that was asked for.")]
    refused: Annotated[str | None, Field(description="Why it was denied. Null for reads.", examples=["not_allowed"])]
    address: Annotated[
        str | None,
        Field(description="The address that a denied attempt came from. Shown only to admins, otherwise null."),
    ]
    user_agent: Annotated[
        str | None, Field(description="The user agent of a denied attempt. Shown only to admins, otherwise null.")
    ]
    path: Annotated[
        str | None,
        Field(description="The id in the path of a denied attempt, if any. Shown only to admins, otherwise null."),
    ]


class AccessesAnswer(Answer):
    accesses: Annotated[list[AccessEntry], Field(description="Newest first.")]
    next_cursor: Annotated[str | None, Field(description="The `cursor` of the next page. Null on the last page.")]
    prev_cursor: Annotated[str | None, Field(description="The `cursor` of the previous page. Null on the first page.")]


def _actor_filter(value: object) -> object:
    text = str(value).lower()
    with contextlib.suppress(ValueError):
        if text == MACHINE_ROLE or str(UUID(text)) == text:
            return text
    raise PydanticCustomError("reader", "Expected the id of a key, or `machine`.")


ActorFilter = Annotated[
    str,
    BeforeValidator(_actor_filter),
    WithJsonSchema({"anyOf": [{"type": "string", "format": "uuid"}, {"type": "string", "enum": [MACHINE_ROLE]}]}),
]


class AccessesFilters(QueryModel):
    """Which accesses are listed."""

    actor: Annotated[
        ActorFilter | None,
        Field(description="Only accesses with this key, given by id, or from the command line (`machine`)."),
    ] = None
    from_: Annotated[Moment | None, Field(alias="from", description="At this time or later.")] = None
    to: Annotated[Moment | None, Field(description="Before this time.")] = None
    refused: Annotated[Flag | None, Field(description="Only denied attempts, or only accesses that were answered.")] = (
        None
    )
    reason: Annotated[DeniedReason | None, Field(description="Only attempts that were denied for this reason.")] = None
    route: Annotated[
        str | None,
        StringConstraints(pattern=ROUTE_PATTERN),
        Field(
            description="Only accesses through this route, or with this command of the command line.",
            examples=["GET /v1/codes/{code_id}"],
        ),
    ] = None
    code_id: Annotated[CodeId | None, Field(description="Only reads of this code.")] = None
    creator_id: Annotated[
        CreatorName | None, Field(description="Only reads of this creator's permission or one code.")
    ] = None
    video_id_exact: Exact = None
    video_id: Annotated[VideoId | None, Field(description="Only reads of one code of this video.")] = None

    @model_validator(mode="after")
    def _no_empty_range(self) -> Self:
        refuse_empty(self.from_, self.to)
        return self

    @model_validator(mode="after")
    def _no_reason_of_what_was_answered(self) -> Self:
        if self.reason is not None and self.refused is False:
            raise malformed_query("reason", "`refused=false` leaves out denied attempts. Leave out one of both.")
        return self

    def wanted(self) -> AccessFilter:
        """Return which accesses are asked for."""
        machine = self.actor == MACHINE_ROLE
        key_id = None if self.actor is None or machine else UUID(self.actor)
        return AccessFilter(
            key_id,
            machine,
            self.from_,
            self.to,
            self.refused,
            self.reason,
            self.route,
            AccessSubject(self.code_id, self.creator_id, self.video_id),
        )

    def cursor_scope(self) -> dict[str, Any]:
        """Return what must be the same for a cursor to be good."""
        return {"of": "accesses", **self.model_dump(exclude={"cursor", "limit"}, exclude_none=True)}


class AccessesQuery(AccessesFilters):
    limit: Limit = LIMIT
    cursor: EitherCursor = None


# An id has 127 bits, as it begins with the time; the page before that of the last one has a cursor too.
_LAST_PLACE: Final = 2**127 - 2

router = APIRouter(route_class=Route, tags=["Audit"])


@router.get("/v1/accesses", response_model=AccessesAnswer, operation_id="listAccesses")
@Operation(answer_headers=("Ledger-Position",))
async def list_accesses(
    query: Annotated[AccessesQuery, Query()],
    caller: Annotated[Caller, allow("operator", "auditor", "admin")],
) -> Response:
    """List who read what: the audit trail, exports, histories, questions, codes and lists. Newest first, for 400 days.

    Denied attempts are listed too: the first 20 of each key, reason and hour. Only admins see where they came from.
    """
    if query.route is not None and not _exists(caller, query.route):
        raise malformed_query("route", ROUTE_EXPECTED)
    place, back = (
        (None, False) if query.cursor is None else decode_two_way(query.cursor, query.cursor_scope(), _LAST_PLACE)
    )
    at = UUID(int=LAST.int if place is None else place)
    # Before the accesses are read: they show at least what had been recorded by then.
    head = await caller.services.events.head(caller.ledger_id)
    rows = await caller.services.views.access_log.page(
        caller.ledger_id,
        query.wanted(),
        limit=query.limit + 1,
        before=LAST if back else at,
        after=at if back else FIRST,
        backwards=back,
    )
    shown = rows[-query.limit :] if back else rows[: query.limit]
    names = await caller.request.app.state.key_names.of(
        caller.ledger_id, {str(row.key_id) for row in shown if row.key_id is not None}
    )
    ledger_keys = await caller.services.keyring.ledger(caller.ledger_id)
    reached = shown[0 if back else -1].access_id.int if len(rows) > query.limit else None
    keys = [row.access_id.int for row in shown]
    beside = neighbours(keys, reached, place, back=back, ascending=False)
    cursors = with_history(caller.history.history, two_way_cursors(query.cursor_scope(), *beside))
    content = {
        "accesses": [
            _content(row, names) | {"query": unseal_search_terms(ledger_keys, row.query)} | await _refusal(row, caller)
            for row in shown
        ],
        **{f"{relation}_cursor": text for relation, text in cursors.items()},
    }
    return answer(content, 200, {"Ledger-Position": str(head), **link_header(caller.request, **cursors)})


def _exists(caller: Caller, route: str) -> bool:
    # Those of the console's pages among them: people sign in and out there.
    routes = [known for known in caller.request.app.routes if isinstance(known, StarletteRoute)]
    known = {f"{method} {route.path}" for route in routes for method in route.methods or ()}
    # What has no address is a command of the command line, or the first use of a key.
    return " /" not in route or route in known


async def record_access(
    caller: Caller,
    parameters: Mapping[str, Any],
    *,
    rows: int,
    format: str,
    complete: bool | None = True,
    subject: AccessSubject | None = None,
) -> UUID:
    """Record what is about to be answered, and return the entry's id.

    Args:
        caller: who asks.
        parameters: those of the query, as JSON.
        rows: events or questions in the answer.
        format: its media type.
        complete: whether that is all that was asked for; None where more is to come, which `Accesses.end` records.
        subject: what is read; by default, what the parameters name.

    Raises:
        Unavailable: it cannot be recorded, and so must not be answered.

    """
    access = await access_of(caller, parameters, rows=rows, format=format, complete=complete, subject=subject)
    return await caller.services.views.access_log.record(caller.ledger_id, access)


async def access_of(
    caller: Caller,
    parameters: Mapping[str, Any],
    *,
    rows: int,
    format: str,
    complete: bool | None = True,
    subject: AccessSubject | None = None,
) -> Access:
    """Return what `record_access` records, for what records it with the change that it describes."""
    request = caller.request
    subject = subject_of(parameters) if subject is None else subject
    parameters = seal_search_terms(await caller.services.keyring.ledger(caller.ledger_id), parameters)
    if caller.role == GROUPED_ROLE:
        parameters = {name: value for name, value in parameters.items() if name not in PLACE}
    return Access(
        key_id=caller.key.key_id,
        role=caller.role,
        route=f"{request.method} {request.scope['route'].path}",
        query=orjson.dumps(parameters, option=orjson.OPT_SORT_KEYS),
        format=format,
        rows=rows,
        complete=complete,
        request_id=request.scope["request_id"],
        subject=subject,
    )


async def _refusal(row: AccessRow, caller: Caller) -> dict[str, Any]:
    """Return why an attempt was refused, and for who guards the ledger from where it came; else nulls."""
    is_shown = row.sealed is not None and caller.role == "admin"
    origin = await caller.services.denied_attempts.origin(caller.ledger_id, row) if is_shown else {}
    return {"refused": row.refused, **{name: origin.get(name) for name in ("address", "user_agent", "path")}}


def _content(row: AccessRow, names: Mapping[str, str | None]) -> dict[str, Any]:
    return {
        "access_id": row.access_id,
        "at": row.at,
        "actor": {"key_id": row.key_id, "key_name": names.get(str(row.key_id)), "role": row.role},
        "route": row.route,
        "format": row.format,
        "reads": row.reads,
        "rows": row.rows,
        "complete": row.complete,
        "ended_at": row.ended_at,
        "request_id": row.request_id,
        "code_id": row.code_id,
        "creator_id": row.creator_id,
        "video_id": row.video_id,
    }


def subject_of_search(query: ParsedQuery) -> AccessSubject:
    """Return the code, the creator and the video that a search asks for, where it names one of each."""
    named = {
        condition.field: condition.values[0]
        for condition in query.conditions
        if isinstance(condition, Among) and not condition.negated and len(condition.values) == 1
    }
    return subject_of({field: str(value) for field, value in named.items()})
