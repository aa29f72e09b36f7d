"""Statistics: what happened on each day, as a drawing, as a table and as a file?

The drawings are made on the server, like those of a code's life: they need no script, print, and follow light and dark.
Each has its numbers in the table, so the drawing is never the only place where something is said.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

from starlette.responses import Response

from api.console.adapter import Declined
from api.console.forms import problems_of
from api.console.visit import Page
from api.http.responses import NO_STORE
from api.spreadsheet_cells import BYTE_ORDER_MARK, csv_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from api.console.visit import Visit
    from domain.values import Role

READERS: Final[frozenset[Role]] = frozenset({"admin", "operator", "auditor"})
# The heights of a drawing's bars, in its own units.
HEIGHT: Final = 100
# Lines across a drawing.
LINES: Final = 4
SPANS: Final = ((30, "30 days"), (90, "90 days"), (365, "A year"))


def _sum(counts: Mapping[str, int]) -> int:
    return sum(counts.values())


# What is drawn, and what is in the columns of the table: its name, what it says, and how it is found in a day.
SERIES: Final[tuple[tuple[str, str, Callable[[dict[str, Any]], int]], ...]] = (
    ("issued", "Codes that began", lambda day: day["issued"]),
    ("windows_ended", "Windows that ended", lambda day: day["windows_ended"]),
    ("shares", "Shares", lambda day: day["shares"]),
    ("redemptions", "Redemptions", lambda day: day["redemptions"]),
    ("refusals", "Refused redemptions", lambda day: _sum(day["refusals"])),
    ("refused_attempts", "Other refused attempts", lambda day: _sum(day["refused_attempts"])),
    ("launched", "Campaigns launched", lambda day: day["campaigns"]["launched"]),
    ("stopped", "Campaigns that stopped", lambda day: _sum(day["campaigns"]["stopped"])),
)
_STATES: Final = ("generated", "shared", "redeemed", "superseded", "expired", "revoked")


@dataclass(frozen=True, slots=True)
class Bar:
    """The bar of one day, in percent of the width and in units of the height."""

    x: float
    width: float
    height: float
    says: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing of one series.

    Attributes:
        name: of the series.
        title: what it says.
        total: over all days.
        top: the value at the upper end of the drawing.
        lines: the values of the lines across, each with its height.
        bars: one for each day.

    """

    name: str
    title: str
    total: int
    top: int
    lines: Sequence[tuple[float, int]]
    bars: Sequence[Bar]


def chart_of(name: str, title: str, values: Sequence[tuple[str, int]]) -> Chart:
    """Return the drawing of a series: the name of each day, and its value."""
    top = _round_up(max((value for _, value in values), default=0))
    step = top // LINES if top >= LINES else 1
    width = 100 / max(len(values), 1)
    bars = [
        Bar(
            round(number * width + width * 0.1, 3),
            round(width * 0.8, 3),
            round(HEIGHT * value / top, 3),
            f"{day}: {value:,}",
        )
        for number, (day, value) in enumerate(values)
    ]
    lines = [(round(HEIGHT * (1 - value / top), 3), value) for value in range(step, top + 1, step)]
    return Chart(name, title, sum(value for _, value in values), top, lines, bars)


def _round_up(value: int) -> int:
    """Return the next round number: 4, 8, 20, 40, 80, 200 …"""
    top = LINES
    while top < value:
        top = top * 2 if str(top)[0] != "8" else top * 5 // 2
    return top


def _asked(visit: Visit) -> dict[str, str]:
    """Return the first and the last day that are asked for."""
    asked: dict[str, str] = {name: visit.query[name] for name in ("from", "to", "as_of") if name in visit.query}
    days = visit.query.get("days")
    asked = {name: text for name, text in asked.items() if text}
    if days is not None and days in {str(count) for count, _ in SPANS}:
        today = visit.now.date()
        return {"from": str(today - timedelta(days=int(days) - 1)), "to": str(today)}
    return asked


async def _show(visit: Visit) -> Response:
    asked = _asked(visit)
    errors: dict[str, str] = {}
    days: list[dict[str, Any]] = []
    try:
        days = (await visit.api.call("GET", "/v1/stats/days", asked)).json["days"]
    except Declined as declined:
        if declined.status != 400:  # noqa: PLR2004 - days that cannot be understood
            raise
        errors = problems_of(declined)
    charts = [chart_of(name, title, [(day["day"], value(day)) for day in days]) for name, title, value in SERIES]
    known = {name: asked[name] for name in ("as_of",) if name in asked}
    ends = (days[0]["day"], days[-1]["day"]) if days else (asked.get("from", ""), asked.get("to", ""))
    return visit.page(
        "statistics.html",
        status=400 if errors else 200,
        charts=charts,
        days=[(day["day"], [value(day) for _, _, value in SERIES], day["codes"]) for day in reversed(days)],
        titles=[title for _, title, _ in SERIES],
        states=_STATES,
        ends=ends,
        errors=errors,
        spans=SPANS,
        ticks=_ticks(days),
        file=f"/statistics/file?{urlencode({'from': ends[0], 'to': ends[1], **known})}",
        as_of=asked.get("as_of", ""),
        height=HEIGHT,
    )


def _ticks(days: Sequence[dict[str, Any]]) -> list[tuple[float, date]]:
    """Return the days that are written below a drawing, with their places."""
    count = len(days)
    chosen = sorted({0, count // 3, 2 * count // 3, count - 1}) if count else []
    return [(round(100 * (number + 0.5) / count, 2), date.fromisoformat(days[number]["day"])) for number in chosen]


async def _file(visit: Visit) -> Response:
    """Answer the table as a file for spreadsheets."""
    days = (await visit.api.call("GET", "/v1/stats/days", _asked(visit))).json["days"]
    head = ["day", *(name for name, _, _ in SERIES), *(f"codes_{state}" for state in _STATES)]
    rows = [
        [day["day"], *(value(day) for _, _, value in SERIES), *(day["codes"].get(state, 0) for state in _STATES)]
        for day in days
    ]
    content = BYTE_ORDER_MARK.encode() + csv_lines([head, *rows])
    named = {"Content-Disposition": 'attachment; filename="days.csv"', "Content-Type": "text/csv; charset=utf-8"}
    return Response(content, 200, {**NO_STORE, **named})


PAGES: Final = (
    Page("/statistics", _show, more="Statistics", roles=READERS, parts=("/statistics",)),
    Page("/statistics/file", _file, roles=READERS),
)
