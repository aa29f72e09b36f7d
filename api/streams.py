"""The live stream of the audit trail: Server-Sent Events whose ids are a history and a position.

    Streams    all streams of this process: how many, whose keys, and their end together
    Stream     one client's: first what it has missed, from the log, then new events, from a live subscription

The id is also in the opening block and in every heartbeat, without data: a browser remembers it and shows no event. So
a client that is cut before its first event, or whose filter rarely matches, does not start from an old position.

A client that comes back with the id of the last event it has seen misses nothing and gets nothing twice, whatever ended
its stream. A stream holds no events: it asks the subscription, which has each once, for those after its position. So a
client that reads too slowly costs nothing: its stream ends, and says so, when the subscription has moved past it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from functools import cached_property
from http import HTTPStatus
from itertools import takewhile
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self
from uuid import UUID

import orjson
from fastapi import APIRouter, Query
from prometheus_client import Counter, Gauge
from pydantic import Field, StringConstraints, ValidationError, model_validator
from sse_starlette import EventSourceResponse
from sse_starlette.sse import SendTimeoutError
from starlette.responses import Response

from api.access_log import record_access
from api.catch_up import CatchUp
from api.event_content import event_content, with_proof
from api.event_filters import Conditions
from api.event_search import query_of, words_test
from api.http import answer_fields as answered
from api.http.caller import Caller, allow
from api.http.headers import idempotency_key, last_event_id, repeated_event_id
from api.http.models import Answer, Body
from api.http.places import Places
from api.http.problems import (
    Problem,
    ahead_of_ledger,
    history_members,
    malformed,
    malformed_body,
    malformed_query,
    unauthenticated,
)
from api.http.protocol import abort, outstanding
from api.http.query_params import AnyPosition, LedgerHistory
from api.http.responses import NO_STORE, answer
from api.http.route import Operation, Route
from domain.values import CLOCK
from infra.auth.access_log import GROUPED_ROLE
from infra.auth.stream_tokens import USE_WITHIN
from infra.errors import Unavailable
from infra.eventstore.event_filter import EventFilter
from infra.eventstore.histories import HistoryChanged
from infra.eventstore.live_subscription import FellBehind, LiveSubscriptions
from infra.eventstore.serialization import UnreadableEvent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence

    from starlette.requests import Request
    from starlette.types import Message, Receive, Scope, Send

    from api.event_content import KeyNames
    from api.http.dependencies import Services
    from domain.recorded import RecordedEvent
    from infra.auth.stream_tokens import StreamToken
    from infra.eventstore.live_subscription import LiveSubscription
    from infra.proof.sealed_sizes import SealedSizes

MAX_STREAMS: Final = 2_000
MAX_STREAMS_OF_A_LEDGER: Final = MAX_STREAMS // 2
MAX_STREAMS_OF_A_KEY: Final = 100
HEARTBEAT_S: Final = 15
_log = logging.getLogger(__name__)

# A client that takes nothing for so long is gone, or as good as gone.
STALLED_S: Final = 15.0
# It is looked at once when keys change, and this often for those that expire, or where no word of a change comes.
KEYS_EVERY_S: Final = 2.0
# What is handed to a connection at a time.
CHUNK_BYTES: Final = 64 * 1024
CHUNK_EVENTS: Final = 100
# Readers of this process that read what they missed, at the same moment.
READING_AT_ONCE: Final = 4
# How long clients should wait: before they reconnect, and before they try again where there is no room.
RECONNECT_MS: Final = 1_000
RETRY_AFTER_S: Final = 5
Ending = Literal[
    "slow_reader", "stalled", "key_no_longer_valid", "replaced", "history_changed", "shutting_down", "unavailable"
]
ENDINGS: Final[dict[Ending, str]] = {
    "slow_reader": "The client reads too slowly. Reconnect with Last-Event-ID.",
    "stalled": "The client stopped reading. Reconnect with Last-Event-ID.",
    "key_no_longer_valid": "The API key was revoked or has expired.",
    "replaced": "The stream token was used for another stream.",
    "history_changed": (
        "The ledger goes on as another history. Decide what to do with the events after `last_common_position`."
    ),
    "shutting_down": "The server is stopping. Reconnect with Last-Event-ID.",
    "unavailable": "The log cannot be read now. Reconnect with Last-Event-ID.",
}
PATH: Final = "/v1/events/stream"
EVENT_STREAM: Final = "text/event-stream"
# Statuses after which the same request can succeed.
_LATER: Final = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
_OPEN: Final = Gauge("sparkledger_streams", "Open event streams.")
_ENDED: Final = Counter("sparkledger_streams_ended", "Event streams ended by the server, by reason.", ["reason"])
_SENT: Final = Counter("sparkledger_stream_events", "Events sent to event streams.")
_LAG: Final = Gauge("sparkledger_stream_lag_events", "Events the slowest event stream is behind.")

router = APIRouter(route_class=Route, tags=["Audit"])


# Far above a token with an API key in it; a bearer token of an issuer may be long.
MAX_TOKEN_CHARACTERS: Final = 8_000
MAX_FILTERS: Final = 20


class StreamQuery(Conditions):
    after: Annotated[
        AnyPosition | None,
        Field(description="Only later positions. Default: from now on. `Last-Event-ID` takes precedence."),
    ] = None
    history: LedgerHistory = None
    token: Annotated[
        str | None,
        StringConstraints(max_length=MAX_TOKEN_CHARACTERS),
        Field(
            description="A token of `POST /v1/stream-tokens`, instead of an Authorization header. It has its own "
            "filters: only `after` and `history` can be sent beside it."
        ),
    ] = None

    @model_validator(mode="after")
    def _no_notes(self) -> Self:
        if self.parsed().reads_notes:
            raise malformed_query("q", "A stream cannot be filtered by notes. Search them with `GET /v1/events`.")
        return self

    def parameters(self) -> dict[str, Any]:
        """Return what was asked, under the names of the parameters; the token is nobody else's concern."""
        return {name: value for name, value in super().parameters().items() if name != "token"}


