"""The timeline of a code's states, and the figures that it adds to the statistics of each day.

Pure functions of a code's row. The end of its window is part of the timeline, on the day that it comes, even if no
event has recorded it yet.
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

# A figure's name, its label, and the beginning of its day.
Figure = tuple[str, str, datetime]


@dataclass(slots=True)
class CodeTimelineRow:
    """The timeline of one code, in effective times.

    Attributes:
        issued_at: when the code was generated, or when its window began if it was recorded late.
        first_end: the end of its window before the extensions in `moved`; `expires_at` is the end now.
        moved: under `ends`, extensions that came after a lapse or were recorded out of order: the moment of each and
            the end that it set, in the order of recording. None without any.
        shared_at, redeemed_at: the first time; None if there was none.
        campaigns: by campaign id, its own end, and when and why an event ended it, both None if none did. None without
            campaigns.

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

    If the window had not ended by then, the code's states are the same as if it had had the new end all the time. So
    only extensions after a lapse, or out of order, are kept in `moved`.
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
    """Return the moment at which a code entered each of its states, from its issue on, by effective times."""
    moved = [] if row.moved is None else [_parsed(pair) for pair in row.moved["ends"]]
    moments = [row.issued_at, row.first_end, *(moment for pair in moved for moment in pair)]
    moments += [moment for moment in (row.shared_at, row.redeemed_at, row.revoked_at) if moment is not None]
    # Of the extensions up to a moment, the one that was recorded last sets the end.
    by_moment = sorted((since, i) for i, (since, _) in enumerate(moved))
    last, passed, end = -1, 0, row.first_end
    entered: list[tuple[datetime, State]] = []
    for moment in sorted(moments):
        while passed < len(by_moment) and by_moment[passed][0] <= moment:
            last, passed = max(last, by_moment[passed][1]), passed + 1
            end = moved[last][1]
        state = _state(row, moment, end)
        if moment >= row.issued_at and (not entered or entered[-1][1] != state):
            entered.append((moment, state))
    return entered


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
    """Add a code's transitions to the figures of their days; with a count of -1, subtract them."""
    figures["issued", "", day_of(row.issued_at)] += count
    left: State | None = None
    for moment, entered in transitions(row):
        day = day_of(moment)
        if left is not None:
            figures["state", left, day] -= count
            if entered == "expired":
                figures["ended", "", day] += count
        figures["state", entered, day] += count
        left = entered
    if row.redeemed_at is not None:
        figures["redeemed_after", bucket(row.redeemed_at - row.issued_at), day_of(row.redeemed_at)] += count


def count_campaign_stops(row: CodeTimelineRow, figures: Counter[Figure], count: int) -> None:
    """Add the stops of a code's campaigns to the figures of their days; with a count of -1, subtract them."""
    for ends_at, ended_at, cause in (row.campaigns or {}).values():
        ended = None if ended_at is None else datetime.fromisoformat(ended_at)
        stops_at, reason = stop(datetime.fromisoformat(ends_at), row.expires_at, ended, cause)
        by_code = "revocation" if cause == "code_revoked" else "window_end"
        figures["stopped", by_code if reason == "code_end" else reason, day_of(stops_at)] += count


def resume_campaigns(row: CodeTimelineRow, moment: datetime) -> None:
    """Undo the end of campaigns that the window's end stopped after a moment at which the window was extended."""
    if row.campaigns is not None:
        row.campaigns = {
            name: [ends_at, None, None]
            if undone(None if ended_at is None else datetime.fromisoformat(ended_at), cause, moment)
            else [ends_at, ended_at, cause]
            for name, (ends_at, ended_at, cause) in row.campaigns.items()
        }


def bucket(passed: timedelta) -> str:
    """Return the label of a duration's bucket: its upper bound in seconds."""
    i = bisect_right(BUCKETS_S, passed.total_seconds())
    return str(BUCKETS_S[i]) if i < len(BUCKETS_S) else LONGER


def day_of(moment: datetime) -> datetime:
    """Return the beginning, in UTC, of a moment's day."""
    return _beginning_of(moment.toordinal())


@lru_cache(maxsize=4_096)
def _beginning_of(day: int) -> datetime:
    """Return the beginning of a day, always as the same object, because it is hashed again and again."""
    return datetime.combine(date.fromordinal(day), time(tzinfo=UTC))
