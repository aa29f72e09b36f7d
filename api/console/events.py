"""The audit trail: what was recorded, newest first, and what exactly does one event say?"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from api.console.adapter import Declined
from api.console.exports import export_links, export_page
from api.console.filters import ACCOUNT, CREATOR, VIDEO, asked_of, filter_form, times, without_empty
from api.console.forms import Field, choice
from api.console.visit import Page
from api.console.wording import indented
from domain.event_types import EVENT_TYPES

if TYPE_CHECKING:
    from starlette.responses import Response

    from api.console.visit import Visit
    from domain.values import Role

READERS: Final[frozenset[Role]] = frozenset({"admin", "operator", "auditor", "creator"})
# Whose keys read all of the ledger, and so may export it.
EXPORT: Final = READERS - {"creator"}
FORMATS: Final = ("csv", "ndjson")
ROWS: Final = 100
# Of a permission's history that is read for what one event changed.
HISTORY: Final = 1_000
FIELDS: Final = (
    choice("type", "Type", EVENT_TYPES),
    CREATOR,
    VIDEO,
    ACCOUNT,
    Field("code_id", "Code", hint="its id"),
    *times("Recorded"),
)
# Searches to begin with: what they find, and how they are written.
EXAMPLES: Final = (
    ("Revocations and refused redemptions", "type:Revoked,RedemptionRefused"),
    ("What was recorded more than a day late", "late:>1d"),
    ("What operators recorded for others", "source:operator"),
    ("Shares that were not by direct message", "type:Shared -channel:dm"),
    ("Everything of 2026", "recorded:2026"),
)


async def _trail(visit: Visit) -> Response:
    if (tidied := without_empty(visit)) is not None:
        return tidied
    asked = asked_of(visit, FIELDS)
    sought = {**asked, "order": "desc", "limit": ROWS, "cursor": visit.query.get("cursor"), "total": "estimate"}
    try:
        answer = (await visit.api.call("GET", "/v1/events", sought)).json
    except Declined as declined:
        if declined.status != 400:  # noqa: PLR2004 - a query that cannot be understood
            raise
        return _misunderstood(visit, asked, declined)
    form = filter_form("/events", FIELDS, asked)
    return visit.page(
        "trail.html",
        form=form,
        query=asked.get("q", ""),
        wrong=None,
        events=answer["events"],
        answer=answer,
        newer=_beside(form, answer["prev_cursor"]),
        older=_beside(form, answer["next_cursor"]),
        exports=export_links(form, FORMATS) if visit.role in EXPORT else [],
        examples=EXAMPLES,
    )


def _beside(form: Any, cursor: str | None) -> str | None:
    return None if cursor is None else form.address(cursor=cursor)


def _misunderstood(visit: Visit, asked: dict[str, str], declined: Declined) -> Response:
    """Show what is wrong with a search, at the character where it goes wrong."""
    errors = declined.problem.get("errors", [])
    found = next((one for one in errors if one.get("pointer") == "/q"), None)
    if found is not None and found.get("reason") == "contains_secret":
        # It is not shown again: others may look at the screen, or print the page.
        asked = {name: text for name, text in asked.items() if name != "q"}
    form = filter_form("/events", (*FIELDS, Field("q", "Search")), asked, declined)
    query, wrong = asked.get("q", ""), None
    if found is not None:
        at = found.get("offset")
        place = None if at is None or not query else (query[:at], query[at : at + 1], query[at + 1 :])
        wrong = {"problem": found["problem"], "place": place, "character": 0 if at is None else at + 1}
    return visit.page(
        "trail.html",
        status=400,
        form=filter_form("/events", FIELDS, asked) if wrong is not None and len(errors) == 1 else form,
        query=query,
        wrong=wrong,
        events=[],
        answer=None,
        newer=None,
        older=None,
        exports=[],
        examples=EXAMPLES,
    )


async def _event(visit: Visit) -> Response:
    reply = await visit.api.get(f"/v1/events/{quote(visit.path('position'), safe='')}")
    event, text = reply.json, reply.content.decode()
    position = event["position"]
    beside = visit.role in EXPORT
    # What followed from it is shown as of now.
    visit.api.position = visit.seen
    return visit.page(
        "event.html",
        event=event,
        stored=_stored_body(text) if event["type_version"] == 1 and "body" in event else None,
        answered=indented(text),
        changes=await _changes(visit, event),
        earlier=position - 1 if beside and position > 1 else None,
        later=position + 1 if beside and position < visit.seen else None,
    )


def _stored_body(text: str) -> dict[str, Any]:
    """Return the body of an event of the first format, which the API answers byte for byte as it is stored."""
    # In no text of JSON does the name stand like this: there its quotes are escaped.
    begins = text.index('"body":') + len('"body":')
    body = text[begins : json.JSONDecoder().raw_decode(text, begins)[1]]
    return {"text": body, "bytes": len(body.encode()), "sha256": hashlib.sha256(body.encode()).hexdigest()}


async def _changes(visit: Visit, event: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Return what an event changed; None where its history does not say, or is too long."""
    position = event["position"]
    if "code_id" in event:
        path = f"/v1/codes/{quote(event['code_id'], safe='')}/history"
        reply = await visit.api.read_or_none(path, after=position - 1, limit=1)
    elif "creator_id" in event and event["stream_version"] <= HISTORY:
        path = f"/v1/creators/{quote(event['creator_id'], safe='')}/permission/history"
        reply = await visit.api.read_or_none(path, as_of=position, limit=HISTORY)
    else:
        return None
    found = [] if reply is None else [one for one in reply.json["events"] if one["position"] == position]
    return found[0]["changes"] if found else None


async def _proof(visit: Visit) -> Response:
    """Pass on the proof that an event is in the signed log, as a file that verifiers read."""
    position = visit.path("position")
    path = f"/v1/events/{quote(position, safe='')}/proof"
    # Before a file is promised: while the log does not cover the event, the answer is a page that says so.
    reply = await visit.api.call("GET", path, {"format": "tlog-proof"}, accept="*/*")
    named = {"Content-Disposition": f'attachment; filename="event-{position}.tlog-proof"'}
    return visit.file(reply, named)


PAGES: Final = (
    Page("/events", _trail, nav="Trail", roles=READERS, parts=("/events",)),
    export_page("/events", FORMATS, EXPORT),
    Page("/events/{position}", _event, roles=READERS),
    Page("/events/{position}/proof", _proof, roles=READERS),
)
