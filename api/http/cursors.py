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
_KEY_BYTES: Final = 16
# The largest key.
MAX_KEY: Final = 2**128 - 1
# What a position takes of a key that begins with a moment.
_POSITION_BITS: Final = 64
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def encode(key: int, query: object) -> str:
    """Return the cursor of a page that ended with a key of at most 128 bits.

    Args:
        key: of the page's last entry.
        query: what must be the same for the next page.

    """
    place = key.to_bytes(_KEY_BYTES, "big")
    return base64.urlsafe_b64encode(place + _check(place, query)).decode().rstrip("=")


def decode(text: str, query: object, upto: int = MAX_POSITION) -> int:
    """Return the key that a cursor was made of; none lies beyond `upto`.

    Raises:
        Problem: it was changed, or given out for another query.

    """
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise Problem("malformed_cursor") from None
    key = int.from_bytes(raw[:_KEY_BYTES], "big")
    # The check has no key of its own, so anyone can make a cursor of any place: one that no page ends at, too.
    if encode(key, query) != text or key > upto:
        raise Problem("malformed_cursor")
    return key


def encode_time(moment: datetime, position: int, query: object) -> str:
    """Return the cursor of a page in the order of time, then of position."""
    return encode((moment - _EPOCH) // _MICROSECOND << _POSITION_BITS | position, query)


def decode_time(text: str, query: object) -> tuple[datetime, int]:
    """Return the moment and position that a cursor was made of.

    Raises:
        Problem: it was changed, or given out for another query.

    """
    microseconds, position = divmod(decode(text, query, MAX_KEY), 1 << _POSITION_BITS)
    try:
        moment = _EPOCH + microseconds * _MICROSECOND
    except OverflowError:
        raise Problem("malformed_cursor") from None
    if position > MAX_POSITION:
        raise Problem("malformed_cursor")
    return moment, position


def encode_text(place: str, query: object) -> str:
    """Return the cursor of a page that ended at a place with a name."""
    raw = place.encode()
    return base64.urlsafe_b64encode(raw + _check(raw, query)).decode().rstrip("=")


def decode_text(text: str, query: object) -> str:
    """Return the place that a cursor was made of.

    Raises:
        Problem: it was changed, or given out for another query.

    """
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        place = raw[:-_CHECK_BYTES].decode()
    except (binascii.Error, ValueError):
        raise Problem("malformed_cursor") from None
    # No database stores the character NUL.
    if encode_text(place, query) != text or "\0" in place:
        raise Problem("malformed_cursor")
    return place


def encode_two_way(place: int, query: object, *, back: bool) -> str:
    """Return the cursor of the page after a place, or with `back` of the one before it; a place has 127 bits."""
    return encode(place << 1 | back, query)


def decode_two_way(text: str, query: object, upto: int = MAX_POSITION) -> tuple[int, bool]:
    """Return the place that a cursor was made of, and whether it leads back; no place lies beyond `upto`.

    Raises:
        Problem: it was changed, or given out for another query.

    """
    key = decode(text, query, upto << 1 | 1)
    return key >> 1, bool(key & 1)


def with_history(history: UUID, cursors: Mapping[str, str | None]) -> dict[str, str | None]:
    """Return cursors as they are handed out: good for one history of the ledger alone."""
    return {
        name: None if cursor is None else f"{base64.urlsafe_b64encode(history.bytes).decode().rstrip('=')}.{cursor}"
        for name, cursor in cursors.items()
    }


def history_of(text: str) -> UUID:
    """Return the history of a cursor that was handed out. It stands before a full stop.

    Raises:
        Problem: it was changed.

    """
    try:
        return UUID(bytes=base64.b64decode(f"{text.partition('.')[0]}==", altchars=b"-_", validate=True))
    except (binascii.Error, ValueError):
        raise Problem("malformed_cursor") from None


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


def link_to(request: Request, after: int | None, history: UUID) -> Mapping[str, str]:
    """Return the Link header that leads to the same query after a later position of this history."""
    query = urlencode({**request.query_params, "after": after, "history": history})
    return {"Link": f'<{request.scope["path"]}?{query}>; rel="next"'}


def _check(place: bytes, query: object) -> bytes:
    """Tell cursors of other queries, and changed ones; what a page may hold does not rest on it."""
    return hashlib.sha256(place + repr(query).encode()).digest()[:_CHECK_BYTES]
