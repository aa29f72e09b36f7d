"""Where webhooks go: public addresses, what a setting names, and nowhere else, whatever a name says later."""

from __future__ import annotations

import asyncio
import itertools
import ssl
import threading
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpcore
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from httpcore._backends.anyio import AnyIOStream

import infra.delivery.webhooks.http_target
from infra.delivery.webhooks.http_target import (
    ANSWER_BYTES_MAX,
    ATTEMPT_BYTES_MAX,
    ATTEMPT_READS_MAX,
    READ_BYTES,
    RESOLVERS_EACH,
    Address,
    AllowedNetworks,
    HttpResult,
    HttpTarget,
    InvalidTarget,
    Resolver,
    check_url,
)
from tests import given
from tests.infra.delivery.webhooks.receiving import HANG, receiving
from tests.infra.delivery.webhooks.sending import Post, sending
from tests.infra.opened import Opened

LOOPBACK = AllowedNetworks(["127.0.0.0/8", "::1/128"])
NONE = AllowedNetworks(["none"])
REFUSED = "The host name resolves to an address that webhooks must not use."


class Leading(Resolver):
    """Leads every name where the test says, one answer after the other."""

    def __init__(self, *answers: Sequence[str]) -> None:
        super().__init__()
        self.answers = list(answers)
        self.asked: list[str] = []

    async def addresses(self, host: str, ledger_id: int) -> Sequence[Address]:
        self.asked.append(host)
        return [ip_address(address) for address in (self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])]


async def post(
    url: str, networks: AllowedNetworks, resolver: Resolver, context: ssl.SSLContext | None = None
) -> HttpResult:
    target = HttpTarget(url, 1, networks, resolver, context or httpcore.default_ssl_context(), 2)
    try:
        return await target.post({"webhook-id": "one"}, b"{}")
    finally:
        await target.close()


@pytest.mark.parametrize(
    "url",
    [
        "https://receiver.example/hook",
        "https://receiver.example:8443/hook?token=x&y=%20",
        "https://93.184.215.14/hook",
        "https://[2606:2800:21f:cb07:6820:80da:af6b:8b2c]/",
        "http://localhost:9000/hook",
        "http://app.localhost/hook",
        "http://127.0.0.1:9000/hook",
        "http://[::1]:9000/",
    ],
)
def test_a_webhook_may_be_sent_to(url: str) -> None:
    check_url(url, LOOPBACK)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://receiver.example/hook", "Use https"),
        ("http://10.0.0.1/hook", "Use https"),
        ("https://10.0.0.1/hook", "not public"),
        ("https://169.254.169.254/latest/meta-data", "not public"),
        ("https://[fd00:ec2::254]/", "not public"),
        ("https://[::ffff:10.0.0.1]/", "not public"),
        ("https://0.0.0.0/", "not public"),
        ("https://user:password@receiver.example/", "must not contain a user or password"),
        ("https:///hook", "must not contain a user or password"),
        ("https://receiver.example:99999/", "malformed"),
        ("https://[nonsense/", "malformed"),
        ("ftp://receiver.example/", "absolute https URL"),
        ("//receiver.example/", "absolute https URL"),
        ("https://receiver.example/#part", "absolute https URL"),
        ("https://receiver.example/ä", "absolute https URL"),
        ("https://receiver.example/\r\nHost: x", "absolute https URL"),
        ("https://receiver.example/" + "x" * 2048, "absolute https URL"),
    ],
)
def test_a_webhook_may_not_be_sent_to(url: str, said: str) -> None:
    with pytest.raises(InvalidTarget, match=said) as refused:
        check_url(url, LOOPBACK)
    assert "password" not in str(refused.value).replace("user or password", "")


def test_loopback_is_refused_where_no_network_is_named() -> None:
    with pytest.raises(InvalidTarget):
        check_url("http://127.0.0.1/", NONE)


