"""The timeline of a code's states, and the figures that it adds to the statistics of each day.

Pure functions of a code's row. The end of its window is part of the timeline, on the day that it comes, even if no
event has recorded it yet.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID

from domain.periods import NEVER, Extension, Period, extended
from domain.values import state_of
from projections.campaigns import campaign_stop, statements

if TYPE_CHECKING:
    from collections.abc import Sequence

    from domain.campaign import EndedBy
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

_STOPPED_BY: Final[dict[EndedBy, str]] = {
    "campaign_end": "campaign_end",
    "ended": "campaign_end",
    "code_expired": "window_end",
    "code_revoked": "revocation",
    "rights_ended": "rights_end",
}

# A figure's name, its label, and the beginning of its day.
Figure = tuple[str, str, datetime]
# By how much figures change. A Counter takes three times as long.
Figures = defaultdict[Figure, int]


@dataclass(slots=True)
class CodePeriods:
    """The periods in which the window of one code was open, in effective times.

    Attributes:
        issued_at: when the code was generated, or when its window began if it was recorded late.
        start_stated: whether anybody stated when the window began; if not, it began with the first that is known.
        first_end: the end of the first period in which its window was open; `expires_at` is the end now.
        first_set_at: the effective time of the extension that set `first_end`; None without one.
        moved: under `ends`, the further periods in order: when each began, its end, and the effective time of the
            extension that set that end. None without any.

    """

    ledger_id: int
    code_id: UUID
    issued_at: datetime
    start_stated: bool
    first_end: datetime
    first_set_at: datetime | None
    expires_at: datetime
    moved: dict[str, Any] | None


@dataclass(slots=True)
class CodeTimelineRow(CodePeriods):
    """The timeline of one code, in effective times.

    Attributes:
        rights: under `stated`, the statements of usage rights in the order in which they took effect: when, and their
            end or None. None without any.
        shared_at, redeemed_at: the first time; None if there was none.
        superseded_at: from when on another code had its video.
        counted: when each share and each redemption took effect, in RFC 3339, by what identifies it. What is
            recorded again, because it was earlier than was known, counts once. None without any.
        campaigns: by campaign id, in RFC 3339: its own end, its launch, when somebody ended it, and when its code was
            revoked, if an event said so; the last two are None if that did not happen. None without campaigns.

    """

    rights: dict[str, Any] | None
    shared_at: datetime | None
    redeemed_at: datetime | None
    superseded_at: datetime | None
    revoked_at: datetime | None
    counted: dict[str, Any] | None
    campaigns: dict[str, Any] | None


def move_end(row: CodePeriods, moment: datetime, end: datetime) -> None:
    """Move the end of a code's window at a moment.

    If the window had not ended by then, the code's states are the same as if it had had the new end all the time. So
    the row grows only with extensions after a lapse.
    """
    first, *further = extended(periods_of(row), Extension(moment, end))
    row.first_end, row.first_set_at = first.expires_at, None if first.set_at == NEVER else first.set_at
    ends = [[moment.isoformat() for moment in period] for period in further]
    row.moved = {"ends": ends} if ends else None
    row.expires_at = (further or [first])[-1].expires_at


def periods_of(row: CodePeriods) -> list[Period]:
    """Return the periods in which a code's window was open, in their order."""
    further = [] if row.moved is None else row.moved["ends"]
    return [
        Period(row.issued_at, row.first_end, row.first_set_at or NEVER),
        *(Period(*map(datetime.fromisoformat, period)) for period in further),
    ]


def transitions(row: CodeTimelineRow) -> Sequence[tuple[datetime, State]]:
    """Return the moment at which a code entered each of its states, from its issue on, by effective times."""
    return _in_order(row) or _in_any_order(row)


def _in_order(row: CodeTimelineRow) -> Sequence[tuple[datetime, State]]:
    """Return the transitions of a code that was shared, was redeemed and ends, in that order, as most do; else none."""
    if row.moved is not None or row.superseded_at is not None or row.revoked_at is not None:
        return ()
    last = row.issued_at
    entered: list[tuple[datetime, State]] = [(last, "generated")]
    if (moment := row.shared_at) is not None:
        if moment <= last:
            return ()
        entered.append((moment, "shared"))
        last = moment
    if (moment := row.redeemed_at) is not None:
        if moment <= last:
            return ()
        entered.append((moment, "redeemed"))
        last = moment
    if row.first_end <= last:
        return ()
    entered.append((row.first_end, "expired"))
    return entered


