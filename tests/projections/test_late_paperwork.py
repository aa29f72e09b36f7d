"""A backlog recorded in any order: the views come to what happened, as they do where each fact is recorded in time.

What happened is told by the model of `tests.late_paperwork`, which shares no code with the product. Most of the views
are folded in memory here; what only their queries know is asked of a database, of a few backlogs.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from random import Random
from typing import Any, cast

import pytest
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st

from projections import advertisers, campaigns, codes, permissions, redemptions, shares, statistics
from projections import figures as by_month
from projections.campaigns import CampaignRow
from projections.code_timeline import bucket
from projections.engine.view import View
from projections.figures import MonthRow
from projections.statistics import CountRow
from tests import given
from tests.domain.test_late_paperwork import differing, in_time, late, moments_of
from tests.given import Story
from tests.late_paperwork import DAY, Fact, Slip, World, happenings, paperwork, state_of_slip, there, told
from tests.projections.conftest import Cursor, Followed
from tests.projections.memory_log import MemoryLog

# So many are enough for each of the queries' conditions to be missed if it is left out.
BACKLOGS = 30
# Those of each month that do not depend on when something was recorded, and that happen here.
MONTHLY = set(by_month.FIGURES) - {"recorded", "late", "very_late", "refused", "reveals"}
STOPPED = {
    "campaign_end": ("campaign_end", "campaign_end"),
    "ended": ("campaign_end", "campaign_end"),
    "code_expired": ("code_end", "window_end"),
    "code_revoked": ("code_end", "revocation"),
    "rights_ended": ("rights_end", "rights_end"),
}
VIEWS: tuple[View[Any], ...] = (
    *(codes.VIEW, statistics.VIEW, permissions.VIEW, campaigns.VIEW),
    *(redemptions.VIEW, shares.VIEW, advertisers.VIEW),
)


def rows(view: View[Any], story: Story) -> tuple[list[Any], dict[type, list[Any]]]:
    """Return the rows that a view makes of a whole ledger, and those of its further tables."""
    # A ledger that is read from its beginning needs no row that stands, and so no database.
    changes = given.done(view.fold(cast("Any", None), [(1, recorded) for recorded in story.ledger.events]))
    return list(changes.created), {t.row: list(t.merged(changes.secondary[t.row])) for t in view.secondary}


def viewed(story: Story, now: datetime) -> dict[Any, Any]:
    """Return what the views hold."""
    found: dict[Any, Any] = {}
    for row in rows(codes.VIEW, story)[0]:
        window = (row.starts_at, row.expires_at, row.rights_until, row.revoked_at, row.superseded_at)
        found["code", row.code_id.int] = (row.state(now), *window, row.brand_ids, row.advertiser_ids)
    for row in rows(permissions.VIEW, story)[0]:
        found["permission", row.creator_id] = (row.enabled, row.since)
    for row in cast("list[CampaignRow]", rows(campaigns.VIEW, story)[1][CampaignRow]):
        found["campaign", row.code_id.int, row.campaign_id] = (row.launched_at, row.stops_at, row.stop_reason)
    for row in rows(redemptions.VIEW, story)[0]:
        found["redemption", row.code_id.int, row.advertiser_id] = (row.refused, row.at)
    for row in cast("list[CountRow]", rows(statistics.VIEW, story)[1][CountRow]):
        key = ("figure", row.figure, row.label, row.day)
        found[key] = found.get(key, 0) + row.count
    for month in cast("list[MonthRow]", rows(by_month.VIEW, story)[1][MonthRow]):
        for figure in MONTHLY:
            # Windows are counted by the model for the whole ledger alone.
            if (count := getattr(month, figure)) and (figure, month.kind) != ("ended", "creator"):
                found["month", figure, month.kind, month.party_id, month.month] = count
    return {key: value for key, value in found.items() if key[0] != "figure" or value}


def happened(facts: list[Fact], now: datetime) -> dict[Any, Any]:
    """Return the same from the model."""
    world, found = told(facts, now), dict[Any, Any]()
    for number, slip in world.slips.items():
        brands = {brand for brand, _ in slip.shared}
        accounts = {account for _, account in slip.shared if account is not None} | slip.redeemed.keys()
        window = (slip.starts, slip.ends, slip.rights, slip.revoked, slip.replaced)
        found["code", number] = (state_of_slip(slip, world), *window, brands, accounts)
        for account, at in slip.redeemed.items():
            found["redemption", number, account] = (None, at)
    for creator, enabled in world.permission.items():
        found["permission", creator] = (enabled, world.permitted_since[creator])
    for number, slip in told(facts, facts[-1].at + 4_000 * DAY).slips.items():
        for name, ad in slip.ads.items():
            assert ad.stopped is not None
            found["campaign", number, name] = (ad.launched, ad.stopped[0], STOPPED[ad.stopped[1]][0])
    daily = figures(facts)
    found |= {("month", *key): count for key, count in monthly(facts, daily).items() if count}
    return found | {("figure", *key): count for key, count in daily.items() if count}


def figures(facts: list[Fact]) -> Counter[tuple[str, str, datetime]]:
    """Count what happened day by day: what befell each code at each moment at which anything may have."""
    found: Counter[tuple[str, str, datetime]] = Counter()
    end = facts[-1].at + 4_000 * DAY
    before: dict[int, str] = {}
    for moment in sorted(turns(facts)):
        world, slips = there(facts, moment)
        for slip in slips:
            was, now = before.get(slip.number), state_of_slip(slip, world)
            if was is None:
                found["issued", "", day(moment)] += 1
            elif was != now:
                found["state", was, day(moment)] -= 1
                found["ended", "", day(moment)] += now == "expired"
            if was != now:
                found["state", now, day(moment)] += 1
            before[slip.number] = now
    for slip in told(facts, end).slips.values():
        found.update(("shares", "", day(at)) for at in slip.shared.values())
        found.update(("redemptions", "", day(at)) for at in slip.redeemed.values())
        found.update(("launched", "", day(ad.launched)) for ad in slip.ads.values())
        for ad in slip.ads.values():
            assert ad.stopped is not None
            found["stopped", STOPPED[ad.stopped[1]][1], day(ad.stopped[0])] += 1
        if slip.redeemed:
            first = min(slip.redeemed.values())
            found["redeemed_after", bucket(first - slip.begun()), day(first)] += 1
    return found


class Monthly(Counter[tuple[str, str, str, datetime]]):
    """Figures by name, kind of party, party and month."""

    def add(self, figure: str, at: datetime, *parties: tuple[str, str], count: int = 1) -> None:
        for kind, party_id in parties:
            self[figure, kind, party_id, day(at).replace(day=1)] += count


def monthly(facts: list[Fact], daily: Counter[tuple[str, str, datetime]]) -> Monthly:
    """Count what happened month by month, for the ledger and for each party."""
    found = Monthly()
    world = told(facts, facts[-1].at + 4_000 * DAY)
    for (figure, _, at), ended in daily.items():
        if figure == "ended":
            found.add("ended", at, ("ledger", ""), count=ended)
    for fact in facts:
        if fact.kind == "extend":
            found.add("extended", fact.at, ("ledger", ""), ("creator", world.slips[fact.code or 0].creator))
    for slip in world.slips.values():
        whole = (("ledger", ""), ("creator", slip.creator))
        found.add("issued", slip.begun(), *whole)
        if slip.revoked is not None:
            found.add("revoked", slip.revoked, *whole)
        _add_shares(found, slip, whole)
        _add_redemptions(found, slip, whole)
        for ad in slip.ads.values():
            assert ad.stopped is not None
            found.add("launched", ad.launched, *whole, ("advertiser", ad.advertiser))
            beyond = STOPPED[ad.stopped[1]][0] == "code_end"
            found.add("beyond", ad.launched, *whole, ("advertiser", ad.advertiser), count=int(beyond))
    return found


def _add_shares(found: Monthly, slip: Slip, whole: tuple[tuple[str, str], ...]) -> None:
    given_to: dict[tuple[str, str], list[datetime]] = {}
    for (brand, account), at in slip.shared.items():
        parties = [*whole, ("brand", brand), *([] if account is None else [("advertiser", account)])]
        found.add("shares", at, *parties)
        for party in parties:
            given_to.setdefault(party, []).append(at)
    for party, moments in given_to.items():
        found.add("codes_shared", min(moments), party)


def _add_redemptions(found: Monthly, slip: Slip, whole: tuple[tuple[str, str], ...]) -> None:
    for account, at in slip.redeemed.items():
        found.add("redemptions", at, *whole, ("advertiser", account))
    first = [(min(slip.redeemed.values()), party) for party in whole if slip.redeemed]
    for at, party in (*first, *((at, ("advertiser", account)) for account, at in slip.redeemed.items())):
        found.add("codes_redeemed", at, party)
        found.add("redeemed_after_s", at, party, count=(at - slip.begun()) // timedelta(seconds=1))


def turns(facts: list[Fact]) -> set[datetime]:
    """Return every moment at which the state of a code may change."""
    found = {fact.at for fact in facts} | {fact.facts["ends"] for fact in facts if "ends" in fact.facts}
    return found | {fact.facts["starts"] for fact in facts if fact.kind == "generate" and fact.facts["starts"]}


def day(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)


@settings(max_examples=40, deadline=None)
@for_all(paperwork, st.integers(0, 2**32))
def test_views_of_a_backlog_come_to_what_happened_in_whichever_order_it_is_recorded(
    facts: list[Fact], seed: int
) -> None:
    random = Random(seed)
    now = facts[-1].at + random.choice([1, 20, 200]) * DAY
    expected = happened(facts, now)
    assert differing(viewed(in_time(facts, random), now), expected) == {}
    # A window that could not be recorded as a whole was recorded with one extension more.
    found = viewed(late(facts, now, random), now)
    assert differing(*(_without_extensions(one) for one in (found, expected))) == {}


def _without_extensions(found: dict[Any, Any]) -> dict[Any, Any]:
    return {key: value for key, value in found.items() if key[:2] != ("month", "extended")}


def live(slip: Slip, world: World, at: datetime) -> bool:
    """Tell whether a code was live, also one that its creator had not yet."""
    return slip.open(world.now) if slip.number in world.slips else slip.starts <= at


@pytest.mark.long("many lives of codes are recorded late, and every view is asked about them")
async def test_queries_of_backlogs_views_answer_what_happened(follow: Followed, worker: Cursor) -> None:
    backlogs = [happenings(Random(seed), 30) for seed in range(BACKLOGS)]
    now = max(facts[-1].at for facts in backlogs) + 3 * DAY + timedelta(hours=5)
    stories = [
        story for facts in backlogs for story in (in_time(facts, Random(1)), late(facts, now, Random(len(facts))))
    ]
    log = MemoryLog(*stories)
    for view in VIEWS:
        await follow(view, log, page_events=500)
    for ledger_id, upto in log.heads.items():
        facts = backlogs[(ledger_id - 1) // 2]
        moments = [*moments_of(facts, Random(ledger_id)), now]
        found, expected = await answered(worker, ledger_id, upto, moments, now), asked(facts, moments, now)
        assert (ledger_id, differing(found, expected)) == (ledger_id, {})


def asked(facts: list[Fact], moments: list[datetime], now: datetime) -> dict[Any, Any]:
    """Return from the model what the queries are to answer."""
    expected: dict[Any, Any] = {}
    for at in moments:
        world, slips = there(facts, at)
        expected["live", at] = {slip.number for slip in slips if live(slip, world, at)}
    for number, slip in told(facts, now).slips.items():
        for account, at in slip.redeemed.items():
            expected["redemption", number, account] = (at, slip.was_shared[account])
    for at in {day(moment) for moment in moments if moment < day(now)}:
        world, slips = there(facts, at + DAY - timedelta(microseconds=1))
        expected["day", at] = dict(Counter(state_of_slip(slip, world) for slip in slips))
    world, slips = there(facts, now)
    return expected | {"now": dict(Counter(state_of_slip(slip, world) for slip in slips))}


async def answered(cur: Cursor, ledger_id: int, upto: int, moments: list[datetime], now: datetime) -> dict[Any, Any]:
    """Return the same from the views."""
    found: dict[Any, Any] = {}
    for at in moments:
        listed = await codes.search(cur, ledger_id, now=now, limit=99, ending_after=(at, 2**62), live_at=at)
        found["live", at] = {row.code_id.int for row in listed}
    for attempt in await redemptions.search(cur, ledger_id, upto=upto, limit=99, refused=False):
        row = attempt.row
        found["redemption", row.code_id.int, row.advertiser_id] = (row.at, row.shared_with_advertiser)
    days = {day(moment) for moment in moments if moment < day(now)}
    for one in await statistics.by_day(cur, ledger_id, first=min(days), last=max(days), now=now):
        if one.day in days:
            found["day", one.day] = {state: count for state, count in one.codes.items() if count}
    by_state = await statistics.count_by_state(cur, ledger_id, now)
    return found | {"now": {state: count for state, count in by_state.items() if count}}
