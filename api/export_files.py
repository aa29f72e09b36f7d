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
from typing import IO, TYPE_CHECKING, Annotated, Final, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# The longest trailer there can be: the query in it is bounded, and a table quotes every quote.
MAX_TRAILER_BYTES: Final = 64 * 1024
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


@contextlib.contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """Write a file beside its place, and move it there when it is whole and on the disk."""
    fresh = path.with_name(f"{path.name}.part-{os.getpid()}")
    try:
        with fresh.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(path)
    finally:
        fresh.unlink(missing_ok=True)


def verify(path: Path) -> Verified:
    """Check an export against its trailer, in constant memory.

    Raises:
        ExportError: it was cut off, or changed, or is none.
        OSError: it cannot be read.

    """
    with path.open("rb") as file:
        begins, line = _last_line(file)
        trailer = _trailer(line)
        table = not line.startswith(b"{")
        digest, lines = hashlib.sha256(), 0
        for block in _blocks(file, begins):
            digest.update(block)
            lines += block.count(b"\n")
        if digest.hexdigest() != trailer.sha256:
            raise ExportError(f"{path} was changed: its SHA-256 is not the one in its trailer. Export it again.")
        events = _rows(file, begins) if table else lines
    if events != trailer.events:
        raise ExportError(f"{path} holds {events:,} events, and its trailer says {trailer.events:,}.")
    return Verified(events, trailer.first, trailer.last, trailer.head, trailer.upto, trailer.sha256)


def _last_line(file: IO[bytes]) -> tuple[int, bytes]:
    """Return where the last line begins, and the line; a file that was cut off does not end a line."""
    size = file.seek(0, io.SEEK_END)
    start = max(0, size - MAX_TRAILER_BYTES)
    file.seek(start)
    tail = file.read()
    if not tail.endswith(b"\n"):
        raise ExportError(_CUT_OFF)
    begins = tail[:-1].rfind(b"\n") + 1
    return start + begins, tail[begins:]


_CUT_OFF: Final = "The file ends without a trailer: it was cut off, or is no export. Export it again."


class _Trailer(BaseModel):
    """What is read of a trailer, and no other type for what it is not."""

    model_config = ConfigDict(strict=True, frozen=True)

    events: Annotated[int, Field(ge=0)]
    first: Annotated[int, Field(ge=1)] | None
    last: Annotated[int, Field(ge=1)] | None
    head: Annotated[int, Field(ge=0)]
    upto: Annotated[int, Field(ge=0)]
    sha256: str

    @model_validator(mode="after")
    def _first_and_last_stand_together(self) -> Self:
        if (self.first is None) is not (self.last is None):
            raise ValueError
        return self


def _trailer(line: bytes) -> _Trailer:
    """Return what the last line of an export says."""
    try:
        if line.startswith(b"{"):
            trailer = orjson.loads(line)["trailer"]
        else:
            (cells,) = csv.reader([line.decode()])
            if cells[0] != "end":
                raise ExportError(_CUT_OFF)
            trailer = orjson.loads(cells[-1])
        return _Trailer.model_validate(trailer)
    except (ValueError, LookupError, TypeError, csv.Error):
        raise ExportError(_CUT_OFF) from None


def _blocks(file: IO[bytes], upto: int) -> Iterator[bytes]:
    file.seek(0)
    while upto and (block := file.read(min(_BLOCK, upto))):
        upto -= len(block)
        yield block


def _rows(file: IO[bytes], upto: int) -> int:
    """Count the rows of a table, without its head; a cell may hold the end of a line."""
    file.seek(0)

    def lines() -> Iterator[str]:
        left = upto
        while left > 0 and (line := file.readline()):
            left -= len(line)
            yield line.decode(errors="replace")

    try:
        return max(sum(1 for _ in csv.reader(lines())) - 1, 0)
    except csv.Error:
        message = "The file holds a cell that is longer than any of an export: it was changed. Export it again."
        raise ExportError(message) from None