class CreateStreamToken(Body):
    filters: Annotated[
        dict[str, str],
        Field(
            description="The filters of the stream, as in the query of `GET /v1/events/stream`.",
            examples=[{"type": "Redeemed"}],
            max_length=MAX_FILTERS,
        ),
    ] = Field(default_factory=dict)


class StreamTokenAnswer(Answer):
    token: Annotated[str, Field(description="The token. Send it as `token` in the query of `GET /v1/events/stream`.")]
    use_before: Annotated[answered.Moment, Field(description="When it must have been used for the first time.")]


def stream_places() -> Places:
    """Return the places of streams, all of them free."""
    return Places("open streams", MAX_STREAMS, MAX_STREAMS_OF_A_LEDGER, MAX_STREAMS_OF_A_KEY, RETRY_AFTER_S)


class Stream(EventSourceResponse):
    """One client's stream."""

    media_type = EVENT_STREAM

    def __init__(
        self, streams: Streams, caller: Caller, parameters: Mapping[str, Any], selection: EventFilter, catch_up: CatchUp
    ) -> None:
        """Prepare the answer to a request; it runs when it is sent."""
        self.ledger_id = caller.ledger_id
        self.presented = caller.presented
        self.key_id = caller.key.key_id
        # The token that opened it, and which of its uses this is.
        self.token_id: UUID | None = None
        self.use = 0
        self.ending: Ending | None = None
        self.history = caller.history
        # What the end says beside its reason.
        self.members: Mapping[str, Any] = {}
        self._id = b"id: %b:" % str(caller.history.history).encode()
        self._streams = streams
        self._caller = caller
        self._parameters = parameters
        self._selection = selection
        self._catch_up = catch_up
        self._sent = 0
        # A client that has received everything up to now has seen all of its events up to this position.
        self._passed = catch_up.position
        self._beat_at = asyncio.get_running_loop().time() + HEARTBEAT_S
        super().__init__(
            self._chunks(),
            headers={"Ledger-Position": str(catch_up.position)},
            ping=0,
            sep="\n",
        )

    @property
    def position(self) -> int:
        """How far it has come."""
        return self._catch_up.position

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, until either side ends it.

        Where there is no room for it, it ends at once: a browser takes every other answer for final, and does not come
        back.

        Raises:
            Unavailable: the database is away; nothing is sent yet.

        """
        try:
            await self._streams.admit(self)
        except (Problem, Unavailable) as full:
            _ENDED.labels("no_room").inc()
            await _EndedStream(self._caller.request, "no_room", full.detail)(scope, receive, send)
            return
        async with (
            self._streams.admitted(self),
            self._streams.live_subscriptions.following(self.ledger_id) as self._subscription,
            self._recorded_access(),
        ):
            # Its key may have been revoked since it was let in, before this stream was known.
            await self._streams.check_keys([self])
            try:
                await super().__call__(scope, receive, _patient(scope, send))
            except SendTimeoutError:
                self.ending = "stalled"
                await abort(scope)
            finally:
                if self.ending is not None:
                    _ENDED.labels(self.ending).inc()

    @contextlib.asynccontextmanager
    async def _recorded_access(self) -> AsyncIterator[None]:
        """Record in the access log that this begins, and how it ended."""
        caller = self._caller
        together = caller.role == GROUPED_ROLE
        access_id = await record_access(
            caller, self._parameters, rows=0, format="text/event-stream", complete=True if together else None
        )
        try:
            yield
        finally:
            if not together:
                complete = self.ending not in {"stalled", "slow_reader"}
                with contextlib.suppress(Unavailable):
                    await caller.services.views.access_log.end(
                        self.ledger_id, access_id, rows=self._sent, complete=complete
                    )

    async def _chunks(self) -> AsyncIterator[bytes]:
        """Yield what is sent: whole events, a bounded number of bytes at a time."""
        at = self.position
        yield b"retry: %d\n%b%d\n: after position %d\n\n" % (RECONNECT_MS, self._id, at, at)
        try:
            async for found in self._catch_up.until(self._subscription):
                readable = list(takewhile(_is_readable, found.events))
                async for chunk in self._handed(await self._streams.encode(self.ledger_id, readable)):
                    yield chunk
                if len(readable) < len(found.events):
                    self.ending = self.ending or "unavailable"
                if self.ending is not None:
                    break
                self._passed = self.position
                if self._beats_s() <= 0:
                    yield self._heartbeat()
            async for chunk in self._live():
                yield chunk
        except FellBehind:
            self.ending = "slow_reader"
        except Unavailable:
            self.ending = "unavailable"
        if self.ending is not None:
            reason = orjson.dumps({"code": self.ending, "detail": ENDINGS[self.ending], **self.members})
            yield b"event: end\n%b%d\ndata: %b\n\n" % (self._id, self._passed, reason)

    async def _live(self) -> AsyncIterator[bytes]:
        while self.ending is None:
            if self._beats_s() <= 0:
                yield self._heartbeat()
            entries = self._subscription.after(self.position, CHUNK_EVENTS)
            if entries:
                self._catch_up.position = entries[-1].recorded.position
                wanted = [entry for entry in entries if self._selection.wants(entry.recorded)]
                readable = list(takewhile(lambda entry: _is_readable(entry.recorded), wanted))
                async for chunk in self._handed(await self._subscription.encoded(readable)):
                    yield chunk
                if len(readable) < len(wanted):
                    self.ending = self.ending or "unavailable"
                if self.ending is None:
                    self._passed = self.position
            elif self._subscription.failure is not None:
                self.ending = "unavailable"
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._beats_s()):
                        await self._subscription.wait_for_events()

    def _beats_s(self) -> float:
        """Return the seconds until the next heartbeat."""
        return self._beat_at - asyncio.get_running_loop().time()

    def _heartbeat(self) -> bytes:
        """Return a heartbeat. It is sent between events, never beside them, so its id is that of all that was sent."""
        self._beat_at = asyncio.get_running_loop().time() + HEARTBEAT_S
        return b"%b%d\n: heartbeat\n\n" % (self._id, self._passed)

    async def _handed(self, events: Sequence[bytes]) -> AsyncIterator[bytes]:
        """Yield events in chunks, as long as this stream goes on."""
        for chunk in _in_chunks(events):
            await self._streams.keys_checked.wait()
            await self._streams.wait_for_check(self.ledger_id)
            if self.ending is not None:
                return
            self._sent += len(chunk)
            self._beat_at = asyncio.get_running_loop().time() + HEARTBEAT_S
            _SENT.inc(len(chunk))
            yield self._id.join((b"", *chunk))


def _patient(scope: Scope, send: Send) -> Send:
    """Return how a stream sends: it waits for a client for as long as that takes anything."""

    async def sending(message: Message) -> None:
        waiting = outstanding(scope)
        while True:
            try:
                async with asyncio.timeout(STALLED_S):
                    # It waits for room before it sends, so that it can be asked again.
                    await send(message)
                    return
            except TimeoutError:
                before, waiting = waiting, outstanding(scope)
                if waiting >= before:
                    raise SendTimeoutError from None

    return sending


def _is_readable(recorded: RecordedEvent) -> bool:
    """Return whether an event can be sent: a stream ends before one that this version of the program cannot read."""
    return not isinstance(recorded.event, UnreadableEvent)


def _in_chunks(events: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Take events together into chunks of a bounded size."""
    first, size = 0, 0
    for number, event in enumerate([*events, b""]):
        if size and (not event or size + len(event) > CHUNK_BYTES):
            yield events[first:number]
            first, size = number, 0
        size += len(event)


