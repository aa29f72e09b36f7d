"""The application: the routes of all resources, with their middleware and dependencies."""

from __future__ import annotations

import functools
import importlib.metadata
import logging
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import orjson
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response

from api import (
    access_log,
    advertisers,
    alerts,
    api_keys,
    authorization_batch,
    authorizations,
    calendars,
    campaigns,
    code_list,
    codes,
    dossiers,
    erasure,
    event_types,
    events,
    evidence,
    exports,
    figures,
    health,
    histories,
    import_mappings,
    import_runs,
    imports,
    list_exports,
    log,
    permissions,
    redemptions,
    shares,
    stats,
    streams,
    videos,
    webhook_deliveries,
    webhooks,
)
from api.authorization_batch import upload_bytes, upload_places
from api.console import pages
from api.console.cookies import session_id
from api.console.visit import Console
from api.event_content import EventAnswer, KeyNames
from api.http import asyncapi, docs, headers
from api.http.cross_origin import CrossOrigin
from api.http.denied_attempts import record_denied_attempt
from api.http.dependencies import Limits, Services, SharedPlaces, services_of
from api.http.homes import Homes
from api.http.limits import Limit
from api.http.metrics import render_metrics
from api.http.middleware import MAX_BODY_BYTES, MAX_REQUEST_S, RequestMiddleware, Waiting
from api.http.openapi import reference
from api.http.page_process import NotHandedOver, PageProcess
from api.http.places import page_places
from api.http.problems import Problem, as_problem
from api.http.protocol import OWNED
from api.http.receipts import Waiting as WaitingForReceipts
from api.http.routing import PageRoute, Routes
from api.http.single_flight import SingleFlight
from api.http.streaming_download import download_places
from api.http.turns import Turns
from api.streams import Streams, stream_places
from domain.errors import Refused
from infra.crypto.envelope import MasterKeyError
from infra.delivery.event_schemas import schemas
from infra.errors import (
    IdempotencyMismatch,
    IdempotencyRunning,
    KeyNoLongerValid,
    KeyNotRotatable,
    TokenRefused,
    Unavailable,
    Unreadable,
)
from infra.eventstore.current_code import CurrentCodes
from infra.eventstore.histories import HistoryChanged
from infra.postgres.damage import is_damage
from infra.proof.sealed_sizes import SealedSizes
from infra.proof.served_log import ServedLogs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from fastapi.telemetry import TelemetryConfig
    from starlette.routing import BaseRoute
    from starlette.types import ASGIApp, Receive, Scope, Send

TITLE: Final = "Sparkledger"
TAGS: Final = [
    {"name": "Commands", "description": "Commands change something, and return the new state."},
    {"name": "Reads", "description": "Codes, permissions, the authorization question and statistics."},
    {"name": "Audit", "description": "The audit trail: every event, in the order of recording."},
    {"name": "Webhooks", "description": "Webhooks deliver events, signed by the Standard Webhooks specification."},
    {"name": "Alerts", "description": "Alerts reach people by e-mail and chat, and calendars show when codes end."},
    {"name": "Erasure", "description": "Permanent destruction of the sealed data of a creator."},
    {"name": "Keys", "description": "Manage API keys."},
    {"name": "Health", "description": "Health and metrics, for operators."},
]
# One flat list, the busiest routes first: a router within a router is matched twice for every request. The stream comes
# before the events: its address would match that of one event.
_RESOURCES: Final = (
    codes,
    redemptions,
    shares,
    campaigns,
    permissions,
    code_list,
    authorizations,
    authorization_batch,
    histories,
    stats,
    figures,
    streams,
    events,
    event_types,
    exports,
    evidence,
    list_exports,
    dossiers,
    imports,
    import_mappings,
    import_runs,
    log,
    access_log,
    webhooks,
    webhook_deliveries,
    alerts,
    calendars,
    advertisers,
    videos,
    erasure,
    api_keys,
    health,
)
_SCHEMAS: Final = {name: orjson.dumps(schema) for name, schema in schemas().items()}
_ASYNCAPI: Final = orjson.dumps(asyncapi.document(EventAnswer, streams.ENDINGS))
# FastAPI's hooks see raw bodies, and its log would repeat what validation refused.
_NO_TELEMETRY: Final[TelemetryConfig] = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}
_log = logging.getLogger(__name__)

