"""A dossier: what is all that the ledger has on one creator, code, video, brand, account or key, to print or to keep?

The page shows the newest or first entries of each section, as the API answers them. The file has all of them, and the
evidence bundle the proofs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from api.console.accesses import ROUTES
from api.console.code import note_of
from api.console.visit import PEOPLE, Page
from api.http.problems import Problem

if TYPE_CHECKING:
    from starlette.responses import Response

    from api.console.visit import Visit

# Entries of a section on the page.
SHOWN: Final = 200
KINDS: Final = {
    "creators": "Creator",
    "codes": "Code",
    "videos": "Video",
    "brands": "Brand",
    "advertisers": "Advertiser account",
    "keys": "API key",
}
TITLES: Final = {
    "permission": "Ad Authorization",
    "code": "The code now",
    "key": "The key",
    "codes": "Codes",
    "shares": "Shares",
    "redemptions": "Redemptions and refused attempts",
    "campaigns": "Campaigns",
    "events": "Events",
    "accesses": "Who looked",
}


async def _show(visit: Visit) -> Response:
    kind, path = _asked(visit)
    dossier: dict[str, Any] = (await visit.api.get(path, limit=SHOWN)).json
    for section in dossier["sections"]:
        section["entries"] = [entry | {"note": note_of(entry)} for entry in section["entries"]]
    address = f"/dossiers/{kind}/{quote(visit.path('id'), safe='')}"
    return visit.page(
        "dossier.html", dossier=dossier, title=KINDS[kind], titles=TITLES, routes=ROUTES, file=f"{address}/file"
    )


async def _file(visit: Visit) -> Response:
    _, path = _asked(visit)
    return visit.passed_on(path, {"format": "ndjson"}, accept="*/*")


def _asked(visit: Visit) -> tuple[str, str]:
    """Return the kind of a dossier as the address has it, and the address of the API."""
    kind = visit.path("kind")
    if kind not in KINDS:
        raise Problem("route_unknown")
    return kind, f"/v1/dossiers/{kind}/{quote(visit.path('id'), safe='')}"


PAGES: Final = (
    Page("/dossiers/{kind}/{id}", _show, roles=PEOPLE),
    Page("/dossiers/{kind}/{id}/file", _file, roles=PEOPLE),
)
