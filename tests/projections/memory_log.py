"""A log in memory, as views read one; what a view came to; and ledgers in which much happened."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from random import Random
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from psycopg.sql import SQL

from domain.errors import Refused, Unknown
from domain.recorded import RecordedEvent
from domain.values import Sealed
from projections import codes
from projections.engine.page import EventPage
from projections.engine.projector import UnreadableEvent
from projections.engine.view import View
from tests import given
from tests.given import CAMPAIGN, NOW, Story

if TYPE_CHECKING:
    import psycopg

PATIENCE_S: Final = 10.0


class MemoryLog:
    """The events of stories, each the ledger of its number, counted from 1."""

    def __init__(self, *stories: Story) -> None:
        self.ledgers: dict[int, list[RecordedEvent]] = {i: story.ledger.events for i, story in enumerate(stories, 1)}
        self.unreadable: set[tuple[int, int]] = set()
        self.pages = 0

    async def after(self, positions: Mapping[int, int], limit: int) -> EventPage:
        self.pages += 1
        page: list[tuple[int, RecordedEvent]] = []
        for ledger_id, events in sorted(self.ledgers.items()):
            for recorded in events[positions.get(ledger_id, 0) :][: limit - len(page)]:
                if (ledger_id, recorded.position) in self.unreadable:
                    if not page:
                        raise UnreadableEvent(ledger_id, recorded.position, "its body is no JSON")
                    return EventPage.of(page)
                page.append((ledger_id, recorded))
        return EventPage.of(page)

    def forget(self) -> None:
        pass

    @property
    def heads(self) -> dict[int, int]:
        """The last position of each ledger."""
        return {ledger_id: len(events) for ledger_id, events in self.ledgers.items() if events}

    def events(self) -> list[tuple[int, RecordedEvent]]:
        """Everything, in the order of pages."""
        return [(ledger_id, recorded) for ledger_id, events in self.ledgers.items() for recorded in events]


async def rows(cur: psycopg.AsyncCursor[Any], view: View[Any], *, suffix: str = "") -> dict[str, list[tuple[Any, ...]]]:
    """Return every row of every table of a view, in the order of its key."""
    found = {}
    for table in view.tables:
        await cur.execute(f"SELECT * FROM views.{table.name}{suffix} ORDER BY {', '.join(table.key)}".encode())
        found[table.name] = await cur.fetchall()
    return found


async def code_row(cur: psycopg.AsyncCursor[Any], ledger_id: int, code_id: UUID) -> codes.CodeRow | None:
    """Return the row of a code in the view of codes, as a session sees it."""
    query = SQL("SELECT {} FROM views.codes t WHERE ledger_id = %(ledger_id)s AND code_id = %(code_id)s")
    parameters = {"ledger_id": ledger_id, "code_id": code_id}
    found = await codes.CODES.fetch(cur, query.format(codes.CODES.select()), parameters)
    return found[0] if found else None


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


# What may happen in a ledger: to five codes, on four videos of two creators.


def happening(seed: int, commands: int) -> Story:
    """Tell a story of this many commands, each with some time before it; what the rules refuse is part of it."""
    random = Random(seed)
    story = Story()
    for creator in ("creator-1", "creator-2"):
        story.when(given.permission(creator_id=creator))
    for command in [*map(_generate, range(1, 4)), *(_command(random) for _ in range(commands))]:
        with suppress(Refused, Unknown):
            story.when(command)
        story.later(hours=random.choice([0, 0, 0, 0, 1, 1, 24, 24, 10 * 24]))
    return story


def _generate(number: int) -> given.Command:
    creator, video = f"creator-{number % 2 + 1}", f"video-{number % 4}"
    return given.generate(UUID(int=number), creator_id=creator, video_id=video, secret=_secret(number))


def _secret(number: int) -> Sealed:
    return Sealed(f"#secret+of+code+number+{number}=")


def _command(random: Random) -> given.Command:
    number = random.choice([1, 1, 1, 2, 2, 3, 4, 5])
    code, secret, creator = UUID(int=number), _secret(number), f"creator-{number % 2 + 1}"
    brand, advertiser = f"brand-{random.randrange(3)}", f"advertiser-{random.randrange(3)}"
    start = NOW + timedelta(days=random.randrange(60))
    campaign = replace(CAMPAIGN, campaign_id=f"campaign-{random.randrange(3)}", advertiser_id=advertiser)
    campaign = replace(campaign, starts_at=start, ends_at=start + timedelta(days=random.randrange(1, 60)))
    possible: list[Callable[[], given.Command]] = [
        lambda: given.permission(enabled=False, creator_id=creator),
        *(lambda: given.permission(creator_id=creator),) * 4,
        *(lambda: _generate(number),) * 3,
        *(lambda: given.extend(code, expires_at=start + timedelta(days=30)),) * 4,
        *(lambda: given.share(code, brand_id=brand, advertiser_id=random.choice([None, advertiser])),) * 5,
        *(lambda: given.redeem(secret, advertiser_id=advertiser),) * 6,
        *(lambda: given.launch(campaign, code),) * 8,
        *(lambda: given.end(campaign.campaign_id, code),) * 2,
        lambda: given.revoke(code, force=random.random() < 0.5),
        lambda: given.reveal(code),
        lambda: given.note(code, text=random.choice("abcdef")),
        *(lambda: given.record_due(code),) * 2,
        *(lambda: given.record_due(code),) * 2,
    ]
    return random.choice(possible)()
