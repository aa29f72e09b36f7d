"""The cookie that a browser is recognised by: its name and its attributes, by how the console is reached."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from api.http import headers

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

# Browsers take a cookie of this name only over TLS, from this host alone and for all of it (RFC 6265bis, 4.1.3.2).
OVER_TLS: Final = "__Host-sparkledger"
_HOST: Final = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(?::([0-9]{1,5}))?")


def cookie_name(request: Request, about: str = "") -> str | None:
    """Return the name of a cookie; None where nobody can sign in: over plain HTTP, from another machine.

    On this machine plain HTTP is accepted. Browsers share cookies among the ports of a host, so the port is in the
    name: two servers on two ports keep two sessions.
    """
    more = f"-{about}" if about else ""
    if request.scope["scheme"] == "https":
        return f"{OVER_TLS}{more}"
    host, port = host_of(request)
    return f"sparkledger-{port}{more}" if is_loopback(host) else None


def host_of(request: Request) -> tuple[str, str]:
    """Return the host and the port that the browser asked for."""
    found = _HOST.fullmatch(headers.text(request, b"host"))
    if found is None:
        return "", ""
    return found[1].strip("[]").lower(), found[2] or ("443" if request.scope["scheme"] == "https" else "80")


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine by its name, so that no page of another name can reach it as itself."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def session_id(request: Request) -> str | None:
    """Return what the cookie says; None where there is no such cookie."""
    name = cookie_name(request)
    return None if name is None else request.cookies.get(name)


def set_cookie(
    request: Request, response: Response, value: str, about: str = "", *, max_age: int | None = None
) -> None:
    """Have the browser keep a session, or something else for a number of seconds, until it is closed."""
    name = cookie_name(request, about)
    assert name is not None  # noqa: S101 - nobody signs in where there is none
    # Lax: with Strict, anyone who follows a link from a mail would look signed out.
    secure = name.startswith(OVER_TLS)
    response.set_cookie(name, value, max_age, path="/", secure=secure, httponly=True, samesite="lax")


def drop_cookie(request: Request, response: Response, about: str = "") -> None:
    """Have the browser forget a session, or something else."""
    name = cookie_name(request, about)
    if name is not None:
        secure = name.startswith(OVER_TLS)
        response.delete_cookie(name, path="/", secure=secure, httponly=True, samesite="lax")
