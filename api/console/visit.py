"""One visit of a page: who reads it, what it asks the API, and what it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from api.console.adapter import Api, Declined
from api.console.cookies import drop_cookie, session_id
from api.console.frame import render
from api.console.origins import refuse_forged
from api.http import headers
from api.http.dependencies import services_of
from api.http.homes import to_home_of
from api.http.limits import Limit
from api.http.problems import Problem, title
from api.http.protocol import own
from api.http.responses import NO_STORE
from api.http.routing import PageRoute
from domain.errors import NotAllowed
from domain.values import Role
from infra.auth.api_keys import ApiKey
from infra.auth.console_sessions import ConsoleSession, ConsoleSessions
from infra.auth.oidc_client import OidcClient, SignInFailed
from infra.errors import TokenRefused

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from api.console.adapter import Reply
    from api.http.dependencies import Services

SIGN_IN: Final = "/sign-in"
MAX_FORM_BYTES: Final = 64 * 1024
MAX_FIELDS: Final = 50
# Wrong keys of one address. Nobody guesses 256 bits; this bounds what it costs us that somebody tries.
WRONG_KEYS_AT_ONCE: Final = 20
WRONG_KEYS_PER_SECOND: Final = 1 / 3
# The roles that a page can be for: a subscriber's key is a program's, which reads the stream.
PEOPLE: Final[frozenset[Role]] = frozenset({"admin", "operator", "auditor", "brand", "creator"})


@dataclass(frozen=True, slots=True)
class Reader:
    """Who is signed in."""

    session: ConsoleSession
    key: ApiKey

    @property
    def name(self) -> str:
        """What the key is called, or its role where it has no name."""
        return self.key.name or f"{self.key.role} key"


@dataclass(slots=True)
class Visit:
    """A request for a page by somebody who is signed in.

    Attributes:
        api: the API, as the reader may use it.
        query: the parameters of the address; of those sent twice, the last.
        seen: the last position of the ledger when it began: what is recorded later is new to the page.

    """

    request: Request
    reader: Reader
    api: Api
    query: dict[str, str] = field(default_factory=dict)
    seen: int = 0

    @property
    def role(self) -> Role:
        """The reader's role."""
        return self.reader.key.role

    @property
    def site(self) -> str:
        """Where the console is, as the reader's browser calls it: with it, an address on paper is whole."""
        return f"{self.request.scope['scheme']}://{headers.text(self.request, b'host')}"

    @property
    def now(self) -> datetime:
        """The server's clock."""
        return services_of(self.request.scope).now()

    @property
    def lengths(self) -> Sequence[int]:
        """The lengths in days that a window can have, by the settings."""
        return services_of(self.request.scope).policy.allowed_days

    def path(self, name: str) -> str:
        """Return what stands in the address in place of a name."""
        return unquote(self.request.path_params[name])

    @property
    def is_partial(self) -> bool:
        """Whether a part of the page is asked for, by htmx."""
        return headers.text(self.request, b"hx-request") == "true"

    async def head(self) -> int:
        """Return the last position of the ledger, which says nothing of what is there."""
        return await services_of(self.request.scope).events.head(self.reader.key.ledger_id)

    async def form(self) -> dict[str, str]:
        """Return the fields of a form.

        Raises:
            Problem: it is larger than any of ours, or no form.

        """
        return dict(await read_form(self.request))

    def page(self, template: str, *, block: str | None = None, status: int = 200, **context: Any) -> Response:
        """Answer with a page, or with one block of it."""
        return render(template, frame_of(self) | context, block=block, status=status)

    def passed_on(self, path: str, query: Mapping[str, Any], **more: Any) -> Response:
        """Answer with what the API answers, as it makes it; a refusal is a page."""
        return self.api.passed_on(path, query, refused=lambda declined: refusal_page(self, declined), **more)

    def file(self, reply: Reply, headers: Mapping[str, str]) -> Response:
        """Answer with a file that the API made."""
        media_type = reply.headers.get(b"content-type", b"application/octet-stream").decode("latin-1")
        return Response(reply.content, 200, {**NO_STORE, **headers, "Content-Type": media_type})


def frame_of(visit: Visit | None, request: Request | None = None) -> dict[str, Any]:
    """Return what the frame of a page shows; for somebody who is not signed in, next to nothing."""
    request = visit.request if visit is not None else request
    assert request is not None  # noqa: S101 - a page is always asked for
    pages = request.app.state.console.pages
    path = request.scope["path"]
    shown = [] if visit is None else [one for one in pages if visit.role in one.roles]
    return {
        "reader": None if visit is None else visit.reader,
        "position": 0 if visit is None else visit.api.position,
        "seen": 0 if visit is None else visit.seen,
        "reads_trail": any(one.path == "/events" for one in shown),
        "places": [{"name": one.nav, "path": one.path, "is_here": one.covers(path)} for one in shown if one.nav],
        "menu": [{"name": one.more, "path": one.path, "is_here": one.covers(path)} for one in shown if one.more],
        "now": services_of(request.scope).now(),
    }


