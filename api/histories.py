"""The routes that read histories: all that happened to a code or to a permission, with what each event changed."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from fastapi import APIRouter, Query
from pydantic import BeforeValidator, Field, WithJsonSchema
from starlette.responses import Response

from api.access_log import record_access
from api.codes import current_code, not_known_yet, stream_of, subject_of_code
from api.event_content import EventAnswer, SealedUpto, event_content, names_of, unsealed_notes, visible_to, with_proof
from api.http import answer_fields as answered
from api.http import headers
from api.http.as_of import known_at, refuse_before_it_began, upto, wait_for_log
from api.http.caller import Caller, allow
from api.http.cursors import decode, encode, link_header, with_history
from api.http.models import Answer, absent
from api.http.pagination import page_of
from api.http.query_params import (
    MAX_LIMIT,
    AnyPosition,
    AsOf,
    At,
    AtLeast,
    LongLimit,
    NextCursor,
    QueryModel,
    whole_number,
)
from api.http.responses import answer, version_headers
from api.http.route import Operation, Route
from domain.changes import COUNTS, changes_of_code, changes_of_permission
from domain.code import effective_as_of, replay_code
from infra.auth.access_log import AccessSubject
from infra.eventstore.reader import Spread
from projections.event_index import LATE_AFTER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from domain.changes import Change
    from domain.recorded import RecordedEvent


MAX_SPANS: Final = 200
Spans = Annotated[int, Field(ge=1, le=MAX_SPANS), BeforeValidator(whole_number)]


class ChangeEntry(Answer):
    field: Annotated[str, Field(description="The name of the changed field.", examples=["expires_at"])]
    before: Annotated[Any, WithJsonSchema({}), Field(description="The value before the event. Null for none.")]
    after: Annotated[Any, WithJsonSchema({}), Field(description="The value after the event.")]


class EventWithChanges(EventAnswer):
    """One event, with what it changed."""

    changes: Annotated[
        list[ChangeEntry], Field(description="The values that the event changed. Empty if it changed none.")
    ]
    erased: Annotated[
        Literal[True],
        Field(description="True if there was a note that nobody can read any more, because its creator was erased."),
    ] = Field(default_factory=absent)


class SpreadEntry(Answer):
    """The events of one type in one span of time."""

    type: Annotated[str, Field(description="What happened.", examples=["Shared"])]
    count: Annotated[int, Field(ge=1, description="How many events.")]
    begins: Annotated[answered.Moment, Field(description="The earliest effective time.")]
    ends: Annotated[answered.Moment, Field(description="The latest effective time.")]
    position: Annotated[answered.EventPosition, Field(description="The position of the first that was recorded.")]
    late: Annotated[int, Field(ge=0, description="How many were recorded more than an hour after they happened.")]


class HistoryAnswer(Answer):
    events: Annotated[list[EventWithChanges], Field(description="The events in the order of recording, oldest first.")]
    next: answered.Next
    sealed: Annotated[SealedUpto, Field(description="The signed log of the ledger, to which `proof` refers.")]


class CodeHistoryAnswer(HistoryAnswer):
    spread: Annotated[
        list[SpreadEntry], Field(description="How all events of the history are spread over time, if requested.")
    ] = Field(default_factory=absent)


class HistoryQuery(QueryModel):
    as_of: AsOf = None
    at: At = None
    limit: LongLimit = MAX_LIMIT
    cursor: NextCursor = None
    at_least: AtLeast = None


class CodeHistoryQuery(HistoryQuery):
    after: Annotated[AnyPosition | None, Field(description="Only events after this position.", examples=[0])] = None
    spread: Annotated[
        Spans | None,
        Field(
            description="Adds how all events of the history are spread over time: counted by type in so many equal "
            "spans from the first to the last.",
            examples=[40],
        ),
    ] = None


router = APIRouter(route_class=Route, tags=["Reads"])


@router.get("/v1/codes/{code_id}/history", response_model=CodeHistoryAnswer, operation_id="readHistory")
@Operation(large=True, trace="recorded", answer_headers=("ETag", "Ledger-Position"))
async def read_history(
    code_id: str,
    query: Annotated[CodeHistoryQuery, Query()],
    caller: Annotated[Caller, allow("creator", "brand", "operator", "auditor", "admin")],
) -> Response:
    """Read the history of a code, oldest first, with the changes of each event and the text of its notes.

    `as_of` leaves out what the ledger did not know at that time. `at` leaves out what had not taken effect at that
    time. A brand's key reads what concerns it.
    """
    await wait_for_log(caller, query.at_least)
    found = headers.path_uuid(code_id, "code")
    if query.as_of is None and query.at is None and caller.role != "brand":
        return await _as_it_is(caller, query, found)
    stream = await stream_of(caller, found)
    position = max(stream[-1].position, query.at_least or 0)
    if query.as_of is not None:
        position, _ = await known_at(caller, query.as_of, caller.services.now())
        whole, stream = stream, upto(stream, position)
        if not stream:
            await record_access(
                caller,
                {"code_id": code_id, **query.model_dump(mode="json", exclude_none=True)},
                rows=0,
                format="application/json",
                subject=subject_of_code(replay_code(whole)),
            )
            raise not_known_yet(caller)
    refuse_before_it_began(stream, query.at)
    changed_events = visible_changes(caller, stream)
    code = replay_code(stream)
    shown = [recorded for recorded, _ in changed_events]
    spread = spread_over(shown if query.at is None else effective_as_of(shown, query.at), query.spread or 0)
    return await _page(
        caller,
        query,
        {"code_id": code_id},
        changed_events,
        version_headers(code.command_version, position),
        subject_of_code(code),
        notes=caller.role != "brand",
        more={} if query.spread is None else {"spread": [asdict(one) for one in spread]},
    )


async def _as_it_is(caller: Caller, query: CodeHistoryQuery, code_id: UUID) -> Response:
    """Answer one page of all that is recorded of a code, without reading what comes after it."""
    code, last = await current_code(caller, code_id)
    after = _place(query, code_id)
    stream = await caller.services.aggregates.code_part(caller.ledger_id, code_id, after=after, count=query.limit + 1)
    shown = (recorded for recorded in stream if recorded.position > after)
    spread: list[Spread] = []
    if query.spread is not None:
        spread = await caller.services.events.spread(caller.ledger_id, code_id, query.spread, late_after=LATE_AFTER)
    return await _page(
        caller,
        query,
        {"code_id": str(code_id)},
        list(zip(shown, changes_of_code(stream, after), strict=True)),
        version_headers(code.command_version, max(last, query.at_least or 0)),
        subject_of_code(code),
        notes=True,
        more={"spread": [asdict(one) for one in spread]} if spread else {},
    )


def spread_over(recorded: Sequence[RecordedEvent], spans: int) -> list[Spread]:
    """Count events by type, in so many equal spans of the time from the first to the last, the earliest first."""
    if not recorded or not spans:
        return []
    begins = min(one.effective_at for one in recorded)
    length = max(one.effective_at for one in recorded) - begins
    groups: dict[tuple[str, int], list[RecordedEvent]] = {}
    for one in recorded:
        span = min(spans - 1, int((one.effective_at - begins) / length * spans)) if length else 0
        groups.setdefault((one.type, span), []).append(one)
    counted = [
        Spread(
            group[0].type,
            len(group),
            min(one.effective_at for one in group),
            max(one.effective_at for one in group),
            min(one.position for one in group),
            sum(one.recorded_at - one.effective_at > LATE_AFTER for one in group),
        )
        for group in groups.values()
    ]
    return sorted(counted, key=lambda one: (one.begins, one.position))


@router.get(
    "/v1/creators/{creator_id}/permission/history", response_model=HistoryAnswer, operation_id="readPermissionHistory"
)
@Operation(large=True, trace="recorded", answer_headers=("ETag", "Ledger-Position"))
async def read_permission_history(
    creator_id: str,
    query: Annotated[HistoryQuery, Query()],
    caller: Annotated[Caller, allow("creator", "operator", "auditor", "admin")],
) -> Response:
    """Read when a creator's Ad Authorization went on and off, oldest first. Empty if it was never switched on."""
    creator_id = headers.path_creator(creator_id)
    caller.act_for_creator(creator_id)
    await wait_for_log(caller, query.at_least)
    stream = await caller.services.aggregates.creator_stream(caller.ledger_id, creator_id)
    position = max([query.at_least or 0, *(recorded.position for recorded in stream[-1:])])
    if query.as_of is not None:
        position, _ = await known_at(caller, query.as_of, caller.services.now())
        stream = upto(stream, position)
    changed_events = list(zip(stream, changes_of_permission(stream), strict=True))
    version = stream[-1].stream_version if stream else 0
    return await _page(
        caller,
        query,
        {"creator_id": creator_id},
        changed_events,
        version_headers(version, position),
        AccessSubject(creator_id=creator_id),
        notes=False,
    )


