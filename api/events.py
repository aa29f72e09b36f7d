"""Events: the audit trail, in pages of three formats, and one event."""

from __future__ import annotations

import asyncio
import contextlib
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Protocol, Self

from fastapi import APIRouter, Query
from pydantic import BeforeValidator, Field, model_validator
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from api.access_log import record_access, subject_of_search
from api.event_content import (
    EventAnswer,
    SealedUpto,
    csv_head,
    csv_text,
    names_in,
    ndjson,
    row_content,
    with_proof,
)
from api.event_filters import Filters
from api.event_search import SearchRange, index_stopped, query_of, search_events
from api.http import answer_fields as answered
from api.http import headers
from api.http.as_of import wait_for_log
from api.http.caller import Caller, allow
from api.http.cursors import decode_two_way, link_header, link_to, neighbours, two_way_cursors, with_history
from api.http.dependencies import DatabaseCursor
from api.http.media_types import CSV, JSON, NDJSON, wanted_format
from api.http.models import Answer, absent
from api.http.problems import Problem, ahead_of_ledger, malformed_query, unauthenticated
from api.http.query_params import LIMIT, AtLeast, EitherCursor, Limit, whole_number
from api.http.reads import subject_of
from api.http.responses import answer
from api.http.route import Operation, Route
from infra.errors import Unavailable
from infra.eventstore.event_rows import CAUSATION_ID, CREATOR_ID, EVENT_ID, POSITION, STREAM_ID
from projections import event_index, index_scan

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from contextlib import AbstractAsyncContextManager

    from api.event_search import SearchResult
    from api.query_language import ParsedQuery
    from infra.eventstore.event_rows import Row
    from infra.eventstore.live_subscription import LiveSubscription


# Shorter than the limit of a request, with what a search may take.
MAX_WAIT_S: Final = 20
# Effects of one event that are named. An import has one for each row.
MAX_EFFECTS: Final = 100
Seconds = Annotated[int, Field(ge=0, le=MAX_WAIT_S), BeforeValidator(whole_number)]


