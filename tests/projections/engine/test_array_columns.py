"""Columns of many values are encoded as a whole, and each value is then as it is encoded alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from projections.engine.array_columns import Array, Bigints, Documents, Times, encoded

MANY = 200
HEADER_BYTES = 20
EARLIEST, LATEST = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
BEFORE_2000 = datetime(1999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
ELSEWHERE = datetime(1999, 12, 31, 23, 59, 59, 999_999, tzinfo=timezone(timedelta(hours=-5)))


@pytest.mark.parametrize(
    ("array", "values"),
    [
        (Bigints, [0, 1, -1, 2**63 - 1, -(2**63), 4_096]),
        (Bigints, [0, None, 2**40]),
        (Times, [EARLIEST, LATEST, ELSEWHERE, BEFORE_2000, datetime(2000, 1, 1, tzinfo=UTC)]),
        (Times, [EARLIEST, None]),
        (Documents, [{"a": [1, 2]}, None, {"long": "x" * 70_000}]),
        (Documents, [{"a": None}]),
    ],
)
def test_many_values_are_encoded_like_each_alone(array: type[Array], values: list[Any]) -> None:
    many = encoded(array(values * MANY))
    alone = b"".join(b"\xff" * 4 if value is None else encoded(array([value]))[HEADER_BYTES:] for value in values)
    assert many[HEADER_BYTES:] == alone * MANY
    assert int.from_bytes(many[12:16]) == len(values) * MANY


def test_a_number_that_has_no_place_in_eight_bytes_is_refused() -> None:
    with pytest.raises(OverflowError):
        encoded(Bigints([2**63] * MANY))
