"""The search for events, in pages and exports: by position, by conditions, and by words in their summaries."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from api.event_content import row_event
from api.http.dependencies import DatabaseCursor
from api.http.problems import malformed_query
from domain.errors import NotAllowed
from infra.errors import Unavailable
from infra.eventstore.event_metadata import summary_of
from infra.eventstore.event_rows import POSITION
from infra.views.reader import LATER_S
from projections import event_index, index_scan
from projections.index_scan import Among, IndexPage, Positions

if TYPE_CHECKING:
    from api.event_content import KeyNames
    from api.http.caller import Caller
    from api.query_language import ParsedQuery, Words
    from domain.recorded import Event
    from infra.eventstore.event_rows import Row
    from infra.views.reader import ViewReader

# Words are looked for in the sentences themselves: so many events are looked through for one page, then it ends.
MAX_ROWS_SCANNED: Final = 5_000
MAX_SECONDS: Final = 0.25
_AT_ONCE: Final = 250


# Returns the text of the notes at positions of a ledger; those that are erased or are no notes are absent.
NoteReader = Callable[[int, Sequence[int]], Awaitable[Mapping[int, str]]]


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


async def query_of(caller: Caller, query: ParsedQuery) -> ParsedQuery:
    """Return the query of the caller, with the ids of the keys that it names, and restricted to what it can read.

    Raises:
        NotAllowed: it names another creator, or searches notes, which the caller cannot read.
        Problem: it names a key that does not exist.

    """
    if query.reads_notes and caller.role == "subscriber":
        raise NotAllowed("Keys with the role subscriber cannot read notes, so they cannot search them.")
    if query.key_names:
        names: KeyNames = caller.request.app.state.key_names
        query = with_key_ids(query, await names.of(caller.ledger_id, ()))
    return restrict_to_caller(caller, query)


def with_key_ids(query: ParsedQuery, names: Mapping[str, str | None]) -> ParsedQuery:
    """Return the query with the ids of the keys that it names, in any case.

    Raises:
        Problem: no key has one of the names.

    """
    conditions = list(query.conditions)
    for wanted, negated in query.key_names:
        folded = {name.casefold() for name in wanted}
        known = {key_id: name.casefold() for key_id, name in names.items() if name is not None}
        if not folded <= set(known.values()):
            raise malformed_query("q", "No key has the name that is given with key. Names must be complete.")
        conditions.append(Among("actor", tuple(k for k, name in known.items() if name in folded), negated))
    return replace(query, conditions=tuple(conditions), key_names=())


def restrict_to_caller(caller: Caller, query: ParsedQuery) -> ParsedQuery:
    """Return the query, for a creator's key with the condition that an event is one of its creators'.

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
    views: ViewReader,
    ledger_id: int,
    query: ParsedQuery,
    within: SearchRange,
    limit: int,
    notes: NoteReader | None = None,
) -> SearchResult:
    """Find events that match a query, at most `limit`.

    Args:
        views: reads the index and the log.
        ledger_id: the ledger.
        query: the query.
        within: where to search, and for how long.
        limit: maximum number of events.
        notes: returns the text of notes by position; needed by a query that reads notes.

    Raises:
        Unavailable: the history did not come so far in time, or the database is away.

    """
    if query.words:
        return await _by_words(views, ledger_id, query, within, limit, notes)
    positions = _listed(query)
    if positions is not None:
        listed = [p for p in positions if within.low < p < within.high]
        page = (listed[::-1] if within.descending else listed)[:limit]
        return SearchResult(await views.event_rows.at(ledger_id, page), len(page))
    if query.conditions:
        return await _by_conditions(views, ledger_id, query, within, limit)
    rows = await views.event_rows.between(ledger_id, within.low, within.high, limit=limit, descending=within.descending)
    return SearchResult(rows, len(rows))


def _listed(query: ParsedQuery) -> list[int] | None:
    """Return the positions in order, if the query only lists positions: they are read from the log itself."""
    if len(query.conditions) != 1:
        return None
    condition = query.conditions[0]
    if not isinstance(condition, Positions) or condition.negated:
        return None
    if any(first != last for first, last in condition.ranges):
        return None
    return sorted({first for first, _ in condition.ranges})


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


def words_test(words: Sequence[Words]) -> Callable[[Event], bool]:
    """Return the test that an event has all words, each where it is searched, except in notes.

    A text that is absent has no words.
    """
    patterns = [(one.searched, one.pattern(), one.negated) for one in words if one.searched != "note"]

    def passes(event: Event) -> bool:
        for searched, pattern, negated in patterns:
            text = summary_of(event) if searched == "summary" else getattr(event, searched, None)
            if (pattern.search((text or "").casefold()) is None) is not negated:
                return False
        return True

    return passes


async def _with_notes(rows: list[Row], words: Sequence[Words], ledger_id: int, notes: NoteReader | None) -> list[Row]:
    """Return the rows whose notes have all words that are searched in notes; an erased note has none."""
    patterns = [(one.pattern(), one.negated) for one in words if one.searched == "note"]
    if not patterns or not rows or notes is None:
        return rows
    texts = await notes(ledger_id, [row[POSITION] for row in rows])
    return [
        row
        for row in rows
        if all(
            (pattern.search(texts.get(row[POSITION], "").casefold()) is None) is negated
            for pattern, negated in patterns
        )
    ]


async def _by_words(
    views: ViewReader,
    ledger_id: int,
    query: ParsedQuery,
    within: SearchRange,
    limit: int,
    notes: NoteReader | None,
) -> SearchResult:
    """Look through the texts of what passes the conditions, a bounded number of them."""
    passes = words_test(query.words)
    if query.reads_notes and notes is None:
        raise ValueError("notes are searched here by words, and nothing reads them")
    conditions = replace(query, words=())
    kept: list[Row] = []
    rows_scanned = 0
    ends_at = time.monotonic() + MAX_SECONDS * within.budget
    first: SearchResult | None = None
    while True:
        found = await search_events(views, ledger_id, conditions, within, _AT_ONCE)
        first = first or found
        matching = [row for row in found.rows if passes(row_event(row))]
        matching = await _with_notes(matching, query.words, ledger_id, notes)
        kept += matching[: limit - len(kept)]
        if len(kept) == limit:
            last_kept = kept[-1][POSITION]
            rows_scanned += 1 + next(i for i, row in enumerate(found.rows) if row[POSITION] == last_kept)
            return SearchResult(kept, rows_scanned, None, first.upto, first.cut_off and within.descending)
        rows_scanned += len(found.rows)
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
        # Others that wait for this process come first.
        await asyncio.sleep(0)
