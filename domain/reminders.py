"""Reminders that the end of a window approaches: a few thresholds before it, each crossed after the window was set.

A threshold counts only if it is inside the window and after the moment at which this end was set. A code of 30 days
gets reminders at 14, 7 and 1 days, because it was never more than 30 days from its end. Every extension sets a new end
with new thresholds.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from datetime import datetime

    from domain.values import Window

# Whole days before the end, the furthest first.
REMINDER_DAYS: Final = (30, 14, 7, 1)


class Reminder(NamedTuple):
    """A threshold: when it is crossed, and the number of days left then."""

    at: datetime
    days_left: int


def reminders(window: Window, set_at: datetime, last_days: int | None) -> list[Reminder]:
    """Return the thresholds of a window that are not recorded yet, in the order in which they are crossed.

    Args:
        window: the current window.
        set_at: the effective time of what set its end: the start of the code, or its last extension.
        last_days: the days of the last reminder recorded for this end; less urgent reminders are past.

    """
    since = max(set_at, window.starts_at)
    ahead = [Reminder(window.expires_at - timedelta(days=days), days) for days in REMINDER_DAYS]
    return [r for r in ahead if r.at > since and (last_days is None or r.days_left < last_days)]
