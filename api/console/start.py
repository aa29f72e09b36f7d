"""The start page: where is what I hold, and what needs attention?

What needs attention is what the lists of the API say. Each count leads to the list that has exactly these rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

from api.console.visit import PEOPLE, Page
from api.console.wording import stated

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from starlette.responses import Response

    from api.console.visit import Visit
    from domain.values import Role

# What is counted of a list; beyond that it says "more than".
COUNTED: Final = 100
# Rows of a list that the page itself shows.
SHOWN: Final = 3
SOON_DAYS: Final = 7


@dataclass(frozen=True, slots=True)
class Concern:
    """Something that needs attention: a list of the API that had better be empty.

    Attributes:
        name: its address below `/v1/` and below `/`, and the name of its rows.
        one: what one row is.
        several: what several are.
        why: what it means, and what to do.
        none: what is said where there is none.
        roles: whom it concerns.

    """

    name: str
    query: Mapping[str, str]
    one: str
    several: str
    why: str
    none: str
    roles: frozenset[Role] = PEOPLE


def _concerns(now: datetime, role: Role) -> list[Concern]:
    # The end of a day, so that what is read and what a link leads to are the same all day.
    until = (now + timedelta(days=SOON_DAYS + 1)).replace(hour=0, minute=0, second=0, microsecond=0)
    return [
        Concern(
            "codes",
            {"order": "ending", "expires_before": stated(until)},
            "code ends within a week",
            "codes end within a week",
            "Extend it while ads still need it."
            if role == "creator"
            else "Ask the creator to extend it while ads still need it.",
            "No code ends within a week.",
        ),
        Concern(
            "campaigns",
            {"running": "true", "stop_reason": "code_end"},
            "campaign is longer than its code",
            "campaigns are longer than their codes",
            "It stops when the window of its code ends, before its planned end.",
            "No campaign is longer than its code.",
        ),
        Concern(
            "redemptions",
            {"shared": "false"},
            "code was redeemed by an account that it was not shared with",
            "codes were redeemed by accounts that they were not shared with",
            "Find out how the account got the code.",
            "No code was redeemed by an account that it was not shared with.",
        ),
        Concern(
            "redemptions",
            {"refused": "true"},
            "attempt to redeem a code was refused",
            "attempts to redeem a code were refused",
            "The reason says what to tell the brand.",
            "No attempt to redeem a code was refused.",
        ),
        Concern(
            "permissions",
            {"enabled": "false"},
            "creator has switched Ad Authorization off",
            "creators have switched Ad Authorization off",
            "Codes that are live stay live, but cannot be shared or extended.",
            "No creator has switched Ad Authorization off.",
            PEOPLE - {"brand"},
        ),
    ]


async def _show(visit: Visit) -> Response:
    concerns = [one for one in _concerns(visit.now, visit.role) if visit.role in one.roles]
    # One after another: all at once, they would take every core of the database from other requests.
    found = [await _found(visit, one) for one in concerns]
    return visit.page(
        "start.html",
        pressing=[one for one in found if one["count"]],
        calm=[one["concern"].none for one in found if not one["count"]],
    )


async def _found(visit: Visit, concern: Concern) -> dict[str, Any]:
    answer = (await visit.api.get(f"/v1/{concern.name}", **concern.query, limit=COUNTED)).json
    rows = answer[concern.name]
    return {
        "concern": concern,
        "count": len(rows),
        "is_more": answer["next"] is not None,
        "address": f"/{concern.name}?{urlencode(concern.query)}",
        "rows": rows[:SHOWN],
    }


PAGES: Final = (Page("/", _show, nav="Start"),)
