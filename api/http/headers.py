"""What requests say in headers and paths: parsed here, and refused where it is not what it should be."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Final
from uuid import UUID

from api.http.problems import Problem
from domain.errors import Unknown
from domain.pasted import Unusable, VideoIds, shown_creator_id, video_id
from domain.values import ID_PATTERN

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from starlette.requests import Request
    from starlette.types import Scope

# Where a scope has its headers by name. Only here they are taken from there directly, because it is done so often.
_BY_NAME: Final = "sparkledger.headers"
# The headers of which there can be one, as problems name them.
_SPELLED: Final = {
    name.lower().encode(): name
    for name in ("Idempotency-Key", "If-Match", "Correlation-Id", "Causation-Id", "Ledger-History", "Last-Event-ID")
}
# Bare or quoted: the header's draft, expired in April 2026, has a quoted string, and practice a bare one.
_IDEMPOTENCY_KEY: Final = re.compile(r'"([\x21\x23-\x7e]{1,255})"|([\x21\x23-\x7e]{1,255})')
_ENTITY_TAG: Final = re.compile(r'"(0|[1-9][0-9]{0,9})"')
_CORRELATION_ID: Final = re.compile(r"[A-Za-z0-9._:@-]{1,128}")
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_LAST_EVENT_ID: Final = re.compile(rf"(?:({_UUID.pattern}):)?(0|[1-9][0-9]{{0,17}})")
# W3C Trace Context; a malformed one is to be ignored, not refused.
_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
# RFC 6750 has the scheme, and RFC 9110 that its case does not matter.
_BEARER: Final = re.compile(rb"(?i:bearer) +([^ ](?:.*[^ ])?) *", re.DOTALL)
_ORIGINS: Final = frozenset({b"correlation-id", b"causation-id", b"traceparent"})


class Headers(dict[bytes, bytes]):
    """A request's headers by name in lower case; of those that were sent more than once, the first.

    Attributes:
        repeated: the names of these.

    """

    repeated: AbstractSet[bytes] = frozenset()


def idempotency_key(request: Request) -> str | None:
    """Return the Idempotency-Key without its quotes."""
    given = _once(request, b"idempotency-key")
    if given is None:
        return None
    key = _IDEMPOTENCY_KEY.fullmatch(given)
    if key is None:
        raise Problem(
            "malformed_header", "Idempotency-Key must have 1 to 255 visible ASCII characters, with or without quotes."
        )
    return key[1] or key[2]


def if_match(request: Request) -> int | None:
    """Return the version that the caller has seen; `*` asks for any, as does no header at all."""
    given = _once(request, b"if-match")
    if given is None or given == "*":
        return None
    tag = _ENTITY_TAG.fullmatch(given)
    if tag is None:
        raise Problem(
            "malformed_header",
            'If-Match must be one version in quotes, such as "3", or *. Weak ETags are not allowed.',
        )
    return int(tag[1])


def origins(request: Request) -> tuple[str | None, UUID | None, str | None]:
    """Return the larger undertaking, the event and the trace that a command is part of; most callers name none."""
    if of(request).keys().isdisjoint(_ORIGINS):
        return None, None, None
    return correlation_id(request), causation_id(request), traceparent(request)


def correlation_id(request: Request) -> str | None:
    """Return what the caller names the larger undertaking by."""
    given = _once(request, b"correlation-id")
    if given is not None and _CORRELATION_ID.fullmatch(given) is None:
        raise Problem("malformed_header", "Correlation-Id must have 1 to 128 of the characters A-Z a-z 0-9 . _ : @ -")
    return given


def causation_id(request: Request) -> UUID | None:
    """Return the event that the caller says the command follows from, of this ledger or of another system."""
    given = _once(request, b"causation-id")
    if given is not None and _UUID.fullmatch(given.lower()) is None:
        raise Problem("malformed_header", "Causation-Id must be the id of an event, a UUID.")
    return None if given is None else UUID(given)


def traceparent(request: Request) -> str | None:
    """Return the trace that the request belongs to, where it is well formed."""
    given = text(request, b"traceparent")
    return given if given and _TRACEPARENT.fullmatch(given) else None


def ledger_history(request: Request) -> UUID | None:
    """Return the history of the ledger that the caller knows."""
    given = _once(request, b"ledger-history")
    if given is not None and _UUID.fullmatch(given) is None:
        raise Problem("malformed_header", "Ledger-History must be the history of an earlier response, which is a UUID.")
    return None if given is None else UUID(given)


def last_event_id(request: Request) -> tuple[UUID | None, int] | None:
    """Return the history and the position of the last event that a client of the stream has seen.

    The ids of earlier versions were positions alone, so the history may be absent.
    """
    given = _once(request, b"last-event-id")
    if given is None:
        return None
    seen = _LAST_EVENT_ID.fullmatch(given)
    if seen is None:
        raise Problem(
            "malformed_header", "Last-Event-ID must be an id of this stream: the history, a colon and the position."
        )
    # PostgreSQL's bigint holds the position.
    return (UUID(seen[1]) if seen[1] else None), int(seen[2])


def repeated_event_id(request: Request) -> str | None:
    """Return `Last-Event-ID` as it was sent, if it can be an id of the stream."""
    given = request.headers.get("last-event-id", "")
    return given if _LAST_EVENT_ID.fullmatch(given) else None


def bearer(request: Request) -> str | None:
    """Return the API key that was presented."""
    given: Headers = request.scope[_BY_NAME]
    said = _BEARER.fullmatch(given.get(b"authorization", b""))
    return None if said is None or b"authorization" in given.repeated else said[1].decode("latin-1")


def has_body(request: Request) -> bool:
    """Tell whether the request announces a body."""
    given = of(request)
    return given.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in given


def media_type(request: Request) -> str | None:
    """Return what the body is said to be; nothing where it would have to be decoded first, or is said to be two things.

    Of two headers that speak of one body, each may be believed by somebody.
    """
    given: Headers = request.scope[_BY_NAME]
    if b"content-type" in given.repeated:
        return None
    if b"content-encoding" in given:
        all_said = [value for name, value in request.scope["headers"] if name == b"content-encoding"]
        if not {coding.strip().lower() for said in all_said for coding in said.split(b",")} <= {b"", b"identity"}:
            return None
    said = given.get(b"content-type", b"")
    if said == b"application/json":
        return "application/json"  # as nearly everyone says it
    kind, *parameters = said.decode("latin-1").lower().split(";")
    charsets = {p.partition("=")[2].strip(' "') for p in parameters if p.strip().startswith("charset")}
    return kind.strip() if charsets <= {"utf-8", "utf8"} else None


def path_id(text: str) -> str:
    """Return an id that stands in the path, chosen by the client."""
    if re.fullmatch(ID_PATTERN, text) is None:
        raise Problem("malformed_path")
    return text


def path_creator(text: str) -> str:
    """Return a creator's id that stands in the path, without an @ before it."""
    try:
        return shown_creator_id(path_id(text))
    except Unusable:
        raise Problem("malformed_path") from None


