"""What keeps an open page current: how many events are new, and that the session has ended.

It tells positions and nothing of events, so it is no read, and a page that stays open all day adds nothing to the
access log. A person who wants to see what is new clicks.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from api.console.events import READERS
from api.console.frame import ENVIRONMENT
from api.console.origins import refuse_forged
from api.console.visit import query_of, reader_of
from api.http import headers
from api.http.dependencies import places_of, services_of
from api.http.problems import Problem
from infra.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from api.console.visit import Reader
    from api.streams import Streams

# How soon an open page shows that its session ended. Changes of keys are known at once; this is for sign-outs.
LOOK_EVERY_S: Final = 0.5
HEARTBEAT_EVERY: Final = 30
MAX_AFTER_DIGITS: Final = 18
_ENDED: Final = b"event: ended\ndata: ended\n\n"


async def _live(request: Request) -> Response:
    refuse_forged(request)
    reader = await reader_of(request, used=False)
    if reader is None:
        # A tab that comes back after its session ended: it loads the page to sign in.
        return Response(_ENDED, media_type="text/event-stream")
    given = headers.text(request, b"last-event-id") or dict(query_of(request)).get("after", "")
    after = int(given) if given.isascii() and given.isdigit() and len(given) <= MAX_AFTER_DIGITS else None
    return StreamingResponse(_events(request, reader, after), media_type="text/event-stream")


async def _events(request: Request, reader: Reader, after: int | None) -> AsyncIterator[bytes]:
    streams: Streams = request.app.state.streams
    template = ENVIRONMENT.get_template("live.html")
    looks = 0
    # Where there is no place, or the database is away, the stream ends, and the browser asks again later.
    with contextlib.suppress(Problem, Unavailable):
        async with places_of(request.scope).streams.place(reader.key.ledger_id, reader.key.key_id):
            if after is None:
                after = await services_of(request.scope).events.head(reader.key.ledger_id)
            told = after
            # One that is closed or hidden gives its place back at once, and not when something is sent to it.
            while not streams.closing and not await request.is_disconnected():
                # A tab that is closed must not cost a session of the database in the middle of a query.
                head = await asyncio.shield(_look(request, reader))
                if head is None:
                    yield _ENDED
                    return
                if head > told:
                    told = head
                    shown = (
                        template.render(count=head - after, after=after, reads=reader.key.role in READERS)
                        .strip()
                        .replace("\n", " ")
                    )
                    # The id is where the page began to count, so a tab that comes back still counts from there.
                    yield b"id: %d\ndata: %b\n\n" % (after, shown.encode())
                elif looks % HEARTBEAT_EVERY == 0:
                    yield b": open\n\n"
                looks += 1
                await asyncio.sleep(LOOK_EVERY_S)


async def _look(request: Request, reader: Reader) -> int | None:
    """Return the last position of the ledger; None if the session has ended."""
    if await reader_of(request, used=False) is None:
        return None
    return await services_of(request.scope).events.head(reader.key.ledger_id)


ROUTE: Final = Route("/live", _live, methods=["GET"])
