"""The middleware that every request passes first and every answer last: an id, limits, headers and metrics.

Plain ASGI, around the whole application: what breaks inside is answered here, as a problem like any other.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from prometheus_client import REGISTRY, Gauge
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from starlette.requests import ClientDisconnect, Request

from api.http import headers
from api.http.limits import Slots
from api.http.places import PlaceFigures
from api.http.problems import Problem, as_problem
from infra.ids import random_16

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from prometheus_client import Metric
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from infra.auth.api_keys import ApiKey

MAX_BODY_BYTES: Final = 1024 * 1024
# Of batches of authorizations and of sheets, which are kept on disk while they are answered.
MAX_BATCH_BYTES: Final = 16 * 1024 * 1024
_LARGER_BODIES: Final = {"/v1/authorizations/batch": MAX_BATCH_BYTES, "/v1/imports": MAX_BATCH_BYTES}
# Longer than the longest wait that a read may ask for, and than the database's own limit for a statement.
MAX_REQUEST_S: Final = 30.0
# Marks the scope of a request that came with HEAD, and is answered as with GET.
HEAD: Final = "sparkledger.head"
# In the scope of a request that another process handed over: its id there. That process counts it.
HANDED_OVER: Final = "sparkledger.handed_over"
# Requests that wait for their answer to begin; streams that have begun have a limit of their own.
MAX_WAITING: Final = 2_000
MAX_WAITING_OF_A_LEDGER: Final = MAX_WAITING // 2
MAX_WAITING_OF_A_KEY: Final = MAX_WAITING_OF_A_LEDGER // 2

_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_IN_FLIGHT: Final = Gauge("sparkledger_http_requests_in_flight", "Requests in progress.")
# Counted in a set, which costs less than the gauge's lock, twice for each request.
_in_flight: Final[set[Exchange]] = set()
_IN_FLIGHT.set_function(lambda: len(_in_flight))
# The labels of what no route answers, also if another method of the same address does: nothing that a stranger made up
# becomes a time series.
UNMATCHED: Final = ("other", "none")
# What a request counts as whose caller left before it was read.
LEFT: Final = 499

_NO_SNIFFING: Final = (b"x-content-type-options", b"nosniff")
# Where an answer does not say otherwise: answers are for the caller alone, and never a page.
_NO_STORE: Final = (b"cache-control", b"no-store")
_NO_PAGE: Final = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")

_CROWDED: Final = "Too many requests are already in progress. Nothing was done. Try again in a moment."
_CROWDED_BY_A_KEY: Final = (
    "Too many requests with this key are already in progress. Nothing was done. Try again in a moment."
)
_CROWDED_BY_A_LEDGER: Final = (
    "Too many requests with keys of this ledger are already in progress. Nothing was done. Try again in a moment."
)
_STOPPED: Final = "The server is stopping. Send the request again."
_STOPPED_IN_DOUBT: Final = (
    "The server is stopping. It is not known whether the command was recorded. Send it again with the same "
    "Idempotency-Key: it is recorded only once."
)

log = logging.getLogger(__name__)


class _Answers:
    """The answers with the same labels: how many took how long."""

    __slots__ = ("seconds", "within")

    def __init__(self) -> None:
        self.seconds = 0.0
        # By bucket; the last one is of those that took longer than any.
        self.within = [0] * (len(_BUCKETS_S) + 1)


class _Answered(Collector):
    """The answers of this process. They are counted in its one thread, so without a lock for each of three figures."""

    def __init__(self) -> None:
        self._by_labels: dict[tuple[str, str, int], _Answers] = {}

    def add(self, scope: Scope, status: int, seconds: float) -> None:
        """Count an answer. Methods, routes and statuses are those of the application, so there are few of them."""
        route: Any = scope.get("route")
        method, path = scope["method"], None if route is None else route.path
        if path is None or method not in route.methods:
            method, path = UNMATCHED
        labels = method, path, status
        answers = self._by_labels.get(labels)
        if answers is None:
            answers = self._by_labels[labels] = _Answers()
        answers.seconds += seconds
        answers.within[bisect_left(_BUCKETS_S, seconds)] += 1

    def collect(self) -> Iterator[Metric]:
        """Yield each figure; another thread may render them."""
        requests = CounterMetricFamily(
            "sparkledger_http_requests", "Requests answered.", labels=["method", "route", "status"]
        )
        seconds = HistogramMetricFamily(
            "sparkledger_http_request_seconds",
            "The time from the first byte of a request to the last byte of its response.",
            labels=["method", "route"],
        )
        by_route: dict[tuple[str, str], list[_Answers]] = {}
        for (method, route, status), answers in list(self._by_labels.items()):
            requests.add_metric([method, route, str(status)], sum(answers.within))
            by_route.setdefault((method, route), []).append(answers)
        for labels, of_route in by_route.items():
            up_to = itertools.accumulate(map(sum, zip(*(answers.within for answers in of_route), strict=True)))
            buckets = [(str(bound), float(count)) for bound, count in zip((*_BUCKETS_S, "+Inf"), up_to, strict=True)]
            seconds.add_metric(labels, buckets, sum(answers.seconds for answers in of_route))
        yield from (requests, seconds)


_answered: Final = _Answered()
REGISTRY.register(_answered)


class RequestMiddleware:
    """The outermost layer of the application."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_body_bytes: int = MAX_BODY_BYTES,
        waiting: Waiting | None = None,
        damaged: Callable[[Exception], Exception | None] = lambda _: None,
        page_for: Callable[[Request, Problem], Response | None] = lambda _request, _problem: None,
        refuses: tuple[type[Exception], ...] = (),
        refused: Callable[[Scope, Any], Awaitable[Response]] | None = None,
    ) -> None:
        """Wrap the application.

        Args:
            app: the application.
            max_body_bytes: the limit of a body, but for those that may be larger.
            waiting: the requests that wait, also for others to see.
            damaged: returns what is answered instead, if an error means that stored data is damaged.
            page_for: returns the page for a problem, if a person's browser asked; None for programs.
            refuses: what the application raises on purpose, before it answers.
            refused: returns what is answered where it did.

        """
        self._page_for = page_for
        self._damaged = damaged
        self._refuses = refuses
        self._refused = refused
        self._waiting = waiting or Waiting()
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever happens inside."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if b"%" in scope.get("raw_path", b""):
            # Routes are matched with the path as it was sent, so that `/metric%73` is none; `Route` decodes its ids.
            scope["path"] = scope["raw_path"].decode("latin-1")
        if scope["method"] == "HEAD":
            # The server sends no body: it decides by the scope of its own.
            scope = {**scope, "method": "GET", HEAD: True}
        exchange = Exchange(receive, send, _LARGER_BODIES.get(scope["path"], self._max_body_bytes), self._waiting)
        handed_over = scope.get(HANDED_OVER)
        if handed_over is not None:
            exchange.request_id = handed_over
        scope["request_id"] = exchange.request_id
        scope["exchange"] = exchange
        _in_flight.add(exchange)
        try:
            await self._answer(scope, exchange)
        finally:
            # The server keeps the scope where the exchange finds it: left in there, it would be a circle, and each
            # request would leave its objects to the garbage collector, which stops the process to look for them.
            del scope["exchange"]
            _in_flight.discard(exchange)
            self._waiting.end(exchange)
            if handed_over is None:
                _answered.add(scope, exchange.status, time.perf_counter() - exchange.began)

    async def _answer(self, scope: Scope, exchange: Exchange) -> None:
        # No problem that was raised has a name here: it knows this frame, and each would be left to the collector.
        try:
            exchange.refuse_announced(headers.by_name(scope))
            self._waiting.begin(exchange)
            try:
                await self._app(scope, exchange.receive, exchange.send)
            except self._refuses as error:
                if self._refused is None or exchange.begun:
                    raise
                response = await self._refused(scope, error)
                await response(scope, exchange.receive, exchange.send)
            return
        except TimeoutError as error:  # some other limit
            response = self._response(scope, as_problem(error))
            log.warning("Request %s timed out.", exchange.request_id)
        except asyncio.CancelledError:
            late = exchange.is_late()
            if exchange.begun and not late:
                raise
            response = self._response(scope, _late(exchange) if late else _stopped(scope, exchange))
        except ClientDisconnect:
            # Nobody is left to answer, and nothing of ours broke.
            exchange.status = exchange.status or LEFT
            return
        except Exception as error:  # the last resort: whatever broke, the caller gets an answer and we a traceback
            response = self._response(scope, as_problem(self._damaged(error) or error))
            if exchange.begun or not isinstance(error, Problem):
                log.exception("Request %s failed.", exchange.request_id)
        if not exchange.begun:
            await response(scope, exchange.receive, exchange.send)

    def _response(self, scope: Scope, problem: Problem) -> Response:
        return self._page_for(Request(scope), problem) or problem.response(scope["request_id"])


