"""Limits of a process: how often it collects garbage, how many files it may open, and that it leaves no core dump."""

from __future__ import annotations

import asyncio
import gc
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

# How many new objects start a collection of the youngest generation, and how many collections one of the next.
GC_THRESHOLDS: Final = (20_000, 20, 100)
# New objects that start a collection in a process that updates views: the objects of a page are freed without one.
GC_YOUNG_OBJECTS: Final = 200_000
# How often, in seconds, a process that answers requests looks for garbage among the objects made since the last time;
# and how often among all, which stops everything for 0.2 seconds if its caches are full.
COLLECT_EVERY_S: Final = 0.1
COLLECT_ALL_EVERY_S: Final = 600
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


async def collect_in_small_pieces() -> None:
    """Look for garbage often and among few objects, until cancelled.

    Left alone, the collector counts new objects less those that were freed. A full cache frees as many as it takes in,
    so the new ones pile up, and one collection stopped all requests for 70 to 100 ms. Objects that survive are frozen:
    nearly all are cached, and are freed when they leave the cache. What else becomes garbage among them is found by
    the rare collection of all.
    """
    loop = asyncio.get_running_loop()
    all_at = loop.time() + COLLECT_ALL_EVERY_S
    while True:
        await asyncio.sleep(COLLECT_EVERY_S)
        if loop.time() < all_at:
            gc.collect(0)
        else:
            gc.unfreeze()
            gc.collect()
            all_at = loop.time() + COLLECT_ALL_EVERY_S
        gc.freeze()


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
