"""The budget of a command: where the processor's time goes, by layer and by statement, beside that of another checkout.

The two sides take turns (A B B A) in slices of a second or so, each on a PostgreSQL of its own, so that what else the
machine does falls on both alike. What is counted is the time of the processor, not of the clock: of Python by its
thread, of PostgreSQL by the process that serves the writer. Figures are medians of slices, in microseconds a command.

Layers are timed in slices of their own; what timing costs is subtracted. Statements are what pg_stat_statements says in
yet other slices, by the clock.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

IN_FLIGHT: Final = (1, 32)
SLICES: Final = 6
SLICE_S: Final = 1.5
ROOT: Final = Path(__file__).parents[2]
_RUN: Final = "import runpy, sys; sys.path.insert(0, ''); runpy.run_path({!r}, run_name='__main__')"
_TOTALS: Final = ("python", "postgres", "other processes of postgres", "rate")
MODES: Final = ("plain", "layers", "statements", "counts")


class Side:
    """A process that measures one checkout."""

    def __init__(self, checkout: Path, runs: str = "budget_run.py", *words: str) -> None:
        python = checkout / ".venv/bin/python"
        script = _RUN.format(str(ROOT / "tests/bench" / runs))
        self._process = subprocess.Popen(
            [str(python if python.exists() else sys.executable), "-c", script, *words],
            cwd=checkout,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.slices: dict[tuple[int, str], list[dict[str, Any]]] = {}

    def ready(self) -> None:
        self._answer()

    def ask(self, **order: Any) -> Any:
        """Have it do something, and return its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def measure(self, in_flight: int, mode: str, seconds: float) -> None:
        """Have one slice run."""
        self.slices.setdefault((in_flight, mode), []).append(self.ask(in_flight=in_flight, mode=mode, seconds=seconds))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            message = "The process that measures ended; its error is above."
            raise RuntimeError(message)
        return json.loads(line)

    def figures(self) -> dict[str, Any]:
        """Return the medians."""
        found: dict[str, Any] = {}
        for (in_flight, mode), slices in self.slices.items():
            part = found.setdefault(f"{in_flight} in flight", {})
            if mode == "plain":
                for name in _TOTALS:
                    part[name] = statistics.median(one[name] for one in slices)
            elif mode == "layers":
                part["layers"] = _medians([one["layers"] for one in slices])
            elif mode == "statements":
                calls = [{name: entry["calls"] for name, entry in one["statements"].items()} for one in slices]
                us = [{name: entry["us"] for name, entry in one["statements"].items()} for one in slices]
                part["statements"], part["calls"] = _medians(us), _medians(calls)
            else:
                part["tasks"] = statistics.median(one["tasks"] for one in slices)
                part["garbage"] = statistics.median(one["garbage"] for one in slices)
        for part in found.values():
            if "layers" not in part:
                continue
            # Timing also makes everything colder: the layers are brought down to what they are together without it.
            scale = part["python"] / sum(part["layers"].values())
            part["layers"] = {name: us * scale for name, us in part["layers"].items()}
        return found


def _medians(slices: list[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for one in slices for name in one)
    return {name: statistics.median(one.get(name, 0.0) for one in slices) for name in names}


def run(base: Path | None = None, slices: int = SLICES) -> dict[str, Any]:
    """Measure this checkout, and another one if it is given, whose `.venv` is used."""
    with ExitStack() as stack:
        sides = [Side(checkout) for checkout in (ROOT, *([] if base is None else [base]))]
        for side in sides:
            stack.callback(side.close)
        for side in sides:
            side.ready()
        for number in range(slices):
            order = sides if number % 2 == 0 else sides[::-1]
            for in_flight, mode in itertools.product(IN_FLIGHT, MODES):
                for side in (*order, *order[::-1]) if mode == "plain" else order:
                    side.measure(in_flight, mode, SLICE_S)
        figures: dict[str, Any] = {
            name: side.figures() for name, side in zip(("this checkout", "base"), sides, strict=False)
        }
        if base is not None:
            figures["this checkout to base"] = {
                f"{n} in flight": {
                    what: _paired(sides[0].slices[n, "plain"], sides[1].slices[n, "plain"], what)
                    for what in ("python", "postgres")
                }
                for n in IN_FLIGHT
            }
        return figures


def _paired(now: list[dict[str, Any]], base: list[dict[str, Any]], name: str) -> float:
    """Return the median of the ratios of neighbours."""
    ratios: list[float] = [a[name] / b[name] for a, b in zip(now, base, strict=True)]
    return statistics.median(ratios)