@dataclass(frozen=True, slots=True)
class Page:
    """A page, at one address.

    Attributes:
        path: the address, with names in braces.
        show: what answers a visit.
        methods: how it is asked for.
        nav: what it is called in the navigation; None where it is not in it.
        more: what it is called in the menu beside the navigation, for what is needed less often.
        roles: whose navigation it is in. Whether they may read is the API's to say.
        parts: the beginnings of other addresses that belong to this place of the navigation.

    """

    path: str
    show: Callable[[Visit], Awaitable[Response]]
    methods: tuple[str, ...] = ("GET",)
    nav: str | None = None
    more: str | None = None
    roles: frozenset[Role] = PEOPLE
    parts: tuple[str, ...] = ()

    def covers(self, path: str) -> bool:
        """Tell whether an address belongs to this place of the navigation."""
        return path == self.path or any(path == part or path.startswith(f"{part}/") for part in self.parts)

    def route(self) -> PageRoute:
        """Return the route of the page."""

        async def answer(request: Request) -> Response:
            refuse_forged(request)
            reader = await reader_of(request)
            if reader is None:
                return to_sign_in(request)
            own(request.scope, reader.key.ledger_id)
            visit = Visit(request, reader, Api(request, reader.session.presented), dict(query_of(request)))
            try:
                visit.seen = await visit.head()
                return await self.show(visit)
            except Declined as declined:
                return refusal_page(visit, declined)

        return PageRoute(self.path, answer, methods=list(self.methods))


class Console:
    """What the pages of one application share.

    Attributes:
        sessions: who is signed in.
        clients: the identity providers at which one can sign in.
        pages: every page that asks for a session.
        wrong_keys: how many wrong keys each address may still present.

    """

    def __init__(self, services: Services, pages: Sequence[Page]) -> None:
        """Take what requests need, and the pages."""
        self.sessions = ConsoleSessions(services.database, services.keyring)
        self.clients = [OidcClient(one) for one in services.settings.oidc_issuers if one.client_id is not None]
        # Renewals that are under way, so that an identity provider is asked once for all pages of a session.
        self.renewals: dict[bytes, asyncio.Task[str | None]] = {}
        self.pages = pages
        self.wrong_keys: Limit[str] = Limit(WRONG_KEYS_AT_ONCE, WRONG_KEYS_PER_SECOND)

    def client_of(self, issuer: str) -> OidcClient | None:
        """Return the client of an identity provider; None where it is configured no more."""
        return next((client for client in self.clients if client.issuer.issuer == issuer), None)


async def reader_of(request: Request, *, used: bool = True) -> Reader | None:
    """Return who is signed in; None if nobody is, or their session has ended, or their key.

    A session whose key was revoked is ended here, so a key that is made valid in another way does not revive it.
    """
    presented = session_id(request)
    if presented is None:
        return None
    sessions: ConsoleSessions = request.app.state.console.sessions
    session = await sessions.find(presented, used=used)
    if session is None:
        return None
    key = await opened_by(request, session.presented)
    if key is None and session.renewal is not None:
        session, key = await _renewed(request, presented, session)
    if key is None or key.key_id != session.key_id:
        await sessions.end(session, session.ledger_id)
        return None
    return Reader(session, key)


async def _renewed(request: Request, session_id: str, session: ConsoleSession) -> tuple[ConsoleSession, ApiKey | None]:
    """Get a new token for a session whose old one opens nothing any more; return the session and what it opens now."""
    console: Console = request.app.state.console
    renewing = console.renewals.get(session.hash)
    if renewing is None:
        renewing = asyncio.create_task(_new_token(console, session_id, session), name="renewal of a session")
        console.renewals[session.hash] = renewing
        renewing.add_done_callback(lambda _: console.renewals.pop(session.hash, None))
    # Other pages wait for the same renewal, so one that is closed must not cancel it.
    token = await asyncio.shield(renewing)
    if token is None:
        return session, None
    return replace(session, presented=token), await opened_by(request, token)


async def _new_token(console: Console, session_id: str, session: ConsoleSession) -> str | None:
    """Return the new token of a session; None if the identity provider gives none."""
    current = await console.sessions.find(session_id, used=False)
    if current is None or current.renewal is None:
        return None
    if current.presented != session.presented:
        # Another page's renewal came in between.
        return current.presented
    issuer, renewal = current.renewal
    client = console.client_of(issuer)
    if client is None:
        return None
    try:
        signed_in = await client.renew(renewal)
    except SignInFailed:
        return None
    await console.sessions.renewed(session_id, session, signed_in.token, (issuer, signed_in.renewal or renewal))
    return signed_in.token


