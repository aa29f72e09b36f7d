"""The access log: who read what, who signed in, and who was refused?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, get_args

from api.console.adapter import Declined
from api.console.exports import export_links, export_page
from api.console.filters import CREATOR, VIDEO, asked_of, filter_form, without_empty
from api.console.forms import Field, choice, either
from api.console.visit import Page
from api.http.denied_attempts import DeniedReason

if TYPE_CHECKING:
    from starlette.responses import Response

    from api.console.visit import Visit
    from domain.values import Role

READERS: Final[frozenset[Role]] = frozenset({"admin", "operator", "auditor"})
ROWS: Final = 100
# Routes in words. What is not here is shown as the log has it.
ROUTES: Final = {
    "POST /sign-in": "Signed in with a key",
    "GET /sign-in/done": "Signed in by an identity provider",
    "POST /sign-out": "Signed out of the console",
    "GET /v1/events": "Read the audit trail",
    "GET /v1/events/{position}": "Read one event",
    "GET /v1/events/{position}/proof": "Took the proof of an event",
    "GET /v1/events/stream": "Followed the events",
    "GET /v1/exports/events": "Exported events",
    "POST /v1/evidence": "Made an evidence bundle",
    "GET /v1/dossiers/creators/{creator_id}": "Read the dossier of a creator",
    "GET /v1/dossiers/codes/{code_id}": "Read the dossier of a code",
    "GET /v1/dossiers/videos/{video_id}": "Read the dossier of a video",
    "GET /v1/dossiers/brands/{brand_id}": "Read the dossier of a brand",
    "GET /v1/dossiers/advertisers/{advertiser_id}": "Read the dossier of an account",
    "GET /v1/dossiers/keys/{key_id}": "Read the dossier of a key",
    "GET /v1/authorizations": "Asked the question",
    "POST /v1/authorizations/batch": "Asked the question for a file",
    "GET /v1/codes": "Read the list of codes",
    "GET /v1/codes/{code_id}": "Read a code",
    "GET /v1/codes/{code_id}/history": "Read the history of a code",
    "POST /v1/codes/lookup": "Looked a code up by its secret",
    "GET /v1/campaigns": "Read the list of campaigns",
    "GET /v1/redemptions": "Read the list of redemptions",
    "GET /v1/shares": "Read the list of shares",
    "GET /v1/permissions": "Read the list of permissions",
    "GET /v1/creators/{creator_id}/permission": "Read a creator’s permission",
    "GET /v1/creators/{creator_id}/permission/history": "Read the history of a permission",
    "GET /v1/accesses": "Read the access log",
    "GET /v1/keys": "Read the list of keys",
    "POST /v1/keys": "Made a key",
    "POST /v1/keys/{key_id}/rotation": "Replaced a key",
    "DELETE /v1/keys/{key_id}": "Revoked a key",
    "first use": "Used a key for the first time",
    "erasure": "Erased a creator",
    "GET /v1/log": "Read the state of the signed log",
    "POST /v1/imports": "Sent a sheet, to look at or to record",
    "GET /v1/imports": "Read the list of imports",
    "GET /v1/imports/{import_id}": "Looked how far an import is",
    "GET /v1/imports/{import_id}/report": "Read the report of an import",
    "DELETE /v1/imports/{import_id}": "Cancelled an import",
    "GET /v1/imports/mappings": "Read the list of mappings",
    "GET /v1/imports/mappings/{name}": "Read a mapping",
    "PUT /v1/imports/mappings/{name}": "Saved a mapping",
    "DELETE /v1/imports/mappings/{name}": "Deleted a mapping",
    "GET /v1/alerts": "Read the list of alerts",
    "GET /v1/alerts/{rule_id}": "Read an alert",
    "GET /v1/alerts/{rule_id}/deliveries": "Read the messages of an alert",
    "POST /v1/alerts/{rule_id}/test": "Had a test of an alert sent",
    "GET /v1/calendars": "Read the list of calendars",
    "GET /v1/webhooks": "Read the list of webhooks",
    "POST /v1/alerts": "Made an alert",
    "PATCH /v1/alerts/{rule_id}": "Changed an alert",
    "DELETE /v1/alerts/{rule_id}": "Deleted an alert",
    "POST /v1/calendars": "Made a calendar",
    "DELETE /v1/calendars/{calendar_id}": "Deleted a calendar",
    "GET /calendar/{secret}.ics": "Read a calendar",
    "POST /v1/webhooks": "Made a webhook",
    "PATCH /v1/webhooks/{webhook_id}": "Changed a webhook",
    "DELETE /v1/webhooks/{webhook_id}": "Deleted a webhook",
    "GET /v1/stats": "Read the counts of the ledger",
    "GET /v1/stats/days": "Read the statistics of days",
    "GET /v1/stats/figures": "Read figures by month or party",
    "GET /v1/stats/spend-at-risk": "Read the spend at risk",
    "GET /v1/exports/figures": "Exported figures",
    "POST /v1/redemptions": "Tried to redeem a code",
}
FIELDS: Final = (
    either("refused", "Outcome", "Refused", "Answered"),
    choice("reason", "Refused because", get_args(DeniedReason)),
    Field("route", "What was done", "choice", tuple(ROUTES.items())),
    Field("actor", "Key", hint="its id, or machine"),
    Field("code_id", "Code", hint="its id"),
    CREATOR,
    VIDEO,
    Field("from", "From", "time", hint="UTC"),
    Field("to", "Before", "time", hint="UTC"),
)


async def _show(visit: Visit) -> Response:
    if (tidied := without_empty(visit)) is not None:
        return tidied
    asked = asked_of(visit, FIELDS)
    try:
        sought = {**asked, "cursor": visit.query.get("cursor"), "limit": ROWS}
        answer = (await visit.api.call("GET", "/v1/accesses", sought)).json
    except Declined as declined:
        if declined.status != 400:  # noqa: PLR2004 - filters that cannot be understood
            raise
        form = filter_form("/accesses", FIELDS, asked, declined)
        return visit.page("accesses.html", status=400, form=form, rows=None, newer=None, older=None, routes=ROUTES)
    form = filter_form("/accesses", FIELDS, asked)
    newer, older = (
        None if answer[name] is None else form.address(cursor=answer[name]) for name in ("prev_cursor", "next_cursor")
    )
    return visit.page(
        "accesses.html",
        form=form,
        rows=answer["accesses"],
        newer=newer,
        older=older,
        routes=ROUTES,
        exports=export_links(form),
    )


PAGES: Final = (
    Page("/accesses", _show, more="Who looked", roles=READERS),
    export_page("/accesses", roles=READERS),
)
