"""Columns as binary arrays of PostgreSQL: many rows travel as one parameter a column.

With psycopg's own lists, an append would spend a third of its time in encoding them. Also their type changes when a
column is all NULL or its integers grow, so that the same statement would be prepared again and again.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from types import UnionType
from typing import Any, Final, LiteralString, get_args, get_origin
from uuid import UUID

import orjson
import psycopg
from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import Dumper
from psycopg.pq import Format

_NULL: Final = b"\xff\xff\xff\xff"
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_DAY_S: Final = 86_400
_length: Final = struct.Struct(">i").pack
_four_bytes: Final = struct.Struct(">ii").pack
_eight_bytes: Final = struct.Struct(">iq").pack
# Dimensions, has-nulls flag, element type; then length and lower bound of the one dimension.
_empty: Final = struct.Struct(">iii").pack
_header: Final = struct.Struct(">iiiii").pack
_UUID_LENGTH: Final = _length(16)
# The encoded lengths of texts, up to that of a long document.
_LENGTHS: Final = [_length(n) for n in range(65_536)]
# Most numbers are small: indexes in a batch, versions, ledgers, counts. A dictionary is looked up without a step of
# Python for each value.
_SMALL: Final = {None: _NULL} | {n: _four_bytes(4, n) for n in range(-64, 4_096)}
_SMALL_BIG: Final = {None: _NULL} | {n: _eight_bytes(8, n) for n in range(-64, 4_096)}
# A column of texts in which each occurs so often, on average, is encoded by looking each up.
_REPEATED: Final = 3
# From so many values on, it pays to encode a column as a whole.
_MANY: Final = 64
_TRUE: Final = _length(1) + b"\x01"
_FALSE: Final = _length(1) + b"\x00"


class Array:
    """A column of values of one type; None is NULL.

    A column of nothing but NULL is sent as an empty array: `unnest` fills its shorter arguments up with NULL, and a
    subscript past the end is NULL.
    """

    __slots__ = ("encoded", "values")
    oid: int
    element_oid: int

    def __init__(self, values: Sequence[Any]) -> None:
        """Take the column's values."""
        self.values = values
        self.encoded: bytes | None = None

    def encode(self) -> None:
        """Encode the values now, and let go of them."""
        self.encoded = encoded(self)
        self.values = ()

    @staticmethod
    def elements(values: Sequence[Any]) -> list[bytes]:
        """Return each value after its length; in one loop, because a call for each value would double the cost."""
        raise NotImplementedError

    @staticmethod
    def of_many(values: Sequence[Any]) -> bytes | None:  # noqa: ARG004 - most types have no such way
        """Return many values as `elements` does, joined, if there is a quicker way for these; else None."""
        return None


class Ints(Array):
    oid, element_oid = 1007, 23

    @staticmethod
    def elements(values: Sequence[int | None]) -> list[bytes]:
        try:
            return [*map(_SMALL.__getitem__, values)]
        except KeyError:
            return [_NULL if value is None else _four_bytes(4, value) for value in values]


class Bigints(Array):
    oid, element_oid = 1016, 20

    @staticmethod
    def elements(values: Sequence[int | None]) -> list[bytes]:
        try:
            return [*map(_SMALL_BIG.__getitem__, values)]
        except KeyError:
            return [_NULL if value is None else _eight_bytes(8, value) for value in values]

    @staticmethod
    def of_many(values: Sequence[int | None]) -> bytes | None:
        return None if None in values else _eights(values)  # type: ignore[arg-type] # none is None


class Booleans(Array):
    oid, element_oid = 1000, 16

    @staticmethod
    def elements(values: Sequence[bool | None]) -> list[bytes]:
        return [_NULL if value is None else _TRUE if value else _FALSE for value in values]


class Texts(Array):
    oid, element_oid = 1009, 25

    @staticmethod
    def elements(values: Sequence[str | None]) -> list[bytes]:
        distinct = set(values)
        if _REPEATED * len(distinct) > len(values):
            return _texts([None if value is None else value.encode() for value in values])
        # Of many rows, types, roles and ids of creators are the same again and again.
        known = dict(zip(distinct, Texts.elements([*distinct]) if distinct else (), strict=True))
        return [*map(known.__getitem__, values)]


class Byteas(Array):
    oid, element_oid = 1001, 17

    @staticmethod
    def elements(values: Sequence[bytes | None]) -> list[bytes]:
        return _texts(values)


class Sets(Array):
    """Sets of ids, each as one text: PostgreSQL has no arrays of arrays of different lengths.

    They are sorted, so that the same events always make the same row. No id contains a comma.
    """

    oid, element_oid = 1009, 25

    @staticmethod
    def elements(values: Sequence[set[str] | None]) -> list[bytes]:
        return _texts([None if value is None else ",".join(sorted(value)).encode() for value in values])


