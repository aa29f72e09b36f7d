"""What `/metrics` says of the worker, which answers nobody itself."""

from __future__ import annotations

import pytest

from tests.api.world import World, days
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("unkept")

NAMES = [
    "sparkledger_expiries_recorded_total",
    "sparkledger_reminders_recorded_total",
    "sparkledger_expiry_failures_total",
    "sparkledger_expiry_failing_codes",
    "sparkledger_expiry_late_seconds",
]


def figures(world: World) -> dict[str, float]:
    """Return the figures of the expiry clock."""
    lines = [line.split() for line in world.client.get("/metrics").text.splitlines()]
    return {line[0]: float(line[1]) for line in lines if line and line[0] in NAMES}


def test_an_expiry_is_counted_once_the_clock_has_recorded_it(world: World) -> None:
    before = figures(world)
    assert list(before) == NAMES
    world.generate(starts_at=days(-40))
    until(lambda: figures(world)["sparkledger_expiries_recorded_total"] > before["sparkledger_expiries_recorded_total"])
    assert figures(world)["sparkledger_expiry_failing_codes"] == 0
