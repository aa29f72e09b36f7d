"""The filter of a subscriber, applied to one event after another.

The conditions are those of the event search (`projections.index_scan`), so a stream and a page show the same events. A
code's later events name neither its creator nor its video. So a filter remembers which streams belong to them: those
that existed when it began (`know`), and those whose first event it has seen since.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from domain.code import Code
from domain.pasted import creator_name
from domain.video import Video
from infra.eventstore.serialization import UnreadableEvent
from projections.index_scan import Among, Between, Condition, Positions, RecordedLate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from domain.recorded import Event, RecordedEvent
    from projections.index_scan import Field

_VALUES: dict[Field, Callable[[RecordedEvent], Any]] = {
    "type": lambda recorded: recorded.type,
    "source": lambda recorded: recorded.source,
    "actor": lambda recorded: recorded.actor.key_id,
    "creator_stream": lambda recorded: recorded.creator_stream,
    "code_id": lambda recorded: recorded.stream_id if isinstance(recorded.event, Code.Event) else None,
    "brand_id": lambda recorded: getattr(recorded.event, "brand_id", None),
    "advertiser_id": lambda recorded: getattr(recorded.event, "advertiser_id", None),
    "channel": lambda recorded: getattr(recorded.event, "channel", None),
    "refused": lambda recorded: recorded.event.reason if isinstance(recorded.event, Code.RedemptionRefused) else None,
}
_IN_BODIES: Final = frozenset({"brand_id", "advertiser_id", "channel", "refused"})


class EventFilter:
    """The conditions of one subscriber. An event that cannot be read passes those that its body would decide.

    Attributes:
        conditions: an event must meet all of them.
        everything: whether it lets every event pass.
        creators, videos: the creators and videos that the conditions name; creators by the canonical form of their ids.

    """

    def __init__(self, conditions: Sequence[Condition] = (), said: Callable[[Event], bool] | None = None) -> None:
        """Take the conditions, and a test that the texts of an event must pass."""
        self.conditions = conditions
        self.everything = not conditions and said is None
        self._said = said
        self.creators = self._named("creator_id")
        self.videos = self._named("video_id")
        # The creator of each stream, and the video of each code, among those that the conditions name.
        self._creator_of: dict[UUID, str] = {}
        self._video_of: dict[UUID, str] = {}

    def know(self, recorded: RecordedEvent) -> None:
        """Remember which creator's stream, or which video's code, an event shows."""
        named = vars(recorded.event).get
        creator_id, video_id = named("creator_id"), named("video_id")
        # A binding names a creator, but is not of that creator's stream: it is found by its video.
        if isinstance(recorded.event, Video.Event):
            creator_id = None
        if self.creators and creator_id is not None and creator_name(creator_id) in self.creators:
            self._creator_of[recorded.creator_stream] = creator_name(creator_id)
        if video_id in self.videos:
            self._video_of[recorded.stream_id] = str(video_id)

    def wants(self, recorded: RecordedEvent) -> bool:
        """Return whether an event meets all conditions. Events must come in the order of positions."""
        if self.everything:
            return True
        self.know(recorded)
        return all(self._fulfils(condition, recorded) for condition in self.conditions) and self.says(recorded)

    def says(self, recorded: RecordedEvent) -> bool:
        """Return whether an event's texts pass the test, if there is one."""
        if self._said is None or isinstance(recorded.event, UnreadableEvent):
            return True
        return self._said(recorded.event)

    def _named(self, field: Field) -> frozenset[str]:
        asked = [c for c in self.conditions if isinstance(c, Among) and c.field == field]
        return frozenset(str(value) for condition in asked for value in condition.values)

    def _fulfils(self, condition: Condition, recorded: RecordedEvent) -> bool:
        if isinstance(condition, Positions):
            return condition.include(recorded.position) is not condition.negated
        if isinstance(condition, RecordedLate):
            late = recorded.recorded_at - recorded.effective_at > condition.delay
            return late is not condition.negated
        if isinstance(condition, Between):
            moment = getattr(recorded, condition.field)
            since, until = condition.since, condition.until
            return ((since is None or moment >= since) and (until is None or moment < until)) is not condition.negated
        match condition.field:
            case "creator_id":
                found = self._creator_of.get(recorded.creator_stream) in condition.values
            case "video_id":
                found = self._video_of.get(recorded.stream_id) in condition.values
            case field if field in _IN_BODIES and isinstance(recorded.event, UnreadableEvent):
                return True  # nobody can tell that it does not
            case field:
                found = _VALUES[field](recorded) in condition.values
        return found is not condition.negated