def _stopped(scope: Scope, exchange: Exchange) -> Problem:
    # The server stops, and cancels what was not answered in time. Its own answer would be a 500 without a word.
    log.warning("Request %s was cut short by the end of the server.", exchange.request_id)
    detail = _STOPPED if scope["method"] in {"GET", "HEAD"} else _STOPPED_IN_DOUBT
    return Problem("unavailable", detail, headers={"Retry-After": "1"})


def _late(exchange: Exchange) -> Problem:
    log.warning("Request %s timed out.", exchange.request_id)
    if exchange.reading:
        # What comes late would be taken for the next request.
        return Problem("body_too_slow", headers={"Connection": "close"})
    return Problem("timed_out", headers={"Retry-After": "1"})


class Waiting:
    """The requests of a process that wait for their answer to begin, in all, of each ledger and of each key.

    Commands wait to be recorded inside of their requests, so these are their shares, too. Nobody queues for a place
    here: a request takes one before it is known whose it is.

    All have the same time, so the one that began first is the next whose time is up: one timer is enough for all. It is
    one of the event loop in which the first of them began, so there is one such loop.

    Attributes:
        most: how many may wait.
        of_a_ledger: how many of them with keys of one ledger.
        of_a_key: how many of them with one key.
        within_s: how long one may wait, in seconds.

    """

    def __init__(
        self,
        most: int = MAX_WAITING,
        of_a_ledger: int = MAX_WAITING_OF_A_LEDGER,
        of_a_key: int = MAX_WAITING_OF_A_KEY,
        within_s: float = MAX_REQUEST_S,
    ) -> None:
        """Begin with none."""
        self.most = most
        self.of_a_ledger = of_a_ledger
        self.of_a_key = of_a_key
        self.within_s = within_s
        # With their tasks, in the order in which they began.
        self._exchanges: dict[Exchange, asyncio.Task[Any]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._ledgers: Slots[int] = Slots()
        # By the number of a key's id: a UUID's own hash is computed in Python.
        self._keys: Slots[int] = Slots()

    def begin(self, exchange: Exchange) -> None:
        """Let a request wait, where there is room."""
        if len(self._exchanges) >= self.most:
            raise Problem("unavailable", _CROWDED, headers={"Retry-After": "1"})
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine that runs has one
        self._exchanges[exchange] = task
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.within_s, self._cut_short)

    def _cut_short(self) -> None:
        """Cancel the tasks of requests whose time is up, and look again when that of the next one will be."""
        self._timer = None
        now = time.perf_counter()
        for exchange, task in self._exchanges.items():
            left_s = exchange.began + self.within_s - now
            if left_s > 0:
                self._timer = asyncio.get_running_loop().call_later(left_s, self._cut_short)
                return
            if not exchange.late:
                # A page that asks the API in its own task is a request within a request, which hears of it first.
                for other, same in self._exchanges.items():
                    other.late = other.late or same is task
                task.cancel()

    def of_key(self, exchange: Exchange, key: ApiKey) -> None:
        """Count a request that waits as its key's, where that and its ledger have room."""
        number, ledger_id = key.key_id.int, key.ledger_id
        of_key, of_ledger = self._keys.get(number, 0), self._ledgers.get(ledger_id, 0)
        if of_key >= self.of_a_key:
            raise Problem("too_many_requests", _CROWDED_BY_A_KEY, headers={"Retry-After": "1"})
        if of_ledger >= self.of_a_ledger:
            raise Problem("too_many_requests", _CROWDED_BY_A_LEDGER, headers={"Retry-After": "1"})
        self._keys[number], self._ledgers[ledger_id] = of_key + 1, of_ledger + 1
        exchange.key = key

    def end(self, exchange: Exchange) -> None:
        """Let it wait no longer; again, nothing changes."""
        if self._exchanges.pop(exchange, None) is None:
            return
        key = exchange.key
        if key is not None:
            self._keys.give_back(key.key_id.int)
            self._ledgers.give_back(key.ledger_id)
            exchange.key = None

    def figures(self) -> PlaceFigures:
        """Return whose requests wait."""
        keys = {UUID(int=number): taken for number, taken in self._keys.copy().items()}
        return PlaceFigures(self.most, self.of_a_ledger, self._ledgers.copy(), keys, {})


