"""Sheets as files: CSV, TSV and XLSX, read into rows of text by a process of its own.

A workbook is a program's worth of compressed XML that somebody sent. So it is read in a process that has no secrets and
no connections, and whose memory and time the kernel limits: what is too large ends that process, and nothing else. It
writes lines of JSON: a list `[sheet, number, cells]` for each row that is not empty, then one object with what there is
to say of the file. What a file is follows from its content. Its name and its media type are not believed.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import itertools
import os
import re
import resource
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, time
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple, Self

import orjson

from api.sheet_columns import column_index
from api.spreadsheet_cells import BYTE_ORDER_MARK, unguarded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MIB: Final = 1024 * 1024
MAX_FILE_BYTES: Final = 32 * MIB
# Of data. A few more may be above them: titles, and the names of the columns.
MAX_ROWS: Final = 100_000
MAX_ROWS_ABOVE: Final = 10
MAX_COLUMNS: Final = 256
MAX_CELL_CHARACTERS: Final = 4_096
MAX_SHEETS: Final = 32
# Of a workbook, which is compressed.
MAX_UNPACKED_BYTES: Final = 512 * MIB
MAX_PARTS: Final = 5_000
# Of the process that reads.
MAX_READER_MEMORY_BYTES: Final = 1024 * MIB
MAX_READER_S: Final = 60
MAX_READ_BYTES: Final = 256 * MIB
MAX_EXACT_NUMBER: Final = 10**15
MAX_MERGED: Final = 100_000

_ZIP: Final = b"PK\x03\x04"
# The container of encrypted workbooks, and of those of Excel 2003 and before.
_OLE: Final = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_MERGED_CELL: Final = re.compile(rb'<(?:\w+:)?mergeCell\s[^>]{0,80}?\bref="([A-Z]{1,3})(\d{1,7}):[A-Z]{1,3}(\d{1,7})"')
_MERGED_CELL_BYTES: Final = 200
_SEPARATORS: Final = ",;\t|"
_SAMPLE_LINES: Final = 20
_UTF_16: Final = (b"\xff\xfe", b"\xfe\xff")

_TOO_MUCH: Final = (
    f"Reading this sheet takes more than {MAX_READER_MEMORY_BYTES // MIB:,} MiB of memory or {MAX_READER_S} seconds. "
    "Save only the rows and columns that are needed, as CSV, and send that."
)
_NOT_EXCEL: Final = (
    "This workbook is encrypted, or in the format of Excel 2003 and before. Save it as .xlsx without a password."
)
_NOT_READABLE: Final = (
    "This workbook is damaged, or is none. Open it in a spreadsheet program and save it as .xlsx again."
)
_NOT_UTF_8: Final = "This table is not valid UTF-8. Save it as `CSV UTF-8`, or as .xlsx."
_NUL: Final = "This table contains NUL bytes. It is no text. Save it as `CSV UTF-8`, or as .xlsx."
_EPOCH_1904: Final = (
    "This workbook counts its days from 1904. Turn off `1904 date system` in its options, check its dates, and save it "
    "again."
)
_UNCLOSED: Final = (
    f"A cell in row {{}} or after it has more than {MAX_CELL_CHARACTERS:,} characters. Perhaps a quote is not closed."
)


class SheetError(LookupError):
    """The file cannot be read as a sheet; the message says why, and what to do. Nothing is recorded of it."""


class SheetRow(NamedTuple):
    """One row: the sheet, counted from 0, the row's number there, counted from 1, and the text of its cells."""

    sheet: int
    number: int
    cells: list[str]


@dataclass(frozen=True, slots=True)
class ReadSheets:
    """A file that was read.

    Attributes:
        names: the names of its sheets; a table has one, without a name.
        hidden: the names of sheets that are hidden, and are not read.
        rows: the number of rows that are not empty, those above the data included.

    """

    names: list[str]
    hidden: list[str]
    rows: int
    lines: IO[bytes]

    def __iter__(self) -> Iterator[SheetRow]:
        """Yield the rows, from the first one on."""
        self.lines.seek(0)
        for line in itertools.islice(self.lines, self.rows):
            yield SheetRow(*orjson.loads(line))

    def located(self) -> Iterator[tuple[int, int, SheetRow]]:
        """Yield the rows with their places, by which `at` finds them: the first byte, and how many there are."""
        self.lines.seek(0)
        offset = 0
        for line in itertools.islice(self.lines, self.rows):
            yield offset, len(line), SheetRow(*orjson.loads(line))
            offset += len(line)

    def at(self, offset: int, length: int) -> SheetRow:
        """Return the row at a place, also while others are read."""
        return SheetRow(*orjson.loads(os.pread(self.lines.fileno(), length, offset)))

    def __enter__(self) -> Self:
        """Keep the rows until the context ends."""
        return self

    def __exit__(self, *_: object) -> None:
        """Forget the rows."""
        self.lines.close()


