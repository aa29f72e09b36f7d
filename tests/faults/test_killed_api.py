"""SIGKILL of the API's process in mid-load, over HTTP: what it answered stands; the rest, sent again, gets one answer.

The process is the real one, with its own port, writer and caches; the callers are outside it and see what callers see:
an answer, or a connection that breaks.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from infra.auth.key_commands import create_ledger
from infra.crypto.envelope import fresh_key
from infra.postgres.roles import API
from infra.processes.worker import create_views
from tests.faults.commands import MARK
from tests.faults.durable import SHORT, durable
from tests.infra.eventstore.checker import Told, held, problems
from tests.keys import ERASURE_KEYS, master_key
from tests.serving import REPOSITORY
from tests.test_compose_commands import free_port

KILLS: Final = 2 if SHORT else 10
ANSWERS_BETWEEN: Final = 300 if SHORT else 2_000
CALLERS: Final = 32
UP_WITHIN_S: Final = 60.0


@dataclass
class Callers:
    """Callers who issue codes, each with an Idempotency-Key, and remember what they were answered."""

    url: str
    key: str
    ledger_id: int
    told: list[Told] = field(default_factory=list)
    unanswered: dict[str, float] = field(default_factory=dict)
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)

    def client(self) -> httpx.AsyncClient:
        """Open a client of this ledger's operator."""
        return httpx.AsyncClient(
            base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, trust_env=False, timeout=30
        )

    async def issue(self, client: httpx.AsyncClient, mark: str) -> httpx.Response:
        """Issue one code; `mark` is its video, and its Idempotency-Key."""
        order = {"creator_id": "creator-1", "video_id": mark, "terms_version": "2026-01"}
        return await client.post("/v1/codes", json=order, headers={"Idempotency-Key": mark})

    async def load(self, marks: itertools.count[int], round_: int, enough: asyncio.Event) -> None:
        """Issue codes until the connection breaks."""
        async with self.client() as client:
            while True:
                mark = f"video-{round_}-{next(marks)}"
                began = time.monotonic()
                self.unanswered[mark] = began
                try:
                    answer = await self.issue(client, mark)
                except httpx.TransportError:
                    return
                self._answered(mark, answer, began)
                if len(self.answers) >= ANSWERS_BETWEEN * (round_ + 1):
                    enough.set()

    async def send_again(self) -> int:
        """Send again, twice each, what was not answered; both answers are one and the same."""
        again = dict(self.unanswered)
        async with self.client() as client:
            for mark, began in again.items():
                first, second = [await self.issue(client, mark) for _ in range(2)]
                assert first.json() == second.json()
                assert second.headers["Idempotent-Replayed"] == "true"
                self._answered(mark, first, began)
        return len(again)

    def _answered(self, mark: str, answer: httpx.Response, began: float) -> None:
        assert answer.status_code == 201, answer.text
        code = answer.json()
        self.answers[mark] = code
        self.unanswered.pop(mark)
        self.told.append(
            Told(
                *(self.ledger_id, mark, 1, "recorded", code["position"], code["position"], code["version"]),
                began=began,
                ended=time.monotonic(),
            )
        )


async def _serve(environment: dict[str, str]) -> Process:
    argv = (sys.executable, "-m", "tests.bench.serve")
    return await asyncio.create_subprocess_exec(*argv, cwd=REPOSITORY, env=environment, stdout=DEVNULL)


async def _until_ready(url: str) -> None:
    async with asyncio.timeout(UP_WITHIN_S), httpx.AsyncClient(trust_env=False) as client:
        while True:
            with suppress(httpx.TransportError):
                if (await client.get(f"{url}/livez")).status_code == 200:
                    return
            await asyncio.sleep(0.02)  # the port is opened by another process, which sets no event here


async def _kill_in_mid_load(callers: Callers, environment: dict[str, str], round_: int) -> int:
    """Start the API, put a load on it, kill it, start it again, and send again what nobody answered."""
    enough, marks = asyncio.Event(), itertools.count()
    api = await _serve(environment)
    await _until_ready(callers.url)
    async with callers.client() as client:
        (await client.put("/v1/creators/creator-1/permission", json={"enabled": True})).raise_for_status()
    load = asyncio.gather(*(callers.load(marks, round_, enough) for _ in range(CALLERS)))
    await enough.wait()
    api.kill()
    await api.wait()
    await load
    caught = len(callers.unanswered)
    api = await _serve(environment)
    await _until_ready(callers.url)
    sent_again = await callers.send_again()
    api.terminate()
    await api.wait()
    assert sent_again == caught
    return caught


def test_a_killed_api_keeps_what_it_answered_and_gives_one_answer_to_the_rest() -> None:
    master = fresh_key()
    with durable() as database:
        asyncio.run(create_views(database.dsn()))
        key = asyncio.run(create_ledger(database.dsn(), master_key(master), "told"))
        port = free_port()
        environment = {
            **os.environ,
            "SPARKLEDGER_VIDEO_IDS": "any",
            "SPARKLEDGER_DATABASE_URL": database.dsn(API),
            "SPARKLEDGER_MASTER_KEY": base64.b64encode(master).decode(),
            "SPARKLEDGER_ERASURE_KEY_DIR": str(ERASURE_KEYS),
            "SPARKLEDGER_PORT": str(port),
            "SPARKLEDGER_REQUESTS_PER_SECOND": "1000000",
        }
        callers = Callers(f"http://127.0.0.1:{port}", key, ledger_id=1)
        caught = [asyncio.run(_kill_in_mid_load(callers, environment, round_)) for round_ in range(KILLS)]

        assert callers.unanswered == {}
        log = held(database.dsn(), MARK)
        codes = [event for event in log if event.mark is not None]
        assert len(codes) == len(callers.answers)
        assert problems(callers.told, log) == []
        sys.stdout.write(f"{KILLS} kills; {len(codes)} codes answered; {sum(caught)} requests sent again\n")
        # Each kill caught requests in flight; otherwise it was no test.
        assert all(caught)
