"""The HTTP client of webhooks, with its guard against requests to internal networks (SSRF).

Owners choose URLs, and a host name may resolve to any address at any time. So the guard checks the address itself at
the moment of connecting, and connects to that very address. Public addresses are allowed, and the networks that a
setting names. Nothing is sent unencrypted except to this machine itself, and no redirect is followed.
"""

from __future__ import annotations

import asyncio
import email.utils
import re
import socket
import ssl
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import httpcore

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

URL_CHARACTERS_MAX: Final = 2_048
# The time for one attempt, from the look-up of the name to the end of the response's headers; and only for connecting.
ATTEMPT_S: Final = 20.0
CONNECT_S: Final = 5.0
# How much of a response's body is read, so that its connection can be used again. If there is more, the connection is
# closed.
BODY_BYTES_MAX: Final = 16 * 1024
BODY_S: Final = 2.0
# How much of a response is kept for the owner.
ANSWER_BYTES_MAX: Final = 1_024
RETRY_AFTER_MAX_S: Final = 86_400
CONNECTIONS_IDLE_S: Final = 30.0
# What an attempt reads in all, also of interim responses and headers, and in how many pieces: a receiver that sends
# without end, or a byte at a time, costs no more than any other.
ATTEMPT_BYTES_MAX: Final = 32 * 1024
ATTEMPT_READS_MAX: Final = 64
READ_BYTES: Final = 4 * 1024
_TOO_MUCH: Final = "Too much came before the response, or it came in too many pieces."
_BROKE: Final = "The connection broke before there was a response."
_INVALID: Final = "The response is not valid HTTP/1.1."
_SWITCHED: Final = "The receiver responded with status 101, although no other protocol was asked for."
ADDRESSES_TRIED: Final = 4
# Names that are looked up at the same time. Look-ups that hang must not delay those of other ledgers, so a ledger that
# names a hundred hosts whose look-ups hang waits only for its own share.
RESOLVERS: Final = 64
RESOLVERS_EACH: Final = 8

# The timeouts of httpcore, for each step. All steps together may take ATTEMPT_S.
_TIMEOUTS: Final = {"connect": CONNECT_S, "read": ATTEMPT_S, "write": ATTEMPT_S, "pool": ATTEMPT_S}
# Visible ASCII characters that need no escape in a URI (RFC 3986).
_URL: Final = re.compile(r"https?://[A-Za-z0-9._~:/?@!$&'()*+,;=%\[\]-]+")
_LOCAL_NAME: Final = re.compile(r"(.+\.)?localhost\.?", re.IGNORECASE)
_UNICAST: Final = ip_network("2000::/3")
# Networks that the registry, or Python's older copy of it, counts as public, but that are not: relays to IPv4, examples
# for documentation, and the addresses where clouds tell a machine its own credentials (Oracle at 192.0.0.192, Azure).
_NOT_PUBLIC: Final = tuple(
    map(ip_network, ("192.88.99.0/24", "2002::/16", "3fff::/20", "192.0.0.0/24", "168.63.129.16/32"))
)
# IPv6 addresses that stand for the IPv4 address in their last 32 bits (RFC 6052).
_NAT64: Final = ip_network("64:ff9b::/96")


class InvalidTarget(Exception):
    """The URL cannot be sent to. The message says why and what to do, and contains nothing of the URL."""


class _TooMuchRead(httpcore.ReadError):
    """The receiver sends more than is read in an attempt, or in more pieces."""


class AllowedNetworks:
    """The addresses that webhooks may be sent to: public ones, and the networks that a setting names."""

    def __init__(self, networks: Iterable[str]) -> None:
        """Take the networks in CIDR notation; `none` means no network."""
        self._networks: list[Network] = [ip_network(name) for name in networks if name != "none"]

    def allow(self, address: Address) -> bool:
        """Return whether an address may be connected to."""
        real = _embedded_ipv4(address)
        return any(a in network for a in {address, real} for network in self._networks) or _is_public(real)


def check_url(url: str, networks: AllowedNetworks) -> None:
    """Refuse a URL that could never be sent to. Its host name is resolved only when a message is sent.

    Raises:
        InvalidTarget: it is no URL, is not HTTPS though it leaves this machine, or names an address that is not
                allowed.

    """
    if len(url) > URL_CHARACTERS_MAX or _URL.fullmatch(url) is None:
        raise InvalidTarget(f"Expected an absolute https URL in ASCII, with at most {URL_CHARACTERS_MAX:,} characters.")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        address = _literal(host or "")
    except ValueError:
        raise InvalidTarget("The URL's host or port is malformed.") from None
    if not host or "@" in parts.netloc:
        raise InvalidTarget(
            "The URL must have a host and must not contain a user or password: messages are signed instead."
        )
    local = _LOCAL_NAME.fullmatch(host) is not None if address is None else address.is_loopback
    if parts.scheme == "http" and not local:
        raise InvalidTarget("Use https. http is allowed only for this machine.")
    if address is not None and not networks.allow(address):
        raise InvalidTarget("This address is not public. SPARKLEDGER_WEBHOOK_NETWORKS lists other allowed networks.")


