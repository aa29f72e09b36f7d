"""A page of the log: events of one or more ledgers, and the span of positions that it covers in each.

A page covers its spans without a gap, but need not hold every event in them: events that its reader does not need may
be left out, and events to skip are. How far a view has read therefore follows only from the spans.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from uuid import UUID

    from domain.recorded import RecordedEvent

# Events with their ledgers, by ledger and then by position.
Events = Sequence[tuple[int, "RecordedEvent"]]


class PositionGap(Exception):
    """Events are missing from what was read of the log; no view may apply it."""


class Span(NamedTuple):
    """A ledger's positions from `first` to `last`, both included; `recorded_at` is the last event's, if known."""

    first: int
    last: int
    recorded_at: datetime | None


@dataclass(frozen=True, slots=True)
class EventPage:
    """Events, and by ledger the span of positions that the page covers."""

    events: Events
    spans: Mapping[int, Span]

    @classmethod
    def of(cls, events: Events) -> EventPage:
        """Return the page that covers exactly these events.

        Raises:
            PositionGap: an event does not follow the one before it.

        """
        spans: dict[int, Span] = {}
        for ledger_id, group in groupby(events, itemgetter(0)):
            positions = [recorded.position for _, recorded in group]
            first = positions[0]
            for expected, position in enumerate(positions, first):
                if position != expected:
                    raise PositionGap(f"Event {position} of ledger {ledger_id} was read after {expected - 1}.")
            spans[ledger_id] = Span(first, positions[-1], None)
        last = dict(events)
        return cls(events, {i: span._replace(recorded_at=last[i].recorded_at) for i, span in spans.items()})

    @classmethod
    def joined(cls, pages: Sequence[EventPage]) -> EventPage:
        """Return consecutive pages as one."""
        if len(pages) == 1:
            return pages[0]
        events: dict[int, list[tuple[int, RecordedEvent]]] = {}
        spans: dict[int, Span] = {}
        for page in pages:
            for ledger_id, span in page.spans.items():
                known = spans.get(ledger_id)
                spans[ledger_id] = span if known is None else span._replace(first=known.first)
            for event in page.events:
                events.setdefault(event[0], []).append(event)
        return cls([event for ledger_id in sorted(events) for event in events[ledger_id]], spans)

    @property
    def length(self) -> int:
        """The number of positions that it covers."""
        return sum(span.last - span.first + 1 for span in self.spans.values())

    def follows(self, positions: Mapping[int, int]) -> bool:
        """Return whether it holds the next events of a reader at these positions, in any ledger."""
        return any(span.first <= positions.get(i, 0) + 1 <= span.last for i, span in self.spans.items())

    def after(self, positions: Mapping[int, int]) -> EventPage:
        """Return the part that comes next after these positions: mostly all of it."""
        if all(span.first == positions.get(i, 0) + 1 for i, span in self.spans.items()):
            return self
        spans = {}
        for ledger_id, span in self.spans.items():
            next_ = positions.get(ledger_id, 0) + 1
            if span.first <= next_ <= span.last:
                spans[ledger_id] = span._replace(first=next_)
        return EventPage([(i, r) for i, r in self.events if i in spans and r.position >= spans[i].first], spans)

    def without(
        self, events: Collection[tuple[int, int]], streams: Mapping[tuple[int, UUID], int] = MappingProxyType({})
    ) -> EventPage:
        """Return the page without these events; it covers them nonetheless.

        Args:
            events: ledgers and positions.
            streams: for a ledger and stream, the position from which its events are left out.

        """
        if not streams and not any(
            i in self.spans and self.spans[i].first <= p <= self.spans[i].last for i, p in events
        ):
            return self
        kept = [
            (i, r)
            for i, r in self.events
            if (i, r.position) not in events and r.position < streams.get((i, r.stream_id), r.position + 1)
        ]
        return EventPage(kept, self.spans)

    def halves(self) -> tuple[EventPage, EventPage]:
        """Return two pages, each with half of the events."""
        middle = len(self.events) // 2
        head, tail = self.events[:middle], self.events[middle:]
        split_ledger, last = head[-1]
        first_half = {i: span for i, span in self.spans.items() if i <= split_ledger}
        second_half = {i: span for i, span in self.spans.items() if i >= split_ledger}
        if tail[0][0] == split_ledger:
            span = self.spans[split_ledger]
            first_half[split_ledger] = span._replace(last=last.position, recorded_at=last.recorded_at)
            second_half[split_ledger] = span._replace(first=last.position + 1)
        else:
            del second_half[split_ledger]
        return EventPage(head, first_half), EventPage(tail, second_half)