async def opened_by(request: Request, presented: str) -> ApiKey | None:
    """Return the key that was presented, or that a token stands for; None if it opens nothing now.

    What follows of the request is answered by the server of its ledger.
    """
    await to_home_of(request.scope, presented)
    services = services_of(request.scope)
    try:
        return await services.authenticator.authenticate(presented, services.now())
    except (TokenRefused, NotAllowed):
        return None


def to_sign_in(request: Request) -> Response:
    """Lead to where one signs in, and from there back to what was asked for, where that was a page to read."""
    wanted = request.scope["path"]
    if request.scope["query_string"]:
        wanted = f"{wanted}?{request.scope['query_string'].decode('latin-1')}"
    told = {"next": wanted} if request.method == "GET" and wanted != "/" else {}
    if session_id(request) is not None:
        told["ended"] = "1"
    address = f"{SIGN_IN}?{urlencode(told)}" if told else SIGN_IN
    if headers.text(request, b"hx-request") == "true":
        # A redirect would be followed, and the page to sign in would stand inside of this one.
        response = Response(status_code=401, headers={"HX-Redirect": address})
    else:
        response = RedirectResponse(address, 303)
    drop_cookie(request, response)
    return response


def local_address(text: str) -> str:
    """Return an address of this console, or `/` for any other."""
    parts = urlsplit(text)
    is_local = not parts.scheme and not parts.netloc and text.startswith("/") and not text.startswith(("//", "/\\"))
    shown = is_local and text.isprintable() and text.isascii() and "\\" not in text
    return text if shown and not parts.path.startswith("/v1/") else "/"


def query_of(request: Request) -> list[tuple[str, str]]:
    """Return the parameters of the address, without those left empty, as forms send them.

    Raises:
        Problem: there are too many.

    """
    text = request.scope["query_string"].decode("latin-1")
    try:
        return [(name, value) for name, value in parse_qsl(text, max_num_fields=MAX_FIELDS) if value]
    except ValueError:
        raise Problem("malformed_query", f"The address has more than {MAX_FIELDS} parameters.") from None


async def read_body(request: Request, most: int) -> bytes:
    """Return the body of a request.

    Raises:
        Problem: it is too large.

    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise Problem("body_too_large", f"The form is larger than {most // 1024:,} KiB.")
    return bytes(body)


async def read_form(request: Request) -> list[tuple[str, str]]:
    """Return the fields of a form, in order.

    Raises:
        Problem: it is larger than any of ours, or no form.

    """
    if headers.media_type(request) != "application/x-www-form-urlencoded":
        raise Problem("unsupported_media_type", "Send the form of this page.")
    body = await read_body(request, MAX_FORM_BYTES)
    try:
        return parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError:
        raise Problem("malformed_request") from None


# What to do about a refusal, where its own sentence speaks to programs.
_ADVICE: Final[Mapping[int, str]] = {
    400: "Go back, and correct what was entered.",
    403: "Your key's role does not reach this far. Somebody with another key can look for you.",
    404: "Check the address, or look for it from the start page.",
    413: "A larger sheet is imported with `sparkledger import FILE` on the server, or with `POST /v1/imports`.",
    429: "Wait a moment, then load the page again.",
    503: "Load the page again in a moment.",
}


def not_offered(visit: Visit) -> Response:
    """Return the page in place of a form that the API would refuse to a reader's role."""
    detail = f"A key with the role {visit.role} is not allowed to do this."
    told = {"code": "not_allowed", "detail": detail, "request_id": visit.request.scope["request_id"]}
    return visit.page("problem.html", status=403, **problem_context(403, told))


def problem_context(status: int, problem: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page of a problem shows."""
    return {
        "http_status": status,
        "code": problem["code"],
        "heading": title(problem["code"]),
        "detail": problem["detail"],
        "errors": problem.get("errors", []),
        "request_id": problem["request_id"],
        "advice": _ADVICE.get(status, ""),
    }


def refusal_page(visit: Visit, declined: Declined) -> Response:
    """Return the page for what the API refused."""
    if declined.status == 401:  # noqa: PLR2004 - the key ended meanwhile
        return to_sign_in(visit.request)
    context = problem_context(declined.status, declined.problem)
    # htmx puts an answer where the part of the page was; the whole frame has no place there.
    block = "problem" if visit.is_partial else None
    return visit.page("problem.html", block=block, status=declined.status, **context)