class _EndedStream(Response):
    """A stream that ends before it begins, and says when to come back.

    It repeats the id that the client has sent: many clients take the id of whatever comes last.
    """

    media_type = EVENT_STREAM

    def __init__(self, request: Request, code: Literal["no_room", "unavailable"], detail: str) -> None:
        """Say why it ends."""
        reason = orjson.dumps({"code": code, "detail": detail})
        seen = repeated_event_id(request)
        repeated = b"" if seen is None else b"id: %b\n" % seen.encode()
        content = b"retry: %d\n%b\nevent: end\ndata: %b\n\n" % (RETRY_AFTER_S * 1000, repeated, reason)
        super().__init__(content, headers={"Cache-Control": "no-store"})


def ended_stream(request: Request, problem: Problem) -> Response | None:
    """Return a stream that ends at once, if an EventSource asked for one and must come back later; else None.

    An EventSource reconnects after a stream that ended, and never after another status. It is recognised by the media
    type that it must send (WHATWG HTML, "Server-sent events"), or by a stream token.
    """
    if problem.status_code not in _LATER or request.url.path != PATH:
        return None
    if EVENT_STREAM not in request.headers.get("accept", "") and "token" not in request.query_params:
        return None
    code: Literal["no_room", "unavailable"] = (
        "no_room" if problem.status_code == HTTPStatus.TOO_MANY_REQUESTS else "unavailable"
    )
    _ENDED.labels(code).inc()
    return _EndedStream(request, code, problem.detail)


