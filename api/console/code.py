"""A code's dossier: what is its whole life, and how did it stand at a time, as known at a time?

Two times are chosen apart: which moment is asked about (*as true on*), and what was known by when (*as known on*).
Where today's knowledge gives another answer than that of then, the page says so: that is what the ledger is for.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

from api.console.adapter import Declined
from api.console.lifeline import axis_of, is_late, lanes_of
from api.console.visit import Page
from api.console.wording import moment, stated

if TYPE_CHECKING:
    from starlette.responses import Response

    from api.console.adapter import Reply
    from api.console.visit import Visit

# Events of its history on one page.
EVENTS: Final = 100
# Shares, redemptions and campaigns that the state of a code shows of each.
SHOWN: Final = 20
# What the address of a step keeps of the page's.
_KEPT: Final = frozenset({"at", "as_of", "together", "after"})
_TIMES: Final = frozenset({"at", "as_of"})
# What differs between two states in a way that a reader must know.
_COMPARED: Final = {
    "state": "State",
    "starts_at": "Window begins",
    "expires_at": "Window ends",
    "revoked_at": "Revoked",
    "superseded_at": "Superseded",
}
_COUNTED: Final = {"shares": "Shares", "redemptions": "Redemptions", "campaigns": "Campaigns"}


async def _show(visit: Visit) -> Response:
    path = f"/v1/codes/{quote(visit.path('code_id'), safe='')}"
    at, as_of = _chosen(visit, "at"), _chosen(visit, "as_of")
    if "together" in visit.query and at is not None:
        as_of = at
    if visit.is_partial:
        then = await _then(visit, path, at, as_of)
        return visit.page("code.html", block="then", **then)
    code, history, then, head = await asyncio.gather(
        visit.api.call("GET", path, {}, together=_TIMES),
        visit.api.get(f"{path}/history", limit=EVENTS, cursor=visit.query.get("after")),
        _then(visit, path, at, as_of),
        visit.head(),
    )
    # A code is read from the log itself, all of it.
    visit.api.position = head
    events = history.json["events"]
    now_known = code.json
    axis = axis_of(now_known, events, visit.now)
    return visit.page(
        "code.html",
        code=now_known,
        events=[event | {"is_late": is_late(event), "note": _note(event)} for event in events],
        next=history.json["next"],
        is_first="after" not in visit.query,
        axis=axis,
        lanes=lanes_of(now_known, events, axis),
        ticks=axis.ticks(),
        now_x=axis.x(visit.now) if axis.begins < visit.now < axis.ends else None,
        at_x=axis.x(moment(at)) if at is not None else None,
        **then,
    )


async def _then(visit: Visit, path: str, at: str | None, as_of: str | None) -> dict[str, Any]:
    """Return what the page says of the chosen times: the state as it was known, and how today's knowledge differs."""
    asked, known = await asyncio.gather(_state(visit, path, at, as_of), _state(visit, path, at, None))
    return {
        "path": f"/codes/{quote(visit.path('code_id'), safe='')}",
        "at": at,
        "as_of": as_of,
        "at_field": _field(at),
        "as_of_field": _field(as_of),
        "is_together": "together" in visit.query,
        "steps": {"at": _steps(visit, "at", at), "as_of": _steps(visit, "as_of", as_of)},
        "state": asked.json if asked is not None else None,
        "known": known.json if known is not None else None,
        "differences": _differences(asked, known) if as_of is not None else [],
        "shown": SHOWN,
    }


async def _state(visit: Visit, path: str, at: str | None, as_of: str | None) -> Reply | None:
    """Return a state of the code; None where it had not begun, or was not known yet."""
    try:
        return await visit.api.call("GET", path, {"at": at, "as_of": as_of}, together=_TIMES)
    except Declined as declined:
        if declined.code in {"code_not_begun", "code_unknown"} and (at is not None or as_of is not None):
            return None
        raise


def _note(event: dict[str, Any]) -> str:
    """Return what somebody wrote with an event; nothing if they wrote nothing, or the reader may not see it."""
    body = event.get("body", {})
    return str(body.get("text") or body.get("note") or "")


def _differences(asked: Reply | None, known: Reply | None) -> list[tuple[str, Any, Any]]:
    """Return what is known today of the same moment, and was not known then: name, then, today."""
    if asked is None or known is None:
        return [] if asked is known else [("Known", asked is not None, known is not None)]
    then, today = asked.json, known.json
    found = [(name, then[key], today[key]) for key, name in _COMPARED.items() if then[key] != today[key]]
    found += [
        (name, len(then[key]), len(today[key])) for key, name in _COUNTED.items() if len(then[key]) != len(today[key])
    ]
    return found


def _chosen(visit: Visit, name: str) -> str | None:
    """Return a time, or a position, of the address; a time without a zone is in UTC, as its field says."""
    text = visit.query.get(name, "").strip()
    if not text:
        return None
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        # Positions, and what is neither: the API says what is wrong with that.
        return text
    return stated(read if read.tzinfo is not None else datetime.fromisoformat(f"{text}+00:00"))


def _field(text: str | None) -> str:
    """Return a chosen time as its field has it; nothing for a position."""
    try:
        return moment(text).strftime("%Y-%m-%dT%H:%M:%S") if text else ""
    except ValueError:
        return ""


def _steps(visit: Visit, name: str, chosen: str | None) -> list[tuple[str, str, bool]]:
    """Return the buttons of a control: what they say, their address, and whether they can be pressed."""
    try:
        around = moment(chosen) if chosen else visit.now.replace(microsecond=0)
    except ValueError:
        around = visit.now.replace(microsecond=0)
    moves = (("30 days earlier", -30), ("1 day earlier", -1), ("1 day later", 1), ("30 days later", 30))
    return [
        *((says, _moved(visit, name, stated(around + timedelta(days=days))), True) for says, days in moves),
        ("Now", _moved(visit, name, None), chosen is not None),
    ]


def _moved(visit: Visit, name: str, value: str | None) -> str:
    kept: dict[str, str] = {key: text for key, text in visit.query.items() if key in _KEPT and key != name}
    if value is not None:
        # What will be known is not known: no later than now.
        kept[name] = min(value, stated(visit.now)) if name == "as_of" else value
    if "together" in kept:
        kept.pop("as_of", None)
    return f"/codes/{quote(visit.path('code_id'), safe='')}?{urlencode(kept)}"


PAGES: Final = (Page("/codes/{code_id}", _show),)
