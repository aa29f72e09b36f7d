"""What a read may see of the ledger: `as_of`, what was known then, and `at_least`, what it must know."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from typing import TYPE_CHECKING, Final

from api.http.caller import Caller
from api.http.fields import MAX_POSITION
from api.http.problems import Problem, ahead_of_ledger, malformed_query
from domain.code import replay_code
from infra.errors import Unavailable
from infra.views.reader import AT_LEAST_WAIT_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    from domain.recorded import RecordedEvent
    from infra.eventstore.reader import EventReader

# The time between two looks at the end of the log.
POLL_S: Final = 0.1


async def known_at(caller: Caller, as_of: datetime | int, now: datetime) -> tuple[int, datetime]:
    """Turn `as_of` into the position that it speaks of, and the moment that state is computed with.

    Raises:
        Problem: it is in the future, or beyond the end of the ledger.

    """
    return await known_in(caller.services.events, caller.ledger_id, as_of, now)


async def known_in(store: EventReader, ledger_id: int, as_of: datetime | int, now: datetime) -> tuple[int, datetime]:
    """Do what `known_at` does, for a ledger that no key was shown for."""
    if isinstance(as_of, datetime):
        if as_of > now:
            raise malformed_query("as_of", "This time is in the future. What the ledger will know then is not known.")
        return await store.position_at(ledger_id, as_of), as_of
    if as_of == 0:
        return 0, now
    recorded = await store.at_positions(ledger_id, [as_of])
    if not recorded:
        raise ahead_of_ledger(await store.head(ledger_id))
    return as_of, recorded[0].recorded_at


async def position_asked(caller: Caller, as_of: datetime | int | None, at_least: int | None) -> tuple[int, int | None]:
    """Return the last position that a list may show, and the one that its view must have read.

    Raises:
        Problem: `as_of` is in the future, or beyond the end of the ledger.

    """
    if as_of is None:
        return MAX_POSITION, at_least
    position, _ = await known_at(caller, as_of, caller.services.now())
    return position, max(position, at_least or 0)


async def wait_for_log(caller: Caller, at_least: int | None) -> None:
    """Wait until the log has reached a position, for a read of the log itself.

    Raises:
        Unavailable: nothing was recorded at this position in time.

    """
    ends_at = time.monotonic() + AT_LEAST_WAIT_S
    while at_least is not None and at_least > await caller.services.events.head(caller.ledger_id):
        if time.monotonic() >= ends_at:
            raise Unavailable("The ledger has not reached this position yet. Try again in a moment.")
        await asyncio.sleep(POLL_S)


def refuse_before_it_began(stream: Sequence[RecordedEvent], at: datetime | None) -> None:
    """Refuse to say how a code was before it was there: before it was generated and before its window began.

    Raises:
        Problem: `code_not_begun`.

    """
    if at is not None and at < (begun_at := replay_code(stream).begun_at):
        raise Problem("code_not_begun", members={"begun_at": begun_at.isoformat().replace("+00:00", "Z")})


def upto(stream: list[RecordedEvent], position: int) -> list[RecordedEvent]:
    """Keep what was recorded at or before a position."""
    return [recorded for recorded in stream if recorded.position <= position]