class Documents(Array):
    """JSON documents, each as its text."""

    oid, element_oid = 1009, 25

    @staticmethod
    def elements(values: Sequence[Any]) -> list[bytes]:
        # Each is copied at once: orjson makes each in a kilobyte of its own, and shrinks it. Keeping many is slow.
        try:
            return [_NULL if v is None else _LENGTHS[len(text := orjson.dumps(v))] + text for v in values]
        except IndexError:
            return _texts([None if value is None else orjson.dumps(value) for value in values])


class Times(Array):
    oid, element_oid = 1185, 1184

    @staticmethod
    def elements(values: Sequence[datetime | None]) -> list[bytes]:
        return [_NULL if value is None else _eight_bytes(8, (value - _EPOCH) // _MICROSECOND) for value in values]

    @staticmethod
    def of_many(values: Sequence[datetime | None]) -> bytes | None:
        if None in values:
            return None
        # Three quarters of the time of dividing by a microsecond.
        passed = [value - _EPOCH for value in values]  # type: ignore[operator] # none is None
        return _eights([(x.days * _DAY_S + x.seconds) * 1_000_000 + x.microseconds for x in passed])


class Uuids(Array):
    oid, element_oid = 2951, 2950

    @staticmethod
    def elements(values: Sequence[UUID | None]) -> list[bytes]:
        return [_NULL if value is None else _UUID_LENGTH + value.int.to_bytes(16) for value in values]


class UuidNumbers(Array):
    """UUIDs given as numbers, which are hashed and compared faster."""

    oid, element_oid = 2951, 2950

    @staticmethod
    def elements(values: Sequence[int]) -> list[bytes]:
        return [_UUID_LENGTH + value.to_bytes(16) for value in values]


def _texts(encoded: Sequence[bytes | None]) -> list[bytes]:
    try:
        return [_NULL if text is None else _LENGTHS[len(text)] + text for text in encoded]
    except IndexError:
        return [_NULL if text is None else _length(len(text)) + text for text in encoded]


def _eights(numbers: Sequence[int]) -> bytes:
    """Return numbers of eight bytes, each after its length, without a step of Python for each."""
    in_order = array("q", numbers)
    lengths = array("I", [8]) * len(numbers)
    if sys.byteorder == "little":
        in_order.byteswap()
        lengths.byteswap()
    halves = array("I")
    halves.frombytes(in_order.tobytes())
    words = array("I", bytes(12 * len(numbers)))
    words[0::3], words[1::3], words[2::3] = lengths, halves[0::2], halves[1::2]
    return words.tobytes()


def encoded(column: Array) -> bytes:
    """Return a column as an array of one dimension in PostgreSQL's binary format."""
    values = column.values
    count = len(values)
    if count >= _MANY and (joined := column.of_many(values)) is not None:
        return _header(1, 1, column.element_oid, count, 1) + joined
    elements = column.elements(values)
    if elements.count(_NULL) == count:
        return _empty(0, 0, column.element_oid)
    return _header(1, 1, column.element_oid, count, 1) + b"".join(elements)


class _ArrayDumper(Dumper):
    format = Format.BINARY

    def __init__(self, cls: type[Array], context: AdaptContext | None = None) -> None:
        super().__init__(cls, context)
        # Not on the class: psycopg would then use this dumper for every value that is meant for a column of that type.
        self.oid = cls.oid

    def dump(self, obj: Array) -> Buffer:
        return encoded(obj) if obj.encoded is None else obj.encoded


_OF_TYPE: Final[dict[type, tuple[type[Array], LiteralString]]] = {
    int: (Bigints, "{}"),
    bool: (Booleans, "{}"),
    str: (Texts, "{}"),
    datetime: (Times, "{}"),
    UUID: (Uuids, "{}"),
    set: (Sets, "string_to_array({}, ',')"),
    dict: (Documents, "{}::jsonb"),
}

_ALL: Final[set[type[Array]]] = {Ints, Byteas, UuidNumbers, *(array for array, _ in _OF_TYPE.values())}
for _array in _ALL:
    psycopg.adapters.register_dumper(_array, _ArrayDumper)


def array_of(annotation: Any) -> tuple[type[Array], LiteralString]:
    """Return how a dataclass field of this type travels: the array, and the SQL expression that decodes an element.

    Raises:
        KeyError: no column can have this type.

    """
    if isinstance(annotation, UnionType):
        (annotation,) = (option for option in get_args(annotation) if option is not type(None))
    return _OF_TYPE[get_origin(annotation) or annotation]


Decode = Callable[[Any], Any]


def decoder_of(annotation: Any) -> Decode | None:
    """Return the function that turns a value, as psycopg reads it, into the field's; None if none is needed."""
    return set if get_origin(annotation) is set else None
