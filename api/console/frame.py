"""The frame of every page: how a template becomes an answer, and what browsers are allowed to do with it."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from jinja2 import DictLoader, Environment, StrictUndefined
from starlette.responses import HTMLResponse

from api.console import wording
from api.console.assets import address_of
from api.http.turns import made_in_short_turns

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from starlette.types import Receive, Scope, Send

NONCE_BYTES: Final = 16

_TEMPLATES: Final = Path(__file__).parent / "templates"

ENVIRONMENT: Final = Environment(
    # Read when the program starts: files that are replaced while it runs belong to another version.
    loader=DictLoader({path.name: path.read_text(encoding="utf-8") for path in _TEMPLATES.glob("*.html")}),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    auto_reload=False,
)
ENVIRONMENT.filters.update(
    exact=wording.exact,
    field=wording.field,
    moment=wording.moment,
    number=wording.number,
    plain=wording.plain,
    span=wording.span,
    stated=wording.stated,
    time=wording.time,
    words=wording.words,
)
ENVIRONMENT.globals.update(asset=address_of)


def render(
    template: str,
    context: Mapping[str, Any],
    *,
    block: str | None = None,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> HTMLResponse:
    """Return a page, or one block of it.

    Scripts are those with this answer's nonce, and what htmx may do hangs on it as well: markup that somebody smuggled
    into a page can make no request. Nothing is loaded from elsewhere, and nothing can be sent there.
    """
    nonce = secrets.token_urlsafe(NONCE_BYTES)
    values = {**context, "nonce": nonce}
    found = ENVIRONMENT.get_template(template)
    # A block that stands alone imports the macros it uses itself.
    parts = found.generate(values) if block is None else found.blocks[block](found.new_context(values))
    return _Rendered(parts, status, {**_headers(nonce), **(headers or {})})


class _Rendered(HTMLResponse):
    """A page that is made when it is sent, in turns with all else that this process does."""

    def __init__(self, parts: Iterator[str], status: int, headers: Mapping[str, str]) -> None:
        super().__init__("", status, headers)
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.body = (await made_in_short_turns(self._parts)).encode()
        self.headers["Content-Length"] = str(len(self.body))
        await super().__call__(scope, receive, send)


def _headers(nonce: str) -> dict[str, str]:
    return {
        "Content-Security-Policy": (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'self'; img-src 'self'; connect-src 'self'; "
            "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
            "trusted-types htmx"
        ),
        # Not no-referrer, which would have forms sent with `Origin: null`.
        "Referrer-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=()",
        "Cache-Control": "no-store",
        # A block of a page and the page have one address.
        "Vary": "HX-Request, Cookie",
    }
