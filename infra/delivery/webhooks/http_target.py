"""Where webhooks may be sent, and the connection that goes nowhere else.

A URL is chosen by whoever holds a key, and a host name may lead anywhere, at any time elsewhere. So it is the address
that is judged, at the moment of connecting, and that very address is connected to: public ones, and those networks that
a setting names. Nothing is ever sent in clear but to this machine itself, and no redirect is followed.
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
from dataclasses import dataclass
from datetime import UTC
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import httpcore

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

URL_CHARACTERS_MAX: Final = 2_048
# For one attempt, from looking up the name to the end of the answer; and for what comes first.
ATTEMPT_S: Final = 20.0
CONNECT_S: Final = 5.0
# What of an answer is read, so that its connection can be used again; the rest is cut off.
ANSWER_BYTES_MAX: Final = 16 * 1024
ANSWER_S: Final = 2.0
RETRY_AFTER_MAX_S: Final = 86_400
CONNECTIONS_IDLE_S: Final = 30.0
ADDRESSES_TRIED: Final = 4
# Names that are looked up at the same moment: a resolver that hangs must not delay the names of others.
RESOLVERS: Final = 64
# Of these, for the webhooks of one ledger: whoever names a hundred hosts that hang waits for its own.
RESOLVERS_EACH: Final = 8

# As httpcore asks for them, of each step; all steps together have ATTEMPT_S.
_LIMITS: Final = {"connect": CONNECT_S, "read": ATTEMPT_S, "write": ATTEMPT_S, "pool": ATTEMPT_S}
# Visible ASCII that needs no escape in a URI (RFC 3986).
_URL: Final = re.compile(r"https?://[A-Za-z0-9._~:/?@!$&'()*+,;=%\[\]-]+")
_LOCAL_NAME: Final = re.compile(r"(.+\.)?localhost\.?", re.IGNORECASE)
_UNICAST: Final = ip_network("2000::/3")
# Within what is public by its registry, or by Python's older copies of it, but leads somewhere else, or nowhere: relays
# to IPv4, documentation, and where clouds tell a machine its own credentials (Oracle at 192.0.0.192, Azure).
_NOT_PUBLIC: Final = tuple(
    map(ip_network, ("192.88.99.0/24", "2002::/16", "3fff::/20", "192.0.0.0/24", "168.63.129.16/32"))
)
# IPv6 in front of an IPv4 address, which is where it leads (RFC 6052).
_NAT64: Final = ip_network("64:ff9b::/96")


class InvalidTarget(Exception):
    """A webhook cannot be sent there. The message says why and what to do, and holds nothing of the URL."""


class AllowedNetworks:
    """The networks that a setting allows besides public addresses."""

    def __init__(self, named: Iterable[str]) -> None:
        """Take them in CIDR notation; `none` stands for none."""
        self._networks: list[Network] = [ip_network(name) for name in named if name != "none"]

    def allow(self, address: Address) -> bool:
        """Tell whether an address may be connected to."""
        leads_to = _leads_to(address)
        return any(a in network for a in {address, leads_to} for network in self._networks) or _is_public(leads_to)


def check_url(url: str, networks: AllowedNetworks) -> None:
    """Refuse a URL that could never be sent to; where its name leads is found out when it is.

    Raises:
        BadTarget: it is none, is not HTTPS though it leaves this machine, or names an address that is not allowed.

    """
    if len(url) > URL_CHARACTERS_MAX or _URL.fullmatch(url) is None:
        raise InvalidTarget(f"Give an absolute URL with https, of {URL_CHARACTERS_MAX:,} characters at most, in ASCII.")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        address = _literal(host or "")
    except ValueError:
        raise InvalidTarget("This URL's host or port is malformed.") from None
    if not host or "@" in parts.netloc:
        raise InvalidTarget("Give the host alone, without a user or password: a signature says who sends.")
    local = _LOCAL_NAME.fullmatch(host) is not None if address is None else address.is_loopback
    if parts.scheme == "http" and not local:
        raise InvalidTarget("Only HTTPS is sent beyond this machine.")
    if address is not None and not networks.allow(address):
        raise InvalidTarget(
            "This address is not public. SPARKLEDGER_WEBHOOK_NETWORKS names the networks that are allowed besides."
        )


@dataclass(frozen=True, slots=True)
class HttpResult:
    """What came of an attempt: a status, or why there is none; and how long the receiver asks to be left alone."""

    status: int | None = None
    error: str | None = None
    retry_after_s: float | None = None

    @property
    def delivered(self) -> bool:
        """Whether the receiver has it."""
        return self.status is not None and 200 <= self.status <= 299  # noqa: PLR2004 - what HTTP calls successful


class Resolver:
    """Looks names up in threads of its own, one look-up at a time for each name, a few for each ledger."""

    def __init__(self) -> None:
        """Prepare; threads begin with the first names."""
        self._threads = ThreadPoolExecutor(RESOLVERS, thread_name_prefix="webhook names")
        self._running: dict[str, asyncio.Future[Sequence[Address]]] = {}
        self._free: defaultdict[int, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(RESOLVERS_EACH))

    async def addresses(self, host: str, ledger_id: int) -> Sequence[Address]:
        """Return where a name leads now, for a ledger's webhook; none where it leads nowhere."""
        if host not in self._running:
            free = self._free[ledger_id]
            await free.acquire()
            if host in self._running:
                # Somebody else asked meanwhile.
                free.release()
            else:
                self._begin(host, free)
        return await asyncio.shield(self._running[host])

    def _begin(self, host: str, free: asyncio.Semaphore) -> None:
        def done(_: object) -> None:
            # Only now: whoever gives up leaves the thread behind.
            del self._running[host]
            free.release()

        running = asyncio.get_running_loop().run_in_executor(self._threads, _look_up, host)
        self._running[host] = running
        running.add_done_callback(done)

    def close(self) -> None:
        """End the threads; one that hangs ends with its look-up."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class HttpTarget:
    """One endpoint's URL, with connections of its own: none that hangs is in another's way."""

    def __init__(
        self,
        url: str,
        ledger_id: int,
        networks: AllowedNetworks,
        resolver: Resolver,
        context: ssl.SSLContext,
        connections: int,
    ) -> None:
        """Prepare; `post` connects, and is to be called at most so many times at once."""
        self._url = url
        guarded = _Guarded(ledger_id, networks, resolver, encrypted=url.startswith("https:"))
        # One connection each: a pool of many looks at all of them with every request.
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
        """Send once, and say what came of it; nothing that can go wrong on the way is raised."""
        try:
            async with asyncio.timeout(ATTEMPT_S):
                return await self._post([(name.encode(), value.encode()) for name, value in headers.items()], body)
        except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
            return HttpResult(error=_why_not_connected(error))
        except (TimeoutError, httpcore.TimeoutException):
            return HttpResult(error=f"There was no answer within {ATTEMPT_S:.0f} seconds.")
        except InvalidTarget as bad:
            return HttpResult(error=str(bad))
        except ssl.SSLError:
            # With TLS 1.3 it is told only now that a receiver asks for a certificate: what the server makes of ours, or
            # of none, comes after the handshake. Neither httpcore nor anyio turns it into an error of theirs.
            return HttpResult(error="The encryption broke before there was an answer: does it ask for a certificate?")
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError):
            return HttpResult(error="The connection broke before there was an answer.")

    async def _post(self, headers: list[tuple[bytes, bytes]], body: bytes) -> HttpResult:
        headers = [*headers, (b"content-length", b"%d" % len(body)), (b"accept", b"*/*")]
        connection = self._free.pop()
        self._used.append(connection)
        try:
            async with connection.stream(
                "POST", self._url, headers=headers, content=body, extensions={"timeout": _LIMITS}
            ) as response:
                read = 0
                # What was answered stands in its head: a rest that drips changes nothing of it.
                with suppress(TimeoutError):
                    async with asyncio.timeout(ANSWER_S):
                        async for part in response.aiter_stream():
                            read += len(part)
                            if read > ANSWER_BYTES_MAX:
                                break
        finally:
            self._used.remove(connection)
            self._free.append(connection)
        said = next((value for name, value in response.headers if name.lower() == b"retry-after"), None)
        return HttpResult(response.status, None, None if said is None else _retry_after_s(said.decode("latin-1")))

    async def close(self) -> None:
        """Close the connections."""
        for connection in (*self._free, *self._used):
            await connection.aclose()


class _Guarded(httpcore.AsyncNetworkBackend):
    """Connects to the addresses that a name leads to now, and to those alone that are allowed."""

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
        timeout: float | None = None,  # noqa: ASYNC109 - as httpcore has it
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        async with asyncio.timeout(timeout):
            found = [literal] if (literal := _literal(host)) else await self._resolver.addresses(host, self._ledger_id)
        if not found:
            raise InvalidTarget("The host's name leads nowhere.")
        allowed = [a for a in found if self._networks.allow(a) and (self._encrypted or a.is_loopback)]
        if not allowed:
            raise InvalidTarget("The host's name leads to an address that webhooks are not sent to.")
        tried = allowed[:ADDRESSES_TRIED]
        until = None if timeout is None else time.monotonic() + timeout
        failed: httpcore.ConnectError | httpcore.ConnectTimeout | None = None
        for number, address in enumerate(tried):
            # One that says nothing leaves the others their share of the time; what is left over is theirs as well.
            share = None if until is None else max(0.0, until - time.monotonic()) / (len(tried) - number)
            try:
                return await self._inner.connect_tcp(str(address), port, share, local_address, socket_options)
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


def _leads_to(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address stands for, where it does."""
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


def _retry_after_s(said: str) -> float | None:
    """Return the seconds of a Retry-After, bounded, whether it is a number or a date (RFC 9110)."""
    if re.fullmatch(r"[0-9]{1,10}", said):
        return min(float(said), RETRY_AFTER_MAX_S)
    try:
        moment = email.utils.parsedate_to_datetime(said)
    except (ValueError, OverflowError):
        return None
    return min(max(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() - time.time(), 0.0), RETRY_AFTER_MAX_S)


def _why_not_connected(error: httpcore.ConnectError | httpcore.ConnectTimeout) -> str:
    """Say it in our own words: those of the network may hold what was sent, or where to."""
    if isinstance(error, httpcore.ConnectTimeout):
        return f"No connection came about within {CONNECT_S:.0f} seconds."
    cause = error.args[0] if error.args else error.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return "The receiver's certificate could not be verified."
    if isinstance(cause, ssl.SSLError):
        return "No encrypted connection came about."
    return "The receiver did not accept the connection."
