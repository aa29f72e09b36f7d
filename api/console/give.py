"""Giving a code, step by step: is Ad Authorization on, which video, for how long, and to whom was the code given?

The steps have the names of the switches and buttons in TikTok. Sparkledger does not operate TikTok: it records what its
reader does there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

import orjson
from starlette.responses import RedirectResponse

from api.console.adapter import Declined
from api.console.commands import EFFECTIVE_AT, GIVES, RECORDS_LATE, lengths_of
from api.console.forms import Field, new_form_id, problems_of
from api.console.visit import Page, not_offered
from api.console.wording import in_utc
from domain.pasted import Unusable, canonical_creator_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.responses import Response

    from api.console.visit import Visit

# Codes that the page itself lists.
SHOWN: Final = 20
_PERMISSION: Final = "permission"
_CODE: Final = "code"


async def _show(visit: Visit) -> Response:
    if visit.role not in GIVES:
        return not_offered(visit)
    creator_id = _creator_of(visit, visit.query.get("creator_id", ""))
    # After a switch, the page waits until the views have it.
    return await _page(visit, creator_id, {}, at_least=visit.query.get("at_least"))


def _creator_of(visit: Visit, text: str) -> str:
    """Return the creator for whom the page is: the one that was named, or the only one that the key acts for."""
    own = sorted(visit.reader.key.subjects.creator_ids)
    if not text.strip() and len(own) == 1:
        return own[0]
    try:
        return canonical_creator_id(text.strip())
    except Unusable:
        return ""


async def _page(
    visit: Visit,
    creator_id: str,
    given: dict[str, str],
    declined: Declined | None = None,
    step: str = "",
    at_least: str | None = None,
) -> Response:
    permission: dict[str, Any] | None = None
    codes: Sequence[dict[str, Any]] = ()
    if creator_id:
        path = f"/v1/creators/{quote(creator_id, safe='')}/permission"
        permission = (await visit.api.get(path, at_least=at_least)).json
        codes = (await visit.api.get("/v1/codes", creator_id=creator_id, limit=SHOWN, at_least=at_least)).json["codes"]
    errors = {} if declined is None else problems_of(declined)
    fields = _fields(visit)
    known = {one.name for one in fields}
    first = {"days": "30", "terms_version": f"{visit.now:%Y-%m-%d}"}
    return visit.page(
        "give.html",
        status=200 if declined is None else declined.status,
        creators=sorted(visit.reader.key.subjects.creator_ids),
        creator_id=creator_id,
        permission=permission,
        codes=codes,
        fields=fields,
        given=first | given,
        errors=errors,
        wrong=[text for name, text in errors.items() if name not in known],
        step=step,
        form_id=new_form_id(),
    )


def _fields(visit: Visit) -> Sequence[Field]:
    fields = [
        Field("video_id", "Video", hint="its TikTok link or id", is_required=True),
        Field("days", "How long the code is good", "choice", lengths_of(visit), is_required=True),
        Field("terms_version", "TikTok’s advertising terms", hint="their version, or the day you accepted them"),
        Field("accepts", "The creator accepts these terms", "check", is_required=True),
        Field(
            "secret",
            "The code from TikTok",
            "secret",
            hint="if you generated it there; empty: one is generated here",
        ),
    ]
    return [*fields, EFFECTIVE_AT] if visit.role in RECORDS_LATE else fields


async def _switch(visit: Visit) -> Response:
    form = await visit.form()
    creator_id = _creator_of(visit, form.get("creator_id", ""))
    body = orjson.dumps({"enabled": form.get("enabled") == "true"})
    path = f"/v1/creators/{quote(creator_id, safe='')}/permission"
    try:
        reply = await visit.api.call("PUT", path, {}, body, idempotency_key=form.get("form_id"))
    except Declined as declined:
        if declined.status not in {400, 409, 422}:
            raise
        return await _page(visit, creator_id, {}, declined, _PERMISSION)
    return RedirectResponse(f"/give?{urlencode({'creator_id': creator_id, 'at_least': reply.json['position']})}", 303)


async def _generate(visit: Visit) -> Response:
    form = await visit.form()
    creator_id = _creator_of(visit, form.get("creator_id", ""))
    body: dict[str, Any] = {"creator_id": creator_id, "video_id": form.get("video_id", "").strip()}
    if form.get("days", "").isdecimal():
        body["days"] = int(form["days"])
    if form.get("accepts") and form.get("terms_version", "").strip():
        body["terms_version"] = form["terms_version"].strip()
    if form.get("secret", "").strip():
        body["secret"] = form["secret"]
    if form.get("effective_at") and visit.role in RECORDS_LATE:
        body["effective_at"] = in_utc(form["effective_at"])
    try:
        reply = await visit.api.call("POST", "/v1/codes", {}, orjson.dumps(body), idempotency_key=form.get("form_id"))
    except Declined as declined:
        if declined.status not in {400, 409, 422}:
            raise
        return await _page(visit, creator_id, form, declined, _CODE)
    return visit.page("given.html", status=201, code=reply.json, is_new=True)


PAGES: Final = (
    Page("/give", _show, nav="Give a code", roles=GIVES, parts=("/give",)),
    Page("/give/permission", _switch, methods=("POST",), roles=GIVES),
    Page("/give/code", _generate, methods=("POST",), roles=GIVES),
)
