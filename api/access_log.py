"""The log of who read the trail: how reads are entered, and the route that lists it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final
from uuid import UUID

import orjson
from fastapi import APIRouter, Query
from starlette.responses import Response

from api.audit_models import AccessesAnswer
from api.audit_queries import AccessesQuery
from api.http.caller import Caller, allow
from api.http.cursors import around, beside, either_way, links
from api.http.responses import answer
from api.http.route import Route
from infra.auth.access_log import FIRST, LAST, TOLD_TOGETHER, Access
from infra.crypto.sealed_terms import seal_search_terms, unseal_search_terms

if TYPE_CHECKING:
    from collections.abc import Mapping

    from infra.auth.access_log import AccessRow

# What differs from one read to the next of a subscriber, whose reads of an hour are told together.
_PLACE: Final = frozenset({"after", "before", "cursor", "limit", "at_least"})

# An id has 127 bits, as it begins with the time; the page before that of the last one has a cursor too.
_LAST_PLACE: Final = 2**127 - 2

router = APIRouter(route_class=Route, tags=["Audit"])


@router.get("/v1/accesses", response_model=AccessesAnswer, operation_id="listAccesses")
async def list_accesses(
    query: Annotated[AccessesQuery, Query()],
    caller: Annotated[Caller, allow("operator", "auditor", "admin")],
) -> Response:
    """List who read or exported the trail, read a history or asked the question, newest first; kept 400 days.

    Refused attempts stand here too, the first 20 of each key, reason and hour. Where they came from, admins alone see.
    """
    place, back = (None, False) if query.cursor is None else either_way(query.cursor, query.same(), _LAST_PLACE)
    at = UUID(int=LAST.int if place is None else place)
    rows = await caller.services.views.accesses.page(
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
    cursors = beside(query.same(), *around(keys, reached, place, back=back, ascending=False))
    content = {
        "accesses": [
            _content(row, names) | {"query": unseal_search_terms(ledger_keys, row.query)} | await _refusal(row, caller)
            for row in shown
        ],
        **{f"{relation}_cursor": text for relation, text in cursors.items()},
    }
    return answer(content, 200, links(caller.request, **cursors))


async def enter(
    caller: Caller, asked: Mapping[str, Any], *, rows: int, format: str, complete: bool | None = True
) -> UUID:
    """Record what is about to be answered, and return the entry's id.

    Args:
        caller: who asks.
        asked: the parameters of the query, as JSON.
        rows: events or questions in the answer.
        format: its media type.
        complete: whether that is all that was asked for; None where more is to come, of which `Accesses.end` tells.

    Raises:
        Unavailable: it cannot be recorded, and so must not be answered.

    """
    request = caller.request
    asked = seal_search_terms(await caller.services.keyring.ledger(caller.ledger_id), asked)
    if caller.role == TOLD_TOGETHER:
        asked = {name: value for name, value in asked.items() if name not in _PLACE}
    access = Access(
        key_id=caller.key.key_id,
        role=caller.role,
        route=f"{request.method} {request.scope['route'].path}",
        query=orjson.dumps(asked, option=orjson.OPT_SORT_KEYS),
        format=format,
        rows=rows,
        complete=complete,
        request_id=request.scope["request_id"],
    )
    return await caller.services.views.accesses.record(caller.ledger_id, access)


async def _refusal(row: AccessRow, caller: Caller) -> dict[str, Any]:
    """Return why an attempt was refused, and for who guards the ledger from where it came; else nulls."""
    told = row.sealed is not None and caller.role == "admin"
    origin = await caller.services.denied_attempts.origin(caller.ledger_id, row) if told else {}
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
    }
