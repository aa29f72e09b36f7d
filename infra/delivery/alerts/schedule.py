"""When a message may be sent: at once, outside of quiet hours, or once a day, by the clock of a time zone.

A time that a clock skips in spring counts from when the clock has jumped. One that it shows twice in autumn counts the
first time.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Timing:
    """When a rule's messages may be sent.

    Attributes:
        zone: the name of a time zone, such as Europe/Berlin.
        digest_at: when everything that was found is sent together, each day; None to send it at once.
        quiet_from, quiet_until: between these times nothing is sent, over midnight too.

    """

    zone: str
    digest_at: time | None = None
    quiet_from: time | None = None
    quiet_until: time | None = None

    def is_quiet(self, at: time) -> bool:
        """Return whether nothing is sent at a time of day."""
        if self.quiet_from is None or self.quiet_until is None:
            return False
        if self.quiet_from < self.quiet_until:
            return self.quiet_from <= at < self.quiet_until
        return at >= self.quiet_from or at < self.quiet_until


def send_at(timing: Timing, found_at: datetime) -> datetime:
    """Return when something that was found at a moment may be sent, in UTC: that moment or later."""
    local = found_at.astimezone(zone_named(timing.zone))
    if timing.digest_at is not None:
        return _next(timing.digest_at, local)
    if timing.quiet_until is not None and timing.is_quiet(local.time()):
        return _next(timing.quiet_until, local)
    return found_at.astimezone(UTC)


def is_zone(name: str) -> bool:
    """Return whether a time zone has this name."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


@lru_cache(maxsize=1_024)
def zone_named(name: str) -> ZoneInfo:
    """Return a time zone; UTC where this machine does not know the name, which the API's machine knew."""
    return ZoneInfo(name) if is_zone(name) else ZoneInfo("UTC")


def _next(at: time, local: datetime) -> datetime:
    """Return the next moment at which the clock shows a time."""
    for days in range(3):
        moment = datetime.combine(local.date() + days * DAY, at, tzinfo=local.tzinfo).astimezone(UTC)
        if moment >= local:
            return moment
    raise AssertionError(at)
