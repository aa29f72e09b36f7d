"""How many codes are in each state, and how many shares, redemptions, refusals and campaigns are there, day by day?

Reads every event that changes a code's state, and those that are counted besides. Read by the statistics, and by the
list of codes for those that were live at a moment. Days are of effective time, in UTC.

A code's row holds its whole timeline of states, including the end of its window, which no event need record. The code's
figures follow from it: on which day it enters and leaves each state. An event changes the row, and the difference in
the figures is added to the counts of the days. The states on any day, past or ahead, are therefore sums over days,
however many codes there are. Each difference is kept under the day on which it was recorded. So what was known of any
day at the end of another is a sum, too.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, LiteralString, NamedTuple

from domain.code import Code
from domain.values import State
from projections.campaigns import with_statement
from projections.code_timeline import (
    CodeTimelineRow,
    Figures,
    count_campaign_stops,
    count_changes,
    day_of,
    move_end,
    states_counted,
)
from projections.engine.table import Table
from projections.engine.view import View

if TYPE_CHECKING:
    from psycopg import AsyncCursor

    from domain.recorded import RecordedEvent

NAME: Final = "statistics"
VERSION: Final = 6
COUNTED_STATES: Final[tuple[State, ...]] = ("generated", "shared", "redeemed", "superseded", "expired", "revoked")


class CountRow(NamedTuple):
    """What was recorded on one day about the count of a figure on another, given by their beginnings in UTC."""

    ledger_id: int
    figure: str
    label: str
    day: datetime
    recorded: datetime
    count: int  # type: ignore[assignment] # the method of tuples of that name is not used


@dataclass(slots=True)
class Day:
    """One day's figures.

    Attributes:
        codes: number of codes in each state at the end of the day, or now if the day has not ended.
        issued: codes generated.
        ended: windows that end.
        redeemed_after: codes redeemed for the first time, by the upper bound in seconds of the time since their issue.
        refused: recorded refusals of redemptions, by reason.
        stopped: campaigns that stop, by what stops them: `campaign_end`, `window_end`, `revocation` or `rights_end`.

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
    fixed=("start_stated",),
    ddl="""
        CREATE TABLE {table} (
            ledger_id       int NOT NULL,
            code_id         uuid NOT NULL,
            issued_at       timestamptz NOT NULL,
            start_stated    boolean NOT NULL,
            first_end       timestamptz NOT NULL,
            first_set_at    timestamptz,
            expires_at      timestamptz NOT NULL,
            moved           jsonb,
            rights          jsonb,
            shared_at       timestamptz,
            redeemed_at     timestamptz,
            superseded_at   timestamptz,
            revoked_at      timestamptz,
            counted         jsonb,
            campaigns       jsonb,
            PRIMARY KEY (ledger_id, code_id)
        ) WITH (fillfactor = 80) -- most updates change no indexed column, and stay in their block while it has room
    """,
    # For windows that end later today, and codes that are superseded later today.
    indexes=(
        "CREATE INDEX ON {table} (ledger_id, expires_at) WHERE revoked_at IS NULL",
        "CREATE INDEX ON {table} (ledger_id, superseded_at) WHERE superseded_at IS NOT NULL AND revoked_at IS NULL",
    ),
)

DAYS: Final = Table(
    "statistics_days",
    CountRow,
    key=("ledger_id", "figure", "label", "day", "recorded"),
    ddl="""
        CREATE TABLE {table} (
            ledger_id       int NOT NULL,
            figure          text NOT NULL,
            label           text NOT NULL,
            day             timestamptz NOT NULL,
            recorded        timestamptz NOT NULL,
            count           bigint NOT NULL,
            PRIMARY KEY (ledger_id, figure, label, day, recorded)
        ) WITH (fillfactor = 50)
    """,
    indexes=("CREATE INDEX ON {table} (ledger_id, day)",),
    adds=("count",),
)


# A quarter of the time of calling the class.
_count: Final[Callable[[tuple[Any, ...]], CountRow]] = partial(tuple.__new__, CountRow)