@dataclass(frozen=True, slots=True)
class HttpResult:
    """The result of an attempt: a status or an error, the pause that the receiver asks for, and what it answers."""

    status: int | None = None
    error: str | None = None
    retry_after_s: float | None = None
    answer: bytes | None = None

    @property
    def delivered(self) -> bool:
        """Whether the receiver has accepted the message."""
        return self.status is not None and 200 <= self.status <= 299  # noqa: PLR2004 - the successful statuses of HTTP


class Resolver:
    """Resolves host names in threads of its own: one look-up at a time for each name, and a few for each ledger."""

    def __init__(self) -> None:
        """Prepare; the threads start with the first names."""
        self._threads = ThreadPoolExecutor(RESOLVERS, thread_name_prefix="webhook names")
        self._running: dict[str, asyncio.Future[Sequence[Address]]] = {}
        self._free: defaultdict[int, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(RESOLVERS_EACH))

    async def addresses(self, host: str, ledger_id: int) -> Sequence[Address]:
        """Return the addresses of a host name, for a ledger's webhook; none where it does not resolve."""
        if host not in self._running:
            free = self._free[ledger_id]
            await free.acquire()
            if host in self._running:
                # Another task has started this look-up in the meantime.
                free.release()
            else:
                self._start(host, free)
        return await asyncio.shield(self._running[host])

    def _start(self, host: str, free: asyncio.Semaphore) -> None:
        def done(_: object) -> None:
            # Only when the thread is free again, even if nobody waits for its result any longer.
            del self._running[host]
            free.release()

        running = asyncio.get_running_loop().run_in_executor(self._threads, _look_up, host)
        self._running[host] = running
        running.add_done_callback(done)

    def close(self) -> None:
        """End the threads; a thread whose look-up hangs ends with it."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class HttpTarget:
    """The URL of one endpoint. It has connections of its own, so that an endpoint that hangs delays no other."""

    def __init__(
        self,
        url: str,
        ledger_id: int,
        networks: AllowedNetworks,
        resolver: Resolver,
        context: ssl.SSLContext,
        connections: int,
    ) -> None:
        """Prepare; `post` connects. It must not be called more often at the same time than there are connections."""
        self._url = url
        guarded = _GuardedBackend(ledger_id, networks, resolver, encrypted=url.startswith("https:"))
        # Pools of one connection each, because a pool looks at all of its connections with every request.
        self._free = [
            httpcore.AsyncConnectionPool(
                ssl_context=context,
                max_connections=1,
                keepalive_expiry=CONNECTIONS_IDLE_S,
                network_backend=guarded,
            )
            for _ in range(connections)
        ]
        self._used: list[httpcore.AsyncConnectionPool] = []

    async def post(self, headers: Mapping[str, str], body: bytes) -> HttpResult:
        """Send a message once. Every failure of the network or the receiver is a result, not an exception.

        The status and the headers are the result. What becomes of the body after them changes nothing: the receiver has
        decided by then.
        """
        _allowance.set(_Allowance(ATTEMPT_BYTES_MAX, ATTEMPT_READS_MAX))
        try:
            async with asyncio.timeout(ATTEMPT_S) as timeout:
                named = [(name.encode(), value.encode()) for name, value in headers.items()]
                return await self._post(named, body, timeout)
        except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
            return HttpResult(error=_why_not_connected(error))
        except (TimeoutError, httpcore.TimeoutException):
            return HttpResult(error=f"There was no response within {ATTEMPT_S:.0f} seconds.")
        except InvalidTarget as bad:
            return HttpResult(error=str(bad))
        except ssl.SSLError:
            # With TLS 1.3 a receiver that asks for a client certificate refuses us only after the handshake. Neither
            # httpcore nor anyio turns this error into one of theirs.
            return HttpResult(
                error=(
                    "The TLS connection broke before there was a response. Does the receiver ask for a client "
                    "certificate?"
                )
            )
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
            return HttpResult(error=_why_no_response(error))

    async def _post(self, headers: list[tuple[bytes, bytes]], body: bytes, timeout: asyncio.Timeout) -> HttpResult:  # noqa: ASYNC109 - it is passed on, to end it
        headers = [*headers, (b"content-length", b"%d" % len(body)), (b"accept", b"*/*")]
        connection = self._free.pop()
        self._used.append(connection)
        try:
            async with connection.stream(
                "POST", self._url, headers=headers, content=body, extensions={"timeout": _TIMEOUTS}
            ) as response:
                timeout.reschedule(None)
                read, answer = 0, b""
                with suppress(httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError):
                    async with asyncio.timeout(BODY_S):
                        async for part in response.aiter_stream():
                            read += len(part)
                            answer += part[: ANSWER_BYTES_MAX - len(answer)]
                            if read > BODY_BYTES_MAX:
                                break
        finally:
            self._used.remove(connection)
            self._free.append(connection)
        retry_after = next((value for name, value in response.headers if name.lower() == b"retry-after"), None)
        return HttpResult(
            response.status,
            retry_after_s=None if retry_after is None else _retry_after_s(retry_after.decode("latin-1")),
            answer=answer or None,
        )

    async def close(self) -> None:
        """Close the connections."""
        for connection in (*self._free, *self._used):
            await connection.aclose()


@dataclass(slots=True)
class _Allowance:
    """What an attempt may still read."""

    bytes: int
    reads: int


# Of the attempt that the task makes: a connection is used by one attempt after another.
_allowance: Final[ContextVar[_Allowance]] = ContextVar("allowance")


class _BoundedStream(httpcore.AsyncNetworkStream):
    """A connection whose every attempt reads a bounded number of bytes, in a bounded number of small pieces."""

    def __init__(self, inner: httpcore.AsyncNetworkStream) -> None:
        self._inner = inner

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - httpcore's
        allowance = _allowance.get()
        if allowance.reads <= 0 or allowance.bytes <= 0:
            raise _TooMuchRead
        # What has arrived is read at once; others of this process go first.
        await asyncio.sleep(0)
        read = await self._inner.read(min(max_bytes, READ_BYTES), timeout)
        allowance.reads -= 1
        allowance.bytes -= len(read)
        return read

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 - httpcore's
        await self._inner.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's
    ) -> httpcore.AsyncNetworkStream:
        return _BoundedStream(await self._inner.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _GuardedBackend(httpcore.AsyncNetworkBackend):
    """Connects only to those addresses of a host that are allowed."""

    def __init__(self, ledger_id: int, networks: AllowedNetworks, resolver: Resolver, *, encrypted: bool) -> None:
        self._ledger_id = ledger_id
        self._networks = networks
        self._resolver = resolver
        self._encrypted = encrypted
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the signature is httpcore's
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        async with asyncio.timeout(timeout):
            found = [literal] if (literal := _literal(host)) else await self._resolver.addresses(host, self._ledger_id)
        if not found:
            raise InvalidTarget("The host name cannot be resolved.")
        allowed = [a for a in found if self._networks.allow(a) and (self._encrypted or a.is_loopback)]
        if not allowed:
            raise InvalidTarget("The host name resolves to an address that webhooks must not use.")
        tried = allowed[:ADDRESSES_TRIED]
        until = None if timeout is None else time.monotonic() + timeout
        failed: httpcore.ConnectError | httpcore.ConnectTimeout | None = None
        for number, address in enumerate(tried):
            # Every address has its share of the time, so that one which does not answer leaves time for the others.
            share = None if until is None else max(0.0, until - time.monotonic()) / (len(tried) - number)
            try:
                stream = await self._inner.connect_tcp(str(address), port, share, local_address, socket_options)
                return _BoundedStream(stream)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
        raise failed or httpcore.ConnectError


def _look_up(host: str) -> Sequence[Address]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ()
    # A link-local address comes with its interface, as in fe80::1%eth0.
    return list(dict.fromkeys(ip_address(str(entry[4][0]).partition("%")[0]) for entry in found))


def _literal(host: str) -> Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _embedded_ipv4(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address stands for, or the address itself."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def _is_public(address: Address) -> bool:
    if address.is_multicast or not address.is_global or any(address in network for network in _NOT_PUBLIC):
        return False
    return isinstance(address, IPv4Address) or address in _UNICAST


def _retry_after_s(value: str) -> float | None:
    """Return the bounded pause of a Retry-After header, which is a number of seconds or a date (RFC 9110)."""
    if re.fullmatch(r"[0-9]+", value):
        return min(float(value), RETRY_AFTER_MAX_S)
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return min(max(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() - time.time(), 0.0), RETRY_AFTER_MAX_S)


def _why_no_response(error: Exception) -> str:
    if isinstance(error, _TooMuchRead):
        return _TOO_MUCH
    # httpcore wraps what the HTTP parser finds wrong. An error of its own means that the connection was closed.
    found = error.args[0] if isinstance(error, httpcore.RemoteProtocolError) and error.args else None
    if isinstance(found, Exception):
        return _SWITCHED if "_SWITCH" in str(found) else _INVALID
    return _BROKE


def _why_not_connected(error: httpcore.ConnectError | httpcore.ConnectTimeout) -> str:
    """Return a sentence of our own, because the text of the error may contain the address or what was sent."""
    if isinstance(error, httpcore.ConnectTimeout):
        return f"No connection could be made within {CONNECT_S:.0f} seconds."
    cause = error.args[0] if error.args else error.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return "The receiver's certificate could not be verified."
    if isinstance(cause, ssl.SSLError):
        return "No TLS connection could be made."
    return "The receiver did not accept the connection."
