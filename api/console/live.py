"""What keeps an open page current: which event is the last, and that the session has ended.

It tells a position and nothing of events, so it is no read, and a page that stays open all day adds nothing to the
access log. The page counts what is new by it. A person who wants to see what is new clicks.

It says the position again every few seconds, so a page that hears nothing knows that it lost the channel, and asks
again: `static/app.js` says when.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from api.console.origins import refuse_forged
from api.console.visit import reader_of
from api.http.dependencies import places_of, services_of
from api.http.problems import Problem
from api.http.routing import PageRoute
from infra.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from api.console.visit import Reader
    from api.streams import Streams

# How soon an open page shows that its session ended. Changes of keys are known at once; this is for sign-outs.
LOOK_EVERY_S: Final = 0.5
# Looks after which the position is said again. Pages wait twice as long for it.
SAID_EVERY: Final = 30
_TYPE: Final = "text/event-stream"
_ENDED: Final = b"event: ended\ndata: ended\n\n"


async def _live(request: Request) -> Response:
    refuse_forged(request)
    reader = await reader_of(request, used=False)
    if reader is None:
        # A tab that comes back after its session ended: it loads the page to sign in.
        return Response(_ENDED, media_type=_TYPE)
    return StreamingResponse(_positions(request, reader), media_type=_TYPE)


async def _positions(request: Request, reader: Reader) -> AsyncIterator[bytes]:
    streams: Streams = request.app.state.streams
    said, looks = -1, 0
    # Where there is no place, or the database is away, the stream ends, and the page asks again later.
    with contextlib.suppress(Problem, Unavailable):
        async with places_of(request.scope).streams.place(reader.key.ledger_id, reader.key.key_id):
            # One that is closed or hidden gives its place back at once, and not when something is sent to it.
            while not streams.closing and not await request.is_disconnected():
                # A tab that is closed must not cost a session of the database in the middle of a query.
                head = await asyncio.shield(_look(request, reader))
                if head is None:
                    yield _ENDED
                    return
                if head > said or looks % SAID_EVERY == 0:
                    said = head
                    yield b"data: %d\n\n" % head
                looks += 1
                await asyncio.sleep(LOOK_EVERY_S)


async def _look(request: Request, reader: Reader) -> int | None:
    """Return the last position of the ledger; None if the session has ended."""
    if await reader_of(request, used=False) is None:
        return None
    return await services_of(request.scope).events.head(reader.key.ledger_id)


ROUTE: Final = PageRoute("/live", _live, methods=["GET"])
