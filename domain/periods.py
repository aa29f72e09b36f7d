"""Periods in which a code's window was open, computed from all its known extensions. A code can lapse and be revived.

    [starts_at, end) ── an extension that took effect before the end moves it
                     └─ one that took effect at the end or later begins another period: the code had lapsed in between

The order in which extensions are recorded does not matter. Each is valid from its effective time until the next one
takes effect. If two have the same effective time, the one that was recorded last is valid.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import reduce
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from domain.values import FOREVER, Window

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


# Before anything took effect.
NEVER: Final = datetime.min.replace(tzinfo=UTC)


class Extension(NamedTuple):
    """An extension of the window: when it took effect, and the new end."""

    at: datetime
    expires_at: datetime


class Period(NamedTuple):
    """A period in which the window was open, and the effective time of the extension that set its end."""

    starts_at: datetime
    expires_at: datetime
    set_at: datetime


def first_period(window: Window) -> Period:
    """Return the period of a code that was never extended."""
    return Period(window.starts_at, window.expires_at, NEVER)


def extended(open_in: Sequence[Period], extension: Extension) -> list[Period]:
    """Return the periods after one more extension, whatever was recorded before it. They never overlap."""
    found = list(open_in)
    i = max((i for i, period in enumerate(found) if period.starts_at <= extension.at), default=0)
    period = found[i]
    if extension.at >= period.expires_at:
        i += 1
        found.insert(i, Period(extension.at, extension.expires_at, extension.at))
    elif extension.at >= period.set_at:
        found[i] = Period(period.starts_at, extension.expires_at, extension.at)
    # Else a later extension set the end, and the window was open in between anyway.
    while i + 1 < len(found) and found[i + 1].starts_at < found[i].expires_at:
        later = found.pop(i + 1)  # what began this one took effect before the end, so it moved that end
        found[i] = Period(found[i].starts_at, later.expires_at, later.set_at)
    return found


def periods(first: Window, extensions: Mapping[int, Extension]) -> list[Period]:
    """Return the periods of a window with its extensions, given by version."""
    return reduce(extended, extensions.values(), [first_period(first)])


def in_effect(extensions: Mapping[int, Extension]) -> list[Extension]:
    """Return extensions, given by version, in the order in which they took effect."""
    return [extension for _, extension in sorted(extensions.items(), key=_effective)]


def end_by(moment: datetime, first_end: datetime, extensions: Mapping[int, Extension]) -> datetime:
    """Return the end of the window, as of the extensions that had taken effect at a time."""
    return ([first_end] + [e.expires_at for e in in_effect(extensions) if e.at <= moment])[-1]


def lapse_after(open_in: Sequence[Period], moment: datetime) -> datetime:
    """Return the first end of the window after a time, or the last end if the window had ended for good by then."""
    return next((period.expires_at for period in open_in if moment < period.expires_at), open_in[-1].expires_at)


def until(open_in: Sequence[Period], end: datetime | None) -> list[Window]:
    """Return the periods, cut off at a time."""
    last = FOREVER if end is None else end
    return [Window(p.starts_at, min(p.expires_at, last)) for p in open_in if p.starts_at < last]


def overlap(some: Sequence[Window], others: Sequence[Window]) -> bool:
    """Return whether any two periods have a moment in common."""
    return any(
        max(one.starts_at, other.starts_at) < min(one.expires_at, other.expires_at) for one in some for other in others
    )


def _effective(item: tuple[int, Extension]) -> tuple[Any, ...]:
    version, extension = item
    return extension.at, version
