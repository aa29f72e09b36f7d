"""Sheets of one workbook read together: what the rows of one leave out, a row of another one may have.

Often one sheet has a row for each post, and another one, a roster, a row for each creator: their handle, their rate, or
their code. A sheet with a column for videos is about codes. A sheet without one, beside such sheets, is joined with
them: by the creator's handle, or else by the creator's name. A row takes what it leaves out from the one row that has
its handle or name. If there are several such rows, or none, it takes nothing, and what is unclear of it says so. What a
row says itself always counts.

A code is for one video. So a row of a roster that has a code is joined only if one row is to have it. All other rows
with a code are judged by themselves.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from domain.pasted import Unusable, canonical_creator_id, creator_name, creator_of_link

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from api.sheet_columns import Columns, Field
    from api.sheet_files import ReadSheets, SheetRow

    Cells = dict[Field, str]

# What names one code: no two rows can have it.
_ONE_CODE: Final[frozenset[Field]] = frozenset({"secret", "code_id"})
_KEYS: Final[frozenset[Field]] = frozenset({"creator_id", "name"})
# Rows of a roster that are named where several have the same name.
_SHOWN: Final = 2


class Place(NamedTuple):
    """Where a row of a roster is: its sheet and number, as in `SheetRow`, and its place in the file of rows."""

    sheet: int
    number: int
    offset: int
    length: int


@dataclass(slots=True)
class JoinedRow:
    """What a row says, with what it has from others.

    Attributes:
        cells: the cells that are not empty, by field.
        taken: which of them are from another row.
        left_open: the fields that a roster has, and that this row takes from none.
        said: why not.
        unclear: the field that this makes unclear by itself, and a name of the reason, if there is one.

    """

    cells: Cells
    taken: dict[Field, Place] = field(default_factory=dict)
    left_open: frozenset[Field] = frozenset()
    said: str = ""
    unclear: tuple[Field, Literal["several_names", "whose_code"]] | None = None


class SheetJoins:
    """The sheets of a file, as they are read together. What it keeps of a row of a roster takes about 500 bytes."""

    def __init__(
        self, file: ReadSheets, columns: Sequence[Columns | None], is_data: Callable[[SheetRow], bool]
    ) -> None:
        """Find the rosters of a file, and which of their rows are joined.

        Args:
            file: the file.
            columns: the columns of each of its sheets, None for one that is not read.
            is_data: returns whether a row is below the names of the columns, and no trailer.

        """
        self._file = file
        self._columns = columns
        about_videos = [one is not None and "video_id" in one.fields for one in columns]
        self.rosters = frozenset(
            sheet
            for sheet, one in enumerate(columns)
            if any(about_videos) and one is not None and "video_id" not in one.fields and _KEYS & one.fields.keys()
        )
        self._by_key: dict[tuple[int, bytes], list[Place]] = {}
        self._used: Counter[tuple[int, int]] = Counter()
        if self.rosters:
            self._index(is_data)
            self._count(is_data)

    def is_judged(self, row: SheetRow) -> bool:
        """Return whether a row is judged by itself: of rosters, only rows with a code that no other row takes."""
        if row.sheet not in self.rosters:
            return True
        return bool(_ONE_CODE & self._cells(row).keys()) and self._used[row.sheet, row.number] != 1

    def joined(self, row: SheetRow) -> JoinedRow:
        """Return what a row says, with what it has from others."""
        joined = JoinedRow(self._cells(row))
        if row.sheet in self.rosters:
            return joined
        for sheet in sorted(self.rosters):
            self._join(joined, sheet)
        return joined

    def _join(self, joined: JoinedRow, sheet: int) -> None:
        found, by_handle = self._find(joined.cells, sheet)
        offered = self._offered(sheet)
        if len(found) != 1:
            lacking = offered - joined.cells.keys()
            joined.left_open |= lacking
            joined.said = self._why_not(found, sheet)
            # What is the name of several creators is not taken for a handle.
            if found and not by_handle and "creator_id" in offered and not _has_handle(joined.cells):
                joined.unclear = ("creator_id", "several_names")
            elif found and "secret" in lacking:
                joined.unclear = ("secret", "whose_code")
            return
        [place] = found
        theirs = self._cells(self._file.at(place.offset, place.length))
        if self._used[place.sheet, place.number] > 1 and not _ONE_CODE & joined.cells.keys():
            joined.left_open |= _ONE_CODE & theirs.keys()
            joined.unclear = ("secret", "whose_code")
            joined.said = (
                f" Row {place.number} of sheet {sheet + 1} has one code, and several rows have its name or handle."
            )
            theirs = {name: text for name, text in theirs.items() if name not in _ONE_CODE}
        theirs.pop("name", None)
        # What a row calls its creator was a name, where a roster has the handle for it.
        own = joined.cells.keys() - (set() if by_handle or _has_handle(joined.cells) else {"creator_id"})
        for name, text in theirs.items():
            if name not in own:
                joined.cells[name] = text
                joined.taken[name] = place

    def _why_not(self, found: Sequence[Place], sheet: int) -> str:
        if not found:
            return f" Sheet {sheet + 1}, which could say it, has no row with this name or handle."
        rows = " and ".join(str(place.number) for place in found[:_SHOWN])
        return f" In sheet {sheet + 1}, several rows have this name or handle, such as {rows}."

    def _find(self, cells: Cells, sheet: int) -> tuple[list[Place], bool]:
        """Return the rows of a roster with a row's handle, or else with its name, and whether it is the handle.

        Of two rows with handles the name makes no difference.
        """
        handle = _handle(cells)
        found = [] if handle is None else self._by_key.get((sheet, _hashed("handle", handle)), [])
        if found:
            return found, True
        name = _name(cells)
        kind = "name without handle" if _has_handle(cells) else "name"
        return ([] if name is None else self._by_key.get((sheet, _hashed(kind, name)), [])), False

    def _offered(self, sheet: int) -> frozenset[Field]:
        columns = self._columns[sheet]
        return frozenset() if columns is None else frozenset(columns.fields) - {"name"}

    def _index(self, is_data: Callable[[SheetRow], bool]) -> None:
        for offset, length, row in self._file.located():
            if row.sheet not in self.rosters or not is_data(row):
                continue
            cells = self._cells(row)
            place = Place(row.sheet, row.number, offset, length)
            handle = _handle(cells)
            name = _name(cells)
            keys = [] if handle is None else [_hashed("handle", handle)]
            if name is not None:
                keys += [_hashed("name", name)] + ([_hashed("name without handle", name)] if handle is None else [])
            for key in keys:
                # More than are shown make no difference.
                places = self._by_key.setdefault((row.sheet, key), [])
                if len(places) < _SHOWN:
                    places.append(place)

    def _count(self, is_data: Callable[[SheetRow], bool]) -> None:
        """Count which rows of rosters would give their code to how many rows."""
        giving = [sheet for sheet in self.rosters if _ONE_CODE & self._offered(sheet)]
        if not giving:
            return
        for row in self._file:
            if row.sheet in self.rosters or not is_data(row):
                continue
            cells = self._cells(row)
            if not _ONE_CODE & cells.keys():
                for sheet in giving:
                    found, _ = self._find(cells, sheet)
                    if len(found) == 1:
                        self._used[found[0].sheet, found[0].number] += 1

    def _cells(self, row: SheetRow) -> Cells:
        columns = self._columns[row.sheet]
        if columns is None:
            return {}
        fields: Mapping[Field, int] = columns.fields
        return {name: row.cells[index] for name, index in fields.items() if index < len(row.cells) and row.cells[index]}


def _handle(cells: Cells) -> str | None:
    """Return the creator's handle, in canonical form: as the row says it, or else as the link of the post does."""
    text = cells.get("creator_id")
    if text is None:
        return creator_of_link(cells.get("video_id", ""))
    try:
        return creator_name(canonical_creator_id(text))
    except Unusable:
        return None


def _has_handle(cells: Cells) -> bool:
    """Return whether a row says a creator's handle, and not what may be a name as well."""
    text = cells.get("creator_id")
    if text is None:
        return _handle(cells) is not None
    return _handle(cells) is not None and ("name" in cells or text.startswith("@") or "/" in text)


def _name(cells: Cells) -> str | None:
    """Return the creator's name: what the row calls a name, and else what it calls the creator, if that may be one."""
    text = cells.get("name") or ("" if _has_handle(cells) else cells.get("creator_id", ""))
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()) or None


def _hashed(kind: str, key: str) -> bytes:
    """Return what stands for a key, which may be long."""
    return hashlib.blake2b(f"{kind} {key}".encode(), digest_size=16).digest()
