"""How many codes are in each state, and how many shares, redemptions, refusals and campaigns are there, day by day?

Reads every event that changes a code's state, and those that are counted besides. Read by the statistics, and by the
list of codes for those that were live at a moment. Days are of effective time, in UTC.

A code's row holds its whole timeline of states, including the end of its window, which no event need record. The code's
figures follow from it: on which day it enters and leaves each state. An event changes the row, and the difference in
the figures is added to the counts of the days. The states on any day, past or ahead, are therefore sums over days,
however many codes there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from domain.code import Code
from domain.values import State
from projections.code_timeline import (
    CodeTimelineRow,
    Figure,
    count_campaign_stops,
    count_transitions,
    day_of,
    move_end,
)
from projections.engine.table import Table
from projections.engine.view import View

if TYPE_CHECKING:
    from psycopg import AsyncCursor

    from domain.recorded import RecordedEvent

NAME: Final = "statistics"
VERSION: Final = 3
# A code that was superseded counts as far as it came.
COUNTED_STATES: Final[tuple[State, ...]] = ("generated", "shared", "redeemed", "expired", "revoked")


@dataclass(slots=True)
class CountRow:
    """The count of a figure on the day that begins at `day` in UTC."""

    ledger_id: int
    figure: str
    label: str
    day: datetime
    count: int


@dataclass(slots=True)
class Day:
    """One day's figures.

    Attributes:
        codes: number of codes in each state at the end of the day, or now if the day has not ended.
        issued: codes generated.
        ended: windows that end.
        redeemed_after: codes redeemed for the first time, by the upper bound in seconds of the time since their issue.
        refused: recorded refusals of redemptions, by reason.
        stopped: campaigns that stop, by what stops them: `campaign_end`, `window_end` or `revocation`.

    """

    day: datetime
    codes: dict[State, int]
    issued: int = 0
    ended: int = 0
    shares: int = 0
    redemptions: int = 0
    redeemed_after: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    launched: int = 0
    stopped: dict[str, int] = field(default_factory=dict)


TIMELINES: Final = Table(
    "statistics",
    CodeTimelineRow,
    key=("ledger_id", "code_id"),
    ddl="""
        CREATE TABLE {table} (
            ledger_id       int NOT NULL,
            code_id         uuid NOT NULL,
            issued_at       timestamptz NOT NULL,
            first_end       timestamptz NOT NULL,
            first_set_at    timestamptz,
            expires_at      timestamptz NOT NULL,
            moved           jsonb,
            shared_at       timestamptz,
            redeemed_at     timestamptz,
            revoked_at      timestamptz,
            campaigns       jsonb,
            PRIMARY KEY (ledger_id, code_id)
        ) WITH (fillfactor = 80) -- most updates change no indexed column, and stay in their block while it has room
    """,
    # For windows that end later today.
    indexes=("CREATE INDEX ON {table} (ledger_id, expires_at) WHERE revoked_at IS NULL",),
)

DAYS: Final = Table(
    "statistics_days",
    CountRow,
    key=("ledger_id", "figure", "label", "day"),
    ddl="""
        CREATE TABLE {table} (
            ledger_id       int NOT NULL,
            figure          text NOT NULL,
            label           text NOT NULL,
            day             timestamptz NOT NULL,
            count           bigint NOT NULL,
            PRIMARY KEY (ledger_id, figure, label, day)
        ) WITH (fillfactor = 50)
    """,
    indexes=("CREATE INDEX ON {table} (ledger_id, day)",),
    adds="count",
)


def _one(row: CodeTimelineRow, figure: str, label: str, moment: datetime) -> CountRow:
    return CountRow(row.ledger_id, figure, label, day_of(moment), 1)


def _rows(row: CodeTimelineRow, figures: Counter[Figure]) -> list[CountRow]:
    return [CountRow(row.ledger_id, *figure, count) for figure, count in figures.items() if count]


# Handlers, in the order of a code's life: each subtracts the code's figures, changes the row, and adds them again.


def generated(ledger_id: int, recorded: RecordedEvent, event: Code.Generated) -> CodeTimelineRow:
    return CodeTimelineRow(
        ledger_id=ledger_id,
        code_id=recorded.stream_id,
        issued_at=min(recorded.effective_at, event.starts_at),
        first_end=event.expires_at,
        first_set_at=None,
        expires_at=event.expires_at,
        moved=None,
        shared_at=None,
        redeemed_at=None,
        revoked_at=None,
        campaigns=None,
    )


def issued(row: CodeTimelineRow, _recorded: RecordedEvent, _event: Code.Generated) -> list[CountRow]:
    figures: Counter[Figure] = Counter()
    count_transitions(row, figures, 1)
    return _rows(row, figures)


def extended(row: CodeTimelineRow, recorded: RecordedEvent, event: Code.Extended) -> list[CountRow]:
    figures: Counter[Figure] = Counter()
    count_transitions(row, figures, -1)
    count_campaign_stops(row, figures, -1)
    move_end(row, recorded.effective_at, event.expires_at)
    count_transitions(row, figures, 1)
    count_campaign_stops(row, figures, 1)
    return _rows(row, figures)


def shared(row: CodeTimelineRow, recorded: RecordedEvent, _event: Code.Shared) -> list[CountRow]:
    at = recorded.effective_at
    share = _one(row, "shares", "", at)
    if row.shared_at is not None and row.shared_at <= at:
        return [share]
    figures: Counter[Figure] = Counter()
    count_transitions(row, figures, -1)
    row.shared_at = at
    count_transitions(row, figures, 1)
    return [share, *_rows(row, figures)]


def redeemed(row: CodeTimelineRow, recorded: RecordedEvent, _event: Code.Redeemed) -> list[CountRow]:
    at = recorded.effective_at
    redemption = _one(row, "redemptions", "", at)
    if row.redeemed_at is not None and row.redeemed_at <= at:
        return [redemption]
    figures: Counter[Figure] = Counter()
    count_transitions(row, figures, -1)
    row.redeemed_at = at
    count_transitions(row, figures, 1)
    return [redemption, *_rows(row, figures)]


def redemption_refused(row: CodeTimelineRow, recorded: RecordedEvent, event: Code.RedemptionRefused) -> list[CountRow]:
    return [_one(row, "refused", event.reason, recorded.effective_at)]


def campaign_launched(row: CodeTimelineRow, recorded: RecordedEvent, event: Code.CampaignLaunched) -> list[CountRow]:
    figures: Counter[Figure] = Counter()
    count_campaign_stops(row, figures, -1)
    known = row.campaigns or {}
    ends = known[event.campaign_id][2:] if event.campaign_id in known else [None, None]
    launched = [event.ends_at.isoformat(), recorded.effective_at.isoformat(), *ends]
    row.campaigns = {**known, event.campaign_id: launched}
    count_campaign_stops(row, figures, 1)
    return [_one(row, "launched", "", recorded.effective_at), *_rows(row, figures)]


def campaign_ended(row: CodeTimelineRow, recorded: RecordedEvent, event: Code.CampaignEnded) -> list[CountRow]:
    if event.cause == "code_expired":
        return []  # the window says so, if it is true
    figures: Counter[Figure] = Counter()
    known = row.campaigns or {}
    count_campaign_stops(row, figures, -1)
    ends_at, launched_at, ended_at, revoked_at = known[event.campaign_id]
    if event.cause == "ended":
        ended_at = recorded.effective_at.isoformat()
    else:
        revoked_at = recorded.effective_at.isoformat()
    row.campaigns = {**known, event.campaign_id: [ends_at, launched_at, ended_at, revoked_at]}
    count_campaign_stops(row, figures, 1)
    return _rows(row, figures)


def revoked(row: CodeTimelineRow, recorded: RecordedEvent, _event: Code.Revoked) -> list[CountRow]:
    figures: Counter[Figure] = Counter()
    count_transitions(row, figures, -1)
    count_campaign_stops(row, figures, -1)
    row.revoked_at = min(recorded.effective_at, row.revoked_at or recorded.effective_at)
    count_transitions(row, figures, 1)
    count_campaign_stops(row, figures, 1)
    return _rows(row, figures)


VIEW: Final = View(
    NAME,
    VERSION,
    TIMELINES,
    row_of=lambda recorded: recorded.stream_id,
    creates={Code.Generated: generated},
    updates={
        Code.Generated: issued,
        Code.Extended: extended,
        Code.Shared: shared,
        Code.Redeemed: redeemed,
        Code.RedemptionRefused: redemption_refused,
        Code.CampaignLaunched: campaign_launched,
        Code.CampaignEnded: campaign_ended,
        Code.Revoked: revoked,
    },
    secondary=[DAYS],
)


# Queries.

_SUMS: Final = """
    SELECT label, sum(count)::bigint
    FROM views.statistics_days
    WHERE ledger_id = %(ledger_id)s
    AND figure = %(figure)s
    AND day <= %(last)s
    GROUP BY label
    ORDER BY label
