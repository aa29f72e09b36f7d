"""The view of figures: what each month adds up to, for whom, whatever was recorded late."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from projections import advertisers, campaigns, figure_sums, figures
from projections.figure_sums import Figures, Months, Whose
from projections.figures import MonthRow
from tests import given
from tests.given import ADVERTISER, BRAND, CAMPAIGN, CREATOR, NOW, OTHER_CODE, OTHER_SECRET, VIDEO, Story
from tests.projections.conftest import Cursor, Followed
from tests.projections.memory_log import MemoryLog

DAY = timedelta(days=1)
BEGINNING = figures.month_of(NOW)
YEAR = Months(datetime(NOW.year, 1, 1, tzinfo=UTC), datetime(NOW.year + 1, 1, 1, tzinfo=UTC))
THIS = f"{NOW:%Y-%m}"


async def followed(follow: Followed, *stories: Story) -> None:
    for view in (figures.VIEW, advertisers.VIEW, campaigns.VIEW):
        await follow(view, MemoryLog(*stories))


def counted(found: Figures) -> dict[str, int]:
    """Return the figures that are not 0."""
    return {name: count for name, count in found.counts.items() if count}


async def by_party(cur: Cursor, whose: Whose, **page: Any) -> dict[str, dict[str, int]]:
    found = await figure_sums.by_party(cur, 1, whose, YEAR, **{"limit": 100} | page)
    return {one.key: counted(one) for one in found}


async def by_month(cur: Cursor, whose: Whose = Whose()) -> dict[str, dict[str, int]]:  # noqa: B008 - it is frozen
    found = await figure_sums.by_month(cur, 1, whose, YEAR)
    return {one.key: counts for one in found if (counts := counted(one))}


async def test_a_codes_life_is_counted_for_all_whom_it_concerns(follow: Followed, api: Cursor) -> None:
    story = given.after(given.permitted(), given.generate(secret_given=True))
    story.later(hours=1).when(given.share())
    story.later(hours=1).when(given.redeem())
    story.when(given.reveal())
    story.when(given.launch())
    story.when(given.extend(days=60))
    story.when(given.revoke(force=True))
    assert story.outcome(given.redeem(advertiser_id="account-2")) == "RedemptionRefused code_revoked"
    await followed(follow, story)
    of_code = {"issued": 1, "recorded": 1, "extended": 1, "reveals": 1, "revoked": 1}
    shared = {"shares": 1, "codes_shared": 1}
    used = {"redemptions": 1, "codes_redeemed": 1, "redeemed_after_s": 7200, "launched": 1, "beyond": 1}
    everything = of_code | shared | used | {"refused": 1}
    assert await by_party(api, Whose("creator")) == {CREATOR: everything}
    assert await by_party(api, Whose("video")) == {VIDEO: everything}
    assert await by_month(api) == {THIS: everything}
    assert await by_party(api, Whose("advertiser")) == {ADVERTISER: shared | used, "account-2": {"refused": 1}}
    assert await by_party(api, Whose("brand")) == {BRAND: shared}
    assert counted(await figure_sums.in_all(api, 1, Whose(), YEAR)) == everything
    for whose in (Whose(), Whose("creator"), Whose("video"), Whose("advertiser")):
        assert (await figure_sums.in_all(api, 1, whose, YEAR)).spend == {CAMPAIGN.currency: 50000}
    (video,) = await figure_sums.by_party(api, 1, Whose("video"), YEAR, limit=9)
    assert video.spend == {CAMPAIGN.currency: 50000}


async def test_a_brand_has_the_figures_of_the_accounts_that_are_its_own_by_what_is_known_now(
    follow: Followed, api: Cursor
) -> None:
    story = given.running()
    story.when(given.advertiser(brand_id="brand-2"))
    await followed(follow, story)
    used = {"redemptions": 1, "codes_redeemed": 1, "launched": 1, "beyond": 1}
    assert await by_party(api, Whose("brand")) == {BRAND: {"shares": 1, "codes_shared": 1}, "brand-2": used}
    story.later(days=1).when(given.advertiser(brand_id=BRAND))
    await followed(follow, story)
    assert await by_party(api, Whose("brand")) == {BRAND: {"shares": 1, "codes_shared": 1} | used}
    assert await by_party(api, Whose("brand", accounts={"another"})) == {BRAND: {"shares": 1, "codes_shared": 1}}
    ours = Whose("brand", ids=(), accounts={ADVERTISER}, owned=False)
    assert await by_month(api, ours) == {THIS: used}
    assert (await figure_sums.in_all(api, 1, Whose("brand"), YEAR)).spend == {CAMPAIGN.currency: 50000}


async def test_what_is_recorded_late_counts_in_the_month_in_which_it_took_effect(follow: Followed, api: Cursor) -> None:
    story = given.generated(days=365).later(days=70)
    story.when(given.redeem(), effective_at=NOW + 35 * DAY)
    story.when(given.share(), effective_at=NOW + DAY)
    after = {"redemptions": 1, "codes_redeemed": 1, "redeemed_after_s": 35 * 86400}
    await followed(follow, story)
    late = f"{NOW + 35 * DAY:%Y-%m}"
    shared = {"shares": 1, "codes_shared": 1, "late": 1, "very_late": 1}
    assert await by_month(api) == {THIS: {"issued": 1} | shared, late: after | {"late": 1, "very_late": 1}}
    story.when(given.redeem(), effective_at=NOW + 2 * DAY)  # it was earlier than was known
    await followed(follow, story)
    assert await by_month(api) == {
        THIS: {"issued": 1, "redemptions": 1, "codes_redeemed": 1, "redeemed_after_s": 2 * 86400}
        | {"shares": 1, "codes_shared": 1, "late": 2, "very_late": 2},
        late: {"late": 1, "very_late": 1},
    }


async def test_windows_end_in_their_own_month_before_anyone_records_it_unless_they_are_moved_or_revoked(
    follow: Followed, api: Cursor
) -> None:
    story = given.generated()
    await followed(follow, story)
    end, later = f"{NOW + 30 * DAY:%Y-%m}", f"{NOW + 90 * DAY:%Y-%m}"
    assert (await by_month(api))[end]["ended"] == 1
    story.when(given.extend(expires_at=NOW + 90 * DAY))
    await followed(follow, story)
    found = await by_month(api)
    assert ("ended" in found.get(end, {}), found[later]["ended"]) == (False, 1)
    story.when(given.revoke())
    await followed(follow, story)
    assert all("ended" not in counts for counts in (await by_month(api)).values())


async def test_a_campaign_that_outlives_its_code_is_beyond_it_until_the_code_is_extended(
    follow: Followed, api: Cursor
) -> None:
    story = given.running()
    await followed(follow, story)
    assert (await by_month(api))[THIS]["beyond"] == 1
    story.when(given.extend(days=365))
    await followed(follow, story)
    assert "beyond" not in (await by_month(api))[THIS]


async def test_pages_follow_each_other_by_key_and_by_figure(follow: Followed, api: Cursor) -> None:
    story = Story()
    for number in range(1, 6):
        creator = f"creator-{number}"
        story.when(given.permission(creator_id=creator))
        for copy in range(1 + number % 3):
            name = UUID(int=number * 10 + copy)
            secret = type(OTHER_SECRET)(f"#secret+of+{number}+{copy}=")
            story.when(given.generate(name, creator_id=creator, video_id=f"video-{number}-{copy}", secret=secret))
    await followed(follow, story)
    for whose, sort in ((Whose("creator"), None), (Whose("creator"), "issued"), (Whose("video"), None)):
        whole = await figure_sums.by_party(api, 1, whose, YEAR, limit=100, sort=sort)
        pages: list[Figures] = []
        after = None
        while found := await figure_sums.by_party(api, 1, whose, YEAR, limit=2, sort=sort, after=after):
            pages += found
            after = (found[-1].counts[sort] if sort else 0, found[-1].key)
        assert [one.key for one in pages] == [one.key for one in whole]
        assert len(whole) == (5 if whose.by == "creator" else 11)
    whole = await figure_sums.by_party(api, 1, Whose("creator"), YEAR, limit=100, sort="issued")
    assert [one.counts["issued"] for one in whole] == [3, 3, 2, 2, 1]
    assert list(await by_party(api, Whose("video", creator_ids={"creator-1"}))) == ["video-1-0", "video-1-1"]


async def test_spend_is_at_risk_where_a_code_ends_before_its_running_campaign(follow: Followed, api: Cursor) -> None:
    story = given.running()
    story.when(given.generate(OTHER_CODE, video_id="video-2", secret=OTHER_SECRET, days=60))
    story.when(given.redeem(OTHER_SECRET, advertiser_id="account-2"))
    second = replace(CAMPAIGN, campaign_id="second", advertiser_id="account-2", amount="70.50", currency="EUR")
    story.when(given.launch(replace(second, ends_at=NOW + 90 * DAY), OTHER_CODE))
    story.when(given.launch(replace(second, campaign_id="third", ends_at=NOW + 5 * DAY), OTHER_CODE))
    story.when(given.advertiser("account-2", "brand-2"))
    await followed(follow, story)

    async def at_risk(by: Any, days: int, **more: Any) -> list[tuple[str, int, dict[str, str]]]:
        found = await figure_sums.at_risk(api, 1, by, now=NOW, until=NOW + days * DAY, limit=10, **more)
        return [(one.key, one.campaigns, dict(one.spend)) for one in found]

    usd, eur = {CAMPAIGN.currency: "500.00"}, {"EUR": "70.50"}
    assert await at_risk("creator", 31) == [(CREATOR, 1, usd)]
    assert await at_risk("creator", 61) == [(CREATOR, 2, usd | eur)]
    assert await at_risk("video", 61) == [(VIDEO, 1, usd), ("video-2", 1, eur)]
    assert await at_risk("brand", 61) == [("brand-2", 1, eur)]
    assert await at_risk("advertiser", 61, accounts={"account-2"}) == [("account-2", 1, eur)]
    assert await at_risk("advertiser", 61, after=(NOW + 30 * DAY, ADVERTISER)) == [("account-2", 1, eur)]
    assert await at_risk("advertiser", 61, together=True) == [("", 2, usd | eur)]
    assert await at_risk("creator", 30) == []


async def test_another_ledgers_figures_are_not_counted(follow: Followed, api: Cursor) -> None:
    await followed(follow, given.permitted(), given.running())
    assert await by_month(api) == {}
    assert await by_party(api, Whose("video")) == {}


def test_every_figure_has_a_column() -> None:
    assert list(MonthRow._fields)[4:] == list(figures.FIGURES)
