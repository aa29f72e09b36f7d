"""The page that checks evidence bundles: one constant file, the same for everyone, signed in or not.

It is served to be saved. Opened here, it is only as honest as the server that it came from, and says so.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from starlette.responses import Response
from starlette.routing import Route

from infra.proof import verify

if TYPE_CHECKING:
    from starlette.requests import Request

CONTENT: Final = Path(verify.__file__).with_suffix(".html").read_bytes()
# Its own, and what a page cannot say of itself.
POLICY: Final = re.findall(rb'http-equiv="Content-Security-Policy" content="([^"]+)"', CONTENT)[0].decode()
_HEADERS: Final = {
    "Content-Security-Policy": f"{POLICY}; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Another version has another page, at the same address.
    "Cache-Control": "no-cache",
}


async def _serve(_: Request) -> Response:
    return Response(CONTENT, media_type="text/html; charset=utf-8", headers=_HEADERS)


ROUTE: Final = Route("/verify.html", _serve, methods=["GET"])