async def read_sheets(file: IO[bytes]) -> ReadSheets:
    """Read a file in a process of its own.

    Args:
        file: the file, in which the process reads for itself: it needs a descriptor.

    Raises:
        SheetError: it is no sheet that can be read.

    """
    with contextlib.ExitStack() as until_read:
        lines = until_read.enter_context(tempfile.TemporaryFile())
        file.flush()
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        search = os.pathsep.join(path for path in sys.path if path)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", __name__, *map(str, (MAX_READER_MEMORY_BYTES, MAX_READER_S, MAX_UNPACKED_BYTES))),
            stdin=file.fileno(),
            stdout=lines.fileno(),
            stderr=asyncio.subprocess.DEVNULL,
            env={"PYTHONPATH": search, "LANG": "C.UTF-8"},  # no secret of this process
        )
        try:
            async with asyncio.timeout(MAX_READER_S):
                await process.wait()
        except TimeoutError:
            raise SheetError(_TOO_MUCH) from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        said = _last_line(lines) if process.returncode == 0 else None
        if said is None or "error" in said:
            raise SheetError(_TOO_MUCH if said is None else said["error"])
        until_read.pop_all()
    return ReadSheets(said["names"], said["hidden"], said["rows"], lines)


def _last_line(lines: IO[bytes]) -> dict[str, Any] | None:
    """Return what the process says at its end, or nothing if it did not come so far."""
    size = lines.seek(0, io.SEEK_END)
    lines.seek(max(0, size - MAX_SHEETS * 1_024))
    tail = lines.read()
    if not tail.endswith(b"\n"):
        return None
    try:
        said = orjson.loads(tail[tail[:-1].rfind(b"\n") + 1 :])
    except orjson.JSONDecodeError:
        return None
    return said if isinstance(said, dict) else None


def _main(memory_bytes: int, seconds: int, unpacked_bytes: int) -> None:
    """Read the standard input, as the process that `read_sheets` starts."""
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: MAX_READ_BYTES,
        resource.RLIMIT_CORE: 0,
    }
    for limit, most in limits.items():
        with contextlib.suppress(ValueError, OSError):  # a system that has no such limit
            resource.setrlimit(limit, (most, most))
    out = sys.stdout.buffer
    try:
        said: Mapping[str, Any] = _read(sys.stdin.buffer, out, unpacked_bytes)
    except SheetError as error:
        said = {"error": str(error)}
    except (MemoryError, OSError):
        said = {"error": _TOO_MUCH}
    out.write(orjson.dumps(said, option=orjson.OPT_APPEND_NEWLINE))
    out.flush()


def _read(file: IO[bytes], out: IO[bytes], unpacked_bytes: int) -> Mapping[str, Any]:
    start = file.read(len(_OLE))
    file.seek(0)
    if start.startswith(_OLE):
        raise SheetError(_NOT_EXCEL)
    sheets = (
        _workbook(file, unpacked_bytes) if start.startswith(_ZIP) else _Sheets([""], [], iter([_table(file, start)]))
    )
    rows = 0
    for sheet, numbered in enumerate(sheets.rows):
        for number, cells in numbered:
            texts = _texts(cells, number)
            if texts:
                rows += 1
                if rows > MAX_ROWS + MAX_ROWS_ABOVE:
                    raise SheetError(f"A file must have at most {MAX_ROWS:,} rows. Send the rest as another file.")
                out.write(orjson.dumps([sheet, number, texts], option=orjson.OPT_APPEND_NEWLINE))
    return {"names": sheets.names, "hidden": sheets.hidden, "rows": rows}


class _Sheets(NamedTuple):
    names: list[str]
    hidden: list[str]
    rows: Iterator[Iterator[tuple[int, Sequence[Any]]]]


def _workbook(file: IO[bytes], unpacked_bytes: int) -> _Sheets:
    """Return the visible sheets of a workbook, whose rows are read when they are asked for."""
    # Only a workbook needs it, and importing it takes as long as reading a small table.
    import openpyxl  # noqa: PLC0415
    from openpyxl.utils.datetime import MAC_EPOCH  # noqa: PLC0415

    with _readable(), zipfile.ZipFile(file) as parts:
        entries = parts.infolist()
    if len(entries) > MAX_PARTS or sum(entry.file_size for entry in entries) > unpacked_bytes:
        raise SheetError(f"This workbook has more than {unpacked_bytes // MIB:,} MiB when it is unpacked.")
    file.seek(0)
    with _readable():
        book = openpyxl.load_workbook(file, read_only=True, data_only=True, keep_links=False)
        shown = [sheet for sheet in book.worksheets if sheet.sheet_state == "visible"]
        hidden = [sheet.title for sheet in book.worksheets if sheet.sheet_state != "visible"]
    if book.epoch == MAC_EPOCH:
        raise SheetError(_EPOCH_1904)
    if not shown:
        raise SheetError(_NOT_READABLE)
    if len(shown) > MAX_SHEETS:
        raise SheetError(f"This workbook has more than {MAX_SHEETS} sheets. Send it in several files.")
    return _Sheets([sheet.title for sheet in shown], hidden, (_sheet_rows(sheet) for sheet in shown))


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """Take whatever goes wrong with a workbook for damage: it fails in as many ways as there are kinds of damage."""
    try:
        yield
    except (SheetError, MemoryError):
        raise
    except Exception as error:
        raise SheetError(_NOT_READABLE) from error


