"""How far a subscriber is behind the log, in seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime


def lag_seconds(oldest: datetime | None, now: datetime) -> float:
    """Return how long the oldest event that waits has waited.

    Args:
        oldest: when that event was recorded; None where no event waits, and the lag is 0.
        now: the time to compare with.

    """
    return max(0.0, (now - oldest).total_seconds()) if oldest else 0.0
