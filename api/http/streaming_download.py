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

from api.http.limits import Slots
from api.http.problems import Problem
from api.http.protocol import abort
from infra.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
    from uuid import UUID

    from starlette.types import Message, Receive, Scope, Send

    from api.http.caller import Caller

# Of one process; each keeps two pages in memory, and takes a good part of its time.
MAX_AT_ONCE: Final = 4
# Of these one key's, so that nobody who reads slowly keeps all others out.
MAX_AT_ONCE_OF_A_KEY: Final = max(1, MAX_AT_ONCE // 2)
STALLED_S: Final = 60.0
RETRY_AFTER_S: Final = 10

log = logging.getLogger(__name__)


class ActiveDownloads:
    """How many such answers one process is sending, in all and to each key."""

    def __init__(self) -> None:
        """Begin with none."""
        self.active = 0
        self._places: Slots[UUID] = Slots()

    @contextlib.contextmanager
    def admitted(self, key_id: UUID) -> Iterator[None]:
        """Count one for as long as it is sent.

        Raises:
            Problem: its key has as many as it may.
            Unavailable: there is no room for another.

        """
        if self._places.taken(key_id) >= MAX_AT_ONCE_OF_A_KEY:
            detail = (
                f"This key already has {MAX_AT_ONCE_OF_A_KEY} exports or batches in progress, which is the "
                "maximum. Try again when one has ended."
            )
            raise Problem("too_many_requests", detail, headers={"Retry-After": str(RETRY_AFTER_S)})
        if self.active >= MAX_AT_ONCE:
            detail = (
                f"This server already has {MAX_AT_ONCE} exports in progress, which is the maximum. Try again in a "
                "moment."
            )
            raise Unavailable(detail, RETRY_AFTER_S)
        self.active += 1
        self._places.take(key_id)
        try:
            yield
        finally:
            self.active -= 1
            self._places.give_back(key_id)


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
            Problem: its key has as many as it may.
            Unavailable: there is no room, or it cannot be recorded; nothing is sent yet.

        """
        downloads: ActiveDownloads = self._caller.request.app.state.downloads
        try:
            with downloads.admitted(self._caller.key.key_id):
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
