"""What a stream's reader has missed: read from the log in bounded pages, by way of a view where it filters.

A view leads over what does not pass the filters; what the view has not read yet is looked through one by one. Nothing
here holds more than one page, and few readers read at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from infra.errors import Unavailable
from projections import event_index, index_scan

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Sequence

    from api.http.dependencies import DatabaseCursor, Services
    from domain.recorded import RecordedEvent
    from infra.eventstore.event_filter import EventFilter
    from infra.eventstore.live_subscription import LiveSubscription

PAGE_EVENTS: Final = 100
# Beyond the view, so many events are looked through for one reader.
MAX_LOOKED_THROUGH: Final = 100_000
_BEHIND: Final = "The view that filters events is too far behind. Try again later, or without filters."


@dataclass(frozen=True, slots=True)
class CatchUpPage:
    """Events that pass the filters, and the position up to which no other does."""

    events: Sequence[RecordedEvent]
    position: int


class CatchUp:
    """One reader's way from its position to the end of the log."""

    def __init__(
        self,
        services: Services,
        ledger_id: int,
        selection: EventFilter,
        position: int,
        turns: asyncio.Semaphore,
    ) -> None:
        """Begin after a position.

        Args:
            services: what is read with.
            ledger_id: whose log.
            selection: what the reader wants.
            position: the last that the reader has seen.
            turns: how many readers of this process may read a page at a time.

        """
        self.position = position
        self._services = services
        self._ledger_id = ledger_id
        self._selection = selection
        self._turns = turns

    async def prepare(self) -> None:
        """Learn which streams the filters speak of, as far as the log reached when the reader left off.

        Raises:
            Unavailable: the database is away, or the view too far behind.

        """
        for creator_id in self._selection.creators:
            for recorded in (await self._services.aggregates.creator_stream(self._ledger_id, creator_id))[:1]:
                self._selection.know(recorded)
        if self._selection.videos:
            await self._look_through(await self._know_codes(), self.position)

    async def until(self, subscription: LiveSubscription) -> AsyncIterator[CatchUpPage]:
        """Yield what the reader wants, up to where the subscription can take over from `position`.

        Raises:
            Unavailable: the database is away, or the view too far behind.

        """
        if self._selection.conditions and not subscription.keeps(self.position):
            async for found in self._by_view():
                yield found
            self._refuse_long_way(self.position, subscription.position)
        while not subscription.keeps(self.position):
            async with self._turns:
                page = await self._page(self.position)
            self.position = page[-1].position
            yield CatchUpPage([recorded for recorded in page if self._selection.wants(recorded)], self.position)

    async def _by_view(self) -> AsyncIterator[CatchUpPage]:
        more = True
        while more:
            async with self._turns:
                found, reached = await self._search(self._selection.conditions, self.position)
                events = await self._services.events.at_positions(self._ledger_id, found.positions)
            last = found.positions[-1:]
            if len(found.positions) == PAGE_EVENTS:
                upto = last[0]
            elif found.stopped_at is not None:
                upto = found.stopped_at
            else:
                # Nothing else passes, up to where the view has read.
                more, upto = False, max([self.position, reached, *last])
            self.position = upto
            yield CatchUpPage([recorded for recorded in events if self._selection.says(recorded)], upto)
        if self._selection.videos:
            await self._look_through(await self._know_codes(), self.position)

    async def _know_codes(self) -> int:
        """Learn the codes of the videos that are asked for; return the position up to which they are all known."""
        conditions = (
            index_scan.Among("video_id", tuple(self._selection.videos)),
            index_scan.Among("type", ("CodeGenerated",)),
        )
        after: int | None = 0
        reached = None
        while after is not None:
            found, read = await self._search(conditions, after)
            # The first answer is the oldest: from there on, codes are learned as their events come.
            reached = read if reached is None else reached
            for recorded in await self._services.events.at_positions(self._ledger_id, found.positions):
                self._selection.know(recorded)
            after = found.positions[-1] if len(found.positions) == PAGE_EVENTS else found.stopped_at
        return reached or 0

    async def _look_through(self, after: int, upto: int) -> None:
        """Let the selection learn from events that the reader has seen already, and the view not yet."""
        self._refuse_long_way(after, upto)
        while after < upto:
            async with self._turns:
                page = await self._page(after)
            for recorded in page:
                self._selection.wants(recorded)
            after = page[-1].position

    async def _search(self, conditions: Sequence[index_scan.Condition], after: int) -> tuple[index_scan.IndexPage, int]:
        async def search(cur: DatabaseCursor) -> index_scan.IndexPage:
            return await index_scan.search(cur, self._ledger_id, conditions, limit=PAGE_EVENTS, after=after)

        return await self._services.views.read(self._ledger_id, search, view=event_index.NAME)

    async def _page(self, after: int) -> Sequence[RecordedEvent]:
        return await self._services.events.page(self._ledger_id, after=after, limit=PAGE_EVENTS)

    def _refuse_long_way(self, after: int, upto: int) -> None:
        if upto - after > MAX_LOOKED_THROUGH:
            raise Unavailable(_BEHIND)