def _rows(row: CodeTimelineRow, recorded: RecordedEvent, figures: Figures) -> list[CountRow]:
    on = day_of(recorded.recorded_at)
    ledger_id = row.ledger_id
    return [_count((ledger_id, name, label, day, on, n)) for (name, label, day), n in figures.items() if n]


# Handlers, in the order of a code's life: each changes the row, and counts by how much that changes the code's figures.


def generated(ledger_id: int, recorded: RecordedEvent, event: Code.Generated) -> CodeTimelineRow:
    return CodeTimelineRow(
        ledger_id=ledger_id,
        code_id=recorded.stream_id,
        issued_at=min(recorded.effective_at, event.starts_at) if event.start_stated else recorded.effective_at,
        start_stated=event.start_stated,
        first_end=event.expires_at,
        first_set_at=None,
        expires_at=event.expires_at,
        moved=None,
        rights=None,
        shared_at=None,
        redeemed_at=None,
        superseded_at=None,
        revoked_at=None,
        counted=None,
        campaigns=None,
    )


def issued(row: CodeTimelineRow, recorded: RecordedEvent, _event: Code.Generated) -> list[CountRow]:
    figures: Figures = defaultdict(int)
    count_changes(None, states_counted(row), figures)
    return _rows(row, recorded, figures)


def extended(row: CodeTimelineRow, recorded: RecordedEvent, event: Code.Extended) -> list[CountRow]:
    figures: Figures = defaultdict(int)
    before = states_counted(row)
    count_campaign_stops(row, figures, -1)
    move_end(row, recorded.effective_at, event.expires_at)
    count_changes(before, states_counted(row), figures)
    count_campaign_stops(row, figures, 1)
    return _rows(row, recorded, figures)


def rights_stated(row: CodeTimelineRow, recorded: RecordedEvent, event: Code.RightsStated) -> list[CountRow]:
    figures: Figures = defaultdict(int)
    count_campaign_stops(row, figures, -1)
    known = () if row.rights is None else row.rights["stated"]
    row.rights = {"stated": with_statement(known, recorded, event)}
    count_campaign_stops(row, figures, 1)
    return _rows(row, recorded, figures)


def shared(row: CodeTimelineRow, recorded: RecordedEvent, event: Code.Shared) -> list[CountRow]:
    key = f"share {event.brand_id} {event.channel} {event.advertiser_id or ''} {event.note_fingerprint or ''}"
    figures = _counted_once(row, "shares", key, recorded.effective_at)
    if row.shared_at is None or recorded.effective_at < row.shared_at:
        before = states_counted(row)
        row.shared_at = recorded.effective_at
        _known_at(row, recorded.effective_at)
        count_changes(before, states_counted(row), figures)
    return _rows(row, recorded, figures)


def redeemed(row: CodeTimelineRow, recorded: RecordedEvent, event: Code.Redeemed) -> list[CountRow]:
    figures = _counted_once(row, "redemptions", f"redemption {event.advertiser_id}", recorded.effective_at)
    if row.redeemed_at is None or recorded.effective_at < row.redeemed_at:
        before = states_counted(row)
        row.redeemed_at = recorded.effective_at
        _known_at(row, recorded.effective_at)
        count_changes(before, states_counted(row), figures)
    return _rows(row, recorded, figures)


def _counted_once(row: CodeTimelineRow, figure: str, key: str, at: datetime) -> Figures:
    """Count a fact on its day, and no longer on the later day on which it was counted before."""
    known = row.counted or {}
    figures: Figures = defaultdict(int)
    if key in known:
        figures[figure, "", day_of(datetime.fromisoformat(known[key]))] -= 1
    figures[figure, "", day_of(at)] += 1
    row.counted = {**known, key: at.isoformat()}
    return figures


def _known_at(row: CodeTimelineRow, at: datetime) -> None:
    if not row.start_stated:
        row.issued_at = min(row.issued_at, at)


