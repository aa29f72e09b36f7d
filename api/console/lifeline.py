"""The life of a code as a drawing: lanes over one axis of time, in percent of its length.

It is drawn as SVG with geometry attributes, so it needs no script, no inline style and no fixed width: what is said in
percent fits every screen, and text keeps its size. Marks that would touch on a narrow screen are drawn as one.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from api.console.wording import moment, words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

# Percent of the axis. On a screen of 360 pixels, marks 24 pixels wide stand beside each other from here on.
APART: Final = 9.0
# Campaigns that are drawn one by one.
BARS: Final = 8
TICKS: Final = 4
# From when on an event counts as recorded late.
LATE: Final = timedelta(hours=1)
_MARGIN: Final = 0.03


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened at one time, or several things close together.

    Attributes:
        x: where, in percent.
        says: a sentence about it.
        address: where it leads.
        count: how many things it stands for.
        kind: how it is drawn.

    """

    x: float
    says: str
    address: str
    count: int = 1
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Bar:
    """Something that lasted."""

    x: float
    width: float
    says: str
    address: str
    kind: str = ""


@dataclass(slots=True)
class Lane:
    """One row of the drawing."""

    name: str
    marks: list[Mark] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Axis:
    """The time that is drawn."""

    begins: datetime
    ends: datetime

    def x(self, at: datetime) -> float:
        """Return where a time is, in percent; beyond the ends, at the ends."""
        share = (at - self.begins) / (self.ends - self.begins)
        return round(100 * min(1.0, max(0.0, share)), 3)

    def ticks(self) -> list[tuple[float, datetime]]:
        """Return the times that are written below, with their places."""
        step = (self.ends - self.begins) / (TICKS + 1)
        return [(self.x(at), at) for at in (self.begins + step * n for n in range(1, TICKS + 1))]


def axis_of(code: dict[str, Any], spread: Sequence[dict[str, Any]], now: datetime) -> Axis:
    """Return the time from the first to the last that is known of a code, with a margin."""
    known = [moment(code[name]) for name in ("starts_at", "expires_at", "generated_at", "revoked_at") if code[name]]
    known += [moment(group[name]) for group in spread for name in ("begins", "ends")]
    known += [moment(campaign["stops_at"]) for campaign in code["campaigns"]]
    if min(known) <= now <= max(known) + timedelta(days=30):
        known.append(now)
    margin = max(timedelta(hours=12), (max(known) - min(known)) * _MARGIN)
    return Axis(min(known) - margin, max(known) + margin)


def lanes_of(
    code: dict[str, Any],
    spread: Sequence[dict[str, Any]],
    events: Sequence[dict[str, Any]],
    axis: Axis,
    address: Callable[[int], str],
) -> list[Lane]:
    """Return the lanes of a code, those without anything left out.

    Args:
        code: as the API answers it, now.
        spread: how all of its events are spread over time.
        events: those of its history that are on the page.
        axis: the time that is drawn.
        address: returns where an event is, by its position.

    """
    by_type: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        by_type.setdefault(event["type"], []).append(event)
    named = {"Shared", "Redeemed", "CampaignLaunched", "CampaignEnded"}

    def marks(what: str, *types: str) -> list[Mark]:
        wanted = [group for group in spread if (group["type"] in types if types else group["type"] not in named)]
        return _clustered(wanted, axis, what, address)

    lanes = [
        _window(code, by_type.get("Extended", ()), axis),
        Lane("Events", marks("events")),
        Lane("Shared", marks("shares", "Shared")),
        Lane("Redeemed", marks("redemptions", "Redeemed")),
        *_campaigns(code, by_type.get("CampaignLaunched", ()), axis),
    ]
    return [lane for lane in lanes if lane.marks or lane.bars]


def density_of(spread: Sequence[dict[str, Any]], axis: Axis) -> list[tuple[int, float]]:
    """Return where on the axis, in whole percent, events are, and how many: as a share of the most of any percent."""
    counts: dict[int, int] = {}
    for group in spread:
        at = int(axis.x(moment(group["begins"])))
        counts[at] = counts.get(at, 0) + group["count"]
    most = max(counts.values(), default=1)
    return [(at, round(count / most, 3)) for at, count in sorted(counts.items())]


