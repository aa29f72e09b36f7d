"""The view of redemptions: who entered a code, and who was turned away."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from psycopg.sql import SQL, Composed

from domain.advertiser import Advertiser
from domain.authorization import verdict
from domain.recorded import RecordedEvent
from projections import advertisers, codes, redemptions, shares
from projections.code_facts import WithCodeFacts
from projections.engine import checkpoints
from projections.redemptions import AttemptRow
from tests import given
from tests.given import ADVERTISER, CODE, CREATOR, NOW, OTHER_CODE, VIDEO, Story
from tests.projections.conftest import Cursor, Followed
from tests.projections.memory_log import MemoryLog

HOUR = timedelta(hours=1)
VIEWS = (redemptions.VIEW, codes.VIEW, shares.VIEW, advertisers.VIEW)


def attempts() -> Story:
    """Two redemptions; after the revocation one account is refused in two different hours, another in the second."""
    story = given.after(given.redeemed(), given.redeem(advertiser_id="account-2")).later(hours=1)
    story.when(given.revoke())
    for hours, advertiser in ((0, "late"), (1, "late"), (0, "later"), (0, "late")):
        story.later(hours=hours).outcome(given.redeem(advertiser_id=advertiser))
    return story


async def followed(story: Story, follow: Followed) -> None:
    for each in VIEWS:
        await follow(each, MemoryLog(story))


async def found(cur: Cursor, **asked: Any) -> list[WithCodeFacts[AttemptRow]]:
    upto = await checkpoints.position_reached(cur, 1, *(view.name for view in VIEWS))
    return await redemptions.search(cur, 1, upto=upto, **{"limit": 100, **asked})


async def test_every_attempt_leaves_a_row(follow: Followed, api: Cursor) -> None:
    story = attempts()
    await followed(story, follow)
    stream = story.stream()[0].creator_stream
    assert [one.row for one in await found(api)] == [
        AttemptRow(1, "9", 9, CODE, stream, "later", "code_revoked", None, NOW + 2 * HOUR, NOW + 2 * HOUR),
        AttemptRow(1, "8", 8, CODE, stream, "late", "code_revoked", None, NOW + 2 * HOUR, NOW + 2 * HOUR),
        AttemptRow(1, "7", 7, CODE, stream, "late", "code_revoked", None, NOW + HOUR, NOW + HOUR),
        AttemptRow(1, f"{CODE} account-2", 5, CODE, stream, "account-2", None, False, NOW, NOW),
        AttemptRow(1, f"{CODE} {ADVERTISER}", 4, CODE, stream, ADVERTISER, None, True, NOW, NOW),
    ]
    assert {(one.creator_id, one.video_id) for one in await found(api)} == {(CREATOR, VIDEO)}


FILTERS: list[tuple[dict[str, Any], list[int]]] = [
    ({}, [9, 8, 7, 5, 4]),
    ({"refused": True}, [9, 8, 7]),
    ({"refused": False}, [5, 4]),
    ({"reason": "code_revoked"}, [9, 8, 7]),
    ({"reason": "code_expired"}, []),
    ({"shared": False}, [5]),
    ({"shared": True}, [4]),
    ({"code_id": OTHER_CODE}, []),
    ({"advertiser_id": "late"}, [8, 7]),
    ({"creator_ids": [CREATOR], "refused": False}, [5, 4]),
    ({"creator_ids": ["nobody"]}, []),
    ({"video_id": VIDEO, "advertiser_id": "later"}, [9]),
    ({"since": NOW + 2 * HOUR}, [9, 8]),
    ({"until": NOW + 2 * HOUR}, [7, 5, 4]),
    ({"visible_advertisers": ["late", "account-2"]}, [8, 7, 5]),
    ({"visible_advertisers": []}, []),
]


async def test_attempts_are_found_by_every_filter_the_latest_first(follow: Followed, api: Cursor) -> None:
    await followed(attempts(), follow)
    answers = [(filters, [one.row.position for one in await found(api, **filters)]) for filters, _ in FILTERS]
    assert answers == FILTERS


async def shared_by_account(cur: Cursor, **asked: Any) -> dict[str, bool | None]:
    return {one.row.advertiser_id: one.row.shared_with_advertiser for one in await found(cur, **asked)}


async def test_whether_a_code_was_shared_is_told_by_the_time_of_the_redemption_by_all_that_is_known_now(
    follow: Followed, api: Cursor
) -> None:
    story = given.after(given.generated(), given.share(advertiser_id=None), given.advertiser("stranger", "brand-2"))
    story.later(days=1)
    story.when(given.redeem(advertiser_id="stranger"))
    for account in ("named", "owned", "others", "owned-later", "unsaid"):
        story.when(given.redeem(advertiser_id=account))
    story.later(days=5)
    story.when(given.share(brand_id="brand-3", advertiser_id="named"), effective_at=NOW + timedelta(hours=12))
    story.when(given.advertiser("owned"), effective_at=NOW + timedelta(hours=12))
    story.when(given.advertiser("others", "brand-2"), effective_at=NOW)
    story.when(given.advertiser("owned-later"), effective_at=NOW + timedelta(days=2))
    await followed(story, follow)

    told = {"named": True, "owned": True, "others": False, "owned-later": None, "unsaid": None, "stranger": False}
    assert await shared_by_account(api) == told
    assert await shared_by_account(api, shared=True) == {"named": True, "owned": True}
    never = {"others": False, "stranger": False}
    assert await shared_by_account(api, shared=False) == never, "what is not known is no false alarm"
    (first,) = await found(api, shared=False, limit=1)
    after = (first.row.at, first.row.position)
    others = await shared_by_account(api, shared=False, after=after)
    assert others.keys() == never.keys() - {first.row.advertiser_id}
    asked = {
        account: verdict([story.stream()], {}, account, story.clock(), advertiser_stream(story, account)).shared
        for account in told
    }
    assert asked == told


def advertiser_stream(story: Story, account: str) -> list[RecordedEvent]:
    of = [r for r in story.ledger.events if isinstance(r.event, Advertiser.Named)]
    return [r for r in of if r.event.advertiser_id == account]  # type: ignore[attr-defined]


async def test_a_redemption_that_is_recorded_again_because_it_was_earlier_is_one(follow: Followed, api: Cursor) -> None:
    story = given.after(given.generated().later(days=3), given.share(), given.redeem()).later(days=1)
    story.when(given.redeem(), effective_at=NOW + timedelta(days=2))
    await followed(story, follow)
    (one,) = await found(api)
    assert (one.row.at, one.row.position) == (NOW + timedelta(days=2), 5)
    assert one.row.shared_with_advertiser is False, "it was shared on the day after"


@pytest.mark.parametrize("filters", [{}, {"refused": True}, {"visible_advertisers": ["late", "later", "account-2"]}])
async def test_pages_of_attempts_together_are_the_whole(filters: dict[str, Any], follow: Followed, api: Cursor) -> None:
    await followed(attempts(), follow)
    whole, paged = await found(api, **filters), await found(api, limit=1, **filters)
    while following := await found(api, limit=1, after=(paged[-1].row.at, paged[-1].row.position), **filters):
        paged += following
    assert paged == whole


async def test_another_ledgers_attempts_are_hidden(follow: Followed, api: Cursor) -> None:
    for each in VIEWS:
        await follow(each, MemoryLog(given.permitted(), attempts()))
    assert await found(api) == []
    assert await redemptions.search(api, 2, upto=100, limit=10) == []


async def test_the_few_codes_that_were_never_shared_are_found_without_reading_the_others(
    follow: Followed, api: Cursor, worker: Cursor, monkeypatch: pytest.MonkeyPatch
) -> None:
    await followed(given.redeemed(), follow)
    fill = """
        INSERT INTO views.redemptions
        SELECT ledger_id, 'attempt ' || n, n, code_id, creator_stream, 'account-' || n, NULL,
            CASE WHEN n % 2 = 0 THEN true END, at, recorded_at
        FROM views.redemptions, generate_series(100, 5100) n
    """
    await worker.execute(fill.encode())
    # Most accounts are known, and of most redemptions it was known then that the code had been shared.
    owners = """
        INSERT INTO views.advertisers
        SELECT ledger_id, position, advertiser_id, 'brand-1', at FROM views.redemptions WHERE shared_with_advertiser
    """
    await worker.execute(owners.encode())
    await worker.execute(b"ANALYZE views.redemptions")
    await worker.execute(b"ANALYZE views.advertisers")
    explained: list[str] = []

    async def explain(cur: Cursor, query: Composed, parameters: Any) -> list[Any]:
        await cur.execute(SQL("EXPLAIN (ANALYZE) ") + query, parameters)
        explained.extend(line for (line,) in await cur.fetchall())
        return []

    monkeypatch.setattr(redemptions.REDEMPTIONS, "fetch_with", explain)
    await api.execute("SET enable_seqscan = off")
    await redemptions.search(api, 1, upto=10_000, limit=10, shared=False)
    plan = "\n".join(explained)
    assert "Index Scan Backward using redemptions_ledger_id_at_position" in plan
    assert "Rows Removed by Filter" not in plan
