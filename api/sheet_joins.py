"""Sheets of one workbook read together: what the rows of one leave out, a row of another one may have.

Often one sheet has a row for each post, and another one, a roster, a row for each creator: their handle, their rate, or
their code. A sheet with a column for videos is about codes. A sheet without one, beside such sheets, is joined with
them: by the code, by the creator's handle, or else by the creator's name. A name stands for the one handle that the
rosters have for it. What a row says itself always counts.

A row takes what it leaves out from the one row of a roster that is about its code: one that has the same code, or one
that no other row could be about. From any other row of its creator it takes only what is true of all codes of that
creator. If there are several such rows, or none, it takes nothing, and what is unclear of it says so. Rows of a roster
that have a code, and that no row is about, are judged by themselves.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from domain.pasted import Unusable, canonical_creator_id, creator_name, creator_of_link, secret_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from api.sheet_columns import Columns, Field
    from api.sheet_files import ReadSheets, SheetRow

    Cells = dict[Field, str]

# What names one code.
_ONE_CODE: Final[frozenset[Field]] = frozenset({"secret", "code_id"})
# What a row about a creator says of every code of that creator. All else is of one code.
_OF_CREATOR: Final[frozenset[Field]] = frozenset({"creator_id", "terms_version", "permission"})
_KEYS: Final[frozenset[Field]] = frozenset({"creator_id", "name"})
# Rows of a roster that are named where several have the same name.
_SHOWN: Final = 2


class _Code(NamedTuple):
    """Which code a row names, by what stands for its secret and its id."""

    secret: bytes | None = None
    code_id: bytes | None = None

    def __bool__(self) -> bool:
        return self.secret is not None or self.code_id is not None

    def is_same(self, other: _Code) -> bool:
        """Return whether both are certainly one code."""
        both = [(mine, its) for mine, its in zip(self, other, strict=True) if mine is not None and its is not None]
        return bool(both) and all(mine == its for mine, its in both)


class _Who(NamedTuple):
    """Which creator and which code a row is about.

    Attributes:
        handle: what stands for the creator's handle.
        is_handle: whether that is certainly a handle. In some columns it may be a name as well.
        name: the creator's name, as it is compared.
        like_name: among which rows of rosters, of those without a certain handle, it is looked for by its name.
        code: the code.

    """

    handle: bytes | None
    is_handle: bool
    name: str | None
    like_name: Literal["without handle", "perhaps without handle"]
    code: _Code


class Place(NamedTuple):
    """Where a row of a roster is: its sheet and number, as in `SheetRow`, and its place in the file of rows.

    And what it is about: `handle` stands for a handle that is certainly one.
    """

    sheet: int
    number: int
    offset: int
    length: int
    handle: bytes | None
    code: _Code


@dataclass(slots=True)
class JoinedRow:
    """What a row says, with what it has from others.

    Attributes:
        cells: the cells that are not empty, by field.
        taken: which of them are from another row.
        left_open: the fields that a roster has, and that this row takes from none, with the reason as a sentence.
        unclear: the field that this makes unclear by itself, and a name of the reason, if there is one.

    """

    cells: Cells
    taken: dict[Field, Place] = field(default_factory=dict)
    left_open: dict[Field, str] = field(default_factory=dict)
    unclear: tuple[Field, Literal["several_names", "whose_code"]] | None = None


class SheetJoins:
    """The sheets of a file, as they are read together. What it keeps of a row of a roster takes about 700 bytes.

    Attributes:
        rosters: the sheets that others are joined with, counted from 0.
        not_used: how many rows of each roster are neither joined with any row nor judged by themselves.

    """

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
        self.rosters: Sequence[int] = [
            sheet
            for sheet, one in enumerate(columns)
            if any(about_videos) and one is not None and "video_id" not in one.fields and _KEYS & one.fields.keys()
        ]
        self.not_used: Counter[int] = Counter()
        self._by_key: dict[tuple[int, bytes], list[Place]] = {}
        self._handles: set[bytes] = set()
        self._of_name: dict[str, list[Place]] = {}
        # How many rows have the very code of a row of a roster, and how many could be what it is about.
        self._with_its_code: Counter[tuple[int, int]] = Counter()
        self._could_be_its: Counter[tuple[int, int]] = Counter()
        if self.rosters:
            self._index(is_data)
            self._count(is_data)

    def is_judged(self, row: SheetRow) -> bool:
        """Return whether a row is judged by itself: of rosters, only rows with a code that no other row is about."""
        if row.sheet not in self.rosters:
            return True
        place = (row.sheet, row.number)
        has_code = bool(_ONE_CODE & self._cells(row).keys())
        return has_code and not self._with_its_code[place] and self._could_be_its[place] != 1

    def joined(self, row: SheetRow) -> JoinedRow:
        """Return what a row says, with what it has from others."""
        joined = JoinedRow(self._cells(row))
        if not self.rosters or row.sheet in self.rosters:
            return joined
        own = self._who(row.sheet, joined.cells)
        creator = self._creator(own)
        if len(creator) > 1:
            joined.unclear = ("creator_id", "several_names")
            joined.left_open["creator_id"] = _several(creator)
            return joined
        for place in creator:
            # What the row calls its creator was a name.
            joined.cells["creator_id"] = self._cells_at(place)["creator_id"]
            joined.taken["creator_id"] = place
        who = _resolved(own, creator)
        for sheet in self.rosters:
            self._join(joined, who, sheet)
        if _ONE_CODE & joined.cells.keys():
            joined.unclear = None  # another roster says it
        return joined

    def _join(self, joined: JoinedRow, who: _Who, sheet: int) -> None:
        found = self._find(who, sheet)
        if len(found) != 1:
            lacking = self._offered(sheet) - joined.cells.keys()
            joined.left_open |= dict.fromkeys(lacking, _several(found) if found else _none(sheet))
            if found and "secret" in lacking and not who.code:
                joined.unclear = ("secret", "whose_code")
            return
        [place] = found
        why_not = self._why_not_all(place, who)
        code = _code(joined.cells)
        if why_not is None and place.code and code and not code.is_same(place.code):
            # Two rosters have a code for it, and not the same one.
            why_not = f" Row {place.number} of sheet {sheet + 1} has another code than a row of another sheet."
            for name in _ONE_CODE:
                joined.cells.pop(name, None)
                joined.taken.pop(name, None)
        theirs = self._cells_at(place)
        for name, text in theirs.items():
            if name == "name" or name in joined.cells:
                continue
            if why_not is None or name in _OF_CREATOR:
                joined.cells[name] = text
                joined.taken[name] = place
            else:
                joined.left_open[name] = why_not
        if why_not is not None and place.code and not who.code and not self._with_its_code[place[:2]]:
            joined.unclear = ("secret", "whose_code")

    def _why_not_all(self, place: Place, who: _Who) -> str | None:
        """Return why a row does not take everything from one of a roster; None if that one is about the row's code."""
        key, named = place[:2], f" Row {place.number} of sheet {place.sheet + 1}"
        if place.code and who.code:
            return None if who.code.is_same(place.code) else f"{named} may be about another code."
        if self._with_its_code[key]:
            return f"{named} has the code of another row."
        if self._could_be_its[key] == 1:
            return None
        if place.code:
            return f"{named} has one code, and several rows have its name or handle."
        return f"{named} may be about any of several rows that have its name or handle."

    def _creator(self, who: _Who) -> Sequence[Place]:
        """Return the rows of rosters with the handles that a row's name may stand for, if the row has no handle."""
        if who.is_handle or who.name is None or who.handle in self._handles:
            return ()
        named = self._of_name.get(who.name, ())
        if len(named) == 1:
            # Beside a row with this name and a handle, there may be one with this name whose handle is not known.
            sheet = named[0].sheet
            columns = self._columns[sheet]
            others = self._by_key.get((sheet, _hashed("without handle", who.name)), ())
            if others and columns is not None and "creator_id" in columns.fields:
                return [named[0], others[0]]
        return named

    def _find(self, who: _Who, sheet: int) -> Sequence[Place]:
        """Return the rows of a roster with a row's code, or else with its creator's handle, or else the name.

        Of two rows with handles the name makes no difference.
        """
        for part in who.code:
            found = () if part is None else self._by_key.get((sheet, part), ())
            # Rows with two handles are never joined.
            same = [one for one in found if not who.is_handle or one.handle in {None, who.handle}]
            if same:
                return same
        found = () if who.handle is None else self._by_key.get((sheet, who.handle), ())
        if found or who.name is None:
            return found
        return self._by_key.get((sheet, _hashed(who.like_name, who.name)), ())

    def _offered(self, sheet: int) -> frozenset[Field]:
        columns = self._columns[sheet]
        return frozenset() if columns is None else frozenset(columns.fields) - {"name"}

    def _index(self, is_data: Callable[[SheetRow], bool]) -> None:
        for offset, length, row in self._file.located():
            if row.sheet not in self.rosters or not is_data(row):
                continue
            who = self._who(row.sheet, self._cells(row))
            handle = who.handle if who.is_handle else None
            place = Place(row.sheet, row.number, offset, length, handle, who.code)
            self.not_used[row.sheet] += not who.code
            keys = [key for key in (who.handle, *who.code) if key is not None]
            if handle is not None:
                self._handles.add(handle)
                if who.name is not None:
                    named = self._of_name.setdefault(who.name, [])
                    if len(named) < _SHOWN and handle not in {one.handle for one in named}:
                        named.append(place)
            elif who.name is not None:
                keys.append(_hashed("perhaps without handle", who.name))
                if who.handle is None:
                    keys.append(_hashed("without handle", who.name))
            for key in keys:
                # More than are shown make no difference.
                places = self._by_key.setdefault((row.sheet, key), [])
                if len(places) < _SHOWN:
                    places.append(place)

    def _count(self, is_data: Callable[[SheetRow], bool]) -> None:
        """Count which rows of rosters are about how many rows."""
        used: set[tuple[int, int]] = set()
        for row in self._file:
            if row.sheet in self.rosters or not is_data(row):
                continue
            own = self._who(row.sheet, self._cells(row))
            creator = self._creator(own)
            if len(creator) > 1:
                continue
            who = _resolved(own, creator)
            one_each = [found[0] for found in (self._find(who, sheet) for sheet in self.rosters) if len(found) == 1]
            for place in one_each:
                if place.code and who.code.is_same(place.code):
                    self._with_its_code[place[:2]] += 1
                elif not place.code or not who.code:
                    self._could_be_its[place[:2]] += 1
            used.update(place[:2] for place in (*creator, *one_each) if not place.code)
        self.not_used.subtract(sheet for sheet, _ in used)

    def _who(self, sheet: int, cells: Cells) -> _Who:
        columns = self._columns[sheet]
        return _who(cells, may_be_name=columns is not None and columns.creator_may_be_name)

    def _cells(self, row: SheetRow) -> Cells:
        columns = self._columns[row.sheet]
        if columns is None:
            return {}
        fields: Mapping[Field, int] = columns.fields
        return {name: row.cells[index] for name, index in fields.items() if index < len(row.cells) and row.cells[index]}

    def _cells_at(self, place: Place) -> Cells:
        return self._cells(self._file.at(place.offset, place.length))


