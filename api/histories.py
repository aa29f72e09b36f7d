"""The routes that read histories: all that happened to a code or to a permission, with what each event changed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import Field, WithJsonSchema
from starlette.responses import Response

from api.access_log import record_access
from api.codes import not_known_yet, stream_of, subject_of_code
from api.event_content import EventAnswer, SealedUpto, event_content, names_of, unsealed_notes, visible_to, with_proof
from api.http import answer_fields as answered
from api.http import headers
from api.http.as_of import known_at, refuse_before_it_began, upto, wait_for_log
from api.http.caller import Caller, allow
from api.http.cursors import decode, encode, link_header, with_history
from api.http.models import Answer, absent
from api.http.pagination import page_of
from api.http.query_params import MAX_LIMIT, AsOf, At, AtLeast, LongLimit, NextCursor, QueryModel
from api.http.responses import answer, version_headers
from api.http.route import Operation, Route
from domain.changes import COUNTS, changes_of_code, changes_of_permission
from domain.code import effective_as_of, replay_code
from infra.auth.access_log import AccessSubject

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from domain.changes import Change
    from domain.recorded import RecordedEvent


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


class HistoryAnswer(Answer):
    events: Annotated[list[EventWithChanges], Field(description="The events in the order of recording, oldest first.")]
    next: answered.Next
    sealed: Annotated[SealedUpto, Field(description="The signed log of the ledger, to which `proof` refers.")]


class HistoryQuery(QueryModel):
    as_of: AsOf = None
    at: At = None
    limit: LongLimit = MAX_LIMIT
    cursor: NextCursor = None
    at_least: AtLeast = None


router = APIRouter(route_class=Route, tags=["Reads"])


@router.get("/v1/codes/{code_id}/history", response_model=HistoryAnswer, operation_id="readHistory")
@Operation(large=True, trace="recorded", answer_headers=("ETag", "Ledger-Position"))
async def read_history(
    code_id: str,
    query: Annotated[HistoryQuery, Query()],
    caller: Annotated[Caller, allow("creator", "brand", "operator", "auditor", "admin")],
) -> Response:
    """Read the history of a code, oldest first, with the changes of each event and the text of its notes.

    `as_of` leaves out what the ledger did not know at that time. `at` leaves out what had not taken effect at that
    time. A brand's key reads what concerns it.
    """
    await wait_for_log(caller, query.at_least)
    stream = await stream_of(caller, headers.path_uuid(code_id, "code"))
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
    return await _page(
        caller,
        query,
        {"code_id": code_id},
        changed_events,
        version_headers(code.command_version, position),
        subject_of_code(code),
        notes=caller.role != "brand",
    )


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
    changed_events: Iterable[tuple[RecordedEvent, list[Change]]],
    answer_headers: dict[str, str],
    read: AccessSubject,
    *,
    notes: bool,
) -> Response:
    """Answer one page of events with their changes; where `at` is given, only those that had taken effect by then.

    That it is read is recorded before it is answered: notes are opened here.
    """
    (of,) = subject.values()
    same_query = {"of": of, **query.model_dump(exclude={"cursor", "limit", "at_least"})}
    after = 0 if query.cursor is None else decode(query.cursor, same_query)
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
    content = {"events": with_proof(events, sealed), "sealed": sealed.content(), **cursors}
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
