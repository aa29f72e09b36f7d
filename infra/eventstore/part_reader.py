"""Reads of a part of the log of all ledgers: the events of some of the streams, by a hash of the stream.

As many processes read as there are parts, and each decodes only the events of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from infra.eventstore import serialization
from infra.eventstore.reader import COLUMNS, to_recorded
from projections.engine.array_columns import Bigints, Ints
from projections.engine.page import EventPage, PositionGap, Span
from projections.engine.projector import UnreadableEvent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from domain.recorded import RecordedEvent
    from infra.postgres.pool import Database, LedgerConnection
    from projections.engine.parts import Part

_READ: Final = (
    "SELECT"
    + COLUMNS
    + """, e.ledger_id
    FROM unnest(%(ledgers)b, %(firsts)b, %(lasts)b) AS x (ledger_id, first, last)
    CROSS JOIN LATERAL (
        SELECT * FROM events e
        WHERE e.ledger_id = x.ledger_id AND e.position >= x.first AND e.position <= x.last
        AND (uuid_hash(e.stream_id) & 2147483647) %% %(parts)b = %(number)b
        ORDER BY e.position
    ) e
    ORDER BY e.ledger_id, e.position
"""
)

_COUNT: Final = """
    SELECT coalesce(sum(e.events), 0)::bigint
    FROM unnest(%(ledgers)b, %(firsts)b, %(lasts)b) AS x (ledger_id, first, last)
    CROSS JOIN LATERAL (
        SELECT count(*) AS events FROM events e
        WHERE e.ledger_id = x.ledger_id AND e.position >= x.first AND e.position <= x.last
    ) e
"""


class PartReader:
    """Reads pages of one part of the log, up to given positions."""

    def __init__(self, database: Database, part: Part, upto: Mapping[int, int]) -> None:
        """Take sessions that see every ledger, the part, and by ledger the last position to read."""
        self._database = database
        self._part = part
        self._upto = upto

    async def after(self, positions: Mapping[int, int], limit: int) -> EventPage:
        """Return the events of the part past the given positions: about `limit`, from as many more positions.

        Raises:
            UnreadableEvent: the first event cannot be read. An unreadable event further on ends the page before it.
            PositionGap: the log lacks an event.

        """
        spans = self._spans(positions, limit * self._part.parts)
        if not spans:
            return EventPage((), {})
        parameters = {
            "ledgers": Ints(list(spans)),
            "firsts": Bigints([span.first for span in spans.values()]),
            "lasts": Bigints([span.last for span in spans.values()]),
            "parts": self._part.parts,
            "number": self._part.number - 1,
        }

        async def query(connection: LedgerConnection) -> tuple[int, list[Any]]:
            cursor = connection.cursor(binary=True)
            await cursor.execute(_COUNT, parameters, prepare=True)
            counted = await cursor.fetchone()
            await cursor.execute(_READ, parameters, prepare=True)
            return counted[0] if counted else 0, await cursor.fetchall()

        count, rows = await self._database.read(None, query)
        page = EventPage((), spans)
        if count != page.length:
            raise PositionGap(f"Of {page.length} events that follow each other, the log has {count}.")
        events: list[tuple[int, RecordedEvent]] = []
        for row in rows:
            recorded = to_recorded(row)
            if isinstance(recorded.event, serialization.UnreadableEvent):
                return _before(row[-1], row[0], recorded.event.reason, events, spans)
            events.append((row[-1], recorded))
        return EventPage(events, spans)

    def forget(self) -> None:
        """Do nothing: this reader keeps no pages."""

    def _spans(self, positions: Mapping[int, int], limit: int) -> dict[int, Span]:
        """Return the next positions to read, one ledger after another."""
        spans = {}
        for ledger_id, upto in sorted(self._upto.items()):
            first = positions.get(ledger_id, 0) + 1
            last = min(upto, first + limit - 1)
            if first <= last:
                spans[ledger_id] = Span(first, last, None)
                limit -= last - first + 1
            if limit == 0:
                break
        return spans


def _before(
    ledger_id: int,
    position: int,
    reason: str,
    events: list[tuple[int, RecordedEvent]],
    spans: Mapping[int, Span],
) -> EventPage:
    """Return the page that ends before an event that cannot be read; raise if that would be an empty one."""
    reached = {i: span for i, span in spans.items() if i < ledger_id}
    span = spans[ledger_id]
    if position > span.first:
        reached[ledger_id] = span._replace(last=position - 1)
    if not reached:
        raise UnreadableEvent(ledger_id, position, reason)
    return EventPage(events, reached)
