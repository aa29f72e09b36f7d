"""The lists: which codes, campaigns, redemptions, shares and permissions are there, with these filters?

The filters are those of the API, in the address. What the API refuses of them is said at their fields.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, get_args

from api.console.adapter import Declined
from api.console.exports import export_links, export_page
from api.console.filters import ACCOUNT, BRAND, CREATOR, VIDEO, asked_of, filter_form, times, without_empty
from api.console.forms import Field, choice, either
from api.console.visit import PEOPLE, Page
from domain.errors import REFUSALS
from domain.values import Channel, State

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from starlette.responses import Response

    from api.console.visit import Visit
    from domain.values import Role

ROWS: Final = 100
# In the order of the tabs, each with whose it is.
LISTS: Final[dict[str, frozenset[Role]]] = {
    "codes": PEOPLE,
    "campaigns": PEOPLE,
    "redemptions": PEOPLE,
    "shares": PEOPLE,
    "permissions": PEOPLE - {"brand"},
}
_EARLIER: Final = frozenset({"at", "as_of"})
FIELDS: Final[dict[str, Sequence[Field]]] = {
    "codes": (
        choice("state", "State", get_args(State)),
        CREATOR,
        VIDEO,
        BRAND,
        ACCOUNT,
        Field("expires_before", "Window ends before", "time", hint="UTC"),
        Field("rights_until", "Rights end before", "time", hint="UTC"),
        Field("live_at", "Live at", "time", hint="UTC"),
        Field("at", "As true on", "time", hint="UTC"),
        Field("as_of", "As known on", "time", hint="UTC"),
        Field("order", "Order", "choice", (("newest", "Newest first"), ("ending", "Ending soonest first"))),
    ),
    "campaigns": (
        either("running", "Runs", "Running", "Stopped"),
        Field(
            "stop_reason",
            "Stopped by",
            "choice",
            (("code_end", "Its code"), ("rights_end", "The usage rights"), ("campaign_end", "Its own end")),
        ),
        Field("campaign_id", "Campaign id"),
        ACCOUNT,
        CREATOR,
        VIDEO,
        Field("stops_from", "Stops from", "time", hint="UTC"),
        Field("stops_before", "Stops before", "time", hint="UTC"),
        Field("at", "As true on", "time", hint="UTC"),
        Field("as_of", "As known on", "time", hint="UTC"),
        Field("order", "Order", "choice", (("asc", "Stopping soonest first"), ("desc", "Stopping last first"))),
    ),
    "redemptions": (
        either("refused", "Outcome", "Refused", "Successful"),
        choice("reason", "Refused because", REFUSALS["redeem"]),
        either("shared", "Shared with the account", "Yes", "No"),
        ACCOUNT,
        CREATOR,
        VIDEO,
        *times("Attempted"),
    ),
    "shares": (BRAND, ACCOUNT, CREATOR, VIDEO, choice("channel", "Channel", get_args(Channel)), *times("Handed over")),
    "permissions": (either("enabled", "Ad Authorization", "On", "Off"), *times("Switched")),
}


def _shows(name: str) -> Callable[[Visit], Awaitable[Response]]:
    fields = FIELDS[name]

    async def show(visit: Visit) -> Response:
        if (tidied := without_empty(visit)) is not None:
            return tidied
        asked = asked_of(visit, fields)
        tabs = [one for one, roles in LISTS.items() if visit.role in roles]
        try:
            cursor = visit.query.get("cursor")
            answer = (await visit.api.call("GET", f"/v1/{name}", {**asked, "cursor": cursor, "limit": ROWS})).json
        except Declined as declined:
            if declined.status != 400:  # noqa: PLR2004 - filters that cannot be understood
                raise
            form = filter_form(f"/{name}", fields, asked, declined)
            return visit.page("list.html", status=400, name=name, tabs=tabs, form=form, rows=None)
        form = filter_form(f"/{name}", fields, asked)
        return visit.page(
            "list.html",
            name=name,
            tabs=tabs,
            form=form,
            rows=answer[name],
            # A list as it was known earlier has all that it should.
            missing=0 if asked.keys() & _EARLIER else max(0, visit.seen - answer["position"]),
            exports=export_links(form),
            more=None if answer["next"] is None else form.address(cursor=answer["next"]),
            is_first=cursor is None,
        )

    return show


PAGES: Final = (
    *(
        Page(
            f"/{name}",
            _shows(name),
            nav="Lists" if name == "codes" else None,
            parts=tuple(f"/{one}" for one in LISTS) if name == "codes" else (),
        )
        for name in LISTS
    ),
    *(export_page(f"/{name}") for name in LISTS),
)