def _sheet_rows(sheet: Any) -> Iterator[tuple[int, Sequence[Any]]]:
    """Yield the rows of a sheet. A cell that is merged over several rows has its value in each of them, as it looks."""
    with _readable():
        merged = _merged(sheet)
        # What a workbook says of its own size is not believed.
        sheet.reset_dimensions()
        # By column: the value, and the last row that has it.
        going_on: dict[int, tuple[Any, int]] = {}
        for number, cells in enumerate(sheet.iter_rows(values_only=True), 1):
            begun = merged.pop(number, {})
            if not begun and not going_on:
                yield number, cells
                continue
            row = [*cells, *[None] * (1 + max([*begun, *going_on]) - len(cells))]
            if any(cell not in {None, ""} for cell in cells):  # else it is no row of data
                for column, (value, _) in going_on.items():
                    row[column] = value
            going_on |= {column: (row[column], last) for column, last in begun.items()}
            going_on = {column: (value, last) for column, (value, last) in going_on.items() if last > number}
            yield number, row


def _merged(sheet: Any) -> dict[int, dict[int, int]]:
    """Return the cells that are merged over several rows: the last row, by the first row and the column from 0.

    They are stated behind the rows, so they are looked for beforehand: a workbook is read row by row.
    """
    merged: dict[int, dict[int, int]] = {}
    count = 0
    with sheet.parent._archive.open(sheet._worksheet_path) as part:  # noqa: SLF001 - the library reads no merged cells so
        tail = b""
        while block := part.read(MIB):
            text = tail + block
            end = 0
            for found in _MERGED_CELL.finditer(text):
                end = found.end()
                first, last = int(found[2]), int(found[3])
                column = column_index(found[1].decode())
                count += 1
                if count > MAX_MERGED:
                    raise SheetError(f"A sheet has more than {MAX_MERGED:,} merged cells. Unmerge them.")
                if first < last and column < MAX_COLUMNS:
                    merged.setdefault(first, {})[column] = last
            tail = text[max(end, len(text) - _MERGED_CELL_BYTES) :]
    return merged


def _table(file: IO[bytes], start: bytes) -> Iterator[tuple[int, Sequence[Any]]]:
    """Yield the rows of a table, whatever separates its columns."""
    encoding = "utf-16" if start.startswith(_UTF_16) else "utf-8-sig"
    number = 0
    try:
        text = io.TextIOWrapper(file, encoding, errors="strict", newline="")
        sample = list(itertools.islice(text, _SAMPLE_LINES))
        separator = max(_SEPARATORS, key=lambda one: sum(line.count(one) for line in sample))
        csv.field_size_limit(MAX_CELL_CHARACTERS)
        for number, cells in enumerate(csv.reader(_lines(itertools.chain(sample, text)), delimiter=separator), 1):
            yield number, [unguarded(cell) for cell in cells]
    except UnicodeError as error:
        raise SheetError(_NOT_UTF_8) from error
    except csv.Error as error:
        raise SheetError(_UNCLOSED.format(number + 1)) from error


def _lines(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        if "\0" in line:
            raise SheetError(_NUL)
        yield line


def _texts(cells: Sequence[Any], number: int) -> list[str]:
    """Return the cells of a row as text, without the empty ones at its end."""
    texts = [_text(cell) for cell in cells[: MAX_COLUMNS + 1]]
    while texts and not texts[-1]:
        texts.pop()
    if len(texts) > MAX_COLUMNS or any(cell not in {None, ""} for cell in cells[MAX_COLUMNS:]):
        raise SheetError(f"Row {number:,} has more than {MAX_COLUMNS} columns. Remove those that are not needed.")
    if any(len(text) > MAX_CELL_CHARACTERS for text in texts):
        raise SheetError(f"Row {number:,} has a cell with more than {MAX_CELL_CHARACTERS:,} characters. Shorten it.")
    return texts


def _text(cell: Any) -> str:  # noqa: PLR0911 - one line for each kind of cell
    """Return the value of a cell as it would be written: a day as YYYY-MM-DD, a number in full."""
    match cell:
        case None:
            return ""
        case str():
            return cell.removeprefix(BYTE_ORDER_MARK).strip()
        case bool():
            return "true" if cell else "false"
        # Of a larger number, a spreadsheet keeps 15 digits. Written in full, the others would look as if they meant
        # something.
        case float() if cell.is_integer() and abs(cell) < MAX_EXACT_NUMBER:
            return str(int(cell))
        case datetime() if cell.time() == time():
            return cell.date().isoformat()
        case datetime():
            return cell.replace(microsecond=0, tzinfo=None).isoformat(" ")
        case date():
            return cell.isoformat()
        case _:
            return str(cell)


if __name__ == "__main__":
    _main(*map(int, sys.argv[1:]))
