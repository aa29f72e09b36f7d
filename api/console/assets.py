"""Files that pages load: each has its hash in its address, so browsers keep it for good."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from starlette.responses import Response
from starlette.routing import Route

from api.http.problems import Problem

if TYPE_CHECKING:
    from starlette.requests import Request

FOLDER: Final = Path(__file__).parent / "static"
FILES: Final = (
    "app.css",
    "app.js",
    "icon.svg",
    "vendor/htmx.min.js",
    "vendor/hx-csp.min.js",
    "vendor/hx-sse.min.js",
)
_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_FOR_GOOD: Final = {"Cache-Control": "public, max-age=31536000, immutable"}


class Asset(NamedTuple):
    """A file, and where it is served."""

    address: str
    content: bytes
    media_type: str


@cache
def assets() -> dict[str, Asset]:
    """Return every file by its name."""
    return {name: _asset(FOLDER / name) for name in FILES}


def address_of(name: str) -> str:
    """Return the address of a file."""
    return assets()[name].address


def _asset(path: Path) -> Asset:
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:16]
    return Asset(f"/assets/{path.stem}.{digest}{path.suffix}", content, _TYPES[path.suffix])


@cache
def _by_address() -> dict[str, Asset]:
    return {asset.address: asset for asset in assets().values()}


async def _serve(request: Request) -> Response:
    asset = _by_address().get(request.scope["path"])
    if asset is None:
        raise Problem("route_unknown")
    return Response(asset.content, media_type=asset.media_type, headers=_FOR_GOOD)


ROUTE: Final = Route("/assets/{name}", _serve, methods=["GET"])
