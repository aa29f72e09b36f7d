"""The formats that answers have, and which of them a request wants most."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence


JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
CSV: Final = "text/csv"
FORMATS: Final = (JSON, NDJSON, CSV)
_QUALITY: Final = re.compile(r"q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")


def wanted_format(accept: str, formats: Sequence[str] = FORMATS) -> str:
    """Return the format that an Accept header wants most, the first where it names none of them."""
    wanted: dict[str, float] = {}
    for part in accept.lower().split(","):
        media_type, *parameters = [piece.strip() for piece in part.split(";")]
        quality = next((_QUALITY.fullmatch(p) for p in parameters if p.startswith("q=")), None)
        wanted[media_type] = float(quality[1]) if quality else 1.0
    best = max(formats, key=lambda media_type: wanted.get(media_type, 0.0))
    return best if wanted.get(best) else formats[0]
