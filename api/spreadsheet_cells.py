"""Cells of CSV files, written so that a spreadsheet takes none for a formula."""

from __future__ import annotations

import csv
import io
import re
from typing import TYPE_CHECKING, Any, Final

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterable

# A spreadsheet takes a cell that begins so for a formula, in some languages with the wide forms of these characters.
# One that separates by semicolons or tabs begins a cell within one of ours, and takes the quotes and spaces before its
# text away; what nobody sees (U+200B and others, U+FEFF) is passed over like a space.
_BEFORE: Final = r'[\s"\u200b-\u200f\u2060\ufeff]*'
_BEGINS: Final = r"([=+@\-\uff1d\uff0b\uff20\uff0d])"
_FORMULA: Final = re.compile(rf"(^{_BEFORE}|[;\t\r\n]{_BEFORE}){_BEGINS}")
_FORMULA_IN_JSON: Final = re.compile(rf"(;{_BEFORE}){_BEGINS}")
_NO_BEGINNING: Final = ("\t", "\r", "\n")


def csv_lines(lines: Iterable[Iterable[Any]]) -> bytes:
    """Return lines of a table; no cell of it is a formula to a spreadsheet."""
    table = io.StringIO(newline="")
    csv.writer(table).writerows([[_cell(value) for value in line] for line in lines])
    return table.getvalue().encode()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        text = _FORMULA.sub(r"\1'\2", value)
        return f"'{text}" if text.startswith(_NO_BEGINNING) else text
    # As in JSON, so that a time reads the same in both; what JSON quotes is text already. Written as an escape, what
    # would begin a formula stays the same JSON, for it stands within a text: no semicolon is anywhere else.
    return _FORMULA_IN_JSON.sub(lambda found: f"{found[1]}\\u{ord(found[2]):04x}", _json(value).strip('"'))


def _json(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_UTC_Z).decode()
