"""Events: the audit trail, in pages of three formats, and one event."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.responses import Response

from api.access_log import record_access, subject_of_search
from api.event_content import EventAnswer, csv_head, csv_text, event_content, names_in, names_of, ndjson, row_content
from api.event_filters import Filters
from api.event_search import SearchRange, index_stopped, restrict_to_caller, search_events
from api.http import headers
from api.http.as_of import refuse_ahead
from api.http.caller import Caller, allow
from api.http.cursors import decode_two_way, link_header, neighbours, two_way_cursors
from api.http.dependencies import DatabaseCursor
from api.http.media_types import CSV, JSON, NDJSON, wanted_format
from api.http.models import Answer, absent
from api.http.problems import Problem
from api.http.query_params import LIMIT, AtLeast, EitherCursor, Limit
from api.http.reads import subject_of
from api.http.responses import answer
from api.http.route import Operation, Route
from infra.eventstore.event_rows import POSITION
from projections import event_index, index_scan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from api.event_search import SearchResult
    from api.query_language import ParsedQuery
    from infra.eventstore.event_rows import Row


class EventsAnswer(Answer):
    events: Annotated[list[EventAnswer], Field(description="The events, in the requested order.")]
    next: Annotated[
        int | None,
        Field(description="The `after` of the next page (with order=desc: its `before`). Null if there is none yet."),
    ]
    next_cursor: Annotated[str | None, Field(description="The `cursor` of the next page. Null if `next` is.")]
    prev_cursor: Annotated[str | None, Field(description="The `cursor` of the previous page. Null on the first page.")]
    complete: Annotated[
        bool,
        Field(
            description="False if the search stopped before the page was full, because it had scanned enough "
            "events (`next` continues there) or because its view has stopped."
        ),
    ]
    looked_through: Annotated[
        int, Field(ge=0, description="The number of events scanned for this page.", examples=[100])
    ]
    total: Annotated[int, Field(ge=0, description="The estimated total number of events, if requested.")] = Field(
        default_factory=absent
    )


class EventsQuery(Filters):
    order: Annotated[Literal["asc", "desc"], Field(description="Oldest or newest first.")] = "asc"
    limit: Limit = LIMIT
    cursor: EitherCursor = None
    total: Annotated[
        Literal["estimate"] | None,
        Field(description="`estimate` adds an estimate of the total number of events. Nothing is counted for it."),
    ] = None
    at_least: AtLeast = None

    def cursor_scope(self) -> dict[str, Any]:
        """Return what must be the same for a cursor to be good."""
        return self.model_dump(exclude={"cursor", "limit", "total", "at_least"})


_POSITION: Final = re.compile(r"[1-9][0-9]{0,17}")

router = APIRouter(route_class=Route, tags=["Audit"])


@router.get("/v1/events", response_model=EventsAnswer, operation_id="listEvents")
@Operation(trace="recorded", answer_headers=("Ledger-Position", "Search-Complete", "Looked-Through"), lines=True)
async def list_events(
    query: Annotated[EventsQuery, Query()],
    caller: Annotated[Caller, allow("creator", "operator", "auditor", "subscriber", "admin")],
) -> Response:
    """Read the audit trail by position. Committed events are visible immediately. A creator's key reads its own events.

    A search for rare events stops after a limited time: then `complete` is false, `looked_through` is the number of
    scanned events, and `next` continues there. `complete` is also false if the searched view has stopped.
    `Ledger-Position` says how far it came. Reads are recorded in the access log.
    """
    parsed = restrict_to_caller(caller, query.parsed())
    await refuse_ahead(caller, query.at_least)
    page = await _page(caller, query, parsed)
    names = await names_in(caller.request.app.state.key_names, caller.ledger_id, page.shown)
    contents = [row_content(row, names) for row in page.shown]
    format_ = wanted_format(headers.text(caller.request, b"accept"))
    answer_headers = {
        "Vary": "Accept",
        "Ledger-Position": str(page.upto),
        "Search-Complete": str(page.found.complete).lower(),
        "Looked-Through": str(page.found.rows_scanned),
        **link_header(caller.request, **page.cursors),
    }
    total = {} if query.total is None else {"total": await _total(caller, query, parsed, page)}
    await record_access(
        caller,
        query.parameters(),
        rows=len(contents),
        format=format_,
        complete=page.found.complete,
        subject=subject_of_search(parsed),
    )
    match format_:
        case "text/csv":
            return Response(csv_head() + csv_text(contents), 200, answer_headers, f"{CSV}; charset=utf-8")
        case "application/x-ndjson":
            return Response(ndjson(contents), 200, answer_headers, NDJSON)
        case _:
            content = {
                "events": contents,
                "next": page.next,
                "next_cursor": page.cursors["next"],
                "prev_cursor": page.cursors["prev"],
                "complete": page.found.complete,
                "looked_through": page.found.rows_scanned,
                **total,
            }
            return answer(content, 200, answer_headers)


@router.get("/v1/events/{position}", response_model=EventAnswer, operation_id="readEvent")
@Operation(trace="recorded", answer_headers=("Ledger-Position",))
async def read_event(
    position: str, caller: Annotated[Caller, allow("creator", "operator", "auditor", "admin")]
) -> Response:
    """Read one event by its position."""
    store = caller.services.events
    found = await store.at_positions(caller.ledger_id, [int(position)]) if _POSITION.fullmatch(position) else []
    if not found:
        raise Problem("event_unknown")
    if caller.role == "creator":
        caller.act_for_creator(found[0].creator_id or "")
    names = await names_of(caller, found)
    content = event_content(found[0], names)
    parameters = {"position": found[0].position}
    await record_access(caller, parameters, rows=1, format=JSON, subject=subject_of(content))
    return answer(content, 200, {"Ledger-Position": str(found[0].position)})


@dataclass(frozen=True, slots=True)
class _Page:
    """A page: its events in the order asked for, how they were found, and where the pages beside it begin.

    `upto` is how far into the ledger it has read.
    """

    shown: Sequence[Row]
    found: SearchResult
    upto: int
    next: int | None
    cursors: dict[str, str | None]


async def _page(caller: Caller, query: EventsQuery, parsed: ParsedQuery) -> _Page:
    low, high = query.after or 0, index_scan.END if query.before is None else query.before
    place, back = (None, False) if query.cursor is None else decode_two_way(query.cursor, query.cursor_scope())
    ascending = query.order == "asc"
    upwards = ascending is not back
    if place is not None:
        low, high = (max(low, place), high) if upwards else (low, min(high, place))
    head = await caller.services.events.head(caller.ledger_id)
    within = SearchRange(low, high, not upwards, at_least=min(head, high - 1))
    found = await search_events(caller.services.views, caller.ledger_id, parsed, within, query.limit + 1)
    upto = head if found.upto is None else found.upto
    if found.cut_off and upto <= low:
        raise index_stopped(upto)
    read = found.rows[: query.limit]
    shown = read[::-1] if back else read
    reached = read[-1][POSITION] if len(found.rows) > query.limit else found.stopped_at
    keys = [row[POSITION] for row in shown]
    after, before = neighbours(keys, reached, place, back=back, ascending=ascending)
    # What was recorded since the head was looked up may be among them. A search that gave up read as far as there.
    upto = max(upto, *keys, 0)
    if upwards and found.stopped_at is not None:
        upto = min(upto, found.stopped_at)
    return _Page(shown, found, upto, after, two_way_cursors(query.cursor_scope(), after, before))


async def _total(caller: Caller, query: EventsQuery, parsed: ParsedQuery, page: _Page) -> int:
    """Return about how many events there are in all: exactly where this page is all, or where positions tell."""
    if query.cursor is None and page.next is None:
        return len(page.shown)
    low, high = query.after or 0, index_scan.END if query.before is None else query.before
    if not parsed.conditions:
        head = await caller.services.events.head(caller.ledger_id)
        total = max(0, min(head, high - 1) - low)
    else:

        async def estimate(cur: DatabaseCursor) -> int:
            return await index_scan.estimate(cur, caller.ledger_id, parsed.conditions, after=low, before=high)

        total, _ = await caller.services.views.read(caller.ledger_id, estimate, view=event_index.NAME)
    if parsed.words:
        total = total * len(page.found.rows) // max(page.found.rows_scanned, 1)
    return max(total, len(page.shown))
