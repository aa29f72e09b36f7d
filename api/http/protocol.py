"""How a connection is read: uvicorn's parser, with limits on connections, and on what comes beside bodies, and when.

What is refused here was never a request, so it has no request id; it is a problem (RFC 9457) all the same. What two
programs could read differently is refused: another version of HTTP, no or several hosts, and bodies that are encoded on
the way in any other manner than by chunks.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections import Counter
from http import HTTPStatus
from ipaddress import ip_address, ip_network
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.http.headers import by_name
from api.http.problems import MEDIA_TYPE, RETRYABLE, Problem
from api.http.transport import Gathering

if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv4Network, IPv6Network

    from starlette.types import Scope
    from uvicorn._types import ASGI3Application
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_HEADERS: Final = 200
# What a request has beside its body, that is, trailers and the lengths of its chunks too: the largest batch may come
# with every line as a chunk.
MAX_BESIDE_BYTES: Final = 1024 * 1024
# From the moment a connection is made, or something comes after an answer, until a head is whole; while nothing comes
# uvicorn has a limit of its own.
HEAD_WITHIN_S: Final = 15.0
# Of one process; with the database's sessions it stays below the 4,096 files that a process may usually open.
MAX_CONNECTIONS: Final = 3_000
# Idle connections that are closed together when there is no room: looking through all of them is paid once for so many.
CLOSED_AT_ONCE: Final = 100

# Left alone, the system keeps up to 4 MiB of what a client does not read, for each connection and uncounted by us.
SEND_BUFFER_BYTES: Final = 128 * 1024
_IPV6_PREFIX: Final = 64
# Headers of which a request has at most one.
_FRAMING: Final = frozenset({b"host", b"transfer-encoding"})
# A host as RFC 3986 has it, which may be empty, and a port.
_HOST: Final = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(?::[0-9]*)?")

# Where the extensions of a scope have what sends the answer.
CONNECTION: Final = "sparkledger.connection"
# In the scope of a request that presented something that opens a ledger.
OWNED: Final = "sparkledger.owned"
# In the scope of a request whose answer this process collects.
COLLECTED: Final = "sparkledger.collected"


def _answer(problem: Problem) -> bytes:
    body = problem.body()
    return (b"HTTP/1.1 %d %b\r\nconnection: close\r\n%bcontent-type: %b\r\ncontent-length: %d\r\n\r\n%b") % (
        problem.status_code,
        HTTPStatus(problem.status_code).phrase.encode(),
        b"retry-after: 1\r\n" if problem.code in RETRYABLE else b"",
        MEDIA_TYPE.encode(),
        len(body),
        body,
    )


_TOO_LARGE: Final = _answer(Problem("head_too_large"))
_NOT_HTTP: Final = _answer(Problem("malformed_request", "This is not a valid HTTP/1.1 request."))
_CROWDED: Final = _answer(Problem("unavailable", "This process has too many connections. Try again in a moment."))
_CROWDED_BY_AN_ADDRESS: Final = _answer(
    Problem("too_many_requests", "This address has too many connections. Close some before you open another one.")
)


async def abort(scope: Scope) -> None:
    """Drop a request's connection without sending what waits: closing would wait for a client that takes nothing.

    So nobody takes what was sent for the whole. Of an answer that this process collects, nothing was sent.
    """
    connection = _connection(scope)
    if connection is not None and not scope.get(COLLECTED):
        connection.abort()
        # The connection learns of its end in the loop's next round.
        await asyncio.sleep(0)


def outstanding(scope: Scope) -> int:
    """Return how many bytes of what a request's connection sends have not been taken yet."""
    connection = _connection(scope)
    return 0 if connection is None else connection.outstanding()


def own(scope: Scope, ledger_id: int) -> None:
    """Say whose a request is, and whose answers its connection sends, now that it is known."""
    scope[OWNED] = True
    connection = _connection(scope)
    if connection is not None:
        connection.owner = ledger_id


class Connection(Protocol):
    """What sends an answer.

    Attributes:
        owner: whose answers these are.

    """

    owner: object

    def abort(self) -> None:
        """Drop it without sending what waits."""

    def outstanding(self) -> int:
        """Return how many bytes have not been taken yet."""


def _connection(scope: Scope) -> Connection | None:
    """Return what sends a request's answer; None in tests without a server."""
    found: Connection | None = scope.get("extensions", {}).get(CONNECTION)
    return found


