"""The creator aggregate: one TikTok account and its "Ad authorization" switch.

    unknown ──PermissionEnabled──▶ on ──PermissionDisabled──▶ off ──PermissionEnabled──▶ on …
                                    └──────── CreatorErased (final) ┘

An unknown account counts as switched off. Switches can be recorded late and in any order: at each moment, the last
switch that had taken effect is valid. Switching off stops new codes, extensions and shares. Live codes stay valid, like
running ads on TikTok. Erasing destroys the key that seals the creator's secrets and notes, and switches off
permanently. Past decisions stay on record.
"""

from __future__ import annotations

from datetime import datetime
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, cast

from eventsourcing.domain import Aggregate, CanMutateAggregate

from domain.errors import Refused
from domain.recording import Recording
from domain.values import CREATOR_SIDE, FOREVER, When

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from domain.recorded import RecordedEvent


class Switch(NamedTuple):
    """A setting of the switch: when it took effect, and its value."""

    at: datetime
    enabled: bool


class Creator(Recording, Aggregate):
    """A creator's permission. NOTE: each `TOPIC` is the stored and published name of its event; never rename one."""

    TOPIC = "Creator"

    class Event(Aggregate.Event):
        """An event of the permission."""

        RECORDED_BY: ClassVar[tuple[str, ...]] = ()

    class Switched(Event, Aggregate.Created):
        """The switch was set. The first of these events also begins the stream."""

        TOPIC = "PermissionSwitched"

        creator_id: str

        def mutate(self, aggregate: Any) -> Any:
            """Create the aggregate if there is none yet, otherwise change it."""
            if aggregate is None:
                return super().mutate(None)
            return CanMutateAggregate.mutate(self, aggregate)

        def apply(self, aggregate: Creator) -> None:
            """Add the switch to the known ones."""
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

    Created = Enabled  # otherwise the library adds an event of that name, without a published name

    class Disabled(Switched):
        """The switch went off."""

        TOPIC = "PermissionDisabled"

        RECORDED_BY = CREATOR_SIDE

    class Erased(Event):
        """The creator was erased: the sealed data can no longer be read, and the switch is permanently off."""

        TOPIC = "CreatorErased"

        RECORDED_BY = ("admin",)
        creator_id: str
        reason: str

        def apply(self, aggregate: Creator) -> None:
            """Switch off permanently."""
            aggregate.erased_at = self.timestamp

    if TYPE_CHECKING:  # the state; annotations seen at run time would make the library build an __init__ of them
        creator_id: str
        switches: dict[int, Switch]  # by version
        erased_at: datetime | None

    @classmethod
    def begin(cls, stream_id: UUID, creator_id: str, *, enabled: bool, at: datetime) -> Self:
        """Begin the stream of an account by setting its switch."""
        kind = cls.Enabled if enabled else cls.Disabled
        return cls._create(kind, id=stream_id, timestamp=at, creator_id=creator_id)

    def switch(self, *, enabled: bool, when: When) -> None:
        """Switch the permission on or off. A repeat records nothing.

        If it is recorded late, it is a repeat only if the same was recorded for exactly that moment: between
        two known switches, there may have been others.

        Raises:
            Refused: `creator_erased`, if it would be switched on again.

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
        """Request the destruction of the creator's key. A repeat records nothing."""
        if self.erased_at is None:
            self.trigger_event(Creator.Erased, timestamp=at, creator_id=self.creator_id, reason=reason)

    @property
    def enabled(self) -> bool:
        """Whether the switch is on, by all that is known."""
        return self.enabled_by(FOREVER)

    def enabled_by(self, moment: datetime) -> bool:
        """Return whether the switch was on, as of the switches that had taken effect at a time."""
        if self.erased_at is not None and self.erased_at <= moment:
            return False
        last = None
        for switch in self.switches.values():  # by version: of the same time, the last recorded counts
            if switch.at <= moment and (last is None or switch.at >= last.at):
                last = switch
        return last is not None and last.enabled

    def since(self, moment: datetime) -> datetime | None:
        """Return since when the switch is as it was at a time; None if it was never set by then."""
        # Of the same time, the last recorded counts.
        known = {switch.at: switch.enabled for switch in self._in_effect() if switch.at <= moment}
        if self.erased_at is not None and self.erased_at <= moment:
            known[self.erased_at] = False
        since: datetime | None = None
        for at in sorted(known, reverse=True):
            if since is not None and known[at] != known[since]:
                break
            since = at
        return since

    def _in_effect(self) -> list[Switch]:
        """Return the switches in the order of effective time. Of the same time, the last recorded comes last."""
        return sorted(self.switches.values(), key=attrgetter("at"))  # stable, and they are by version

    def refuse_erased(self) -> None:
        """Raise `creator_erased` if nothing can be sealed or unsealed for the creator any more."""
        if self.erased_at is not None:
            raise Refused("creator_erased")


def replay_creator(stream: Sequence[RecordedEvent]) -> Creator:
    """Build a creator from its whole stream, or from the beginning of it."""
    creator = None
    for recorded in stream:
        creator = recorded.event.mutate(creator)
    return cast("Creator", creator)
