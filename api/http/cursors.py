"""Where a page ended, as text that is handed back for the next: opaque, and good for the same query alone."""

from __future__ import annotations

import base64
import binascii
import hashlib
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode
from uuid import UUID

from api.http.fields import MAX_POSITION
from api.http.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from starlette.requests import Request

_CHECK_BYTES: Final = 8
_WORD_BYTES: Final = 8
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def encode_key(key: int, query: object) -> str:
    """Return the cursor of a page that ended with `key`; `query` is what must be the same for the next."""
    return _text((key,), query)


def decode_key(text: str, query: object) -> int:
    """Return the key that a cursor was made of.

    Raises:
        Problem: it was changed, or given out for another query.

    """
    (key,) = _words(text, query, 1)
    return _bounded(key, MAX_POSITION)


def encode_time(moment: datetime, position: int, query: object) -> str:
    """Return the cursor of a page in the order of time, then of position."""
    return _text(((moment - _EPOCH) // _MICROSECOND, position), query)


def decode_time(text: str, query: object) -> tuple[datetime, int]:
    """Return the moment and position that a cursor was made of.

    Raises:
        Problem: it was changed, or given out for another query.

    """
    microseconds, position = _words(text, query, 2)
    try:
        return _EPOCH + microseconds * _MICROSECOND, _bounded(position, MAX_POSITION)
    except OverflowError:
        raise Problem("malformed_cursor") from None


def encode_id(id_: UUID, query: object) -> str:
    """Return the cursor of a page that ended with an id."""
    return _text(divmod(id_.int, 2**64), query)


def decode_id(text: str, query: object) -> UUID:
    """Return the id that a cursor was made of.

    Raises:
        Problem: it was changed, or given out for another query.

    """
    high, low = _words(text, query, 2)
    return UUID(int=high * 2**64 + low)


def encode_two_way(place: int, query: object, *, back: bool) -> str:
    """Return the cursor of the page after a place, or with `back` of the one before it; a place has 127 bits."""
    return _text(divmod(place << 1 | back, 2**64), query)


def decode_two_way(text: str, query: object, upto: int = MAX_POSITION) -> tuple[int, bool]:
    """Return the place that a cursor was made of, and whether it leads back; no place lies beyond `upto`.

    Raises:
        Problem: it was changed, or given out for another query.

    """
    high, low = _words(text, query, 2)
    return _bounded((high * 2**64 + low) >> 1, upto), bool(low & 1)


def neighbours(
    keys: Sequence[int], reached: int | None, place: int | None, *, back: bool, ascending: bool
) -> tuple[int | None, int | None]:
    """Return the places after which the pages after and before a page begin, of those that there are.

    Args:
        keys: those of the page, in its order.
        reached: the key after which more is to be read in the direction that was read in; None where there is no more.
        place: what the page's own cursor was made of; None where there was none.
        back: whether that cursor led back.
        ascending: whether keys grow from one page to the next.

    """
    step = 1 if ascending else -1
    if back:
        return max(keys[-1] if keys else (place or 0) - step, 0), reached
    if place is None:
        return reached, None
    return reached, max(keys[0] if keys else place + step, 0)


def two_way_cursors(query: object, after: int | None, before: int | None) -> dict[str, str | None]:
    """Return the cursors of the pages beside a page by their relation, from the places that `neighbours` returned."""
    return {
        "next": None if after is None else encode_two_way(after, query, back=False),
        "prev": None if before is None else encode_two_way(before, query, back=True),
    }


def link_header(request: Request, **cursors: str | None) -> Mapping[str, str]:
    """Return the Link header that leads to the pages named by their relation, of those that there are."""
    query = {name: value for name, value in request.query_params.items() if name != "cursor"}
    found = [
        f'<{request.scope["path"]}?{urlencode({**query, "cursor": value})}>; rel="{relation}"'
        for relation, value in cursors.items()
        if value is not None
    ]
    return {"Link": ", ".join(found)} if found else {}


def link_next(request: Request, **changed: object) -> Mapping[str, str]:
    """Return the Link header that leads to the next page: this request's query with some parameters changed."""
    query = {**request.query_params, **{name: str(value) for name, value in changed.items()}}
    return {"Link": f'<{request.scope["path"]}?{urlencode(query)}>; rel="next"'}


def _text(words: Sequence[int], query: object) -> str:
    place = b"".join(word.to_bytes(_WORD_BYTES, "big") for word in words)
    return base64.urlsafe_b64encode(place + _check(place, query)).decode().rstrip("=")


def _words(text: str, query: object, count: int) -> Sequence[int]:
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise Problem("malformed_cursor") from None
    starts = range(0, count * _WORD_BYTES, _WORD_BYTES)
    words = [int.from_bytes(raw[start : start + _WORD_BYTES], "big") for start in starts]
    if _text(words, query) != text:
        raise Problem("malformed_cursor")
    return words


def _bounded(place: int, upto: int) -> int:
    """Refuse a place that no page ends at: the check has no key, so anyone can make a cursor of any place."""
    if place > upto:
        raise Problem("malformed_cursor")
    return place


def _check(place: bytes, query: object) -> bytes:
    """Tell cursors of other queries, and changed ones; what a page may hold does not rest on it."""
    return hashlib.sha256(place + repr(query).encode()).digest()[:_CHECK_BYTES]
