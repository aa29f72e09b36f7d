"""Randomness in small pieces, and time-ordered identifiers (UUIDv7, RFC 9562): neighbours in time stay neighbours."""

from __future__ import annotations

import os
import struct
import time
from base64 import urlsafe_b64encode
from collections import deque
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID, SafeUUID

# A call of the system costs more than what a command needs of it: it is asked for a page at a time.
_PIECE_BYTES: Final = 16
_DRAWN_BYTES: Final = 4096
_pieces: deque[bytes] = deque()
# What UUIDs end with, each given out once: all but their time.
_ends: deque[int] = deque()
_split: Final = struct.Struct(f"{_PIECE_BYTES}s" * (_DRAWN_BYTES // _PIECE_BYTES)).unpack
os.register_at_fork(after_in_child=_pieces.clear)
os.register_at_fork(after_in_child=_ends.clear)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_VERSION_AND_VARIANT: Final = (7 << 76) | (2 << 62)
_RANDOM: Final = (0xFFF << 64) | ((1 << 62) - 1)
_UNKNOWN: Final = SafeUUID.unknown
_new: Final = object.__new__
_set_int: Final = vars(UUID)["int"].__set__
_set_is_safe: Final = vars(UUID)["is_safe"].__set__


def random_16() -> bytes:
    """Return 16 random bytes of the system's, given out once; safe among threads and after a fork."""
    try:
        return _pieces.popleft()
    except IndexError:
        first, *others = _split(os.urandom(_DRAWN_BYTES))
        _pieces.extend(others)
        return first  # type: ignore[no-any-return] # all are bytes


def random_text_32() -> str:
    """Return 32 random bytes as text, as `secrets.token_urlsafe` does."""
    return urlsafe_b64encode(random_16() + random_16()).rstrip(b"=").decode()


def first_uuid7(moment: datetime) -> UUID:
    """Return what no UUIDv7 of a moment, 1970 or later, or of a later moment is less than."""
    return UUID(int=(moment - _EPOCH) // timedelta(milliseconds=1) << 80)


def time_of(uuid: UUID) -> datetime | None:
    """Return the time that a UUIDv7 begins with; None for another UUID, or a time beyond the year 9999."""
    if uuid.version != 7:  # noqa: PLR2004 - v7
        return None
    try:
        return _EPOCH + timedelta(milliseconds=uuid.int >> 80)
    except OverflowError:
        return None


def uuid7() -> UUID:
    """Return a UUIDv7: 48 bits of milliseconds since 1970, 74 random bits."""
    try:
        end = _ends.popleft()
    except IndexError:
        end = _drawn()
    # Past the constructor, whose checks take three times as long as all of this.
    uuid = _new(UUID)
    _set_int(uuid, (time.time_ns() // 1_000_000 << 80) | end)
    _set_is_safe(uuid, _UNKNOWN)
    return uuid


def _drawn() -> int:
    """Draw what many UUIDs end with, and return one of them."""
    drawn = map(int.from_bytes, _split(os.urandom(_DRAWN_BYTES)))
    first, *others = [(number & _RANDOM) | _VERSION_AND_VARIANT for number in drawn]
    _ends.extend(others)
    return first
