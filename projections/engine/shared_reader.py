"""One reading of the log for all views of a process that stand near each other.

Whoever asks for what nobody has read yet reads it, and it is kept for the others for as long as it is among the newest.
They need not stand at the same position: each gets what comes next for it, and then goes from page to page with the
others. A view that has fallen further behind reads for itself, until it catches up.

No view waits for another, but for this: while a long stretch of the log is read, whoever is in front would soon leave
all others to read for themselves. Before it takes the oldest page from one that has not had it yet, it waits, until
that one has been busy with its last page for `patience_s`. No slow or locked table holds anybody up for longer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from projections.engine.page import EventPage

if TYPE_CHECKING:
    from projections.engine.projector import EventLog

# What is kept: some pages of a long stretch, or the many small ones of a busy hour.
EVENTS_KEPT_MAX: Final = 8_000
PAGES_KEPT_MAX: Final = 100
# A view that takes longer than this over a page reads for itself. With pages of 2,000 events, that lets no other come
# below 8,000 events a second.
PATIENCE_S: Final = 0.25


@dataclass(frozen=True, slots=True, eq=False)
class _Reading:
    """One look into the log: its number, what it looks for, and when it is over."""

    number: int
    positions: Mapping[int, int]
    over: asyncio.Event = field(default_factory=asyncio.Event)


class SharedLog:
    """The newest pages that anybody here has read."""

    def __init__(self, log: EventLog, *, patience_s: float = PATIENCE_S) -> None:
        """Take the log to read."""
        self._log = log
        self._patience_s = patience_s
        self._kept: deque[EventPage] = deque()
        self._kept_events = 0
        self._readers: set[SharedLogReader] = set()
        self._under_way: list[_Reading] = []
        self._moved = asyncio.Event()
        # How often somebody began to read; the last reading that found nothing more; how often all was forgotten.
        self._begun = 0
        self._nothing: _Reading | None = None
        self._forgotten = 0

    def reader(self) -> SharedLogReader:
        """Return the log as one view reads it; `close` it when the view reads no more."""
        reader = SharedLogReader(self)
        self._readers.add(reader)
        return reader

    def leave(self, reader: SharedLogReader) -> None:
        """Wait for this reader no more."""
        self._readers.discard(reader)
        self.tell()

    def forget(self) -> None:
        """Keep nothing of what was read so far."""
        self._kept.clear()
        self._kept_events = 0
        self._forgotten += 1

    def tell(self) -> None:
        """Let those who wait look again: a reader has moved on, or left."""
        self._moved.set()
        self._moved.clear()

    async def after(self, reader: SharedLogReader, positions: Mapping[int, int], limit: int) -> EventPage:
        """Return what comes next after these positions, from what is kept or from the log."""
        # A reading that began before may not know the commit that we were woken by: that it finds nothing does not say
        # that there is nothing.
        begun = self._begun
        while True:
            kept = self._kept_after(reader, positions, limit)
            if kept is not None:
                return kept
            if self._nothing is not None and self._nothing.number > begun and self._nothing.positions == positions:
                return EventPage((), {})
            under_way = next((reading for reading in self._under_way if reading.positions == positions), None)
            if under_way is not None:
                await under_way.over.wait()
            elif not await self._waited_for_others(reader):
                return await self._read(reader, positions, limit)

    def _kept_after(self, reader: SharedLogReader, positions: Mapping[int, int], limit: int) -> EventPage | None:
        """Return what is kept of what comes next, if anything: one that is slower than others gets more at a time."""
        found: list[EventPage] = []
        newest, length, reached = None, 0, dict(positions)
        for page in self._kept:
            if page.follows(reached):
                part = page.after(reached)
                length += part.length
                if found and length > limit:
                    break
                found.append(part)
                reached.update((ledger_id, span.last) for ledger_id, span in part.spans.items())
                newest = page
        if newest is None:
            return None
        reader.given(newest, reached)
        return EventPage.joined(found)

    async def _read(self, reader: SharedLogReader, positions: Mapping[int, int], limit: int) -> EventPage:
        self._begun += 1
        reading = _Reading(self._begun, positions)
        self._under_way.append(reading)
        forgotten = self._forgotten
        try:
            page = await self._log.after(positions, limit)
        except Exception:
            self.forget()
            raise
        finally:
            # Those who wait for it look again; where it failed, they read for themselves.
            self._under_way.remove(reading)
            reading.over.set()
        if not page.spans:
            self._nothing = reading
        elif forgotten == self._forgotten:
            self._keep(page)
            reader.given(page, {**positions, **{ledger_id: span.last for ledger_id, span in page.spans.items()}})
        return page

    def _keep(self, page: EventPage) -> None:
        self._kept.append(page)
        self._kept_events += len(page.events)
        while len(self._kept) > 1 and self._full():
            self._kept_events -= len(self._kept.popleft().events)

    def _full(self) -> bool:
        return self._kept_events > EVENTS_KEPT_MAX or len(self._kept) > PAGES_KEPT_MAX

    async def _waited_for_others(self, reader: SharedLogReader) -> bool:
        """Wait a moment where the next page would take the oldest from somebody who goes the same way, just behind."""
        if not self._kept or self._kept_events < EVENTS_KEPT_MAX or reader.newest is not self._kept[-1]:
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
                await self._moved.wait()
        return True

    def _needs_oldest(self, other: SharedLogReader) -> bool:
        return other.positions is not None and self._kept[0].follows(other.positions)


class SharedLogReader:
    """The shared log, as one view reads it.

    Attributes:
        positions: those that it will ask after next; None before its first page.
        since: when it was given its last page, in seconds by the loop's clock.
        newest: the page kept that it was given last.

    """

    def __init__(self, log: SharedLog) -> None:
        """Take what is shared."""
        self.positions: Mapping[int, int] | None = None
        self.since = 0.0
        self.newest: EventPage | None = None
        self._log = log

    async def after(self, positions: Mapping[int, int], limit: int) -> EventPage:
        """Read as `EventLog` says."""
        return await self._log.after(self, positions, limit)

    def given(self, newest: EventPage, positions: Mapping[int, int]) -> None:
        """Note what it was given."""
        self.newest = newest
        self.positions = positions
        self.since = asyncio.get_running_loop().time()
        self._log.tell()

    def forget(self) -> None:
        """Keep nothing, for anybody: whoever begins with a new session may find another log than the one it knew."""
        self._log.forget()

    def close(self) -> None:
        """Be waited for no more."""
        self._log.leave(self)