def redemption_refused(row: CodeTimelineRow, recorded: RecordedEvent, event: Code.RedemptionRefused) -> list[CountRow]:
    return _rows(row, recorded, defaultdict(int, {("refused", event.reason, day_of(recorded.effective_at)): 1}))


def campaign_launched(row: CodeTimelineRow, recorded: RecordedEvent, event: Code.CampaignLaunched) -> list[CountRow]:
    figures: Figures = defaultdict(int)
    count_campaign_stops(row, figures, -1)
    known = row.campaigns or {}
    ends = [None, None]
    if event.campaign_id in known:  # launched earlier than was known
        _, launched_at, *ends = known[event.campaign_id]
        figures["launched", "", day_of(datetime.fromisoformat(launched_at))] -= 1
    figures["launched", "", day_of(recorded.effective_at)] += 1
    launched = [event.ends_at.isoformat(), recorded.effective_at.isoformat(), *ends]
    row.campaigns = {**known, event.campaign_id: launched}
    count_campaign_stops(row, figures, 1)
    return _rows(row, recorded, figures)


def campaign_ended(row: CodeTimelineRow, recorded: RecordedEvent, event: Code.CampaignEnded) -> list[CountRow]:
    if event.cause == "code_expired":
        return []  # the window says so, if it is true
    figures: Figures = defaultdict(int)
    known = row.campaigns or {}
    count_campaign_stops(row, figures, -1)
    ends_at, launched_at, ended_at, revoked_at = known[event.campaign_id]
    if event.cause == "ended":
        ended_at = recorded.effective_at.isoformat()
    else:
        revoked_at = recorded.effective_at.isoformat()
    row.campaigns = {**known, event.campaign_id: [ends_at, launched_at, ended_at, revoked_at]}
    count_campaign_stops(row, figures, 1)
    return _rows(row, recorded, figures)


def superseded(row: CodeTimelineRow, recorded: RecordedEvent, event: Code.Superseded) -> list[CountRow]:
    figures: Figures = defaultdict(int)
    before = states_counted(row)
    row.superseded_at = event.superseded_at
    count_changes(before, states_counted(row), figures)
    return _rows(row, recorded, figures)


def revoked(row: CodeTimelineRow, recorded: RecordedEvent, _event: Code.Revoked) -> list[CountRow]:
    figures: Figures = defaultdict(int)
    before = states_counted(row)
    count_campaign_stops(row, figures, -1)
    row.revoked_at = min(recorded.effective_at, row.revoked_at or recorded.effective_at)
    count_changes(before, states_counted(row), figures)
    count_campaign_stops(row, figures, 1)
    return _rows(row, recorded, figures)


