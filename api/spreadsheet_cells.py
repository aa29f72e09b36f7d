"""Cells of CSV files: written so that a spreadsheet takes none for a formula and rounds no id, and read back exactly.

    =1+1                  →  '=1+1                    a formula
    7312345678901234567   →  '7312345678901234567     a number of which a spreadsheet keeps 15 digits
    '=1+1                 →  ''=1+1                   what looks guarded already gets one more

The guard is an apostrophe. It is always one more than the text had, so anyone who removes one has the text again.
"""

from __future__ import annotations

import csv
import io
import re
from typing import TYPE_CHECKING, Any, Final

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Excel begins a file's text in UTF-8 only after it; else it takes the bytes for an older encoding.
BYTE_ORDER_MARK: Final = "\ufeff"
# A spreadsheet takes a cell that begins so for a formula, in some languages with the wide forms of these characters.
# One that separates by semicolons or tabs begins a cell within one of ours, and takes the quotes and spaces before its
# text away; what nobody sees (U+200B and others, U+FEFF) is passed over like a space.
_BEFORE: Final = r'[\s"\u200b-\u200f\u2060\ufeff]*'
_BEGINS: Final = r"[=+@\-\uff1d\uff0b\uff20\uff0d]"
_FORMULA: Final = re.compile(rf"(^{_BEFORE}|[;\t\r\n]{_BEFORE})('*{_BEGINS})")
_GUARDED_FORMULA: Final = re.compile(rf"(^{_BEFORE}|[;\t\r\n]{_BEFORE})'('*{_BEGINS})")
_FORMULA_IN_JSON: Final = re.compile(rf"(;{_BEFORE})({_BEGINS})")
# A cell is guarded as a whole if it begins with white space that some readers take for the end of a line or cell, or if
# a spreadsheet would show it as a rounded number or without the zeros at its beginning, and save it as it shows it.
_WHOLE: Final = re.compile(r"'*([\t\r\n]|(?:[0-9]{12,}|0[0-9]+|[0-9]+[Ee][0-9]+)\Z)")
_GUARD: Final = "'"


def csv_lines(lines: Iterable[Iterable[Any]]) -> bytes:
    """Return lines of a table, in which every cell is guarded."""
    table = io.StringIO(newline="")
    csv.writer(table).writerows([[_cell(value) for value in line] for line in lines])
    return table.getvalue().encode()


def read_csv(text: str) -> Iterator[list[str]]:
    """Yield the lines of a table that `csv_lines` wrote, each cell as it was before it was guarded."""
    rows = csv.reader(io.StringIO(text.removeprefix(BYTE_ORDER_MARK), newline=""), strict=True)
    return ([unguarded(cell) for cell in row] for row in rows)


def guarded(text: str) -> str:
    """Return a text as it is written into a cell."""
    cell = _FORMULA.sub(r"\1'\2", text)
    return f"{_GUARD}{cell}" if _WHOLE.match(cell) else cell


def unguarded(cell: str) -> str:
    """Return the text of a cell: the inverse of `guarded`."""
    if cell.startswith(_GUARD) and _WHOLE.match(cell):
        cell = cell.removeprefix(_GUARD)
    return _GUARDED_FORMULA.sub(r"\1\2", cell)


def cell_text(value: Any) -> str:
    """Return a value as a cell shows it: as in JSON, so that a time reads the same in both, without JSON's quotes."""
    return value if isinstance(value, str) else _json(value).strip('"')


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return guarded(value)
    # Written as an escape, what would begin a formula stays the same JSON, for it is within a text: no semicolon is
    # anywhere else.
    return _FORMULA_IN_JSON.sub(lambda found: f"{found[1]}\\u{ord(found[2]):04x}", cell_text(value))


def _json(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_UTC_Z).decode()