def path_video(text: str, policy: VideoIds, *, exact: bool) -> str:
    """Return a video's id that stands in the path, to record something of the video."""
    try:
        return video_id(path_id(text), policy, exact=exact)
    except Unusable as error:
        raise Problem("malformed_path", str(error)) from None


def path_uuid(text: str, what: str) -> UUID:
    """Return an id that stands in the path and was given out by us; another spelling of one is simply unknown."""
    if _UUID.fullmatch(text) is None:
        raise Unknown(what)
    return UUID(text)


def of(request: Request) -> Headers:
    """Return a request's headers by name; the middleware has read them."""
    known: Headers = request.scope[_BY_NAME]
    return known


def by_name(scope: Scope) -> Headers:
    """Return a request's headers by name, and keep them with it: to look through all for each took a tenth of it."""
    kept: Headers | None = scope.get(_BY_NAME)
    if kept is not None:
        return kept
    given = scope["headers"]
    scope[_BY_NAME] = known = Headers(given)
    if len(known) < len(given):
        known.update(reversed(given))
        known.repeated = {name for name, times in Counter(name for name, _ in given).items() if times > 1}
    return known


def text(request: Request, name: bytes, default: str = "") -> str:
    """Return the first header of a name, or another text where there is none."""
    given: bytes | None = request.scope[_BY_NAME].get(name)
    return default if given is None else given.decode("latin-1")


def _once(request: Request, name: bytes) -> str | None:
    given: Headers = request.scope[_BY_NAME]
    said = given.get(name)
    if said is None:
        return None
    if name in given.repeated:
        raise Problem("malformed_header", f"{_SPELLED[name]} was sent more than once.")
    return said.decode("latin-1")
