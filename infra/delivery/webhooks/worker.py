"""The webhook worker: it runs one sender for each endpoint that no other worker sends to.

The worker that holds an endpoint's advisory lock sends to it. One database connection holds all locks of a worker. When
that connection is lost, the locks are released, and any worker may take the endpoints over.
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
from infra.ending import cancelled, stop_if_cancelled
from infra.errors import Unavailable
from infra.eventstore.live_subscription import LiveSubscriptions
from infra.eventstore.serialization import UnreadableEvent
from infra.postgres.pool import SHORT, LedgerConnection, session
from infra.postgres.roles import WORKER
from projections.engine.advisory_locks import AdvisoryLock

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from uuid import UUID

    from domain.recorded import RecordedEvent
    from infra.delivery.webhooks.http_target import AllowedNetworks
    from infra.delivery.webhooks.models import Endpoint
    from infra.runtime import Runtime

# How often the worker looks for new and changed webhooks.
POLL_S: Final = 1.0
# The number of endpoints that one worker sends to. Beyond it, another worker must be started.
SENDERS_MAX: Final = 1_000
# A sender that failed is started again after a pause, which doubles each time.
RESTART_FIRST_S: Final = 5.0
RESTART_LONGEST_S: Final = 300.0
SENDER_FAILED: Final = "Something went wrong on our side. It will be tried again."
# How often old rows are deleted.
CLEAN_UP_EVERY_S: Final = 600.0

_LEAD: Final = "SELECT pg_try_advisory_lock(%s, hashtext(%s))"
_LEAVE: Final = "SELECT pg_advisory_unlock(%s, hashtext(%s))"

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Running:
    """A sender that runs in this worker."""

    sender: Sender
    task: asyncio.Task[None]
    target: HttpTarget


@dataclass(slots=True)
class _Failed:
    """An endpoint whose sender failed: when it may be started again, and the pause until then."""

    until: float
    pause_s: float


class WebhookWorker:
    """Starts and stops senders as webhooks are created, changed and deleted."""

    def __init__(
        self,
        conninfo: str,
        opened: Runtime,
        networks: AllowedNetworks,
        policy: DeliveryPolicy | None = None,
        ca_file: Path | None = None,
        public_url: str | None = None,
    ) -> None:
        """Prepare the worker; `run` runs it.

        Args:
            conninfo: the database, with a login that has the worker's role or may take it.
            opened: the worker's parts.
            networks: the networks that are allowed besides public addresses.
            policy: the limits and pauses of delivery.
            ca_file: certificates of authorities that are trusted besides the well-known ones.
            public_url: where the API is reached, if known.

        """
        self._session = session(conninfo, WORKER)
        self._keyring = opened.keyring
        self._networks = networks
        self._public_url = public_url
        self._policy = policy or DeliveryPolicy()
        self._store = DeliveryStore(opened.database)
        self._events = opened.events
        self._aggregates = opened.aggregates
        self.live_subscriptions = LiveSubscriptions(opened.events, self._encode)
        self._resolver = Resolver()
        self._context = httpcore.default_ssl_context()
        if ca_file is not None:
            self._context.load_verify_locations(str(ca_file))
        self._names: dict[int, str] = {}
        self._histories: dict[int, UUID] = {}
        self._running: dict[UUID, _Running] = {}
        self._failed: dict[UUID, _Failed] = {}
        self._clean_up_at = 0.0
        self._full = False

    async def run(self) -> None:
        """Send until cancelled. While the database is unavailable, try to reach it again and again."""
        try:
            while True:
                try:
                    async with await LedgerConnection.connect(**self._session) as connection:
                        await self._serve(connection)
                except (Unavailable, *SHORT) as error:
                    log.warning("Webhooks are waiting for the database: %s", " ".join(str(error).split()))
                # The locks ended with the connection, so another worker may send from here on.
                await self._stop(list(self._running))
                await asyncio.sleep(POLL_S)
        finally:
            await self._stop(list(self._running))
            await self.live_subscriptions.close()
            self._resolver.close()

    async def _serve(self, connection: psycopg.AsyncConnection[Any]) -> None:
        while True:
            # An error of the database may have taken the place of a cancellation, and is only logged.
            stop_if_cancelled()
            # First of all: what a sender wrote when it ended, such as a disabled webhook, must be read below.
            await self._reap(connection)
            # On the connection that holds the locks: its answer shows that they are still held.
            found = await self._store.endpoints(connection)
            # Until it is decided what holds, nothing is sent of a ledger that may have lost events.
            endpoints = {endpoint.webhook_id: endpoint for endpoint in found if endpoint.whole}
            self._names.update({endpoint.ledger_id: endpoint.ledger_name for endpoint in found})
            histories = self._histories | {endpoint.ledger_id: endpoint.history for endpoint in found}
            if histories != self._histories:
                self._histories = histories
                self.live_subscriptions.forget_encoded()
            try:
                await self._apply_changes(endpoints)
                for endpoint in endpoints.values():
                    if endpoint.key_valid and endpoint.webhook_id not in self._running:
                        await self._start(connection, endpoint)
            except Unavailable as unavailable:
                # The database is busy: running senders go on, and the changes are applied a moment later.
                log.warning("Changes of webhooks wait for the database: %s", unavailable)
            if time.monotonic() >= self._clean_up_at:
                self._clean_up_at = time.monotonic() + CLEAN_UP_EVERY_S
                await self._clean_up()
            await asyncio.sleep(POLL_S)

    async def _apply_changes(self, endpoints: Mapping[UUID, Endpoint]) -> None:
        for endpoint in endpoints.values():
            if not endpoint.key_valid:
                await self._store.disable(endpoint.webhook_id, "key")
        for webhook_id, running in self._running.items():
            now = endpoints.get(webhook_id)
            before = running.sender.endpoint
            if (
                now is None
                or not now.key_valid
                or replace(now, revision=before.revision, retried=before.retried) != before
            ):
                # A changed webhook gets a new sender as soon as all requests of this one have finished.
                running.sender.stop()
            elif now.revision != before.revision:
                running.sender.reload(now)

    async def _start(self, connection: psycopg.AsyncConnection[Any], endpoint: Endpoint) -> None:
        webhook_id = endpoint.webhook_id
        failed = self._failed.get(webhook_id)
        if failed is not None and time.monotonic() < failed.until:
            return
        if len(self._running) >= SENDERS_MAX:
            if not self._full:
                log.error("This worker sends to %s webhooks, which is its limit. Start another worker.", SENDERS_MAX)
            self._full = True
            return
        self._full = False
        lock = (AdvisoryLock.WEBHOOK_SENDER, str(webhook_id))
        row = await (await connection.execute(_LEAD, lock)).fetchone()
        if row is None or not row[0]:
            return
        try:
            sealer = WebhookSealer(await self._keyring.ledger(endpoint.ledger_id))
            url = sealer.unseal("url", endpoint.url, webhook_id).decode()
            secrets = _secrets(endpoint, sealer)
            progress = await self._store.take_over(endpoint)
        except (LeaseLost, MasterKeyError, InvalidTag) as error:
            reason = str(error) or type(error).__name__
            log.error("Webhook %s cannot be sent to: %s", webhook_id, reason)  # noqa: TRY400 - a traceback adds nothing
            await self._pause(webhook_id)
            await connection.execute(_LEAVE, lock)
            return
        target = HttpTarget(
            url, endpoint.ledger_id, self._networks, self._resolver, self._context, self._policy.in_flight
        )
        sender = Sender(
            endpoint,
            progress,
            target,
            secrets,
            lambda answer: sealer.seal("answer", answer, webhook_id),
            store=self._store,
            events=self._events,
            aggregates=self._aggregates,
            live_subscriptions=self.live_subscriptions,
            policy=self._policy,
            public_url=self._public_url,
        )
        task = asyncio.create_task(sender.run(), name=f"webhook {webhook_id}")
        self._running[webhook_id] = _Running(sender, task, target)

    async def _reap(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Remove the senders that have ended, and release their locks."""
        for webhook_id, running in list(self._running.items()):
            if not running.task.done():
                continue
            del self._running[webhook_id]
            await running.target.close()
            error = running.task.exception()
            if error is None:
                self._failed.pop(webhook_id, None)
            elif isinstance(error, LeaseLost):
                log.info("Webhook %s was taken over by another worker, or was deleted", webhook_id)
            else:
                log.error("The sender of webhook %s failed and is started again later", webhook_id, exc_info=error)
                await self._pause(webhook_id)
            await connection.execute(_LEAVE, (AdvisoryLock.WEBHOOK_SENDER, str(webhook_id)))

    async def _pause(self, webhook_id: UUID) -> None:
        with suppress(Unavailable):
            await self._store.show_error(webhook_id, SENDER_FAILED)
        known = self._failed.get(webhook_id)
        pause_s = RESTART_FIRST_S if known is None else min(known.pause_s * 2, RESTART_LONGEST_S)
        self._failed[webhook_id] = _Failed(time.monotonic() + pause_s, pause_s)

    async def _stop(self, webhook_ids: Sequence[UUID]) -> None:
        stopped = [self._running.pop(webhook_id) for webhook_id in webhook_ids]
        await cancelled(running.task for running in stopped)
        await asyncio.gather(*(running.target.close() for running in stopped), return_exceptions=True)

    async def _clean_up(self) -> None:
        for webhook_id in list(self._running):
            with suppress(Unavailable):
                await self._store.delete_old(webhook_id)
        with suppress(Unavailable):
            await self._store.delete_old_without_sender()

    async def _encode(self, ledger_id: int, page: Sequence[RecordedEvent]) -> list[bytes]:
        history = self._histories[ledger_id]
        return [
            b""
            if isinstance(recorded.event, UnreadableEvent)
            else payload(recorded, self._names[ledger_id], history, self._public_url)
            for recorded in page
        ]


def _secrets(endpoint: Endpoint, sealer: WebhookSealer) -> Callable[[], Sequence[bytes]]:
    """Return a function that returns the secrets that are valid now, the newest first."""
    current = sealer.unseal("secret", endpoint.secret, endpoint.webhook_id)
    until = endpoint.old_secret_until
    if endpoint.old_secret is None or until is None:
        return lambda: [current]
    old = sealer.unseal("secret", endpoint.old_secret, endpoint.webhook_id)
    return lambda: [current, old] if datetime.now(UTC) < until else [current]
