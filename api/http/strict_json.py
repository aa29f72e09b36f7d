"""JSON in which an object names a field twice: what read it before us may have taken the other value."""

from __future__ import annotations

import json
from typing import Any


def has_duplicate_names(sent: dict[str, Any], body: bytes) -> bool:
    """Tell whether an object, or one within it, names a field twice; `sent` is what was read of `body`.

    A field that was named twice, and every string within others, adds quotes that the fields which are left do not
    account for. Only where there are more, for whatever reason, is the body read again with care.

    Raises:
        RecursionError: it is nested too deep for that.

    """
    texts = list(map(type, sent.values())).count(str)
    if body.count(b'"') == 2 * (len(sent) + texts):
        return False
    twice = False

    def look(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal twice
        named = dict(pairs)
        twice = twice or len(named) < len(pairs)
        return named

    json.loads(body, object_pairs_hook=look, parse_int=str, parse_float=str)
    return twice
