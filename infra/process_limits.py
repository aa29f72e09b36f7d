"""Limits of a process: how often it collects garbage, how many files it may open, and that it leaves no core dump."""

from __future__ import annotations

import gc
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

# How many new objects start a collection of the youngest generation, and how many collections one of the next.
GC_THRESHOLDS: Final = (20_000, 20, 100)
# New objects that start a collection in a process that updates views: the objects of a page are freed without one.
GC_YOUNG_OBJECTS: Final = 200_000
# In a process that only fills views: it keeps the rows of many pages, which a collection would scan for nothing.
GC_FILL_OBJECTS: Final = 2_000_000


def tune_garbage_collector(young: int = GC_THRESHOLDS[0]) -> None:
    """Keep the garbage collector from scanning what stays: modules, and cached aggregates.

    With its defaults it scanned all of them again and again, and for 150 ms at a time nothing was answered: a third
    fewer commands a second, and a 99th percentile of 160 ms instead of 15 ms. `young` is how many new objects start a
    collection of the youngest generation; views, which read events in pages, are a seventh slower with the default.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(young, *GC_THRESHOLDS[1:])


@contextmanager
def importing() -> Iterator[None]:
    """Pause the garbage collector while modules are imported: they leave no garbage, and looking for it takes a fifth.

    `tune_garbage_collector` then takes all of them out of its sight.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def forbid_core_dumps() -> None:
    """Let this process and its children leave no core dump, which would hold keys and secrets."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def raise_file_limit() -> None:
    """Raise the limit of open files, and so of connections, as far as the system allows; 1,024 are too few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):  # a system with other rules keeps its limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