VIEW: Final = View(
    NAME,
    VERSION,
    TIMELINES,
    row_of=lambda recorded: recorded.stream_id,
    creates={Code.Generated: generated},
    updates={
        Code.Generated: issued,
        Code.Extended: extended,
        Code.RightsStated: rights_stated,
        Code.Shared: shared,
        Code.Redeemed: redeemed,
        Code.RedemptionRefused: redemption_refused,
        Code.CampaignLaunched: campaign_launched,
        Code.CampaignEnded: campaign_ended,
        Code.Superseded: superseded,
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
    AND recorded <= %(known)s
    GROUP BY label
    ORDER BY label
"""

# Of unrevoked codes, by the state that they have after that moment.
_UNREVOKED: Final = """
    SELECT
        CASE
            WHEN superseded_at <= %(after)s THEN 'superseded'
            WHEN redeemed_at IS NOT NULL THEN 'redeemed'
            WHEN shared_at IS NOT NULL THEN 'shared'
            ELSE 'generated'
        END,
        count(*)
    FROM views.statistics
    WHERE ledger_id = %(ledger_id)s
    AND revoked_at IS NULL
"""

_ENDING_BETWEEN: Final = (
    _UNREVOKED
    + """
    AND expires_at > %(after)s
    AND expires_at < %(before)s
    GROUP BY 1
"""
)

_SUPERSEDED_BETWEEN: Final = (
    _UNREVOKED
    + """
    AND superseded_at > %(after)s
    AND superseded_at < %(before)s
    AND expires_at >= %(before)s
    GROUP BY 1
"""
)

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
    FROM (
        SELECT day, figure, label, sum(count)::bigint AS count
        FROM views.statistics_days
        WHERE ledger_id = %(ledger_id)s
        AND day >= %(first)s
        AND day <= %(last)s
        AND recorded <= %(known)s
        GROUP BY day, figure, label
    ) s
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
        return sum((await _between(cur, _ENDING_BETWEEN, ledger_id, now, until)).values())
    await cur.execute(_ENDING_ON_DAYS, {"ledger_id": ledger_id, **days})
    row = await cur.fetchone()
    today = await _between(cur, _ENDING_BETWEEN, ledger_id, now, day_of(now) + timedelta(days=1))
    last = await _between(cur, _ENDING_BETWEEN, ledger_id, day_of(until) - timedelta(microseconds=1), until)
    return (int(row[0]) if row else 0) + sum(today.values()) + sum(last.values())


async def totals(cur: AsyncCursor[Any], ledger_id: int, figure: str) -> dict[str, int]:
    """Return the total of a figure over all days, by label."""
    await cur.execute(_SUMS, {"ledger_id": ledger_id, "figure": figure, "last": "infinity", "known": "infinity"})
    return dict(await cur.fetchall())


async def by_day(
    cur: AsyncCursor[Any],
    ledger_id: int,
    *,
    first: datetime,
    last: datetime,
    now: datetime,
    known: datetime | None = None,
) -> list[Day]:
    """Return the figures of every day from `first` to `last`, both included and both the beginning of a day in UTC.

    The states on days ahead are those that codes will have if nothing more happens. With `known`, the figures are those
    that were known at the end of that day.
    """
    counts = await _at_end_of(cur, ledger_id, first - timedelta(days=1), known)
    asked = {"ledger_id": ledger_id, "first": first, "last": last, "known": known or "infinity"}
    await cur.execute(_BY_DAY, asked)
    found: dict[datetime, Mapping[str, int]] = dict(await cur.fetchall())
    has_today = known is None and first <= day_of(now) <= last
    today = await _later_today(cur, ledger_id, now) if has_today else {}
    days = []
    for number in range((last - first).days + 1):
        moment = first + timedelta(days=number)
        day = _day(moment, counts, found.get(moment, {}))
        counts = dict(day.codes)
        if has_today and moment == day_of(now):
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


async def _at_end_of(
    cur: AsyncCursor[Any], ledger_id: int, day: datetime, known: datetime | None = None
) -> dict[State, int]:
    await cur.execute(_SUMS, {"ledger_id": ledger_id, "figure": "state", "last": day, "known": known or "infinity"})
    counts: dict[State, int] = dict.fromkeys(COUNTED_STATES, 0)
    return counts | dict(await cur.fetchall())


async def _later_today(cur: AsyncCursor[Any], ledger_id: int, now: datetime) -> Counter[State]:
    """Return by how much the number of codes in each state changes between the end of the day and now, in that order.

    Codes that expire or are superseded later today are still in their present state.
    """
    midnight = day_of(now) + timedelta(days=1)
    expiring = await _between(cur, _ENDING_BETWEEN, ledger_id, now, midnight)
    superseded = await _between(cur, _SUPERSEDED_BETWEEN, ledger_id, now, midnight)
    changes = Counter(expiring)
    changes.update(superseded)
    changes["expired"] -= sum(expiring.values())
    changes["superseded"] -= sum(superseded.values())
    return changes


async def _between(
    cur: AsyncCursor[Any], query: LiteralString, ledger_id: int, after: datetime, before: datetime
) -> dict[State, int]:
    await cur.execute(query, {"ledger_id": ledger_id, "after": after, "before": before})
    return dict(await cur.fetchall())


def _states_now(counts: Mapping[State, int], changes: Mapping[State, int]) -> dict[State, int]:
    return {state: count + changes.get(state, 0) for state, count in counts.items()}