"""

_ENDING_BETWEEN: Final = """
    SELECT
        CASE WHEN redeemed_at IS NOT NULL THEN 'redeemed' WHEN shared_at IS NOT NULL THEN 'shared' ELSE 'generated' END,
        count(*)
    FROM views.statistics
    WHERE ledger_id = %(ledger_id)s
    AND revoked_at IS NULL
    AND expires_at > %(after)s
    AND expires_at < %(before)s
    GROUP BY 1
"""

_ENDING_ON_DAYS: Final = """
    SELECT coalesce(sum(count), 0)::bigint
    FROM views.statistics_days
    WHERE ledger_id = %(ledger_id)s
    AND figure = 'ended'
    AND label = ''
    AND day > %(after)s
    AND day < %(before)s
"""

# A day's figures as one object: a tenth of the rows to fetch.
_BY_DAY: Final = """
    SELECT day, jsonb_object_agg(figure || ' ' || label, count)
    FROM views.statistics_days
    WHERE ledger_id = %(ledger_id)s
    AND day >= %(first)s
    AND day <= %(last)s
    GROUP BY day
"""


async def count_by_state(cur: AsyncCursor[Any], ledger_id: int, now: datetime) -> dict[State, int]:
    """Return the number of codes in each state at a moment, zeros included."""
    counts = await _at_end_of(cur, ledger_id, day_of(now))
    return _states_now(counts, await _later_today(cur, ledger_id, now))


async def count_ahead(cur: AsyncCursor[Any], ledger_id: int, *, now: datetime, until: datetime) -> int:
    """Return the number of unrevoked codes that expire after `now` and before `until`."""
    days = {"after": day_of(now), "before": day_of(until)}
    if days["after"] == days["before"]:
        return sum((await _ending(cur, ledger_id, now, until)).values())
    await cur.execute(_ENDING_ON_DAYS, {"ledger_id": ledger_id, **days})
    row = await cur.fetchone()
    today = await _later_today(cur, ledger_id, now)
    last = await _ending(cur, ledger_id, day_of(until) - timedelta(microseconds=1), until)
    return (int(row[0]) if row else 0) + sum(today.values()) + sum(last.values())


async def totals(cur: AsyncCursor[Any], ledger_id: int, figure: str) -> dict[str, int]:
    """Return the total of a figure over all days, by label."""
    await cur.execute(_SUMS, {"ledger_id": ledger_id, "figure": figure, "last": "infinity"})
    return dict(await cur.fetchall())


async def by_day(cur: AsyncCursor[Any], ledger_id: int, *, first: datetime, last: datetime, now: datetime) -> list[Day]:
    """Return the figures of every day from `first` to `last`, both included and both the beginning of a day in UTC.

    The states on days ahead are those that codes will have if nothing more happens.
    """
    counts = await _at_end_of(cur, ledger_id, first - timedelta(days=1))
    await cur.execute(_BY_DAY, {"ledger_id": ledger_id, "first": first, "last": last})
    found: dict[datetime, Mapping[str, int]] = dict(await cur.fetchall())
    today = await _later_today(cur, ledger_id, now) if first <= day_of(now) <= last else {}
    days = []
    for number in range((last - first).days + 1):
        moment = first + timedelta(days=number)
        day = _day(moment, counts, found.get(moment, {}))
        counts = dict(day.codes)
        if moment == day_of(now):
            day.codes = _states_now(day.codes, today)
        days.append(day)
    return days


def _day(moment: datetime, before: Mapping[State, int], counted: Mapping[str, int]) -> Day:
    labelled: dict[str, dict[str, int]] = {}
    for name, count in sorted(counted.items()):
        figure, _, label = name.partition(" ")
        if count:
            labelled.setdefault(figure, {})[label] = count
    none: dict[str, int] = {}
    moved = labelled.get("state", none)
    return Day(
        day=moment,
        codes={state: before[state] + moved.get(state, 0) for state in COUNTED_STATES},
        issued=labelled.get("issued", none).get("", 0),
        ended=labelled.get("ended", none).get("", 0),
        shares=labelled.get("shares", none).get("", 0),
        redemptions=labelled.get("redemptions", none).get("", 0),
        redeemed_after=labelled.get("redeemed_after", {}),
        refused=labelled.get("refused", {}),
        launched=labelled.get("launched", none).get("", 0),
        stopped=labelled.get("stopped", {}),
    )


async def _at_end_of(cur: AsyncCursor[Any], ledger_id: int, day: datetime) -> dict[State, int]:
    await cur.execute(_SUMS, {"ledger_id": ledger_id, "figure": "state", "last": day})
    counts: dict[State, int] = dict.fromkeys(COUNTED_STATES, 0)
    return counts | dict(await cur.fetchall())


async def _later_today(cur: AsyncCursor[Any], ledger_id: int, now: datetime) -> dict[State, int]:
    """Return the number of codes that expire between now and the end of the day, by their state until then."""
    return await _ending(cur, ledger_id, now, day_of(now) + timedelta(days=1))


async def _ending(cur: AsyncCursor[Any], ledger_id: int, after: datetime, before: datetime) -> dict[State, int]:
    await cur.execute(_ENDING_BETWEEN, {"ledger_id": ledger_id, "after": after, "before": before})
    return dict(await cur.fetchall())


def _states_now(counts: Mapping[State, int], later_today: Mapping[State, int]) -> dict[State, int]:
    """Return the states now, from those at the end of the day: codes that expire later today have not yet expired."""
    now = {state: count + later_today.get(state, 0) for state, count in counts.items()}
    now["expired"] -= sum(later_today.values())
    return now
