"""A webhook worker on a test's database, with pauses of milliseconds instead of hours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from domain.values import Sealed
from infra.delivery.webhooks.http_target import AllowedNetworks
from infra.delivery.webhooks.models import Delivery, DeliveryPolicy, Owner, Webhook
from infra.delivery.webhooks.subscriptions import WebhookSubscriptions
from infra.delivery.webhooks.worker import WebhookWorker
from infra.eventstore.notifications import Listener
from infra.ids import uuid7
from infra.postgres.roles import WORKER
from infra.runtime import runtime
from tests import given
from tests.infra.delivery.webhooks.receiving import Receiver
from tests.infra.opened import MASTER_KEY, Opened, Tenant

LOOPBACK: Final = AllowedNetworks(["127.0.0.0/8"])
FAST: Final = DeliveryPolicy(retries_s=(0.02, 0.05, 0.1), jitter=0.0, write_s=0.02, probe_s=0.1)


@dataclass
class Post:
    """A ledger whose events are sent, and what its owner sees of that."""

    opened: Opened
    tenant: Tenant
    codes: list[UUID] = field(default_factory=list)
    recorders: list[Tenant] = field(default_factory=list)

    @property
    def webhooks(self) -> WebhookSubscriptions:
        """The webhooks as an API process sees them."""
        return WebhookSubscriptions(self.opened.api.database, self.opened.api.keyring)

    @property
    def owner(self) -> Owner:
        """The owner of the webhooks."""
        return Owner(self.tenant.ledger_id, self.tenant.key.key_id, all=False)

    async def register(
        self,
        receiver: Receiver,
        *,
        after: int = 0,
        types: Sequence[str] = (),
        creator_ids: Sequence[str] = (),
        **more: Any,
    ) -> UUID:
        """Create a webhook for a receiver, and give the receiver its secret."""
        webhook, secret, _ = await self.webhooks.create(
            self.owner, url=receiver.url, description=None, types=types, creator_ids=creator_ids, after=after, **more
        )
        if secret:
            receiver.secrets.append(secret)
        return webhook.webhook_id

    async def generate(self, number: int = 1, creator_id: str = given.CREATOR) -> list[UUID]:
        """Record a permission and some codes of their own videos; one event each."""
        operator = await self.operator()
        await self.opened.when(operator, given.permission(creator_id=creator_id))
        made = [uuid7() for _ in range(number)]
        for code_id in made:
            command = given.generate(
                creator_id=creator_id, code_id=code_id, video_id=f"video-{code_id}", secret=Sealed(f"#{code_id}")
            )
            await self.opened.when(operator, command)
        self.codes += made
        return made

    async def share(self, code_id: UUID, times: int = 1) -> None:
        """Share a code with so many brands; one event each."""
        operator = await self.operator()
        for number in range(times):
            await self.opened.when(operator, given.share(brand_id=f"brand-{number}", code_id=code_id))

    async def operator(self) -> Tenant:
        """Return who records: the webhooks' owner is a subscriber, and subscribers record nothing."""
        if not self.recorders:
            self.recorders.append(await self.opened.another_key(self.tenant.ledger_id))
        return self.recorders[0]

    async def head(self) -> int:
        """Return the ledger's last position."""
        return await self.opened.events.head(self.tenant.ledger_id)

    async def status(self, webhook_id: UUID) -> Webhook:
        """Return a webhook as its owner sees it."""
        return await self.webhooks.one(self.owner, webhook_id)

    async def until(self, webhook_id: UUID, **wanted: Any) -> Webhook:
        """Wait until a webhook has the given values."""
        async with asyncio.timeout(15):
            while True:
                webhook = await self.status(webhook_id)
                if all(getattr(webhook, name) == value for name, value in wanted.items()):
                    return webhook
                await asyncio.sleep(0.01)

    async def noticed(self, senders: WebhookWorker, webhook_id: UUID) -> None:
        """Wait until a webhook's sender has noticed its last change, or has ended."""
        rows = self.opened.sql("SELECT revision FROM webhooks WHERE webhook_id = %s", webhook_id)
        async with asyncio.timeout(15):
            while _knows(senders, webhook_id) != (rows[0][0] if rows else None):  # noqa: ASYNC110 - it sets no event
                await asyncio.sleep(0.01)

    async def caught_up(self, webhook_id: UUID) -> Webhook:
        """Wait until no recorded event is open and no message is parked."""
        return await self.until(webhook_id, position=await self.head(), waiting=0)

    async def attempts(self, webhook_id: UUID) -> list[Delivery]:
        """Return the log of deliveries, oldest first."""
        found = await self.webhooks.deliveries(self.owner, webhook_id, before=2**62, outcome=None, limit=1_000)
        return found[::-1]


def _knows(senders: WebhookWorker, webhook_id: UUID) -> int | None:
    running = senders._running.get(webhook_id)
    return None if running is None else running.sender.endpoint.revision


@asynccontextmanager
async def sending(
    opened: Opened, networks: AllowedNetworks = LOOPBACK, *, ca_file: Path | None = None, **policy: Any
) -> AsyncIterator[WebhookWorker]:
    """Run a webhook worker for as long as the block takes."""
    conninfo = opened.database.dsn(WORKER)
    async with runtime(conninfo, WORKER, MASTER_KEY) as worker:
        senders = WebhookWorker(conninfo, worker, networks, replace(FAST, **policy), ca_file)
        listener = Listener(conninfo, WORKER, senders.live_subscriptions.wake)
        listener.start()
        task = asyncio.create_task(senders.run())
        try:
            yield senders
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await listener.stop()
