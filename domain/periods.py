"""Periods in which a code's window was open, computed from all its known extensions. A code can lapse and be revived.

    [starts_at, end) ── an extension that took effect before the end moves it
                     └─ one that took effect at the end or later begins another period: the code had lapsed in between

The order in which extensions are recorded does not matter. Each is valid from its effective time until the next one
takes effect. If two have the same effective time, the one that was recorded last is valid.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from domain.values import Window

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Extension(NamedTuple):
    """An extension of the window: when it took effect, and the new end."""

    at: datetime
    expires_at: datetime


def in_effect(extensions: Mapping[int, Extension]) -> list[Extension]:
    """Return extensions, given by version, in the order in which they took effect."""
    return [extension for _, extension in sorted(extensions.items(), key=_effective)]


def end_by(moment: datetime, first_end: datetime, extensions: Mapping[int, Extension]) -> datetime:
    """Return the end of the window, as of the extensions that had taken effect at a time."""
    return ([first_end] + [e.expires_at for e in in_effect(extensions) if e.at <= moment])[-1]


def periods(first: Window, extensions: Mapping[int, Extension]) -> list[Window]:
    """Return the periods in which the window was open, in order. They never overlap."""
    found, period = [], first
    for extension in in_effect(extensions):
        if extension.at < period.expires_at:
            period = Window(period.starts_at, extension.expires_at)
        else:
            found.append(period)
            period = Window(max(extension.at, first.starts_at), extension.expires_at)
    return [*found, period]


def lapse_after(open_in: Sequence[Window], moment: datetime) -> datetime:
    """Return the first end of the window after a time, or the last end if the window had ended for good by then."""
    return next((period.expires_at for period in open_in if moment < period.expires_at), open_in[-1].expires_at)


def until(open_in: Sequence[Window], end: datetime | None) -> list[Window]:
    """Return the periods, cut off at a time."""
    if end is None:
        return list(open_in)
    return [Window(p.starts_at, min(p.expires_at, end)) for p in open_in if p.starts_at < end]


def overlap(some: Sequence[Window], others: Sequence[Window]) -> bool:
    """Tell whether any two periods have a moment in common."""
    return any(
        max(one.starts_at, other.starts_at) < min(one.expires_at, other.expires_at) for one in some for other in others
    )


def _effective(item: tuple[int, Extension]) -> tuple[Any, ...]:
    version, extension = item
    return extension.at, version
