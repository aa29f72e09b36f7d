"""When a code's window was open, by all that is known of its extensions: a list of periods, for a code may lapse.

    [starts_at, end) ── an extension that took effect before the end moves it
                     └─ one that took effect at the end or later begins another period: the code had lapsed between

The order in which extensions are recorded does not matter. Each holds from its effective time on, until one of a later
effective time; of two at the same time, the one recorded last.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from domain.values import Window

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Extension(NamedTuple):
    """The window's end was moved: since when, and to when."""

    at: datetime
    expires_at: datetime


def in_effect(extensions: Mapping[int, Extension]) -> list[Extension]:
    """Return extensions, known by their place in the code's stream, in the order in which they took effect."""
    return [extension for _, extension in sorted(extensions.items(), key=_effective)]


def end_by(moment: datetime, first_end: datetime, extensions: Mapping[int, Extension]) -> datetime:
    """Return the end that the window had by what had taken effect at a moment."""
    return ([first_end] + [e.expires_at for e in in_effect(extensions) if e.at <= moment])[-1]


def periods(first: Window, extensions: Mapping[int, Extension]) -> list[Window]:
    """Return the periods in which the window was open, in their order; they never touch each other's inside."""
    found, period = [], first
    for extension in in_effect(extensions):
        if extension.at < period.expires_at:
            period = Window(period.starts_at, extension.expires_at)
        else:
            found.append(period)
            period = Window(max(extension.at, first.starts_at), extension.expires_at)
    return [*found, period]


def lapse_after(open_in: Sequence[Window], moment: datetime) -> datetime:
    """Return when the window ended first after a moment; the last end, where it was over for good by then."""
    return next((period.expires_at for period in open_in if moment < period.expires_at), open_in[-1].expires_at)


def until(open_in: Sequence[Window], end: datetime | None) -> list[Window]:
    """Return what is left of periods that were cut off at a moment."""
    if end is None:
        return list(open_in)
    return [Window(p.starts_at, min(p.expires_at, end)) for p in open_in if p.starts_at < end]


def overlap(some: Sequence[Window], others: Sequence[Window]) -> bool:
    """Tell whether any two of them have a moment in common."""
    return any(
        max(one.starts_at, other.starts_at) < min(one.expires_at, other.expires_at) for one in some for other in others
    )


def _effective(item: tuple[int, Extension]) -> tuple[Any, ...]:
    version, extension = item
    return extension.at, version
