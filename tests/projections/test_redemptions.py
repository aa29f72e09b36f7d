"""The view of redemptions: who entered a code, and who was turned away."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from projections import redemptions
from projections.redemptions import AttemptRow, Refusals
from tests import given
from tests.given import ADVERTISER, CODE, NOW, Story
from tests.projections.conftest import Cursor, Followed
from tests.projections.memory_log import MemoryLog

HOUR = timedelta(hours=1)


def attempts() -> Story:
    """Two redemptions; after the revocation one account is refused in two different hours, another in the second."""
    story = given.after(given.redeemed(), given.redeem(advertiser_id="account-2")).later(hours=1)
    story.when(given.revoke())
    for hours, advertiser in ((0, "late"), (1, "late"), (0, "later"), (0, "late")):
        story.later(hours=hours).outcome(given.redeem(advertiser_id=advertiser))
    return story


async def test_every_attempt_leaves_a_row(follow: Followed, api: Cursor) -> None:
    await follow(redemptions.VIEW, MemoryLog(attempts()))
    assert await redemptions.of_code(api, 1, CODE) == [
        AttemptRow(1, 4, CODE, ADVERTISER, None, True, NOW),
        AttemptRow(1, 5, CODE, "account-2", None, False, NOW),
        AttemptRow(1, 7, CODE, "late", "code_revoked", None, NOW + HOUR),
        AttemptRow(1, 8, CODE, "late", "code_revoked", None, NOW + 2 * HOUR),
        AttemptRow(1, 9, CODE, "later", "code_revoked", None, NOW + 2 * HOUR),
    ]


FIRST = Refusals(NOW + HOUR, CODE, "late", "code_revoked", 1)
SECOND = Refusals(NOW + 2 * HOUR, CODE, "late", "code_revoked", 1)
OTHER = Refusals(NOW + 2 * HOUR, CODE, "later", "code_revoked", 1)


FILTERS: list[tuple[dict[str, Any], list[Refusals]]] = [
    ({}, [SECOND, OTHER, FIRST]),
    ({"code_id": given.OTHER_CODE}, []),
    ({"advertiser_id": "late"}, [SECOND, FIRST]),
    ({"since": NOW + 2 * HOUR}, [SECOND, OTHER]),
    ({"until": NOW + 2 * HOUR}, [FIRST]),
    ({"code_id": CODE, "advertiser_id": "later", "since": NOW, "until": NOW + 3 * HOUR}, [OTHER]),
]


async def test_refusals_are_counted_by_the_hour(follow: Followed, api: Cursor) -> None:
    await follow(redemptions.VIEW, MemoryLog(attempts()))
    found = [(filters, await redemptions.refusals(api, 1, limit=100, **filters)) for filters, _ in FILTERS]
    assert found == FILTERS


async def test_redemptions_and_refusals_are_counted_in_a_time(follow: Followed, api: Cursor) -> None:
    await follow(redemptions.VIEW, MemoryLog(attempts(), attempts()))
    assert await redemptions.count(api, 1) == 2
    assert await redemptions.count(api, 1, since=NOW + HOUR) == 0
    assert await redemptions.count_by_reason(api, 1) == {"code_revoked": 3}
    assert await redemptions.count_by_reason(api, 1, until=NOW + HOUR) == {}