def _who(cells: Cells, *, may_be_name: bool) -> _Who:
    """Return whom and what a row is about. Its header says whether what it calls its creator may be a name."""
    text = cells.get("creator_id")
    handle = _handle(cells)
    is_handle = handle is not None and (
        text is None or not may_be_name or "name" in cells or text.startswith("@") or "/" in text
    )
    named = cells.get("name") or ("" if is_handle or text is None else text)
    return _Who(
        None if handle is None else _hashed("handle", handle),
        is_handle,
        " ".join(unicodedata.normalize("NFKC", named).casefold().split()) or None,
        "without handle" if is_handle else "perhaps without handle",
        _code(cells),
    )


def _resolved(who: _Who, creator: Sequence[Place]) -> _Who:
    """Return whom a row is about, with the handle that its name stands for, if there is one."""
    return who._replace(handle=creator[0].handle, is_handle=True) if creator else who


def _handle(cells: Cells) -> str | None:
    """Return the creator's handle, in canonical form: as the row says it, or else as the link of the post does."""
    text = cells.get("creator_id")
    if text is None:
        return creator_of_link(cells.get("video_id", ""))
    try:
        return creator_name(canonical_creator_id(text))
    except Unusable:
        return None


def _code(cells: Cells) -> _Code:
    secret, code_id = cells.get("secret"), cells.get("code_id")
    return _Code(
        None if secret is None else _hashed("secret", secret_name(secret)),
        None if code_id is None else _hashed("code id", code_id.lower()),
    )


def _none(sheet: int) -> str:
    return f" Sheet {sheet + 1}, which could say it, has no row with this name or handle."


def _several(places: Sequence[Place]) -> str:
    one, other = places[:_SHOWN]
    if one.sheet == other.sheet:
        rows = f"{one.number} and {other.number}"
        return f" In sheet {one.sheet + 1}, several rows have this name or handle, such as {rows}."
    return (
        f" Row {one.number} of sheet {one.sheet + 1} and row {other.number} of sheet {other.sheet + 1} have this name, "
        "with two handles."
    )


def _hashed(kind: str, key: str) -> bytes:
    """Return what stands for a key, which may be long."""
    return hashlib.blake2b(f"{kind} {key}".encode(), digest_size=16).digest()
