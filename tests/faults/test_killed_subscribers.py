"""SIGKILL of what delivers, in mid-load: a stream that is taken up again is whole, and no webhook's event is lost.

The processes are the real ones. A client of the stream comes back with the last id that it has seen, as every client
does; a receiver of webhooks sees each event at least once, and the few that come twice bear the same id.
"""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import httpx

from infra.auth.key_commands import create_key, create_ledger
from infra.crypto.envelope import fresh_key
from infra.delivery.webhooks.models import DeliveryPolicy, Owner
from infra.delivery.webhooks.subscriptions import WebhookSubscriptions
from infra.postgres.roles import API, WORKER
from infra.processes.worker import create_views
from infra.runtime import runtime
from tests.bench.append import Load
from tests.faults.durable import SHORT, durable
from tests.infra.delivery.webhooks.receiving import Received, Receiver, in_order, receiving
from tests.infra.session_tokens import present
from tests.keys import ERASURE_KEYS, master_key
from tests.serving import REPOSITORY
from tests.test_compose_commands import free_port

KILLS: Final = 3 if SHORT else 12
EVENTS_BETWEEN: Final = 200 if SHORT else 1_000
PER_SECOND: Final = 400.0
FAILS_AT: Final = 97
UP_WITHIN_S: Final = 60.0


@asynccontextmanager
async def _running(environment: dict[str, str], *argv: str) -> AsyncIterator[Process]:
    """Run a program for as long as the block takes; what is left of it then is told to end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *argv, cwd=REPOSITORY, env=environment, stdout=DEVNULL
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _load(load: Load, stop: asyncio.Event) -> None:
    """Send commands at a steady pace until told to stop."""
    while not stop.is_set():
        await asyncio.gather(load.command(), asyncio.sleep(1 / PER_SECOND))


class Client:
    """A client of the stream that comes back as often as it must."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self.headers = {"Authorization": f"Bearer {key}"}
        self.seen: list[int] = []
        self.last_id = "0"
        self.connections = 0

    async def follow(self) -> None:
        """Follow until cancelled."""
        async with httpx.AsyncClient(base_url=self.url, headers=self.headers, trust_env=False, timeout=30) as client:
            while True:
                with suppress(httpx.TransportError):
                    await self._once(client)
                await asyncio.sleep(0.02)  # the server may be away, which sets no event here

    async def _once(self, client: httpx.AsyncClient) -> None:
        headers = {"Last-Event-ID": self.last_id}
        async with client.stream("GET", "/v1/events/stream", headers=headers) as answer:
            if answer.status_code != 200:
                return
            self.connections += 1
            block: list[str] = []
            async for line in answer.aiter_lines():
                if line:
                    block.append(line)
                    continue
                # Whole: what was cut off in mid-sentence comes again. Ids come without events, too.
                self.last_id = next((part[4:] for part in block if part.startswith("id: ")), self.last_id)
                if "event: end" not in block and any(part.startswith("data: ") for part in block):
                    self.seen.append(int(self.last_id.rpartition(":")[2]))
                block = []

    async def until(self, number: int) -> None:
        """Wait for so many events."""
        async with asyncio.timeout(UP_WITHIN_S):
            while len(self.seen) < number:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.02)


def test_a_stream_over_killed_servers_has_every_event_once_and_in_order() -> None:
    master = fresh_key()

    async def story(dsn: str, api_dsn: str) -> tuple[list[int], int, int]:
        minted, _ = await create_key(dsn, master_key(master), "told", "operator", None)
        _, key = await create_key(dsn, master_key(master), "told", "subscriber", None)
        port = free_port()
        environment = {
            **os.environ,
            "SPARKLEDGER_VIDEO_IDS": "any",
            "SPARKLEDGER_DATABASE_URL": api_dsn,
            "SPARKLEDGER_MASTER_KEY": base64.b64encode(master).decode(),
            "SPARKLEDGER_ERASURE_KEY_DIR": str(ERASURE_KEYS),
            "SPARKLEDGER_PORT": str(port),
        }
        client = Client(f"http://127.0.0.1:{port}", key)
        async with runtime(api_dsn, API, master_key(master)) as opened:
            present(opened.database, minted.ledger_id, minted.key_id)
            load = Load(opened.handler, minted.ledger_id, minted.key_id)
            await load.prepare()
            stop = asyncio.Event()
            loading = asyncio.create_task(_load(load, stop))
            following = asyncio.create_task(client.follow())
            for round_ in range(KILLS):
                async with _running(environment, "tests.bench.serve") as api:
                    await client.until(len(client.seen) + EVENTS_BETWEEN)
                    api.send_signal(signal.SIGTERM if round_ % 3 == 2 else signal.SIGKILL)
                    await api.wait()
            async with _running(environment, "tests.bench.serve"):
                stop.set()
                await loading
                head = await opened.events.head(minted.ledger_id)
                await client.until(head)
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
        return client.seen, head, client.connections

    with durable() as database:
        asyncio.run(create_views(database.dsn()))
        asyncio.run(create_ledger(database.dsn(), master_key(master), "told"))
        seen, head, connections = asyncio.run(story(database.dsn(), database.dsn(API)))
    print(f"{len(seen)} events over {connections} connections and {KILLS} ends of the server")  # noqa: T201 - for -s
    assert seen == list(range(1, head + 1))
    assert connections > KILLS


