"""Using a code, step by step: what does a code cover that somebody sent, and which account redeems it?

A code is sent in the body of a form and is in no address. What it covers is shown before it is redeemed, which TikTok
does not do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson
from starlette.responses import RedirectResponse

from api.console.adapter import Declined
from api.console.commands import EFFECTIVE_AT, RECORDS_LATE, USES
from api.console.forms import Field, new_form_id, problems_of
from api.console.visit import Page, not_offered
from api.console.wording import in_utc

if TYPE_CHECKING:
    from starlette.responses import Response

    from api.console.visit import Visit

FIELDS: Final = (
    Field("secret", "The code that you were sent", "secret", is_required=True),
    Field("expected_video_id", "The video that it should be for", hint="its TikTok link or id, if you know it"),
)


async def _show(visit: Visit) -> Response:
    return _page(visit, {}) if visit.role in USES else not_offered(visit)


def _page(
    visit: Visit,
    given: dict[str, str],
    declined: Declined | None = None,
    covered: dict[str, Any] | None = None,
) -> Response:
    errors = {} if declined is None else problems_of(declined)
    known = {one.name for one in FIELDS} | {"advertiser_id", "effective_at"}
    accounts = sorted(visit.reader.key.subjects.advertiser_ids)
    account = Field(
        "advertiser_id",
        "Advertiser account",
        "choice" if accounts else "text",
        tuple((one, one) for one in accounts),
        hint="that enters it in TikTok Ads Manager",
        is_required=True,
    )
    return visit.page(
        "use.html",
        status=200 if declined is None else declined.status,
        fields=FIELDS,
        account=[account, EFFECTIVE_AT] if visit.role in RECORDS_LATE else [account],
        given=given,
        errors=errors,
        wrong=[text for name, text in errors.items() if name not in known],
        covered=covered,
        form_id=new_form_id(),
    )


async def _look(visit: Visit) -> Response:
    form = await visit.form()
    try:
        covered = await _covered(visit, form)
    except Declined as declined:
        if declined.status not in {400, 404, 409, 422}:
            raise
        return _page(visit, form, declined)
    return _page(visit, form, covered=covered)


async def _covered(visit: Visit, form: dict[str, str]) -> dict[str, Any]:
    body = {"secret": form.get("secret", "")}
    if form.get("expected_video_id", "").strip():
        body["expected_video_id"] = form["expected_video_id"].strip()
    found: dict[str, Any] = (await visit.api.call("POST", "/v1/codes/lookup", {}, orjson.dumps(body))).json
    return found


async def _redeem(visit: Visit) -> Response:
    form = await visit.form()
    body = {name: form.get(name, "").strip() for name in ("secret", "advertiser_id")}
    if form.get("effective_at") and visit.role in RECORDS_LATE:
        body["effective_at"] = in_utc(form["effective_at"])
    try:
        reply = await visit.api.call(
            "POST", "/v1/redemptions", {}, orjson.dumps(body), idempotency_key=form.get("form_id")
        )
    except Declined as declined:
        if declined.status not in {400, 403, 404, 409, 422}:
            raise
        # An unknown code is looked up no second time: that would be another guess.
        covered = None if declined.status in {404, 422} else await _covered(visit, {"secret": body["secret"]})
        return _page(visit, form, declined, covered)
    return RedirectResponse(f"/codes/{reply.json['code_id']}/launch", 303)


PAGES: Final = (
    Page("/use", _show, nav="Use a code", roles=USES, parts=("/use",)),
    Page("/use", _look, methods=("POST",), roles=USES),
    Page("/use/redemption", _redeem, methods=("POST",), roles=USES),
)