class Exchange:
    """One request and its answer, as they pass.

    Attributes:
        key: the key that it waits as one of, once it is known.
        history: the ledger's history, as its answer says it.
        status: the status of its answer; 0 until that begins.
        reading: whether its body is waited for.
        late: whether its task was cancelled because its time was up.
        began: when it began, by `time.perf_counter`.

    """

    key: ApiKey | None = None
    history: bytes | None = None
    status = 0
    reading = False
    late = False
    _received = 0
    _whole = False

    def __init__(self, receive: Receive, send: Send, max_body_bytes: int, waiting: Waiting) -> None:
        """Give the request an id; it leaves those that are waiting when its answer begins."""
        self.began = time.perf_counter()
        self.request_id = random_16().hex()
        self._receive = receive
        self._send = send
        self._max_body_bytes = max_body_bytes
        self._waiting = waiting

    @property
    def begun(self) -> bool:
        """Whether the answer is on its way, so that no other can be given."""
        return self.status != 0

    def is_late(self) -> bool:
        """Tell, once the task was cancelled, whether it was because the time was up, and for no other reason."""
        task = asyncio.current_task()
        return self.late and task is not None and task.uncancel() == 0

    def of_key(self, key: ApiKey) -> None:
        """Let the request wait as one of a key's, now that it is known whose it is.

        Raises:
            Problem: as many of that key or its ledger wait as may.

        """
        self._waiting.of_key(self, key)

    def refuse_announced(self, given: headers.Headers) -> None:
        """Refuse a body that says of itself that it is too large, before any of it is read."""
        length = given.get(b"content-length", b"")
        if length.isdigit() and int(length[:20]) > self._max_body_bytes:
            raise self._too_large()

    async def receive(self) -> Message:
        """Pass on what comes in, as long as it is not too much, whatever its headers said."""
        # Left as it is where the wait is cancelled: then it is known for what time ran out. After the body only the end
        # of the connection is waited for.
        self.reading = not self._whole
        message = await self._receive()
        self.reading = False
        if message["type"] == "http.request":
            self._whole = not message.get("more_body", False)
            self._received += len(message.get("body", b""))
            if self._received > self._max_body_bytes:
                raise self._too_large()
        return message

    def send(self, message: Message) -> Awaitable[None]:
        """Pass on what goes out, with the headers that every answer bears."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._waiting.end(self)
            given = message["headers"]
            sent = [*given, _NO_SNIFFING, (b"request-id", self.request_id.encode())]
            if self.history is not None:
                sent.append((b"ledger-history", self.history))
            names = dict(given)
            if b"cache-control" not in names:
                sent.append(_NO_STORE)
            if b"content-security-policy" not in names:
                sent.append(_NO_PAGE)
            message["headers"] = sent
        return self._send(message)

    def _too_large(self) -> Problem:
        # The rest of the body is not read, so the connection cannot be used again.
        detail = f"The body is larger than {self._max_body_bytes // 1024:,} KiB."
        return Problem("body_too_large", detail, headers={"Connection": "close"})
