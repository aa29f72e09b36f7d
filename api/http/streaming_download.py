"""Streaming downloads: answers that are made while they are sent, such as exports and batches of authorizations.

Nothing is kept of what was sent, and no connection to the database is held while a client takes its time. One that
takes nothing at all for a minute is dropped, and one that leaves ends the work. What was begun is recorded before the
first byte, and how it ended after the last.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

from starlette.responses import StreamingResponse

from api.http.dependencies import places_of
from api.http.places import Places
from api.http.protocol import abort
from infra.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from starlette.types import Message, Receive, Scope, Send

    from api.http.caller import Caller

# Of one process; each keeps two pages in memory, and takes a good part of its time.
MAX_AT_ONCE: Final = 8
MAX_AT_ONCE_OF_A_LEDGER: Final = MAX_AT_ONCE // 2
MAX_AT_ONCE_OF_A_KEY: Final = MAX_AT_ONCE_OF_A_LEDGER // 2
STALLED_S: Final = 60.0

log = logging.getLogger(__name__)


def download_places() -> Places:
    """Return the places of such answers, all of them free."""
    return Places("exports or batches in progress", MAX_AT_ONCE, MAX_AT_ONCE_OF_A_LEDGER, MAX_AT_ONCE_OF_A_KEY)


class StreamingDownload(StreamingResponse):
    """An answer that is sent piece by piece.

    Attributes:
        complete: whether all of it was sent.

    """

    def __init__(
        self,
        caller: Caller,
        pieces: AsyncGenerator[bytes],
        *,
        begin: Callable[[], Awaitable[None]],
        end: Callable[[bool], Awaitable[None]],
        headers: Mapping[str, str],
        media_type: str,
        stalled_s: float = STALLED_S,
    ) -> None:
        """Prepare it.

        Args:
            caller: to whom it is sent.
            pieces: what is sent.
            begin: called before anything is sent; what it raises is answered instead.
            end: told whether all of it was sent, also where it did not even begin.
            headers: of the answer.
            media_type: of the answer.
            stalled_s: seconds after which a client that takes nothing is dropped.

        """
        super().__init__(pieces, 200, headers, media_type)
        self.complete = False
        self._caller = caller
        self._pieces = pieces
        self._begin = begin
        self._end = end
        self._stalled_s = stalled_s

    async def stream_response(self, send: Send) -> None:
        """Send all pieces, each within its time."""

        async def timely(message: Message) -> None:
            async with asyncio.timeout(self._stalled_s):
                await send(message)

        async with contextlib.aclosing(self._pieces):
            await super().stream_response(timely)
        self.complete = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, until either side ends it.

        Raises:
            Problem: its key or its ledger has as many as it may.
            Unavailable: there is no room, or it cannot be recorded; nothing is sent yet.

        """
        downloads = places_of(scope).downloads
        try:
            async with downloads.place(self._caller.ledger_id, self._caller.key.key_id):
                await self._begin()
                try:
                    await super().__call__(scope, receive, send)
                except (TimeoutError, Unavailable) as error:
                    log.warning(
                        "The download of request %s was aborted: %s",
                        scope.get("request_id"),
                        error or "the client stopped reading",
                    )
                    await abort(scope)
        finally:
            await self._record_end()

    async def _record_end(self) -> None:
        """Record how it ended, also where this request is cancelled in the meantime."""
        try:
            await asyncio.shield(self._end(self.complete))
        except Unavailable as error:
            log.warning("The end of an export could not be recorded: %s", error)


async def refuse_revoked(caller: Caller) -> None:
    """End what is sent to a key that opens nothing any more, before another piece of it.

    Raises:
        Unavailable: it was revoked or has expired, or that cannot be told.

    """
    if not await caller.services.authenticator.still_opens(caller.presented, caller.services.now()):
        raise Unavailable("The API key was revoked or has expired.")
