"""The creator aggregate: one TikTok account and its "Ad authorization" switch.

    unknown ──PermissionEnabled──▶ on ──PermissionDisabled──▶ off ──PermissionEnabled──▶ on …
                                    └──────── CreatorErased (final) ┘

An account nobody has told us about reads as switched off. Switches may be recorded late and in any order: at each
moment the switch stands as the last one left it that had taken effect. Switching off stops new codes, extensions and
shares; live codes stay valid, as running ads on TikTok do. Erasing destroys the key that the creator's secrets and
notes are sealed under, and switches off for good; what was decided stays on record.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, cast

from eventsourcing.domain import Aggregate, CanMutateAggregate

from domain.errors import Refused
from domain.values import CREATOR_SIDE, FOREVER, When

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from domain.recorded import RecordedEvent


class Switch(NamedTuple):
    """The switch was set: since when, and to what."""

    at: datetime
    enabled: bool


class Creator(Aggregate):
    """A creator's permission. NOTE: each `TOPIC` is the stored and published name of its event; never rename one."""

    TOPIC = "Creator"

    class Event(Aggregate.Event):
        """What happened to the permission."""

        RECORDED_BY: ClassVar[tuple[str, ...]] = ()

    class Switched(Event, Aggregate.Created):
        """The switch was set; the first of these also begins the stream."""

        TOPIC = "PermissionSwitched"

        creator_id: str

        def mutate(self, aggregate: Any) -> Any:
            """Begin the aggregate where there is none yet, else change the one that stands."""
            if aggregate is None:
                return super().mutate(None)
            return CanMutateAggregate.mutate(self, aggregate)

        def apply(self, aggregate: Creator) -> None:
            """Add the switch to those that are known."""
            if self.originator_version == 1:
                aggregate.creator_id = self.creator_id
                aggregate.switches = {}
                aggregate.erased_at = None
            switch = Switch(self.timestamp, enabled=isinstance(self, Creator.Enabled))
            aggregate.switches = {**aggregate.switches, self.originator_version: switch}

    class Enabled(Switched):
        """The switch went on."""

        TOPIC = "PermissionEnabled"

        RECORDED_BY = CREATOR_SIDE

    Created = Enabled  # the library would else add an event of that name, with no wire name of its own

    class Disabled(Switched):
        """The switch went off."""

        TOPIC = "PermissionDisabled"

        RECORDED_BY = CREATOR_SIDE

    class Erased(Event):
        """What is sealed of the creator can be read no more, and the switch is off for good: this asks for the deed."""

        TOPIC = "CreatorErased"

        RECORDED_BY = ("admin",)
        creator_id: str
        reason: str

        def apply(self, aggregate: Creator) -> None:
            """Switch off, for good."""
            aggregate.erased_at = self.timestamp

    if TYPE_CHECKING:  # the state; annotations seen at run time would make the library build an __init__ of them
        creator_id: str
        switches: dict[int, Switch]  # by version
        erased_at: datetime | None

    @classmethod
    def begin(cls, stream_id: UUID, creator_id: str, *, enabled: bool, at: datetime) -> Self:
        """Begin the stream of an account by switching its permission."""
        kind = cls.Enabled if enabled else cls.Disabled
        return cls._create(kind, id=stream_id, timestamp=at, creator_id=creator_id)

    def switch(self, *, enabled: bool, when: When) -> None:
        """Switch the permission on or off; the same again records nothing.

        What is recorded late is the same only where it was recorded of that very moment: between two switches that are
        known there may have been others.

        Raises:
            Refused: `creator_erased`, where it would go on again.

        """
        if enabled:
            self.refuse_erased()
        if when.late:
            same = [known.enabled for known in self._in_effect() if known.at == when.at][-1:] == [enabled]
        else:
            same = self.enabled == enabled
        if not same:
            self.trigger_event(
                Creator.Enabled if enabled else Creator.Disabled,
                timestamp=when.at,
                creator_id=self.creator_id,
                originator_topic=Creator.TOPIC,
            )

    def erase(self, reason: str, *, at: datetime) -> None:
        """Ask for the creator's key to be destroyed; again, nothing more is recorded."""
        if self.erased_at is None:
            self.trigger_event(Creator.Erased, timestamp=at, creator_id=self.creator_id, reason=reason)

    @property
    def enabled(self) -> bool:
        """Whether the switch is on, by all that is known."""
        return self.enabled_by(FOREVER)

    def enabled_by(self, moment: datetime) -> bool:
        """Tell whether the switch was on, by what had taken effect at a moment."""
        if self.erased_at is not None and self.erased_at <= moment:
            return False
        return [known.enabled for known in self._in_effect() if known.at <= moment][-1:] == [True]

    def _in_effect(self) -> list[Switch]:
        """Return the switches in the order in which they took effect; of the same moment the last recorded is last."""
        return [switch for _, switch in sorted(self.switches.items(), key=lambda item: (item[1].at, item[0]))]

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
