"""The view of shares: who was given which code, over which channel, and when."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from psycopg.sql import SQL

from projections import codes, shares
from projections.code_facts import WithCodeFacts
from projections.engine import checkpoints
from projections.engine.paging import ListQuery
from projections.shares import ShareRow
from tests import given
from tests.given import ADVERTISER, BRAND, CODE, CREATOR, NOW, OTHER_CODE, OTHER_SECRET, VIDEO, Story
from tests.projections.conftest import Cursor, Followed
from tests.projections.memory_log import MemoryLog

DAY = timedelta(days=1)


def told() -> Story:
    """Two creators' codes, shared on one day after another; the last share is recorded three days late.

    5 with brand-1 for advertiser-1 by dm; 6 with brand-2 by email; 7 the other's with brand-1 by text;
    8 the other's with brand-2 for advertiser-2, said to have been on the second day.
    """
    story = given.generated()
    story.when(given.permission(creator_id="other"))
    story.when(given.generate(OTHER_CODE, creator_id="other", video_id="video-2", secret=OTHER_SECRET))
    story.later(days=1).when(given.share())
    story.later(days=1).when(given.share(brand_id="brand-2", channel="email", advertiser_id=None))
    story.later(days=1).when(given.share(OTHER_CODE, channel="text", advertiser_id=None))
    story.later(days=2).when(
        given.share(OTHER_CODE, brand_id="brand-2", advertiser_id="advertiser-2"), effective_at=NOW + 2 * DAY
    )
    return story


async def followed(story: Story, follow: Followed) -> None:
    for each in (shares.VIEW, codes.VIEW):
        await follow(each, MemoryLog(story))


async def found(cur: Cursor, **asked: Any) -> list[WithCodeFacts[ShareRow]]:
    upto = await checkpoints.position_reached(cur, 1, shares.NAME, codes.NAME)
    return await shares.search(cur, 1, upto=upto, **{"limit": 100, **asked})


async def test_a_code_that_the_view_of_codes_skips_takes_no_others_place_on_a_page(
    follow: Followed, worker: Cursor, api: Cursor
) -> None:
    skip = """
        INSERT INTO view_skips (ledger_id, view, version, position, error, reason, skipped_by)
        VALUES (1, 'codes', %s, %s, 'cannot be read', 'nobody asks for it', 'ada')
    """
    await worker.executemany(skip, [(codes.VERSION, position) for position in (4, 7, 8)])
    await followed(told(), follow)
    assert [one.row.position for one in await found(api, limit=1)] == [6]
    assert [one.row.position for one in await found(api)] == [6, 5]


async def test_a_share_tells_whose_code_was_given_to_whom_how_and_when(follow: Followed, api: Cursor) -> None:
    story = given.shared().later(hours=2)
    story.when(given.share(brand_id="brand-2", advertiser_id=None, channel="email"), effective_at=NOW + DAY / 24)
    await followed(story, follow)
    stream = story.stream()[0].creator_stream
    first = ShareRow(1, f"{CODE} {BRAND} dm {ADVERTISER} ", 3, CODE, stream, BRAND, ADVERTISER, "dm", NOW, NOW)
    late = ShareRow(
        1, f"{CODE} brand-2 email  ", 4, CODE, stream, "brand-2", None, "email", NOW + DAY / 24, NOW + DAY / 12
    )
    assert await found(api) == [WithCodeFacts(late, CREATOR, VIDEO), WithCodeFacts(first, CREATOR, VIDEO)]


# Positions, the latest in effective time first.
FILTERS: list[tuple[dict[str, Any], list[int]]] = [
    ({}, [7, 8, 6, 5]),
    ({"code_id": CODE}, [6, 5]),
    ({"creator_ids": [CREATOR]}, [6, 5]),
    ({"creator_ids": ["other"]}, [7, 8]),
    ({"creator_ids": ["other", CREATOR]}, [7, 8, 6, 5]),
    ({"creator_ids": ["nobody"]}, []),
    ({"creator_ids": []}, []),
    ({"video_id": "video-2"}, [7, 8]),
    ({"video_id": "video-3"}, []),
    ({"video_id": "video-2", "creator_ids": [CREATOR]}, []),
    ({"brand_id": BRAND}, [7, 5]),
    ({"advertiser_id": ADVERTISER}, [5]),
    ({"channel": "email"}, [6]),
    ({"since": NOW + 2 * DAY}, [7, 8, 6]),
    ({"until": NOW + 2 * DAY}, [5]),
    ({"since": NOW + 2 * DAY, "until": NOW + 3 * DAY}, [8, 6]),
    ({"visible_brands": [BRAND], "visible_advertisers": []}, [7, 5]),
    ({"visible_brands": [BRAND], "visible_advertisers": [ADVERTISER]}, [7, 5]),
    ({"visible_brands": [], "visible_advertisers": ["advertiser-2"]}, [8]),
    ({"visible_brands": [BRAND], "visible_advertisers": ["advertiser-2"], "video_id": "video-2"}, [7, 8]),
    ({"visible_brands": [], "visible_advertisers": []}, []),
]


async def test_shares_are_found_by_every_filter_the_latest_first(follow: Followed, api: Cursor) -> None:
    await followed(told(), follow)
    answers = [(filters, [one.row.position for one in await found(api, **filters)]) for filters, _ in FILTERS]
    assert answers == FILTERS


@pytest.mark.parametrize(
    "filters", [{}, {"creator_ids": [CREATOR, "other"]}, {"visible_brands": [BRAND], "visible_advertisers": []}]
)
async def test_pages_of_shares_together_are_the_whole(filters: dict[str, Any], follow: Followed, api: Cursor) -> None:
    await followed(told(), follow)
    whole, paged = await found(api, **filters), await found(api, limit=1, **filters)
    while following := await found(api, limit=1, after=(paged[-1].row.shared_at, paged[-1].row.position), **filters):
        paged += following
    assert paged == whole


async def test_a_join_shows_what_both_views_have_read(follow: Followed, api: Cursor) -> None:
    story = given.generated()
    await follow(codes.VIEW, MemoryLog(story))
    story.when(given.share())
    await follow(shares.VIEW, MemoryLog(story))
    assert await found(api) == [], "the view of codes has not read the share"
    await follow(codes.VIEW, MemoryLog(story))
    assert [one.row.position for one in await found(api)] == [3]


async def test_another_ledgers_shares_are_hidden(follow: Followed, api: Cursor) -> None:
    for each in (shares.VIEW, codes.VIEW):
        await follow(each, MemoryLog(given.permitted(), given.shared()))
    assert await found(api) == []
    assert await shares.search(api, 2, upto=100, limit=10) == []


async def test_a_partys_page_comes_from_its_index_under_row_level_security(
    follow: Followed, api: Cursor, worker: Cursor
) -> None:
    await followed(told(), follow)
    fill = """
        INSERT INTO views.shares
        SELECT
            1, n::text, n, gen_random_uuid(), creator_stream, 'brand-' || n % 500, NULL, 'dm',
            shared_at + n * '1 s'::interval,
            recorded_at
        FROM views.shares, generate_series(100, 20100) n
        WHERE position = 5
    """
    await worker.execute(fill.encode())
    await worker.execute(b"ANALYZE views.shares")
    asked = ListQuery("shares", "shared_at", 1, 10, after=(NOW + 9 * DAY, 4))
    asked.one_of({"brand_id": ["brand-7"], "advertiser_id": ["account-7"]})
    await api.execute(SQL("EXPLAIN ") + asked.statement(), asked.parameters())
    plan = "\n".join(line for (line,) in await api.fetchall())
    assert "Seq Scan" not in plan
    assert "(brand_id = x.id) AND (ROW(shared_at," in plan
