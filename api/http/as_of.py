"""What a read may see of the ledger: `as_of`, what was known then, and `at_least`, what it must know."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from api.http.caller import Caller
from api.http.problems import Problem, malformed_query
from domain.code import replay_code
from infra.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from domain.recorded import RecordedEvent
    from infra.eventstore.reader import EventReader


async def known_at(caller: Caller, as_of: datetime | int, now: datetime) -> tuple[int, datetime]:
    """Turn `as_of` into the position that it speaks of, and the moment that state is computed with.

    Raises:
        Problem: it lies ahead, where nothing is known yet and the answer would change.

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
        raise malformed_query("as_of", "The ledger has not reached this position.")
    return as_of, recorded[0].recorded_at


async def refuse_ahead(caller: Caller, at_least: int | None) -> None:
    """Refuse to read the log for a position that it has not reached; whatever is committed, a read of it sees.

    Raises:
        Unavailable: nothing is recorded at this position yet.

    """
    if at_least is not None and at_least > await caller.services.events.head(caller.ledger_id):
        raise Unavailable("The ledger has not reached this position yet. Try again in a moment.")


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