@pytest.mark.parametrize(
    "address",
    [
        *(
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "127.0.0.1",
            "0.0.0.0",  # noqa: S104 - what nothing is sent to
            "224.0.0.1",
        ),
        # Where clouds tell a machine its own credentials.
        *("192.0.0.192", "168.63.129.16"),
        *("192.0.0.1", "192.88.99.1", "198.18.0.1", "203.0.113.1", "240.0.0.1", "255.255.255.255"),
        *("::1", "::", "fe80::1", "fc00::1", "fec0::1", "ff02::1", "2001:db8::1", "3fff::1", "2001::1", "::7f00:1"),
        # An IPv4 address within: mapped, 6to4, NAT64.
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1", "64:ff9b:1::1"),
    ],
)
def test_an_address_that_is_not_public_is_not_connected_to(address: str) -> None:
    assert not NONE.allow(ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_a_public_address_is_connected_to(address: str) -> None:
    assert NONE.allow(ip_address(address))


def test_a_network_that_is_named_is_connected_to() -> None:
    named = AllowedNetworks(["10.1.0.0/16", "fd00::/8"])
    assert [named.allow(ip_address(a)) for a in ("10.1.2.3", "fd00::1", "::ffff:10.1.2.3", "10.2.0.1")] == [
        *(True, True, True),
        False,
    ]


async def test_a_name_that_leads_inside_is_refused_when_it_is_connected_to() -> None:
    for inside in (["10.0.0.1"], ["169.254.169.254"], ["fe80::1"], ["127.0.0.1"]):
        answer = await post("https://receiver.example/", NONE, Leading(inside))
        assert answer == HttpResult(error=REFUSED)
    assert await post("https://receiver.example/", NONE, Leading([])) == HttpResult(
        error="The host name cannot be resolved."
    )


async def test_a_name_that_leads_elsewhere_the_second_time_is_judged_the_second_time() -> None:
    async with receiving() as receiver:
        url = receiver.url.replace("127.0.0.1", "localhost")
        resolver = Leading(["127.0.0.1"], ["10.0.0.1"])
        assert (await post(url, LOOPBACK, resolver)).status == 204
        assert await post(url, LOOPBACK, resolver) == HttpResult(error=REFUSED)
        assert resolver.asked == ["localhost", "localhost"]


async def test_in_clear_nothing_leaves_this_machine_whatever_the_name_says() -> None:
    everywhere = AllowedNetworks(["0.0.0.0/0"])
    assert await post("http://localhost:9/", everywhere, Leading(["10.0.0.1"])) == HttpResult(error=REFUSED)


async def test_a_redirect_is_not_followed() -> None:
    async with receiving(lambda _: (302, {"Location": "http://127.0.0.1:1/"}, b"")) as receiver:
        answer = await post(receiver.url, LOOPBACK, Resolver())
        assert (answer.status, answer.delivered, receiver.connections) == (302, False, 1)


async def test_of_an_endless_answer_only_the_beginning_is_read() -> None:
    async with receiving(lambda _: (200, {}, b"x" * 50_000_000)) as receiver:
        assert (await post(receiver.url, LOOPBACK, Resolver())).status == 200


@pytest.mark.parametrize("attempt_s", [20.0, 0.1], ids=["plenty of time", "the time of the attempt ends first"])
async def test_an_answer_whose_rest_never_comes_counts_as_it_began(
    monkeypatch: pytest.MonkeyPatch, attempt_s: float
) -> None:
    monkeypatch.setattr(infra.delivery.webhooks.http_target, "BODY_S", 0.2)
    monkeypatch.setattr(infra.delivery.webhooks.http_target, "ATTEMPT_S", attempt_s)

    async def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nx")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(begin, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        resolver = Resolver()
        target = HttpTarget(f"http://127.0.0.1:{port}/", 1, LOOPBACK, resolver, httpcore.default_ssl_context(), 1)
        answers = [await target.post({"webhook-id": "one"}, b"{}") for _ in range(2)]
        assert answers == [HttpResult(200, answer=b"x")] * 2
        await target.close()


@asynccontextmanager
async def responding(*pieces: bytes) -> AsyncIterator[str]:
    """Respond to each request with pieces, the next after the previous one has been read, and close the connection."""

    async def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        with suppress(ConnectionError):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
        writer.close()

    async with await asyncio.start_server(begin, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        (b"content-length: 100\r\n\r\nabc", b"abc"),
        (b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n", b"abc"),
        (b"transfer-encoding: chunked\r\n\r\nnonsense\r\n", None),
        (b"content-length: 650000000\r\n\r\n" + b"x" * 100_000, b"x" * ANSWER_BYTES_MAX),
    ],
    ids=["cut off", "cut off between chunks", "malformed", "too long"],
)
@pytest.mark.parametrize("status", [200, 503])
async def test_the_status_counts_whatever_becomes_of_the_body(status: int, body: bytes, answer: bytes | None) -> None:
    async with responding(b"HTTP/1.1 %d x\r\nretry-after: 7\r\n" % status + body) as url:
        result = await post(url, LOOPBACK, Resolver())
    assert result == HttpResult(status, retry_after_s=7.0, answer=answer)
    assert result.delivered == (status == 200)


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (b"garbage\r\n\r\n", "The response is not valid HTTP/1.1."),
        (b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n", "The response is not valid HTTP/1.1."),
        (b"HTTP/1.1 200 OK\r\nno header\r\n\r\n", "The response is not valid HTTP/1.1."),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
            "The receiver responded with status 101, although no other protocol was asked for.",
        ),
        (b"", "The connection broke before there was a response."),
        (b"HTTP/1.1 20", "The connection broke before there was a response."),
    ],
    ids=["garbage", "a malformed length", "a malformed header", "another protocol", "nothing", "half a status line"],
)
async def test_an_attempt_without_a_response_says_what_came_instead(response: bytes, error: str) -> None:
    async with responding(response) as url:
        assert await post(url, LOOPBACK, Resolver()) == HttpResult(error=error)


