"""Which requests other sites may not have a browser send: by what the browser says of where a request comes from.

Browsers add `Sec-Fetch-Site` to every request to a trustworthy address (W3C Fetch Metadata). The rules for requests
that change something are those of Go's net/http.CrossOriginProtection; here a request that says nothing of its origin
is refused as well, because only browsers have a session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from api.http import headers
from api.http.problems import Problem

if TYPE_CHECKING:
    from starlette.requests import Request

_OWN: Final = frozenset({"same-origin", "none"})
_SAFE: Final = frozenset({"GET", "HEAD"})
_FORGED: Final = "Another site had this request sent. Nothing was done. Open the page here, and do it again."


def refuse_forged(request: Request) -> None:
    """Refuse what another site had the browser send: any change, and any read but that of somebody who follows a link.

    A read is recorded under the reader's name, so nobody else may cause it by an image or a frame.

    Raises:
        Problem: the request is refused.

    """
    site = headers.text(request, b"sec-fetch-site")
    if site in _OWN:
        return
    if request.method in _SAFE:
        followed = headers.text(request, b"sec-fetch-mode") == "navigate"
        framed = headers.text(request, b"sec-fetch-dest", "document") != "document"
        if not site or (followed and not framed):
            return
    elif not site and _is_ours(request):
        return
    raise Problem("not_allowed", _FORGED)


def _is_ours(request: Request) -> bool:
    host = headers.text(request, b"host")
    return bool(host) and headers.text(request, b"origin") == f"{request.scope['scheme']}://{host}"
