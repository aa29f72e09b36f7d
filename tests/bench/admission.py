"""What it costs a request to be let in: who calls, may they, and have they not asked too much.

    python -m tests.bench.admission

Microseconds of this process's processor, and of the clock on the wall beside them, each the median of several runs.
`remembered` is what nearly every request costs; a key is looked up again once a second, in one query for all requests
that wait for it together.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, Final, cast

from fastapi import FastAPI, Request
from psycopg.conninfo import make_conninfo

from api.http.caller import Allowed, admit
from api.http.dependencies import Limits, Services
from api.http.headers import by_name
from api.http.limits import Limit
from api.http.middleware import MAX_BODY_BYTES, Exchange, Waiting
from infra.auth.key_commands import create_ledger
from infra.crypto.envelope import fresh_key
from infra.crypto.master_keys import MasterKey
from infra.postgres.migrate import migrate
from infra.postgres.roles import API
from infra.runtime import Runtime, runtime
from infra.settings import load_settings
from tests.bench.place import RUNS, postgres
from tests.infra.auth.issuing import issuing, signer
from tests.keys import master_key

REQUESTS: Final = 20_000
LOOKED_UP: Final = 500
ADMITTED: Final = ("operator", "admin")


async def _nothing(*_: object) -> Any:
    """Receive and send nothing: nobody is there."""


def _request(opened: Runtime, bearer: str) -> Request:
    app = FastAPI()
    others: dict[str, Any] = {field.name: None for field in fields(Services)}
    settings = load_settings({})
    app.state.services = Services(
        **others
        | {
            "authenticator": opened.authenticator,
            "histories": opened.histories,
            "settings": settings,
            "now": lambda: datetime.now(UTC),
        }
    )
    app.state.limits = Limits(Limit(10**9, 10**9))
    headers = [
        (b"host", b"127.0.0.1"),
        (b"accept", b"*/*"),
        (b"user-agent", b"bench"),
        (b"authorization", f"Bearer {bearer}".encode()),
        (b"content-type", b"application/json"),
        (b"idempotency-key", b"0123456789abcdef"),
    ]
    exchange = Exchange(_nothing, _nothing, MAX_BODY_BYTES, Waiting(10**9, 10**9, 10**9))
    scope = {"type": "http", "app": app, "method": "GET", "path": "/", "headers": headers, "exchange": exchange}
    by_name(scope)
    return Request(scope)


async def _microseconds(act: Callable[[], Awaitable[object]], times: int) -> dict[str, float]:
    """Return what one call takes, awaited one after the other."""
    found: dict[str, list[float]] = {"processor": [], "wall": []}
    for _ in range(RUNS):
        used, began = time.thread_time(), time.perf_counter()
        for _ in range(times):
            await act()
        found["processor"].append((time.thread_time() - used) / times * 1e6)
        found["wall"].append((time.perf_counter() - began) / times * 1e6)
    return {name: round(statistics.median(values), 1) for name, values in found.items()}


async def _measure(dsn: str, master: MasterKey, key: str) -> dict[str, dict[str, float]]:
    with issuing() as issuer:
        issuer.signers = [signer(algorithm) for algorithm in ("RS256", "ES256", "EdDSA")]
        configured = issuer.configured(role="operator")
        migrate(make_conninfo(dsn, user="postgres"), issuers=configured.grants())
        async with runtime(dsn, API, master, [configured]) as opened:
            authenticator = opened.authenticator
            figures: dict[str, dict[str, float]] = {}
            # As the door has it: a request is made again each time, for it remembers its headers.
            for name, bearer in (("key", key), ("token", issuer.token())):
                await admit(_request(opened, bearer), Allowed(ADMITTED))
                scope = _request(opened, bearer).scope

                async def let_in(scope: Any = scope) -> None:
                    await admit(Request(scope), Allowed(ADMITTED))

                figures[f"{name}, remembered"] = await _microseconds(let_in, REQUESTS)

            async def looked_up() -> None:
                authenticator.forget()
                await authenticator.authenticate(key, datetime.now(UTC))

            figures["key, looked up again"] = await _microseconds(looked_up, LOOKED_UP)
            bearers = cast("Any", authenticator)._token_identities
            for by in issuer.signers:
                token = issuer.token(by=by)

                async def verified(token: str = token) -> None:
                    await bearers._tokens.verified(token, datetime.now(UTC))

                figures[f"token, verified first: {by.algorithm}"] = await _microseconds(verified, LOOKED_UP)
            return figures


def run() -> dict[str, Any]:
    """Measure on a PostgreSQL of its own."""
    master = master_key(fresh_key())
    with postgres() as server:
        key = asyncio.run(create_ledger(server.dsn(), master, "main"))
        return {"microseconds": asyncio.run(_measure(server.dsn(API), master, key))}


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))  # noqa: T201 - what a benchmark is for