@asynccontextmanager
async def pouring(pieces: Iterable[bytes], *, apart: bool = False) -> AsyncIterator[str]:
    """Answer every request with pieces, for as long as they are read; `apart` sends each by itself."""
    answering: list[asyncio.Task[None]] = []

    async def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                if apart:
                    await asyncio.sleep(0.001)
        writer.transport.abort()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answering.append(asyncio.create_task(begin(reader, writer)))

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/"
        await asyncio.gather(*answering)


@pytest.mark.parametrize(
    ("pieces", "apart"),
    [
        (itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n" * 100), False),
        (itertools.repeat(b"HTTP/1.1 103 Early Hints\r\n\r\n"), True),
        (itertools.chain([b"HTTP/1.1 200 OK\r\n"], itertools.repeat(b"x: y\r\n" * 100)), False),
        (itertools.chain([b"HTTP/1.1 200 OK\r\n"], itertools.repeat(b"x")), True),
    ],
    ids=["interim responses", "interim responses one by one", "headers", "a header byte by byte"],
)
async def test_what_comes_without_end_is_read_no_further_than_the_limits(
    monkeypatch: pytest.MonkeyPatch, pieces: Iterable[bytes], *, apart: bool
) -> None:
    read = []
    reading = AnyIOStream.read

    async def counted(self: Any, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - httpcore's
        read.append(await reading(self, max_bytes, timeout))
        return read[-1]

    monkeypatch.setattr(AnyIOStream, "read", counted)
    async with pouring(pieces, apart=apart) as url:
        result = await post(url, LOOPBACK, Resolver())
    assert result == HttpResult(error="Too much came before the response, or it came in too many pieces.")
    assert len(read) <= ATTEMPT_READS_MAX
    assert sum(map(len, read)) <= ATTEMPT_BYTES_MAX + READ_BYTES


async def test_each_attempt_on_a_connection_reads_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infra.delivery.webhooks.http_target, "ATTEMPT_READS_MAX", 3)
    async with receiving() as receiver:
        target = HttpTarget(receiver.url, 1, LOOPBACK, Resolver(), ssl.create_default_context(), 1)
        answers = [await target.post({"webhook-id": "one"}, b"{}") for _ in range(5)]
        await target.close()
    assert [answer.status for answer in answers] == [204] * 5
    assert receiver.connections == 1


async def test_a_receiver_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infra.delivery.webhooks.http_target, "ATTEMPT_S", 0.1)
    async with receiving(lambda _: HANG) as receiver:
        answer = await post(receiver.url, LOOPBACK, Resolver())
        assert answer.status is None
        assert answer.error is not None
        assert answer.error.startswith("There was no response within")


async def test_a_receiver_that_is_not_there_is_told_apart() -> None:
    async with receiving() as receiver:
        url = receiver.url
    assert await post(url, LOOPBACK, Resolver()) == HttpResult(error="The receiver did not accept the connection.")


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        *(("120", 120.0), ("0", 0.0), ("9" * 400, 86_400.0), ("soon", None), ("-1", None), ("1.5", None)),
        ("Fri, 01 Jan 99999999999999999999 00:00:00 GMT", None),
        ("Fri, 01 Jan 2027 00:00:00 +99999999999999999999", None),
    ],
)
async def test_retry_after_is_read_and_bounded(said: str, seconds: float | None) -> None:
    async with receiving(lambda _: (503, {"Retry-After": said}, b"")) as receiver:
        assert (await post(receiver.url, LOOPBACK, Resolver())).retry_after_s == seconds


async def test_retry_after_may_be_a_date() -> None:
    later = datetime.now(UTC) + timedelta(minutes=2)
    said = later.strftime("%a, %d %b %Y %H:%M:%S GMT")
    async with receiving(lambda _: (503, {"Retry-After": said}, b"")) as receiver:
        found = (await post(receiver.url, LOOPBACK, Resolver())).retry_after_s
    assert found is not None
    assert 110 < found <= 120


