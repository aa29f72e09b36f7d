"""How a message leaves: by SMTP with TLS, or as a POST of JSON that chat services accept.

What a server answers may repeat an address. So an error is a sentence of our own, with the server's number at most.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from dataclasses import dataclass, field
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import unquote, urlsplit

import aiosmtplib
import orjson

from infra.delivery.webhooks.http_target import AllowedNetworks, HttpTarget

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path
    from uuid import UUID

    from infra.delivery.alerts.texts import AlertText
    from infra.delivery.webhooks.http_target import Resolver
    from infra.settings import Settings

# The time for one attempt to send an e-mail, from the look-up of the server to its last answer.
MAIL_S: Final = 30.0
CHAT_CHARACTERS_MAX: Final = 12_000
# As long as a subject can be: some programs show a blank before a folded one. In 7 bits, as every server takes it.
_POLICY: Final = SMTP.clone(max_line_length=240, cte_type="7bit")
_CHAT_HEADERS: Final = {"content-type": "application/json", "user-agent": "sparkledger-alerts/1"}
# No network but the public one. Creators and brands are outsiders, who must not make this machine call its neighbours.
PUBLIC_ONLY: Final = AllowedNetworks(())
# A chat that is not there any more.
_GONE: Final = frozenset({404, 410})
_FIRST_OF_REFUSALS: Final = 500


Security = Literal["tls", "starttls", "none"]
_PORTS: Final = {"smtps": 465, "smtp": 587}
_IP_ADDRESS: Final = re.compile(r"[0-9a-f.:]+")


@dataclass(frozen=True, slots=True)
class MailServer:
    """The server that e-mails are handed to.

    Attributes:
        security: `tls` from the beginning, `starttls` before anything else is said, or `none` on this machine.
        sender: the address that messages come from.
        ca_file: certificates of authorities that are trusted besides the well-known ones.

    """

    host: str
    port: int
    security: Security
    sender: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: Path | None = None

    @property
    def domain(self) -> str:
        """The domain of the sender, by which the ids of messages are the sender's own."""
        return self.sender.rpartition("@")[2]


def mail_server(settings: Settings) -> MailServer | None:
    """Return the server that the settings name; None if they name none."""
    if settings.smtp_url is None or settings.smtp_from is None:
        return None
    parts = urlsplit(settings.smtp_url.get_secret_value())
    host = parts.hostname or ""
    is_local = host == "localhost" or (_IP_ADDRESS.fullmatch(host) is not None and ip_address(host).is_loopback)
    security: Security = "tls" if parts.scheme == "smtps" else "none" if is_local else "starttls"
    return MailServer(
        host,
        parts.port or _PORTS[parts.scheme],
        security,
        settings.smtp_from,
        None if parts.username is None else unquote(parts.username),
        None if parts.password is None else unquote(parts.password),
        settings.smtp_ca_file,
    )


@dataclass(frozen=True, slots=True)
class Attempted:
    """What became of an attempt.

    Attributes:
        error: why it failed; None where the message was accepted.
        final: whether it fails every time.
        retry_after_s: the pause that the receiver asks for.

    """

    error: str | None = None
    final: bool = False
    retry_after_s: float | None = None


class MailChannel:
    """Sends e-mails."""

    def __init__(self, server: MailServer) -> None:
        """Take the server."""
        self._server = server
        self._context = ssl.create_default_context()
        if server.ca_file is not None:
            self._context.load_verify_locations(str(server.ca_file))

    async def send(self, to: str, text: AlertText, message_id: UUID, made_at: datetime) -> Attempted:
        """Send a message once. Every failure of the network or the server is a result, not an exception."""
        server = self._server
        client = aiosmtplib.SMTP(
            hostname=server.host,
            port=server.port,
            use_tls=server.security == "tls",
            start_tls=server.security == "starttls",
            tls_context=None if server.security == "none" else self._context,
            username=server.user,
            password=server.password,
            timeout=MAIL_S,
        )
        message = self.message(to, text, message_id, made_at)
        # How the connection ends after that makes no difference.
        accepted = False
        try:
            async with asyncio.timeout(MAIL_S), client:
                await client.sendmail(server.sender, [to], message.as_bytes())
                accepted = True
        except aiosmtplib.SMTPRecipientsRefused as refused:
            code = refused.recipients[0].code if refused.recipients else 0
            return Attempted(f"The mail server refused the recipient ({code}).", final=code >= _FIRST_OF_REFUSALS)
        except aiosmtplib.SMTPAuthenticationError as refused:
            return Attempted(f"The mail server refused the login ({refused.code}).")
        except aiosmtplib.SMTPResponseException as refused:
            return Attempted(f"The mail server refused the message ({refused.code}).")
        except (TimeoutError, aiosmtplib.SMTPTimeoutError):
            if not accepted:
                return Attempted(f"The mail server did not answer within {MAIL_S:.0f} seconds.")
        except (aiosmtplib.SMTPException, OSError, ValueError) as error:
            if not accepted:
                return Attempted(_why_not_sent(error))
        return Attempted()

    def message(self, to: str, text: AlertText, message_id: UUID, made_at: datetime) -> EmailMessage:
        """Return the e-mail. A repeated attempt has the same id, by which receivers recognise it."""
        message = EmailMessage(policy=_POLICY)
        message["From"] = Address("Sparkledger", addr_spec=self._server.sender)
        message["To"] = Address(addr_spec=to)
        message["Subject"] = text.subject
        message["Date"] = format_datetime(made_at)
        message["Message-ID"] = f"<{message_id}@{self._server.domain}>"
        # By RFC 3834: no program should answer it.
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(text.body)
        return message


class ChatChannel:
    """Posts messages to the URLs of chat services, under the same guard as webhooks."""

    def __init__(self, networks: AllowedNetworks, resolver: Resolver, context: ssl.SSLContext) -> None:
        """Take the networks that are allowed besides public addresses, and what is shared with webhooks."""
        self._networks = networks
        self._resolver = resolver
        self._context = context

    async def send(
        self, url: str, text: AlertText, message_id: UUID, ledger_id: int, *, public_only: bool
    ) -> Attempted:
        """Send a message once. Every failure of the network or the receiver is a result, not an exception.

        With `public_only` the networks of the setting are closed to it.
        """
        networks = PUBLIC_ONLY if public_only else self._networks
        target = HttpTarget(url, ledger_id, networks, self._resolver, self._context, 1)
        try:
            result = await target.post(_CHAT_HEADERS | {"idempotency-key": str(message_id)}, chat_body(text))
        finally:
            await target.close()
        if result.delivered:
            return Attempted()
        if result.status is None:
            return Attempted(result.error)
        return Attempted(
            f"The receiver responded with status {result.status}.", result.status in _GONE, result.retry_after_s
        )


def chat_body(text: AlertText) -> bytes:
    """Return a message as chat services take it: no character of it is a command or a mention there."""
    said = f"{text.subject}\n\n{text.body}"
    escaped = said.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return orjson.dumps({"text": escaped[:CHAT_CHARACTERS_MAX]})


def _why_not_sent(error: Exception) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return "The mail server's certificate could not be verified."
        if isinstance(cause, ssl.SSLError):
            return "No TLS connection to the mail server could be made."
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, aiosmtplib.SMTPConnectError):
        return "The mail server did not accept the connection."
    if isinstance(error, aiosmtplib.SMTPServerDisconnected):
        return "The mail server broke the connection."
    return "The message could not be handed to the mail server."
