"""Signing in at an identity provider: by OpenID Connect, so that the access log names a person.

What must come back is kept sealed in a cookie of the browser that began, for ten minutes. So nobody can be signed in as
somebody else by a link, and nothing is stored for those who never come back.
"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any, Final

import orjson
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from api.console.cookies import cookie_name, drop_cookie, set_cookie
from api.console.origins import refuse_forged
from api.console.sign_in import page, record
from api.console.visit import PEOPLE, local_address, opened_by, query_of
from api.http import headers
from api.http.problems import Problem
from infra.auth.oidc_client import SignInFailed

if TYPE_CHECKING:
    from api.console.visit import Console
    from infra.auth.api_keys import ApiKey
    from infra.auth.oidc_client import SignedIn

BEGIN: Final = "/sign-in/with/{number}"
DONE: Final = "/sign-in/done"
BEGUN: Final = "begun"
MAX_AGE_S: Final = 600
_PURPOSE: Final = "console sign-ins"

_STRANGE: Final = (
    "This sign-in began in another browser, or more than ten minutes ago. Nobody was signed in. Begin again."
)
_DECLINED: Final = "The identity provider did not sign you in. Begin again, or ask its administrator."
_OPENS_NOTHING: Final = (
    "You are known to the identity provider, but your account opens nothing here. Ask the operator of this server to "
    "map one of your groups to a role."
)
_PROGRAM: Final = "Your account has the role subscriber, which is for programs. There is nothing to show you."


async def _begin(request: Request) -> Response:
    refuse_forged(request)
    if cookie_name(request) is None:
        return page(request, "/", status=403)
    number, clients = request.path_params["number"], _console(request).clients
    client = clients[int(number)] if number in {str(known) for known in range(len(clients))} else None
    if client is None:
        raise Problem("route_unknown")
    wanted = local_address(dict(query_of(request)).get("next", "/"))
    try:
        begun = await client.begin(_back_here(request))
    except SignInFailed as error:
        return page(request, wanted, status=503, error=str(error))
    kept = [client.issuer.issuer, begun.state, begun.nonce, begun.verifier, wanted, int(time.time()) + MAX_AGE_S]
    response = RedirectResponse(begun.address, 303)
    sealed = await _console(request).sessions.sealed(orjson.dumps(kept), _PURPOSE)
    set_cookie(request, response, sealed, BEGUN, max_age=MAX_AGE_S)
    return response


async def _done(request: Request) -> Response:
    refuse_forged(request)
    kept = await _kept(request)
    wanted = "/" if kept is None else str(kept[4])
    try:
        key, signed_in = await _signed_in(request, kept)
    except SignInFailed as error:
        response: Response = page(request, wanted, status=403, error=str(error))
    else:
        await record(request, key)
        response = RedirectResponse(wanted, 303)
        renewal = None if kept is None or signed_in.renewal is None else (str(kept[0]), signed_in.renewal)
        set_cookie(request, response, await _console(request).sessions.begin(key, signed_in.token, renewal))
    drop_cookie(request, response, BEGUN)
    return response


async def _signed_in(request: Request, kept: list[Any] | None) -> tuple[ApiKey, SignedIn]:
    """Return whom the identity provider has signed in, and what they present from now on.

    Raises:
        SignInFailed: nobody was signed in, or somebody who can read nothing here.

    """
    query = dict(query_of(request))
    client = None if kept is None else _console(request).client_of(kept[0])
    if kept is None or client is None or not _is_same(kept[1], query.get("state", "")):
        raise SignInFailed(_STRANGE)
    # Issuers that say who they are must be the one that was asked (RFC 9207).
    if "code" not in query or query.get("iss", client.issuer.issuer) != client.issuer.issuer:
        raise SignInFailed(_DECLINED)
    back = _back_here(request)
    signed_in = await client.finish(query["code"], nonce=kept[2], verifier=kept[3], redirect_uri=back)
    key = await opened_by(request, signed_in.token)
    if key is None:
        raise SignInFailed(_OPENS_NOTHING)
    if key.role not in PEOPLE:
        raise SignInFailed(_PROGRAM)
    return key, signed_in


def _is_same(one: str, other: str) -> bool:
    return secrets.compare_digest(one.encode(), other.encode())


async def _kept(request: Request) -> list[Any] | None:
    """Return what the browser that began has kept; None if it has nothing, or for too long."""
    name = cookie_name(request, BEGUN)
    text = None if name is None else request.cookies.get(name)
    content = None if text is None else await _console(request).sessions.unsealed(text, _PURPOSE)
    kept: list[Any] | None = None if content is None else orjson.loads(content)
    return kept if kept is not None and kept[-1] > time.time() else None


def _back_here(request: Request) -> str:
    """Return the address that the issuer sends the browser back to. It knows it, and sends nobody elsewhere."""
    return f"{request.scope['scheme']}://{headers.text(request, b'host')}{DONE}"


def _console(request: Request) -> Console:
    console: Console = request.app.state.console
    return console


ROUTES: Final = (Route(BEGIN, _begin, methods=["GET"]), Route(DONE, _done, methods=["GET"]))
