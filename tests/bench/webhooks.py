"""`webhooks`: events delivered to one fast receiver on this machine, catching up with what is recorded already."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any, Final

import psycopg
import uvloop

from infra.auth.key_commands import create_key, create_ledger
from infra.delivery.webhooks.models import Owner
from infra.delivery.webhooks.subscriptions import WebhookSubscriptions
from infra.postgres.embedded.server import EmbeddedPostgres
from infra.postgres.roles import API, WORKER
from infra.runtime import runtime
from tests.bench.append import Load, rate
from tests.bench.http import ROOT
from tests.bench.place import SETTINGS, postgres
from tests.infra.session_tokens import present
from tests.keys import ERASURE_KEYS, master_key
from tests.waiting import until

FILL_S: Final = 3.0
WITHIN_S: Final = 300.0


async def _prepare(server: EmbeddedPostgres, key: bytes, url: str) -> int:
    """Record events, and have them sent to a URL from the first on; return how many there are."""
    master = master_key(key)
    await create_ledger(server.dsn(), master, "bench")
    minted, _ = await create_key(server.dsn(), master, "bench", "operator", None)
    async with runtime(server.dsn(API), API, master) as opened:
        present(opened.database, minted.ledger_id, minted.key_id)
        load = Load(opened.handler, minted.ledger_id, minted.key_id)
        await load.prepare()
        await rate(load, 32, FILL_S)
        webhooks = WebhookSubscriptions(opened.database, opened.keyring)
        owner = Owner(minted.ledger_id, minted.key_id, all=True)
        await webhooks.create(owner, url=url, description=None, types=(), creator_ids=(), after=0)
        return await opened.events.head(minted.ledger_id)


def _position(server: EmbeddedPostgres) -> int:
    with psycopg.connect(server.dsn()) as connection:
        row = connection.execute("SELECT position FROM webhook_progress").fetchone()
    return int(row[0]) if row else 0


def run() -> dict[str, Any]:
    """Measure one endpoint."""
    key = os.urandom(32)
    with (
        postgres() as server,
        subprocess.Popen(
            [sys.executable, "-m", "tests.bench.receiver"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as receiver,
    ):
        assert receiver.stdout is not None
        events = uvloop.run(_prepare(server, key, receiver.stdout.readline().strip()))
        environment = {
            **os.environ,
            "SPARKLEDGER_DATABASE_URL": server.dsn(WORKER),
            "SPARKLEDGER_MASTER_KEY": base64.b64encode(key).decode(),
            "SPARKLEDGER_ERASURE_KEY_DIR": str(ERASURE_KEYS),
        }
        began = datetime.now(UTC)
        with subprocess.Popen(
            [sys.executable, "-m", "cli", "work", "--only", "webhooks"], cwd=ROOT, env=environment
        ) as worker:
            until(lambda: _position(server) == events, WITHIN_S)
            took_s = (datetime.now(UTC) - began).total_seconds()
            worker.terminate()
        told, _ = receiver.communicate("")
    found = json.loads(told)
    assert (found["messages"], found["again"]) == (events, 0), (found, events)
    return {
        "messages_per_second": events / found["seconds"],
        "events": events,
        "seconds_with_start": took_s,
        "settings": SETTINGS,
    }


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))  # noqa: T201 - what a benchmark is for
