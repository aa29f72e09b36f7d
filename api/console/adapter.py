"""How a page asks the API: it calls the same application, with the key of its reader in place of the cookie.

The request stays in this process, and comes from the reader's own address and browser: what is recorded of it is what
would be recorded if they had asked themselves. An answer is collected for a page, or passed on while it is made.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

import orjson
from starlette.responses import Response

from api.http.media_types import JSON
from api.http.problems import Problem
from api.http.protocol import COLLECTED
from api.http.reads import TOGETHER
from infra.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from starlette.requests import Request
    from starlette.types import Message, Receive, Scope, Send

# Above the largest page of events that the API answers.
MAX_COLLECTED_BYTES: Final = 64 * 1024 * 1024
_KEPT: Final = ("type", "asgi", "http_version", "server", "client", "scheme", "root_path", "extensions")
# What is passed on of an answer. The rest is said again, of the page's own request.
_PASSED: Final = frozenset(
    {b"content-type", b"content-disposition", b"content-length", b"ledger-position", b"retry-after"}
)


@dataclass(frozen=True, slots=True)
class Reply:
    """What the API answered."""

    status: int
    headers: Mapping[bytes, bytes]
    content: bytes

    @property
    def json(self) -> Any:
        """The content."""
        return orjson.loads(self.content)

    @property
    def position(self) -> int | None:
        """The position of the ledger that it is as new as, if it says so."""
        given = self.headers.get(b"ledger-position")
        return None if given is None else int(given)


class Declined(Exception):
    """The API refused: what a page shows in place of what was asked for."""

    def __init__(self, reply: Reply) -> None:
        """Take the answer, a problem as RFC 9457 has it."""
        self.reply = reply
        self.status = reply.status
        self.problem: dict[str, Any] = reply.json
        self.code: str = self.problem["code"]
        super().__init__(self.problem["detail"])


class Api:
    """The API, as the reader of a page may use it."""

    def __init__(self, request: Request, presented: str) -> None:
        """Take the page's request, and the key or token that its reader signed in with."""
        self._request = request
        self._presented = presented
        # The newest position that an answer spoke of.
        self.position = 0

    async def get(self, path: str, **query: Any) -> Reply:
        """Read something; parameters that are None or empty are left out.

        Raises:
            Declined: the API refused.

        """
        return await self.call("GET", path, query)

    async def call(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any],
        body: bytes = b"",
        media_type: str = JSON,
        *,
        accept: str = JSON,
        together: frozenset[str] = frozenset(),
        idempotency_key: str | None = None,
    ) -> Reply:
        """Send a request, and collect its answer.

        Args:
            method: of HTTP.
            path: the address, with what stands in it encoded.
            query: its parameters; those that are None or empty are left out.
            body: what is sent.
            media_type: of the body.
            accept: the media type of the answer.
            together: the parameters that do not set a read apart in the access log: those of a control that is moved.
            idempotency_key: of a form, so that it is carried out once however often it is sent.

        Raises:
            Declined: the API refused.
            Unavailable: the answer broke off.

        """
        collected = _Collected()
        scope = self._scope(method, path, query, body, media_type, accept.encode())
        scope[COLLECTED] = True
        if idempotency_key is not None:
            scope["headers"].append((b"idempotency-key", idempotency_key.encode("ascii", "replace")))
        if together:
            scope[TOGETHER] = together
        await self._request.app(scope, _sending(body), collected.send)
        reply = collected.reply()
        self.position = max(self.position, reply.position or 0)
        if reply.status >= 400:  # noqa: PLR2004 - where refusals begin
            raise Declined(reply)
        return reply

    async def read_or_none(self, path: str, **query: Any) -> Reply | None:
        """Read something that may be unknown, or not for this reader.

        Raises:
            Declined: the API refused for another reason.

        """
        try:
            return await self.get(path, **query)
        except Declined as declined:
            if declined.status in {403, 404}:
                return None
            raise

    def passed_on(
        self,
        path: str,
        query: Mapping[str, Any],
        *,
        accept: str,
        method: str = "GET",
        body: bytes = b"",
        media_type: str = JSON,
        headers: Mapping[str, str] | None = None,
        refused: Callable[[Declined], Response],
    ) -> Response:
        """Return an answer that is sent as the API makes it; `refused` makes the page for a refusal."""
        scope = self._scope(method, path, query, body, media_type, accept.encode())
        return _PassedOn(self._request, scope, body, headers or {}, refused)

    def _scope(
        self, method: str, path: str, query: Mapping[str, Any], body: bytes, media_type: str, accept: bytes
    ) -> Scope:
        outer = self._request.scope
        given = [(name, value) for name, value in query.items() if value not in {None, ""}]
        agents = [value for name, value in outer["headers"] if name == b"user-agent"]
        return {
            **{name: outer[name] for name in _KEPT if name in outer},
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": urlencode(given).encode(),
            "headers": [
                (b"host", b"console"),
                (b"authorization", b"Bearer " + self._presented.encode()),
                (b"accept", accept),
                *((b"user-agent", agent) for agent in agents[:1]),
                *(
                    ((b"content-type", media_type.encode()), (b"content-length", b"%d" % len(body)))
                    if method not in {"GET", "HEAD"}
                    else ()
                ),
            ],
        }


class _Collected:
    """An answer that is kept until it is whole."""

    def __init__(self) -> None:
        self._status = 500
        self._headers: dict[bytes, bytes] = {}
        self._parts: list[bytes] = []
        self._size = 0
        self._is_whole = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._headers = dict(message["headers"])
        elif message["type"] == "http.response.body":
            part = bytes(message.get("body", b""))
            self._size += len(part)
            if self._size > MAX_COLLECTED_BYTES:
                raise Problem("internal_error", "The answer is too large for a page.")
            self._parts.append(part)
            self._is_whole = not message.get("more_body", False)

    def reply(self) -> Reply:
        if not self._is_whole:
            raise Unavailable("The answer broke off. Try again.")
        return Reply(self._status, self._headers, b"".join(self._parts))


class _PassedOn(Response):
    """An answer of the API, sent as it is made, with the headers of a page's answer."""

    def __init__(
        self,
        request: Request,
        scope: Scope,
        body: bytes,
        headers: Mapping[str, str],
        refused: Callable[[Declined], Response],
    ) -> None:
        super().__init__()
        self._request = request
        self._scope = scope
        self._sent = body
        self._more = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal: _Collected | None = None

        async def passed(message: Message) -> None:
            nonlocal refusal
            passed_on = message
            if message["type"] == "http.response.start":
                if message["status"] >= 400:  # noqa: PLR2004 - where refusals begin
                    refusal = _Collected()
                own = {name for name, _ in self._more}
                kept = [h for h in message["headers"] if h[0] in _PASSED and h[0] not in own]
                passed_on = {**message, "headers": [*kept, *self._more]}
            await (send(passed_on) if refusal is None else refusal.send(message))

        await self._request.app(self._scope, _sending(self._sent, receive), passed)
        if refusal is not None:
            await self._refused(Declined(refusal.reply()))(scope, receive, send)


def _sending(body: bytes, then: Receive | None = None) -> Receive:
    """Return what gives a body to the application, and then waits for the end of the connection."""
    sent = False

    async def receive() -> Message:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}
        if then is not None:
            return await then()
        await asyncio.Event().wait()
        raise AssertionError  # nobody sets it: the waiting task is cancelled

    return receive
