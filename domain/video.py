"""The video aggregate: whose video it is, as an operator stated it.

    unknown ──VideoBound──▶ bound to a creator ──VideoReleased──▶ free ──VideoBound──▶ bound …
                                   └──VideoBound──▶ bound to another creator …

The ledger believes a creator that a video is theirs, until an operator binds the video. From then on only that creator
can have codes generated or extended for it. Facts that are already recorded stay as they are. A binding is a rule, not
a fact about a moment in the world: commands are judged by the binding that is recorded now, whenever they took effect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from eventsourcing.domain import Aggregate, CanMutateAggregate

from domain.errors import Refused
from domain.pasted import creator_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from domain.recorded import RecordedEvent


class Video(Aggregate):
    """A video's binding. NOTE: each `TOPIC` is the stored and published name of its event; never rename one."""

    TOPIC = "Video"

    class Event(Aggregate.Event):
        """An event of the binding."""

        RECORDED_BY: ClassVar[tuple[str, ...]] = ()

    class Bound(Event, Aggregate.Created):
        """An operator bound the video to its creator; the first of these also begins the stream."""

        TOPIC = "VideoBound"

        RECORDED_BY = ("operator", "admin")
        video_id: str
        creator_id: str

        def mutate(self, aggregate: Any) -> Any:
            """Create the aggregate if there is none yet, otherwise change it."""
            if aggregate is None:
                return super().mutate(None)
            return CanMutateAggregate.mutate(self, aggregate)

        def apply(self, aggregate: Video) -> None:
            """Replace the creator."""
            aggregate.video_id = self.video_id
            aggregate.creator_id = self.creator_id

    Created = Bound  # otherwise the library adds an event of that name, without a published name

    class Released(Event):
        """An operator lifted the binding: any creator can have codes for the video again."""

        TOPIC = "VideoReleased"

        RECORDED_BY = ("operator", "admin")
        video_id: str

        def apply(self, aggregate: Video) -> None:
            """Forget the creator."""
            aggregate.creator_id = None

    if TYPE_CHECKING:  # the state; annotations seen at run time would make the library build an __init__ of them
        video_id: str
        creator_id: str | None

    @classmethod
    def begin(cls, stream_id: UUID, video_id: str, creator_id: str, *, at: datetime) -> Self:
        """Begin the stream of a video by binding it."""
        return cls._create(cls.Bound, id=stream_id, timestamp=at, video_id=video_id, creator_id=creator_id)

    def bind(self, creator_id: str, *, at: datetime) -> None:
        """Bind the video to a creator. The same creator again, however spelled, records nothing."""
        if self.creator_id is None or creator_name(self.creator_id) != creator_name(creator_id):
            self.trigger_event(
                Video.Bound,
                timestamp=at,
                video_id=self.video_id,
                creator_id=creator_id,
                originator_topic=Video.TOPIC,
            )

    def release(self, *, at: datetime) -> None:
        """Lift the binding. A repeat records nothing."""
        if self.creator_id is not None:
            self.trigger_event(Video.Released, timestamp=at, video_id=self.video_id)

    def refuse_another_creator(self, creator_id: str) -> None:
        """Raise `video_of_other_creator` if the video is bound, and not to this creator."""
        if self.creator_id is not None and creator_name(self.creator_id) != creator_name(creator_id):
            raise Refused("video_of_other_creator")


def replay_video(stream: Sequence[RecordedEvent]) -> Video:
    """Build a video's binding from its whole stream, or from the beginning of it."""
    video = None
    for recorded in stream:
        video = recorded.event.mutate(video)
    return cast("Video", video)
