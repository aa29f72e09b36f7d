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
from api.console.commands import COMMANDS
from api.console.lifeline import axis_of, density_of, is_late, lanes_of
from api.console.visit import Page
from api.console.wording import field, moment, stated

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from starlette.responses import Response

    from api.console.commands import Command
    from api.console.visit import Visit

# *As true on* and *as known on*; None is now.
Times = tuple[str | None, str | None]
State = dict[str, Any]
# Events of its history on one page.
EVENTS: Final = 100
# Spans of time in which all of its events are counted, for the drawing.
SPANS: Final = 100
# Shares, redemptions and campaigns that the state of a code shows of each.
SHOWN: Final = 20
MAX_POSITION_DIGITS: Final = 18
# What the address of a step keeps of the page's.
_KEPT: Final = frozenset({"at", "as_of", "together", "event"})
_TIMES: Final = frozenset({"at", "as_of"})
# What differs between two states in a way that a reader must know.
_COMPARED: Final = {
    "state": "State",
    "starts_at": "Window begins",
    "expires_at": "Window ends",
    "ends_at": "Use ends",
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
        states = await _states(visit, path, {(at, as_of), (at, None)})
        return visit.page("code.html", block="then", **_then(visit, states, at, as_of))
    begin = _first_event(visit)
    states, history, head = await asyncio.gather(
        _states(visit, path, {(at, as_of), (at, None), (None, None)}),
        visit.api.get(f"{path}/history", limit=EVENTS, spread=SPANS, after=begin - 1),
        visit.head(),
    )
    # A code is read from the log itself, all of it.
    visit.api.position = head
    events, spread = history.json["events"], history.json["spread"]
    now_known = states[None, None]
    # Only at a time can a code not have begun, or not be known.
    assert now_known is not None  # noqa: S101
    axis = axis_of(now_known, spread, visit.now)
    total = sum(group["count"] for group in spread)
    here = {event["position"] for event in events}

    def address(position: int) -> str:
        shown = "" if position in here else _with_event(visit, position)
        return f"{shown}#event-{position}"

    return visit.page(
        "code.html",
        code=now_known,
        events=[event | {"is_late": is_late(event), "note": note_of(event)} for event in events],
        total=total,
        kept={name: text for name, text in visit.query.items() if name in _KEPT and name != "event"},
        next=_with_event(visit, events[-1]["position"] + 1) if history.json["next"] else None,
        first=_with_event(visit, None) if begin > 1 else None,
        axis=axis,
        lanes=lanes_of(now_known, spread, events, axis, address),
        density=density_of(spread, axis) if total > EVENTS else [],
        ticks=axis.ticks(),
        now_x=axis.x(visit.now) if axis.begins < visit.now < axis.ends else None,
        at_x=axis.x(moment(at)) if at is not None else None,
        commands=_commands(visit, now_known),
        **_then(visit, states, at, as_of),
    )


def _first_event(visit: Visit) -> int:
    """Return the position from which on events are listed; what is none is the beginning."""
    text = visit.query.get("event", "")
    return max(1, int(text)) if text.isascii() and text.isdigit() and len(text) <= MAX_POSITION_DIGITS else 1


def _with_event(visit: Visit, position: int | None) -> str:
    kept = {name: text for name, text in visit.query.items() if name in _KEPT and name != "event"}
    query = urlencode(kept if position is None else {**kept, "event": position})
    path = f"/codes/{quote(visit.path('code_id'), safe='')}"
    return f"{path}?{query}" if query else path


def _commands(visit: Visit, code: dict[str, Any]) -> list[Command]:
    """Return what the reader can do to a code as it is: not what is sure to be refused."""
    possible = {"note", "reveal", "rights"}
    if code["state"] != "revoked":
        possible |= {"extend", "revoke"}
    if code["live"]:
        possible |= {"share"} | ({"launch"} if code["redemptions"] else set())
        possible |= {"redeem"} if code["masked"] is None else set()
    if code["counts"]["running"]:
        possible.add("end")
    if code["masked"] is None:
        possible.add("secret")
    if code["masked"] is None or not visit.reader.key.reveals:
        possible.discard("reveal")
    return [one for one in COMMANDS if one.name in possible and visit.role in one.roles]


def _then(visit: Visit, states: Mapping[Times, State | None], at: str | None, as_of: str | None) -> dict[str, Any]:
    """Return what the page says of the chosen times: the state as it was known, and how today's knowledge differs."""
    asked, known = states[at, as_of], states[at, None]
    return {
        "path": f"/codes/{quote(visit.path('code_id'), safe='')}",
        "at": at,
        "as_of": as_of,
        "at_field": field(at),
        "as_of_field": field(as_of),
        "is_together": "together" in visit.query,
        "steps": {"at": _steps(visit, "at", at), "as_of": _steps(visit, "as_of", as_of)},
        "state": asked,
        "known": known,
        "differences": _differences(asked, known) if as_of is not None else [],
    }


async def _states(visit: Visit, path: str, wanted: Collection[Times]) -> dict[Times, State | None]:
    """Return the states of the code at several times, each read once."""
    found = await asyncio.gather(*(_state(visit, path, at, as_of) for at, as_of in wanted))
    return dict(zip(wanted, found, strict=True))


async def _state(visit: Visit, path: str, at: str | None, as_of: str | None) -> State | None:
    """Return a state of the code; None where it had not begun, or was not known yet."""
    query = {"at": at, "as_of": as_of, "entries": SHOWN}
    try:
        found: State = (await visit.api.call("GET", path, query, together=_TIMES)).json
    except Declined as declined:
        if declined.code in {"code_not_begun", "code_unknown"} and (at is not None or as_of is not None):
            return None
        raise
    return found


def note_of(event: dict[str, Any]) -> str:
    """Return what somebody wrote with an event; nothing if they wrote nothing, or the reader may not see it."""
    body = event.get("body", {})
    return str(body.get("text") or body.get("note") or body.get("contract_reference") or "")


def _differences(asked: State | None, known: State | None) -> list[tuple[str, Any, Any]]:
    """Return what is known today of the same moment, and was not known then: name, then, today."""
    if asked is None or known is None:
        return [] if asked is known else [("Known", asked is not None, known is not None)]
    found = [(name, asked[key], known[key]) for key, name in _COMPARED.items() if asked[key] != known[key]]
    found += [
        (name, asked["counts"][key], known["counts"][key])
        for key, name in _COUNTED.items()
        if asked["counts"][key] != known["counts"][key]
    ]
    return found


def _chosen(visit: Visit, name: str) -> str | None:
    """Return a time, or a position, of the address; a time without a zone is in UTC, as its field says."""
    text = visit.query.get(name, "").strip()
    if not text or text.isdigit():
        # A position, though Python reads some as a date.
        return text or None
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        # The API says what is wrong with it.
        return text
    return stated(read if read.tzinfo is not None else datetime.fromisoformat(f"{text}+00:00"))


def _steps(visit: Visit, name: str, chosen: str | None) -> list[tuple[str, str, bool]]:
    """Return the buttons of a control: what they say, their address, and whether they can be pressed."""
    try:
        around = moment(chosen) if chosen and not chosen.isdigit() else visit.now.replace(microsecond=0)
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
