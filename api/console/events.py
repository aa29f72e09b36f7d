"""The audit trail: what was recorded, newest first, and what exactly does one event say?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlencode

import orjson

from api.console.adapter import Declined
from api.console.visit import Page

if TYPE_CHECKING:
    from starlette.responses import Response

    from api.console.visit import Visit
    from domain.values import Role

READERS: Final[frozenset[Role]] = frozenset({"admin", "operator", "auditor", "creator"})
ROWS: Final = 100


async def _trail(visit: Visit) -> Response:
    filters = {key: text for key, text in visit.query.items() if key not in {"cursor", "limit", "order"}}
    asked = {**filters, "order": "desc", "limit": ROWS, "cursor": visit.query.get("cursor")}
    try:
        answer = (await visit.api.call("GET", "/v1/events", asked)).json
    except Declined as declined:
        if declined.status != 400:  # noqa: PLR2004 - a query that cannot be understood
            raise
        errors = declined.problem.get("errors", []) or [{"problem": str(declined)}]
        return visit.page("trail.html", status=400, filters=filters, events=[], more=None, answer={}, errors=errors)
    following = answer.get("next_cursor")
    more = None if following is None else f"/events?{urlencode({**filters, 'cursor': following})}"
    return visit.page("trail.html", filters=filters, events=answer["events"], more=more, answer=answer, errors=[])


async def _event(visit: Visit) -> Response:
    reply = await visit.api.get(f"/v1/events/{quote(visit.path('position'), safe='')}")
    event = reply.json
    # Indented from what was answered: Python keeps every number as it was stored.
    stored = orjson.dumps(event, option=orjson.OPT_INDENT_2).decode()
    return visit.page("event.html", event=event, stored=stored)


PAGES: Final = (
    Page("/events", _trail, nav="Trail", roles=READERS, parts=("/events",)),
    Page("/events/{position}", _event, roles=READERS),
)