class Connecting(httpcore.AsyncNetworkBackend):
    """Connects to nobody but says which addresses were tried, each for how long; those named fail as they are told."""

    def __init__(self, **failing: Exception) -> None:
        self.failing = failing
        self.tried: list[tuple[str, float | None]] = []

    async def connect_tcp(self, host: str, port: int, timeout: float | None = None, *_: object) -> Any:  # noqa: ASYNC109 - as httpcore has it
        self.tried.append((host, timeout))
        if host in self.failing:
            raise self.failing[host]
        raise httpcore.ReadError


@pytest.mark.parametrize("failure", [httpcore.ConnectTimeout(), httpcore.ConnectError()], ids=["silent", "refused"])
async def test_the_next_address_of_a_name_is_tried_where_one_does_not_connect(
    monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    inner = Connecting(**{"127.0.0.1": failure})
    monkeypatch.setattr(httpcore, "AnyIOBackend", lambda: inner)
    addresses = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]

    await post("http://localhost:9/", LOOPBACK, Leading(addresses))

    # The first has a third of the five seconds, and the second half of what is left.
    (first, first_s), (second, second_s) = inner.tried
    assert (first, second) == ("127.0.0.1", "127.0.0.2")
    assert first_s == pytest.approx(5 / 3, abs=0.5)
    assert second_s == pytest.approx(5 / 2, abs=0.5)


async def test_a_name_of_which_no_address_connects_in_time_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = ["127.0.0.1", "127.0.0.2"]
    inner = Connecting(**dict.fromkeys(addresses, httpcore.ConnectTimeout()))
    monkeypatch.setattr(httpcore, "AnyIOBackend", lambda: inner)

    answer = await post("http://localhost:9/", LOOPBACK, Leading(addresses))

    assert answer == HttpResult(error="No connection could be made within 5 seconds.")
    assert [address for address, _ in inner.tried] == addresses


# -- TLS


