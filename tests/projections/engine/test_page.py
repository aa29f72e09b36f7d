"""Pages: they cover spans of positions without a gap, whatever events are left out."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from projections.engine.page import EventPage, PositionGap, Span
from tests import given
from tests.given import CODE, NOW

EVENT = given.permitted().ledger.events[0]


def events(ledger_id: int, *positions: int) -> list[tuple[int, Any]]:
    """Events at these positions, each recorded a second after the one before."""
    return [(ledger_id, EVENT._replace(position=p, recorded_at=NOW + timedelta(seconds=p))) for p in positions]


def span(first: int, last: int) -> Span:
    return Span(first, last, NOW + timedelta(seconds=last))


def places(page: EventPage) -> list[tuple[int, int]]:
    return [(ledger_id, recorded.position) for ledger_id, recorded in page.events]


def test_a_page_of_events_covers_exactly_these() -> None:
    page = EventPage.of([*events(1, 4, 5, 6), *events(3, 1)])
    assert page.spans == {1: span(4, 6), 3: span(1, 1)}
    assert page.length == 4
    assert EventPage.of([]) == EventPage([], {})


@pytest.mark.parametrize("positions", [(1, 3), (2, 1), (1, 1), (1, 2, 3, 5, 6)])
def test_a_page_with_an_event_left_out_or_out_of_order_is_none(positions: tuple[int, ...]) -> None:
    with pytest.raises(PositionGap, match=r"Event \d of ledger 2 was read after \d"):
        EventPage.of([*events(1, 1, 2), *events(2, *positions)])


def test_what_comes_next_is_the_whole_page_or_the_rest_of_it_for_a_reader_inside() -> None:
    page = EventPage.of([*events(1, 4, 5, 6), *events(2, 1, 2)])
    assert page.after({1: 3}) is page
    rest = page.after({1: 4, 2: 1})
    assert places(rest) == [(1, 5), (1, 6), (2, 2)]
    assert rest.spans == {1: span(5, 6), 2: span(2, 2)}


def test_of_ledgers_that_were_read_elsewhere_nothing_comes_next() -> None:
    page = EventPage.of([*events(1, 4, 5), *events(2, 1, 2)])
    assert page.follows({1: 9, 2: 1})
    assert page.after({1: 9, 2: 1}).spans == {2: span(2, 2)}
    assert page.after({1: 1}).spans == {2: span(1, 2)}, "of ledger 1 something is missing before"
    assert not page.follows({1: 5, 2: 2})
    assert not page.follows({1: 2, 2: 7})


def test_a_page_covers_the_events_that_are_skipped_too() -> None:
    page = EventPage.of(events(1, 1, 2, 3))
    without = page.without({(1, 2), (2, 1), (1, 9)})
    assert places(without) == [(1, 1), (1, 3)]
    assert without.spans == page.spans
    assert page.without({(1, 4), (2, 2)}) is page


def test_what_is_skipped_with_all_later_ones_is_left_out_of_its_own_ledger_and_stream_alone() -> None:
    page = EventPage.of([*events(1, 1, 2, 3, 4), *events(2, 3)])
    without = page.without(frozenset(), {(1, EVENT.stream_id): 3, (1, CODE): 1, (2, CODE): 1})
    assert places(without) == [(1, 1), (1, 2), (2, 3)]
    assert without.spans == page.spans


@pytest.mark.parametrize(
    ("page", "first", "second"),
    [
        (EventPage.of(events(1, 5, 6, 7)), {1: span(5, 5)}, {1: span(6, 7)}),
        (EventPage.of([*events(1, 1, 2), *events(2, 4, 5)]), {1: span(1, 2)}, {2: span(4, 5)}),
        (EventPage.of([*events(1, 1), *events(2, 4, 5, 6)]), {1: span(1, 1), 2: span(4, 4)}, {2: span(5, 6)}),
        (EventPage.of(events(1, 1, 2, 3, 4)).without({(1, 2)}), {1: span(1, 1)}, {1: span(2, 4)}),
    ],
)
def test_two_halves_cover_the_whole(page: EventPage, first: dict[int, Span], second: dict[int, Span]) -> None:
    halves = page.halves()
    assert [half.spans for half in halves] == [first, second]
    assert [*places(halves[0]), *places(halves[1])] == places(page)
    assert halves[0].length + halves[1].length == page.length


def test_pages_that_come_after_each_other_are_one() -> None:
    pages = [
        EventPage.of([*events(1, 4, 5), *events(3, 1)]),
        EventPage.of([*events(1, 6), *events(2, 8)]).without({(1, 6)}),
        EventPage.of(events(3, 2, 3)),
    ]
    one = EventPage.joined(pages)
    assert places(one) == [(1, 4), (1, 5), (2, 8), (3, 1), (3, 2), (3, 3)]
    assert one.spans == {1: span(4, 6), 2: span(8, 8), 3: span(1, 3)}
    assert EventPage.joined(pages[:1]) is pages[0]
