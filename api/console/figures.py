"""Figures: what happened in these months, by month, creator, brand, account or video, and which spend is at risk?

A link on a name leads to the months of that name, and a month to nothing: it is the finest that sums are kept of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, get_args
from urllib.parse import urlencode

from api.console.adapter import Declined
from api.console.exports import export_links, export_page
from api.console.filters import ACCOUNT, BRAND, CREATOR, VIDEO, asked_of, filter_form, without_empty
from api.console.forms import Field
from api.console.visit import PEOPLE, Page
from api.figures import OF_CODES, OF_ROLE, By, Sort

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.responses import Response

    from api.console.visit import Visit

ROWS: Final = 100
SAID: Final[Mapping[str, str]] = {
    "month": "Month",
    "creator": "Creator",
    "brand": "Brand",
    "advertiser": "Advertiser account",
    "video": "Video",
}
# In the order of the columns.
COLUMNS: Final[Mapping[str, str]] = {
    "issued": "Codes that began",
    "recorded": "Of these, recorded",
    "extended": "Extensions",
    "revoked": "Revocations",
    "windows_ended": "Windows that ended",
    "reveals": "Reveals",
    "shares": "Shares",
    "codes_shared": "Codes shared first",
    "redemptions": "Redemptions",
    "codes_redeemed": "Codes redeemed first",
    "refusals": "Refused redemptions",
    "campaigns": "Campaigns",
    "campaigns_beyond_code": "Of these, beyond their code",
    "recorded_late": "Recorded over a day late",
    "recorded_30_days_late": "Over 30 days late",
}
FIELDS: Final = (
    Field("by", "By", "choice", tuple(SAID.items())),
    Field("from", "From month", hint="such as 2026-01"),
    Field("to", "To month", hint="such as 2026-12"),
    CREATOR,
    BRAND,
    ACCOUNT,
    VIDEO,
    Field("sort", "Most of", "choice", (("key", "In order"), *COLUMNS.items())),
)


async def _show(visit: Visit) -> Response:
    if (tidied := without_empty(visit)) is not None:
        return tidied
    asked = asked_of(visit, FIELDS)
    by = asked.get("by", "month")
    tabs = [(one, title) for one, title in SAID.items() if one in OF_ROLE.get(visit.role, get_args(By))]
    cursor = visit.query.get("cursor")
    try:
        sought = {**asked, "cursor": cursor, "limit": ROWS}
        answer = (await visit.api.call("GET", "/v1/stats/figures", sought)).json
        risk = None if cursor else await _at_risk(visit, by)
    except Declined as declined:
        if declined.status != 400:  # noqa: PLR2004 - filters that cannot be understood
            raise
        form = filter_form("/figures", FIELDS, asked, declined)
        return visit.page("figures.html", status=400, form=form, by=by, tabs=tabs, rows=None)
    form = filter_form("/figures", FIELDS, asked)
    limits = {name: text for name, text in asked.items() if name != "by"}
    is_of_codes = by not in {"brand", "advertiser"} and answer["totals"]["issued"] is not None
    hidden = frozenset() if is_of_codes else OF_CODES
    shown = {name: title for name, title in COLUMNS.items() if name not in hidden}
    return visit.page(
        "figures.html",
        form=form,
        limits=filter_form(f"/figures?by={by}", FIELDS, limits),
        by=by,
        said=SAID[by],
        tabs=tabs,
        columns=shown,
        rows=answer["figures"],
        totals=answer["totals"],
        months=None if by == "month" else {one["key"]: _months_of(by, one["key"], asked) for one in answer["figures"]},
        risk=risk,
        missing=max(0, visit.seen - answer["position"]),
        exports=export_links(form),
        more=None if answer["next"] is None else form.address(cursor=answer["next"]),
        is_first=cursor is None,
    )


async def _at_risk(visit: Visit, by: str) -> dict[str, Any]:
    """Return the spend at risk by what is shown, or by what a reader sees if months are."""
    asked = {} if by == "month" else {"by": by}
    found: dict[str, Any] = (await visit.api.call("GET", "/v1/stats/spend-at-risk", asked)).json
    return found


def _months_of(by: str, key: str, asked: Mapping[str, str]) -> str:
    """Return the address of the months of one party."""
    span = {name: asked[name] for name in ("from", "to") if name in asked}
    return f"/figures?{urlencode({'by': 'month', f'{by}_id': key, **span})}"


assert {"key", *COLUMNS} == set(get_args(Sort))  # noqa: S101 - each figure has a column

PAGES: Final = (
    Page("/figures", _show, more="Figures", roles=PEOPLE, parts=("/figures",)),
    export_page("/figures"),
)