# What routes raise on purpose; everything else is a fault of ours, and `RequestMiddleware` answers it.
_RAISED: Final = (
    HTTPException,
    Refused,
    HistoryChanged,
    IdempotencyMismatch,
    IdempotencyRunning,
    KeyNoLongerValid,
    KeyNotRotatable,
    TokenRefused,
    Unavailable,
    Unreadable,
    MasterKeyError,
)


def _special_answer(request: Request, problem: Problem) -> Response | None:
    """Return what a browser gets in place of a problem: a page, or a stream that ends at once; None for programs."""
    return pages.problem_answer(request, problem) or streams.ended_stream(request, problem)


class Application(FastAPI):
    """FastAPI's description of the routes; the only middleware is `RequestMiddleware`.

    A request goes from there straight to its route. What FastAPI and Starlette would put in between took a sixth of a
    request: their own middleware answers what broke, which this one does, bounds bodies, which it does too, and closes
    uploaded files, which come in none of our bodies; and their routers try one route after another.
    """

    def __init__(
        self,
        *,
        max_body_bytes: int,
        waiting: Waiting | None = None,
        damaged: Callable[[Exception], Exception | None] = lambda _: None,
        cors_origins: Sequence[str] = ("none",),
        page_process: PageProcess | None = None,
        **more: Any,
    ) -> None:
        """Take what the middleware takes, whose pages may read answers, what makes pages, and what FastAPI takes."""
        super().__init__(**more)
        # Starlette's own state finds each attribute in Python, and a request asks for several.
        self.state = SimpleNamespace()  # type: ignore[assignment] # all that is used of a state are its attributes
        self._page_process = page_process
        self._damaged = damaged
        self._cors_origins = cors_origins
        self._waiting = waiting
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        scope["app"] = self
        await self._stack(scope, receive, send)

    @functools.cached_property
    def _stack(self) -> ASGIApp:
        """What a request passes; made with the first one, when all routes are there."""
        stack = RequestMiddleware(
            self.to_route,
            max_body_bytes=self._max_body_bytes,
            waiting=self._waiting,
            damaged=self._damaged,
            page_for=_special_answer,
            refuses=_RAISED,
            refused=self._response,
        )
        return stack if tuple(self._cors_origins) == ("none",) else CrossOrigin(stack, self._cors_origins)

    @functools.cached_property
    def _routes(self) -> Routes:
        return Routes(self.router.routes)

    def to_route(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Answer a request that has passed the middleware."""
        if scope["type"] != "http":
            return self.router(scope, receive, send)
        route = self._routes.find(scope)
        if self._page_process is not None and self._is_for_page_process(route, scope):
            return self._by_page_process(self._page_process, route.app, scope, receive, send)
        return route.app(scope, receive, send)

    def _is_for_page_process(self, route: BaseRoute, scope: Scope) -> bool:
        # Whether there is a session of this cookie is found out there, so that made-up cookies cost programs nothing.
        return isinstance(route, PageRoute) and session_id(Request(scope)) is not None

    async def _by_page_process(
        self, page_process: PageProcess, here: ASGIApp, scope: Scope, receive: Receive, send: Send
    ) -> None:
        try:
            await page_process.answer(scope, receive, send)
        except NotHandedOver:
            await here(scope, receive, send)
            if OWNED in scope:
                page_process.start()

    async def _response(self, scope: Scope, error: Exception) -> Response:
        """Return what is answered where a route raised on purpose."""
        request, problem = Request(scope), as_problem(error)
        if isinstance(error, MasterKeyError):
            _log.error("Request %s needs a key that does not open: %s", scope["request_id"], error)
        await record_denied_attempt(request, problem)
        if problem.code == "method_not_allowed":
            methods = sorted(self._routes.methods(scope["path"]))
            problem = Problem(problem.code, headers={"Allow": ", ".join(methods)})
        return _special_answer(request, problem) or problem.response(scope["request_id"])


class RoutedApplication(Application):
    """The application of several servers: a request goes on to the application of its ledger's server.

    Its own middleware is the only one that a request passes, so that a process has one limit of each kind.
    """

    def to_route(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Hand a request on, that has passed the middleware."""
        pages = self._page_process
        if pages and scope["type"] == "http" and self._is_for_page_process(self._routes.find(scope), scope):
            return self._by_page_process(pages, self._to_home, scope, receive, send)
        return self._to_home(scope, receive, send)

    async def _to_home(self, scope: Scope, receive: Receive, send: Send) -> None:
        home = await _home(self.state.homes, scope) if scope["type"] == "http" else self.state.homes.apps[0]
        scope["app"] = home
        try:
            await home.to_route(scope, receive, send)
        except Exception as error:
            damage = services_of(scope).database.damage.found(error) if is_damage(error) else None
            if damage is None:
                raise
            raise damage from error


async def _home(homes: Homes, scope: Scope) -> Any:
    """Return the application of the server that a request's ledger is on; of the first, if it shows nothing."""
    request = Request(scope)
    presented = headers.bearer(request)
    if presented is not None:
        return await homes.of_key(presented)
    if scope["query_string"] and (text := request.query_params.get("token")) is not None:
        # All servers seal tokens with the same key.
        token = await services_of(scope).stream_tokens.open(text)
        return homes.apps[0] if token is None else await homes.of_key(token.presented)
    session = session_id(request)
    if session is not None:
        return await homes.find(session, _has_session)
    kind, _, rest = scope["path"][1:].partition("/")
    if kind == "calendar" and rest.endswith(".ics"):
        return await homes.find(rest.removesuffix(".ics"), _has_calendar)
    if kind == "log":
        return await homes.find(rest.partition("/")[0], _has_public_log)
    return homes.apps[0]


async def _has_session(app: FastAPI, shown: str) -> bool:
    return await app.state.console.sessions.find(shown, used=False) is not None


async def _has_calendar(app: FastAPI, shown: str) -> bool:
    async with app.state.strangers.turn():
        return await app.state.services.calendars.find(shown) is not None


async def _has_public_log(app: FastAPI, shown: str) -> bool:
    return any(ledger == shown for ledger, _ in await app.state.public_logs())


def create_app(
    *servers: Services,
    max_body_bytes: int = MAX_BODY_BYTES,
    max_request_s: float = MAX_REQUEST_S,
    metrics: bool = True,
    page_process: PageProcess | None = None,
) -> FastAPI:
    """Build the application; anyone who calls this opens and closes its dependencies.

    Args:
        servers: what requests need, of each database server; the first answers what concerns no ledger.
        max_body_bytes: the limit of a body.
        max_request_s: until when an answer must have begun.
        metrics: whether it answers `/metrics`; otherwise `create_metrics_app` does, on another port.
        page_process: what makes pages; None where this process makes them all.

    """
    waiting = Waiting(within_s=max_request_s)
    per_second = servers[0].settings.requests_per_second
    limits = Limits(Limit(per_second, per_second))
    places = SharedPlaces(
        waiting, page_places(), download_places(), upload_places(), upload_bytes(), stream_places(), Turns()
    )
    pages_by = page_process if len(servers) == 1 else None
    apps = [
        _app(services, limits, places, pages_by, metrics=metrics, max_body_bytes=max_body_bytes) for services in servers
    ]
    homes = Homes(apps) if len(apps) > 1 else None
    streams: list[Streams] = [app.state.streams for app in apps]
    stopped = SingleFlight(functools.partial(health.stopped_consumers, servers))
    figures = SingleFlight(
        functools.partial(render_metrics, servers, places, [one.observe for one in streams], page_process)
    )
    for app in apps:
        app.state.servers, app.state.homes, app.state.all_streams = servers, homes, streams
        app.state.stopped, app.state.metrics = stopped, figures
    if homes is None:
        return apps[0]
    routed = RoutedApplication(
        max_body_bytes=max_body_bytes,
        waiting=waiting,
        cors_origins=servers[0].settings.cors_origins,
        page_process=page_process,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry=_NO_TELEMETRY,
    )
    routed.state = apps[0].state
    routed.router.routes.extend(apps[0].router.routes)
    routed.openapi = apps[0].openapi  # type: ignore[method-assign]
    return routed


def _app(
    services: Services,
    limits: Limits,
    places: SharedPlaces,
    page_process: PageProcess | None,
    *,
    max_body_bytes: int,
    metrics: bool,
) -> Application:
    """Build the application of one server, within the limits of the process."""
    waiting = places.requests
    app = Application(
        max_body_bytes=max_body_bytes,
        waiting=waiting,
        cors_origins=services.settings.cors_origins,
        page_process=page_process,
        damaged=lambda error: services.database.damage.found(error) if is_damage(error) else None,
        title=TITLE,
        version=importlib.metadata.version("sparkledger"),
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        openapi_tags=TAGS,
        telemetry=_NO_TELEMETRY,
    )
    app.state.services = services
    app.state.limits = limits
    app.state.current_codes = CurrentCodes(services.database, services.aggregates)
    app.state.strangers = log.Strangers()
    app.state.calendar_reads = Limit(calendars.READS_AT_ONCE, calendars.READS_PER_SECOND)
    app.state.public_logs = SingleFlight(ServedLogs(services.database).public)
    app.state.sealed_sizes = SealedSizes(services.database)
    app.state.receipts = WaitingForReceipts()
    app.state.key_names = KeyNames(services.key_admin)
    app.state.places = places
    app.state.streams = Streams(services, app.state.key_names, places.streams, app.state.sealed_sizes)
    services.on_keys_changed.extend((app.state.key_names.forget, app.state.streams.keys_changed))
    for resource in _RESOURCES:
        app.router.routes.extend(resource.router.routes)
    if metrics:
        app.router.routes.extend(health.metrics_router.routes)
    app.add_route("/openapi.json", _openapi, methods=["GET"])
    app.add_route("/asyncapi.json", _asyncapi, methods=["GET"])
    app.add_route("/schemas/{name}.json", _schema, methods=["GET"])
    app.add_route("/docs", _docs, methods=["GET"])
    app.state.console = Console(services, pages.PAGES)
    app.router.routes.extend(pages.ROUTES)
    app.openapi = lambda: reference(app)  # type: ignore[method-assign]
    return app


def create_metrics_app(app: FastAPI) -> FastAPI:
    """Build the application that answers `/metrics` on a port of its own, with the figures of another one."""
    served = Application(
        max_body_bytes=MAX_BODY_BYTES,
        openapi_url=None,
        redirect_slashes=False,
        telemetry=_NO_TELEMETRY,
    )
    served.state = app.state
    served.router.routes.extend(health.metrics_router.routes)
    return served


async def _openapi(request: Request) -> Response:
    return Response(orjson.dumps(request.app.openapi()), media_type="application/json")


async def _asyncapi(_: Request) -> Response:
    return Response(_ASYNCAPI, media_type="application/json")


async def _schema(request: Request) -> Response:
    schema = _SCHEMAS.get(request.path_params["name"])
    if schema is None:
        return Problem("route_unknown").response(request.scope["request_id"])
    return Response(schema, media_type="application/schema+json")


async def _docs(request: Request) -> Response:
    document: dict[str, Any] = request.app.openapi()
    answer_headers = {"Content-Security-Policy": docs.POLICY, "Referrer-Policy": "no-referrer"}
    return HTMLResponse(docs.page(document), headers=answer_headers)
