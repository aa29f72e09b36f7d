"""What every route does before its own lines: who calls, may they, is what they sent well formed; in this order.

FastAPI matches and describes; reading the request is done here, because its own way parses the body before it knows
the caller, and takes longer than all the rest. A route's signature says everything:

    caller: Annotated[Caller, allow(…)]     whom to let in; `Caller | None` where no key is needed
    query: Annotated[SomeQuery, Query()]    the query, as a model
    body: SomeBody                          the body, as a model; `| None = None` where it may be absent
    code_id: str                            what stands in the path

What the signature cannot say, for the API reference, stands above it: `@Operation(…)`.
"""

from __future__ import annotations

import asyncio
import functools
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar
from urllib.parse import parse_qsl, unquote

import orjson
from fastapi import Request
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect

from api.http import headers
from api.http.caller import Allowed, Caller, admit
from api.http.cursors import history_of
from api.http.dependencies import places_of, services_of
from api.http.fields import VideoIdPolicy
from api.http.middleware import HEAD
from api.http.models import Body, Command
from api.http.problems import Problem, malformed, malformed_body
from api.http.query_params import QueryModel
from api.http.reads import note_read
from api.http.receipts import add_receipt, wants_receipt
from api.http.strict_json import has_duplicate_names
from api.http.unknown_fields import KnownFields, model_in
from domain.values import ID_PATTERN

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from fastapi import FastAPI
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

    from domain.values import Role

M = TypeVar("M", bound=BaseModel)
E = TypeVar("E", bound="Callable[..., Any]")

MAX_PARAMETERS: Final = 50
# Fields, entries and objects of a body, counted generously: commas and brackets within texts count, too. The largest
# body that can be valid has fewer: a campaign whose targeting has 16 KiB of JSON.
MAX_VALUES: Final = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What the API reference says of a route beyond what follows from its address and its signature.

    Attributes:
        request_headers: those that it reads, besides Idempotency-Key, Correlation-Id and Causation-Id.
        answer_headers: those of its answer, besides what every answer and every command's answer has, and Link.
        refusals: HTTP statuses that it may refuse with, and that do not follow from what it takes.
        replays: whether a repeat with the same Idempotency-Key gets the first answer; None: if it is a command.
        repeats: whether the same again, without an Idempotency-Key, answers 200 in place of 201.
        lines: whether it answers in lines of NDJSON or CSV, too.
        other_formats: the other media types that it answers in, as text.
        streams: whether its answer is made while it is sent, so that there is none without its body.
        large: whether its answers can have megabytes: few are made at a time, because each takes several times as much
            memory meanwhile.
        trace: how the access log learns of it: `recorded` by the route itself before it answers, or `noted` when it
            answers; None: noted if it is a GET with a key, and otherwise not at all.
        links: the operations that lead on from its answer, as OpenAPI has them.
        example: a body.

    """

    request_headers: tuple[str, ...] = ()
    answer_headers: tuple[str, ...] = ()
    refusals: tuple[int, ...] = ()
    replays: bool | None = None
    repeats: bool = False
    lines: bool = False
    other_formats: tuple[str, ...] = ()
    streams: bool = False
    large: bool = False
    trace: Literal["recorded", "noted"] | None = None
    links: Mapping[str, Any] = field(default_factory=dict)
    example: Mapping[str, Any] | None = None

    def __call__(self, endpoint: E) -> E:
        """Describe a route's function."""
        vars(endpoint)["operation"] = self
        return endpoint


_UNDESCRIBED: Final = Operation()
_ANYONE: Final = Allowed(())


