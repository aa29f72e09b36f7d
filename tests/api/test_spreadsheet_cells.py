"""Cells of tables: a spreadsheet takes none for a formula and rounds none, and each is read back as it was."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st

from api.spreadsheet_cells import BYTE_ORDER_MARK, csv_lines, guarded, read_csv, unguarded

# What cells are guarded because of, and what a guard could be confused with.
TRICKY = st.text(st.sampled_from("=+-@\uff1d'\"`;,\t\r\n \u200b\ufeff0123E7a"), max_size=12)
IDS = st.builds(str.__add__, st.text("'", max_size=2), st.text("0123456789", min_size=1, max_size=20))
TEXTS = st.one_of(TRICKY, IDS, st.text(max_size=20))


@pytest.mark.long("Hypothesis writes and reads hundreds of files")
@settings(max_examples=1_000, deadline=None)
@for_all(st.lists(st.lists(TEXTS, min_size=1, max_size=4), max_size=4))
def test_what_is_written_is_read_back_exactly(lines: list[list[str]]) -> None:
    table = [["position", "body"], *lines]
    for mark in ("", BYTE_ORDER_MARK):
        assert list(read_csv(mark + csv_lines(table).decode())) == table


@settings(max_examples=1_000, deadline=None)
@for_all(TEXTS, TEXTS)
def test_two_texts_never_have_the_same_cell(one: str, other: str) -> None:
    assert unguarded(guarded(one)) == one
    assert (guarded(one) == guarded(other)) == (one == other)


CELLS = {
    "=1+1": "'=1+1",
    "'=1+1": "''=1+1",
    "''=1+1": "'''=1+1",
    "-5": "'-5",
    " @x": " '@x",
    "a;=b": "a;'=b",
    "a;'=b": "a;''=b",
    "\tx": "'\tx",
    "'\tx": "''\tx",
    "\n=x": "'\n'=x",
    "it's": "it's",
    "'quoted'": "'quoted'",
    "7312345678901234567": "'7312345678901234567",
    "'7312345678901234567": "''7312345678901234567",
    "007": "'007",
    "12E3": "'12E3",
    "42": "42",
    "adv-7001": "adv-7001",
    "7312345678901234567 ": "7312345678901234567 ",
}


@pytest.mark.parametrize("text", CELLS)
def test_a_cell_has_one_apostrophe_more_where_it_needs_a_guard(text: str) -> None:
    assert guarded(text) == CELLS[text]


@settings(deadline=None)
@for_all(TEXTS)
def test_no_cell_begins_a_formula_or_is_a_number_that_a_spreadsheet_would_round(text: str) -> None:
    ((cell,),) = csv.reader(io.StringIO(csv_lines([[text]]).decode(), newline=""))
    for part in [cell, *cell.replace("\t", ";").replace("\n", ";").replace("\r", ";").split(";")]:
        assert not part.strip(' \u200b\ufeff"\t\r\n').startswith(("=", "+", "-", "@", "\uff1d"))
    assert not (cell.isdigit() and cell.isascii() and len(cell) > 11)


def test_values_that_are_no_texts_read_as_in_json() -> None:
    values: list[Any] = [None, True, 7, {"a": "b;=c"}, [1, 2]]
    assert list(read_csv(csv_lines([values]).decode())) == [["", "true", "7", '{"a":"b;\\u003dc"}', "[1,2]"]]
