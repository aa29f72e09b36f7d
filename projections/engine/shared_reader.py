"""A shared reader of the log, from which all views of a process that are near each other take their pages.

The first view that needs an event reads its page from the log; the newest pages are kept for the others. Views need not
be at the same position: each gets what comes next for it, and then goes from page to page with the others. A view that
is further behind reads for itself until it catches up.

Views do not wait for each other, with one exception. While the log is long, the view in front would soon leave all
others to read for themselves. Before its next page pushes out a page that another view still needs, it waits, but no
longer than until that view has been busy with its last page, or with its start, for `patience_s`. No slow or locked
table causes a longer wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Final

from projections.engine.page import EventPage

if TYPE_CHECKING:
    from projections.engine.projector import EventLog

# What is kept: a few full pages of a long log, or the many small ones of a busy hour.
EVENTS_KEPT_MAX: Final = 8_000
PAGES_KEPT_MAX: Final = 100
# A view that takes longer than this for a page reads for itself. With pages of 2,000 events, the others are not slowed
# below 8,000 events a second.
PATIENCE_S: Final = 0.25


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    """A read of the log under way: its number, the positions that it reads after, and when it is done."""

    number: int
    positions: Mapping[int, int]
    done: asyncio.Event = field(default_factory=asyncio.Event)


class SharedLog:
    """The newest pages that any view of this process has read."""

    def __init__(self, log: EventLog, *, patience_s: float = PATIENCE_S) -> None:
        """Take the log to read."""
        self._log = log
        self._patience_s = patience_s
        self._kept: deque[EventPage] = deque()
        self._kept_events = 0
        self._readers: set[SharedLogReader] = set()
        self._under_way: list[_Read] = []
        self._changed = asyncio.Event()
        # Number of reads begun; the last read that found nothing more; how often all pages were dropped.
        self._reads = 0
        self._found_nothing: _Read | None = None
        self._times_forgotten = 0

    def reader(self) -> SharedLogReader:
        """Return a reader for one view; `close` it when the view reads no more. To be called in a running loop."""
        reader = SharedLogReader(self)
        self._readers.add(reader)
        return reader

    def remove(self, reader: SharedLogReader) -> None:
        """Remove a reader, so that none waits for it."""
        self._readers.discard(reader)
        self.notify()

    def forget(self) -> None:
        """Drop all pages."""
        self._kept.clear()
        self._kept_events = 0
        self._times_forgotten += 1

    def notify(self) -> None:
        """Let waiting readers check again: a reader has moved on, or was removed."""
        self._changed.set()
        self._changed.clear()

    async def after(self, reader: SharedLogReader, positions: Mapping[int, int], limit: int) -> EventPage:
        """Return the next page after these positions, from the pages that are kept or from the log."""
        # A read that began earlier may not see the commit that woke this reader: if it finds nothing, that proves
        # nothing.
        reads_before = self._reads
        while True:
            kept = self._kept_after(reader, positions, limit)
            if kept is not None:
                return kept
            empty = self._found_nothing
            if empty is not None and empty.number > reads_before and empty.positions == positions:
                return EventPage((), {})
            under_way = next((read for read in self._under_way if read.positions == positions), None)
            if under_way is not None:
                await under_way.done.wait()
            elif not await self._waited_for_others(reader, limit):
                return await self._read(reader, positions, limit)

    def _kept_after(self, reader: SharedLogReader, positions: Mapping[int, int], limit: int) -> EventPage | None:
        """Return the next events that are kept, if any; a view that is slower than others gets more at a time."""
        parts: list[EventPage] = []
        newest, length, reached = None, 0, dict(positions)
        for page in self._kept_since(reader, positions):
            if page.follows(reached):
                part = page.after(reached)
                length += part.length
                if parts and length > limit:
                    break
                parts.append(part)
                reached.update((ledger_id, span.last) for ledger_id, span in part.spans.items())
                newest = page
        if newest is None:
            return None
        reader.advance(newest, reached)
        return EventPage.joined(parts)

    def _kept_since(self, reader: SharedLogReader, positions: Mapping[int, int]) -> Sequence[EventPage]:
        """Return the kept pages that the reader may need, oldest first: mostly those since its newest one."""
        if reader.positions != positions:
            return self._kept
        return [*takewhile(lambda page: page is not reader.newest, reversed(self._kept))][::-1]

    async def _read(self, reader: SharedLogReader, positions: Mapping[int, int], limit: int) -> EventPage:
        self._reads += 1
        read = _Read(self._reads, positions)
        self._under_way.append(read)
        times_forgotten = self._times_forgotten
        try:
            page = await self._log.after(positions, limit)
        except Exception:
            self.forget()
            raise
        finally:
            # Readers that wait for it check again; if it failed, they read for themselves.
            self._under_way.remove(read)
            read.done.set()
        if not page.spans:
            self._found_nothing = read
        elif times_forgotten == self._times_forgotten:
            self._keep(page)
            reader.advance(page, {**positions, **{ledger_id: span.last for ledger_id, span in page.spans.items()}})
        return page

    def _keep(self, page: EventPage) -> None:
        self._kept.append(page)
        self._kept_events += len(page.events)
        while len(self._kept) > 1 and self._full():
            self._kept_events -= len(self._kept.popleft().events)

    def _full(self) -> bool:
        return self._kept_events > EVENTS_KEPT_MAX or len(self._kept) > PAGES_KEPT_MAX

    async def _waited_for_others(self, reader: SharedLogReader, limit: int) -> bool:
        """Wait a while if the next page could push out one that another reader still needs; return whether it did."""
        fits = self._kept_events + limit <= EVENTS_KEPT_MAX and len(self._kept) < PAGES_KEPT_MAX
        if not self._kept or fits or reader.newest is not self._kept[-1]:
            return False
        now = asyncio.get_running_loop().time()
        left = max(
            (other.since + self._patience_s - now for other in self._readers if self._needs_oldest(other)), default=0
        )
        if left <= 0:
            return False
        with suppress(TimeoutError):
            # Not wait_for: before Python 3.12 it may swallow being cancelled.
            async with asyncio.timeout(left):
                await self._changed.wait()
        return True

    def _needs_oldest(self, other: SharedLogReader) -> bool:
        # One that has not read yet may begin anywhere, so it counts as one that needs the oldest page.
        return other.positions is None or self._kept[0].follows(other.positions)


class SharedLogReader:
    """The shared log, as one view reads it.

    Attributes:
        positions: those after which it will read next; None before its first page.
        since: when it got its last page, or was made, in seconds by the loop's clock.
        newest: the newest kept page that it got.

    """

    def __init__(self, log: SharedLog) -> None:
        """Take the shared log."""
        self.positions: Mapping[int, int] | None = None
        self.since = asyncio.get_running_loop().time()
        self.newest: EventPage | None = None
        self._log = log

    async def after(self, positions: Mapping[int, int], limit: int) -> EventPage:
        """Read as `EventLog` says."""
        return await self._log.after(self, positions, limit)

    def advance(self, newest: EventPage, positions: Mapping[int, int]) -> None:
        """Note the page that it got, and the positions after it."""
        self.newest = newest
        self.positions = positions
        self.since = asyncio.get_running_loop().time()
        self._log.notify()

    def forget(self) -> None:
        """Drop all pages, for every reader: a new session may find another log than the one that was read."""
        self._log.forget()

    def close(self) -> None:
        """Stop reading: no other reader waits for this one any more."""
        self._log.remove(self)
