"""Ledgers in which much is recorded late: what happened, and when it is said to have happened, go apart."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from random import Random
from typing import TYPE_CHECKING

from domain.code import Code
from domain.errors import Refused, Unknown
from tests import given
from tests.given import Story
from tests.projections.memory_log import _command, _generate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from domain.recorded import RecordedEvent


def recorded_late(seed: int, commands: int) -> Story:
    """Tell a story in which every third command is said to have taken effect up to twenty days ago."""
    random = Random(seed)
    story = Story()
    for creator in ("creator-1", "creator-2"):
        story.when(given.permission(creator_id=creator))
    for command in [*map(_generate, range(1, 4)), *(_command(random) for _ in range(commands))]:
        ago = timedelta(hours=random.choice([1, 24, 24 * 20]) * random.random())
        with suppress(Refused, Unknown):
            story.when(command, effective_at=random.choice([None, None, story.clock() - ago]))
        story.later(hours=random.choice([0, 0, 1, 5, 24, 24, 10 * 24]))
    return story


def code_streams(story: Story) -> Iterator[list[RecordedEvent]]:
    """Yield the stream of each code."""
    for stream in story.ledger.streams.values():
        if isinstance(stream[0].event, Code.Generated):
            yield stream