class Route(APIRoute):
    """A route that knows its roles, and turns callers away before it reads what they send."""

    def __init__(self, *args: Any, **more: Any) -> None:
        """Take what FastAPI takes, and answer without what it wraps around a route for features not used here."""
        super().__init__(*args, **more)
        self.app = self._app()

    @property
    def roles(self) -> tuple[Role, ...]:
        """The roles that are let in; none where anyone is."""
        return self._allowed.roles

    @property
    def _allowed(self) -> Allowed:
        calls = [dependency.call for dependency in self.dependant.dependencies]
        return next((call for call in calls if isinstance(call, Allowed)), _ANYONE)

    @property
    def operation(self) -> Operation:
        """What the reference says of it beyond its signature."""
        found: Operation = vars(self.endpoint).get("operation", _UNDESCRIBED)
        return found

    @property
    def takes_body(self) -> bool:
        """Whether it takes a body, as a model or as it comes."""
        return self.body_field is not None or self.openapi_extra is not None

    @property
    def is_command(self) -> bool:
        """Whether it takes the body of a command, and so records events."""
        return _of_kind(typing.get_type_hints(self.endpoint), Command)[0] is not None

    @property
    def is_paged(self) -> bool:
        """Whether its query asks for one page of several."""
        _, query = _of_kind(typing.get_type_hints(self.endpoint), QueryModel)
        return query is not None and "cursor" in query.model_fields

    @property
    def replays(self) -> bool:
        """Whether a repeat with the same Idempotency-Key gets the first answer."""
        return self.is_command if self.operation.replays is None else self.operation.replays

    @property
    def answers_head(self) -> bool:
        """Whether HEAD is answered as GET, without the body."""
        return "GET" in (self.methods or ()) and not self.operation.streams

    @property
    def notes_reads(self) -> bool:
        """Whether the access log learns of its reads when they are answered."""
        trace = "noted" if self.operation.trace is None and self.methods == {"GET"} else self.operation.trace
        return bool(self.roles) and trace == "noted"

    def _app(self) -> ASGIApp:  # noqa: C901 - the way of a request is one piece, to be read from top to bottom
        """Return what answers a request: it reads as the signature says, calls the route, and sends its answer.

        What is raised is answered by the application, once for all routes: `api.http.app`.
        """
        endpoint, allowed, notes_reads = self.endpoint, self._allowed, self.notes_reads
        large, is_command, streams = self.operation.large, self.is_command, self.operation.streams
        types = typing.get_type_hints(endpoint)
        named = {kind: name for name, kind in types.items() if kind in {Caller, Caller | None, Request}}
        caller_name, request_name = named.get(Caller) or named.get(Caller | None), named.get(Request)
        query_name, query_type = _of_kind(types, QueryModel)
        body_name, body_type = _of_kind(types, Body)
        body_validator = None if body_type is None else TypeAdapter(body_type).validator
        known_fields = KnownFields(model_in(body_type) or BaseModel)
        nothing_asked = None if query_type is None else _of_no_query(query_type)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: C901 - as above
            if "%" in scope["path"]:
                scope["path"] = unquote(scope["path"])
                scope["path_params"] = {name: unquote(value) for name, value in scope["path_params"].items()}
            if streams and HEAD in scope:
                raise Problem("method_not_allowed")
            request = Request(scope, receive, send)
            arguments: dict[str, Any] = {**scope["path_params"]}
            caller: Caller | None = None
            if caller_name is not None:
                if not allowed.without_key or b"authorization" in headers.of(request):
                    caller = await admit(request, allowed)
                arguments[caller_name] = caller
            if request_name is not None:
                arguments[request_name] = request
            if query_name is not None and query_type is not None:
                query = None if scope["query_string"] else nothing_asked
                arguments[query_name] = query or await read_query(request, query_type, caller)
            # May hold a secret: from here on there is the model, whose secrets do not print, and a hash.
            sent = None
            if body_name is not None and body_validator is not None:
                sent, left_out = known_fields.without_excess(await read_json(request))
                try:
                    arguments[body_name] = await _validated(body_validator.validate_python, sent, request, caller)
                except ValidationError as error:
                    raise malformed("malformed_body", error, body_type, left_out) from None
            if caller is not None and b"idempotency-key" in headers.of(request):
                caller.keep_request_hash(sent)
            del sent
            # No command has a query of its own, so one without a query spends nothing on receipts.
            if caller is not None and (large or (is_command and scope["query_string"])):
                response = await _answer(endpoint, arguments, caller, large=large)
            else:
                response = await endpoint(**arguments)
            if notes_reads and caller is not None:
                note_read(caller, arguments.get(query_name) if query_name is not None else None)
            await response(scope, receive, send)

        return app


async def _answer(
    endpoint: Callable[..., Coroutine[Any, Any, Response]], arguments: dict[str, Any], caller: Caller, *, large: bool
) -> Response:
    """Call a route; if its answer may be large, in the caller's place. A command's query may ask for a receipt."""
    if large:
        pages = places_of(caller.request.scope).pages
        async with pages.place(caller.ledger_id, caller.key.key_id):
            return await endpoint(**arguments)
    if not wants_receipt(caller.request):
        return await endpoint(**arguments)
    began_at = asyncio.get_running_loop().time()
    answer = await endpoint(**arguments)
    await add_receipt(caller, answer, began_at)
    return answer


def _of_no_query(model: type[M]) -> M | None:
    """Return the model of an empty query, made once for all requests; None if the query cannot be empty."""
    try:
        return model.model_validate({})
    except ValidationError:
        return None


