"""XLSX workbooks, written row by row in constant memory, in which every cell stays what it is.

Texts are written as texts: no program takes one for a formula, a link or a number. Times are cells with a time, in UTC,
as spreadsheets have no time zones. Whole numbers of more than 15 digits are texts, because a spreadsheet would round
them.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any, Final, Self

import xlsxwriter

from api.spreadsheet_cells import cell_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

# What a spreadsheet holds.
MAX_ROWS: Final = 1_048_576
MAX_CELL_CHARACTERS: Final = 32_767
MAX_EXACT_NUMBER: Final = 10**15
_COLUMN_WIDTH: Final = 24
_MAX_NAME_CHARACTERS: Final = 31
_NO_NAME: Final = re.compile(r"[\[\]:*?/\\]")


class WorkbookWriter:
    """A workbook while it is written. Rows go to the sheet that was begun last."""

    def __init__(self, file: IO[bytes]) -> None:
        """Begin a workbook, which is in the file when the context ends."""
        self._book = xlsxwriter.Workbook(
            file,
            {
                "constant_memory": True,
                "strings_to_formulas": False,
                "strings_to_numbers": False,
                "strings_to_urls": False,
            },
        )
        self._bold = self._book.add_format({"bold": True})
        self._time = self._book.add_format({"num_format": "yyyy-mm-dd hh:mm:ss"})
        self._sheet: Any = None
        self._name = ""
        self._head: Sequence[str] = ()
        self._rows = 0
        self._parts = 0
        self._names: set[str] = set()

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is left, also after an error: it keeps open files otherwise."""
        self.close()

    def close(self) -> None:
        """Write the workbook into its file."""
        self._book.close()

    def begin_sheet(self, name: str, head: Sequence[str]) -> None:
        """Begin a sheet with the names of its columns."""
        self._name, self._head, self._parts = name, head, 0
        self._begin_part()

    def write(self, cells: Sequence[Any]) -> None:
        """Write a row. One that the sheet has no room for begins another one with the same columns."""
        if self._rows == MAX_ROWS:
            self._begin_part()
        for column, value in enumerate(cells):
            self._write(column, value)
        self._rows += 1

    def _begin_part(self) -> None:
        self._parts += 1
        self._sheet = self._book.add_worksheet(self._free_name())
        self._sheet.set_column(0, max(len(self._head) - 1, 0), _COLUMN_WIDTH)
        self._rows = 0
        if self._head:
            self._sheet.freeze_panes(1, 0)
            for column, name in enumerate(self._head):
                self._sheet.write_string(0, column, name, self._bold)
            self._rows = 1

    def _free_name(self) -> str:
        """Return a name that a spreadsheet allows, and that no other sheet has."""
        name = _NO_NAME.sub(" ", self._name).strip("' ") or "Sheet"
        number = self._parts
        while True:
            suffix = "" if number == 1 else f" {number}"
            found = name[: _MAX_NAME_CHARACTERS - len(suffix)] + suffix
            if found.casefold() not in self._names:
                self._names.add(found.casefold())
                return found
            number += 1

    def _write(self, column: int, value: Any) -> None:
        sheet, row = self._sheet, self._rows
        match value:
            case None | "":
                return
            case bool():
                sheet.write_boolean(row, column, value)
            case int() if abs(value) < MAX_EXACT_NUMBER:
                sheet.write_number(row, column, value)
            case datetime():
                sheet.write_datetime(row, column, value.astimezone(UTC).replace(tzinfo=None), self._time)
            case _:
                sheet.write_string(row, column, cell_text(value)[:MAX_CELL_CHARACTERS])
