"""A worker of alerts that a test lets go on step by step, by a clock of its own, with a mail server and a chat."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any, Final, cast

from aiosmtpd.smtp import SMTP, AuthResult, Envelope

from infra.delivery.alerts.channels import MailServer
from infra.delivery.alerts.models import AlertPolicy
from infra.delivery.alerts.worker import AlertWorker
from infra.delivery.webhooks.http_target import AllowedNetworks
from infra.postgres.pool import LedgerConnection
from tests.api.world import World, told
from tests.serving import Clock
from tests.waiting import LOOK_EVERY_S, WITHIN_S, until

FAST: Final = AlertPolicy(collect_s=0, gap_s=0, retries_s=(10, 60))
LOGIN: Final = ("sparkledger", "pass:word@1")


@dataclass
class MailReceiver:
    """A mail server that keeps what it accepts; `answer` says what it answers to the message itself."""

    answer: str = "250 OK"
    recipient_answer: str = "250 OK"
    port: int = 0
    received: list[tuple[list[str], EmailMessage]] = field(default_factory=list)

    async def handle_RCPT(  # noqa: N802 - the name is aiosmtpd's
        self, _server: Any, _session: Any, envelope: Envelope, address: str, _options: Any
    ) -> str:
        if self.recipient_answer.startswith("250"):
            envelope.rcpt_tos.append(address)
        return self.recipient_answer

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Envelope) -> str:  # noqa: N802 - as above
        if self.answer.startswith("250"):
            parsed = message_from_bytes(cast("bytes", envelope.content), policy=policy.default)
            self.received.append((envelope.rcpt_tos, parsed))
        return self.answer

    def to(self, address: str) -> list[EmailMessage]:
        """Return the messages to an address, in the order in which they came."""
        return [message for recipients, message in self.received if recipients == [address]]


@dataclass
class ChatReceiver:
    """A chat that keeps what is posted to it, and answers as it is told."""

    status: int = 200
    url: str = ""
    received: list[dict[str, Any]] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
        self.received.append(json.loads(await reader.readexactly(length)))
        writer.write(f"HTTP/1.1 {self.status} Said\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()


class Mailroom:
    """The worker, and what it needs."""

    def __init__(self, world: World, **mail: Any) -> None:
        self.world = world
        self.serving = world.server.serving
        self.clock = Clock()
        self.inbox = MailReceiver()
        self.chat = ChatReceiver()
        self._mail = mail
        self.address = f"{world.server.ledger}@brand.example"

    async def open(self, context: ssl.SSLContext | None = None) -> None:
        """Listen, and take the lock."""
        loop = asyncio.get_running_loop()

        def protocol() -> SMTP:
            return SMTP(
                self.inbox,
                loop=loop,
                tls_context=context,
                require_starttls=context is not None,
                auth_require_tls=False,
                authenticator=_authenticate,
            )

        smtp = await loop.create_server(protocol, "127.0.0.1", 0)
        chat = await asyncio.start_server(self.chat.serve, "127.0.0.1", 0)
        self._listening = (smtp, chat)
        self.inbox.port = smtp.sockets[0].getsockname()[1]
        self.chat.url = f"http://127.0.0.1:{chat.sockets[0].getsockname()[1]}/services/T0/B0/secret"
        self.worker = self.new_worker()
        self.connection = await LedgerConnection.connect(**self.worker._session)
        # The server may not have noticed yet that the session of the test before is over.
        async with asyncio.timeout(WITHIN_S):
            while not await self.worker.leads(self.connection):  # noqa: ASYNC110 - nothing tells of an end on the server
                await asyncio.sleep(LOOK_EVERY_S)

    def new_worker(self, **changes: Any) -> AlertWorker:
        """Return a worker that starts afresh, as after the end of another."""
        server = MailServer("127.0.0.1", self.inbox.port, "none", "alerts@ledger.example")
        return AlertWorker(
            self.serving.worker,
            AllowedNetworks(["127.0.0.0/8"]),
            mail=replace(server, **self._mail | changes),
            public_url="https://console.example",
            policy=FAST,
            now=self.clock,
        )

    async def close(self) -> None:
        """Stop listening, and give the lock back."""
        await self.connection.close()
        for server in self._listening:
            server.close()

    def step(self) -> None:
        """Look, make messages, send them, and record what became of them."""

        async def run() -> None:
            await self.worker.step(self.connection)
            await self.worker.settled(self.connection)

        self.serving.call(run())

    def at(self, moment: datetime) -> None:
        """Set the worker's clock."""
        self.clock.ahead = moment - (self.clock() - self.clock.ahead)

    def rule(self, **asked: Any) -> dict[str, Any]:
        """Create a rule about ends, by e-mail, unless something else is asked for."""
        client = asked.pop("client", self.world.client)
        body = {"kind": "ending", "channel": "email", "address": self.address} | asked
        return told(client.post("/v1/alerts", json=body), 201)

    def read(self, rule: dict[str, Any]) -> dict[str, Any]:
        """Read a rule."""
        return told(self.world.client.get(f"/v1/alerts/{rule['rule_id']}"), 200)

    def deliveries(self, rule: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the messages of a rule, oldest first."""
        found = told(self.world.client.get(f"/v1/alerts/{rule['rule_id']}/deliveries"), 200)["deliveries"]
        return [*reversed(found)]

    @property
    def messages(self) -> list[EmailMessage]:
        """The e-mails to this test's address."""
        return self.inbox.to(self.address)

    def caught_up(self) -> None:
        """Wait until the views that alerts read have read everything."""
        asked = {"at_least": self.world.head(), "limit": 1}
        until(lambda: self.world.client.get("/v1/codes", params=asked).is_success)
        until(lambda: self.world.client.get("/v1/campaigns", params=asked).is_success)

    def wait_for(self, type_: str, count: int = 1) -> None:
        """Wait until so many events of a type are recorded and the views have read them."""

        def recorded() -> bool:
            found = told(self.world.client.get("/v1/events", params={"type": type_, "limit": 1000}), 200)["events"]
            return len(found) >= count

        until(recorded)
        self.caught_up()


def _authenticate(_server: Any, _session: Any, _envelope: Any, _mechanism: str, data: Any) -> AuthResult:
    return AuthResult(success=(data.login.decode(), data.password.decode()) == LOGIN, handled=False)


@contextmanager
def mailroom(world: World, context: ssl.SSLContext | None = None, **mail: Any) -> Iterator[Mailroom]:
    """Open a mailroom for a world."""
    room = Mailroom(world, **mail)
    room.serving.call(room.open(context))
    try:
        yield room
    finally:
        room.serving.call(room.close())


def text_of(message: EmailMessage) -> str:
    """Return what a person reads of a message."""
    part: Callable[[], Any] = message.get_content
    return cast("str", part()).replace("\r\n", "\n")