class _Unheard(list[tuple[bytes, bytes]]):
    """Where trailers go. They are no headers: a proxy that judges those has not seen these (RFC 9110, 6.5.1)."""

    def append(self, field: tuple[bytes, bytes], /) -> None:
        """Keep nothing."""


_UNHEARD: Final = _Unheard()


class _Quiet(logging.LoggerAdapter[logging.Logger]):
    """uvicorn's log without its warnings: anyone could fill the log by sending what is no request."""

    @property
    def level(self) -> int:
        """The level of the logger itself."""
        return self.logger.level

    def warning(self, msg: object, *args: object, **more: Any) -> None:
        """Say it to anyone who looks for details."""
        self.debug(msg, *args, **more)


class _Refused(Exception):
    """A head that is refused; the parser passes it on as an error of its own."""


class BoundedProtocol(HttpToolsProtocol):
    """One connection whose requests' heads are bounded in size and time, which the parser itself does not do.

    Attributes:
        max_of_an_address: how many connections one address can have; None for as many as there are.
        proxies: networks whose addresses have no limit of their own: many clients share them.

    """

    max_of_an_address: ClassVar[int | None] = None
    proxies: ClassVar[tuple[IPv4Network | IPv6Network, ...]] = ()
    # Of the addresses that are counted. Of each class there is one for each server.
    _of_addresses: ClassVar[Counter[str]] = Counter()
    address: str | None = None
    _refusal: bytes | None = None
    # Bytes of the request that is coming in which are not its body.
    _beside = 0
    _silence: asyncio.TimerHandle | None = None
    # When it was made, by the loop's clock, and whether it had to make room for another.
    made_at = 0.0
    gave_way = False
    _gathering: Gathering
    _extensions: dict[str, Any]
    # Of several requests that came together, the one whose turn it is.
    _answered: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Begin to wait for a head."""
        sending = transport.get_extra_info("socket")
        if sending is not None:
            sending.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self.made_at = self.loop.time()
        self._gathering = transport = Gathering(transport, self.loop)
        # For streams whose client takes nothing any more: closing would wait until it has taken what is buffered.
        self._extensions = {CONNECTION: transport}
        super().connection_made(transport)
        # A request for a WebSocket is answered as if it were none, because nothing here speaks it.
        self.ws_protocol_class = None
        self.logger = _Quiet(self.logger)  # type: ignore[assignment] # it has all that is used of a logger
        crowded = self._counted()
        if crowded is not None:
            transport.write(crowded)
            transport.close()
            return
        self._silence = self.loop.call_later(HEAD_WITHIN_S, self._close_silent)

    def _counted(self) -> bytes | None:
        """Count this connection, and return what it is answered if there are too many."""
        if len(self.connections) > MAX_CONNECTIONS and not self._make_room(len(self.connections) - MAX_CONNECTIONS):
            return _CROWDED
        if self.max_of_an_address is None or self.client is None:
            return None
        address = ip_address(self.client[0])
        if any(address in network for network in self.proxies):
            return None
        # One client has 2**64 addresses of IPv6.
        counted = str(address) if address.version == 4 else str(ip_network((address, _IPV6_PREFIX), strict=False))  # noqa: PLR2004
        beyond = self._of_addresses[counted] - self.max_of_an_address + 1
        if beyond > 0 and not self._make_room(beyond, counted):
            return _CROWDED_BY_AN_ADDRESS
        self._of_addresses[counted] += 1
        self.address = counted
        return None

    def _make_room(self, needed: int, address: str | None = None) -> bool:
        """Close idle connections, of one address or of the one that has most; tell whether there is room now.

        Those close first that never sent a request, and of these the oldest.
        """
        others: list[BoundedProtocol] = [
            one
            for one in self.connections
            if isinstance(one, BoundedProtocol) and one is not self and address in {None, one.address}
        ]
        if sum(one.gave_way for one in others) >= needed:
            return True
        idle = [one for one in others if one.is_idle()]
        if address is None and idle:
            # Clients behind a trusted proxy share it; its connections are not counted, and close last.
            most = Counter(one.address for one in idle if one.address is not None).most_common(1)
            idle = [one for one in idle if not most or one.address == most[0][0]]
        idle.sort(key=lambda one: (one.cycle is not None, one.made_at))
        for one in idle[:CLOSED_AT_ONCE]:
            one.gave_way = True
            one.transport.abort()
        return len(idle) >= needed

    def is_idle(self) -> bool:
        """Tell whether no request is being received or answered, apart from a head that is not whole yet."""
        if self.gave_way or self.transport.is_closing():
            return False
        return self.cycle is None or (self.cycle.response_complete and not self.pipeline)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting, and notify what answers."""
        if self.address is not None:
            self._of_addresses[self.address] -= 1
            if not self._of_addresses[self.address]:
                del self._of_addresses[self.address]
            self.address = None
        self._heard()
        # uvicorn tells the latest request alone, which may stand in line behind one whose answer has no end.
        if self._answered is not None and not self._answered.response_complete:
            self._answered.disconnected = True
            self._answered.message_event.set()
        self._gathering.unwatch()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass on what comes, as long as what is no body stays within its limit, and a head within its time."""
        self._beside += len(data)
        super().data_received(data)
        if self._beside > (MAX_BESIDE_BYTES if self.headers is _UNHEARD else MAX_HEAD_BYTES):
            if self.cycle is None or self.cycle.response_complete:
                self.transport.write(_TOO_LARGE)
            self.transport.close()
        elif self._silence is None and (self.cycle is None or self.cycle.response_complete):
            # Half a head, or the rest of a body that nobody waits for: uvicorn's limit ended when it began to come.
            self._silence = self.loop.call_later(HEAD_WITHIN_S, self._close_silent)

    def on_body(self, body: bytes) -> None:
        """Leave the body's length to the application."""
        self._beside -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Begin to count again."""
        self._beside = 0
        super().on_message_complete()

    def pause_writing(self) -> None:
        """See to it that what waits is taken."""
        super().pause_writing()
        self._gathering.watch()

    def resume_writing(self) -> None:
        """Stop seeing to it, but for a connection that closes: what is left of it must be taken as well."""
        super().resume_writing()
        if not self._gathering.is_closing():
            self._gathering.unwatch()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Note which request is being answered."""
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - what uvicorn would say is not a problem
        """Answer what could not be parsed, unless that would be taken for the answer to an earlier request."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            self.transport.write(self._refusal or _NOT_HTTP)
        elif cycle.more_body and cycle is self._answered and not cycle.response_started:
            # It is the body of the request itself that is wrong.
            self.transport.write(_NOT_HTTP)
        self.transport.close()

    def on_headers_complete(self) -> None:
        """Stop waiting: the head is whole, and the application limits the body."""
        self._refusal = self._refused_head()
        # The scope has the list of headers.
        self.headers = _UNHEARD
        if self._refusal is not None:
            raise _Refused
        self._heard()
        self.scope["extensions"] = self._extensions
        super().on_headers_complete()
        if self.parser.should_upgrade():
            # What comes next would be another protocol.
            self.cycle.keep_alive = False

    def _refused_head(self) -> bytes | None:
        """Return what a head is answered that is refused."""
        count = len(self.headers)
        size = len(self.url) + count * len(b": \r\n") + sum(map(len, chain.from_iterable(self.headers)))
        if size > MAX_HEAD_BYTES or count > MAX_HEADERS:
            return _TOO_LARGE
        given = by_name(self.scope)  # type: ignore[arg-type] # uvicorn's type of it is another
        host, coding = given.get(b"host"), given.get(b"transfer-encoding")
        version = self.parser.get_http_version()
        if version == "1.1":
            sound = host is not None and (coding is None or coding.lower() == b"chunked")
        else:
            sound = version == "1.0" and coding is None
        if not sound or (host is not None and _HOST.fullmatch(host) is None) or not _FRAMING.isdisjoint(given.repeated):
            return _NOT_HTTP
        return None

    def _heard(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None

    def _close_silent(self) -> None:
        self.transport.close()


def bounded_by_address(most: int, proxies: Iterable[str]) -> type[BoundedProtocol]:
    """Return the protocol of a server that bounds the connections of each address, but for those of proxies."""
    networks = tuple(map(ip_network, proxies))

    class BoundedByAddress(BoundedProtocol):
        max_of_an_address = most
        proxies = networks
        _of_addresses: ClassVar[Counter[str]] = Counter()

    return BoundedByAddress
