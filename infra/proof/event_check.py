"""The events of a large bundle, checked by all processors of the machine.

Each event is checked by `verify.py`'s own code, a thousand at a time, in other processes. What is not exactly as it is
written by the program is not judged here: `Doubtful` is raised, and `verify.py` checks the bundle alone, as it would
without this, and says what is wrong.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections import deque
from concurrent.futures import BrokenExecutor, Executor, Future
from itertools import pairwise
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from infra.proof import verify

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# A piece ends with the first of these limits; so many pieces wait for their check, for each process.
PIECE_EVENTS: Final = 1_000
PIECE_BYTES: Final = 4 << 20
AHEAD: Final = 3
BLOCK_BYTES: Final = 1 << 16
# What guards a cell of the table does not count. Beside a quote or the end of a line it could be outside of a cell.
_GUARD: Final = b"'"
_OUTSIDE: Final = (b"'\"", b"\"'", b"\r'", b"'\r")


class Doubtful(Exception):
    """Something is not as the program writes it."""


class Checked(NamedTuple):
    """What is shown of each event of a piece, and the rows of the table that show the same, without guards."""

    levels: bytes
    rows: bytes


def check_piece(lines: Sequence[bytes], entries: Sequence[bytes], log_id: bytes) -> Checked | None:
    """Check events against their entries; return None if one is not as it was written, or not the one of its entry."""
    levels, table = bytearray(), io.StringIO(newline="")
    write = csv.writer(table).writerow
    try:
        for line, entry in zip(lines, entries, strict=True):
            event: dict[str, Any] = orjson.loads(line)
            if orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE) != line:
                return None
            levels.append(verify.level_of(event))
            verify.check_event(event, entry, log_id)
            write([event.get(column) for column in verify.CSV_COLUMNS])
    except (verify.Wrong, *verify.MALFORMED):
        return None
    rows = table.getvalue().encode()
    return None if b"\0" in rows else Checked(bytes(levels), rows.replace(_GUARD, b""))


class SpreadReading(verify.Reading):
    """Reads the events of a bundle as `verify.Reading` does, and has them checked by other processes."""

    def __init__(
        self, bundle: verify.Bundle, run: verify.Run, log_id: bytes, *, executor: Executor, processes: int
    ) -> None:
        """Take the processes that check."""
        super().__init__(bundle, run, log_id)
        self._executor = executor
        self._waiting = AHEAD * processes

    def __iter__(self) -> Iterator[tuple[verify.Event, int]]:
        """Yield the events with what is shown of each.

        Raises:
            Doubtful: what was read is not as it is written by the program.

        """
        waiting: deque[tuple[list[verify.Event], Future[Checked | None]]] = deque()
        last = 0
        with self.bundle.open("data/events.ndjson") as file, self.bundle.open("data/events.csv") as stored:
            table = _Table(stored)
            table.take(",".join(verify.CSV_COLUMNS).encode() + b"\r\n")
            pieces = _pieces(file)
            while True:
                while len(waiting) < self._waiting and (piece := next(pieces, None)):
                    events, entries = self._parsed(piece, last)
                    last = events[-1]["position"]
                    waiting.append((events, self._submit(piece, entries)))
                if not waiting:
                    break
                events, future = waiting.popleft()
                checked = _result(future)
                if checked is None:
                    raise Doubtful
                table.take(checked.rows)
                yield from zip(events, checked.levels, strict=True)
            table.end()

    def _submit(self, piece: Sequence[bytes], entries: Sequence[bytes]) -> Future[Checked | None]:
        try:
            return self._executor.submit(check_piece, piece, entries, self.log_id)
        except BrokenExecutor:
            raise Doubtful from None

    def _parsed(self, piece: Sequence[bytes], last: int) -> tuple[list[verify.Event], list[bytes]]:
        """Return the events of lines, whose positions must ascend, and their entries."""
        try:
            events = [orjson.loads(line) for line in piece]
            positions = [event["position"] for event in events]
            if any(after <= before for before, after in pairwise([last, *positions])):
                raise Doubtful
            return events, [self.run.entry(position) for position in positions]
        except (verify.Wrong, *verify.MALFORMED):
            raise Doubtful from None


def _result(future: Future[Checked | None]) -> Checked | None:
    try:
        return future.result()
    except BrokenExecutor:  # a process was killed, which says nothing of the bundle
        raise Doubtful from None


def _pieces(file: IO[bytes]) -> Iterator[list[bytes]]:
    piece, size = list[bytes](), 0
    while line := file.readline(verify.MAX_LINE_BYTES):
        piece.append(line)
        size += len(line)
        if len(piece) == PIECE_EVENTS or size >= PIECE_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


class _Table:
    """The table of a bundle, compared piece by piece."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._read = bytearray()
        self._last = b""
        self._utf_8 = codecs.getincrementaldecoder("utf-8")()

    def take(self, expected: bytes) -> None:
        """Raise `Doubtful` unless the table goes on with this, guards aside."""
        while len(self._read) < len(expected):
            if not self._more(max(len(expected) - len(self._read), BLOCK_BYTES)):
                raise Doubtful
        if self._read[: len(expected)] != expected:
            raise Doubtful
        del self._read[: len(expected)]

    def end(self) -> None:
        """Raise `Doubtful` unless the table ends here."""
        if self._more(BLOCK_BYTES) or self._read or self._last != b"\n":
            raise Doubtful

    def _more(self, most: int) -> bool:
        """Read on, without guards; return whether there was more."""
        block = self._file.read(most)
        try:
            self._utf_8.decode(block, final=not block)
        except UnicodeDecodeError:
            raise Doubtful from None
        if any(unusual in self._last + block for unusual in _OUTSIDE):
            raise Doubtful
        self._last = block[-1:] or self._last
        self._read += block.replace(_GUARD, b"")
        return bool(block)
