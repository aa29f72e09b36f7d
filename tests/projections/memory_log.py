"""A log in memory, as views read one; what a view came to; and ledgers in which much happened."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from domain.errors import Refused, Unknown
from domain.recorded import Recorded
from domain.values import Sealed
from projections.folding import Unreadable
from projections.view import View
from tests import given
from tests.given import CAMPAIGN, Story

if TYPE_CHECKING:
    import psycopg

PATIENCE_S: Final = 10.0


class MemoryLog:
    """The events of stories, each the ledger of its number, counted from 1."""

    def __init__(self, *stories: Story) -> None:
        self.ledgers: dict[int, list[Recorded]] = {i: story.ledger.events for i, story in enumerate(stories, 1)}
        self.unreadable: set[tuple[int, int]] = set()
        self.pages = 0

    async def after(self, positions: Mapping[int, int], limit: int) -> Sequence[tuple[int, Recorded]]:
        self.pages += 1
        page: list[tuple[int, Recorded]] = []
        for ledger_id, events in sorted(self.ledgers.items()):
            for recorded in events[positions.get(ledger_id, 0) :][: limit - len(page)]:
                if (ledger_id, recorded.position) in self.unreadable:
                    if not page:
                        raise Unreadable(ledger_id, recorded.position, "its body is no JSON")
                    return page
                page.append((ledger_id, recorded))
        return page

    @property
    def heads(self) -> dict[int, int]:
        """The last position of each ledger."""
        return {ledger_id: len(events) for ledger_id, events in self.ledgers.items() if events}

    def events(self) -> list[tuple[int, Recorded]]:
        """Everything, in the order of pages."""
        return [(ledger_id, recorded) for ledger_id, events in self.ledgers.items() for recorded in events]


async def rows(cur: psycopg.AsyncCursor[Any], view: View[Any], *, suffix: str = "") -> dict[str, list[tuple[Any, ...]]]:
    """Return every row of every table of a view, in the order of its key."""
    found = {}
    for table in view.tables:
        await cur.execute(f"SELECT * FROM views.{table.name}{suffix} ORDER BY {', '.join(table.key)}".encode())
        found[table.name] = await cur.fetchall()
    return found


async def positions(cur: psycopg.AsyncCursor[Any], name: str) -> dict[int, int]:
    """Return how far a view has read, by ledger."""
    await cur.execute("SELECT ledger_id, position FROM view_positions WHERE view = %s", (name,))
    return dict(await cur.fetchall())


async def until(true: Callable[[], Any]) -> None:
    """Wait until a condition holds; it may be one that has to be awaited."""

    async def watch() -> None:
        while True:
            answer = true()
            if asyncio.iscoroutine(answer):
                answer = await answer
            if answer:
                return
            await asyncio.sleep(0.005)

    await asyncio.wait_for(watch(), PATIENCE_S)


# What may happen in a ledger, to one of three codes on two videos of two creators.


def happening(seed: int, commands: int) -> Story:
    """Tell a story of this many commands, each with some time before it; what the rules refuse is part of it."""
    random = Random(seed)
    story = Story()
    for creator in ("creator-1", "creator-2"):
        story.when(given.permission(creator_id=creator))
    for _ in range(commands):
        story.later(hours=random.choice([0, 0, 1, 24, 8 * 24]))
        with suppress(Refused, Unknown):
            story.when(_command(random))
    return story


def _command(random: Random) -> given.Command:
    number = random.randrange(1, 9)
    code, secret = UUID(int=number), Sealed(f"#secret+of+code+number+{number}=")
    creator, video = f"creator-{number % 2 + 1}", f"video-{number % 4}"
    brand, advertiser = f"brand-{random.randrange(2)}", f"advertiser-{random.randrange(3)}"
    campaign = replace(CAMPAIGN, campaign_id=f"campaign-{random.randrange(3)}", advertiser_id=advertiser)
    possible: list[Callable[[], given.Command]] = [
        lambda: given.permission(enabled=random.random() < 0.7, creator_id=creator),
        lambda: given.generate(code, creator_id=creator, video_id=video, secret=secret),
        lambda: given.generate(code, creator_id=creator, video_id=video, secret=secret),
        lambda: given.extend(code, days=random.choice([30, 60, 365])),
        lambda: given.share(code, brand_id=brand, advertiser_id=random.choice([None, advertiser])),
        lambda: given.share(code, brand_id=brand, advertiser_id=advertiser),
        lambda: given.redeem(secret, advertiser_id=advertiser),
        lambda: given.redeem(secret, advertiser_id=advertiser),
        lambda: given.launch(campaign, code),
        lambda: given.end(campaign.campaign_id, code),
        lambda: given.revoke(code, force=random.random() < 0.5),
        lambda: given.reveal(code),
        lambda: given.note(code),
        lambda: given.expire(code),
    ]
    return random.choice(possible)()
