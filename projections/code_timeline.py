"""A code's way from state to state, and what it adds to the figures of each day it turns on.

Pure, and the whole of it: whatever a code's row says, its figures follow. The end of its window is among them, on the
day it comes, though no event may have said so yet: the clock alone brings it about.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from domain.campaign import undone
from domain.values import state_of
from projections.campaigns import stop

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Sequence

    from domain.values import State

_MINUTE_S: Final = 60
_HOUR_S: Final = 60 * _MINUTE_S
_DAY_S: Final = 24 * _HOUR_S
# The time from issue to redemption, in seconds below these; the last bucket has no end.
BUCKETS_S: Final = (
    *(minutes * _MINUTE_S for minutes in (1, 5, 15, 30)),
    *(hours * _HOUR_S for hours in (1, 2, 4, 8, 12)),
    *(days * _DAY_S for days in (1, 2, 3, 5, 7, 10, 14, 21, 30, 60, 90, 180, 365)),
)
LONGER: Final = "longer"

# A figure's name, its label, and the beginning of the day it belongs to.
Figure = tuple[str, str, datetime]


@dataclass(slots=True)
class CodeTimelineRow:
    """One code's way from state to state, in effective times.

    Attributes:
        issued_at: when it was generated, or when its window began, if that was recorded late.
        first_end: the end of its window until it was moved; `expires_at` is the end as it stands.
        moved: under `ends`, where the code was extended after it had lapsed or out of order, the moment of each and the
            end that it set, in the order of recording; None without any.
        shared_at, redeemed_at: the first time, None where it never was.
        campaigns: by campaign id its end, when it was ended, and by what; these two None unless it was. None without
            any.

    """

    ledger_id: int
    code_id: UUID
    issued_at: datetime
    first_end: datetime
    expires_at: datetime
    moved: dict[str, Any] | None
    shared_at: datetime | None
    redeemed_at: datetime | None
    revoked_at: datetime | None
    campaigns: dict[str, Any] | None


def move_end(row: CodeTimelineRow, moment: datetime, end: datetime) -> None:
    """Move the end of a code's window at a moment.

    Where the window had not ended by then, the code stood as well as if it had had the new end since it had the old
    one: so only what came after a lapse, or is recorded out of order, is kept beside.
    """
    ends = [] if row.moved is None else row.moved["ends"]
    row.expires_at = end
    if not ends and moment < row.first_end:
        row.first_end = end
        return
    since, old_end = _parsed(ends[-1]) if ends else (moment, moment)
    if since <= moment < old_end:
        row.moved = {"ends": [*ends[:-1], [since.isoformat(), end.isoformat()]]}
    else:
        row.moved = {"ends": [*ends, [moment.isoformat(), end.isoformat()]]}


def transitions(row: CodeTimelineRow) -> list[tuple[datetime, State]]:
    """Return when a code came into each of its states, by what is known of its effective times, from its issue on."""
    moved = [] if row.moved is None else [_parsed(pair) for pair in row.moved["ends"]]
    turns = [row.issued_at, row.first_end, *(moment for pair in moved for moment in pair)]
    turns += [t for t in (row.shared_at, row.redeemed_at, row.revoked_at) if t is not None]
    # What is recorded last of the window holds from its moment on, whatever is said of other moments.
    waiting = sorted((since, i) for i, (since, _) in enumerate(moved))
    last, passed, end = -1, 0, row.first_end
    found: list[tuple[datetime, State]] = []
    for turn in sorted(turns):
        while passed < len(waiting) and waiting[passed][0] <= turn:
            last, passed = max(last, waiting[passed][1]), passed + 1
            end = moved[last][1]
        state = _state(row, turn, end)
        if turn >= row.issued_at and (not found or found[-1][1] != state):
            found.append((turn, state))
    return found


def _state(row: CodeTimelineRow, moment: datetime, end: datetime) -> State:
    return state_of(
        revoked=row.revoked_at is not None and row.revoked_at <= moment,
        ended=end <= moment,
        redeemed=row.redeemed_at is not None and row.redeemed_at <= moment,
        shared=row.shared_at is not None and row.shared_at <= moment,
    )


def _parsed(pair: Sequence[str]) -> tuple[datetime, datetime]:
    return datetime.fromisoformat(pair[0]), datetime.fromisoformat(pair[1])


def count_transitions(row: CodeTimelineRow, figures: Counter[Figure], count: int) -> None:
    """Add so often what a code's way from state to state adds to the days: -1 takes away what was added."""
    figures["issued", "", day_of(row.issued_at)] += count
    left: State | None = None
    for turn, entered in transitions(row):
        day = day_of(turn)
        if left is not None:
            figures["state", left, day] -= count
            if entered == "expired":
                figures["ended", "", day] += count
        figures["state", entered, day] += count
        left = entered
    if row.redeemed_at is not None:
        figures["redeemed_after", bucket(row.redeemed_at - row.issued_at), day_of(row.redeemed_at)] += count


def count_campaign_stops(row: CodeTimelineRow, figures: Counter[Figure], count: int) -> None:
    """Add so often what the stops of a code's campaigns add to the days: -1 takes away what was added."""
    for ends_at, ended_at, cause in (row.campaigns or {}).values():
        ended = None if ended_at is None else datetime.fromisoformat(ended_at)
        stops_at, reason = stop(datetime.fromisoformat(ends_at), row.expires_at, ended, cause)
        by_code = "revocation" if cause == "code_revoked" else "window_end"
        figures["stopped", by_code if reason == "code_end" else reason, day_of(stops_at)] += count


def resume_campaigns(row: CodeTimelineRow, moment: datetime) -> None:
    """Let campaigns run on that an end of the window stopped later than a moment at which it was extended."""
    if row.campaigns is not None:
        row.campaigns = {
            name: [ends_at, None, None]
            if undone(None if ended_at is None else datetime.fromisoformat(ended_at), cause, moment)
            else [ends_at, ended_at, cause]
            for name, (ends_at, ended_at, cause) in row.campaigns.items()
        }


def bucket(passed: timedelta) -> str:
    """Return the label of the bucket that a time falls into: its upper bound in seconds."""
    i = bisect_right(BUCKETS_S, passed.total_seconds())
    return str(BUCKETS_S[i]) if i < len(BUCKETS_S) else LONGER


def day_of(moment: datetime) -> datetime:
    """Return the beginning of a moment's day, both in UTC."""
    return _beginning_of(moment.toordinal())


@lru_cache(maxsize=4_096)
def _beginning_of(day: int) -> datetime:
    """Return the beginning of a day: one object for all that happens on it, for they are hashed again and again."""
    return datetime.combine(date.fromordinal(day), time(tzinfo=UTC))
