"""Files that people send as sheets: read whatever they are, or refused with a sentence, in bounded memory and time."""

from __future__ import annotations

import asyncio
import io
import tempfile
import zipfile
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any

import openpyxl
import pytest

from api import sheet_files
from api.sheet_files import SheetError, SheetRow, read_sheets
from api.spreadsheet_cells import csv_lines
from api.workbooks import WorkbookWriter

Read = tuple[list[str], list[str], list[SheetRow]]


def read(content: bytes) -> Read:
    async def reading() -> Read:
        with tempfile.TemporaryFile() as file:
            file.write(content)
            with await read_sheets(file) as sheets:
                return sheets.names, sheets.hidden, list(sheets)

    return asyncio.run(reading())


def cells(content: bytes) -> list[list[str]]:
    return [row.cells for row in read(content)[2]]


def workbook(fill: Callable[[Any], None]) -> bytes:
    book = openpyxl.Workbook()
    fill(book)
    file = io.BytesIO()
    book.save(file)
    return file.getvalue()


def repacked(content: bytes, **parts: bytes) -> bytes:
    """Return a workbook with some parts replaced, by the names of their files."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, parts.get(name.rpartition("/")[2].partition(".")[0], old.read(name)))
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"a,b c,\n1,2,\n",
        "\ufeffa,b c\r\n1,2\r\n".encode(),
        b"a;b c\n1;2\n",
        b"a\tb c\n1\t2\n",
        b"a|b c\n1|2",
        "a\tb c\n1\t2\n".encode("utf-16"),
    ],
)
def test_a_table_is_read_whatever_separates_its_columns(content: bytes) -> None:
    assert read(content) == ([""], [], [SheetRow(0, 1, ["a", "b c"]), SheetRow(0, 2, ["1", "2"])])


def test_rows_bear_the_numbers_that_a_spreadsheet_shows() -> None:
    assert [row.number for row in read(b'a,b\n\n"two\nlines",c\nd,e\n')[2]] == [1, 3, 4]


def test_cells_that_were_exported_are_read_as_they_were() -> None:
    texts = ["=1+1", "7312345678901234567", "'quoted", "plain"]
    assert cells(csv_lines([texts])) == [texts]


def test_cells_of_a_workbook_are_read_as_what_they_are() -> None:
    def fill(book: Any) -> None:
        sheet = book.active
        day = datetime(2026, 4, 20)  # noqa: DTZ001 - a workbook has no time zones
        sheet.append(["text", 1, 2.5, True, day, day.replace(hour=9, minute=30), None])
        sheet.append([7312345678901234567, "#k9/Tz+code==", "=1+1"])
        sheet["A3"] = date(2026, 4, 21)

    assert cells(workbook(fill)) == [
        ["text", "1", "2.5", "true", "2026-04-20", "2026-04-20 09:30:00"],
        # What a program kept of a number of so many digits is not passed off as the number.
        ["7.312345678901235e+18", "#k9/Tz+code=="],
        ["2026-04-21"],
    ]


def test_a_cell_that_is_merged_over_rows_has_its_value_in_each_row_of_data() -> None:
    def fill(book: Any) -> None:
        sheet = book.active
        for row in (["title"], ["a", "b", "c"], [1, "x"], [2], [None, "z"], [3, None, 8], [4, "y"]):
            sheet.append(row)
        for area in ("A1:C1", "B3:C4", "B5:B6", "B8:B9"):
            sheet.merge_cells(area)

    assert cells(workbook(fill)) == [
        ["title"],
        ["a", "b", "c"],
        ["1", "x"],
        ["2", "x"],
        ["", "z"],
        ["3", "z", "8"],
        ["4", "y"],
    ]


def test_more_merged_cells_than_anyone_makes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(book: Any) -> None:
        book.active.append(["a"])
        book.active.merge_cells("A1:A3")
        book.active.merge_cells("B1:B3")

    monkeypatch.setattr(sheet_files, "MAX_MERGED", 1)
    with pytest.raises(SheetError, match="more than 1 merged cells"):
        list(next(sheet_files._workbook(io.BytesIO(workbook(fill)), sheet_files.MIB).rows))


def test_every_visible_sheet_is_read_and_hidden_ones_are_named() -> None:
    def fill(book: Any) -> None:
        book.active.title = "Roster"
        book.active.append(["a"])
        book.create_sheet("Detail").append(["b"])
        book.create_sheet("Old").append(["c"])
        book["Old"].sheet_state = "hidden"

    assert read(workbook(fill)) == (["Roster", "Detail"], ["Old"], [SheetRow(0, 1, ["a"]), SheetRow(1, 1, ["b"])])


def test_a_workbook_that_we_write_is_read_back() -> None:
    file = io.BytesIO()
    with WorkbookWriter(file) as book:
        book.begin_sheet("Codes [1]", ["id", "at"])
        book.write(["7312345678901234567", datetime(2026, 4, 20, 9, 30, tzinfo=UTC)])
        book.write(["=1+1", 10**15])
    assert read(file.getvalue()) == (
        ["Codes  1"],
        [],
        [
            SheetRow(0, 1, ["id", "at"]),
            SheetRow(0, 2, ["7312345678901234567", "2026-04-20 09:30:00"]),
            SheetRow(0, 3, ["=1+1", "1000000000000000"]),
        ],
    )


def simple() -> bytes:
    return workbook(lambda book: book.active.append(["a"]))


def with_sheets(book: Any) -> None:
    for _ in range(40):
        book.create_sheet()


BOMB = b'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;">]><worksheet>&b;</worksheet>'
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "encrypted": (lambda: b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "encrypted"),
    "truncated": (lambda: simple()[:900], "damaged"),
    "no workbook": (lambda: b"PK\x03\x04" + b"rubbish" * 50, "damaged"),
    "another archive": (lambda: repacked(simple(), workbook=b"<none/>"), "damaged"),
    "entities": (lambda: repacked(simple(), sheet1=BOMB), "damaged"),
    "no XML": (lambda: repacked(simple(), sheet1=b"<worksheet><sheetData><row"), "damaged"),
    "Latin-1": (lambda: "Gültig bis;Café\n".encode("latin-1"), "not valid UTF-8"),
    "mixed encodings": (lambda: "Gültig\n".encode() + "Gültig\n".encode("latin-1"), "not valid UTF-8"),
    "NUL": (lambda: b"a,b\n1,\x002\n", "NUL"),
    "a quote that is not closed": (lambda: b'a,b\n1,"' + b"x" * 9_000, "quote is not closed"),
    "too many columns": (lambda: b",".join([b"x"] * 300), "more than 256 columns"),
    "a million columns": (lambda: b"," * 1_000_000 + b"x", "more than 256 columns"),
    "a long cell": (lambda: workbook(lambda book: book.active.append(["x" * 5_000])), "more than 4,096 characters"),
    "many sheets": (lambda: workbook(with_sheets), "more than 32 sheets"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_with_a_sentence(name: str) -> None:
    content, why = REFUSED[name]
    with pytest.raises(SheetError, match=why):
        read(content())


def test_a_file_with_too_many_rows_is_refused() -> None:
    with pytest.raises(SheetError, match="at most 100,000 rows"):
        read(b"a\n" * (sheet_files.MAX_ROWS + sheet_files.MAX_ROWS_ABOVE + 1))


def test_a_workbook_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheet_files, "MAX_UNPACKED_BYTES", sheet_files.MIB)
    bomb = repacked(simple(), sheet1=b" " * sheet_files.MIB)
    assert len(bomb) < sheet_files.MIB // 50
    with pytest.raises(SheetError, match="when it is unpacked"):
        read(bomb)


@pytest.mark.parametrize(("limit", "most"), [("MAX_READER_MEMORY_BYTES", 16 * sheet_files.MIB), ("MAX_READER_S", 0)])
def test_a_sheet_that_takes_too_much_ends_only_the_process_that_reads_it(
    monkeypatch: pytest.MonkeyPatch, limit: str, most: int
) -> None:
    monkeypatch.setattr(sheet_files, limit, most)
    with pytest.raises(SheetError, match="takes more than"):
        read(simple())
