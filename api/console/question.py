"""The question: was this video authorized for this advertiser at this time, why, and what proves it?

The address of an answer says both times: which time was asked about, and up to which event the ledger was read. So it
gives the same verdict, reason and evidence for good.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

from starlette.responses import RedirectResponse

from api.console.adapter import Declined
from api.console.visit import Page
from api.console.wording import field, in_utc, stated

if TYPE_CHECKING:
    from starlette.responses import Response

    from api.console.visit import Visit
    from domain.values import Role

ASKS: Final[frozenset[Role]] = frozenset({"admin", "operator", "auditor", "brand"})
# Of a history, whose first events are read for the evidence: the rest is linked.
HISTORY: Final = 200
READS_EVENTS: Final = ASKS - {"brand"}
OTHERS: Final = 3
_ASKED: Final = ("video_id", "advertiser_id", "at", "as_of")

# In words, with what to do about it. The sentence of the API says the rest.
REASONS: Final = {
    "authorized": ("Yes, it was authorized", "The code was redeemed by this account, and its window was open."),
    "no_code": ("No: no code is recorded", "The ledger knows no code for this video. Ask the creator for one."),
    "not_redeemed": (
        "No: this account had not redeemed the code",
        "A code exists, but this account had not entered it by then. It can only run the ad after that.",
    ),
    "not_started": ("No: the window had not begun", "The code was good only from a later time on."),
    "expired": ("No: the code had expired", "Its window was over. The creator can extend it from then on."),
    "rights_ended": (
        "No: the usage rights had ended",
        "The code’s window was open, but the contract allowed its use no longer. Agree on more time, and state it.",
    ),
    "revoked": ("No: the code was revoked", "The creator, or somebody for them, had withdrawn it for good."),
}


async def _show(visit: Visit) -> Response:
    asked: dict[str, str] = {name: visit.query[name].strip() for name in _ASKED if name in visit.query}
    if "video_id" not in asked and "advertiser_id" not in asked:
        return _form(visit, asked)
    if at := in_utc(asked.get("at", "")):
        asked["at"] = at
    if "as_of" not in asked or not at:
        # Both times, before it is asked: the question is recorded once, and its address is one to keep.
        asked["as_of"] = asked.get("as_of") or str(await visit.head())
        asked["at"] = at or stated(visit.now)
        return RedirectResponse(f"/question?{urlencode(asked)}", 303)
    try:
        verdict = (await visit.api.get("/v1/authorizations", **asked)).json
    except Declined as declined:
        if declined.status not in {400, 403, 422}:
            raise
        return _form(visit, asked, declined)
    return await _answered(visit, asked, verdict)


def _form(visit: Visit, asked: dict[str, str], declined: Declined | None = None) -> Response:
    errors = [] if declined is None else declined.problem.get("errors", [])
    if declined is not None and not errors:
        errors = [{"pointer": "", "problem": str(declined)}]
    return visit.page(
        "question.html",
        status=200 if declined is None else declined.status,
        asked=asked,
        at_local=field(asked.get("at")),
        errors=errors,
        accounts=sorted(visit.reader.key.subjects.advertiser_ids),
    )


async def _answered(visit: Visit, asked: dict[str, str], verdict: dict[str, Any]) -> Response:
    heading, explained = REASONS[verdict["reason"]]
    events = await _evidence(visit, verdict)
    return visit.page(
        "verdict.html",
        asked=asked,
        at_local=field(asked["at"]),
        verdict=verdict,
        heading=heading,
        explained=explained,
        evidence=[{"position": position, "event": events.get(position)} for position in verdict["evidence"]],
        address=f"{visit.site}/question?{urlencode(asked)}",
        errors=[],
        accounts=sorted(visit.reader.key.subjects.advertiser_ids),
    )


async def _evidence(visit: Visit, verdict: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Return the events that prove an answer, by position, as far as the reader may read them."""
    if not verdict["evidence"]:
        return {}
    wanted = []
    if verdict["code_id"] is not None:
        wanted.append(f"/v1/codes/{verdict['code_id']}/history")
    if verdict["creator_id"] is not None and visit.role != "brand":
        wanted.append(f"/v1/creators/{quote(verdict['creator_id'], safe='')}/permission/history")
    read = [visit.api.read_or_none(path, as_of=verdict["as_of"], limit=HISTORY) for path in wanted]
    replies = await asyncio.gather(*read)
    found = {event["position"]: event for reply in replies if reply is not None for event in reply.json["events"]}
    if visit.role in READS_EVENTS:
        # Those of neither history: whose an account is. Each is an entry of the access log, so there are few.
        others = [position for position in verdict["evidence"] if position not in found][:OTHERS]
        single = await asyncio.gather(*(visit.api.read_or_none(f"/v1/events/{position}") for position in others))
        found |= {reply.json["position"]: reply.json for reply in single if reply is not None}
    return found


PAGES: Final = (Page("/question", _show, nav="Question", roles=ASKS),)
