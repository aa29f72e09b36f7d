"""A process that carries out commands as the API does, each with an idempotency key, and sends again what failed.

    python -c "from tests.faults.commands import main; main()" '{"dsn": …, "tenants": […], "notebook": …, …}'

Each task tells one story after another: a code is generated, shared, redeemed, put under a campaign and revoked by
force, which is two events. Each command bears a mark of its own where its events keep it in clear.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from domain.campaign import Campaign
from domain.values import Actor, Sealed
from infra.errors import IdempotencyRunning, Unavailable
from infra.eventstore.command_handler import CommandHandler, CommandMetadata, CommandResult
from infra.ids import uuid7
from infra.postgres.roles import API
from infra.runtime import runtime
from tests import given
from tests.infra.eventstore.notebook import Notebook, untold
from tests.infra.opened import MASTER_KEY
from tests.infra.session_tokens import present

# Where a command's mark stands in its events; the events of a revocation by force share its reason.
MARK: Final = """
    CASE type
        WHEN 'CodeGenerated' THEN convert_from(body, 'UTF8')::jsonb ->> 'video_id'
        WHEN 'Shared' THEN convert_from(body, 'UTF8')::jsonb ->> 'brand_id'
        WHEN 'Redeemed' THEN convert_from(body, 'UTF8')::jsonb ->> 'advertiser_id'
        WHEN 'CampaignLaunched' THEN convert_from(body, 'UTF8')::jsonb ->> 'campaign_id'
        WHEN 'CampaignEnded' THEN convert_from(body, 'UTF8')::jsonb ->> 'reason'
        WHEN 'Revoked' THEN convert_from(body, 'UTF8')::jsonb ->> 'reason'
    END
"""
AGAIN_AFTER_S: Final = 0.05


@dataclass(frozen=True)
class Writes:
    """Who writes where: a ledger, and the key of an operator."""

    ledger_id: int
    key_id: str

    def request(self, mark: str) -> CommandMetadata:
        """Return the request of a command; sent again, it is the same."""
        request_hash = hashlib.sha256(mark.encode()).digest()[:16]
        actor = Actor(self.key_id, "operator")
        return CommandMetadata(self.ledger_id, actor, idempotency_key=mark, request_hash=request_hash)


def command(what: dict[str, Any], now: Any) -> given.Command:
    """Return the command that a notebook tells of. A code generated again has another id, as the API would give it."""
    mark = what["mark"]
    code_id = UUID(what["code_id"]) if "code_id" in what else uuid7()
    match what["kind"]:
        case "generate":
            return given.generate(code_id, video_id=mark, secret=Sealed(f"#{mark}/secret+="), starts_at=now)
        case "share":
            return given.share(code_id, brand_id=mark)
        case "redeem":
            return given.redeem(Sealed(what["secret"]), advertiser_id=mark)
        case "launch":
            campaign = Campaign(
                mark, what["advertiser_id"], "5.00", "USD", starts_at=now, ends_at=now + timedelta(days=9)
            )
            return given.launch(campaign, code_id)
        case _:
            return given.revoke(code_id, reason=mark, force=True)


EVENTS: Final = {"generate": 1, "share": 1, "redeem": 1, "launch": 1, "revoke": 2}


class Storyteller:
    """Carries commands out and notes what it was told."""

    def __init__(self, handler: CommandHandler, writes: list[Writes], book: Notebook) -> None:
        self._handler = handler
        self._writes = writes
        self._book = book

    async def tell(self, until: Callable[[], bool]) -> None:
        """Tell one story after another."""
        while not until():
            writes = random.choice(self._writes)
            video = _mark()
            done = await self.carry_out(writes, {"kind": "generate", "mark": video})
            code = {"code_id": str(done.aggregate.id)} if done.aggregate else {}
            await self.carry_out(writes, {"kind": "share", "mark": _mark()} | code)
            advertiser = _mark()
            redeem = {"kind": "redeem", "mark": advertiser, "secret": f"#{video}/secret+="}
            await self.carry_out(writes, redeem | code)
            await self.carry_out(writes, {"kind": "launch", "mark": _mark(), "advertiser_id": advertiser} | code)
            await self.carry_out(writes, {"kind": "revoke", "mark": _mark()} | code)

    async def carry_out(self, writes: Writes, what: dict[str, Any]) -> CommandResult[Any]:
        """Send a command until it is answered."""
        while True:
            try:
                return await self.attempt(writes, what)
            except (Unavailable, IdempotencyRunning):
                await asyncio.sleep(AGAIN_AFTER_S)

    async def attempt(self, writes: Writes, what: dict[str, Any]) -> CommandResult[Any]:
        """Send a command once."""
        mark = what["mark"]
        noted = what | {"key_id": writes.key_id}
        attempt = self._book.sends(writes.ledger_id, mark, EVENTS[what["kind"]], noted)
        decide: Any = command(what, self._handler.now())
        try:
            done: CommandResult[Any] = await self._handler.handle(writes.request(mark), decide)
        except Unavailable as error:
            self._book.told(attempt, untold(error))
            raise
        first = done.position - done.appended + 1
        aggregate: Any = done.aggregate
        self._book.told(attempt, "recorded", first, done.position, aggregate.version)
        return done


def _mark() -> str:
    return uuid7().hex


async def _run(order: dict[str, Any]) -> None:
    stop = Path(order["stop"])
    book = Notebook(Path(order["notebook"]))
    writes = [Writes(ledger_id, key_id) for ledger_id, key_id in order["writes"]]
    async with runtime(order["dsn"], API, MASTER_KEY) as api:
        for ledger_id, key_id in order["writes"]:
            present(api.database, ledger_id, UUID(key_id))
        storyteller = Storyteller(api.handler, writes, book)
        await asyncio.gather(*(storyteller.tell(stop.exists) for _ in range(order["tasks"])))
    book.close()


def main() -> None:
    """Tell stories until a file says stop, or the process is killed."""
    asyncio.run(_run(json.loads(sys.argv[1])))
    sys.stdout.write("done\n")
