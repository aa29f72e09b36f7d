"""Whole arrays to PostgreSQL in binary. psycopg's own way, text through regexes, cost a third of the writer's time."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from types import NoneType
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg.abc import Buffer
from psycopg.adapt import Dumper
from psycopg.pq import Format

_NULL: Final = b"\xff\xff\xff\xff"
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_int_element: Final = struct.Struct(">ii").pack
_long_element: Final = struct.Struct(">iq").pack
_length: Final = struct.Struct(">i").pack
_UUID_LENGTH: Final = _length(16)


class Array:
    """A column of one type; None stands for NULL.

    A column of nothing but NULL is sent as an empty array: among the arguments of one `unnest` the shorter are filled
    up with NULL, and a subscript past the end reads as NULL.
    """

    __slots__ = ("elements",)

    def __init__(self, elements: Sequence[Any]) -> None:
        """Take the column's values."""
        self.elements = elements


class Ints(Array):
    """int[] of Python ints."""


class Longs(Array):
    """bigint[] of Python ints."""


class Uuids(Array):
    """uuid[] of Python UUIDs."""


class Byteas(Array):
    """bytea[] of bytes."""


class Texts(Array):
    """text[] of Python strings."""


class Stamps(Array):
    """timestamptz[] of aware datetimes."""


# Most numbers are small, and most texts come again and again: roles, types, names of sources.
_SMALL: Final = {number: _int_element(4, number) for number in range(4096)}


def _int(number: int) -> bytes:
    return _SMALL.get(number) or _int_element(4, number)


@lru_cache(maxsize=1_000)
def _text(text: str) -> bytes:
    encoded = text.encode()
    return _length(len(encoded)) + encoded


def _uuid(uuid: UUID) -> bytes:
    return _UUID_LENGTH + uuid.int.to_bytes(16)


def _bytea(octets: bytes) -> bytes:
    return _length(len(octets)) + octets


def _stamp(moment: datetime) -> bytes:
    return _long_element(8, (moment - _EPOCH) // _MICROSECOND)


def _register(array: type[Array], array_oid: int, element_oid: int, encode: Callable[[Any], bytes]) -> None:
    # Array header: dimensions, has-nulls flag, element type, then length and lower bound of the one dimension.
    header = struct.Struct(">iiiii").pack
    empty = struct.pack(">iii", 0, 0, element_oid)

    class ArrayDumper(Dumper):
        format = Format.BINARY
        oid = array_oid

        def dump(self, obj: Array) -> Buffer:
            elements = obj.elements
            nulls = list(map(type, elements)).count(NoneType)  # a comparison with None would call UUID's own, in Python
            if nulls == len(elements):
                return empty
            if not nulls:
                return header(1, 0, element_oid, len(elements), 1) + b"".join(map(encode, elements))
            return header(1, 1, element_oid, len(elements), 1) + b"".join(
                [_NULL if element is None else encode(element) for element in elements]
            )

    psycopg.adapters.register_dumper(array, ArrayDumper)


_register(Ints, 1007, 23, _int)
_register(Longs, 1016, 20, lambda number: _long_element(8, number))
_register(Uuids, 2951, 2950, _uuid)
_register(Byteas, 1001, 17, _bytea)
_register(Texts, 1009, 25, _text)
_register(Stamps, 1185, 1184, _stamp)
