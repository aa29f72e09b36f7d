"""Which server answers a request, where ledgers are on several: the one that knows what the request shows.

Each server has an application of its own, with everything that a request needs; the rest of the code sees one server.
Nothing is stored of where a ledger is. All servers are asked, at once, and the one that knew a key last is asked first.
What nobody knows is refused by the first server, or by one that is away, because it may know it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, cast

from domain.errors import NotAllowed
from infra.errors import LedgerElsewhere, TokenRefused, Unavailable
from infra.recent_cache import RecentCache
from infra.servers import arrived, departed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi import FastAPI
    from starlette.types import Scope

    from api.http.dependencies import Services
    from infra.postgres.pool import Database

# Whether a server knows what a request shows.
Knows = Callable[["FastAPI", str], Awaitable[bool]]
# The same; or that it knows it no more; or None, if that cannot be told now.
Answer = bool | LedgerElsewhere | None

MAX_REMEMBERED: Final = 100_000
DIGEST_BYTES: Final = 16

log = logging.getLogger(__name__)


class Homes:
    """The applications of a process, one for each server.

    Attributes:
        apps: the applications, in the order of the servers' file.

    """

    def __init__(self, apps: Sequence[FastAPI]) -> None:
        """Take the applications."""
        self.apps = apps
        self._secret = os.urandom(DIGEST_BYTES)
        self._last: RecentCache[bytes, FastAPI] = RecentCache(MAX_REMEMBERED)

    async def find(self, shown: str, knows: Knows) -> FastAPI:
        """Return the application of the server that knows what a request shows."""
        digest = hashlib.blake2b(
            shown.encode("utf-8", "surrogatepass"), key=self._secret, digest_size=DIGEST_BYTES
        ).digest()
        last = self._last.get(digest)
        if last is not None and await _asked(last, shown, knows) is True:
            return last
        answers = await self._answers(shown, knows)
        home = next((app for app, answer in answers.items() if answer is True), None)
        for app, answer in answers.items():
            if home is None and isinstance(answer, LedgerElsewhere):
                home = await self._completed(app, answer.ledger_id)
        if home is not None:
            return self._last.put(digest, home)
        return next((app for app, answer in answers.items() if answer is not False), self.apps[0])

    async def of_key(self, presented: str) -> FastAPI:
        """Return the application of the server that an API key, or a token, opens something on."""
        return await self.find(presented, _opens)

    async def _answers(self, shown: str, knows: Knows) -> dict[FastAPI, Answer]:
        """Ask all servers, and return what they say until one knows it."""
        asked = {asyncio.ensure_future(_asked(app, shown, knows)): app for app in self.apps}
        answers: dict[FastAPI, Answer] = {}
        waiting = set(asked)
        try:
            while waiting and True not in answers.values():
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                answers |= {asked[one]: one.result() for one in done}
        finally:
            for one in waiting:
                one.cancel()
        return answers

    async def _completed(self, source: FastAPI, ledger_id: int) -> FastAPI | None:
        """Let the server that a ledger has moved to serve it, if nobody could do so; None if it has not moved."""
        try:
            departure = await departed(_database(source), ledger_id)
            home = next((app for app in self.apps if departure and _server(app) == departure.target), None)
            if departure is None or home is None:
                return None
            return home if await arrived(_database(home), ledger_id, departure.stage) else None
        except Unavailable:
            return None


async def to_home_of(scope: Scope, presented: str) -> None:
    """Let the server of a key answer what follows, where there are several."""
    homes: Homes | None = scope["app"].state.homes
    if homes is not None:
        scope["app"] = await homes.of_key(presented)


def _database(app: FastAPI) -> Database:
    return cast("Services", app.state.services).database


def _server(app: FastAPI) -> str:
    return cast("Services", app.state.services).server


async def _asked(app: FastAPI, shown: str, knows: Knows) -> Answer:
    """Ask a server."""
    try:
        return await knows(app, shown)
    except LedgerElsewhere as error:
        return error
    except Unavailable:
        return None
    except Exception:
        # Another server may know it. If none does, this one answers the request, and the error is its answer.
        log.exception("Server %s could not be asked what a request opens", _server(app))
        return None


async def _opens(app: FastAPI, presented: str) -> bool:
    services = cast("Services", app.state.services)
    try:
        return await services.authenticator.authenticate(presented, services.now()) is not None
    except NotAllowed:
        return False  # a token of a ledger that is elsewhere
    except TokenRefused:
        return True  # this server can say why