async def _page(
    caller: Caller,
    query: HistoryQuery,
    subject: dict[str, str],
    changed_events: Sequence[tuple[RecordedEvent, list[Change]]],
    answer_headers: dict[str, str],
    read: AccessSubject,
    *,
    notes: bool,
    more: Mapping[str, Any] | None = None,
) -> Response:
    """Answer one page of events with their changes; where `at` is given, only those that had taken effect by then.

    That it is read is recorded before it is answered: notes are opened here.
    """
    (of,) = subject.values()
    same_query = _same(query, of)
    after = _place(query, of)
    changed = {recorded.position: changes for recorded, changes in changed_events}
    recorded = [one for one, _ in changed_events]
    kept = [
        one for one in (recorded if query.at is None else effective_as_of(recorded, query.at)) if one.position > after
    ]
    page = page_of(kept, query.limit, lambda one: encode(one.position, same_query))
    shown = page.rows
    events, sealed, _ = await asyncio.gather(
        events_with_changes(caller, shown, changed, notes=notes),
        caller.request.app.state.sealed_sizes.of(caller.ledger_id),
        record_access(
            caller,
            subject | query.model_dump(mode="json", exclude_none=True),
            rows=len(shown),
            format="application/json",
            subject=read,
        ),
    )
    cursors = with_history(caller.history.history, {"next": page.next})
    link = link_header(caller.request, **cursors)
    content = {"events": with_proof(events, sealed), "sealed": sealed.content(), **cursors, **(more or {})}
    return answer(content, 200, {**answer_headers, **link})


