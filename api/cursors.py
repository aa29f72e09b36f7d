"""Where a page ended, as text that is handed back for the next: opaque, and good for the same query alone."""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

from api.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request

_KEY_BYTES: Final = 8
_CHECK_BYTES: Final = 8


def cursor(key: int, query: object) -> str:
    """Return the cursor of a page that ended with `key`; `query` is what must be the same for the next."""
    place = key.to_bytes(_KEY_BYTES, "big")
    return base64.urlsafe_b64encode(place + _check(place, query)).decode().rstrip("=")


def place_of(text: str, query: object) -> int:
    """Return the key that a cursor was made of.

    Raises:
        Problem: it was changed, or given out for another query.

    """
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise Problem("malformed_cursor") from None
    key = int.from_bytes(raw[:_KEY_BYTES], "big")
    if cursor(key, query) != text:
        raise Problem("malformed_cursor")
    return key


def link_next(request: Request, **changed: object) -> Mapping[str, str]:
    """Return the Link header that leads to the next page: this request's query with some parameters changed."""
    query = {**request.query_params, **{name: str(value) for name, value in changed.items()}}
    return {"Link": f'<{request.scope["path"]}?{urlencode(query)}>; rel="next"'}


def _check(place: bytes, query: object) -> bytes:
    """Tell cursors of other queries, and changed ones; what a page may hold does not rest on it."""
    return hashlib.sha256(place + repr(query).encode()).digest()[:_CHECK_BYTES]