def certified(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the contexts of a server with a certificate for a name, and of a client that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = folder / "certificate"
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    return server, ssl.create_default_context(cafile=str(file))


async def test_the_certificate_must_be_for_the_name_although_the_address_is_connected_to(tmp_path: Path) -> None:
    server, client = certified(tmp_path, "receiver.example")
    async with receiving(context=server) as receiver:
        port = receiver.url.split(":")[2]
        right = await post(f"https://receiver.example:{port}", LOOPBACK, Leading(["127.0.0.1"]), client)
        wrong = await post(f"https://other.example:{port}", LOOPBACK, Leading(["127.0.0.1"]), client)
        unknown = await post(f"https://receiver.example:{port}", LOOPBACK, Leading(["127.0.0.1"]))
        assert right.status == 204
        assert receiver.received[0].headers["host"].startswith("receiver.example")
        not_verified = HttpResult(error="The receiver's certificate could not be verified.")
        assert (wrong, unknown) == (not_verified, not_verified)
        assert len(receiver.received) == 1


async def test_a_receiver_with_a_certificate_of_an_own_authority_is_trusted_where_the_setting_names_it(
    opened: Opened, tmp_path: Path
) -> None:
    server, _ = certified(tmp_path, "localhost")
    post = Post(opened, await opened.begin(role="subscriber"))
    await opened.when(await post.operator(), given.permission())
    async with receiving(context=server) as receiver, sending(opened, ca_file=tmp_path / "certificate"):
        receiver.url = receiver.url.replace("127.0.0.1", "localhost")
        await post.caught_up(await post.register(receiver))
    assert receiver.positions == [1]


@asynccontextmanager
async def breaking(context: ssl.SSLContext, last: bytes = b"") -> AsyncIterator[int]:
    """Listen with TLS; after the handshake say something in clear, or what TLS has to say where it failed."""

    async def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        encryption = context.wrap_bio(incoming, outgoing, server_side=True)
        shaken = False
        while not shaken:
            try:
                encryption.do_handshake()
                shaken = True
            except ssl.SSLWantReadError:
                writer.write(outgoing.read())
                incoming.write(await reader.read(65_536))
            except ssl.SSLError:
                # What is left is the alert.
                break
        writer.write(outgoing.read() + last)
        # A connection that is closed before the client has read it could be reset.
        await reader.read()
        writer.close()

    async with await asyncio.start_server(begin, "127.0.0.1", 0) as listening:
        yield listening.sockets[0].getsockname()[1]


def asking(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the contexts of a server that asks for a certificate, and of a client that has none."""
    server, client = certified(folder, "localhost")
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_verify_locations(str(folder / "certificate"))
    return server, client


@pytest.mark.parametrize("what", ["a certificate is asked for", "a record is garbled"])
async def test_encryption_that_breaks_after_the_handshake_is_a_failed_attempt(tmp_path: Path, what: str) -> None:
    server, client = asking(tmp_path) if what == "a certificate is asked for" else certified(tmp_path, "localhost")
    async with breaking(
        server, b"" if what == "a certificate is asked for" else b"HTTP/1.1 204 in clear\r\n\r\n"
    ) as port:
        target = HttpTarget(f"https://localhost:{port}/", 1, LOOPBACK, Leading(["127.0.0.1"]), client, 1)
        answers = [await target.post({"webhook-id": "one"}, b"{}") for _ in range(2)]
        await target.close()
    broke = HttpResult(
        error="The TLS connection broke before there was a response. Does the receiver ask for a client certificate?"
    )
    assert answers == [broke, broke]


async def test_a_receiver_that_asks_for_a_certificate_is_tried_again_on_the_schedule_and_disabled_at_its_end(
    opened: Opened, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server, client = asking(tmp_path)
    post = Post(opened, await opened.begin(role="subscriber"))
    await opened.when(await post.operator(), given.permission())
    async with breaking(server) as port, sending(opened) as senders:
        senders._context = client
        webhook, _, _ = await post.webhooks.create(
            post.owner, url=f"https://localhost:{port}/", description=None, types=(), creator_ids=(), after=0
        )
        await post.until(webhook.webhook_id, disabled="failing")
    outcomes = [attempt.outcome for attempt in await post.attempts(webhook.webhook_id)]
    assert outcomes == ["failed", "failed", "failed", "disabled"]
    assert "Traceback" not in caplog.text


async def test_whatever_else_breaks_is_a_failed_attempt_that_is_logged_without_its_words(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    posted = HttpTarget.post
    broken = [RuntimeError("of the receiver")]

    async def break_once(target: HttpTarget, headers: Mapping[str, str], body: bytes) -> HttpResult:
        if broken:
            raise broken.pop()
        return await posted(target, headers, body)

    monkeypatch.setattr(HttpTarget, "post", break_once)
    post = Post(opened, await opened.begin(role="subscriber"))
    await opened.when(await post.operator(), given.permission())
    async with receiving() as receiver, sending(opened):
        webhook_id = await post.register(receiver)
        await post.caught_up(webhook_id)
    assert [(attempt.outcome, attempt.error) for attempt in await post.attempts(webhook_id)] == [
        ("failed", "Something went wrong on our side."),
        ("delivered", None),
    ]
    assert f"Webhook {webhook_id}: RuntimeError in " in caplog.text
    assert "of the receiver" not in caplog.text


async def test_a_name_is_looked_up_once_for_all_who_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up: list[str] = []

    def look_up(host: str) -> list[Address]:
        looked_up.append(host)
        return [ip_address("127.0.0.1")]

    monkeypatch.setattr(infra.delivery.webhooks.http_target, "_look_up", look_up)
    resolver = Resolver()
    await asyncio.gather(*(resolver.addresses("receiver.example", ledger_id) for ledger_id in range(5)))
    resolver.close()
    assert looked_up == ["receiver.example"]


async def test_one_ledgers_names_that_hang_hold_up_its_own_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []
    goes_on = threading.Event()

    def look_up(host: str) -> list[Address]:
        begun.append(host)
        if host.startswith("slow"):
            goes_on.wait(15)
        return [ip_address("127.0.0.1")]

    monkeypatch.setattr(infra.delivery.webhooks.http_target, "_look_up", look_up)
    resolver = Resolver()
    names = [f"slow{number}.example" for number in range(100)]
    slow = [asyncio.create_task(resolver.addresses(name, 1)) for name in names]
    try:
        # Those who gave up leave their threads behind: they count until the look-up ends.
        await asyncio.sleep(0)
        for task in slow[:50]:
            task.cancel()
        async with asyncio.timeout(5):
            assert await resolver.addresses("quick.example", 2) == [ip_address("127.0.0.1")]
        assert len(begun) <= RESOLVERS_EACH + 1
        goes_on.set()
        async with asyncio.timeout(5):
            await asyncio.gather(*slow[50:])
    finally:
        goes_on.set()
        resolver.close()
    assert sorted(begun) == sorted([*names[:RESOLVERS_EACH], "quick.example", *names[50:]])
