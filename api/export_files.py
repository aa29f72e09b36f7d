"""Exports as files: written whole or not at all, and checked against their own trailers.

The trailer shows what was lost or changed on the way. It is no signature: who changes a file on purpose can write
another trailer.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import os
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Annotated, Any, Final, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

# What the trailer of a dossier names in place of a list.
DOSSIER: Final = "dossier"
# The longest line there can be: what an event and a query hold is bounded, and a table quotes every quote.
MAX_LINE_BYTES: Final = 256 * 1024
# More than any cell of an export has.
MAX_CELL_CHARACTERS: Final = 131_072
_BLOCK: Final = 1 << 20


class ExportError(LookupError):
    """The file is no export, or not whole, or not as it was written; the message says which."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What a whole export says of itself."""

    events: int
    first: int | None
    last: int | None
    head: int
    upto: int
    sha256: str

    def __str__(self) -> str:
        """Say it in a line."""
        between = "" if self.first is None else f", positions {self.first:,} to {self.last:,}"
        searched = "" if self.upto == self.head else f" and was searched up to {self.upto:,}"
        return f"{self.events:,} events{between}, of a ledger that had reached {self.head:,}{searched}"


@dataclass(frozen=True, slots=True)
class VerifiedList:
    """What a whole export of a list says of itself."""

    name: str
    rows: int
    sha256: str

    def __str__(self) -> str:
        """Say it in a line."""
        return (
            f"{self.rows:,} lines of a dossier"
            if self.name == DOSSIER
            else f"{self.rows:,} rows of the list of {self.name}"
        )


@contextlib.contextmanager
def written_atomically(path: Path) -> Iterator[IO[bytes]]:
    """Write a file beside its place, readable only by its owner, and move it there when it is whole and on the disk."""
    fresh = path.with_name(f"{path.name}.part-{os.getpid()}")
    try:
        with open(fresh, "xb", opener=_private) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(path)
    finally:
        fresh.unlink(missing_ok=True)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def digest_of(trailer: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a trailer's other fields, in hexadecimal: of its JSON with keys sorted and no spaces."""
    content = {name: value for name, value in trailer.items() if name != "trailer_sha256"}
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_UTC_Z | orjson.OPT_SORT_KEYS)).hexdigest()


def verify(path: Path) -> Verified:
    """Check an export of events, as `verify_export` does."""
    found = verify_export(path)
    if isinstance(found, VerifiedList):
        raise ExportError(f"{path} is an export of the list of {found.name}, and not of events.")
    return found


def verify_export(path: Path) -> Verified | VerifiedList:
    """Check an export of events or of a list against its trailer, in constant memory.

    Raises:
        ExportError: it was cut off, or changed, or is none.
        OSError: it cannot be read.

    """
    with path.open("rb") as file:
        begins, line = _last_line(file, file.seek(0, io.SEEK_END))
        trailer, unchanged = _trailer(line)
        if not unchanged:
            raise ExportError(f"{path} was changed: its trailer is not the original one. Export it again.")
        table = not line.startswith(b"{")
        digest, lines = hashlib.sha256(), 0
        for block in _blocks(file, begins):
            digest.update(block)
            lines += block.count(b"\n")
        if (digest.hexdigest(), begins) != (trailer.sha256, trailer.bytes):
            raise ExportError(f"{path} was changed: its SHA-256 differs from the one in its trailer. Export it again.")
        if isinstance(trailer, _ListTrailer):
            rows = _count_rows(file, begins) if table else lines
            if rows != trailer.rows:
                raise ExportError(f"{path} contains {rows:,} rows, but its trailer says {trailer.rows:,}.")
            return VerifiedList(trailer.list, trailer.rows, trailer.sha256)
        held = _rows(file, begins) if table else (lines, *_positions(file, begins))
    said = (trailer.events, trailer.first, trailer.last)
    if held != said:
        raise ExportError(f"{path} contains {_counted(*held)}, but its trailer says {_counted(*said)}.")
    return Verified(trailer.events, trailer.first, trailer.last, trailer.head, trailer.upto, trailer.sha256)


def _counted(events: int, first: int | None, last: int | None) -> str:
    return f"{events:,} events" + ("" if first is None or last is None else f", positions {first:,} to {last:,}")