def _in_any_order(row: CodeTimelineRow) -> list[tuple[datetime, State]]:
    first, *further = periods_of(row)
    moments = [row.issued_at, row.first_end, *(moment for period in further for moment in period[:2])]
    turns = (row.shared_at, row.redeemed_at, row.superseded_at, row.revoked_at)
    moments += [moment for moment in turns if moment is not None]
    passed, end = 0, first.expires_at
    entered: list[tuple[datetime, State]] = []
    for moment in sorted(moments):
        while passed < len(further) and further[passed].starts_at <= moment:
            end, passed = further[passed].expires_at, passed + 1
        state = _state(row, moment, end)
        if moment >= row.issued_at and (not entered or entered[-1][1] != state):
            entered.append((moment, state))
    return entered


def _state(row: CodeTimelineRow, moment: datetime, end: datetime) -> State:
    return state_of(
        revoked=row.revoked_at is not None and row.revoked_at <= moment,
        ended=end <= moment,
        superseded=row.superseded_at is not None and row.superseded_at <= moment,
        redeemed=row.redeemed_at is not None and row.redeemed_at <= moment,
        shared=row.shared_at is not None and row.shared_at <= moment,
    )


class Counted(NamedTuple):
    """What the figures of a code's states follow from: its issue, its first redemption, and its transitions."""

    issued_at: datetime
    redeemed_at: datetime | None
    transitions: Sequence[tuple[datetime, State]]


def states_counted(row: CodeTimelineRow) -> Counted:
    """Return what the figures of a code's states follow from, as the row is now."""
    return Counted(row.issued_at, row.redeemed_at, transitions(row))


def count_changes(before: Counted | None, after: Counted, figures: Figures) -> None:
    """Add to the figures of their days by how much the code's own have changed; `before` is None for a new code.

    Most events change the last transitions only, so those that both have at the beginning are passed over.
    """
    if before is None or before[:2] != after[:2]:
        for known, count in ((before, -1), (after, 1)):
            if known is not None:
                _count_times(known, count, figures)
    same = 0
    if before is not None:
        for old, new in zip(before.transitions, after.transitions, strict=False):
            if old != new:
                break
            same += 1
        _count_transitions(before.transitions, same, -1, figures)
    _count_transitions(after.transitions, same, 1, figures)


def _count_times(known: Counted, count: int, figures: Figures) -> None:
    figures["issued", "", day_of(known.issued_at)] += count
    if known.redeemed_at is not None:
        label = bucket(known.redeemed_at - known.issued_at)
        figures["redeemed_after", label, day_of(known.redeemed_at)] += count


def _count_transitions(passed: Sequence[tuple[datetime, State]], first: int, count: int, figures: Figures) -> None:
    """Count transitions from the one of this index on; each but a code's very first also leaves a state."""
    left = passed[first - 1][1] if first else None
    for moment, entered in passed[first:]:
        day = day_of(moment)
        if left is not None:
            figures["state", left, day] -= count
            if entered == "expired":
                figures["ended", "", day] += count
        figures["state", entered, day] += count
        left = entered


def count_campaign_stops(row: CodeTimelineRow, figures: Figures, count: int) -> None:
    """Add the stops of a code's campaigns to the figures of their days; with a count of -1, subtract them."""
    if not row.campaigns:
        return
    open_in = periods_of(row)
    rights = statements(row.rights["stated"]) if row.rights else ()
    for moments in row.campaigns.values():
        ends_at, launched_at = map(datetime.fromisoformat, moments[:2])
        ended_at, revoked_at = [None if text is None else datetime.fromisoformat(text) for text in moments[2:]]
        stop = campaign_stop(
            ends_at, launched_at, ended_at, revoked_at, open_in=open_in, revoked_at=row.revoked_at, rights=rights
        )
        figures["stopped", _STOPPED_BY[stop.by], day_of(stop.at)] += count


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