def visible_changes(caller: Caller, stream: Sequence[RecordedEvent]) -> list[tuple[RecordedEvent, list[Change]]]:
    """Return the events of a code that the caller may read, with what each changed."""
    visible = [one for one in zip(stream, changes_of_code(stream), strict=True) if visible_to(caller, one[0])]
    if caller.role != "brand":
        return visible
    return [(recorded, [c for c in changed if c.field not in COUNTS]) for recorded, changed in visible]


async def events_with_changes(
    caller: Caller, shown: Sequence[RecordedEvent], changed: Mapping[int, Sequence[Change]], *, notes: bool
) -> list[dict[str, Any]]:
    """Return events as a history shows them.

    Args:
        caller: who reads them.
        shown: the events.
        changed: what each event changed, by position.
        notes: whether the caller may read the notes.

    """
    names, texts = await asyncio.gather(names_of(caller, shown), unsealed_notes(caller, shown if notes else ()))
    return [
        event_content(one, names, texts.get(one.position))
        | {"changes": [{"field": c.field, "before": c.before, "after": c.after} for c in changed[one.position]]}
        | ({"erased": True} if texts.get(one.position, {}) is None else {})
        for one in shown
    ]


def _same(query: HistoryQuery, of: object) -> dict[str, Any]:
    """Return what must be the same for a cursor to be good."""
    return {"of": str(of), **query.model_dump(exclude={"cursor", "limit", "at_least", "after", "spread"})}


def _place(query: HistoryQuery, of: object) -> int:
    """Return the position that a page begins after."""
    after = (isinstance(query, CodeHistoryQuery) and query.after) or 0
    return after if query.cursor is None else max(after, decode(query.cursor, _same(query, of)))