class Streams:
    """The streams of one process.

    Attributes:
        closing: whether the server is stopping.
        keys_checked: set, but while keys have changed and were not checked again: no stream sends anything meanwhile.

    """

    def __init__(self, services: Services, key_names: KeyNames, places: Places, sealed_sizes: SealedSizes) -> None:
        """Prepare; nothing runs until somebody opens a stream."""
        self._sealed_sizes = sealed_sizes
        self._services = services
        self._places = places
        self._key_names = key_names
        self._streams: set[Stream] = set()
        self._turns = asyncio.Semaphore(READING_AT_ONCE)
        self._watching: asyncio.Task[None] | None = None
        self.polls = 0
        self.closing = False
        self._keys_changed = asyncio.Event()
        # Checks of keys are numbered: the last that has begun, the last that has ended, and the one that streams of a
        # ledger must wait for.
        self._begun = self._ended = 0
        self._needed: dict[int, int] = {}
        self._check_ended = asyncio.Event()
        self.keys_checked = asyncio.Event()
        self.keys_checked.set()

    def observe(self) -> None:
        """Take note, for the metrics, of how far the slowest stream is behind."""
        _LAG.set(
            max((self.live_subscriptions.position(one.ledger_id) - one.position for one in self._streams), default=0)
        )

    @cached_property
    def live_subscriptions(self) -> LiveSubscriptions:
        """The ends of the logs that streams follow."""
        return LiveSubscriptions(self._services.events, self.encode, self._services.database)

    async def open(
        self, caller: Caller, parameters: Mapping[str, Any], selection: EventFilter, position: int
    ) -> Stream:
        """Return a stream that goes on after a position; `parameters` are the query's parameters, to be recorded.

        Raises:
            Unavailable: the server is stopping, or the database is away.

        """
        self._refuse_if_stopping()
        catch_up = CatchUp(self._services, caller.ledger_id, selection, position, self._turns)
        await catch_up.prepare()
        return Stream(self, caller, parameters, selection, catch_up)

    @contextlib.asynccontextmanager
    async def polling(self, caller: Caller) -> AsyncIterator[LiveSubscription]:
        """Follow a ledger for a request that waits for its events; it counts as one of its key's streams.

        Raises:
            Problem: its key or its ledger has as many as it may.
            Unavailable: there is no room for another, or the database is away.

        """
        self._refuse_if_stopping()
        async with self._places.place(caller.ledger_id, caller.key.key_id):
            self.polls += 1
            try:
                async with self.live_subscriptions.following(caller.ledger_id) as subscription:
                    yield subscription
            finally:
                self.polls -= 1

    @contextlib.asynccontextmanager
    async def admitted(self, stream: Stream) -> AsyncIterator[None]:
        """Count a stream that has a place for as long as it is sent."""
        try:
            self._end([one for one in self._streams if stream.token_id and one.token_id == stream.token_id], "replaced")
            self._streams.add(stream)
            _OPEN.inc()
            if self._watching is None:
                self._watching = asyncio.create_task(self._watch_keys(), name="keys of streams")
            yield
        finally:
            self._streams.discard(stream)
            _OPEN.dec()
            self._places.leave(stream.ledger_id, stream.key_id)

    async def admit(self, stream: Stream) -> None:
        """Take a place for a stream, which `admitted` gives back.

        Raises:
            Problem: its key or its ledger has as many as it may.
            Unavailable: there is no room for another, or the server is stopping.

        """
        self._refuse_if_stopping()
        await self._places.enter(stream.ledger_id, stream.key_id)

    async def encode(self, ledger_id: int, page: Sequence[RecordedEvent]) -> list[bytes]:
        """Turn events into what is sent after `id: ` and the history: the position, and what `GET /v1/events` shows."""
        await self.notice_changed_keys(ledger_id)
        key_ids = {recorded.actor.key_id for recorded in page} - {CLOCK.key_id}
        names = await self._key_names.of(ledger_id, key_ids) if key_ids else {}
        sealed = await self._sealed_sizes.of(ledger_id)
        contents = with_proof([event_content(recorded, names) for recorded in page], sealed)
        return [
            b"%d\ndata: %b\n\n" % (content["position"], orjson.dumps(content, option=orjson.OPT_UTC_Z))
            for content in contents
        ]

    async def notice_changed_keys(self, ledger_id: int) -> None:
        """Find out, after events were read, whether a key was revoked before they were recorded.

        Raises:
            Unavailable: the database is away.

        """
        if await self._services.authenticator.notice_changes(ledger_id):
            # A check that runs already may have begun before the change.
            self._needed[ledger_id] = self._begun + 1
            self.keys_changed()

    async def wait_for_check(self, ledger_id: int) -> None:
        """Wait until keys were checked after the last change that was noticed in a ledger."""
        while self._ended < self._needed.get(ledger_id, 0):
            await self._check_ended.wait()

    def keys_changed(self) -> None:
        """Hand out nothing until it is known whose keys still open, and no name that was looked up before."""
        self.live_subscriptions.forget_encoded()
        self._keys_changed.set()
        if self._watching is not None:
            self.keys_checked.clear()

    async def check_keys(self, streams: Collection[Stream]) -> None:
        """End those of these streams whose key was revoked or has expired."""
        presented = {stream.presented for stream in streams}
        opens = dict(zip(presented, await asyncio.gather(*map(self._opens, presented)), strict=True))
        gone = [stream for stream in streams if not opens[stream.presented]]
        if gone:
            self._end(gone, "key_no_longer_valid")

    async def check_tokens(self) -> None:
        """End the streams whose token was used for another one since, in this process or another."""
        by_ledger: dict[int, list[Stream]] = {}
        for stream in self._streams:
            if stream.token_id is not None:
                by_ledger.setdefault(stream.ledger_id, []).append(stream)
        for ledger_id, streams in by_ledger.items():
            token_ids = {stream.token_id for stream in streams if stream.token_id is not None}
            with contextlib.suppress(Unavailable):
                uses = await self._services.stream_tokens.uses(ledger_id, token_ids)
                self._end([one for one in streams if one.token_id and uses.get(one.token_id, 0) > one.use], "replaced")

    async def check_histories(self) -> None:
        """End the streams of ledgers that go on as another history, or that may have lost events."""
        for ledger_id in {stream.ledger_id for stream in self._streams}:
            try:
                now = await self._services.histories.of(ledger_id)
            except Unavailable:
                continue  # anyone who reads the log finds that out
            of_ledger = [stream for stream in self._streams if stream.ledger_id == ledger_id]
            for stream in of_ledger:
                try:
                    now.require(stream.history.history)
                except HistoryChanged as changed:
                    stream.members = history_members(changed)
                    self._end([stream], "history_changed")
            if now.problem is not None or not now.checked or now.served_by is not None:
                self._end(of_ledger, "unavailable")

    def end(self) -> None:
        """End every stream now, and open no more: the server stops."""
        self.closing = True
        self._end(self._streams, "shutting_down")

    async def close(self) -> None:
        """Stop what runs beside the streams."""
        self.end()
        if self._watching is not None:
            self._watching.cancel()
        await self.live_subscriptions.close()

    def _end(self, streams: Collection[Stream], ending: Ending) -> None:
        for stream in streams:
            stream.ending = stream.ending or ending
        self.live_subscriptions.notify()

    def _refuse_if_stopping(self) -> None:
        if self.closing:
            raise Unavailable("The server is stopping. Try again in a moment.", RETRY_AFTER_S)

    async def _watch_keys(self) -> None:
        """Look at the keys and histories of all streams when either change, and again and again."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KEYS_EVERY_S):
                    await self._keys_changed.wait()
                    self.keys_checked.clear()
            self._keys_changed.clear()
            self._begun += 1
            try:
                await self.check_histories()
                await self.check_tokens()
                await self.check_keys(list(self._streams))
            except Exception:  # noqa: BLE001 - a check that ends for good would leave streams to keys that were revoked
                _log.exception("The keys of streams could not be checked, and will be in %s s", KEYS_EVERY_S)
            finally:
                # Whatever changes next: keys that change all the time hold nobody up for good.
                self.keys_checked.set()
                self._ended = self._begun
                self._check_ended.set()
                self._check_ended.clear()

    async def _opens(self, presented: str) -> bool:
        """Return whether a key is still valid. If that cannot be found out now, it counts as valid."""
        try:
            return await self._services.authenticator.still_opens(presented, self._services.now())
        except Unavailable:
            return True


@router.get(PATH, status_code=200, response_class=Stream, operation_id="streamEvents")
@Operation(trace="recorded", request_headers=("Last-Event-ID",), answer_headers=("Ledger-Position",), streams=True)
async def stream_events(
    query: Annotated[StreamQuery, Query()],
    caller: Annotated[Caller, allow("creator", "operator", "auditor", "subscriber", "admin", by_stream_token=True)],
) -> Response:
    """Follow the audit trail live, as Server-Sent Events whose `id` is the history and the position.

    Send the last id that you have received as `Last-Event-ID`: no event is lost or repeated. `data` is the event as
    in `GET /v1/events`. The first block and a heartbeat every 15 seconds have an id and no data. If the server ends the
    stream, an event named `end` says why. A creator's key follows its own events.
    """
    caller.history.require_whole()
    token, use = await _used_token(caller, query)
    if token is not None:
        place = query.model_dump(include={"after", "history"}, exclude_none=True)
        query = StreamQuery.model_validate({**token.filters, **place})
    parsed = await query_of(caller, query.parsed())
    streams: Streams = caller.request.app.state.streams
    selection = EventFilter(parsed.conditions, words_test(parsed.words) if parsed.words else None)
    stream = await streams.open(caller, query.parameters(), selection, await _position(caller, query))
    if token is not None:
        stream.token_id, stream.use = token.token_id, use
    return stream


@router.post("/v1/stream-tokens", status_code=201, response_model=StreamTokenAnswer, operation_id="createStreamToken")
@Operation(replays=False, example={"filters": {"type": "Redeemed"}})
async def create_stream_token(
    body: CreateStreamToken,
    caller: Annotated[Caller, allow("creator", "operator", "auditor", "subscriber", "admin")],
) -> Response:
    """Create a token that opens a stream in a browser, whose EventSource cannot send an Authorization header.

    It must be used within a minute. Then it is good for one stream at a time and its reconnects, for as long as the key
    that creates it, and forgotten if it is not used for 30 days.
    """
    idempotency_key(caller.request)  # each request gets a token of its own, but a malformed one is a mistake
    try:
        query = StreamQuery.model_validate(body.filters)
    except ValidationError as error:
        raise malformed("malformed_body", error, StreamQuery) from None
    if query.token is not None:
        raise malformed_body("/filters/token", "A token has no token.")
    await query_of(caller, query.parsed())
    now = caller.services.now()
    token = await caller.services.stream_tokens.issue(caller.presented, body.filters, now)
    return answer({"token": token, "use_before": now + USE_WITHIN}, 201, NO_STORE)


async def _used_token(caller: Caller, query: StreamQuery) -> tuple[StreamToken | None, int]:
    """Return the token that a stream was opened by, and which of its uses this is; none where a key was presented.

    Raises:
        Problem: the token was not used in time, or something is sent beside it that it has itself.

    """
    if query.token is None:
        return None, 0
    token: StreamToken | None = caller.request.scope.get("stream_token")
    if token is None or query.parameters().keys() - {"after", "history"}:
        raise malformed_query(
            "token", "A token already includes the key and the filters. Send neither of them with it."
        )
    use = await caller.services.stream_tokens.use(caller.ledger_id, caller.key.key_id, token, caller.services.now())
    if use is None:
        raise unauthenticated(by_stream_token=True)
    return token, use


async def _position(caller: Caller, query: StreamQuery) -> int:
    """Return the position to go on from.

    Raises:
        Problem: the ledger has not reached it. Its events would not be those that the caller has seen.
        HistoryChanged: the caller has seen another history.

    """
    sent = last_event_id(caller.request)
    seen = None
    if sent is None:
        caller.require_history(query.after, query.history)
    else:
        history, seen = sent
        if history is not None or caller.history.generation > 1:
            caller.history.require(history)
    head = await caller.services.events.head(caller.ledger_id)
    position = next(position for position in (seen, query.after, head) if position is not None)
    if position > head:
        raise ahead_of_ledger(head)
    return position
