"""The creator aggregate: one TikTok account and its "Ad authorization" switch.

    unknown ──PermissionEnabled──▶ on ──PermissionDisabled──▶ off ──PermissionEnabled──▶ on …
                                    └──────── CreatorErased (final) ┘

An account nobody has told us about reads as switched off. Switching off stops new codes, extensions and shares; live
codes stay valid, as running ads on TikTok do. Erasing destroys the key that the creator's secrets and notes are sealed
under, and switches off for good; what was decided stays on record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from eventsourcing.domain import Aggregate, CanMutateAggregate

from domain.errors import Refused
from domain.values import CREATOR_SIDE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from domain.recorded import RecordedEvent


class Creator(Aggregate):
    """A creator's permission. NOTE: each `TOPIC` is the stored and published name of its event; never rename one."""

    TOPIC = "Creator"

    class Event(Aggregate.Event):
        """What happened to the permission."""

        RECORDED_BY: ClassVar[tuple[str, ...]] = ()

    class Enabled(Event, Aggregate.Created):
        """The switch went on; the first of these also begins the stream."""

        TOPIC = "PermissionEnabled"

        RECORDED_BY = CREATOR_SIDE
        creator_id: str

        def mutate(self, aggregate: Any) -> Any:
            """Begin the aggregate where there is none yet, else change the one that stands."""
            if aggregate is None:
                return super().mutate(None)
            return CanMutateAggregate.mutate(self, aggregate)

        def apply(self, aggregate: Creator) -> None:
            """Switch on."""
            aggregate.creator_id = self.creator_id
            aggregate.enabled = True
            aggregate.erased_at = None

    Created = Enabled  # the library would else add an event of that name, with no wire name of its own

    class Disabled(Event):
        """The switch went off."""

        TOPIC = "PermissionDisabled"

        RECORDED_BY = CREATOR_SIDE
        creator_id: str

        def apply(self, aggregate: Creator) -> None:
            """Switch off."""
            aggregate.enabled = False

    class Erased(Event):
        """What is sealed of the creator can be read no more, and the switch is off for good: this asks for the deed."""

        TOPIC = "CreatorErased"

        RECORDED_BY = ("admin",)
        creator_id: str
        reason: str

        def apply(self, aggregate: Creator) -> None:
            """Switch off, for good."""
            aggregate.enabled = False
            aggregate.erased_at = self.timestamp

    if TYPE_CHECKING:  # the state; annotations seen at run time would make the library build an __init__ of them
        creator_id: str
        enabled: bool
        erased_at: datetime | None

    @classmethod
    def enable_first(cls, stream_id: UUID, creator_id: str, at: datetime) -> Self:
        """Begin the stream of an account by switching its permission on."""
        return cls._create(cls.Enabled, id=stream_id, timestamp=at, creator_id=creator_id)

    def switch(self, *, enabled: bool, at: datetime) -> None:
        """Switch the permission on or off; the same again records nothing.

        Raises:
            Refused: `creator_erased`, where it would go on again.

        """
        if enabled:
            self.refuse_erased()
        if enabled == self.enabled:
            return
        if enabled:
            self.trigger_event(
                Creator.Enabled, timestamp=at, creator_id=self.creator_id, originator_topic=Creator.TOPIC
            )
        else:
            self.trigger_event(Creator.Disabled, timestamp=at, creator_id=self.creator_id)

    def erase(self, reason: str, *, at: datetime) -> None:
        """Ask for the creator's key to be destroyed; again, nothing more is recorded."""
        if self.erased_at is None:
            self.trigger_event(Creator.Erased, timestamp=at, creator_id=self.creator_id, reason=reason)

    def refuse_erased(self) -> None:
        """Raise `creator_erased` where nothing can be sealed for the creator, or unsealed, any more."""
        if self.erased_at is not None:
            raise Refused("creator_erased")


def replay_creator(stream: Sequence[RecordedEvent]) -> Creator:
    """Build a creator from its whole stream, or from the head of it."""
    creator = None
    for recorded in stream:
        creator = recorded.event.mutate(creator)
    return cast("Creator", creator)
