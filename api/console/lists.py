"""The lists: which codes, campaigns, redemptions, shares and permissions are there, with these filters?

The filters are those of the API, in the address. What the API refuses of them becomes a page that says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

from api.console.visit import PEOPLE, Page

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

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


def _shows(name: str) -> Callable[[Visit], Awaitable[Response]]:
    async def show(visit: Visit) -> Response:
        filters = {key: text for key, text in visit.query.items() if key not in {"cursor", "limit"}}
        asked = {**filters, "cursor": visit.query.get("cursor"), "limit": ROWS}
        answer = (await visit.api.call("GET", f"/v1/{name}", asked)).json
        more = None if answer["next"] is None else f"/{name}?{urlencode({**filters, 'cursor': answer['next']})}"
        return visit.page(
            "list.html",
            name=name,
            tabs=[one for one, roles in LISTS.items() if visit.role in roles],
            filters=filters,
            rows=answer[name],
            more=more,
            is_first="cursor" not in visit.query,
        )

    return show


PAGES: Final = tuple(
    Page(
        f"/{name}",
        _shows(name),
        nav="Lists" if name == "codes" else None,
        parts=tuple(f"/{one}" for one in LISTS) if name == "codes" else (),
    )
    for name in LISTS
)
