"""The search for events, in pages and exports: by position, by conditions, and by words in their summaries."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from api.event_content import row_event
from api.http.dependencies import DatabaseCursor
from infra.errors import Unavailable
from infra.eventstore.event_metadata import summary_of
from infra.eventstore.event_rows import POSITION
from infra.views.reader import LATER_S
from projections import event_index, index_scan
from projections.index_scan import Among, IndexPage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from api.http.caller import Caller
    from api.query_language import ParsedQuery
    from infra.eventstore.event_rows import Row
    from infra.views.reader import ViewReader

# Words are looked for in the sentences themselves: so many events are looked through for one page, then it ends.
MAX_ROWS_SCANNED: Final = 5_000
MAX_SECONDS: Final = 0.25
_AT_ONCE: Final = 250


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Events that were found.

    Attributes:
        rows: in the order asked for.
        rows_scanned: how many were looked at.
        stopped_at: the position after which it gave up before it had found enough; None where it did not.
        upto: the position up to which the history had been read, where it was searched.
        cut_off: the history has stopped at `upto`, and what was asked for beyond it was not looked for.

    """

    rows: Sequence[Row]
    rows_scanned: int
    stopped_at: int | None = None
    upto: int | None = None
    cut_off: bool = False

    @property
    def complete(self) -> bool:
        """Whether all was looked for that was asked, or as much was found as was wanted."""
        return self.stopped_at is None and not self.cut_off


@dataclass(frozen=True, slots=True)
class SearchRange:
    """Where events are looked for, and how long.

    Attributes:
        low: the position before the first.
        high: the position after the last.
        descending: newest first.
        at_least: the position up to which the history must have been read, where it is searched and has not stopped.
        budget: how many times as long as for a page it may take, and look through as much, before it gives up.

    """

    low: int
    high: int
    descending: bool = False
    at_least: int = 0
    budget: float = 1.0


def restrict_to_caller(caller: Caller, query: ParsedQuery) -> ParsedQuery:
    """Return what the caller may ask: a creator's key its own events alone.

    Raises:
        NotAllowed: it names another creator.

    """
    if caller.role != "creator":
        return query
    named = [c for c in query.conditions if isinstance(c, Among) and c.field == "creator_id" and not c.negated]
    for condition in named:
        for creator_id in condition.values:
            caller.act_for_creator(str(creator_id))
    return query if named else query.among("creator_id", tuple(caller.key.subjects.creator_ids))


def index_stopped(upto: int) -> Unavailable:
    """Return what is wrong where the history has stopped, and nothing that is asked for lies before that."""
    return Unavailable(
        (
            f"View {event_index.NAME} has stopped. It can be searched up to position {upto}: retry with "
            f"before={upto + 1}."
        ),
        LATER_S,
    )


async def search_events(
    views: ViewReader, ledger_id: int, query: ParsedQuery, within: SearchRange, limit: int
) -> SearchResult:
    """Find events that fulfil what is asked, at most `limit`.

    Raises:
        Unavailable: the history did not come so far in time, or the database is away.

    """
    if query.words:
        return await _by_words(views, ledger_id, query, within, limit)
    if query.conditions:
        return await _by_conditions(views, ledger_id, query, within, limit)
    rows = await views.event_rows.between(ledger_id, within.low, within.high, limit=limit, descending=within.descending)
    return SearchResult(rows, len(rows))


async def _by_conditions(
    views: ViewReader, ledger_id: int, query: ParsedQuery, within: SearchRange, limit: int
) -> SearchResult:
    async def search(cur: DatabaseCursor) -> IndexPage:
        return await index_scan.search(
            cur,
            ledger_id,
            query.conditions,
            limit=limit,
            after=within.low,
            before=within.high,
            descending=within.descending,
            max_rows_scanned=int(index_scan.MAX_ROWS_SCANNED * within.budget),
            max_seconds=index_scan.MAX_SECONDS * within.budget,
        )

    found, upto = await views.read(ledger_id, search, view=event_index.NAME)
    if upto < within.at_least:
        await views.reach(ledger_id, event_index.NAME, within.at_least)
        found, upto = await views.read(ledger_id, search, view=event_index.NAME)
    # Forwards, a full page says nothing of what lies beyond it; backwards, that comes first.
    cut_off = upto < within.at_least and (within.descending or len(found.positions) < limit)
    stopped_at = found.stopped_at
    if cut_off and stopped_at is None and not within.descending:
        stopped_at = max(upto, within.low)
    return SearchResult(
        await views.event_rows.at(ledger_id, found.positions), found.rows_scanned, stopped_at, upto, cut_off
    )


async def _by_words(
    views: ViewReader, ledger_id: int, query: ParsedQuery, within: SearchRange, limit: int
) -> SearchResult:
    """Look through the summaries of what passes the conditions, a bounded number of them."""
    patterns = [(words.pattern(), words.negated) for words in query.words]
    conditions = replace(query, words=())
    kept: list[Row] = []
    rows_scanned = 0
    ends_at = time.monotonic() + MAX_SECONDS * within.budget
    first: SearchResult | None = None
    while True:
        found = await search_events(views, ledger_id, conditions, within, _AT_ONCE)
        first = first or found
        for row in found.rows:
            rows_scanned += 1
            said = summary_of(row_event(row)).casefold()
            if all((pattern.search(said) is None) is negated for pattern, negated in patterns):
                kept.append(row)
                if len(kept) == limit:
                    return SearchResult(kept, rows_scanned, None, first.upto, first.cut_off and within.descending)
        if found.stopped_at is None and len(found.rows) < _AT_ONCE:
            return SearchResult(kept, rows_scanned, None, first.upto, first.cut_off)
        last = found.rows[-1][POSITION] if found.stopped_at is None else found.stopped_at
        enough = rows_scanned >= MAX_ROWS_SCANNED * within.budget or time.monotonic() > ends_at
        if found.stopped_at is not None or enough:
            return SearchResult(kept, rows_scanned, last, first.upto, first.cut_off)
        if within.descending:
            within = replace(within, high=last, at_least=min(within.at_least, last - 1))
        else:
            within = replace(within, low=last)
        # Whoever else waits for this process comes first.
        await asyncio.sleep(0)