async def read_query(request: Request, model: type[M], caller: Caller | None) -> M:
    """Return the query as its model.

    Raises:
        Problem: it is malformed, or names a parameter twice, of which only one could count.
        HistoryChanged: its cursor is of another history of the ledger.

    """
    text = request.scope["query_string"].decode("latin-1")
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_PARAMETERS) if text else []
    except ValueError:
        raise Problem("malformed_query", f"The query has more than {MAX_PARAMETERS} parameters.") from None
    parameters = dict(pairs)
    if len(parameters) < len(pairs):
        known = {field.alias or name for name, field in model.model_fields.items()}
        names = [name for name, _ in pairs]
        twice = next((name for name in parameters if name in known and names.count(name) > 1), None)
        which = "A query parameter" if twice is None else f"The parameter `{twice}`"
        raise Problem("malformed_query", f"{which} was sent more than once.")
    sent = parameters.get("cursor") if caller is not None and "cursor" in model.model_fields else None
    if sent is not None:
        parameters["cursor"] = sent.partition(".")[2] or sent
    try:
        query = await _validated(model.model_validate, parameters, request, caller)
    except ValidationError as error:
        raise malformed("malformed_query", error, model) from None
    if sent is not None and caller is not None:
        caller.history.require(history_of(sent))
    return query


async def read_json(request: Request) -> Any:
    """Return what the body says; it may hold a secret, and is not kept with the request.

    Raises:
        Problem: it is no JSON as RFC 8259 has it (no NaN, no lone surrogates, nothing but UTF-8), or names a field
            twice.

    """
    if headers.media_type(request) != "application/json" and headers.has_body(request):
        raise Problem("unsupported_media_type")
    body = await _whole_body(request)
    # Counted before it is parsed: to parse, validate and refuse so many values would hold up all other requests.
    if len(body) > MAX_VALUES and (values := sum(map(body.count, (b",", b"[", b"{")))) > MAX_VALUES:
        raise malformed_body("", f"This has about {values:,} fields and entries. The maximum is {MAX_VALUES:,}.")
    try:
        sent = orjson.loads(body) if body else None
        twice = isinstance(sent, dict) and has_duplicate_names(sent, body)
    except (orjson.JSONDecodeError, RecursionError):
        raise malformed_body("", "Expected JSON in UTF-8.") from None
    if twice:
        raise malformed_body("", "A field was sent more than once.")
    return sent


async def _whole_body(request: Request) -> bytes:
    """Return the body, most of which come in one piece; unlike Starlette's own, it leaves none with the request."""
    pieces: list[bytes] = []
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(pieces)


# The fields that name videos.
_VIDEO_IDS: Final = frozenset({"video_id", "expected_video_id", "q"})


async def _validated(validate: Callable[..., M], sent: Any, request: Request, caller: Caller | None) -> M:
    """Validate what was sent; video ids that the ledger has are accepted, whatever they look like.

    Raises:
        ValidationError: it is malformed.

    """
    policy = _policy(services_of(request.scope).settings.video_ids)
    while True:
        try:
            return validate(sent, context=policy)
        except ValidationError as error:
            if caller is None or not isinstance(sent, dict) or sent.keys().isdisjoint(_VIDEO_IDS):
                raise
            found = error.errors(include_url=False, include_input=False)
            unusable = {one["ctx"]["pasted"] for one in found if "pasted" in one.get("ctx", {})}
            recorded = {one for one in unusable if await _is_recorded(caller, one)}
            if not recorded:
                raise
            policy = replace(policy, recorded=policy.recorded | recorded)


async def _is_recorded(caller: Caller, video_id: str) -> bool:
    if re.fullmatch(ID_PATTERN, video_id) is None:
        return False
    return bool((await caller.services.views.evidence.of_video(caller.ledger_id, video_id)).codes)


# Made once, not for every request.
_policy: Final = functools.cache(VideoIdPolicy)


def roles_by_route(app: FastAPI) -> dict[str, tuple[Role, ...]]:
    """Return the one table of what each role may, read from the routes themselves: `METHOD /path` → roles."""
    return {
        f"{method} {route.path}": route.roles
        for route in app.routes
        if isinstance(route, Route)
        for method in sorted(route.methods or ())
    }


def _of_kind(types: dict[str, Any], kind: type[M]) -> tuple[str | None, Any]:
    """Return name and type of the parameter that is a model of some kind, or may be one."""
    for name, found in types.items():
        if any(isinstance(t, type) and issubclass(t, kind) for t in (found, *typing.get_args(found))):
            return name, found
    return None, None
