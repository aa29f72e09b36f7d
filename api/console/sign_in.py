"""Signing in and out: as whom does one read, and how does one stop?"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

import orjson
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from api.console.cookies import cookie_name, drop_cookie, host_of, set_cookie
from api.console.frame import render
from api.console.origins import refuse_forged
from api.console.visit import (
    PEOPLE,
    SIGN_IN,
    frame_of,
    local_address,
    opened_by,
    query_of,
    read_form,
    reader_of,
)
from api.http.dependencies import services_of
from infra.auth.access_log import Access

if TYPE_CHECKING:
    from infra.auth.api_keys import ApiKey

SIGN_OUT: Final = "/sign-out"
MAX_KEY_CHARACTERS: Final = 512

_EMPTY: Final = "Paste the key that you were given."
_WRONG: Final = (
    "This key opens nothing here. It may be mistyped, revoked or expired, or belong to another server. Ask the "
    "person who gave it to you."
)
_SUBSCRIBER: Final = (
    "This is the key of a program that subscribes to events. It reads the stream and nothing else, so there is nothing "
    "to show you. Ask for a key with the role auditor."
)
_TOO_MANY: Final = "Too many wrong keys came from your address. Wait a minute, then try again."

log = logging.getLogger(__name__)


async def _show(request: Request) -> Response:
    query = dict(query_of(request))
    wanted = local_address(query.get("next", "/"))
    if await reader_of(request) is not None:
        return RedirectResponse(wanted, 303)
    notice = ""
    if "ended" in query:
        notice = "Your session has ended: the key was revoked or has expired, or you were away for half an hour."
    elif "out" in query:
        notice = "You are signed out."
    return page(request, wanted, notice=notice)


def page(request: Request, wanted: str, *, status: int = 200, notice: str = "", error: str = "") -> Response:
    """Return the page to sign in, which leads to what was wanted."""
    context: dict[str, Any] = {
        "wanted": wanted,
        "notice": notice,
        "error": error,
        "is_refused": cookie_name(request) is None,
        "host": host_of(request)[0],
        "elsewhere": [
            {"name": client.name, "address": f"/sign-in/with/{number}?{urlencode({'next': wanted})}"}
            for number, client in enumerate(request.app.state.console.clients)
        ],
    }
    return render("sign_in.html", frame_of(None, request) | context, status=status)


async def _sign_in(request: Request) -> Response:
    refuse_forged(request)
    form = dict(await read_form(request))
    wanted = local_address(form.get("next", "/"))
    if cookie_name(request) is None:
        return page(request, wanted, status=403)
    presented = form.get("key", "").strip()[:MAX_KEY_CHARACTERS]
    if not presented.isascii() or not presented:
        return page(request, wanted, status=422, error=_EMPTY if not presented else _WRONG)
    address = request.client.host if request.client is not None else ""
    wrong_keys = request.app.state.console.wrong_keys
    if wrong_keys.wait_s(address) > 0:
        return page(request, wanted, status=429, error=_TOO_MANY)
    key = await opened_by(request, presented)
    if key is None:
        wrong_keys.take(address)
        log.info("Request %s tried to sign in with a key that opens nothing.", request.scope["request_id"])
        return page(request, wanted, status=403, error=_WRONG)
    if key.role not in PEOPLE:
        return page(request, wanted, status=403, error=_SUBSCRIBER)
    # Not before it is recorded: nobody reads here of whom the access log does not say that they were there.
    await record(request, key)
    response = RedirectResponse(wanted, 303)
    set_cookie(request, response, await request.app.state.console.sessions.begin(key, presented))
    return response


async def _sign_out(request: Request) -> Response:
    refuse_forged(request)
    reader = await reader_of(request)
    if reader is not None:
        await record(request, reader.key)
        await request.app.state.console.sessions.end(reader.session, reader.key.ledger_id)
    response = RedirectResponse(f"{SIGN_IN}?out=1", 303)
    drop_cookie(request, response)
    # What the browser keeps of the pages goes too, so that Back shows nothing. Not "cookies": those of other servers on
    # this host would go with ours.
    response.headers["Clear-Site-Data"] = '"cache", "storage"'
    return response


async def record(request: Request, key: ApiKey) -> None:
    """Record in the access log that somebody signs in or out.

    Raises:
        Unavailable: it cannot be recorded, and so must not be done.

    """
    access = Access(
        key_id=key.key_id,
        role=key.role,
        route=f"{request.method} {request.scope['path']}",
        query=orjson.dumps({}),
        format="text/html",
        rows=0,
        complete=True,
        request_id=request.scope["request_id"],
    )
    await services_of(request.scope).views.access_log.record(key.ledger_id, access)


ROUTES: Final = (
    Route(SIGN_IN, _show, methods=["GET"]),
    Route(SIGN_IN, _sign_in, methods=["POST"]),
    Route(SIGN_OUT, _sign_out, methods=["POST"]),
)
