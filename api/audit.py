"""The routes of the audit trail: pages of events in three formats, and one event."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import APIRouter, Query
from starlette.responses import Response

from api.answer_models import EventAnswer, EventsAnswer
from api.answers import answer
from api.auth import Caller, allow
from api.cursors import link_next
from api.problems import Problem
from api.queries import EventsQuery
from api.reads import refuse_ahead
from api.route import Route
from api.trail import csv_text, event_content, names_of, ndjson
from api.wiring import Cursor
from domain.code import Code
from domain.creator import Creator
from domain.summaries import summary
from projections import history

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from domain.recorded import Recorded

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
CSV: Final = "text/csv"
FORMATS: Final = (JSON, NDJSON, CSV)

# Words are looked for in the sentences themselves: so many events are looked through for one page, then a page ends.
MAX_LOOKED_THROUGH: Final = 5_000
_LOOKED_THROUGH_AT_ONCE: Final = 1_000

_QUALITY: Final = re.compile(r"q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")
_POSITION: Final = re.compile(r"[1-9][0-9]{0,17}")

router = APIRouter(route_class=Route, tags=["Audit"])


@router.get("/v1/events", response_model=EventsAnswer, operation_id="listEvents")
async def list_events(
    query: Annotated[EventsQuery, Query()],
    caller: Annotated[Caller, allow("creator", "operator", "auditor", "subscriber", "admin")],
) -> Response:
    """Read the audit trail by position; what is committed is visible at once. A creator's key reads its own events."""
    found, following = await _page(caller, query, _filters(caller, query))
    names = await names_of(caller, found)
    contents = [event_content(recorded, names) for recorded in found]
    onwards = "before" if query.order == "desc" else "after"
    read = max((recorded.position for recorded in found), default=query.after or 0)
    headers = {"Vary": "Accept", "Ledger-Position": str(read)}
    if following is not None:
        headers |= link_next(caller.request, **{onwards: following})
    match _format(caller.request.headers.get("accept", "")):
        case "text/csv":
            return Response(csv_text(contents), 200, headers, f"{CSV}; charset=utf-8")
        case "application/x-ndjson":
            return Response(ndjson(contents), 200, headers, NDJSON)
        case _:
            return answer({"events": contents, "next": following}, 200, headers)


@router.get("/v1/events/{position}", response_model=EventAnswer, operation_id="readEvent")
async def read_event(
    position: str, caller: Annotated[Caller, allow("creator", "operator", "auditor", "admin")]
) -> Response:
    """Read one event by its position."""
    store = caller.services.ledgers.store
    found = await store.at_positions(caller.ledger_id, [int(position)]) if _POSITION.fullmatch(position) else []
    if not found:
        raise Problem("event_unknown")
    if caller.role == "creator":
        stream = (await store.streams(caller.ledger_id, [found[0].stream_id]))[found[0].stream_id]
        caller.act_for_creator(_creator_of(stream[0]))
    names = await names_of(caller, found)
    return answer(event_content(found[0], names), 200, {"Ledger-Position": str(found[0].position)})


def _filters(caller: Caller, query: EventsQuery) -> dict[str, Any]:
    """Return the filters that are asked for, and those that the caller's key brings along."""
    filters = query.filters()
    if caller.role == "creator":
        if query.creator_id is not None:
            caller.act_for_creator(query.creator_id)
        else:
            filters["creator_ids"] = caller.key.subjects.creator_ids
    return filters


async def _page(
    caller: Caller, query: EventsQuery, filters: Mapping[str, Any]
) -> tuple[Sequence[Recorded], int | None]:
    """Return one page, and where the next begins if there is one."""
    if query.q is None:
        found = await _read(caller, query, filters, query.limit + 1, (query.after, query.before))
        if len(found) <= query.limit:
            return found, None
        return found[: query.limit], found[query.limit - 1].position
    return await _with_words(caller, query, filters, query.q.casefold())


async def _with_words(
    caller: Caller, query: EventsQuery, filters: Mapping[str, Any], words: str
) -> tuple[Sequence[Recorded], int | None]:
    """Return events whose sentence holds the words, looking through a bounded number of those that pass the filters."""
    after, before = query.after, query.before
    kept: list[Recorded] = []
    for _ in range(MAX_LOOKED_THROUGH // _LOOKED_THROUGH_AT_ONCE):
        found = await _read(caller, query, filters, _LOOKED_THROUGH_AT_ONCE, (after, before))
        for recorded in found:
            if words in summary(recorded.event).casefold():
                kept.append(recorded)
                if len(kept) == query.limit:
                    return kept, recorded.position
        if len(found) < _LOOKED_THROUGH_AT_ONCE:
            return kept, None
        if query.order == "desc":
            before = found[-1].position
        else:
            after = found[-1].position
    return kept, before if query.order == "desc" else after


async def _read(
    caller: Caller, query: EventsQuery, filters: Mapping[str, Any], limit: int, between: tuple[int | None, int | None]
) -> Sequence[Recorded]:
    """Read events from the log; where there are filters, a view that has read all of it says which."""
    store = caller.services.ledgers.store
    after, before = between
    descending = query.order == "desc"
    if not filters:
        await refuse_ahead(caller, query.at_least)
        return await store.page(caller.ledger_id, after=after, before=before, descending=descending, limit=limit)

    async def search(cur: Cursor) -> list[int]:
        return await history.search(
            cur, caller.ledger_id, limit=limit, after=after, before=before, descending=descending, **filters
        )

    head = await store.head(caller.ledger_id)
    positions, _ = await caller.services.views.read(
        caller.ledger_id, search, view=history.NAME, at_least=max(head, query.at_least or 0)
    )
    found = await store.at_positions(caller.ledger_id, positions) if positions else []
    return found[::-1] if descending else found


def _creator_of(first: Recorded) -> str:
    """Return the creator whom a stream concerns, from its first event."""
    event = first.event
    return event.creator_id if isinstance(event, Code.Generated | Creator.Enabled) else ""


def _format(accept: str) -> str:
    """Return the format that is wanted most, JSON where none is named."""
    wanted: dict[str, float] = {}
    for part in accept.lower().split(","):
        media_type, *parameters = [piece.strip() for piece in part.split(";")]
        quality = next((_QUALITY.fullmatch(p) for p in parameters if p.startswith("q=")), None)
        wanted[media_type] = float(quality[1]) if quality else 1.0
    best = max(FORMATS, key=lambda media_type: wanted.get(media_type, 0.0))
    return best if wanted.get(best) else JSON
