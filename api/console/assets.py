"""Files that pages load: each has its hash in its address, so browsers keep it for good."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from starlette.responses import Response
from starlette.routing import Route

from api.http.problems import Problem

if TYPE_CHECKING:
    from starlette.requests import Request

FOLDER: Final = Path(__file__).parent / "static"
# What each is made of. An extension of htmx is in one file with it: htmx begins as soon as the browser is idle, also
# while another script is still on its way, and an extension that comes later never takes part.
FILES: Final[dict[str, tuple[str, ...]]] = {
    "app.css": ("app.css",),
    "app.js": ("app.js",),
    "htmx.js": ("vendor/htmx.min.js", "vendor/hx-csp.min.js"),
    "icon.svg": ("icon.svg",),
}
_TYPES: Final = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_FOR_GOOD: Final = {"Cache-Control": "public, max-age=31536000, immutable"}


class Asset(NamedTuple):
    """A file, and where it is served."""

    address: str
    content: bytes
    media_type: str


def _asset(name: str) -> Asset:
    content = b"\n".join((FOLDER / part).read_bytes() for part in FILES[name])
    digest = hashlib.sha256(content).hexdigest()[:16]
    stem, _, kind = name.rpartition(".")
    return Asset(f"/assets/{stem}.{digest}.{kind}", content, _TYPES[kind])


# Read when the program starts: files that are replaced while it runs belong to another version.
ASSETS: Final = {name: _asset(name) for name in FILES}
_BY_ADDRESS: Final = {asset.address: asset for asset in ASSETS.values()}


def address_of(name: str) -> str:
    """Return the address of a file."""
    return ASSETS[name].address


async def _serve(request: Request) -> Response:
    asset = _BY_ADDRESS.get(request.scope["path"])
    if asset is None:
        raise Problem("route_unknown")
    return Response(asset.content, media_type=asset.media_type, headers=_FOR_GOOD)


ROUTE: Final = Route("/assets/{name}", _serve, methods=["GET"])
