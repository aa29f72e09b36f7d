"""The creator aggregate: one TikTok account and its "Ad authorization" switch.

    unknown ──PermissionEnabled──▶ on ──PermissionDisabled──▶ off ──PermissionEnabled──▶ on …

An account nobody has told us about reads as switched off. Switching off stops new codes, extensions and shares; live
codes stay valid, as running ads on TikTok do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from eventsourcing.domain import Aggregate, CanMutateAggregate

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID


class Creator(Aggregate):
    """A creator's permission. NOTE: each `TOPIC` is the stored and published name of its event; never rename one."""

    TOPIC = "Creator"

    class Event(Aggregate.Event):
        """What happened to the permission."""

    class Enabled(Event, Aggregate.Created):
        """The switch went on; the first of these also begins the stream."""

        TOPIC = "PermissionEnabled"
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

    Created = Enabled  # the library would else add an event of that name, with no wire name of its own

    class Disabled(Event):
        """The switch went off."""

        TOPIC = "PermissionDisabled"
        creator_id: str

        def apply(self, aggregate: Creator) -> None:
            """Switch off."""
            aggregate.enabled = False

    if TYPE_CHECKING:  # the state; annotations seen at run time would make the library build an __init__ of them
        creator_id: str
        enabled: bool

    @classmethod
    def enable_first(cls, stream_id: UUID, creator_id: str, at: datetime) -> Self:
        """Begin the stream of an account by switching its permission on."""
        return cls._create(cls.Enabled, id=stream_id, timestamp=at, creator_id=creator_id)

    def switch(self, *, enabled: bool, at: datetime) -> None:
        """Switch the permission on or off; the same again records nothing."""
        if enabled == self.enabled:
            return
        if enabled:
            self.trigger_event(
                Creator.Enabled, timestamp=at, creator_id=self.creator_id, originator_topic=Creator.TOPIC
            )
        else:
            self.trigger_event(Creator.Disabled, timestamp=at, creator_id=self.creator_id)
