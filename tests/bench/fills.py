"""The budget of fills: where the processor's time of each view goes, by layer, beside that of another checkout.

The two sides fill the same views in turns (A B B A), each on a PostgreSQL of its own, so that what else the machine
does falls on both alike. What is counted is the time of the processor, not of the clock: of Python with the processes
that it starts, and of all processes of PostgreSQL. Figures are medians, in microseconds an event.
"""

from __future__ import annotations

import json
import statistics
import sys
from argparse import ArgumentParser
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from projections import VIEWS
from tests.bench.budget import ROOT, Side

EVENTS: Final = 100_000
ROUNDS: Final = 3
# Views that are filled together, by what they are called here.
TOGETHER: Final = {"all": [view.name for view in VIEWS]}
_COSTS: Final = ("python", "postgres")

Fills = dict[tuple[str, str], list[dict[str, Any]]]


def run(
    base: Path | None = None,
    *,
    events: int = EVENTS,
    rounds: int = ROUNDS,
    names: list[str] | None = None,
    jobs: int = 1,
) -> dict[str, Any]:
    """Measure this checkout, and another one if it is given, whose `.venv` is used.

    Args:
        base: the other checkout.
        events: in the log.
        rounds: how often each side has its turn.
        names: of views, or `all` for all together; None for each, and all.
        jobs: processes that fill the views of this checkout.

    """
    names = names or [*TOGETHER["all"], "all"]
    with ExitStack() as stack:
        sides: list[tuple[Side, int, Fills]] = []
        for checkout, processes in ((ROOT, jobs), *([] if base is None else [(base, 1)])):
            side = Side(checkout, "fills_run.py", str(events))
            stack.callback(side.close)
            sides.append((side, processes, {}))
        for side, *_ in sides:
            side.ready()
        for number in range(rounds):
            for name in names:
                # What other processes do is not timed by layer.
                for mode in ("plain", "layers") if jobs == 1 else ("plain",):
                    for side, processes, fills in sides if number % 2 == 0 else sides[::-1]:
                        filled = side.ask(views=TOGETHER.get(name, [name]), mode=mode, jobs=processes)
                        fills.setdefault((name, mode), []).append(filled)
                        sys.stderr.write(f"  {name}, {mode}: {filled['rate']:,.0f} events a second\n")
        figures: dict[str, Any] = {
            side: {name: _figures(fills, name) for name in names}
            for side, (_, _, fills) in zip(("this checkout", "base"), sides, strict=False)
        }
        if base is not None:
            (_, _, now), (_, _, before) = sides
            figures["this checkout to base"] = {
                name: {cost: _paired(now[name, "plain"], before[name, "plain"], cost) for cost in _COSTS}
                for name in names
            }
        return figures | {"events": events, "rounds": rounds, "jobs": jobs}


def _figures(fills: Fills, name: str) -> dict[str, Any]:
    plain, layered = fills[name, "plain"], [fill["layers"] for fill in fills.get((name, "layers"), ())]
    figures: dict[str, Any] = {what: statistics.median(fill[what] for fill in plain) for what in ("rate", *_COSTS)}
    if not layered:
        return figures
    layers = {layer: statistics.median(one.get(layer, 0.0) for one in layered) for layer in layered[0]}
    # Timing also makes everything colder: the layers are brought down to what they are together without it.
    scale = figures["python"] / sum(layers.values())
    return {**figures, "layers": {layer: us * scale for layer, us in layers.items()}}


def _paired(now: list[dict[str, Any]], base: list[dict[str, Any]], cost: str) -> float:
    """Return the median of the ratios of neighbours."""
    ratios: list[float] = [a[cost] / b[cost] for a, b in zip(now, base, strict=True)]
    return statistics.median(ratios)


if __name__ == "__main__":
    parser = ArgumentParser(prog="python -m tests.bench.fills", description="Where the time of filling views goes.")
    parser.add_argument("--base", type=Path, help="another checkout, with its .venv")
    parser.add_argument("--events", type=int, default=EVENTS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--view", action="append", help="a view, or `all`; may be repeated")
    said = parser.parse_args()
    measured = run(said.base, events=said.events, rounds=said.rounds, names=said.view, jobs=said.jobs)
    sys.stdout.write(json.dumps(measured, indent=2) + "\n")
