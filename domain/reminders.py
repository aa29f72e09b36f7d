"""When a window's end is said to approach: at a few thresholds before it, each crossed after the window was set.

A threshold counts only if it lies inside the window, and after the moment at which this end was set: a code of 30 days
is reminded of at 14, 7 and 1, for it was never further than 30 days from its end. Every extension sets a new end, and
the thresholds of that one count anew.
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
    """A threshold: when it is crossed, and how many days are left then."""

    at: datetime
    days_left: int


def reminders(window: Window, set_at: datetime, last_days: int | None) -> list[Reminder]:
    """Return the thresholds of a window that are still to be recorded, in the order in which they are crossed.

    Args:
        window: the window as it stands.
        set_at: the effective time of what set its end: the code's beginning, or its last extension.
        last_days: the days of the last reminder recorded for this very end; what is less urgent is past.

    """
    since = max(set_at, window.starts_at)
    ahead = [Reminder(window.expires_at - timedelta(days=days), days) for days in REMINDER_DAYS]
    return [r for r in ahead if r.at > since and (last_days is None or r.days_left < last_days)]