def is_late(event: dict[str, Any]) -> bool:
    """Tell whether an event was recorded well after it happened."""
    return moment(event["recorded_at"]) - moment(event["effective_at"]) > LATE


def _said(at: datetime) -> str:
    return f"{at.day} {at:%b %Y, %H:%M} UTC"


def _window(code: dict[str, Any], extensions: Iterable[dict[str, Any]], axis: Axis) -> Lane:
    """Return the window: open until it ended, was extended or was revoked."""
    begins, ends = moment(code["starts_at"]), moment(code["expires_at"])
    over = moment(code["revoked_at"]) if code["revoked_at"] else None
    # Each extension moved the end from one time to another.
    cuts = sorted(
        moment(change["before"])
        for event in extensions
        for change in event["changes"]
        if change["field"] == "expires_at" and change["before"]
    )
    edges = [begins, *(cut for cut in cuts if begins < cut < ends), ends]
    lane = Lane("Window")
    for number, (first, last) in enumerate(itertools.pairwise(edges)):
        kind, says = ("extended", "Extended: open") if number else ("", "Window: open")
        closed = min(last, over) if over is not None and over < last else last
        if closed > first:
            says = f"{says} from {_said(first)} to {_said(closed)}"
            lane.bars.append(_bar(axis, first, closed, says, "#events", kind))
    if over is not None and begins <= over < ends:
        lane.bars.append(_bar(axis, over, ends, f"Revoked from {_said(over)} on", "#events", "revoked"))
    return lane


def _campaigns(code: dict[str, Any], launches: Iterable[dict[str, Any]], axis: Axis) -> list[Lane]:
    launched = {event["body"].get("campaign_id"): event["position"] for event in launches if "body" in event}
    lanes = []
    for campaign in code["campaigns"][:BARS]:
        begins, ends, planned = (moment(campaign[name]) for name in ("starts_at", "stops_at", "ends_at"))
        position = launched.get(campaign["campaign_id"])
        address = "#events" if position is None else f"#event-{position}"
        name = campaign["name"] or campaign["campaign_id"]
        lane = Lane("Campaign")
        says = f"Campaign {name}: from {_said(begins)}, stops {_said(ends)}"
        lane.bars.append(_bar(axis, begins, max(begins, ends), says, address, "campaign"))
        if planned > ends:
            says = f"Campaign {name}: planned until {_said(planned)}"
            lane.bars.append(_bar(axis, max(begins, ends), planned, says, address, "planned"))
        lanes.append(lane)
    return lanes


def _bar(axis: Axis, first: datetime, last: datetime, says: str, address: str, kind: str) -> Bar:
    begins = axis.x(first)
    return Bar(begins, max(0.6, round(axis.x(last) - begins, 3)), says, address, kind)


def _clustered(groups: Iterable[dict[str, Any]], axis: Axis, what: str, address: Callable[[int], str]) -> list[Mark]:
    """Return a mark for each group of events, and one for all of those that would touch."""
    clusters: list[list[dict[str, Any]]] = []
    begins = -APART
    for group in sorted(groups, key=lambda one: moment(one["begins"])):
        x = axis.x(moment(group["begins"]))
        if x - begins >= APART or not clusters:
            clusters.append([])
            begins = x
        clusters[-1].append(group)
    return [_mark(cluster, axis, what, address) for cluster in clusters]


def _mark(cluster: Sequence[dict[str, Any]], axis: Axis, what: str, address: Callable[[int], str]) -> Mark:
    first = cluster[0]
    at, position = moment(first["begins"]), min(group["position"] for group in cluster)
    count, late = (sum(group[name] for group in cluster) for name in ("count", "late"))
    kind = "revoked" if any(group["type"] == "Revoked" for group in cluster) else "late" if late else ""
    if count == 1:
        says = f"{words(first['type'])}, {_said(at)}.{' It was recorded late.' if late else ''} Event {position}"
    else:
        ends = max(moment(group["ends"]) for group in cluster)
        says = f"{count:,} {what} from {_said(at)} to {_said(ends)}: see the list"
    return Mark(axis.x(at), says, address(position), count, kind)
