"""The routes of calendars: of when codes end, by a secret address that a program of a person reads.

A key has calendars of its own; an administrator's has all of the ledger's. The address is shown once. It opens the
calendar and nothing else, without a key, until the calendar or its key ends.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final
from uuid import UUID

import orjson
from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from api.access_log import record_access
from api.alerts import OfAdvertiser, OfBrand, OfCreator, one_of, refuse_token
from api.http import answer_fields as answered
from api.http import headers
from api.http.caller import Caller, allow
from api.http.dependencies import services_of
from api.http.fields import Name
from api.http.models import Answer, Body
from api.http.problems import Problem, too_many
from api.http.responses import NO_STORE, answer, replay_header
from api.http.route import Operation, Route
from api.webhooks import idempotent_request, owner_of
from domain.errors import Unknown
from infra.auth.read_log import Read
from infra.delivery.alerts.calendar_text import calendar_text, etag
from infra.delivery.alerts.models import About, CalendarNotFound, TooManyCalendars

if TYPE_CHECKING:
    from collections.abc import Iterator

    from api.http.limits import Limit
    from infra.delivery.alerts.models import Calendar

MEDIA_TYPE: Final = "text/calendar"
ROUTE: Final = "GET /calendar/{secret}.ics"
# Of one calendar: so many reads at once, and one a minute after that. Programs look once an hour or less.
READS_AT_ONCE: Final = 30
READS_PER_SECOND: Final = 1 / 60
_HEADERS: Final = {
    "Cache-Control": "private, max-age=900",
    "Content-Disposition": 'inline; filename="spark-codes.ics"',
    # The address is a secret: no search engine keeps it, and no page that is opened from here learns it.
    "X-Robots-Tag": "noindex",
    "Referrer-Policy": "no-referrer",
}


class CreateCalendar(Body):
    creator_id: OfCreator = None
    brand_id: OfBrand = None
    advertiser_id: OfAdvertiser = None
    name: Annotated[Name | None, Field(description="A name for people. It is sealed.", examples=["The desk"])] = None


class CalendarAnswer(Answer):
    calendar_id: Annotated[UUID, Field(description="The calendar.")]
    key_id: Annotated[UUID, Field(description="The id of the API key that it belongs to.")]
    creator_id: Annotated[str | None, Field(description="Only codes of this creator.")]
    brand_id: Annotated[str | None, Field(description="Only codes that were shared with this brand.")]
    advertiser_id: Annotated[str | None, Field(description="Only codes of this advertiser account.")]
    name: Annotated[str | None, Field(description="A name for people.")]
    created_at: Annotated[answered.Moment, Field(description="When it was created.")]
    read_at: Annotated[answered.Moment | None, Field(description="When it was last read, to a quarter of an hour.")]


class NewCalendarAnswer(CalendarAnswer):
    address: Annotated[
        str | None,
        Field(
            description="The secret address to subscribe to, shown only once. Null if the request was repeated. It is "
            "a path if SPARKLEDGER_PUBLIC_URL is not set.",
            examples=["https://ledger.example/calendar/EXAMPLE.ics"],
        ),
    ]


class CalendarsAnswer(Answer):
    calendars: Annotated[list[CalendarAnswer], Field(description="Newest first.")]


router = APIRouter(route_class=Route, tags=["Alerts"])


@router.post("/v1/calendars", status_code=201, response_model=NewCalendarAnswer, operation_id="createCalendar")
@Operation(answer_headers=("Cache-Control",), replays=True, refusals=(409,), example={"creator_id": "ana.creates"})
async def create_calendar(
    body: CreateCalendar, caller: Annotated[Caller, allow("creator", "brand", "operator", "auditor", "admin")]
) -> Response:
    """Create a calendar of when codes end. Only this response has its secret address. A token cannot create one.

    A repeated request with the same `Idempotency-Key` returns `"address": null`. If the first response was lost, delete
    the calendar and create another one.
    """
    refuse_token(caller)
    one_of(caller, body.creator_id, body.brand_id, body.advertiser_id)
    about = About(body.creator_id, body.brand_id, body.advertiser_id)
    with refusals_as_problems():
        calendar, secret, again = await caller.services.calendars.create(
            owner_of(caller), about, body.name, idempotent_request(caller)
        )
    repeated = {"replayed": True} if again else {}
    parameters = {"calendar_id": str(calendar.calendar_id), **repeated}
    await record_access(caller, parameters, rows=0, format=MEDIA_TYPE)
    path = f"{caller.services.settings.public_url or ''}/calendar/{secret}.ics"
    content = _content(calendar) | {"address": path if secret else None}
    return answer(content, 201, NO_STORE | replay_header(again))


@router.get("/v1/calendars", response_model=CalendarsAnswer, operation_id="listCalendars")
async def list_calendars(
    caller: Annotated[Caller, allow("creator", "brand", "operator", "auditor", "admin")],
) -> Response:
    """List calendars, newest first. There are at most 500. Their addresses are not shown again."""
    found = await caller.services.calendars.all(owner_of(caller))
    return answer({"calendars": [_content(calendar) for calendar in found]})


@router.delete("/v1/calendars/{calendar_id}", status_code=204, response_class=Response, operation_id="deleteCalendar")
async def delete_calendar(
    calendar_id: str, caller: Annotated[Caller, allow("creator", "brand", "operator", "auditor", "admin")]
) -> Response:
    """Delete a calendar. Its address no longer works; programs keep what they have shown until then."""
    with refusals_as_problems():
        await caller.services.calendars.delete(owner_of(caller), _path_calendar(calendar_id))
    await record_access(caller, {"calendar_id": calendar_id}, rows=0, format=MEDIA_TYPE)
    return Response(status_code=204)


@router.get("/calendar/{secret}.ics", include_in_schema=False)
async def read_calendar(request: Request, secret: str) -> Response:
    """Return a calendar (RFC 5545) to everyone who knows its address."""
    services = services_of(request.scope)
    async with request.app.state.strangers.turn():
        found = await services.calendars.find(secret)
        if found is None:
            raise Problem("calendar_unknown")
        reads: Limit[int] = request.app.state.calendar_reads
        wait_s = reads.take_or_wait_s(found.calendar_id.int)
        if wait_s > 0:
            raise too_many("too_many_requests", wait_s, reads.policy)
        rows = await services.calendars.codes(found, services.now())
    query = orjson.dumps({"calendar_id": found.calendar_id})
    read = Read(found.key_id, found.role, ROUTE, query, None, found.sight.about.creator_id, None)
    services.reads.note(found.ledger_id, read, len(rows), request.scope["request_id"])
    tag = etag(rows, found.shown_name, services.settings.public_url)
    answer_headers = {**_HEADERS, "ETag": tag}
    if tag in headers.text(request, b"if-none-match"):
        return Response(status_code=304, headers=answer_headers)
    content = calendar_text(rows, found.shown_name, found.log_id, services.settings.public_url)
    return Response(content, 200, answer_headers, f"{MEDIA_TYPE}; charset=utf-8")


def _path_calendar(text: str) -> UUID:
    try:
        return headers.path_uuid(text, "calendar")
    except Unknown:
        raise CalendarNotFound from None


@contextmanager
def refusals_as_problems() -> Iterator[None]:
    """Turn what the store refuses into problems."""
    try:
        yield
    except CalendarNotFound:
        raise Problem("calendar_unknown") from None
    except TooManyCalendars:
        raise Problem("too_many_calendars") from None


def _content(calendar: Calendar) -> dict[str, Any]:
    return {
        "calendar_id": calendar.calendar_id,
        "key_id": calendar.key_id,
        "creator_id": calendar.about.creator_id,
        "brand_id": calendar.about.brand_id,
        "advertiser_id": calendar.about.advertiser_id,
        "name": calendar.name,
        "created_at": calendar.created_at,
        "read_at": calendar.read_at,
    }