class EventsAnswer(Answer):
    events: Annotated[list[EventAnswer], Field(description="The events, in the requested order.")]
    next: Annotated[
        int | None,
        Field(
            description="The `after` of the next page (with order=desc: its `before`). Null if there is none yet. With "
            "`wait`, never null: the `after` of the next request."
        ),
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
    sealed: Annotated[
        SealedUpto, Field(description="The signed log: it covers all events up to this position, and no later one.")
    ]
    total: Annotated[int, Field(ge=0, description="The estimated total number of events, if requested.")] = Field(
        default_factory=absent
    )


class RelatedEvent(Answer):
    position: answered.EventPosition
    type: Annotated[str, Field(description="What happened.", examples=["Revoked"])]


class OneEventAnswer(EventAnswer):
    """One event, with its cause and its effects."""

    cause: Annotated[
        RelatedEvent | None,
        Field(description="The event that it follows from. Null if there is none in this ledger that you may read."),
    ]
    effects: Annotated[
        list[RelatedEvent],
        Field(
            description=f"What followed from it, oldest first: at most {MAX_EFFECTS}. They appear once the view "
            f"`{event_index.NAME}` has read them."
        ),
    ]
    more_effects: Annotated[bool, Field(description="Whether more followed from it than are named.")]


class EventsQuery(Filters):
    order: Annotated[Literal["asc", "desc"], Field(description="Oldest or newest first.")] = "asc"
    limit: Limit = LIMIT
    cursor: EitherCursor = None
    total: Annotated[
        Literal["estimate"] | None,
        Field(description="`estimate` adds an estimate of the total number of events. Nothing is counted for it."),
    ] = None
    wait: Annotated[
        Seconds | None,
        Field(
            description="If there is no matching event after `after`, wait so many seconds for one. Poll with `after` "
            "alone: the `next` of the response is the `after` of the next request. Not with `order=desc`, `before` or "
            "`cursor`.",
            examples=[MAX_WAIT_S],
        ),
    ] = None
    at_least: AtLeast = None

    @model_validator(mode="after")
    def _only_forwards(self) -> Self:
        if self.wait is not None and (self.order == "desc" or self.before is not None or self.cursor is not None):
            raise malformed_query("wait", "Only a request without `order=desc`, `before` and `cursor` can wait.")
        return self

    def cursor_scope(self) -> dict[str, Any]:
        """Return what must be the same for a cursor to be good."""
        return self.model_dump(exclude={"cursor", "limit", "total", "wait", "at_least", "history"})


_POSITION: Final = re.compile(r"[1-9][0-9]{0,17}")

router = APIRouter(route_class=Route, tags=["Audit"])


@router.get("/v1/events", response_model=EventsAnswer, operation_id="listEvents")
@Operation(
    large=True, trace="recorded", answer_headers=("Ledger-Position", "Search-Complete", "Looked-Through"), lines=True
)
async def list_events(
    query: Annotated[EventsQuery, Query()],
    caller: Annotated[Caller, allow("creator", "operator", "auditor", "subscriber", "admin")],
) -> Response:
    """Read the audit trail by position. Committed events are visible immediately. A creator's key reads its own events.

    A search for rare events stops after a limited time: then `complete` is false, `looked_through` is the number of
    scanned events, and `next` continues there. `complete` is also false if the searched view has stopped.
    `Ledger-Position` says how far it came. A program that polls sends `wait` and keeps `next`. Reads are recorded in
    the access log.
    """
    caller.history.require_whole()
    caller.require_history(query.after, query.history)
    parsed = await query_of(caller, query.parsed())
    await wait_for_log(caller, query.at_least)
    page = await _page(caller, query, parsed)
    if query.wait is not None:
        page = await _next_page(caller, query, parsed, page)
    names = await names_in(caller.request.app.state.key_names, caller.ledger_id, page.shown)
    sealed = await caller.request.app.state.sealed_sizes.of(caller.ledger_id)
    contents = with_proof([row_content(row, names) for row in page.shown], sealed)
    format_ = wanted_format(headers.text(caller.request, b"accept"))
    answer_headers = {
        "Vary": "Accept",
        "Ledger-Position": str(page.upto),
        "Search-Complete": str(page.found.complete).lower(),
        "Looked-Through": str(page.found.rows_scanned),
        **(
            link_header(caller.request, **page.cursors)
            if query.wait is None
            else link_to(caller.request, page.next, caller.history.history)
        ),
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
                "sealed": sealed.content(),
                **total,
            }
            return answer(content, 200, answer_headers)


@router.get("/v1/events/{position}", response_model=OneEventAnswer, operation_id="readEvent")
@Operation(trace="recorded", answer_headers=("Ledger-Position",))
async def read_event(
    position: str, caller: Annotated[Caller, allow("creator", "operator", "auditor", "admin")]
) -> Response:
    """Read one event by its position, with what caused it and what followed from it."""
    rows = await _row_at(caller, int(position)) if _POSITION.fullmatch(position) else []
    if not rows:
        raise Problem("event_unknown")
    row = rows[0]
    if caller.role == "creator":
        caller.act_for_creator(row[CREATOR_ID] or "")
    names = await names_in(caller.request.app.state.key_names, caller.ledger_id, rows)
    content = row_content(row, names)
    parameters = {"position": row[POSITION]}
    await record_access(caller, parameters, rows=1, format=JSON, subject=subject_of(content))
    related = await _related(caller, row)
    sealed = await caller.request.app.state.sealed_sizes.of(caller.ledger_id)
    return answer(with_proof([content | related], sealed)[0], 200, {"Ledger-Position": str(row[POSITION])})


async def _row_at(caller: Caller, position: int) -> Sequence[Row]:
    return await caller.services.views.event_rows.at(caller.ledger_id, [position])


async def _related(caller: Caller, row: Row) -> dict[str, Any]:
    """Return what an event follows from, and what follows from it; a creator sees only what concerns them."""
    services, cause_id = caller.services, row[CAUSATION_ID]
    cause = None
    if cause_id is not None:
        cause = await services.events.by_id(caller.ledger_id, cause_id, row[STREAM_ID])
    only = None
    if caller.role == "creator":
        (own,) = await services.events.at_positions(caller.ledger_id, [row[POSITION]])
        only = own.creator_stream
    if cause is not None and only not in {None, cause.creator_stream}:
        cause = None

    async def effects(cur: DatabaseCursor) -> list[tuple[int, str]]:
        return await event_index.effects(cur, caller.ledger_id, row[EVENT_ID], only, MAX_EFFECTS + 1)

    try:
        found, _ = await services.views.read(caller.ledger_id, effects, view=event_index.NAME)
        more = len(found) > MAX_EFFECTS
    except Unavailable:
        # The view is being rebuilt. The event itself needs none, and there may be effects.
        found, more = [], True
    return {
        "cause": None if cause is None else {"position": cause.position, "type": cause.type},
        "effects": [{"position": position, "type": type_} for position, type_ in found[:MAX_EFFECTS]],
        "more_effects": more,
    }


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
    if max(query.after or 0, *(query.positions or (0,))) > head:
        raise ahead_of_ledger(head)
    within = SearchRange(low, high, not upwards, at_least=min(head, high - 1))
    services = caller.services
    found = await search_events(
        services.views, caller.ledger_id, parsed, within, query.limit + 1, services.aggregates.notes
    )
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
    cursors = with_history(caller.history.history, two_way_cursors(query.cursor_scope(), after, before))
    return _Page(shown, found, upto, after, cursors)


class _Streams(Protocol):
    """What a long poll needs of the streams of this process: it takes one of their places and follows a ledger."""

    @property
    def closing(self) -> bool:
        """Whether the server is stopping."""

    def polling(self, caller: Caller) -> AbstractAsyncContextManager[LiveSubscription]:
        """Follow the caller's ledger."""

    async def notice_changed_keys(self, ledger_id: int) -> None:
        """Find out whether a key was revoked before what was read last was recorded."""


async def _next_page(caller: Caller, query: EventsQuery, parsed: ParsedQuery, page: _Page) -> _Page:
    """Return a page for a poller, and wait for its first event if there is none yet.

    Raises:
        ClientDisconnect: the client left.
        Problem: the key was revoked meanwhile, or has as many streams and waiting requests as it may.

    """
    streams: _Streams = caller.request.app.state.streams
    ends_at = asyncio.get_running_loop().time() + (query.wait or 0)
    if query.wait and not page.shown and page.found.complete:
        async with streams.polling(caller) as subscription, _until_gone(caller, subscription) as gone:
            while not page.shown and page.found.complete and not streams.closing:
                if subscription.position > page.upto:
                    page = await _page(caller, query.model_copy(update={"after": page.upto}), parsed)
                    continue
                if subscription.failure is not None:
                    raise subscription.failure
                try:
                    async with asyncio.timeout_at(ends_at):
                        await subscription.wait_for_events()
                except TimeoutError:
                    break
                if gone.done():
                    raise ClientDisconnect
        await streams.notice_changed_keys(caller.ledger_id)
        if not await caller.services.authenticator.still_opens(caller.presented, caller.services.now()):
            raise unauthenticated()
    return replace(page, next=page.upto) if page.next is None else page


@contextlib.asynccontextmanager
async def _until_gone(caller: Caller, subscription: LiveSubscription) -> AsyncIterator[asyncio.Task[None]]:
    """Yield a task that is done once the client has left; then those who wait for events look at it."""

    async def listen() -> None:
        while (await caller.request.receive())["type"] != "http.disconnect":
            pass

    listening = asyncio.create_task(listen(), name="connection of a long poll")
    listening.add_done_callback(lambda _: subscription.notify())
    try:
        yield listening
    finally:
        listening.cancel()


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