def _last_line(file: IO[bytes], end: int) -> tuple[int, bytes]:
    """Return where the last line before a place begins, and the line; a file that was cut off does not end a line."""
    start = max(0, end - MAX_LINE_BYTES)
    file.seek(start)
    tail = file.read(end - start)
    if not tail.endswith(b"\n"):
        raise ExportError(_CUT_OFF)
    begins = tail[:-1].rfind(b"\n") + 1
    return start + begins, tail[begins:]


_NO_EVENT: Final = (
    "The file contains something that is not an event. It was changed, or it is not an export. Export it again."
)
_CUT_OFF: Final = "The file has no trailer. It is incomplete, or it is not an export. Export it again."


class _Trailer(BaseModel):
    """What is read of a trailer, and no other type for what it is not."""

    model_config = ConfigDict(strict=True, frozen=True)

    events: Annotated[int, Field(ge=0)]
    first: Annotated[int, Field(ge=1)] | None
    last: Annotated[int, Field(ge=1)] | None
    head: Annotated[int, Field(ge=0)]
    upto: Annotated[int, Field(ge=0)]
    bytes: Annotated[int, Field(ge=0)]
    sha256: str
    trailer_sha256: str

    @model_validator(mode="after")
    def _first_and_last_stand_together(self) -> Self:
        if (self.first is None) is not (self.last is None):
            raise ValueError
        return self


class _ListTrailer(BaseModel):
    """What is read of the trailer of a list."""

    model_config = ConfigDict(strict=True, frozen=True)

    list: str
    rows: Annotated[int, Field(ge=0)]
    bytes: Annotated[int, Field(ge=0)]
    sha256: str
    trailer_sha256: str


def _trailer(line: bytes) -> tuple[_Trailer | _ListTrailer, bool]:
    """Return what the last line of an export says, and whether it is as it was written."""
    try:
        if line.startswith(b"{"):
            trailer = orjson.loads(line)["trailer"]
        else:
            (cells,) = csv.reader([line.decode()])
            if cells[0] != "end":
                raise ExportError(_CUT_OFF)
            trailer = orjson.loads(cells[-1])
        found = (_ListTrailer if "list" in trailer else _Trailer).model_validate(trailer)
        return found, found.trailer_sha256 == digest_of(trailer)
    except (ValueError, LookupError, TypeError, csv.Error):
        raise ExportError(_CUT_OFF) from None


def _blocks(file: IO[bytes], upto: int) -> Iterator[bytes]:
    file.seek(0)
    while upto and (block := file.read(min(_BLOCK, upto))):
        upto -= len(block)
        yield block


def _positions(file: IO[bytes], upto: int) -> tuple[int | None, int | None]:
    """Return the position of the first and of the last event, of one a line."""
    if upto == 0:
        return None, None
    file.seek(0)
    first = file.readline(MAX_LINE_BYTES)
    _, last = _last_line(file, upto)
    try:
        return int(orjson.loads(first)["position"]), int(orjson.loads(last)["position"])
    except (ValueError, LookupError, TypeError):
        raise ExportError(_NO_EVENT) from None


def _rows(file: IO[bytes], upto: int) -> tuple[int, int | None, int | None]:
    """Count the rows of a table, without its head, and return the first and the last position."""
    count, first, last = 0, None, None
    try:
        for row in _table_rows(file, upto):
            count, last = count + 1, int(row[0])
            first = last if first is None else first
    except ExportError:
        raise
    except (ValueError, LookupError):
        raise ExportError(_NO_EVENT) from None
    return count, first, last


def _count_rows(file: IO[bytes], upto: int) -> int:
    """Count the rows of a table, without its head."""
    return sum(1 for _ in _table_rows(file, upto))


def _table_rows(file: IO[bytes], upto: int) -> Iterator[list[str]]:
    """Yield the rows of a table, without its head. A cell may hold the end of a line."""
    file.seek(0)

    def lines() -> Iterator[str]:
        left = upto
        while left > 0 and (line := file.readline()):
            left -= len(line)
            yield line.decode(errors="replace")

    # The limit is the process's, and other readers need another.
    csv.field_size_limit(MAX_CELL_CHARACTERS)
    try:
        rows = csv.reader(lines())
        next(rows, None)
        yield from rows
    except csv.Error:
        message = "The file contains a cell that is too long for an export. It was changed. Export it again."
        raise ExportError(message) from None
