"""API keys: who has one, and how is one made, replaced or revoked?

A key is shown once, in the answer to the form that made it: in no address, and gone when the page is left. A form that
is sent twice makes one key.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, get_args
from urllib.parse import quote

import orjson
from starlette.responses import RedirectResponse

from api.console.adapter import Declined
from api.console.forms import Field, new_form_id, problems_of
from api.console.visit import Page
from api.console.wording import in_utc
from domain.values import Role

if TYPE_CHECKING:
    from starlette.responses import Response

    from api.console.visit import Visit

READERS: Final[frozenset[Role]] = frozenset({"admin", "auditor"})
ADMIN: Final[frozenset[Role]] = frozenset({"admin"})
ROWS: Final = 200
# For how long the old key still works after a rotation, in hours: what can be chosen.
OVERLAPS_H: Final = (0, 1, 24, 168)
ROLES: Final = {
    "auditor": "reads everything, changes nothing",
    "operator": "records for anyone, reads everything but keys",
    "creator": "acts for the creators named below",
    "brand": "acts for the brands and accounts named below",
    "subscriber": "a program that follows the events",
    "admin": "everything in this ledger",
}
FIELDS: Final = (
    Field("role", "Role", "choice", tuple((role, f"{role}: {says}") for role, says in ROLES.items()), is_required=True),
    Field("name", "Name", hint="of the person or program"),
    Field("creator_ids", "Creators", hint="for the role creator, with commas between"),
    Field("brand_ids", "Brands", hint="for the role brand"),
    Field("advertiser_ids", "Advertiser accounts", hint="for the role brand"),
    Field("expires_at", "Good until", "time", hint="UTC; empty: for good"),
    Field("may_reveal", "May reveal codes that were issued", "check", hint="For creator, operator and admin."),
)
_SUBJECTS: Final = ("creator_ids", "brand_ids", "advertiser_ids")
_SEPARATOR: Final = re.compile(r"[\s,;]+")


async def _list(visit: Visit) -> Response:
    return await _page(visit, {})


async def _page(visit: Visit, given: dict[str, str], declined: Declined | None = None) -> Response:
    asked = {"limit": ROWS, "cursor": visit.query.get("cursor")}
    answer = (await visit.api.call("GET", "/v1/keys", asked)).json
    errors = {} if declined is None else problems_of(declined)
    return visit.page(
        "keys.html",
        status=200 if declined is None else declined.status,
        keys=answer["keys"],
        more=None if answer["next"] is None else f"/keys?cursor={quote(answer['next'], safe='')}",
        is_first="cursor" not in visit.query,
        fields=FIELDS,
        given=given,
        errors=errors,
        form_id=new_form_id(),
    )


async def _create(visit: Visit) -> Response:
    form = await visit.form()
    role = form.get("role", "")
    subjects = {name: [one for one in _SEPARATOR.split(form.get(name, "")) if one] for name in _SUBJECTS}
    body: dict[str, Any] = {"role": role, "subjects": {name: ids for name, ids in subjects.items() if ids}}
    if form.get("name", "").strip():
        body["name"] = form["name"].strip()
    if form.get("expires_at"):
        body["expires_at"] = in_utc(form["expires_at"])
    if role in {"creator", "operator", "admin"}:
        body["may_reveal"] = "may_reveal" in form
    elif role not in get_args(Role):
        body["role"] = role or "choose"
    try:
        reply = await visit.api.call("POST", "/v1/keys", {}, orjson.dumps(body), idempotency_key=form.get("form_id"))
    except Declined as declined:
        if declined.status != 422:  # noqa: PLR2004 - a field that is wrong
            raise
        return await _page(visit, form, declined)
    return visit.page("key.html", status=201, key=reply.json, is_new=True)


async def _one(visit: Visit) -> Response:
    """Ask before a key is replaced or revoked: programs may be using it."""
    key_id = visit.path("key_id")
    cursor = None
    while True:
        answer = (await visit.api.call("GET", "/v1/keys", {"limit": 1_000, "cursor": cursor})).json
        found = next((one for one in answer["keys"] if one["key_id"] == key_id), None)
        cursor = answer["next"]
        if found is not None or cursor is None:
            break
    return visit.page(
        "key.html",
        status=200 if found else 404,
        key=found,
        is_new=False,
        overlaps=OVERLAPS_H,
        form_id=new_form_id(),
    )


async def _rotate(visit: Visit) -> Response:
    form = await visit.form()
    hours = form.get("overlap", "")
    overlap_s = int(hours) * 3600 if hours in {str(one) for one in OVERLAPS_H} else 0
    path = f"/v1/keys/{quote(visit.path('key_id'), safe='')}/rotation"
    body = orjson.dumps({"overlap_seconds": overlap_s})
    reply = await visit.api.call("POST", path, {}, body, idempotency_key=form.get("form_id"))
    return visit.page("key.html", key=reply.json, is_new=True)


async def _revoke(visit: Visit) -> Response:
    await visit.api.call("DELETE", f"/v1/keys/{quote(visit.path('key_id'), safe='')}", {})
    return RedirectResponse("/keys", 303)


PAGES: Final = (
    Page("/keys", _list, more="Keys", roles=READERS, parts=("/keys",)),
    Page("/keys", _create, methods=("POST",), roles=ADMIN),
    Page("/keys/{key_id}", _one, roles=READERS),
    Page("/keys/{key_id}/rotation", _rotate, methods=("POST",), roles=ADMIN),
    Page("/keys/{key_id}/revocation", _revoke, methods=("POST",), roles=ADMIN),
)
