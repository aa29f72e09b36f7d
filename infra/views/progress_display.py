"""The progress of rebuilds for people: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as BarsOfRich

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import TaskID

    from projections.engine.rebuild import RebuildProgress

    Shown = Callable[[RebuildProgress, int], None]

# Between two lines on the same view.
LINE_EVERY_S: Final = 5.0
_PHASES: Final = {"indexing": "building its indexes", "switching": "swapping in the new rows"}


@contextmanager
def showing(say: Callable[[str], None]) -> Iterator[Shown]:
    """Show the progress of rebuilds; `say` writes a line if there is no terminal."""
    if not sys.stdout.isatty():
        yield Lines(say)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[told]}"),
    )
    with BarsOfRich(*columns) as bars:
        yield Bars(bars)


class Bars:
    """A bar for each view."""

    def __init__(self, bars: BarsOfRich) -> None:
        """Take the bars that are shown."""
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, progress: RebuildProgress, total: int) -> None:
        """Move a view's bar."""
        task = self._tasks.get(progress.view)
        if task is None:
            task = self._tasks[progress.view] = self._bars.add_task(progress.view, told="")
        upto = max(total, progress.position, 1)
        completed = upto if progress.phase == "done" else progress.position
        self._bars.update(task, total=upto, completed=completed, told=line(progress, total))


def rate(progress: RebuildProgress) -> float:
    """Return the events a second of this run."""
    return progress.events / progress.seconds if progress.seconds else 0.0


class Lines:
    """A line for each view, every few seconds and at each new phase."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """Take the function that writes a line."""
        self._say = say
        self._last: dict[str, tuple[str, float]] = {}

    def __call__(self, progress: RebuildProgress, total: int) -> None:
        """Write a line on a view, unless there was one just before."""
        phase, at = self._last.get(progress.view, ("", 0.0))
        now = time.monotonic()
        if progress.phase == phase and now - at < LINE_EVERY_S:
            return
        self._last[progress.view] = (progress.phase, now)
        self._say(f"{progress.view}: {line(progress, total)}")


def line(progress: RebuildProgress, total: int) -> str:
    """Return the progress of a rebuild in words."""
    if progress.phase in _PHASES:
        return _PHASES[progress.phase]
    if progress.phase == "done":
        return f"done, {progress.events:,} events in {progress.seconds:.1f} s ({rate(progress):,.0f} a second)"
    share = 100 * progress.position // max(total, progress.position, 1)
    text = f"{progress.position:,} of {max(total, progress.position):,} events ({share} %)"
    if progress.events:
        left = max(0, total - progress.position) / rate(progress)
        text += f", {rate(progress):,.0f} a second, {left:,.0f} s left"
    return text
