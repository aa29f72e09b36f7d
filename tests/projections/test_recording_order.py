"""The same facts recorded in another order: every campaign stops when it did, wherever that is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, cast

import pytest
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st

from domain.authorization import verdict
from projections import campaigns, statistics
from projections.campaigns import CampaignRow
from projections.code_timeline import day_of
from projections.engine.view import View
from projections.statistics import CountRow
from tests import given
from tests.given import ADVERTISER, CAMPAIGN, NOW, Story

DAY = timedelta(days=1)
WINDOW_DAYS = 30
BEGUN = NOW + 40 * DAY


@dataclass(frozen=True)
class Extension:
    """The window's end is moved at `at` to `end`; that is recorded at `recorded_at`."""

    at: datetime
    end: datetime
    recorded_at: datetime


@dataclass(frozen=True)
class Facts:
    """What happened to a code: by campaign its launch, its own end, and when the brand ended it; and the extensions."""

    campaigns: dict[str, tuple[datetime, datetime, datetime | None]]
    extensions: list[Extension]

    def recorded(self, order: list[tuple[str, str]]) -> Story:
        """Tell them in this order, late; extensions as they follow each other, and an end after its launch."""
        story, extensions = given.redeemed(), iter(self.extensions)
        story.clock.now = BEGUN
        for kind, name in _ends_after_launches(order):
            if kind == "extension":
                extension = next(extensions)
                story.clock.now = extension.recorded_at
                story.when(given.extend(expires_at=extension.end), effective_at=extension.at)
            elif kind == "expiry":
                story.when(given.record_due())
            elif kind == "launch":
                launched, own_end, _ = self.campaigns[name]
                campaign = replace(CAMPAIGN, campaign_id=name, starts_at=launched, ends_at=own_end)
                story.when(given.launch(campaign), effective_at=launched)
            else:
                story.when(given.end(name), effective_at=self.campaigns[name][2])
        return story

    def stop(self, name: str, story: Story) -> tuple[datetime, str]:
        """Return when a campaign stopped and why, by what the question says of the code's window."""
        launched, own_end, ended = self.campaigns[name]
        ends = [NOW + WINDOW_DAYS * DAY, *(extension.end for extension in self.extensions)]
        lapse = min(at for at in ends if verdict([story.stream()], {}, ADVERTISER, at).reason == "expired")
        assert launched < lapse
        ways = [(own_end, "campaign_end"), (lapse, "window_end")]
        return min([*ways, *([] if ended is None else [(ended, "campaign_end")])])


def _ends_after_launches(order: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    early: set[str] = set()
    for kind, name in order:
        if kind == "end" and ("launch", name) in order[order.index((kind, name)) :]:
            early.add(name)
            continue
        yield kind, name
        if kind == "launch" and name in early:
            yield "end", name


def moments(first: int, last: int) -> st.SearchStrategy[datetime]:
    """Give half hours, so that nothing happens at the very moment at which a window ends."""
    return st.integers(first * 24, last * 24 - 1).map(lambda hours: NOW + timedelta(hours=hours, minutes=30))


@st.composite
def facts(draw: st.DrawFn) -> Facts:
    told = {}
    for number in range(draw(st.integers(1, 3))):
        launched = draw(moments(0, WINDOW_DAYS))
        own_end = launched + draw(st.integers(1, 150)) * DAY
        ended = launched + draw(st.integers(1, 29)) * DAY
        within = ended < min(own_end, NOW + WINDOW_DAYS * DAY) and draw(st.booleans())
        told[f"campaign-{number}"] = (launched, own_end, ended if within else None)
    ats, ends, recorded = [], [], []
    end, now = NOW + WINDOW_DAYS * DAY, BEGUN
    for _ in range(draw(st.integers(0, 3))):
        now += draw(st.integers(0, 40)) * DAY
        end = max(end, now) + draw(st.integers(1, 40)) * DAY
        ats.append(draw(moments(0, (now - NOW).days)))
        ends.append(end)
        recorded.append(now)
    # Each moves the end that the one before it set, whichever is recorded first; no two take effect at once.
    apart = [at + timedelta(hours=number) for number, at in enumerate(sorted(ats))]
    happened = draw(st.permutations(list(zip(apart, ends, strict=True))))
    extensions: list[Extension] = []
    for (at, end), now in zip(happened, recorded, strict=True):
        before = extensions[-1].recorded_at if extensions else now
        extensions.append(Extension(at, end, max(before, now, at + DAY)))
    return Facts(told, extensions)


def orders(of: Facts) -> st.SearchStrategy[list[tuple[str, str]]]:
    steps = [("launch", name) for name in of.campaigns]
    steps += [("end", name) for name, (_, _, ended) in of.campaigns.items() if ended is not None]
    return st.permutations([*steps, *[("expiry", "")] * 2, *[("extension", "")] * len(of.extensions)])


def rows(view: View[Any], story: Story) -> list[Any]:
    """Return the further rows that a view makes of the code's stream, in the order in which it makes them."""
    # A stream that is read from its beginning needs no row that stands, and so no database.
    changes = given.done(view.fold(cast("Any", None), [(1, recorded) for recorded in story.stream()]))
    return [row for table in view.secondary for row in changes.secondary[table.row]]


@pytest.mark.long("Hypothesis records the same facts in many orders")
@settings(max_examples=200, deadline=None)
@for_all(st.data())
def test_the_same_facts_recorded_in_another_order_stop_campaigns_at_the_same_moment(data: st.DataObject) -> None:
    of = data.draw(facts())
    for story in [of.recorded(data.draw(orders(of))) for _ in range(2)]:
        expected = {name: of.stop(name, story) for name in of.campaigns}
        code = story.code()
        assert {name: code.stops_at(campaign) for name, campaign in code.campaigns.items()} == {
            name: stops_at for name, (stops_at, _) in expected.items()
        }

        listed: dict[str, CampaignRow] = {row.campaign_id: row for row in rows(campaigns.VIEW, story)}
        assert {name: (row.stops_at, row.stop_reason) for name, row in listed.items()} == {
            name: (stops_at, "code_end" if figure == "window_end" else figure)
            for name, (stops_at, figure) in expected.items()
        }

        counted: Counter[tuple[str, datetime]] = Counter()
        for row in cast("list[CountRow]", rows(statistics.VIEW, story)):
            if row.figure == "stopped":
                counted[row.label, row.day] += row.count
        assert +counted == Counter((figure, day_of(stops_at)) for stops_at, figure in expected.values())
