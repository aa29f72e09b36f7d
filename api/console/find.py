"""Finding a thing by whatever one holds of it: what is it, and where is its page?

What was entered is sent in the body of a form and never in an address, because it may be a code's secret.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

import orjson
from starlette.responses import RedirectResponse

from api.console.adapter import Declined
from api.console.visit import PEOPLE, Page
from domain.pasted import Unusable, canonical_creator_id
from domain.values import ID_PATTERN

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.responses import Response

    from api.console.visit import Visit

MAX_CHARACTERS: Final = 512
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_VIDEO: Final = re.compile(r"[0-9]{15,20}")
_VIDEO_LINK: Final = re.compile(r"(?:https?://)?(?:[a-z]+\.)?tiktok\.com/\S*?([0-9]{15,20})\S*", re.IGNORECASE)
_PROFILE_LINK: Final = re.compile(r"(?:https?://)?(?:www\.)?tiktok\.com/@[\w.-]+/?(?:\?\S*)?", re.IGNORECASE)
_POSITION: Final = re.compile(r"#?\s?([0-9][0-9,]{0,13})")
_REQUEST_ID: Final = re.compile(r"[0-9a-f]{32}", re.IGNORECASE)
_ID: Final = re.compile(ID_PATTERN)
LOOKS_UP: Final = frozenset({"admin", "operator", "brand"})

_NO_LOOK_UP: Final = (
    "This looks like a code itself. With your role a code cannot be looked up by its secret. Nothing was looked up, "
    "and what you entered was not kept. Ask somebody with an operator's key for the id of the code."
)
_REQUEST: Final = (
    "This is the id of a request. Requests are found in the access log and in the server's log: open “Who looked”, and "
    "compare the time."
)


@dataclass(frozen=True, slots=True)
class Found:
    """Something that what was entered may be."""

    what: str
    address: str


async def _find(visit: Visit) -> Response:
    text = (await visit.form()).get("q", "").strip()[:MAX_CHARACTERS]
    if not text:
        return RedirectResponse("/", 303)
    address = _by_shape(text)
    if address is not None:
        return RedirectResponse(address, 303)
    if _REQUEST_ID.fullmatch(text):
        return visit.page("found.html", status=404, found=[], tried=[], notice=_REQUEST)
    video = _VIDEO.fullmatch(text) or _VIDEO_LINK.fullmatch(text)
    if video is not None:
        return await _video(visit, video[0] if video.re is _VIDEO else video[1])
    if _PROFILE_LINK.fullmatch(text) or _ID.fullmatch(text.removeprefix("@")):
        return await _named(visit, text)
    return await _secret(visit, text)


def _by_shape(text: str) -> str | None:
    """Return the address of what is recognised without asking."""
    if _UUID.fullmatch(text):
        return f"/codes/{text.lower()}"
    position = _POSITION.fullmatch(text)
    if position is not None and len(digits := position[1].replace(",", "")) < 15:  # noqa: PLR2004 - a video's id
        return f"/events/{int(digits)}"
    return None


async def _video(visit: Visit, video_id: str) -> Response:
    """Lead to the code of a video, or to the list of several."""
    found = (await visit.api.get("/v1/codes", video_id=video_id, video_id_exact="true", limit=2)).json["codes"]
    if len(found) == 1:
        return RedirectResponse(f"/codes/{found[0]['code_id']}", 303)
    if not found:
        return _nothing(visit, ["the id of a video"])
    return RedirectResponse(f"/codes?{urlencode({'video_id': video_id, 'video_id_exact': 'true'})}", 303)


async def _named(visit: Visit, text: str) -> Response:
    """Lead to what bears a name: those of creators, brands, accounts and campaigns look alike, so each is tried."""
    kinds: dict[str, Callable[[Visit, str], Awaitable[Found | None]]] = {
        "a creator": _creator,
        "an advertiser account": _account,
        "a brand": _brand,
        "a campaign": _campaign,
    }
    found = [one for one in await asyncio.gather(*(look(visit, text) for look in kinds.values())) if one is not None]
    if len(found) == 1:
        return RedirectResponse(found[0].address, 303)
    if not found:
        return _nothing(visit, list(kinds))
    return visit.page("found.html", found=found, tried=[], notice="")


async def _creator(visit: Visit, text: str) -> Found | None:
    try:
        creator_id = canonical_creator_id(text)
    except Unusable:
        return None
    subjects = visit.reader.key.subjects.creator_ids
    if visit.role == "creator" and creator_id not in subjects:
        return None
    return await _listed(visit, "codes", "Codes of the creator", creator_id=creator_id)


async def _account(visit: Visit, text: str) -> Found | None:
    if visit.role == "brand" and text not in visit.reader.key.subjects.advertiser_ids:
        return None
    found = await _listed(visit, "codes", "Codes of the advertiser account", advertiser_id=text)
    return found or await _listed(visit, "redemptions", "Redemptions of the advertiser account", advertiser_id=text)


async def _brand(visit: Visit, text: str) -> Found | None:
    if visit.role == "brand" and text not in visit.reader.key.subjects.brand_ids:
        return None
    return await _listed(visit, "codes", "Codes shared with the brand", brand_id=text)


async def _campaign(visit: Visit, text: str) -> Found | None:
    return await _listed(visit, "campaigns", "Campaigns with the id", campaign_id=text)


async def _listed(visit: Visit, name: str, what: str, **query: str) -> Found | None:
    """Return a list, if it has anything."""
    if any(_ID.fullmatch(value) is None for value in query.values()):
        return None
    rows = (await visit.api.get(f"/v1/{name}", **query, limit=1)).json[name]
    return Found(what, f"/{name}?{urlencode(query)}") if rows else None


async def _secret(visit: Visit, text: str) -> Response:
    """Look a code up by its secret, where the role may."""
    if visit.role not in LOOKS_UP:
        return visit.page("found.html", status=403, found=[], tried=[], notice=_NO_LOOK_UP)
    try:
        reply = await visit.api.call("POST", "/v1/codes/lookup", {}, orjson.dumps({"secret": text}))
    except Declined as declined:
        if declined.status not in {404, 409, 422}:
            raise
        problems = [one["problem"] for one in declined.problem.get("errors", ())]
        detail = " ".join(problems) or str(declined)
        return visit.page("found.html", status=404, found=[], tried=["a code"], notice=detail)
    return RedirectResponse(f"/codes/{reply.json['code_id']}", 303)


def _nothing(visit: Visit, tried: list[str]) -> Response:
    return visit.page("found.html", status=404, found=[], tried=tried, notice="")


PAGES: Final = (Page("/find", _find, methods=("POST",), roles=PEOPLE),)
