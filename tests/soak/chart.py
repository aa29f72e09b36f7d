"""Whether a figure stays flat, judged by a robust slope, and pictures of all figures: as text, and as an SVG."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from html import escape
from itertools import combinations
from typing import Any, Final, NamedTuple

# Begun processes fill their caches first: this share of the run is shown, and not judged.
WARM_UP: Final = 0.25
# Slopes of more pairs than these of a few hundred samples add nothing.
SAMPLES_MAX: Final = 300
BARS: Final = "▁▂▃▄▅▆▇█"
BARS_SHOWN: Final = 40
WIDTH: Final = 360
HEIGHT: Final = 90
LABEL: Final = 34
COLUMNS: Final = 3


class Bound(NamedTuple):
    """By how much a figure may grow in the judged time: in its unit, or as a share of its median if that is more."""

    most: float
    share: float


@dataclass
class Series:
    """One figure over time.

    Attributes:
        unit: of the values, such as MiB.
        bound: by how much it may grow.

    """

    name: str
    unit: str
    bound: Bound
    at: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, at: float, value: float) -> None:
        self.at.append(at)
        self.values.append(float(value))

    def judged(self) -> list[tuple[float, float]]:
        """Return the samples after the warm-up."""
        if not self.at:
            return []
        begin = self.at[0] + WARM_UP * (self.at[-1] - self.at[0])
        return [(at, value) for at, value in zip(self.at, self.values, strict=True) if at >= begin]

    @property
    def slope(self) -> float:
        """By how much it grows in a second: the median of the slopes of all pairs (Theil and Sen).

        Up to three tenths of the samples can be anything without changing it much: a collection of garbage, a moment
        without an answer.
        """
        samples = self.judged()
        samples = samples[:: 1 + len(samples) // SAMPLES_MAX]
        slopes = [(after - before) / (b - a) for (a, before), (b, after) in combinations(samples, 2) if b > a]
        return statistics.median(slopes) if slopes else 0.0

    @property
    def growth(self) -> float:
        """By how much it grew in the judged time, by its slope."""
        samples = self.judged()
        return self.slope * (samples[-1][0] - samples[0][0]) if samples else 0.0

    @property
    def median(self) -> float:
        return statistics.median(value for _, value in self.judged()) if self.at else 0.0

    @property
    def allowed(self) -> float:
        """By how much it may grow in the judged time, in its unit."""
        return max(self.bound.most, self.bound.share * self.median)

    @property
    def flat(self) -> bool:
        """Whether it grew by no more than it may."""
        return self.growth <= self.allowed

    @property
    def verdict(self) -> str:
        """Say whether it is flat, where that is asked for."""
        if math.isinf(self.bound.most):
            return "not judged"
        return "flat" if self.flat else "GROWS"

    def sentence(self) -> str:
        """Return what is wrong with it, if it is not flat."""
        return (
            f"The {self.name} grew by {self.growth:.1f} {self.unit}, from a median of {self.median:.1f}; "
            f"it may grow by {self.allowed:.1f}."
        )

    def figures(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "name": self.name,
            "unit": self.unit,
            "median": round(self.median, 2),
            "growth": round(self.growth, 2),
            "allowed": round(self.allowed, 2) if math.isfinite(self.bound.most) else None,
            "flat": self.flat,
            "seconds": [round(at, 1) for at in self.at],
            "values": [round(value, 2) for value in self.values],
        }

    def line(self) -> str:
        """Return it as a line of text."""
        step = max(1, len(self.values) // BARS_SHOWN)
        shown = [max(self.values[n : n + step]) for n in range(0, len(self.values), step)]
        low, high = min(shown, default=0), max(shown, default=0)
        bars = "".join(BARS[int((value - low) / ((high - low) or 1) * (len(BARS) - 1))] for value in shown)
        return (
            f"{self.name:<34} {self.median:>9.1f} {self.unit:<9} {self.growth:>+8.1f}  {self.verdict:<10}"
            f" {low:>8.1f} to {high:<8.1f} {bars}"
        )


HEAD: Final = f"{'figure':<34} {'median':>9} {'':<9} {'growth':>8}  {'':<10} {'lowest':>8} to {'highest':<8}"


def svg(title: str, series: list[Series]) -> str:
    """Return a picture of all figures, each with an axis of its own, from zero."""
    rows = -(-len(series) // COLUMNS)
    width, height = COLUMNS * (WIDTH + 20) + 20, rows * (HEIGHT + LABEL + 16) + 50
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="20" y="30" font-size="18">{escape(title)}</text>',
    ]
    for number, one in enumerate(series):
        left = 20 + number % COLUMNS * (WIDTH + 20)
        top = 50 + number // COLUMNS * (HEIGHT + LABEL + 16)
        parts.append(f'<g transform="translate({left} {top})">{_plot(one)}</g>')
    return "\n".join([*parts, "</svg>", ""])


def _plot(one: Series) -> str:
    high = max(one.values, default=0.0) or 1.0
    began, ended = (one.at[0], one.at[-1]) if one.at else (0.0, 1.0)
    span = (ended - began) or 1.0
    points = " ".join(
        f"{WIDTH * (at - began) / span:.1f},{LABEL + HEIGHT * (1 - value / high):.1f}"
        for at, value in zip(one.at, one.values, strict=True)
    )
    colour = "#1a7f37" if one.flat else "#cf222e"
    verdict = f"median {one.median:.1f} {one.unit}, growth {one.growth:+.1f}, {one.verdict}"
    return (
        f'<text y="12" font-size="12" font-weight="bold">{escape(one.name)}</text>'
        f'<text y="27" font-size="11" fill="{colour}">{escape(verdict)}</text>'
        f'<text x="{WIDTH}" y="12" font-size="10" text-anchor="end">0 to {high:.0f}</text>'
        f'<rect y="{LABEL}" width="{WARM_UP * WIDTH}" height="{HEIGHT}" fill="#eeeeee"/>'
        f'<rect y="{LABEL}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#aaaaaa"/>'
        f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
    )
