"""Alerts and calendars: who hears of what, by which way, and did it arrive?

The address of a calendar is shown once, in the answer to the form that made it. A form that is sent twice makes one.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import orjson
from starlette.responses import RedirectResponse

from api.console.adapter import Declined
from api.console.forms import Field, new_form_id, problems_of
from api.console.visit import PEOPLE, Page

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.responses import Response

    from api.console.visit import Visit

# Messages that the page of a rule lists.
ROWS: Final = 100
KINDS: Final = {
    "ending": "codes that end soon",
    "campaign_outlives_code": "campaigns that are longer than their code",
    "refused_attempts": "refused attempts to use a code",
    "stopped": "what has stopped",
}
DAYS: Final = (("30,14,7,1", "30, 14, 7 and 1"), ("14,7,1", "14, 7 and 1"), ("7,1", "7 and 1"), ("1", "1"))
_WHOSE: Final = (
    Field("creator_id", "Only of the creator"),
    Field("brand_id", "Only of the brand"),
    Field("advertiser_id", "Only of the advertiser account"),
)
FIELDS: Final = (
    Field("kind", "Reports", "choice", tuple(KINDS.items()), is_required=True),
    Field("days", "Days before the end", "choice", DAYS, is_required=True, hint="of codes"),
    Field("channel", "By", "choice", (("email", "e-mail"), ("chat", "chat")), is_required=True),
    Field("address", "Address", hint="e-mail, or a chat’s URL", is_required=True),
    Field("name", "Name", hint="for you"),
    *_WHOSE,
    Field("zone", "Time zone", hint="such as Europe/Berlin"),
    Field("digest_at", "Once a day at", hint="08:00; empty: at once"),
    Field("quiet_from", "Nothing from", hint="such as 20:00"),
    Field("quiet_until", "until", hint="such as 07:00"),
)
CALENDAR_FIELDS: Final = (*_WHOSE, Field("name", "Name", hint="for you"))


async def _list(visit: Visit) -> Response:
    return await _page(visit)


async def _page(
    visit: Visit, form: str = "", given: dict[str, str] | None = None, declined: Declined | None = None
) -> Response:
    """Show both lists, and one form as it was entered."""
    rules, calendars = await asyncio.gather(visit.api.get("/v1/alerts"), visit.api.get("/v1/calendars"))
    return visit.page(
        "alerts.html",
        status=200 if declined is None else declined.status,
        rules=rules.json["alerts"],
        calendars=calendars.json["calendars"],
        kinds=KINDS,
        fields=FIELDS,
        calendar_fields=CALENDAR_FIELDS,
        form=form,
        given=given or {"zone": "UTC"},
        errors={} if declined is None else problems_of(declined),
        form_id=new_form_id(),
    )


async def _create(visit: Visit) -> Response:
    form = await visit.form()
    body: dict[str, Any] = _entered(form, (field.name for field in FIELDS))
    days = body.pop("days", "")
    if body.get("kind") == "ending" and days in dict(DAYS):
        body["days"] = [int(day) for day in days.split(",")]
    try:
        reply = await visit.api.call("POST", "/v1/alerts", {}, orjson.dumps(body), idempotency_key=form.get("form_id"))
    except Declined as declined:
        if declined.status != 422:  # noqa: PLR2004 - a field that is wrong
            raise
        return await _page(visit, "rule", form, declined)
    return RedirectResponse(f"/alerts/{reply.json['rule_id']}", 303)


async def _create_calendar(visit: Visit) -> Response:
    form = await visit.form()
    body = orjson.dumps(_entered(form, (field.name for field in CALENDAR_FIELDS)))
    try:
        reply = await visit.api.call("POST", "/v1/calendars", {}, body, idempotency_key=form.get("form_id"))
    except Declined as declined:
        if declined.status != 422:  # noqa: PLR2004 - a field that is wrong
            raise
        return await _page(visit, "calendar", form, declined)
    return visit.page("calendar.html", status=201, calendar=reply.json, origin=visit.request.base_url)


async def _end_calendar(visit: Visit) -> Response:
    await visit.api.call("DELETE", f"/v1/calendars/{quote(visit.path('calendar_id'), safe='')}", {})
    return RedirectResponse("/alerts", 303)


async def _one(visit: Visit) -> Response:
    """Show a rule and what it has sent."""
    path, cursor = _rule(visit), visit.query.get("cursor")
    rule, deliveries = await asyncio.gather(
        visit.api.get(path), visit.api.get(f"{path}/deliveries", limit=ROWS, cursor=cursor)
    )
    own, following = f"/alerts/{quote(visit.path('rule_id'), safe='')}", deliveries.json["next"]
    return visit.page(
        "alert.html",
        rule=rule.json,
        says=KINDS[rule.json["kind"]],
        deliveries=deliveries.json["deliveries"],
        more=None if following is None else f"{own}?cursor={quote(following, safe='')}",
        path=own,
        form_id=new_form_id(),
        done=visit.query.get("done", ""),
    )


async def _test(visit: Visit) -> Response:
    return await _act(visit, "test", "tested")


async def _replay(visit: Visit) -> Response:
    return await _act(visit, "replays", "replayed")


async def _act(visit: Visit, action: str, done: str) -> Response:
    form = await visit.form()
    await visit.api.call("POST", f"{_rule(visit)}/{action}", {}, idempotency_key=form.get("form_id"))
    return RedirectResponse(f"/alerts/{quote(visit.path('rule_id'), safe='')}?done={done}", 303)


async def _switch(visit: Visit) -> Response:
    form = await visit.form()
    body = orjson.dumps({"enabled": form.get("enabled") == "true"})
    await visit.api.call("PATCH", _rule(visit), {}, body)
    return RedirectResponse(f"/alerts/{quote(visit.path('rule_id'), safe='')}", 303)


async def _delete(visit: Visit) -> Response:
    await visit.api.call("DELETE", _rule(visit), {})
    return RedirectResponse("/alerts", 303)


async def _back(_visit: Visit) -> Response:
    return RedirectResponse("/alerts", 303)


def _rule(visit: Visit) -> str:
    return f"/v1/alerts/{quote(visit.path('rule_id'), safe='')}"


def _entered(form: dict[str, str], names: Iterable[str]) -> dict[str, Any]:
    return {name: form[name].strip() for name in names if form.get(name, "").strip()}


PAGES: Final = (
    Page("/alerts", _list, more="Alerts", roles=PEOPLE, parts=("/alerts",)),
    Page("/alerts", _create, methods=("POST",), roles=PEOPLE),
    Page("/alerts/calendars", _create_calendar, methods=("POST",), roles=PEOPLE),
    # For a page that is loaded again after a calendar was made.
    Page("/alerts/calendars", _back, roles=PEOPLE),
    Page("/alerts/calendars/{calendar_id}/deletion", _end_calendar, methods=("POST",), roles=PEOPLE),
    Page("/alerts/{rule_id}", _one, roles=PEOPLE),
    Page("/alerts/{rule_id}/test", _test, methods=("POST",), roles=PEOPLE),
    Page("/alerts/{rule_id}/replays", _replay, methods=("POST",), roles=PEOPLE),
    Page("/alerts/{rule_id}/switch", _switch, methods=("POST",), roles=PEOPLE),
    Page("/alerts/{rule_id}/deletion", _delete, methods=("POST",), roles=PEOPLE),
)
