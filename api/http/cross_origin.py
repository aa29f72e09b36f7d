"""Requests of pages from other origins (CORS): answered for the origins that are configured, and for no others.

Browsers ask first whether a page may send a request with headers of its own. No cookies are used, so none are allowed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from starlette.responses import Response

from api.http.middleware import HANDED_OVER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

METHODS: Final = "GET, POST, PUT, PATCH, DELETE"
REQUEST_HEADERS: Final = (
    "Accept, Authorization, Causation-Id, Content-Type, Correlation-Id, Idempotency-Key, If-Match, Last-Event-ID, "
    "Ledger-History"
)
ANSWER_HEADERS: Final = (
    b"ETag, Idempotent-Replayed, Ledger-History, Ledger-Position, Link, Location, RateLimit, RateLimit-Policy, "
    b"Request-Id, Retry-After"
)
# How long a browser need not ask again.
MAX_AGE_S: Final = 600


class CrossOrigin:
    """The layer around the application that tells browsers which pages may read its answers."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        """Wrap the application for pages of these origins."""
        self._app = app
        self._origins = frozenset(origin.encode() for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a browser that asks first, and let its page read all other answers."""
        if HANDED_OVER in scope:
            # The process that has the client's connection says it.
            await self._app(scope, receive, send)
            return
        given = dict(scope.get("headers", ()))
        origin = given.get(b"origin")

        async def readable(message: Message) -> None:
            if message["type"] == "http.response.start":
                allowed = (
                    ((b"access-control-allow-origin", origin), (b"access-control-expose-headers", ANSWER_HEADERS))
                    if origin in self._origins
                    else ()
                )
                # Caches must not give one page's answer to another's.
                message["headers"] = [*message["headers"], *allowed, (b"vary", b"Origin")]
            await send(message)

        asks_first = scope.get("method") == "OPTIONS" and b"access-control-request-method" in given
        if scope["type"] == "http" and asks_first and origin in self._origins:
            headers = {
                "Access-Control-Allow-Methods": METHODS,
                "Access-Control-Allow-Headers": REQUEST_HEADERS,
                "Access-Control-Max-Age": str(MAX_AGE_S),
            }
            await Response(status_code=204, headers=headers)(scope, receive, readable)
        else:
            await self._app(scope, receive, readable)
