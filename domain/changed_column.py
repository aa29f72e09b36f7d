"""Which column of a stored event was changed, found from its leaf hash alone.

A leaf binds all columns together, so a row that does not fit its leaf does not tell which of them is wrong. But if all
columns but one are right, the right value of that one gives the leaf again. So likely values are tried, column after
column: those that differ in one byte, times and numbers nearby, the values that related events have in the same column,
and no value. A hit is certain. Without one, more was changed, and only a copy of the row can tell what.
"""

from __future__ import annotations

import hashlib
import string
from datetime import UTC, datetime, timedelta
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID

from domain.log_entry import StoredEvent, UnencodableEvent, content, entry_of, envelope, hashed
from domain.merkle import leaf_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

# Values that are tried: a few seconds of one processor.
MAX_TRIED: Final = 400_000
# Numbers nearby, and times nearby in each unit.
NEARBY: Final = 100

_UNITS: Final = (
    *(timedelta(microseconds=1), timedelta(milliseconds=1), timedelta(seconds=1), timedelta(minutes=1)),
    *(timedelta(hours=1), timedelta(days=1), timedelta(days=7)),
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_CHARACTERS: Final = string.printable
# Those with the fewest candidates first.
_SLOW: Final = ("event_id", "actor_key", "command_id", "causation_id", "key_id", "stream_id", "creator_stream")
_SLOWEST: Final = ("commitment", "body", "sealed")
_ORDER: Final = (
    *(name for name in StoredEvent._fields if name not in {"position", *_SLOW, *_SLOWEST}),
    *(*_SLOW, *_SLOWEST),
)
# In which layer a column is; all others are in the content. `format` begins each layer.
_OF_ENTRY: Final = frozenset({"stream_id", "creator_stream", "format"})
_OF_ENVELOPE: Final = frozenset({"version", "type", "type_version", "recorded_at", "effective_at"})
# Columns that may have no value.
_OPTIONAL: Final = frozenset(
    name for name, kind in StoredEvent.__annotations__.items() if str(kind).rstrip("')").endswith("None")
)


class StoredRow(NamedTuple):
    """An event as it is stored, and the bytes of its two bodies, which it has only as hashes."""

    event: StoredEvent
    body: bytes
    sealed: bytes | None


def changed_column(log_id: UUID, row: StoredRow, leaf: bytes, related: Sequence[StoredEvent]) -> str | None:
    """Return the one column that was changed, or None if no likely value of one column gives the leaf.

    Args:
        log_id: of the log.
        row: the row as it is now.
        leaf: the leaf hash that was sealed.
        related: other events, whose values in the same column may have been this one's.

    """
    left = MAX_TRIED
    for column in _ORDER:
        leaf_of = _leaf_with(column, log_id, row.event)
        for event in islice(_candidates(column, row, related), left):
            left -= 1
            try:
                if leaf_of(event) == leaf:
                    return column
            except UnencodableEvent:
                continue
    return None


def _leaf_with(column: str, log_id: UUID, now: StoredEvent) -> Callable[[StoredEvent], bytes]:
    """Return what computes the leaf of an event that differs from the row in one column, in half the time."""
    try:
        entry_now = entry_of(log_id, now)
        content_hash = hashlib.sha256(content(now)).digest()
        envelope_start = envelope(log_id, now, content_hash)[: -len(content_hash)]
    except UnencodableEvent:
        return lambda event: leaf_hash(entry_of(log_id, event))
    entry_start = entry_now[: -len(content_hash)]

    def of_content(event: StoredEvent) -> bytes:
        envelope_of = envelope_start + hashlib.sha256(content(event)).digest()
        return leaf_hash(entry_start + hashlib.sha256(envelope_of).digest())

    def of_envelope(event: StoredEvent) -> bytes:
        return leaf_hash(entry_start + hashlib.sha256(envelope(log_id, event, content_hash)).digest())

    if column in _OF_ENTRY:
        return lambda event: leaf_hash(entry_of(log_id, event))
    return of_envelope if column in _OF_ENVELOPE else of_content


def _candidates(column: str, row: StoredRow, related: Sequence[StoredEvent]) -> Iterator[StoredEvent]:
    now = getattr(row.event, column)
    elsewhere = dict.fromkeys(getattr(other, column) for other in related)
    values: Iterable[Any]
    if column == "body":
        values = chain(elsewhere, map(hashed, _bytes_nearby(row.body)))
    elif column == "sealed":
        values = chain(elsewhere, map(hashed, _bytes_nearby(row.sealed or b"")))
    else:
        values = chain(elsewhere, _nearby(now))
    for value in chain([None] if column in _OPTIONAL else [], values):
        if value != now and (value is not None or column in _OPTIONAL):
            yield row.event._replace(**{column: value})


def _nearby(value: Any) -> Iterator[Any]:
    """Yield values that differ a little."""
    match value:
        case UUID():
            for changed in _bytes_nearby(value.bytes):
                yield UUID(bytes=changed)
        case bytes():
            yield from _bytes_nearby(value)
        case str():
            yield from _texts_nearby(value)
        case int():
            yield from chain(range(value - NEARBY, value + NEARBY + 1))
        case datetime():
            yield from _times_nearby(value)
        case _:
            return


def _bytes_nearby(value: bytes) -> Iterator[bytes]:
    """Yield everything of the same length that differs in one byte."""
    changed = bytearray(value)
    for i, byte in enumerate(value):
        for other in range(256):
            if other != byte:
                changed[i] = other
                yield bytes(changed)
        changed[i] = byte


def _texts_nearby(value: str) -> Iterator[str]:
    """Yield texts with one character changed, or one removed."""
    for i in range(len(value)):
        yield value[:i] + value[i + 1 :]
        for character in _CHARACTERS:
            yield value[:i] + character + value[i + 1 :]


def _times_nearby(value: datetime) -> Iterator[datetime]:
    for unit in _UNITS:
        for count in range(1, NEARBY + 1):
            yield value - count * unit
            yield value + count * unit
    stored = ((value - _EPOCH) // timedelta(microseconds=1)).to_bytes(8, "big", signed=True)
    for changed in _bytes_nearby(stored[2:]):
        yield _EPOCH + timedelta(microseconds=int.from_bytes(stored[:2] + changed, "big", signed=True))
