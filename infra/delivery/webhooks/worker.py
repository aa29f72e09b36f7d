"""The senders of a worker: one for each endpoint that no other worker sends to.

Whoever holds an endpoint's advisory lock sends to it. All locks of a worker are one session's: when that is gone, so
are they, and whoever comes first takes the endpoints over.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import httpcore
import psycopg
from cryptography.exceptions import InvalidTag

from infra.crypto.envelope import MasterKeyError
from infra.delivery.webhooks.delivery_store import DeliveryStore, LeaseLost
from infra.delivery.webhooks.http_target import HttpTarget, Resolver
from infra.delivery.webhooks.models import DeliveryPolicy
from infra.delivery.webhooks.sender import Sender
from infra.delivery.webhooks.signing import WebhookSealer, payload
from infra.errors import Unavailable
from infra.eventstore.live_subscription import LiveSubscriptions
from infra.postgres.pool import session
from infra.processes.runtime import WORKER
from projections.engine.advisory_locks import AdvisoryLock

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from uuid import UUID

    from domain.recorded import RecordedEvent
    from infra.delivery.webhooks.http_target import AllowedNetworks
    from infra.delivery.webhooks.models import Endpoint
    from infra.processes.runtime import Runtime

# Between looks at what endpoints there are, and what somebody asked of them.
POLL_S: Final = 1.0
# Endpoints that one worker sends to; beyond, another worker must be started.
SENDERS_MAX: Final = 1_000
# A sender that broke is begun again after a pause, and after a longer one each time.
BROKEN_FIRST_S: Final = 5.0
BROKEN_LONGEST_S: Final = 300.0
BROKEN: Final = "Something broke on our side. It is tried again."
# How often what is too old is dropped.
FORGET_EVERY_S: Final = 600.0

_LEAD: Final = "SELECT pg_try_advisory_lock(%s, hashtext(%s))"
_LEAVE: Final = "SELECT pg_advisory_unlock(%s, hashtext(%s))"

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Running:
    """An endpoint that is sent to here."""

    sender: Sender
    task: asyncio.Task[None]
    target: HttpTarget


@dataclass(slots=True)
class _Broken:
    """An endpoint whose sender broke: when it is begun again, and after which pause the time after."""

    until: float
    pause_s: float


class WebhookWorker:
    """Begins and ends senders, as endpoints come, change and go."""

    def __init__(
        self,
        conninfo: str,
        opened: Runtime,
        networks: AllowedNetworks,
        terms: DeliveryPolicy | None = None,
    ) -> None:
        """Take what senders need; `run` runs.

        Args:
            conninfo: the database, as a login that is or may become the worker's role.
            opened: the worker's own parts.
            networks: where may be sent to besides public addresses.
            terms: how often, how many, how long.

        """
        self._session = session(conninfo, WORKER)
        self._keyring = opened.keyring
        self._networks = networks
        self._terms = terms or DeliveryPolicy()
        self._book = DeliveryStore(opened.database)
        self._events = opened.events
        self._aggregates = opened.aggregates
        self.tails = LiveSubscriptions(opened.events, self._encode)
        self._resolver = Resolver()
        self._context = httpcore.default_ssl_context()
        self._names: dict[int, str] = {}
        self._running: dict[UUID, _Running] = {}
        self._broken: dict[UUID, _Broken] = {}
        self._forget_at = 0.0
        self._full = False

    async def run(self) -> None:
        """Send until cancelled; a database that is away is waited for."""
        try:
            while True:
                try:
                    async with await psycopg.AsyncConnection.connect(**self._session) as connection:
                        await self._serve(connection)
                except (psycopg.OperationalError, Unavailable) as error:
                    log.warning("Webhooks wait for the database: %s", " ".join(str(error).split()))
                # The locks went with the session: from here on another worker may send.
                await self._end(list(self._running))
                await asyncio.sleep(POLL_S)
        finally:
            await self._end(list(self._running))
            await self.tails.close()
            self._resolver.close()

    async def _serve(self, connection: psycopg.AsyncConnection[Any]) -> None:
        while True:
            # First: what a sender wrote down when it ended, as that its webhook is disabled, is seen below.
            await self._reap(connection)
            # By the session that holds the locks: that it answers is what the senders rest on.
            endpoints = {endpoint.webhook_id: endpoint for endpoint in await self._book.endpoints(connection)}
            self._names.update({endpoint.ledger_id: endpoint.ledger_name for endpoint in endpoints.values()})
            try:
                await self._follow_changes(endpoints)
                for endpoint in endpoints.values():
                    if endpoint.key_valid and endpoint.webhook_id not in self._running:
                        await self._begin(connection, endpoint)
            except Unavailable as unavailable:
                # A busy moment: those that send go on, the rest is looked at again.
                log.warning("Changes of webhooks wait: %s", unavailable)
            if time.monotonic() >= self._forget_at:
                self._forget_at = time.monotonic() + FORGET_EVERY_S
                await self._forget()
            await asyncio.sleep(POLL_S)

    async def _follow_changes(self, endpoints: Mapping[UUID, Endpoint]) -> None:
        for endpoint in endpoints.values():
            if not endpoint.key_valid:
                await self._book.disable(endpoint.webhook_id, "key")
        for webhook_id, running in self._running.items():
            now = endpoints.get(webhook_id)
            before = running.sender.endpoint
            if now is None or not now.key_valid or replace(now, revision=before.revision) != before:
                # What has changed is begun anew, once all that is under way has landed.
                running.sender.stop()
            elif now.revision != before.revision:
                running.sender.look_again(now)

    async def _begin(self, connection: psycopg.AsyncConnection[Any], endpoint: Endpoint) -> None:
        webhook_id = endpoint.webhook_id
        broken = self._broken.get(webhook_id)
        if broken is not None and time.monotonic() < broken.until:
            return
        if len(self._running) >= SENDERS_MAX:
            if not self._full:
                log.error("This worker sends to %s webhooks and takes no more: start another one.", SENDERS_MAX)
            self._full = True
            return
        self._full = False
        lock = (AdvisoryLock.WEBHOOK_SENDER, str(webhook_id))
        row = await (await connection.execute(_LEAD, lock)).fetchone()
        if row is None or not row[0]:
            return
        try:
            sealing = WebhookSealer(await self._keyring.ledger(endpoint.ledger_id))
            url = sealing.unseal("url", endpoint.url, webhook_id).decode()
            secrets = _secrets(endpoint, sealing)
            standing = await self._book.take_over(endpoint)
        except (LeaseLost, MasterKeyError, InvalidTag) as error:
            why = str(error) or type(error).__name__
            log.error("Webhook %s cannot be sent to: %s", webhook_id, why)  # noqa: TRY400 - no traceback tells more
            await self._pause(webhook_id)
            await connection.execute(_LEAVE, lock)
            return
        target = HttpTarget(
            url, endpoint.ledger_id, self._networks, self._resolver, self._context, self._terms.in_flight
        )
        sender = Sender(
            endpoint,
            standing,
            target,
            secrets,
            book=self._book,
            events=self._events,
            aggregates=self._aggregates,
            tails=self.tails,
            terms=self._terms,
        )
        task = asyncio.create_task(sender.run(), name=f"webhook {webhook_id}")
        self._running[webhook_id] = _Running(sender, task, target)

    async def _reap(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Take note of senders that ended, and let their locks go."""
        for webhook_id, running in list(self._running.items()):
            if not running.task.done():
                continue
            del self._running[webhook_id]
            await running.target.close()
            error = running.task.exception()
            if error is None:
                self._broken.pop(webhook_id, None)
            elif isinstance(error, LeaseLost):
                log.info("Webhook %s was taken over by another worker, or deleted", webhook_id)
            else:
                log.error("Webhook %s cannot be sent to, and is tried again later", webhook_id, exc_info=error)
                await self._pause(webhook_id)
            await connection.execute(_LEAVE, (AdvisoryLock.WEBHOOK_SENDER, str(webhook_id)))

    async def _pause(self, webhook_id: UUID) -> None:
        with suppress(Unavailable):
            await self._book.complain(webhook_id, BROKEN)
        known = self._broken.get(webhook_id)
        pause_s = BROKEN_FIRST_S if known is None else min(known.pause_s * 2, BROKEN_LONGEST_S)
        self._broken[webhook_id] = _Broken(time.monotonic() + pause_s, pause_s)

    async def _end(self, webhook_ids: Sequence[UUID]) -> None:
        ended = [self._running.pop(webhook_id) for webhook_id in webhook_ids]
        for running in ended:
            running.task.cancel()
        await asyncio.gather(*(running.task for running in ended), return_exceptions=True)
        await asyncio.gather(*(running.target.close() for running in ended), return_exceptions=True)

    async def _forget(self) -> None:
        for webhook_id in list(self._running):
            with suppress(Unavailable):
                await self._book.forget(webhook_id)
        with suppress(Unavailable):
            await self._book.forget_unattended()

    async def _encode(self, ledger_id: int, page: Sequence[RecordedEvent]) -> list[bytes]:
        return [payload(recorded, self._names[ledger_id]) for recorded in page]


def _secrets(endpoint: Endpoint, sealing: WebhookSealer) -> Callable[[], Sequence[bytes]]:
    """Return what tells the secrets that are valid now."""
    current = sealing.unseal("secret", endpoint.secret, endpoint.webhook_id)
    until = endpoint.old_secret_until
    if endpoint.old_secret is None or until is None:
        return lambda: [current]
    old = sealing.unseal("secret", endpoint.old_secret, endpoint.webhook_id)
    return lambda: [current, old] if datetime.now(UTC) < until else [current]