async def _deliver(master: bytes, dsn: str, api_dsn: str, worker_dsn: str) -> tuple[Receiver, int]:
    """Send what is recorded meanwhile, by one worker after the other; return what came, and how much was recorded."""
    minted, _ = await create_key(dsn, master_key(master), "told", "operator", None)
    environment = {
        **os.environ,
        "SPARKLEDGER_DATABASE_URL": worker_dsn,
        "SPARKLEDGER_MASTER_KEY": base64.b64encode(master).decode(),
        "SPARKLEDGER_ERASURE_KEY_DIR": str(ERASURE_KEYS),
    }
    failed: set[str] = set()

    def answer(received: Received) -> int:
        # Now and then the receiver fails, too, once for a message.
        if received.position % FAILS_AT != 0 or received.id in failed:
            return 204
        failed.add(received.id)
        return 500

    async with (
        receiving(answer) as receiver,
        runtime(api_dsn, API, master_key(master)) as opened,
    ):
        present(opened.database, minted.ledger_id, minted.key_id)
        load = Load(opened.handler, minted.ledger_id, minted.key_id)
        await load.prepare()
        owner = Owner(minted.ledger_id, minted.key_id, all=True)
        webhooks = WebhookSubscriptions(opened.database, opened.keyring)
        webhook, secret, _ = await webhooks.create(
            owner, url=receiver.url, description=None, types=(), creator_ids=(), after=0
        )
        receiver.secrets.append(secret)
        stop = asyncio.Event()
        loading = asyncio.create_task(_load(load, stop))
        for _ in range(KILLS):
            async with _running(environment, "cli", "work", "--only", "webhooks") as worker:
                enough = len(receiver.received) + EVENTS_BETWEEN
                await receiver.until(lambda enough=enough: len(receiver.received) >= enough, UP_WITHIN_S)  # type: ignore[misc]
                worker.kill()
                await worker.wait()
        stop.set()
        await loading
        head = await opened.events.head(minted.ledger_id)
        async with _running(environment, "cli", "work", "--only", "webhooks"), asyncio.timeout(UP_WITHIN_S):
            stands = await webhooks.one(owner, webhook.webhook_id)
            while (stands.position, stands.waiting) != (head, 0):
                await asyncio.sleep(0.05)  # another process writes, and sets no event here
                stands = await webhooks.one(owner, webhook.webhook_id)
        return receiver, head


def test_webhooks_over_killed_workers_lose_nothing_and_keep_each_codes_order() -> None:
    master = fresh_key()
    with durable() as database:
        asyncio.run(create_views(database.dsn()))
        asyncio.run(create_ledger(database.dsn(), master_key(master), "told"))
        dsns = (database.dsn(), database.dsn(API), database.dsn(WORKER))
        receiver, head = asyncio.run(_deliver(master, *dsns))

    times = Counter(receiver.positions)
    again = sum(times.values()) - len(times)
    print(f"{len(times)} events, {again} sent again, over {KILLS} kills of the worker")  # noqa: T201 - for -s
    assert receiver.unverified == []
    assert set(times) == set(range(1, head + 1))
    # What is not written down yet when the worker is killed, and what the receiver failed on.
    assert again <= KILLS * DeliveryPolicy().unwritten / 2 + head // FAILS_AT + 1
    assert in_order(receiver.received)
