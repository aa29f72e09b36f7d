"""All event types: the published name and the class of each, first those of a code's life, in its order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from eventsourcing.utils import get_topic

from domain.advertiser import Advertiser
from domain.code import Code
from domain.creator import Creator
from domain.log import Log
from domain.sheet_import import SheetImport
from domain.video import Video

if TYPE_CHECKING:
    from collections.abc import Mapping

    from domain.recorded import Event


def _event_types() -> dict[str, type[Event]]:
    found: dict[str, type[Event]] = {}
    for aggregate in (Creator, Code, Advertiser, Video, SheetImport, Log):
        classes = [kind for kind in vars(aggregate).values() if isinstance(kind, type)]
        events = [kind for kind in classes if issubclass(kind, aggregate.Event)]
        # A class that others inherit from is never recorded itself.
        leaves = (kind for kind in events if not any(other is not kind and issubclass(other, kind) for other in events))
        found |= {get_topic(kind): kind for kind in leaves}
    return found


EVENT_TYPES: Final[Mapping[str, type[Event]]] = _event_types()
